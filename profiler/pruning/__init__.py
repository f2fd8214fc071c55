"""Structured pruning of ONNX graphs: which channels are tied, which matter least, cutting them out, re-fitting what reads them.

`axes` (what belongs together) → `groups` (what may go) → `importance`, `plan` (what goes) → `cut` → `refit`. Nothing here opens
a runtime: functions that need one get it as an argument (`observe.Open`).
"""
