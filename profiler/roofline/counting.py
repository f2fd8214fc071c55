"""Operations and bytes of every op of a model, as its file asks for them. Pure; docs/roofline.md tells the conventions.

Q/DQ graphs count as a runtime runs them that fuses all it may: an op between DequantizeLinear and QuantizeLinear works on int8
and moves int8, and the conversions around it cost nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from onnx import ModelProto, NodeProto, TensorProto, helper

from profiler.onnx_io import op_name
from profiler.roofline import rules
from profiler.roofline.graph import Graph, Shape, read_graph

Precision = Literal["f32", "f16", "bf16", "i8", "other"]
"""What an op computes in, in the words of `SessionFacts.precision`; `other` is integers for indices, float64 and the like."""

WIDTH_BYTES: Mapping[str, int] = {"f32": 4, "f16": 2, "bf16": 2, "i8": 1}
"""Bytes of one value."""

_TYPES: Mapping[int, Precision] = {
    TensorProto.FLOAT: "f32", TensorProto.FLOAT16: "f16", TensorProto.BFLOAT16: "bf16",
    TensorProto.INT8: "i8", TensorProto.UINT8: "i8",
}  # fmt: skip
_QUANTIZE = frozenset({"QuantizeLinear", "com.microsoft::QuantizeLinear"})
_DEQUANTIZE = frozenset({"DequantizeLinear", "com.microsoft::DequantizeLinear"})
_MOVED = rules.VIEWS | rules.MOVES
_INT8_ACCURACY = 4
"""`accuracy_level` of MatMulNBits at which activations are int8, too."""


@dataclass(frozen=True)
class OpCount:
    """One op of the file in one inference of the batch."""

    name: str
    op_type: str
    precision: Precision
    macs: int
    """Multiply-accumulates."""
    other_ops: int
    """Other arithmetic: comparisons, additions, functions."""
    weight_bytes: int
    """Stored values that it reads, at their stored type; of a table that is looked up, the rows."""
    read_bytes: int
    """Values of this inference that it reads."""
    written_bytes: int
    weights: int = 0
    """Number of stored values that it reads."""
    activations: int = 0
    """Number of values that it reads and writes."""

    @property
    def ops(self) -> int:
        """Operations: a multiply-accumulate is two."""
        return 2 * self.macs + self.other_ops

    @property
    def bytes(self) -> int:
        """All that passes between the op and memory when nothing stays in between."""
        return self.weight_bytes + self.read_bytes + self.written_bytes


@dataclass(frozen=True)
class ModelCounts:
    """A whole model in one inference of `batch` rows."""

    batch: int
    ops: tuple[OpCount, ...]
    weight_bytes: int
    """Stored values that are read, each once however many ops share them."""
    input_bytes: int
    output_bytes: int
    nodes: int
    """Nodes of the graph that run: without constants and what is folded into them."""
    uncounted: Mapping[str, int]
    """Why nodes are not counted, and how many: the totals leave them out."""
    notes: tuple[str, ...] = ()

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        return sum(op.macs for op in self.ops)

    @property
    def total_ops(self) -> int:
        """Operations: a multiply-accumulate is two."""
        return sum(op.ops for op in self.ops)

    @property
    def streamed_bytes(self) -> int:
        """Traffic when every value passes through memory between any two ops."""
        return sum(op.bytes for op in self.ops)

    @property
    def once_bytes(self) -> int:
        """Traffic when each weight, input and output passes once and everything between stays on the chip."""
        return self.weight_bytes + self.input_bytes + self.output_bytes

    @property
    def intensity(self) -> float | None:
        """Operations per byte of `once_bytes`; None when nothing moves."""
        return self.total_ops / self.once_bytes if self.once_bytes else None

    @property
    def uncounted_share(self) -> float:
        """Share of the nodes that the totals leave out."""
        return sum(self.uncounted.values()) / self.nodes if self.nodes else 0.0

    def ops_by_precision(self) -> dict[str, int]:
        """Operations by what they compute in, most first."""
        found: Counter[str] = Counter()
        for op in self.ops:
            found[op.precision] += op.ops
        return {name: count for name, count in found.most_common() if count}


def count_model(model: ModelProto, batch: int, input_shapes: Mapping[str, Shape] | None = None) -> ModelCounts:
    """Count `model` for inferences of `batch` rows.

    `input_shapes` gives the sizes of dynamic inputs without the batch axis. Raises ModelError when batch or shapes do not fit the
    model; a node whose operations nobody can tell from the file is left out and listed in `uncounted`.
    """
    graph = read_graph(model, batch, input_shapes)
    counted: list[OpCount] = []
    uncounted: Counter[str] = Counter()
    running = 0
    for node in graph.nodes:
        if all(name in graph.stored for name in node.output if name):
            continue
        running += 1
        try:
            counted.append(_counted(node, graph))
        except rules.NotCountedError as reason:
            uncounted[str(reason)] += 1
    return ModelCounts(
        batch=batch,
        ops=tuple(counted),
        weight_bytes=_all_weights(graph),
        input_bytes=_sizes(graph.inputs, graph),
        output_bytes=_sizes(graph.outputs, graph),
        nodes=running,
        uncounted=dict(uncounted.most_common()),
        notes=graph.notes,
    )


def converted(counts: ModelCounts, precision: Literal["f32", "f16", "bf16", "i8"]) -> ModelCounts:
    """The same graph if all its arithmetic, weights and activations were of `precision`: nobody has to make that variant first.

    Integers for indices stay as they are, inputs and outputs of the model, too.
    """
    width = WIDTH_BYTES[precision]
    changed = []
    weights_before = weights_after = 0
    for op in counts.ops:
        if op.precision == "other":
            changed.append(op)
            continue
        reads = op.read_bytes / max(1, op.read_bytes + op.written_bytes)
        moved = op.activations * width
        changed.append(
            replace(
                op, precision=precision, weight_bytes=op.weights * width, read_bytes=round(moved * reads),
                written_bytes=moved - round(moved * reads),
            )
        )  # fmt: skip
        weights_before += op.weight_bytes
        weights_after += op.weights * width
    scale = weights_after / weights_before if weights_before else 1.0
    return replace(counts, ops=tuple(changed), weight_bytes=round(counts.weight_bytes * scale))


def _counted(node: NodeProto, graph: Graph) -> OpCount:
    if _fused_conversion(node, graph):
        work = rules.Work()
        read, written, weight = (0, 0), (0, 0), (0, 0)
    else:
        work = rules.work(node, graph.tensors)
        views = op_name(node) in rules.VIEWS
        read = (0, 0) if views else _read(node, graph)
        written = (0, 0) if views else _written(node, graph)
        weight = (0, 0) if views else _weights(node, graph)
    return OpCount(
        name=node.name or next(filter(None, node.output), ""),
        op_type=op_name(node),
        precision=_precision(node, graph),
        macs=work.macs,
        other_ops=work.other_ops,
        weight_bytes=weight[1],
        read_bytes=read[1],
        written_bytes=written[1],
        weights=weight[0],
        activations=read[0] + written[0],
    )


def _fused_conversion(node: NodeProto, graph: Graph) -> bool:
    """Whether a conversion is part of the op beside it: its bytes are counted there."""
    name = op_name(node)
    if name in _DEQUANTIZE:
        return node.output[0] not in graph.outputs
    return name in _QUANTIZE and node.input[0] in graph.producers


def _precision(node: NodeProto, graph: Graph) -> Precision:
    name = op_name(node)
    if name in rules.INTEGER:
        return "i8"
    if name.endswith("MatMulNBits") and any(
        item.name == "accuracy_level" and helper.get_attribute_value(item) >= _INT8_ACCURACY for item in node.attribute
    ):
        return "i8"
    operands = [item for item in node.input[: 2 if name in rules.WEIGHTED else None] if item]
    through = [_dequantizer(item, graph) for item in operands]
    fed = [item is not None for item, operand in zip(through, operands, strict=True) if operand not in graph.stored]
    if fed and all(fed) and (name not in rules.WEIGHTED or all(through)):
        return "i8"
    values = [*operands, *filter(None, node.output)]
    types = [_TYPES.get(graph.tensors[item].elem_type) for item in values if item in graph.tensors]
    return next((found for found in types if found is not None), "other")


def _dequantizer(name: str, graph: Graph) -> NodeProto | None:
    """The DequantizeLinear that a value comes from, through what only moves it, so that `name` may be read as int8."""
    for _ in range(len(graph.producers)):
        node = graph.producers.get(name)
        if node is None or not node.input:
            return None
        if op_name(node) in _DEQUANTIZE:
            return node
        if op_name(node) not in _MOVED or op_name(node) in ("Cast", "CastLike", "Concat"):
            return None
        name = node.input[0]
    return None


def _read(node: NodeProto, graph: Graph) -> tuple[int, int]:
    """Number and bytes of the values of this inference that a node reads; behind a DequantizeLinear, the quantized ones."""
    count = size = 0
    for name in dict.fromkeys(node.input):
        if not name or name in graph.stored:
            continue
        before = graph.producers.get(name)
        source = before.input[0] if before is not None and op_name(before) in _DEQUANTIZE else name
        tensor = graph.tensors.get(source)
        if tensor is None:
            raise rules.NotCountedError("its shapes could not be inferred: give the inputs' sizes with --shape")
        if op_name(node) in rules.PICKS:
            known = graph.tensors.get(node.output[0])
            if known is not None and known.elements < tensor.elements:
                tensor = replace(tensor, shape=known.shape)
        count += tensor.elements
        size += tensor.size_bytes
    return count, size


def _written(node: NodeProto, graph: Graph) -> tuple[int, int]:
    """Number and bytes of what a node gives out: quantized where only a QuantizeLinear reads it."""
    count = size = 0
    for name in filter(None, node.output):
        readers = graph.consumers.get(name, ())
        quantizers = [reader for reader in readers if op_name(reader) in _QUANTIZE and reader.input[0] == name]
        kept = [name] if name in graph.outputs or len(quantizers) < len(readers) or not readers else []
        for given in (*kept, *(reader.output[0] for reader in quantizers)):
            tensor = graph.tensors.get(given)
            if tensor is None:
                raise rules.NotCountedError("its shapes could not be inferred: give the inputs' sizes with --shape")
            count += tensor.elements
            size += tensor.size_bytes
    return count, size


def _weights(node: NodeProto, graph: Graph) -> tuple[int, int]:
    """Number and bytes of the stored values that a node reads."""
    count = size = 0
    for _, used, elements in _uses(node, graph):
        count += elements
        size += used
    return count, size


def _uses(node: NodeProto, graph: Graph) -> Iterable[tuple[str, int, int]]:
    for place, name in enumerate(node.input):
        if not name or name not in graph.stored or name in node.input[:place]:
            continue
        used, tensor = graph.stored[name], graph.tensors.get(name)
        elements = used if tensor is None else tensor.elements
        if op_name(node) in rules.PICKS and place == 0 and tensor is not None and node.output[0] in graph.tensors:
            # A lookup touches the rows that it gives out, not the table.
            rows = min(elements, graph.tensors[node.output[0]].elements)
            used, elements = -(-used * rows // max(1, elements)), rows
        yield name, used, elements


def _all_weights(graph: Graph) -> int:
    """Each stored value once, with the most that any op reads of it."""
    most: dict[str, int] = {}
    for node in graph.nodes:
        if all(name in graph.stored for name in node.output if name) or op_name(node) in rules.VIEWS:
            continue
        for name, used, _ in _uses(node, graph):
            root = _root(name, graph)
            most[root] = max(most.get(root, 0), used)
    return sum(most.values())


def _root(name: str, graph: Graph) -> str:
    """The initializer that a folded value is made of, where it is one: a tied weight that one reader transposes counts once."""
    for _ in range(len(graph.producers)):
        node = graph.producers.get(name)
        stored = [item for item in node.input if item in graph.stored] if node is not None else []
        if node is None or not stored or op_name(node) not in _MOVED | _QUANTIZE | _DEQUANTIZE:
            return name
        name = stored[0]
    return name


def _sizes(names: Iterable[str], graph: Graph) -> int:
    return sum(graph.tensors[name].size_bytes for name in names if name in graph.tensors)
