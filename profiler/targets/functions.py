"""Data from the user's own code, called in a process of its own: a crash of that code is a message, and not our end."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from profiler.data.dataset import Array
from profiler.data.functions import read_function
from profiler.errors import DataError
from profiler.targets.maker import Limits, Maker, read_rows, usual_limits
from profiler.targets.process import WorkerFailure


def read_function_apart(
    text: str,
    input_names: tuple[str, ...],
    *,
    limit: int | None,
    limits: Callable[[], Limits] = usual_limits,
) -> dict[str, Array]:
    """`profiler.data.functions.read_function`, called in a process that ends afterwards.

    It works in this process's folder and imports from where this one does. What it prints goes to that process's log. A
    function of `__main__`, such as a notebook's, exists in this process only and is called here. Raises DataError, also where
    the code ends its process, hangs, or takes more memory than `limits` allow.
    """
    if text.partition(":")[0] == "__main__":
        return read_function(text, input_names, limit=limit)
    what = f"calling the data function '{text}'"
    # A process of its own: what user code imports and leaves behind has no part in making variants.
    with Maker(limits) as maker:
        try:
            folder = maker.do(
                "rows", what, function=text, names=input_names, limit=limit, paths=[path for path in sys.path if path]
            )
            # Copied, since the folder goes with the process.
            return {name: np.array(array) for name, array in read_rows(Path(folder)).items()}
        except WorkerFailure as failure:
            said = f" It said: {failure.log_tail.strip()}" if failure.log_tail and failure.kind == "crash" else ""
            raise DataError(f"{failure}{said}") from failure
