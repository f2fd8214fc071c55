"""Half precision weights and activations."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import ClassVar

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, numpy_helper

from profiler.errors import VariantError
from profiler.onnx_io import clone, count_ops, opset_of, walk_nodes, walk_tensors, weights_count, write_model
from profiler.variants.base import Calibration, Fact, Recipe, VariantResult
from profiler.variants.preparing import judged, lift_constants, name_nodes, quiet, rename, sort_nodes
from profiler.variants.running import batches, ensure_loads, scratch, session, short
from profiler.variants.selection import aliases

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
CONTROL_FLOW = ("If", "Loop", "Scan")


@dataclass(frozen=True)
class Fp16(Recipe):
    """float32 becomes float16 inside; inputs and outputs keep their types, so the same data fit.

    Rewritten in the file for every backend (and not as a load option) because strongly typed TensorRT and GPU providers
    take the file's types as they are.
    """

    name: ClassVar[str] = "fp16"

    keep: tuple[str, ...] = ()
    """Op types that stay float32, besides those with no float16 form."""
    keep_nodes: tuple[str, ...] = ()
    """Nodes that stay float32, by name or as `MatMul:3` (the 4th MatMul)."""

    def apply(self, model: ModelProto, calibration: Calibration | None) -> VariantResult:
        """Convert. Where calibration rows are given, ops whose values overflow float16 on them stay float32, and outputs are
        compared on a few; without rows only stored values are looked at. Raises VariantError for unknown names in
        `keep_nodes`, and when ONNX Runtime does not load the result.
        """
        floats = [tensor for tensor in walk_tensors(model) if tensor.data_type == TensorProto.FLOAT and tensor.dims]
        # Of a quantized model only scales may be left to store, and they tell what is computed in.
        if not floats and not count_ops(model)["DequantizeLinear"]:
            note = "nothing was converted: the model stores no float32 tensor."
            return VariantResult(
                clone(model), {"weights_converted": 0, "opset": opset_of(model)}, (note,), changed=False
            )
        notes = [
            "the CPU provider of ONNX Runtime has few float16 kernels: it casts around the others, so expect no gain on CPUs."
        ]
        source = lifted(model)
        kept, found = self._kept(source, calibration, notes)
        result = self._convert(source, kept, notes)
        halves = sum(_size(t) for t in walk_tensors(result) if t.data_type == TensorProto.FLOAT16 and t.dims)
        before, after = count_ops(model), count_ops(result)
        facts: dict[str, Fact] = {
            "weights_converted": halves,
            "weights_total": weights_count(result),
            "ops_left_float": len(kept),
            **found,
            "casts_added": after["Cast"] - before["Cast"],
            "opset": opset_of(result),
        }
        judged(model, result, calibration, facts, notes)
        return VariantResult(result, facts, tuple(notes), changed=True)

    def _kept(
        self, source: ModelProto, calibration: Calibration | None, notes: list[str]
    ) -> tuple[list[str], dict[str, Fact]]:
        """Names of the nodes of `source` that stay float32 one by one, and what was found on calibration rows."""
        known = {**aliases(source), **{node.name: node.name for node in walk_nodes(source)}}
        for name in self.keep_nodes:
            if name not in known:
                near = get_close_matches(name, sorted(known), n=3)
                meant = f" Did you mean {' or '.join(near)}?" if near else ""
                raise VariantError(f"{self.text}: the model has no node '{name}'.{meant}")
        stored = _too_large_for(source)
        if stored:
            notes.append(
                f"{len(stored)} nodes ({_types(stored)}) stay float32: they hold values beyond {LARGEST:,.0f}."
            )
        small = _scales_too_small_for(source)
        if small:
            notes.append(f"{len(small)} nodes ({_types(small)}) stay float32: their scales are too small for float16.")
        stored += small
        overflowing: list[onnx.NodeProto] = []
        found: dict[str, Fact] = {}
        if calibration:
            try:
                largest, rows = largest_values(source, calibration)
            except Exception as error:  # rows that do not fit are an error of their own, with its own words
                if not type(error).__module__.startswith("onnxruntime"):
                    raise
                notes.append(
                    f"whether activations overflow was not measured: a row fails in the model ({short(error)})."
                )
            else:
                overflowing = [node for node in source.graph.node if overflows(node, largest)]
                found = {
                    "ops_overflowing": len(overflowing),
                    "largest_activation": max(largest.values(), default=None),
                    "overflow_rows": rows,
                }
        if overflowing:
            notes.append(
                f"{len(overflowing)} nodes ({_types(overflowing)}) stay float32: on calibration rows their values come within "
                f"a factor of {HEADROOM:g} of {LARGEST:,.0f}, where float16 ends, or beyond it."
            )
        return list(
            dict.fromkeys(
                [*(known[name] for name in self.keep_nodes), *(node.name for node in (*stored, *overflowing))]
            )
        ), found

    def _convert(self, source: ModelProto, kept: list[str], notes: list[str]) -> ModelProto:
        from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

        blocked = [*DEFAULT_OP_BLOCK_LIST, *self.keep]
        flow = [op for op in CONTROL_FLOW if any(node.op_type == op for node in walk_nodes(source))]
        failures: list[Exception] = []
        # Types of tensors that cross into a branch are where the converter errs; leaving branches alone is the way out.
        for extra in ([], flow) if flow else ([],):
            try:
                with quiet():
                    converted: ModelProto = convert_float_to_float16(
                        clone(source),
                        keep_io_types=True,
                        op_block_list=[*blocked, *extra],
                        node_block_list=kept,
                    )
                join_casts(converted, {node.name for node in walk_nodes(source)})
                sort_nodes(converted.graph)
                ensure_loads(converted, self.text)
            except Exception as error:  # noqa: BLE001 (the converter raises many unrelated types)
                failures.append(error)
                continue
            if failures:
                notes.append(f"{', '.join(extra)} stay float32: with them ONNX Runtime refused the model.")
            return converted
        raise VariantError(f"{self.text} cannot be made from this model: {short(failures[0])}.") from failures[0]


def lifted(model: ModelProto) -> ModelProto:
    """A copy with named nodes and with constants where the converter can follow who reads them."""
    copy = clone(model)
    lift_constants(copy)
    name_nodes(copy)
    return copy


def _too_large_for(model: ModelProto) -> list[onnx.NodeProto]:
    """Nodes that read a stored value beyond float16's range; clipping a batch norm's variance ruins a model."""
    large = {
        tensor.name
        for tensor in walk_tensors(model)
        if tensor.data_type == TensorProto.FLOAT and (np.abs(numpy_helper.to_array(tensor)) > LARGEST).any()
    }
    return [node for node in walk_nodes(model) if large & {*node.input}]


def _scales_too_small_for(model: ModelProto) -> list[onnx.NodeProto]:
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


def join_casts(model: ModelProto, own: Collection[str]) -> None:
    """Take out pairs of casts float32 → float16 → float32 that the converter put between two nodes it leaves alone, in place.

    It casts around each such node by itself, so a value too large for float16 would pass through it between the two.
    `own` holds the names of the nodes the model had before: a cast of the model's own stays.
    """
    graph = model.graph
    added = [node for node in graph.node if node.op_type == "Cast" and node.name not in own]
    down = {node.output[0]: node.input[0] for node in added if _casts_to(node, TensorProto.FLOAT16)}
    up = {
        node.output[0]: down[node.input[0]]
        for node in added
        if _casts_to(node, TensorProto.FLOAT) and node.input[0] in down
    }
    given, wanted = {value.name for value in graph.input}, {value.name for value in graph.output}
    rename(model, {back: source for back, source in up.items() if back not in wanted}, outputs=False)
    # An output keeps its name, so whoever computes it takes that name.
    ends = {source: back for back, source in up.items() if back in wanted and source not in given | wanted}
    _remove(graph, {*up} - wanted | {*ends.values()})
    rename(model, ends, outputs=True)
    read = wanted | {name for node in walk_nodes(model) for name in node.input}
    _remove(graph, {*down} - read)


def _casts_to(node: onnx.NodeProto, kind: int) -> bool:
    return any(attribute.name == "to" and attribute.i == kind for attribute in node.attribute)


def _remove(graph: onnx.GraphProto, outputs: Collection[str]) -> None:
    """Delete the nodes whose first output is among `outputs`."""
    for index in reversed(range(len(graph.node))):
        node = graph.node[index]
        if node.output and node.output[0] in outputs:
            del graph.node[index]


def _types(nodes: Iterable[onnx.NodeProto]) -> str:
    return ", ".join(sorted({node.op_type for node in nodes}))


def _size(tensor: TensorProto) -> int:
    return int(np.prod(tensor.dims))
