"""n:m sparsity: in each run of m weights along the summed axis, only the n largest stay."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def nm_mask(weight: NDArray[Any], axis: int, n: int, m: int) -> NDArray[np.bool_] | None:
    """Which weights stay: the `n` largest magnitudes of each `m` neighbours along `axis`; None when its length is no multiple
    of `m`. Of equal magnitudes the earlier one stays.
    """
    length = weight.shape[axis]
    if length % m:
        return None
    rows = np.moveaxis(weight, axis, -1)
    blocks = np.abs(rows).reshape(*rows.shape[:-1], length // m, m)
    order = np.argsort(-blocks, axis=-1, kind="stable")
    mask = np.zeros(blocks.shape, bool)
    np.put_along_axis(mask, order[..., :n], True, axis=-1)
    return np.asarray(np.moveaxis(mask.reshape(rows.shape), -1, axis))
