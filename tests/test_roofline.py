"""Operations and bytes are those that can be counted by hand, and a floor never lies above what is possible."""

from __future__ import annotations

import dataclasses
import math
from datetime import date
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from device_profiles import profile_files
from profiler import demo
from profiler.analysis import analyse
from profiler.artifacts import ArtifactStore
from profiler.cost.devices import find_profile, load_profiles, parse_profile
from profiler.errors import ModelError
from profiler.onnx_io import read_model
from profiler.records import Environment, Estimate, NotMeasured
from profiler.roofline.artifact import Limits, case_profile
from profiler.roofline.counting import converted, count_model
from profiler.roofline.limits import Floor, Rate, bandwidth, dominating, floor, peak
from profiler.roofline.share import case_floor, declared_profile, limit_share

F32, I8, I64 = TensorProto.FLOAT, TensorProto.INT8, TensorProto.INT64
CACHE = Path(__file__).parents[1] / ".cache" / "real_models" / "bench"


def built(nodes, inputs, outputs, stored=None, *, domains=(), functions=(), value_info=()):
    """A model of the nodes; inputs and outputs as name → (type, shape), stored as name → array or tensor."""
    graph = helper.make_graph(
        nodes,
        "made",
        [helper.make_tensor_value_info(name, *what) for name, what in inputs.items()],
        [helper.make_tensor_value_info(name, *what) for name, what in outputs.items()],
        [
            value if isinstance(value, TensorProto) else numpy_helper.from_array(value, name)
            for name, value in (stored or {}).items()
        ],
        value_info=value_info,
    )
    imports = [helper.make_opsetid("", 21), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=imports, functions=list(functions), ir_version=10)


def ones(*shape):
    return np.ones(shape, np.float32)


def only(counts):
    assert len(counts.ops) == 1
    return counts.ops[0]


@pytest.fixture(scope="module")
def resnet():
    return read_model(demo.model_path())


# Counting


@given(
    batch=st.integers(1, 3), groups=st.integers(1, 3), inside=st.integers(1, 3), outside=st.integers(1, 3),
    size=st.tuples(st.integers(3, 7), st.integers(3, 7)), kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 2), dilation=st.integers(1, 2),
)  # fmt: skip
def test_a_convolution_multiplies_what_it_sums(batch, groups, inside, outside, size, kernel, stride, dilation):
    """On ones with weights of one and no padding, the results add up to the number of products: groups, depthwise and all."""
    if any(step < dilation * (width - 1) + 1 for step, width in zip(size, kernel, strict=True)):
        return
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=groups, strides=[stride] * 2, dilations=[dilation] * 2)
    weight = ones(groups * outside, inside, *kernel)
    model = built([node], {"x": (F32, ["N", groups * inside, *size])}, {"y": (F32, None)}, {"w": weight})

    op = only(count_model(model, batch))
    result = ReferenceEvaluator(model).run(None, {"x": ones(batch, groups * inside, *size)})[0]

    assert op.macs == int(result.sum())
    assert (op.weight.bytes, op.written.bytes) == (weight.nbytes, result.nbytes)
    assert op.read.bytes == 4 * batch * groups * inside * size[0] * size[1]
    assert op.other_ops == 0


@pytest.mark.parametrize(
    ("node", "x", "stored"),
    [
        (helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2]), (2, 3, 4, 5), {"w": ones(3, 6, 3, 2)}),
        (helper.make_node("Gemm", ["x", "w"], ["y"]), (3, 5), {"w": ones(5, 7)}),
        (helper.make_node("Gemm", ["x", "w"], ["y"], transB=1), (3, 5), {"w": ones(7, 5)}),
        (helper.make_node("Gemm", ["w", "x"], ["y"], transA=1), (3, 7), {"w": ones(3, 5)}),
        (helper.make_node("MatMul", ["x", "w"], ["y"]), (2, 3, 5), {"w": ones(5, 7)}),
        (helper.make_node("MatMul", ["x", "x2"], ["y"]), (2, 4, 3, 5), {"x2": ones(2, 4, 5, 6)}),
        (helper.make_node("MatMul", ["x", "w"], ["y"]), (5,), {"w": ones(5)}),
        (helper.make_node("Einsum", ["x", "w"], ["y"], equation="bhqd,hkd->bhqk"), (2, 3, 4, 5), {"w": ones(3, 6, 5)}),
    ],
    ids=lambda value: value.op_type if isinstance(value, onnx.NodeProto) else "",
)  # fmt: skip
def test_products_multiply_what_they_sum(node, x, stored):
    """The same oracle for the other ops that multiply: the sum of the results on ones."""
    model = built([node], {"x": (F32, list(x))}, {"y": (F32, None)}, stored)

    assert only(count_model(model, x[0])).macs == int(ReferenceEvaluator(model).run(None, {"x": ones(*x)})[0].sum())


def test_a_grouped_transposed_convolution_counts_its_own_channels_only():
    """Each input value meets the kernel of its group: 2 × 3 × 4 × 5 values, 2 channels of 3 × 2."""
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], group=3)
    model = built([node], {"x": (F32, ["N", 3, 4, 5])}, {"y": (F32, None)}, {"w": ones(3, 2, 3, 2)})

    assert only(count_model(model, 2)).macs == 2 * 3 * 4 * 5 * 2 * 3 * 2


def test_a_bias_and_padding_are_counted_as_papers_do():
    """One addition for each result; products with padding count, as in published numbers."""
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], pads=[1, 1, 1, 1])
    model = built([node], {"x": (F32, ["N", 2, 5, 5])}, {"y": (F32, None)}, {"w": ones(4, 2, 3, 3), "b": ones(4)})

    op = only(count_model(model, 3))

    assert (op.macs, op.other_ops, op.ops) == (3 * 4 * 25 * 18, 3 * 4 * 25, 2 * 3 * 4 * 25 * 18 + 300)
    assert op.weight.bytes == 4 * (4 * 2 * 9 + 4)


@pytest.mark.parametrize(
    ("node", "shape", "other"),
    [
        (helper.make_node("Relu", ["x"], ["y"]), (2, 3, 4, 4), 96),
        (helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], strides=[2, 2]), (2, 3, 4, 4), 2 * 3 * 4 * 4),
        (helper.make_node("GlobalAveragePool", ["x"], ["y"]), (2, 3, 4, 4), 96),
        (helper.make_node("Softmax", ["x"], ["y"]), (2, 10), 80),
        (helper.make_node("Add", ["x", "x"], ["y"]), (2, 10), 20),
        (helper.make_node("Sum", ["x", "x", "x"], ["y"]), (2, 10), 40),
        (helper.make_node("Transpose", ["x"], ["y"]), (2, 10), 0),
        (helper.make_node("Identity", ["x"], ["y"]), (2, 10), 0),
    ],
    ids=lambda value: value.op_type if isinstance(value, onnx.NodeProto) else "",
)
def test_other_ops_count_what_their_definition_needs(node, shape, other):
    """No multiply-accumulates; views move nothing, moves move."""
    op = only(count_model(built([node], {"x": (F32, list(shape))}, {"y": (F32, None)}), shape[0]))

    assert (op.macs, op.other_ops) == (0, other)
    assert (op.bytes == 0) == (node.op_type == "Identity")


def test_recurrent_layers_meet_both_matrices_at_every_step():
    """LSTM of 4 gates: steps × rows × (gates × hidden × (input + hidden))."""
    node = helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=5)
    stored = {"w": ones(1, 20, 3), "r": ones(1, 20, 5)}
    model = built([node], {"x": (F32, [7, 2, 3])}, {"y": (F32, None)}, stored)

    assert only(count_model(model, 7)).macs == 7 * 2 * 20 * (3 + 5)


def test_attention_counts_by_its_two_products():
    """Scores and values: queries × keys × (size of a key + size of a value), for every head."""
    nodes = [
        helper.make_node("MatMul", ["q", "k"], ["s"]),
        helper.make_node("Softmax", ["s"], ["p"]),
        helper.make_node("MatMul", ["p", "v"], ["y"]),
    ]
    inputs = {"q": (F32, [2, 4, 6, 8]), "k": (F32, [2, 4, 8, 9]), "v": (F32, [2, 4, 9, 5])}
    counts = count_model(built(nodes, inputs, {"y": (F32, None)}), 2)

    assert counts.macs == 2 * 4 * 6 * 9 * (8 + 5)


def test_known_models_have_their_known_numbers(resnet):
    """The built-in network, layer by layer by hand: outputs × weights of one channel, strides halve twice."""
    sizes = [
        28 * 28 * 16 * 9,
        14 * 14 * 32 * 16 * 9,
        *[14 * 14 * 32 * 32 * 9] * 2,
        7 * 7 * 64 * 32 * 9,
        *[7 * 7 * 64 * 64 * 9] * 2,
    ]
    counts = count_model(resnet, 1)

    assert counts.macs == sum(sizes) + 640
    assert counts.weight_bytes == pytest.approx(4 * 116_000, rel=0.01)
    assert (counts.input_bytes, counts.output_bytes, counts.uncounted) == (4 * 784, 40, {})
    assert counts.ops_by_precision() == {"f32": counts.total_ops}


@pytest.mark.parametrize(
    ("name", "shapes", "low", "high"),
    [
        # Published figures run from 385 M to 407 M multiply-adds (the authors' own table has 407 M).
        ("efficientnet-lite0", {}, 385e6, 407e6),
        # 6 layers of 384: 12 × 384² weights per token and layer, 2 × 48² × 384 for attention, 48 tokens.
        ("minilm-sentiment", {}, 6 * (12 * 384**2 * 48 + 2 * 48**2 * 384), 6 * (12 * 384**2 * 48 + 2 * 48**2 * 384) + 2e6),
    ],
)  # fmt: skip
def test_real_models_have_their_published_numbers(name, shapes, low, high):
    """Where the cached exports are at hand."""
    path = CACHE / name / "model.onnx"
    if not path.is_file():
        pytest.skip(f"no cached export of {name}: scripts/bench_variants makes it")
    counts = count_model(onnx.load(path), 1, shapes)

    assert low <= counts.macs <= high
    assert counts.uncounted == {}


@given(batch=st.integers(1, 64))
def test_a_batch_multiplies_work_and_not_weights(resnet, batch):
    """Everything but the weights is proportional to the rows."""
    one, many = count_model(resnet, 1), count_model(resnet, batch)

    assert (many.total_ops, many.macs, many.input_bytes) == (
        batch * one.total_ops,
        batch * one.macs,
        batch * one.input_bytes,
    )
    assert many.weight_bytes == one.weight_bytes


def test_the_model_is_left_as_it_is(resnet):
    """Counting strips weights from a copy."""
    before = resnet.SerializeToString(deterministic=True)
    count_model(resnet, 8)

    assert resnet.SerializeToString(deterministic=True) == before


def test_a_table_that_is_looked_up_counts_its_rows():
    """An embedding of 1,000 rows, of which an inference reads six; as the tied last layer it is read whole, once."""
    gather = helper.make_node("Gather", ["table", "rows"], ["e"])
    tied = [helper.make_node("Transpose", ["table"], ["t"], perm=[1, 0]), helper.make_node("MatMul", ["e", "t"], ["y"])]
    inputs, table = {"rows": (I64, ["N", 3])}, {"table": ones(1000, 8)}

    looked_up = count_model(built([gather], inputs, {"e": (F32, None)}, table), 2)
    both = count_model(built([gather, *tied], inputs, {"y": (F32, None)}, table), 2)

    assert looked_up.weight_bytes == 6 * 8 * 4
    assert both.weight_bytes == 1000 * 8 * 4
    assert [op.op_type for op in both.ops] == ["Gather", "MatMul"]  # a folded transposition does not run


# Precision


def quantized_chain():
    """x → Q → DQ → Conv → Relu → Q → DQ → Conv(float) → y: the first convolution in int8, the second with int8 weights only."""
    scale, zero = np.float32(0.1), np.int8(0)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"], "q_in"),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wd"]),
        helper.make_node("Conv", ["xd", "wd"], ["a"], "int8"),
        helper.make_node("QuantizeLinear", ["a", "s", "z"], ["aq"], "q_out"),
        helper.make_node("DequantizeLinear", ["aq", "s", "z"], ["ad"]),
        helper.make_node("Relu", ["ad"], ["r"], "relu"),
        helper.make_node("DequantizeLinear", ["w2", "s", "z"], ["wd2"]),
        helper.make_node("Conv", ["r", "wd2"], ["y"], "weights"),
    ]
    stored = {
        "s": np.array(scale),
        "z": np.array(zero),
        "w": np.ones((4, 3, 1, 1), np.int8),
        "w2": np.ones((2, 4, 1, 1), np.int8),
    }
    return built(nodes, {"x": (F32, ["N", 3, 5, 5])}, {"y": (F32, None)}, stored)


def test_qdq_graphs_count_as_int8():
    """Weights and activations at one byte, conversions fused away; with float activations only the weights are small."""
    ops = {op.name: op for op in count_model(quantized_chain(), 2).ops}
    scales = 4 + 1

    assert ops["int8"].precision == "i8"
    assert (ops["int8"].weight.bytes, ops["int8"].read.bytes, ops["int8"].written.bytes) == (12 + scales, 150, 200)
    assert (ops["q_out"].ops, ops["q_out"].bytes) == (0, 0)
    assert (ops["q_in"].read.bytes, ops["q_in"].written.bytes) == (4 * 150, 150)  # the model's input is float
    assert (ops["relu"].read.bytes, ops["relu"].written.bytes) == (200, 800)
    assert ops["weights"].precision == "f32"
    assert (ops["weights"].weight.bytes, ops["weights"].read.bytes) == (8 + scales, 800)


def test_float8_pairs_count_as_float8_and_have_no_peak_of_int8():
    """One byte each, and no floor on a device whose profile has no float8 peak: int8's need not be it."""
    model = quantized_chain()
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.INT8 and tensor.dims:
            tensor.CopyFrom(
                helper.make_tensor(tensor.name, TensorProto.FLOAT8E4M3FN, tensor.dims, [1.0] * math.prod(tensor.dims))
            )
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            del node.input[2:]
        if node.op_type == "QuantizeLinear":
            node.attribute.append(helper.make_attribute("output_dtype", TensorProto.FLOAT8E4M3FN))
    model.opset_import[0].version = 21
    counts = count_model(model, 2)
    ops = {op.name: op for op in counts.ops}
    assert ops["int8"].precision == "f8"
    assert (ops["int8"].weight.bytes, ops["int8"].read.bytes) == (12 + 4, 150)
    assert ops["weights"].precision == "f32"
    limit = floor(counts, find_profile("nvidia-a10"))
    assert isinstance(limit, NotMeasured)
    assert "no fp8 peak" in limit.reason
    assert isinstance(floor(counts, find_profile("nvidia-l4")), Floor)


@pytest.mark.parametrize("elem_type", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_halves_are_halves(elem_type):
    """Types decide the precision and the bytes."""
    weight = TensorProto(name="w", data_type=elem_type, dims=[4, 5], raw_data=bytes(40))
    model = built(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        {"x": (elem_type, ["N", 4])},
        {"y": (elem_type, None)},
        {"w": weight},
    )
    op = only(count_model(model, 3))

    assert op.precision == {TensorProto.FLOAT16: "f16", TensorProto.BFLOAT16: "bf16"}[elem_type]
    assert (op.weight.bytes, op.read.bytes, op.written.bytes) == (40, 24, 30)


def test_integer_products_are_int8():
    """MatMulInteger needs no DequantizeLinear to be int8."""
    node = helper.make_node("MatMulInteger", ["x", "w"], ["y"])
    model = built([node], {"x": (I8, ["N", 4])}, {"y": (TensorProto.INT32, None)}, {"w": np.ones((4, 5), np.int8)})

    assert (only(count_model(model, 3)).precision, only(count_model(model, 3)).macs) == ("i8", 60)


@pytest.mark.runtime
@pytest.mark.parametrize(("level", "precision"), [(0, "f32"), (4, "i8")])
def test_weights_of_four_bits_count_at_half_a_byte(level, precision):
    """MatMulNBits, whose shapes only ONNX Runtime infers; it computes in float unless it is told that int8 is accurate enough."""
    node = helper.make_node("MatMulNBits", ["x", "w", "scales"], ["h"], K=64, N=32, bits=4, block_size=32)
    node.domain = "com.microsoft"
    node.attribute.append(helper.make_attribute("accuracy_level", level))
    stored = {"w": np.ones((32, 2, 16), np.uint8), "scales": ones(64)}
    nodes = [node, helper.make_node("Relu", ["h"], ["y"])]
    counts = count_model(
        built(nodes, {"x": (F32, ["N", 64])}, {"y": (F32, ["N", 32])}, stored, domains=["com.microsoft"]), 3
    )

    assert counts.uncounted == {}
    assert (counts.ops[0].macs, counts.ops[0].precision, counts.ops[1].other_ops) == (3 * 64 * 32, precision, 96)
    assert counts.weight_bytes == 64 * 32 // 2 + 64 * 4


def test_converted_counts_are_what_the_converted_model_has(resnet):
    """fp32 of an fp32 model is itself; int8 is a quarter of its weights and of what passes between ops; nothing else changes."""
    counts = count_model(resnet, 4)
    same, quarter = converted(counts, "f32"), converted(counts, "i8")

    assert same == counts
    assert (quarter.total_ops, quarter.input_bytes) == (counts.total_ops, counts.input_bytes)
    assert quarter.ops_by_precision() == {"i8": counts.total_ops}
    assert sum(op.read.count_bytes for op in quarter.ops) * 4 == sum(op.read.count_bytes for op in counts.ops)
    assert quarter.weights.count_bytes * 4 == counts.weights.count_bytes


# What cannot be counted


def branch():
    body = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["b"])], "b", [], [helper.make_tensor_value_info("b", F32, [2, 2])]
    )
    return [
        helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0),
        helper.make_node("Cast", ["total"], ["yes"], to=TensorProto.BOOL),
        helper.make_node("If", ["yes"], ["y"], then_branch=body, else_branch=body),
    ]


@pytest.mark.parametrize(
    ("nodes", "shape", "reason"),
    [
        (branch(), [2, 2], "If, Loop or Scan"),
        ([helper.make_node("NMS", ["x"], ["y"], domain="lab")], [2, 2], "no rule for lab::NMS"),
        ([helper.make_node("Relu", ["x"], ["y"])], [2, "length"], "--shape"),
    ],
    ids=["if", "foreign", "open"],
)  # fmt: skip
def test_what_nobody_can_count_is_left_out_and_said(nodes, shape, reason):
    """With the reason and the share of the nodes."""
    counts = count_model(built(nodes, {"x": (F32, shape)}, {"y": (F32, None)}, domains=["lab"]), 2)

    assert any(reason in text for text in counts.uncounted)
    assert counts.uncounted_share == pytest.approx(1 / len(nodes))


def test_open_sizes_can_be_given():
    """Without the batch axis, as for measuring; every input that shares the symbol gets it."""
    nodes = [helper.make_node("Add", ["x", "z"], ["y"])]
    model = built(nodes, {"x": (F32, ["N", "length"]), "z": (F32, ["N", "length"])}, {"y": (F32, ["N", "length"])})

    assert count_model(model, 3, {"x": (7,), "z": (7,)}).total_ops == 21
    assert count_model(model, 3).uncounted != {}


@pytest.mark.parametrize(
    ("batch", "shapes", "words"),
    [
        (2, {}, "fixed batch axis of 1, not 2"),
        (1, {"x": (3, 4)}, "2 axes, batch included, and the shape given has 3"),
        (1, {"x": (5,)}, "fixed axis 1 of 4, not 5"),
        (1, {"q": (4,)}, "no input 'q'"),
        (0, {}, "smallest is 1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(batch, shapes, words):
    """By name, with what the model has."""
    model = built([helper.make_node("Relu", ["x"], ["y"])], {"x": (F32, [1, 4])}, {"y": (F32, [1, 4])})

    with pytest.raises(ModelError, match=words):
        count_model(model, batch, shapes)


def test_functions_of_the_model_are_looked_into():
    """A model-local function counts as what stands in it."""
    function = helper.make_function(
        "lab", "Twice", ["a"], ["b"], [helper.make_node("MatMul", ["a", "a"], ["b"])], [helper.make_opsetid("", 21)]
    )
    nodes = [helper.make_node("Twice", ["x"], ["y"], domain="lab")]
    model = built(nodes, {"x": (F32, [3, 3])}, {"y": (F32, [3, 3])}, domains=["lab"], functions=[function])

    assert count_model(model, 3).macs == 27


# Limits

PI = find_profile("raspberry-pi-5-8gb")


def profile(**tables):
    """A made-up GPU of 1 TFLOPS fp32, 8 fp16 and 16 TOPS int8 at 100 GB/s, with changes."""
    text = 'id = "made"\nname = "Made"\nclass = "gpu"\ncompute_unit = "GPU"\n[source]\nspec = "made up for this test"\n'
    found = parse_profile(text, "made.toml")
    peaks = {"fp32_tflops": 1.0, "fp16_dense_tflops": 8.0, "int8_dense_tops": 16.0, **tables.pop("peak", {})}
    memory = {"bandwidth_gbs": 100.0, **tables.pop("memory", {})}
    update = {"peak": found.peak.model_copy(update=peaks), "memory": found.memory.model_copy(update=memory), **tables}
    return found.model_copy(update=update)


def test_the_floor_is_the_time_that_can_be_computed_by_hand(resnet):
    """Operations at the peak; bytes at the bandwidth; op by op the larger of both."""
    counts, made = count_model(resnet, 1), profile()
    found = floor(counts, made)
    assert isinstance(found, Floor)

    assert found.arithmetic_s == pytest.approx(counts.total_ops / 1e12)
    assert found.once_s == pytest.approx(counts.once_bytes / 100e9)
    assert found.streamed_s == pytest.approx(sum(max(op.ops / 1e12, op.bytes / 100e9) for op in counts.ops))
    assert (found.seconds, found.bound, found.counted_share) == (found.arithmetic_s, "arithmetic", 1.0)


@given(
    batch=st.integers(1, 16),
    name=st.sampled_from(sorted(load_profiles())),
    precision=st.sampled_from(["f32", "f16", "bf16", "i8"]),
)
def test_bounds_are_in_order(resnet, batch, name, precision):
    """Arithmetic alone never exceeds the floor, nor that the one with cold caches, nor that the sum over unfused ops."""
    found = floor(converted(count_model(resnet, batch), precision), load_profiles()[name])
    if isinstance(found, NotMeasured):
        assert name in found.reason
        return

    assert 0 < found.arithmetic_s <= found.seconds <= found.cold_s < 10
    if found.streamed_s is not None:
        assert found.cold_s <= found.streamed_s * (1 + 1e-9)


def test_what_the_caches_may_keep_is_not_in_the_floor(resnet):
    """Weights that fit need no bandwidth the second time; of what does not fit, only the rest is certain to pass."""
    counts = count_model(resnet, 1)
    slow = {"bandwidth_gbs": 0.001}

    unknown = floor(counts, profile(memory=slow))
    fits = floor(counts, profile(memory={**slow, "cache_mb": 1.0}))
    half = floor(counts, profile(memory={**slow, "cache_mb": 0.2}))

    assert isinstance(unknown, Floor)
    assert isinstance(fits, Floor)
    assert isinstance(half, Floor)
    assert (unknown.bound, fits.bound, half.bound) == ("arithmetic", "arithmetic", "memory")
    assert "does not tell how much the caches hold" in " ".join(unknown.notes)
    assert half.seconds == pytest.approx((counts.once_bytes - 200_000) / 1e6)
    assert unknown.cold_s == fits.cold_s == half.cold_s == pytest.approx(counts.once_bytes / 1e6)


def test_a_peak_that_the_profile_lacks_is_not_made_up(resnet):
    """An accelerator of int8 only has no floor for fp32; CPUs without a paper peak have none at all."""
    counts = count_model(resnet, 1)
    coral, laptop = find_profile("coral-usb"), find_profile("intel-i7-1360p")

    refused = floor(counts, coral)
    assert isinstance(refused, NotMeasured)
    assert "coral-usb has no fp32 peak" in refused.reason
    assert isinstance(floor(converted(counts, "i8"), laptop), NotMeasured)
    found = floor(converted(counts, "i8"), coral)
    assert isinstance(found, Floor)
    assert (found.once_s, found.streamed_s) == (None, None)
    assert "no memory bandwidth" in found.notes[0]
    assert isinstance(bandwidth(coral), NotMeasured)


def test_float_leftovers_of_an_int8_model_take_the_highest_peak():
    """Few additions in float on an int8 device leave a floor, and never a higher one than any unit of the device would give."""
    nodes = [
        helper.make_node("MatMulInteger", ["x", "w"], ["h"]),
        helper.make_node("Cast", ["h"], ["f"], to=F32),
        helper.make_node("Relu", ["f"], ["y"]),
    ]
    model = built(nodes, {"x": (I8, ["N", 4])}, {"y": (F32, None)}, {"w": np.ones((4, 5), np.int8)})
    found = floor(count_model(model, 3), find_profile("coral-usb"))

    assert isinstance(found, Floor)
    assert found.arithmetic_s == pytest.approx((2 * 60 + 15) / 4e12)


@pytest.mark.parametrize(("threads", "share"), [(1, 0.25), (3, 0.75), (4, 1.0), (8, 1.0), (None, 1.0)])
def test_fewer_threads_than_cores_have_their_share(threads, share):
    """On CPUs; threads mean nothing to a GPU."""
    whole, part = peak(PI, "f32"), peak(PI, "f32", threads=threads)
    assert isinstance(whole, Rate)
    assert isinstance(part, Rate)

    assert part.per_s == pytest.approx(share * whole.per_s)
    assert peak(find_profile("nvidia-t4"), "f32", threads=threads) == peak(find_profile("nvidia-t4"), "f32")


def test_sparse_peaks_count_for_sparse_models_only():
    """AGX Orin's 275 TOPS are sparse, GPU and DLA together: twice the dense ones of both, of which the GPU has 85.2."""
    orin, t4 = find_profile("jetson-agx-orin-64gb"), find_profile("nvidia-t4")
    dense, sparse = peak(orin, "i8"), peak(orin, "i8", sparse=True)
    assert isinstance(dense, Rate)
    assert isinstance(sparse, Rate)

    assert dense.per_s == pytest.approx(85.2e12)
    assert sparse.per_s == pytest.approx(2 * 85.2e12, rel=0.01)
    without = peak(t4, "i8", sparse=True)
    assert isinstance(without, Rate)
    assert without.per_s == pytest.approx(130.25e12)


def test_fp32_on_tensor_cores_may_be_tf32():
    """A runtime that uses TF32 unasked would beat the fp32 peak: 156 TFLOPS on an A100; Turing does not have it."""
    a100, t4 = peak(find_profile("nvidia-a100-sxm-80gb"), "f32"), peak(find_profile("nvidia-t4"), "f32")
    assert isinstance(a100, Rate)
    assert isinstance(t4, Rate)

    assert a100.per_s == pytest.approx(156e12, rel=0.01)
    assert a100.unverified == ("TF32 as half of fp16",)
    assert t4.per_s == pytest.approx(8.14e12)


def test_unverified_figures_make_the_floor_unverified(resnet):
    """Those that it stands on, and no others: bandwidth from memory does not spoil an arithmetic bound."""
    counts = count_model(resnet, 1)
    derived, sourced = floor(counts, PI), floor(counts, find_profile("nvidia-t4"))
    other = floor(converted(counts, "i8"), find_profile("nvidia-a2"))

    assert isinstance(derived, Floor)
    assert derived.unverified == ("peak.fp32_tflops",)
    assert isinstance(sourced, Floor)
    assert sourced.unverified == ()
    assert "memory.bandwidth_gbs" in find_profile("nvidia-a2").source.unverified
    assert isinstance(other, Floor)
    assert other.unverified == ()


def test_the_ops_that_dominate_come_first(resnet):
    """By the larger of both shares; shares of everything add up to one."""
    counts = count_model(resnet, 1)
    all_of_them = dominating(counts, PI, len(counts.ops))
    ranks = [max(share.of_ops, share.of_bytes) for share in all_of_them]

    assert ranks == sorted(ranks, reverse=True)
    assert sum(share.of_ops for share in all_of_them) == pytest.approx(1)
    assert sum(share.of_bytes for share in all_of_them) == pytest.approx(1)
    assert {share.bound for share in all_of_them} == {"arithmetic", "memory"}
    assert {share.bound for share in dominating(counts, find_profile("intel-i7-1360p"))} == {None}


def test_every_profile_says_what_its_peak_is_of():
    """A compute unit that is a CPU begins with that word: shares of cores and the check of the provider depend on it."""
    cpus = {name for name, found in load_profiles().items() if found.peak_is_of_cpu}

    assert cpus == {name for name in load_profiles() if name.startswith(("raspberry", "intel", "firefly"))}
    assert 'compute_unit = "CPU' in profile_files()["raspberry-pi-4-4gb.toml"]


# The share that a measured case reached


def machine(arch="aarch64", gpus=()):
    return Environment("host", arch, "Linux 6", "3.11.7", None, (), 4, 4, 8 << 30, None, gpus, {})


@pytest.fixture
def measured(made_run):
    """`measured(latency_s, variant, backend, environment, **facts)`: one case of one thread, batch 1, on the processor."""

    def make(latency_s=0.002, variant="fp32", backend="ort", environment=None, **facts):
        run = made_run()
        run.timed(run.case(variant, backend), latency_s)
        result = analyse(run.data(environment=environment or machine()), today=date(2026, 1, 2)).cases[0]
        assert result.process is not None
        own = dataclasses.replace(result.process.facts, **facts)
        return dataclasses.replace(result, process=dataclasses.replace(result.process, facts=own))

    return make


def test_the_share_is_the_floor_over_the_latency_with_its_interval(measured, resnet):
    """Ends swap: the slowest latency is the smallest share. Labelled as resting on published figures."""
    case, counts = measured(), count_model(resnet, 1)
    limit = floor(counts, PI, threads=1)
    share = limit_share(case, counts, PI)
    latency = case.latency_p50_s
    assert isinstance(limit, Floor)
    assert isinstance(share, Estimate)
    assert isinstance(latency, Estimate)
    assert latency.low is not None
    assert latency.high is not None

    assert share.value == pytest.approx(limit.seconds / latency.value)
    assert (share.low, share.high) == (
        pytest.approx(limit.seconds / latency.high),
        pytest.approx(limit.seconds / latency.low),
    )
    assert (share.unit, share.source, share.level) == ("proportion", "published", latency.level)
    assert share.note is not None
    assert "unverified: peak.fp32_tflops" in share.note
    assert 0.2 < share.value < 0.3


def test_an_open_end_of_the_latency_stays_open(measured, resnet):
    """None is not infinity."""
    case = measured()
    case = dataclasses.replace(case, latency_p50_s=dataclasses.replace(case.latency_p50_s, high=None))
    share = limit_share(case, count_model(resnet, 1), PI)

    assert isinstance(share, Estimate)
    assert share.low is None
    assert share.high is not None


def test_more_than_the_limit_is_shown_and_explained(measured, resnet):
    """Not capped: it says that the limit is none here."""
    share = limit_share(measured(1e-4), count_model(resnet, 1), PI)

    assert isinstance(share, Estimate)
    assert share.value > 1
    assert "faster than the floor" in str(share.note)


@pytest.mark.parametrize(
    ("facts", "device", "words"),
    [
        ({"provider": "CPUExecutionProvider"}, "jetson-agx-orin-64gb", "those of its Ampere GPU"),
        ({"provider": "CUDAExecutionProvider"}, "raspberry-pi-5-8gb", "those of its processor cores"),
        ({"provider": "NVIDIA T4"}, "raspberry-pi-5-8gb", "those of its processor cores"),
        ({"environment": machine("x86_64")}, "intel-i7-1360p", "no arithmetic peak"),
        ({"environment": machine("x86_64")}, "raspberry-pi-5-8gb", "measured on x86_64"),
        ({"provider": "NVIDIA L4", "environment": machine(gpus=("NVIDIA L4",))}, "nvidia-t4", "measured on NVIDIA L4"),
        ({"threads": 64}, "raspberry-pi-5-8gb", "at most 4 threads"),
        ({}, None, "--as device:ID"),
    ],
)
def test_the_share_is_of_the_unit_that_ran(measured, resnet, facts, device, words):
    """A Jetson's CPU is not measured by its GPU's peak, nor the other way round."""
    found = limit_share(measured(**facts), count_model(resnet, 1), None if device is None else find_profile(device))

    assert isinstance(found, NotMeasured)
    assert words in found.reason


def test_counts_of_another_batch_are_refused(measured, resnet):
    """And reasons for having none pass through."""
    other = limit_share(measured(), count_model(resnet, 8), PI)
    gone = limit_share(measured(), NotMeasured("the artifact is gone"), PI)

    assert isinstance(other, NotMeasured)
    assert "batch of 8" in other.reason
    assert gone == NotMeasured("the artifact is gone")


@pytest.mark.parametrize("change", [{"emulated": True}, {"envelope": "512 MB of this machine"}], ids=str)
def test_what_is_no_device_has_no_share_of_its_limit(measured, resnet, change):
    """An emulator or an envelope has no data sheet."""
    case = measured()
    case = dataclasses.replace(case, machine=dataclasses.replace(case.machine, **change))
    found = limit_share(case, count_model(resnet, 1), PI)

    assert isinstance(found, NotMeasured)
    assert "timings" in found.reason


@pytest.mark.parametrize(
    ("known", "profile"),
    [
        ({"profile": "raspberry-pi-5-8gb", "priced_as": "aws:c7i.large"}, PI),
        ({"priced_as": "device:raspberry-pi-5-8gb"}, PI),
        ({"priced_as": "aws:c7i.large"}, None),
        ({"profile": "no-such-device"}, None),  # a run's plan is untrusted
        ({}, None),
    ],
)
def test_the_profile_of_a_case_is_its_machines(measured, known, profile):
    """Its target's, else what it was declared or detected as."""
    case = measured()

    assert case_profile(dataclasses.replace(case, machine=dataclasses.replace(case.machine, **known))) == profile


@pytest.fixture
def stored_run(made_run, tmp_path):
    """A run of the built-in model at two batches with its artifact in a store: `(analysis, store)`."""
    store = ArtifactStore(tmp_path / "cache")
    run = made_run()
    for batch in (1, 4):
        run.timed(run.case("fp32", batch=batch), 0.002 * batch)
    run.made("fp32")
    run.artifacts[0] = dataclasses.replace(run.artifacts[0], sha256=store.put(demo.model_path()))
    analysis = analyse(
        run.data(environment=machine(), cost={"machine": "device:raspberry-pi-5-8gb"}), today=date(2026, 1, 2)
    )
    return analysis, store


def test_a_stored_run_tells_the_share_of_each_case(stored_run, resnet):
    """From its artifact, at its own batch, on the device that it was declared as; each file is read once."""
    analysis, store = stored_run
    limits = Limits(analysis, store)
    shares = [limits.share(case) for case in analysis.cases]

    for case, share in zip(analysis.cases, shares, strict=True):
        assert share == limit_share(case, count_model(resnet, case.case.batch), PI)
        assert isinstance(share, Estimate)
        assert limits.counts(case) is limits.counts(case)


def test_a_run_whose_cache_is_gone_makes_none(stored_run, tmp_path):
    """Reading leaves no folders behind; where the cache is, its artifacts are found."""
    analysis, store = stored_run
    elsewhere = Limits.of(analysis, tmp_path / "elsewhere").share(analysis.cases[0])

    assert isinstance(elsewhere, NotMeasured)
    assert "not here any more" in elsewhere.reason
    assert not (tmp_path / "elsewhere").exists()
    assert isinstance(Limits.of(analysis, store.folder).share(analysis.cases[0]), Estimate)


@pytest.mark.parametrize("damage", ["gone", "garbage", "no store"])
def test_a_file_that_cannot_be_read_is_a_reason(stored_run, damage):
    """Not an error: the rest of the report still holds."""
    analysis, store = stored_run
    path = store.path(analysis.run.artifacts[0].sha256)
    path.parent.chmod(0o755)
    path.unlink()
    if damage == "garbage":
        path.write_bytes(b"\x08\x0anonsense")
    found = Limits(analysis, None if damage == "no store" else store).share(analysis.cases[0])

    assert isinstance(found, NotMeasured)
    assert found.reason


@pytest.mark.parametrize(
    ("backend", "precision", "peak_tops"),
    [
        ("ort", {"f32": 20}, 0.154),
        ("ort", None, 0.154),
        ("ov", {"f16": 18, "f32": 2}, 0.307),  # the runtime took fp16 for a float model, as OpenVINO does on ARM
        ("ov{precision=f16}", None, 0.307),
        ("ov", {"undetermined": 3, "f32": 2}, 0.614),  # nothing faster can be ruled out
        ("ov", {"i8": 20}, 0.614),
        ("ov", {"conversion": 4, "other": 2, "f32": 9}, 0.154),
    ],
)  # fmt: skip
def test_the_floor_is_that_of_what_really_ran(measured, resnet, backend, precision, peak_tops):
    """A runtime that lowered the precision would beat the floor of the file."""
    counts = count_model(resnet, 1)
    found = case_floor(measured(backend=backend, precision=precision, threads=4), counts, PI)

    assert isinstance(found, Floor)
    assert found.arithmetic_s == pytest.approx(counts.total_ops / (peak_tops * 1e12))


def test_int8_beside_float_does_not_lower_the_floor_of_float(measured):
    """In a file that holds both, each op keeps to its own peak."""
    counts = count_model(quantized_chain(), 1)
    found = case_floor(measured(precision={"i8": 1, "f32": 3}, threads=4), counts, PI)
    by_hand = sum(op.ops / (0.614e12 if op.precision == "i8" else 0.154e12) for op in counts.ops)

    assert isinstance(found, Floor)
    assert found.arithmetic_s == pytest.approx(by_hand)


@pytest.mark.parametrize(("variant", "factor"), [("prune-nm", 2.0), ("prune-nm{m=8}", 1.0), ("fp32", 1.0)])
def test_only_two_of_four_is_sparse(measured, resnet, variant, factor):
    """The variant's text tells; other patterns have no hardware."""
    counts, orin = count_model(resnet, 1), find_profile("jetson-agx-orin-64gb")
    found = case_floor(measured(variant=variant, provider="NVIDIA Orin"), counts, orin)
    dense = floor(counts, orin)

    assert isinstance(found, Floor)
    assert isinstance(dense, Floor)
    assert found.arithmetic_s * factor == pytest.approx(dense.arithmetic_s, rel=0.01)


def test_a_declared_machine_is_a_profile_or_none():
    """Devices by id with and without their prefix; cloud machines have prices only."""
    assert declared_profile("device:raspberry-pi-5-8gb") == PI
    assert declared_profile("rpi5-8gb") == PI
    assert declared_profile("aws:c7i.large") is None
    assert declared_profile(None) is None
