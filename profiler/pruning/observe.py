"""Looking at tensors inside a model while it runs on calibration rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto

from profiler.onnx_io import clone, reads

Feeds = Mapping[str, NDArray[Any]]


class Runner(Protocol):
    """A loaded model."""

    def run(self, names: Sequence[str] | None, feeds: Feeds) -> list[NDArray[Any]]:
        """Outputs by name, in the order asked."""
        ...


Open = Callable[[ModelProto], Runner]
"""Loads a model in some runtime."""


def prefix(model: ModelProto, names: Sequence[str]) -> ModelProto:
    """The part of the graph that computes `names`, with these as its outputs; all inputs stay."""
    needed, kept = set(names), []
    for node in reversed(model.graph.node):
        if any(name in needed for name in node.output if name):
            kept.append(node)
            needed |= reads(node)
    part = onnx.ModelProto()
    part.ir_version = model.ir_version
    part.opset_import.extend(model.opset_import)
    part.functions.extend(model.functions)
    part.graph.name = model.graph.name
    part.graph.node.extend(reversed(kept))
    part.graph.input.extend(model.graph.input)
    part.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in needed)
    part.graph.sparse_initializer.extend(model.graph.sparse_initializer)
    # Runtimes fill in the type of an output that is only named.
    declared = {value.name: value for value in model.graph.output}
    part.graph.output.extend(declared.get(name, onnx.ValueInfoProto(name=name)) for name in names)
    return part


def watched(model: ModelProto, names: Sequence[str]) -> ModelProto:
    """A copy of the whole model with further outputs."""
    copy = clone(model)
    have = {value.name for value in copy.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in have)
    return copy


class ChannelSums:
    """Running sums of a tensor's channels: count, sum and sum of squares, in float64."""

    def __init__(self) -> None:
        """Nothing seen."""
        self.count = 0
        self.sum: NDArray[np.float64] | None = None
        self.squares: NDArray[np.float64] | None = None
        self.positions = 0
        """Positions beside the batch and channel axes, of the last row seen."""

    def add(self, array: NDArray[Any], axis: int) -> None:
        """Take in a batch; values that are not finite count as 0."""
        flat = np.nan_to_num(np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis]).astype(np.float64))
        self.count += len(flat)
        self.positions = len(flat) // max(1, array.shape[0] if axis else 1)
        total, squares = flat.sum(axis=0), np.square(flat).sum(axis=0)
        self.sum = total if self.sum is None else self.sum + total
        self.squares = squares if self.squares is None else self.squares + squares

    @property
    def rms(self) -> NDArray[np.float64]:
        """Root of the mean square of each channel."""
        if self.squares is None:
            raise ValueError("no activation was seen")
        return np.asarray(np.sqrt(self.squares / max(1, self.count)))


def channel_sums(
    model: ModelProto, wanted: Mapping[str, int], open_model: Open, feeds: Iterable[Feeds]
) -> dict[str, ChannelSums]:
    """Sums of each wanted tensor along its channel axis, over all feeds."""
    names = sorted(wanted)
    runner = open_model(watched(model, names))
    sums = {name: ChannelSums() for name in names}
    for row in feeds:
        for name, array in zip(names, runner.run(names, row), strict=True):
            sums[name].add(array, wanted[name])
    return sums
