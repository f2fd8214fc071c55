"""Arrays by output name. Which output is meant is for `choice` to say."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from profiler.errors import DataError

Array = NDArray[np.generic]
NO_CLASS = -(2**63)
"""Predicted class of a row whose outputs hold NaN: always wrong. Not −1, which outlier detectors answer. Exact as a float64."""


def named_output(outputs: Mapping[str, Array], output: str) -> Array:
    """The output called `output`. Raises DataError with the known ones."""
    if output not in outputs:
        raise DataError(
            f"the model has no output '{output}', it has: {', '.join(outputs)}. Set the metric's output option to one of them."
        )
    return outputs[output]
