"""How many operations an ONNX node takes, from its shapes: multiply-accumulates, and the other arithmetic.

Multiply-accumulates are those of the textbook algorithm, padding included, as papers count them. The other operations are
the least that the definition of the op needs: one for each result of a function, however many instructions an `exp` takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from onnx import NodeProto, helper

from profiler.onnx_io import op_name
from profiler.roofline.graph import Shape, Tensor, subgraphs

Shapes = Mapping[str, Tensor]

VIEWS = frozenset({
    "Constant", "ConstantOfShape", "Dropout", "Flatten", "Identity", "Range", "Reshape", "Shape", "Size", "Squeeze",
    "Unsqueeze",
})  # fmt: skip
"""Neither arithmetic nor memory traffic: another view of the same bytes, or sizes that are known beforehand."""
MOVES = frozenset({
    "Cast", "CastLike", "Compress", "Concat", "DepthToSpace", "Expand", "EyeLike", "Gather", "GatherElements",
    "GatherND", "NonZero", "OneHot", "Pad", "ReverseSequence", "ScatterElements", "ScatterND", "Slice",
    "SpaceToDepth", "Split", "Tile", "Transpose", "Trilu", "Unique",
})  # fmt: skip
"""Memory traffic without arithmetic."""
PICKS = frozenset({"Gather", "GatherElements", "GatherND", "Slice"})
"""Moves that read no more of a stored table than they give out."""
_UNARY = frozenset({
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Ceil", "Celu", "Clip", "Cos", "Cosh",
    "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Hardmax", "IsInf", "IsNaN", "LeakyRelu", "Log",
    "Mish", "Neg", "Not", "PRelu", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh",
    "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu", "Resize", "Upsample", "CumSum",
    "com.microsoft::BiasGelu", "com.microsoft::FastGelu", "com.microsoft::Gelu", "com.microsoft::QuickGelu",
    "com.microsoft::QLinearSigmoid", "com.microsoft::QLinearLeakyRelu", "QuantizeLinear", "DequantizeLinear",
    "com.microsoft::QuantizeLinear", "com.microsoft::DequantizeLinear",
})  # fmt: skip
_BINARY = frozenset({
    "Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater", "GreaterOrEqual",
    "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "Pow", "Sub", "Sum", "Where", "Xor",
    "com.microsoft::QLinearAdd", "com.microsoft::QLinearMul",
})  # fmt: skip
_REDUCTIONS = frozenset({
    "ArgMax", "ArgMin", "DynamicQuantizeLinear", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "ReduceL1",
    "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum",
    "ReduceSumSquare", "TopK", "com.microsoft::QLinearGlobalAveragePool", "com.microsoft::QLinearReduceMean",
})  # fmt: skip
_POOLS = frozenset({"AveragePool", "LpPool", "MaxPool", "com.microsoft::QLinearAveragePool"})
_PER_RESULT = {
    "BatchNormalization": 2,  # a scale and a shift, folded beforehand
    "InstanceNormalization": 5, "LayerNormalization": 5, "GroupNormalization": 5, "MeanVarianceNormalization": 5,
    "RMSNormalization": 4, "LpNormalization": 3, "LRN": 3,
    "com.microsoft::SkipLayerNormalization": 6, "com.microsoft::EmbedLayerNormalization": 7,
    "Softmax": 4, "LogSoftmax": 4, "com.microsoft::QLinearSoftmax": 4,  # largest, exponential, sum, division
}  # fmt: skip
"""Passes over the elements that the definition needs: sum, difference, square, sum, scale for a normalization."""


NO_SHAPE = "its shapes could not be inferred: give the inputs' sizes with --shape"


@dataclass(frozen=True)
class Work:
    """Arithmetic of one node in one inference of the batch."""

    macs: int = 0
    """Multiply-accumulates; each counts as two operations."""
    other_ops: int = 0


class NotCountedError(Exception):
    """Why nothing is known of a node's operations. Carries the reason, which names no node."""


def work(node: NodeProto, tensors: Shapes) -> Work:
    """Operations of `node`. Raises NotCountedError for bodies of If and Loop, for shapes that are not known and for other ops."""
    name = op_name(node)
    if subgraphs(node):
        raise NotCountedError("how often a body of If, Loop or Scan runs does not stand in the file")
    if name in VIEWS or name in MOVES:
        return Work()
    if name in _PRODUCTS:
        return _PRODUCTS[name](node, tensors)
    if name in _PER_RESULT:
        return Work(other_ops=_PER_RESULT[name] * _out(node, tensors).elements)
    if name in _POOLS:
        return Work(other_ops=_out(node, tensors).elements * math.prod(_attribute(node, "kernel_shape", (1,))))
    if name in _REDUCTIONS:
        return Work(other_ops=_in(node, tensors, 0).elements)
    if name in _UNARY:
        return Work(other_ops=_out(node, tensors).elements)
    if name in _BINARY:
        operands = sum(1 for item in node.input if item)
        return Work(
            other_ops=_out(node, tensors).elements
            * max(1, operands - 1 if name in ("Sum", "Max", "Min", "Mean") else 1)
        )
    raise NotCountedError(f"no rule for {name}")


def _conv(weight: int, bias: int | None) -> Callable[[NodeProto, Shapes], Work]:
    def count(node: NodeProto, tensors: Shapes) -> Work:
        """Each result sums over the channels of its group and the kernel: W is [out, in / group, …kernel]."""
        results = _out(node, tensors).elements
        macs = results * math.prod(_in(node, tensors, weight).shape[1:])
        return Work(macs, results if bias is not None and _has(node, bias) else 0)

    return count


def _conv_transpose(node: NodeProto, tensors: Shapes) -> Work:
    """Each input value is spread over the kernel and the channels of its group: W is [in, out / group, …kernel]."""
    macs = _in(node, tensors, 0).elements * math.prod(_in(node, tensors, 1).shape[1:])
    return Work(macs, _out(node, tensors).elements if _has(node, 2) else 0)


def _matmul(left: int, bias: int | None = None) -> Callable[[NodeProto, Shapes], Work]:
    def count(node: NodeProto, tensors: Shapes) -> Work:
        """Each result sums over the last axis of the left operand."""
        results, shape = _out(node, tensors).elements, _in(node, tensors, left).shape
        transposed = _attribute(node, "transA", 0) and len(shape) > 1
        summed = shape[-2 if transposed else -1] if shape else 1
        return Work(results * summed, results if bias is not None and _has(node, bias) else 0)

    return count


def _packed(node: NodeProto, tensors: Shapes) -> Work:
    """MatMulNBits: its weight is packed, its length stands in an attribute."""
    return Work(_out(node, tensors).elements * int(_attribute(node, "K", 0)))


def _recurrent(node: NodeProto, tensors: Shapes) -> Work:
    """LSTM, GRU, RNN: at every step each row meets both weight matrices, W [directions, gates × hidden, input] and R."""
    steps_and_rows = math.prod(_in(node, tensors, 0).shape[:2])
    weights = _in(node, tensors, 1).elements + _in(node, tensors, 2).elements
    return Work(steps_and_rows * weights)


def _einsum(node: NodeProto, tensors: Shapes) -> Work:
    """The product of the sizes of all letters, for two operands; an ellipsis or more operands are not read."""
    equation = _attribute(node, "equation", b"")
    text = (equation.decode("ascii", "replace") if isinstance(equation, bytes) else str(equation)).replace(" ", "")
    terms = text.partition("->")[0].split(",")
    if len(terms) != 2 or "." in text:
        raise NotCountedError("an Einsum of other than two plain operands is not read")
    sizes: dict[str, int] = {}
    for place, term in enumerate(terms):
        shape: Shape = _in(node, tensors, place).shape
        if len(shape) != len(term):
            raise NotCountedError("an Einsum whose letters do not fit its operands")
        for letter, size in zip(term, shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    return Work(math.prod(sizes.values()))


def _attention(node: NodeProto, tensors: Shapes) -> Work:
    """The op of opset 23, by its two matrix products: each query meets each key and each value; half of them when causal.

    Without a past: [batch, heads, length, size] or [batch, length, heads × size].
    """
    if any(_has(node, place) for place in (4, 5)):
        raise NotCountedError("Attention with a past: its length does not stand in the file")
    query, key, value = (_in(node, tensors, place).shape for place in range(3))
    heads = int(_attribute(node, "q_num_heads", 0)) if len(query) == 3 else query[1]
    shared = int(_attribute(node, "kv_num_heads", 0)) if len(query) == 3 else key[1]
    if not heads or not shared or len({len(query), len(key), len(value)}) != 1:
        raise NotCountedError("Attention whose heads are not told")
    sizes = (query[-1], value[-1]) if len(query) == 4 else (query[-1] // heads, value[-1] // shared)
    pairs = query[0] * heads * query[-2] * key[-2]
    if _attribute(node, "is_causal", 0):
        pairs = -(-pairs // 2)
    return Work(pairs * sum(sizes), 4 * pairs)


_PRODUCTS: Mapping[str, Callable[[NodeProto, Shapes], Work]] = {
    "Conv": _conv(1, 2), "ConvInteger": _conv(1, None), "QLinearConv": _conv(3, 8), "com.microsoft::FusedConv": _conv(1, 2),
    "com.microsoft.nchwc::Conv": _conv(1, 2), "com.microsoft::QLinearConv": _conv(3, 8),
    "ConvTranspose": _conv_transpose,
    "Gemm": _matmul(0, 2), "com.microsoft::FusedGemm": _matmul(0, 2), "com.microsoft::QGemm": _matmul(0, 6),
    "MatMul": _matmul(0), "MatMulInteger": _matmul(0), "QLinearMatMul": _matmul(0), "com.microsoft::FusedMatMul": _matmul(0),
    "com.microsoft::DynamicQuantizeMatMul": _matmul(0, 4), "com.microsoft::MatMulIntegerToFloat": _matmul(0, 6),
    "com.microsoft::MatMulNBits": _packed,
    "LSTM": _recurrent, "GRU": _recurrent, "RNN": _recurrent, "com.microsoft::DynamicQuantizeLSTM": _recurrent,
    "Einsum": _einsum, "Attention": _attention,
}  # fmt: skip

WEIGHTED = frozenset(_PRODUCTS)
"""Ops that multiply and accumulate: a runtime may run them on tensor cores and other matrix units."""
_INT8_WORDS = ("Integer", "QLinear", "QGemm", "DynamicQuantize")
INTEGER = frozenset(name for name in _PRODUCTS if any(word in name for word in _INT8_WORDS))
"""Those of them that are int8 by definition."""


def _has(node: NodeProto, place: int) -> bool:
    return place < len(node.input) and bool(node.input[place])


def _in(node: NodeProto, tensors: Shapes, place: int) -> Tensor:
    return _known(node.input[place] if _has(node, place) else "", tensors)


def _out(node: NodeProto, tensors: Shapes) -> Tensor:
    return _known(next((name for name in node.output if name), ""), tensors)


def _known(name: str, tensors: Shapes) -> Tensor:
    if name not in tensors:
        raise NotCountedError(NO_SHAPE)
    return tensors[name]


def _attribute(node: NodeProto, name: str, default: Any) -> Any:
    return next((helper.get_attribute_value(item) for item in node.attribute if item.name == name), default)
