"""Runtime adapters: `base` has the two Protocols, `registry` finds an adapter by name, one file per runtime holds one adapter.

Importing this package, `base`, `spec` or `registry` loads no runtime; an adapter imports its runtime in `load`.
"""
