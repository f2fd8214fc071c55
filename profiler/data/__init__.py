"""Evaluation and calibration data: npz files, image folders and the user's own functions, checked where they come in."""

from __future__ import annotations

from profiler.data.dataset import Dataset, check_labels, row_hashes
from profiler.data.images import Preprocessing
from profiler.data.load import load_dataset
from profiler.data.split import drop_overlap, overlap, split_calibration

__all__ = [
    "Dataset",
    "Preprocessing",
    "check_labels",
    "drop_overlap",
    "load_dataset",
    "overlap",
    "row_hashes",
    "split_calibration",
]
