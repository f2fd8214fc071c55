"""Operations and bytes of every op of a model, as its file asks for them. Pure; docs/roofline.md tells the conventions.

Q/DQ graphs count as a runtime runs them that fuses all it may: an op between DequantizeLinear and QuantizeLinear works on int8
and moves int8, and the conversions around it cost nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from onnx import ModelProto, NodeProto, TensorProto, helper

from profiler.onnx_io import op_name
from profiler.roofline import rules
from profiler.roofline.graph import FOUR_BITS, Graph, Shape, Tensor, read_graph

Precision = Literal["f32", "f16", "bf16", "i8", "f8", "other"]
"""What an op computes in, in the words of `SessionFacts.precision`; `other` is integers for indices, float64 and the like."""

WIDTH_BYTES: Mapping[str, int] = {"f32": 4, "f16": 2, "bf16": 2, "i8": 1, "f8": 1}
"""Bytes of one value."""

_TYPES: Mapping[int, Precision] = {
    TensorProto.FLOAT: "f32", TensorProto.FLOAT16: "f16", TensorProto.BFLOAT16: "bf16",
    TensorProto.INT8: "i8", TensorProto.UINT8: "i8", TensorProto.FLOAT8E4M3FN: "f8", TensorProto.FLOAT8E5M2: "f8",
}  # fmt: skip
_QUANTIZE = frozenset({"QuantizeLinear", "com.microsoft::QuantizeLinear"})
_DEQUANTIZE = frozenset({"DequantizeLinear", "com.microsoft::DequantizeLinear"})
_MOVED = rules.VIEWS | rules.MOVES
_INT8_ACCURACY = 4
"""`accuracy_level` of MatMulNBits at which activations are int8, too."""


@dataclass(frozen=True)
class Values:
    """Values that pass between an op and memory."""

    count: int = 0
    """How many of them a precision could change: weights and activations."""
    count_bytes: int = 0
    """Those, at their stored type."""
    kept_bytes: int = 0
    """Integers for rows and sizes, and what nothing tells the type of."""

    @property
    def bytes(self) -> int:
        """All of them."""
        return self.count_bytes + self.kept_bytes

    def __add__(self, other: Values) -> Values:
        """Both together."""
        return Values(
            self.count + other.count, self.count_bytes + other.count_bytes, self.kept_bytes + other.kept_bytes
        )

    def at(self, width: int) -> Values:
        """The same in values of `width` bytes."""
        return replace(self, count_bytes=self.count * width)


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
    weight: Values
    """Stored values that it reads, at their stored type; of a table that is looked up, the rows."""
    read: Values
    """Values of this inference that it reads."""
    written: Values

    @property
    def ops(self) -> int:
        """Operations: a multiply-accumulate is two."""
        return 2 * self.macs + self.other_ops

    @property
    def bytes(self) -> int:
        """All that passes between the op and memory when nothing stays in between."""
        return (self.weight + self.read + self.written).bytes


@dataclass(frozen=True)
class ModelCounts:
    """A whole model in one inference of `batch` rows."""

    batch: int
    ops: tuple[OpCount, ...]
    weights: Values
    """Stored values that are read, each once however many ops share them."""
    input_bytes: int
    output_bytes: int
    nodes: int
    """Nodes of the graph that run: without constants and what is folded into them."""
    uncounted: Mapping[str, int]
    """Why nodes are not counted, and how many: the totals leave them out."""
    notes: tuple[str, ...] = ()

    @property
    def weight_bytes(self) -> int:
        """Bytes of `weights`."""
        return self.weights.bytes

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
        weights=_all_weights(graph),
        input_bytes=_sizes(graph.inputs, graph),
        output_bytes=_sizes(graph.outputs, graph),
        nodes=running,
        uncounted=dict(uncounted.most_common()),
        notes=graph.notes,
    )


def converted(counts: ModelCounts, precision: Literal["f32", "f16", "bf16", "i8"]) -> ModelCounts:
    """The same graph if all its arithmetic, weights and activations were of `precision`: nobody has to make that variant first.

    Integers for rows and sizes stay as they are, and so do inputs and outputs of the model.
    """
    width = WIDTH_BYTES[precision]
    return replace(
        counts,
        ops=tuple(
            replace(
                op,
                precision="other" if op.precision == "other" else precision,
                weight=op.weight.at(width),
                read=op.read.at(width),
                written=op.written.at(width),
            )
            for op in counts.ops
        ),
        weights=counts.weights.at(width),
    )


def _counted(node: NodeProto, graph: Graph) -> OpCount:
    work, weight, read, written = rules.Work(), Values(), Values(), Values()
    if not _fused_conversion(node, graph):
        work = rules.work(node, graph.tensors)
        if op_name(node) not in rules.VIEWS:
            weight = sum((values for _, values in _uses(node, graph)), Values())
            read, written = _read(node, graph), _written(node, graph)
    return OpCount(
        name=node.name or next(filter(None, node.output), ""),
        op_type=op_name(node),
        precision=_precision(node, graph),
        macs=work.macs,
        other_ops=work.other_ops,
        weight=weight,
        read=read,
        written=written,
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
        return _TYPES.get(_known(next(item for item in through if item is not None).input[0], graph).elem_type, "i8")
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


def _read(node: NodeProto, graph: Graph) -> Values:
    """The values of this inference that a node reads; straight behind a DequantizeLinear, the quantized ones."""
    found = Values()
    for name in dict.fromkeys(node.input):
        if not name or name in graph.stored:
            continue
        before = graph.producers.get(name)
        tensor = _known(before.input[0] if before is not None and op_name(before) in _DEQUANTIZE else name, graph)
        if op_name(node) in rules.PICKS and name == node.input[0]:
            given = _known(node.output[0], graph)
            tensor = given if given.elements < tensor.elements else tensor
        found += _values(tensor)
    return found


def _written(node: NodeProto, graph: Graph) -> Values:
    """What a node gives out: quantized where only a QuantizeLinear reads it."""
    found = Values()
    for name in filter(None, node.output):
        readers = graph.consumers.get(name, ())
        quantizers = [reader for reader in readers if op_name(reader) in _QUANTIZE and reader.input[0] == name]
        kept = [name] if name in graph.outputs or len(quantizers) < len(readers) or not readers else []
        for given in (*kept, *(reader.output[0] for reader in quantizers)):
            found += _values(_known(given, graph))
    return found


def _uses(node: NodeProto, graph: Graph) -> Iterator[tuple[str, Values]]:
    """The stored values that a node reads, by name. A lookup touches the rows that it gives out, not the table."""
    for place, name in enumerate(node.input):
        if not name or name not in graph.stored or name in node.input[:place]:
            continue
        size, tensor = graph.stored[name], graph.tensors.get(name)
        if tensor is None:
            yield name, Values(kept_bytes=size)
            continue
        elements = tensor.elements
        if op_name(node) in rules.PICKS and place == 0 and node.output[0] in graph.tensors:
            rows = min(elements, graph.tensors[node.output[0]].elements)
            size, elements = -(-size * rows // max(1, elements)), rows
        yield name, Values(elements, size) if _converts(tensor) else Values(kept_bytes=size)


def _all_weights(graph: Graph) -> Values:
    """Each stored value once, with the most that any op reads of it."""
    most: dict[str, Values] = {}
    for node in graph.nodes:
        if all(name in graph.stored for name in node.output if name) or op_name(node) in rules.VIEWS:
            continue
        for name, values in _uses(node, graph):
            root = _root(name, graph)
            most[root] = max(most.get(root, Values()), values, key=lambda item: item.bytes)
    return sum(most.values(), Values())


def _root(name: str, graph: Graph) -> str:
    """The initializer that a folded value is made of, where it is one: a tied weight that one reader transposes counts once."""
    for _ in range(len(graph.producers)):
        node = graph.producers.get(name)
        stored = [item for item in node.input if item in graph.stored] if node is not None else []
        if node is None or not stored or op_name(node) not in _MOVED | _QUANTIZE | _DEQUANTIZE:
            return name
        name = stored[0]
    return name


def _values(tensor: Tensor) -> Values:
    return Values(tensor.elements, tensor.size_bytes) if _converts(tensor) else Values(kept_bytes=tensor.size_bytes)


def _converts(tensor: Tensor) -> bool:
    """Whether a precision changes the type: numbers of the model, and not rows, sizes or truths."""
    return tensor.elem_type in _TYPES or tensor.elem_type in FOUR_BITS


def _known(name: str, graph: Graph) -> Tensor:
    if name not in graph.tensors:
        raise rules.NotCountedError(rules.NO_SHAPE)
    return graph.tensors[name]


def _sizes(names: Iterable[str], graph: Graph) -> int:
    return sum(graph.tensors[name].size_bytes for name in names if name in graph.tensors)
