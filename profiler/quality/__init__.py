"""What a variant does to the answers: metrics, agreement with the reference, and the paired comparison of both.

`outputs` (which output means what), `metrics` (names and the protocol), `classes` and `values` (the built-in metrics),
`compare` (paired estimates) and `verdict` (the decision; both need scipy). The first four import numpy only.
"""
