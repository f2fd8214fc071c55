"""What leaves the range of float16: stored values and activations that are too large, or so small that few bits are left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, numpy_helper

from profiler.onnx_io import clone, walk_nodes, walk_tensors, write_model
from profiler.variants.base import Calibration
from profiler.variants.running import batches, scratch, session

LARGEST = float(np.finfo(np.float16).max)
ROUNDING = 2.0**-9
"""Twice what rounding to a normal float16 changes at most, relatively."""
HEADROOM = 2.0
"""Other rows reach further than the few that are looked at: what comes within this factor of the end of float16's range
counts as beyond it."""
WATCHED_ROWS = 32
SQUARING = frozenset(
    (
        "GroupNormalization",
        "InstanceNormalization",
        "LayerNormalization",
        "LpNormalization",
        "ReduceL2",
        "ReduceSumSquare",
    )
)
"""Ops that square their input inside, where no tensor shows it: 300 fits float16, its square does not."""
SMALLEST = float(np.finfo(np.float16).smallest_normal)
"""Below it a float16 loses a bit with each halving; 6e-8 is the smallest there is, and what converters lift less to."""
ADDING = frozenset(("Add", "Clip", "Max", "Min", "Sub", "Sum"))
"""A stored value that is too small for float16 is lost in what these add it to: a 1e-12 that keeps from dividing by zero."""


def too_large_for(model: ModelProto) -> list[onnx.NodeProto]:
    """Nodes that read a stored value beyond float16's range; clipping a batch norm's variance ruins a model."""
    large = {
        tensor.name
        for tensor in walk_tensors(model)
        if tensor.data_type == TensorProto.FLOAT and (np.abs(numpy_helper.to_array(tensor)) > LARGEST).any()
    }
    return [node for node in walk_nodes(model) if large & {*node.input}]


def too_small_for(model: ModelProto) -> list[onnx.NodeProto]:
    """Nodes that multiply by (or do more than add) a stored tensor that float16 changes by more than its usual step, as a whole.

    Single weights near zero among larger ones don't count: their error is as small as theirs.
    """
    small = {
        tensor.name
        for tensor in walk_tensors(model)
        if tensor.data_type == TensorProto.FLOAT and tensor.name and _loses_bits(numpy_helper.to_array(tensor))
    }
    readers = [node for node in walk_nodes(model) if small & {*node.input}]
    multiplied = {name for node in readers if node.op_type not in ADDING for name in node.input} & small
    # A tensor has one type for all who read it.
    return [node for node in readers if multiplied & {*node.input}]


def _loses_bits(array: NDArray[Any]) -> bool:
    values = array.astype(np.float64)
    values = values[np.isfinite(values) & (np.abs(values) <= LARGEST)]
    size = float(np.abs(values).max(initial=0))
    if not 0 < size < SMALLEST * HEADROOM:
        return False
    with np.errstate(under="ignore"):
        half = values.astype(np.float16).astype(np.float64)
    return bool(np.linalg.norm((values - half) / size) > ROUNDING * np.linalg.norm(values / size))


def scales_too_small_for(model: ModelProto) -> list[onnx.NodeProto]:
    """Q/DQ nodes with a scale that float16 would round by more than its usual step: such a scale stretches all it scales."""
    found = []
    stored = {tensor.name: tensor for tensor in walk_tensors(model) if tensor.data_type == TensorProto.FLOAT}
    for node in walk_nodes(model):
        tensor = stored.get(node.input[1]) if node.op_type in ("QuantizeLinear", "DequantizeLinear") else None
        if tensor is None:
            continue
        scale = numpy_helper.to_array(tensor).astype(np.float64)
        with np.errstate(over="ignore"):
            half = scale.astype(np.float16)
        if (np.abs(scale - half) > scale * ROUNDING).any():
            found.append(node)
    return found


def largest_values(model: ModelProto, calibration: Calibration) -> tuple[dict[str, float], int]:
    """Largest finite magnitude of each float32 tensor of the main graph over up to `WATCHED_ROWS` rows, and how many there were.

    One batch's activations are in memory at a time. Infinities stay what they are in float16 and don't count. Raises what
    ONNX Runtime raises, and what `batches` raises.
    """
    watched = clone(model)
    present = {value.name for value in watched.graph.output}
    made = [name for node in watched.graph.node for name in node.output if name and name not in present]
    # ONNX Runtime fills in the type of an output that is only named.
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
    largest: dict[str, float] = {}
    rows = 0
    with scratch() as folder:
        runner = session(write_model(watched, folder))
        names = [out.name for out in runner.get_outputs() if out.type == "tensor(float)"]
        for feeds in batches(model, calibration, WATCHED_ROWS):
            rows += max((len(array) for array in feeds.values() if array.ndim), default=1)
            arrays = [*zip(names, runner.run(names, feeds) if names else (), strict=True), *feeds.items()]
            for name, array in arrays:
                if array.dtype != np.float32:
                    continue
                finite = np.abs(array[np.isfinite(array)])
                largest[name] = max(largest.get(name, 0.0), float(finite.max()) if finite.size else 0.0)
    return largest, rows


def overflows(node: onnx.NodeProto, largest: Mapping[str, float]) -> bool:
    """Whether what `node` reads, writes or must compute inside leaves float16, given magnitudes by tensor name."""
    limit = LARGEST / HEADROOM
    if any(largest.get(name, 0.0) > limit for name in (*node.input, *node.output)):
        return True
    return node.op_type in SQUARING and bool(node.input) and largest.get(node.input[0], 0.0) ** 2 > limit


def underflows(node: onnx.NodeProto, largest: Mapping[str, float]) -> bool:
    """Whether some float that `node` reads or writes is so small throughout that float16 has too few bits for it."""
    return any(0 < largest.get(name, 0.0) < SMALLEST * HEADROOM for name in (*node.input, *node.output))
