"""What every quantizing variant does first: opset, shapes, folded constants, names; and how it counts what it did."""

from __future__ import annotations

import contextlib
import io
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, numpy_helper

from profiler.errors import ModelError, VariantError
from profiler.models.initializers import as_constants
from profiler.models.naming import distinct_names
from profiler.onnx_io import (
    PROTOBUF_LIMIT_BYTES,
    clone,
    op_name,
    reads,
    upgrade_opset,
    walk_graphs,
    walk_nodes,
    write_model,
)
from profiler.variants.base import NOTHING_QUANTIZED, Calibration, Fact, VariantResult
from profiler.variants.running import (
    COLUMN_WARNING,
    SIMILARITY_WARNING,
    answers,
    compared,
    cosine,
    direction,
    inside,
    probe,
    scratch,
    short,
    similarity,
)

QDQ_OPSET = 13
"""First opset whose QuantizeLinear takes one scale per channel."""
EQUAL_COSINE = 0.9999


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the converters' prints and log lines away from ours; what matters in them comes back as exceptions."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def prepare(
    model: ModelProto, calibration: Calibration | None, *, opset: int = QDQ_OPSET
) -> tuple[ModelProto, list[str]]:
    """A copy of `model` that quantizers can work on, and notes on what had to be done for it.

    The opset is raised when it is too old (kept when the upgraded model answers differently), shapes are inferred,
    constants folded, batch normalization merged into convolutions.
    """
    notes: list[str] = []
    current = clone(model)
    as_constants(current)
    distinct_names(current)
    forget_declared(current)
    try:
        upgraded, changed, note = upgrade_opset(current, opset)
    except ModelError as error:
        changed, note = False, str(error)
        notes.append(note)
    if changed:
        agree = cosine(current, upgraded, probe(model, calibration))
        if agree is None:
            notes.append(f"{note}; its outputs could not be compared with the original's")
        elif agree < EQUAL_COSINE:
            notes.append(f"{note} was undone: the upgraded model answers differently (cosine {agree:.4f})")
        else:
            notes.append(f"{note}, outputs compared equal")
        if agree is None or agree >= EQUAL_COSINE:
            current = upgraded
    prepared = _pre_process(current, probe(model, calibration), notes)
    name_nodes(prepared)
    _forget_quantized_types(prepared)
    return prepared, notes


def forget_declared(model: ModelProto) -> None:
    """Take out what the file says of the types and shapes of values that standard ops make, in place.

    They are inferred again; what a file declares may be wrong (a stale shape makes the inference of ONNX Runtime fail), and no
    runtime believes it.
    """
    inferred = {name for node in model.graph.node if node.domain in ("", "ai.onnx") for name in node.output}
    kept = [value for value in model.graph.value_info if value.name not in inferred]
    copies = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in kept]
    model.graph.ClearField("value_info")
    model.graph.value_info.extend(copies)


def _forget_quantized_types(model: ModelProto) -> None:
    """Take out what was inferred of results of QuantizeLinear without a zero point: uint8, whatever `output_dtype` says."""
    typed = {
        node.output[0]
        for node in model.graph.node
        if node.op_type == "QuantizeLinear" and any(item.name == "output_dtype" for item in node.attribute)
    }
    kept = [value for value in model.graph.value_info if value.name not in typed]
    if len(kept) < len(model.graph.value_info):
        copies = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in kept]
        model.graph.ClearField("value_info")
        model.graph.value_info.extend(copies)


def rename(model: ModelProto, names: Mapping[str, str], *, outputs: bool) -> None:
    """Let every node read the new names, and write them too if `outputs`; also inside bodies."""
    if not names:
        return
    for node in walk_nodes(model):
        for field in (node.input, node.output) if outputs else (node.input,):
            for index, name in enumerate(field):
                field[index] = names.get(name, name)


def _pre_process(model: ModelProto, feeds: list[dict[str, Any]], notes: list[str]) -> ModelProto:
    """Shapes inferred, constants folded; a step that fails, or after which the model answers otherwise, is left out."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    # Symbolic shape inference stops at ops it does not know, on many real models; the rest is still worth having.
    attempts: tuple[tuple[dict[str, bool], str | None], ...] = (
        ({}, None),
        ({"skip_symbolic_shape": True}, "symbolic shape inference failed ({}) and was left out"),
        (
            {"skip_symbolic_shape": True, "skip_optimization": True},
            "symbolic shape inference and optimization failed ({}) and were left out",
        ),
    )
    reason = ""
    before = answers(model, feeds)
    for options, note in attempts:
        with scratch() as folder:
            source, target = write_model(model, folder / "in"), folder / "out.onnx"
            large = sum(file.stat().st_size for file in source.parent.iterdir()) > PROTOBUF_LIMIT_BYTES // 2
            try:
                # When its shape inference gives up, ONNX Runtime leaves a copy of the model in the working directory.
                with quiet(), inside(folder):
                    quant_pre_process(str(source), str(target), save_as_external_data=large, **options)
                prepared = onnx.load(str(target))
            except Exception as error:  # noqa: BLE001 (sympy, onnx and ONNX Runtime each raise their own)
                reason = reason or short(error, 120)
                continue
        if not _answers_alike(before, prepared, feeds):
            reason = reason or "the model answers otherwise after it"
            continue
        if note:
            notes.append(note.format(reason))
        return prepared
    notes.append(f"preparation for quantization failed ({reason}) and was left out")
    return clone(model)


def _answers_alike(before: list[list[Any]] | None, model: ModelProto, feeds: list[dict[str, Any]]) -> bool:
    if before is None:
        return True
    after = answers(model, feeds)
    agree = direction(before, after)
    return after is not None and (agree is None or agree >= EQUAL_COSINE)


def name_nodes(model: ModelProto) -> None:
    """Give every node a name of its own: quantizers select nodes by name, exporters leave names empty or double.

    A nameless node is called by its first result, as `profiler.explain` calls it in the unmodified model.
    """
    taken: set[str] = set()
    for index, node in enumerate(walk_nodes(model)):
        if not node.name and node.output:
            node.name = node.output[0]
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{index}_"
        taken.add(node.name)


def lift_constants(model: ModelProto) -> None:
    """Turn Constant nodes with a tensor into initializers, where weight quantizers look for weights."""
    for graph in walk_graphs(model):
        if not isinstance(graph, GraphProto):
            continue
        kept: list[NodeProto] = []
        lifted = []
        for node in graph.node:
            tensor = _constant(node) if node.op_type == "Constant" and node.domain in ("", "ai.onnx") else None
            if tensor is None:
                kept.append(node)
                continue
            lifted.append(tensor)
        if lifted:
            copies = [_copy(node) for node in kept]
            graph.ClearField("node")
            graph.node.extend(copies)
            graph.initializer.extend(lifted)


def _constant(node: NodeProto) -> onnx.TensorProto | None:
    """What a Constant holds, as a stored tensor; None for texts and sparse tensors."""
    name = node.output[0]
    for item in node.attribute:
        if item.name == "value":
            tensor = onnx.TensorProto()
            tensor.CopyFrom(item.t)
            tensor.name = name
            return tensor
        if item.name in ("value_float", "value_floats"):
            floats = np.asarray(item.f if item.name == "value_float" else [*item.floats], np.float32)
            return numpy_helper.from_array(floats, name)
        if item.name in ("value_int", "value_ints"):
            whole = np.asarray(item.i if item.name == "value_int" else [*item.ints], np.int64)
            return numpy_helper.from_array(whole, name)
    return None


def _copy(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy


def sort_nodes(graph: GraphProto) -> None:
    """Put the main graph's nodes in topological order, stable otherwise: converters append nodes at the end."""
    nodes = [NodeProto.FromString(node.SerializeToString()) for node in graph.node]
    made = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    needs = [{made[name] for name in reads(node) if name in made} - {index} for index, node in enumerate(nodes)]
    order: list[int] = []
    done: set[int] = set()
    for start in range(len(nodes)):
        stack = [start]
        while stack:
            index = stack[-1]
            open_needs = sorted(needs[index] - done)
            if index in done or not open_needs:
                stack.pop()
                if index not in done:
                    done.add(index)
                    order.append(index)
            elif len(stack) > len(nodes):
                raise VariantError("the converted graph has a cycle.")
            else:
                stack.append(open_needs[0])
    graph.ClearField("node")
    graph.node.extend(nodes[index] for index in order)


def constant_names(model: ModelProto) -> set[str]:
    """Names of all stored tensors, in subgraphs too."""
    names = {node.output[0] for node in walk_nodes(model) if node.op_type == "Constant"}
    for graph in walk_graphs(model):
        if isinstance(graph, GraphProto):
            names |= {tensor.name for tensor in graph.initializer}
    return names


def dequantized_nodes(model: ModelProto, op_types: Iterable[str]) -> list[NodeProto]:
    """Nodes of `op_types` whose first two inputs both come from DequantizeLinear, recursively: what runs in int8."""
    wanted = set(op_types)
    produced = {name for node in walk_nodes(model) if node.op_type == "DequantizeLinear" for name in node.output}
    return [
        node
        for node in walk_nodes(model)
        if node.op_type in wanted and len(node.input) >= 2 and {node.input[0], node.input[1]} <= produced
    ]


def tally(nodes: Iterable[NodeProto]) -> str:
    """`Conv 20, MatMul 3`, most frequent first."""
    counts = Counter(op_name(node) for node in nodes)
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def unchanged(model: ModelProto, why: str, facts: dict[str, Fact] | None = None) -> VariantResult:
    """The honest result of a quantizer that found nothing to quantize: the model as it was."""
    return VariantResult(
        clone(model), {"ops_quantized": 0, **(facts or {})}, (f"{NOTHING_QUANTIZED}: {why}.",), changed=False
    )


def judged(
    original: ModelProto, result: ModelProto, calibration: Calibration | None, facts: dict[str, Any], notes: list[str]
) -> None:
    """Add the similarity of outputs on a few calibration rows to `facts`, and a note when little is left of the model, or of
    one column of an output: which, and by how much.
    """
    if not calibration:
        return
    feeds = probe(original, calibration)
    wanted, made = answers(original, feeds), answers(result, feeds)
    found = compared(original, wanted, made)
    cosine_value, value = direction(wanted, made), similarity(wanted, made)
    facts["calibration_cosine"] = None if cosine_value is None else round(cosine_value, 6)
    facts["calibration_similarity"] = None if value is None else round(value, 6)
    worst = max(found or [], key=lambda item: max(item.relative_error, item.column_error), default=None)
    if value is not None and value < SIMILARITY_WARNING and worst is not None:
        notes.append(
            f"outputs on calibration rows differ strongly from fp32 (similarity {value:.3f}: {worst.text}): expect a large drop, "
            "or make a milder variant."
        )
    elif worst is not None and worst.floats and worst.column_error > COLUMN_WARNING:
        notes.append(f"on calibration rows {worst.text}, compared with fp32: see whether it matters to you.")
    if "DequantizeLinear" not in {node.op_type for node in result.graph.node}:
        return
    own = similarity(made, answers(result, feeds, as_users_do=True))
    if own is not None and own < SIMILARITY_WARNING:
        notes.append(
            f"ONNX Runtime's optimiser changes the answers of this file (similarity {own:.3f} to its answers without): its "
            "accuracy on ort is that of this fault, other runtimes compute what the file says."
        )
