"""Half precision weights and activations."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import ClassVar

import numpy as np
import onnx
from onnx import ModelProto, TensorProto

from profiler.errors import ModelError, VariantError
from profiler.models.naming import rename_values
from profiler.onnx_io import clone, count_ops, op_name, opset_of, upgrade_opset, walk_nodes, walk_tensors, weights_count
from profiler.variants.base import Calibration, Fact, Recipe, VariantResult
from profiler.variants.half_range import (
    HEADROOM,
    LARGEST,
    SMALLEST,
    largest_values,
    overflows,
    scales_too_small_for,
    too_large_for,
    too_small_for,
    underflows,
)
from profiler.variants.half_types import (
    HALF_PAIRS_OPSET,
    RECURRENT,
    convertible,
    give_back_names,
    made_names,
    only_float32,
)
from profiler.variants.preparing import judged, quiet, rename, sort_nodes
from profiler.variants.running import answers, different_outputs, ensure_loads, probe, short
from profiler.variants.selection import aliases

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
        facts: dict[str, Fact]
        source = _with_half_pairs(convertible(model), calibration, notes)
        kept, found = self._kept(source, calibration, notes)
        result = self._convert(source, kept, notes)
        halves = sum(_size(t) for t in walk_tensors(result) if t.data_type == TensorProto.FLOAT16 and t.dims)
        if not any(tensor.data_type == TensorProto.FLOAT16 for tensor in walk_tensors(result)):
            notes[0] = "nothing was converted: every node that reads a stored value has to stay float32."
            facts = {"weights_converted": 0, "ops_left_float": len(kept), **found, "opset": opset_of(model)}
            return VariantResult(clone(model), facts, tuple(notes), changed=False)
        before, after = count_ops(model), count_ops(result)
        facts = {
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
        fixed = only_float32(source)
        if recurrent := [node for node in fixed if node.op_type in RECURRENT]:
            notes.append(
                f"{len(recurrent)} nodes ({_types(recurrent)}) stay float32: of recurrent ops in float16 ONNX "
                "Runtime's CPU provider has no kernel."
            )
        stored = too_large_for(source)
        if stored:
            notes.append(
                f"{len(stored)} nodes ({_types(stored)}) stay float32: they hold values beyond {LARGEST:,.0f}."
            )
        scales = scales_too_small_for(source)
        if scales:
            notes.append(
                f"{len(scales)} nodes ({_types(scales)}) stay float32: their scales are too small for float16."
            )
        tiny = [node for node in too_small_for(source) if node.name not in {other.name for other in scales}]
        stored += [*fixed, *scales, *tiny]
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
                known_tiny = {node.name for node in tiny}
                more = [node for node in source.graph.node if underflows(node, largest) and node.name not in known_tiny]
                tiny += more
                stored += more
                found = {
                    "ops_overflowing": len(overflowing),
                    "ops_underflowing": len(tiny),
                    "largest_activation": max(largest.values(), default=None),
                    "overflow_rows": rows,
                }
        if overflowing:
            notes.append(
                f"{len(overflowing)} nodes ({_types(overflowing)}) stay float32: on calibration rows their values come within "
                f"a factor of {HEADROOM:g} of {LARGEST:,.0f}, where float16 ends, or beyond it."
            )
        if tiny:
            notes.append(
                f"{len(tiny)} nodes ({_types(tiny)}) stay float32: what they multiply by, read or make is below "
                f"{SMALLEST:.1g}, where float16 has fewer and fewer bits."
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
        foreign = sorted({node.op_type for node in walk_nodes(source) if node.domain not in ("", "ai.onnx")})
        # Types of tensors that cross into a branch are where the converter errs; leaving branches alone is the way out. Of a
        # runtime's own ops nobody says which types they take.
        ways = [[], flow, foreign, [*flow, *foreign]]
        renamed = made_names(source)
        failures: list[Exception] = []
        unoptimised: tuple[ModelProto, str] | None = None
        for extra in [way for number, way in enumerate(ways) if way not in ways[:number]]:
            work = clone(source)
            rename_values(work, renamed)
            try:
                with quiet():
                    converted: ModelProto = convert_float_to_float16(
                        work,
                        keep_io_types=True,
                        op_block_list=[*blocked, *extra],
                        node_block_list=kept,
                    )
                join_casts(converted, {node.name for node in walk_nodes(source)})
                sort_nodes(converted.graph)
                give_back_names(converted, renamed)
                loading = ensure_loads(converted, self.text)
            except Exception as error:  # noqa: BLE001 (the converter raises many unrelated types)
                failures.append(error)
                continue
            if loading is not None:
                # Another way may give a file that users can load as it is.
                unoptimised = unoptimised or (converted, loading)
                continue
            if failures or unoptimised is not None:
                notes.append(f"{', '.join(extra)} stay float32: with them ONNX Runtime refused the model.")
            return converted
        if unoptimised is not None:
            notes.append(unoptimised[1])
            return unoptimised[0]
        raise VariantError(f"{self.text} cannot be made from this model: {short(failures[0])}.") from failures[0]


def _with_half_pairs(source: ModelProto, calibration: Calibration | None, notes: list[str]) -> ModelProto:
    """`source` at an opset where QuantizeLinear takes float16, if it has such nodes and answers the same there."""
    ops = count_ops(source)
    if not (ops["QuantizeLinear"] or ops["DequantizeLinear"]) or opset_of(source) >= HALF_PAIRS_OPSET:
        return source
    try:
        upgraded, _, note = upgrade_opset(source, HALF_PAIRS_OPSET)
    except ModelError as error:
        notes.append(f"the quantized ops stay float32: {error}")
        return source
    feeds = probe(source, calibration)
    different = different_outputs(source, answers(source, feeds), answers(upgraded, feeds))
    if different is None or different:
        notes.append(f"the quantized ops stay float32: {note}, it could not be shown to answer the same.")
        return source
    notes.append(f"{note}, from where on quantized ops take float16.")
    return upgraded


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
    return ", ".join(sorted({op_name(node) for node in nodes}))


def _size(tensor: TensorProto) -> int:
    return int(np.prod(tensor.dims))
