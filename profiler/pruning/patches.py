"""Rows for least squares: what a node multiplies its weights with, at some of its output positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from profiler.pruning.graph import attribute

ROWS_PER_COLUMN = 12
MOST_POSITIONS = 256
"""Output positions taken from one row of data."""


def sampled(total: int, columns: int, rows: int, seed: Sequence[int]) -> NDArray[np.int64]:
    """Some of `total` output positions of one row of data: enough for `columns` unknowns over `rows` rows, sorted."""
    wanted = max(8, -(-ROWS_PER_COLUMN * columns // max(1, rows)))
    rng = np.random.default_rng(list(seed))
    return np.sort(rng.choice(total, min(total, MOST_POSITIONS, wanted), replace=False)).astype(np.int64)


def input_rows(
    node: NodeProto,
    data: NDArray[Any],
    data_axis: int,
    kernel: tuple[int, ...],
    spatial: tuple[int, ...],
    where: NDArray[np.int64],
) -> NDArray[np.float64]:
    """What the node multiplies by its weights at flat output positions, [N, P, C, taps]; `spatial` and `kernel` of a Conv."""
    if node.op_type == "Conv":
        return conv_patches(node, data, kernel, spatial, where)
    data = np.moveaxis(data, data_axis, -1)
    return np.asarray(data.reshape(data.shape[0], -1, data.shape[-1], 1)[:, where], np.float64)


def conv_patches(
    node: NodeProto, data: NDArray[Any], kernel: tuple[int, ...], spatial: tuple[int, ...], positions: NDArray[np.int64]
) -> NDArray[np.float64]:
    """What a convolution sees at flat output `positions`: data [N, C, …] to [N, P, C, prod(kernel)], padded with zeros.

    `spatial` is the output's size without batch and channels. Pads, strides, dilations and auto_pad as ONNX defines them.
    """
    dims = len(kernel)
    strides = list(attribute(node, "strides") or [1] * dims)
    dilations = list(attribute(node, "dilations") or [1] * dims)
    size = data.shape[2:]
    begin = _pads_begin(node, size, spatial, kernel, strides, dilations)
    at = np.stack(np.unravel_index(positions, spatial), axis=1)
    taps = np.stack(np.unravel_index(np.arange(int(np.prod(kernel))), kernel), axis=1)
    where = at[:, None, :] * strides + taps[None, :, :] * dilations - begin
    inside = np.all((where >= 0) & (where < np.array(size)), axis=2)
    flat = np.ravel_multi_index(tuple(np.where(inside[..., None], where, 0).transpose(2, 0, 1)), size)
    seen = data.reshape(*data.shape[:2], -1)[:, :, flat].astype(np.float64)
    return np.asarray((seen * inside).transpose(0, 2, 1, 3))


def _pads_begin(
    node: NodeProto,
    size: tuple[int, ...],
    spatial: tuple[int, ...],
    kernel: tuple[int, ...],
    strides: list[int],
    dilations: list[int],
) -> NDArray[np.int64]:
    dims = len(kernel)
    mode = attribute(node, "auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        need = [
            max(0, (out - 1) * stride + (k - 1) * dilation + 1 - have)
            for out, stride, k, dilation, have in zip(spatial, strides, kernel, dilations, size, strict=True)
        ]
        return np.array([(total + (mode == "SAME_LOWER")) // 2 for total in need], np.int64)
    pads = attribute(node, "pads") if mode == "NOTSET" else None
    return np.array((pads or [0] * dims)[:dims], np.int64)
