"""Each rule holds where its evidence is there, says the right seconds, and keeps quiet where one piece is missing."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from backends.base import SessionFacts
from profiler.explain.cause import int8_peak, shown
from profiler.explain.causes import causes, ratio
from profiler.explain.evidence import Counterfactual
from profiler.explain.machine_causes import kernel_isa

sys.path.append(str(Path(__file__).parent))
from made import REFERENCE_OPS, US, VNNI, evidence, layer, machine, op, side

GOOD_OPS = (op("a", "QLinearConv", "i8", 12, "a"), op("b", "QLinearConv", "i8", 12, "b"), op("r", "Reshape", "i8", 2))
GOOD = side("int8-static", GOOD_OPS, [layer("a", "qdq"), layer("b", "qdq")], 30)


def keys(found):
    return [cause.key for cause in causes(found)]


def first(found):
    return causes(found)[0]


def test_a_variant_that_gains_everywhere_has_no_cause():
    """Nothing is made up to fill the page."""
    assert causes(evidence(GOOD)) == ()


def test_an_op_without_weights_that_is_slower_than_in_the_reference_is_named():
    """Pooling without a fast int8 kernel: the layers around it gain, and it takes all of it."""
    pool = op("p", "MaxPool", "i8", 139)
    mine = side("int8-static", (*GOOD_OPS, pool), [layer("a", "qdq"), layer("b", "qdq")], 170)
    other = side("fp32", (*REFERENCE_OPS, op("p", "MaxPool", "f32", 5.6)), [layer("a"), layer("b")], 91)
    found = first(evidence(mine, other))

    assert found.key == "slower-ops"
    assert found.title.startswith("MaxPool takes 24.8 times as long")
    assert found.lost_s == pytest.approx(133.4 * US)
    # One that the reference has none of was added, and a little slower is noise.
    assert keys(evidence(mine)) == []
    assert "slower-ops" not in keys(
        evidence(mine, replace(other, ops=(*REFERENCE_OPS, op("p", "MaxPool", "f32", 120))))
    )


def test_what_explains_next_to_nothing_is_not_told():
    """Less than clocks get wrong."""
    ops = (*GOOD_OPS[:2], op("c", "Reorder", "conversion", 0.03))
    assert keys(evidence(side("int8-static", ops, [layer("a", "qdq"), layer("b", "qdq")], 30))) == []
    ops = (*GOOD_OPS[:2], op("c", "Reorder", "conversion", 3))
    assert keys(evidence(side("int8-static", ops, [layer("a", "qdq"), layer("b", "qdq")], 30))) == ["conversions"]


def test_the_ratio_is_taken_within_each_go():
    """A machine that slows down for both sides changes no ratio."""
    mine = replace(GOOD, wall_s=(30 * US, 300 * US, 60 * US))
    other = side("fp32", REFERENCE_OPS, [layer("a"), layer("b")], 85)
    assert ratio(evidence(mine, replace(other, wall_s=(60 * US, 600 * US, 120 * US)))) == pytest.approx(0.5)
    assert ratio(evidence(replace(mine, wall_s=()))) is None


def dynamic(us: float = 150):
    ops = (
        op("q", "DynamicQuantizeLinear", "conversion", 5), op("a", "ConvInteger", "i8", us, "a"),
        op("c", "Cast", "conversion", 3), op("m", "Mul", "f32", 2), op("b", "Conv", "f32", 40, "b"), op("r", "Reshape", "f32", 2),
    )  # fmt: skip
    return side("int8-dynamic", ops, [layer("a", "dynamic"), layer("b")], us + 60)


def test_dynamic_convolutions_cost_their_time_and_what_was_added_less_the_float_ones():
    """150 + 5 + 3 + 2 − 40 µs."""
    found = first(evidence(dynamic()))
    assert (found.key, found.certainty) == ("dynamic-conv", "fact")
    assert found.lost_s == pytest.approx(120 * US)
    assert any("int8-static{per_channel=true}" in line for line in found.advice)


def test_dynamic_int8_of_matrix_products_is_not_blamed():
    """Only ConvInteger has no kernel; MatMulInteger has."""
    ops = (op("a", "MatMulIntegerToFloat", "i8", 12, "a"), op("b", "DynamicQuantizeMatMul", "i8", 12, "b"))
    assert "dynamic-conv" not in keys(
        evidence(side("int8-dynamic", ops, [layer("a", "dynamic"), layer("b", "dynamic")], 30))
    )


def quantizers(count: int):
    return [
        op(f"q{place}", "QuantizeLinear" if place % 2 else "DequantizeLinear", "conversion", 3)
        for place in range(count)
    ]


def all_ops(light):
    ops = (*GOOD_OPS[:2], *quantizers(10), op("add", "Add", "f32", 2))
    return side("all-ops", ops, [layer("a", "qdq"), layer("b", "qdq")], 60, light=light)


def test_quantizing_every_op_type_costs_the_conversions():
    """Ten Q/DQ of 3 µs that the reference does not have."""
    found = first(evidence(all_ops({"Add": 2, "Sigmoid": 1})))
    assert (found.key, found.lost_s) == ("all-ops-qdq", pytest.approx(30 * US))
    assert any("2 Add" in line for line in found.evidence)


def test_conversions_without_light_ops_in_the_file_are_not_called_all_ops():
    """The same ten Q/DQ where only ops with weights were quantized are merely conversions."""
    assert keys(evidence(all_ops({}))) == ["conversions"]


def unfused(**more):
    ops = (op("a", "Conv", "f32", 55, "a"), op("b", "Conv", "f32", 50, "b"), *quantizers(4))
    return side("int8-static", ops, [layer("a", "qdq"), layer("b", "qdq")], 120, **more)


def test_quantized_layers_that_run_in_float_are_unfused():
    """(55 + 50) − (40 + 40) µs and four Q/DQ of 3 µs."""
    found = first(evidence(unfused()))
    assert (found.key, found.lost_s) == ("qdq-unfused", pytest.approx(37 * US))
    assert any(line.startswith("2 of 2 quantized layers") for line in found.evidence)


def test_weights_left_in_float_are_to_be_quantized_with_an_option_that_does_so():
    """The default op types are what left them: the same recipe again would change nothing, nor would leaving them out."""
    layers = [replace(layer("a", "activations"), op_type="ConvTranspose"), layer("b", "qdq")]
    ops = (op("a", "ConvTranspose", "f32", 55, "a"), op("b", "QLinearConv", "i8", 20, "b"), *quantizers(4))
    found = first(evidence(side("int8-static{per_channel=true}", ops, layers, 120)))
    assert found.key == "qdq-unfused"
    assert "op_types=Conv|ConvTranspose|Gemm|MatMul" in found.advice[0]
    assert not any("skip=" in line for line in found.advice)


def test_the_option_that_leaves_layers_out_is_named_with_the_step_that_has_it():
    """Not the first step of several."""
    (advice,) = first(evidence(replace(unfused(), variant="prune-channels{ratio=0.3}+int8-static"))).advice
    assert "skip=NAME|NAME of int8-static" in advice


def test_switched_off_optimisation_is_named():
    """The advice is then one option, not another quantizer."""
    found = first(evidence(unfused(options={"opt": "basic"}, backend="ort{opt=basic}")))
    assert "opt=basic" in found.advice[0]


def test_all_ops_explains_what_was_not_fused():
    """One cause and not two for the same microseconds."""
    ops = (op("a", "Conv", "f32", 55, "a"), op("b", "Conv", "f32", 50, "b"), *quantizers(10))
    made = side("all-ops", ops, [layer("a", "qdq"), layer("b", "qdq")], 140, light={"Add": 3})
    assert keys(evidence(made)) == ["all-ops-qdq"]


def per_tensor(levels, change):
    layers = [layer("a", "qdq", weakest_levels=levels), layer("b", "qdq", weakest_levels=40)]
    return evidence(replace(GOOD, file=replace(GOOD.file, layers=tuple(layers))), accuracy_change=change)


def test_a_collapse_is_a_cause_of_quality_and_comes_first():
    """A variant that answers wrong is not worth its speed."""
    found = first(per_tensor(1, -0.4))
    assert (found.key, found.kind, found.lost_s) == ("per-tensor-collapse", "quality", None)
    assert any("-40.0 points" in line for line in found.evidence)


@pytest.mark.parametrize(("levels", "change"), [(1, -0.01), (1, None), (30, -0.4), (None, -0.4)])
def test_no_collapse_without_both_a_drop_and_weak_channels(levels, change):
    """Weak channels that cost nothing are harmless; a drop without them has another cause."""
    assert "per-tensor-collapse" not in keys(per_tensor(levels, change))


def test_nothing_quantized_is_decisive_and_bounded_by_the_instructions():
    """80 µs of products, at most 4 times faster with VNNI: 60 µs."""
    mine = side("int8-static", REFERENCE_OPS, [layer("a"), layer("b")], 85, changed=False, equal_to="fp32")
    found = first(evidence(mine))
    assert (found.key, found.decisive, found.lost_s) == ("nothing-quantized", True, pytest.approx(60 * US))
    # The same bytes loaded with another precision are another case.
    assert "nothing-quantized" not in keys(evidence(replace(mine, options={"precision": "bf16"})))


def test_float8_that_a_processor_cannot_multiply_in_is_told_and_no_unfused_int8():
    """The conversions around it are what it costs; that they were not fused is no separate cause."""
    ops = [op(name, "Conv", "f32", 40, name) for name in "ab"] + [op("q", "DequantizeLinear", "conversion", 30)]
    found = evidence(side("fp8", ops, [layer("a", "f8"), layer("b", "f8")], 115))
    assert keys(found)[0] == "precision-not-realised"
    assert "qdq-unfused" not in keys(found)
    assert "float8" in " ".join(first(found).evidence + first(found).advice)


def avx2(**more):
    ops = [op(name, "Convolution", "i8", 20, name, kernel="jit_avx2_I8") for name in "ab"]
    return evidence(side("int8-static", ops, [layer("a", "qdq"), layer("b", "qdq")], 45, backend="ov"), **more)


def test_kernels_below_the_processor_are_a_limit_and_measured_without_it():
    """The median of the differences of goes that took turns."""
    again = Counterfactual(
        "isa", "ONEDNN_MAX_CPU_ISA=DEFAULT", (30 * US, 60 * US, 31 * US), (45 * US, 90 * US, 45 * US)
    )
    found = first(avx2(machine=machine(switches={"ONEDNN_MAX_CPU_ISA": "AVX2"}), counterfactuals=(again,)))
    assert (found.key, found.lost_s) == ("isa-limited", pytest.approx(15 * US))
    assert found.advice == ("unset ONEDNN_MAX_CPU_ISA",)


def test_what_was_measured_to_cost_nothing_is_still_told_and_last():
    """A disturbance of the measurement without it makes its loss nothing; the switch is set all the same."""
    again = Counterfactual("isa", "ONEDNN_MAX_CPU_ISA=DEFAULT", (330 * US,), (145 * US,))
    found = causes(avx2(machine=machine(switches={"ONEDNN_MAX_CPU_ISA": "AVX2"}), counterfactuals=(again,)))
    assert (found[-1].key, found[-1].lost_s) == ("isa-limited", 0.0)
    fewer = Counterfactual("threads", "2 threads", (330 * US,), (145 * US,))
    assert "thread-contention" in keys(replace_threads(avx2(machine=machine(), counterfactuals=(fewer,)), 16))


def replace_threads(found, threads):
    return replace(found, variant=replace(found.variant, threads=threads))


def test_the_best_kernels_of_an_old_processor_are_no_limit():
    """But it has no dot product, and that is a fact."""
    found = evidence(avx2().variant, machine=machine(VNNI[:4]))
    (cause, *_) = causes(found)
    assert "isa-limited" not in keys(found)
    assert cause.key == "isa-without-dot-product"
    assert cause.lost_s == pytest.approx(40 * US * (1 - (4 / 3) / 4))
    assert any("reduce_range" in line for line in cause.advice)


@pytest.mark.parametrize(
    ("kernel", "isa"),
    [("brgconv_avx512_I8", "avx512"), ("brgemm_avx512_amx_i8", "amx"), ("jit_sse41_f32", "sse41"), ("gemm_mlas_f32", None),
     ("ref_i32", None), (None, None)],
)  # fmt: skip
def test_a_kernel_tells_its_instruction_set(kernel, isa):
    """By the parts of its name, the best of them."""
    assert kernel_isa(kernel) == isa


@pytest.mark.parametrize(
    ("isa", "peak"),
    [(("avx2",), 4 / 3), (("avx2", "avx_vnni"), 4), (("asimd", "asimddp"), 4), (("asimd", "i8mm"), 8), ((), 4 / 3)],
)
def test_what_int8_can_gain_follows_from_the_instructions(isa, peak):
    """Per instruction slot against a fused multiply-add."""
    assert int8_peak(isa) == pytest.approx(peak)


def placed(counts):
    details = {f"ops on {name}": str(count) for name, count in counts.items()}
    facts = SessionFacts("onnxruntime", "1", "CUDAExecutionProvider", None, None, "not told", details)
    return evidence(
        side("int8-static", None, [layer("a", "qdq"), layer("b", "qdq")], 300, backend="ort:cuda", facts=facts)
    )


def test_ops_elsewhere_than_asked_are_a_fallback():
    """12 of 20 on the CPU, and no seconds are made up where the runtime tells none."""
    found = first(placed({"CUDAExecutionProvider": 8, "CPUExecutionProvider": 12}))
    assert (found.key, found.lost_s) == ("provider-fallback", None)
    assert found.title.startswith("12 of 20 ops")
    assert causes(placed({"CUDAExecutionProvider": 20})) == ()


@pytest.mark.parametrize(
    ("kind", "key"), [("unavailable", "provider-fallback"), ("mismatch", "provider-fallback"), ("crash", "failed")]
)
def test_a_case_that_never_ran_has_one_cause_with_the_runtimes_words(kind, key):
    """And nothing is said about ops that nobody saw."""
    (found,) = causes(evidence(replace(GOOD, wall_s=(), ops=None), failure=(kind, "no CUDA here")))
    assert (found.key, found.decisive, found.evidence) == (key, True, ("no CUDA here",))


def test_more_threads_than_cores_contend_by_what_fewer_take():
    """Decisive when it costs a tenth."""
    mine = replace(GOOD, threads=16)
    again = Counterfactual("threads", "2 threads", (20 * US,), (30 * US,))
    found = first(evidence(mine, counterfactuals=(again,)))
    assert (found.key, found.decisive, found.lost_s) == ("thread-contention", True, pytest.approx(10 * US))
    assert not first(evidence(mine)).decisive
    assert keys(evidence(replace(mine, threads=2))) == []


def half(precision, stored="f16", **more):
    ops = [*REFERENCE_OPS, op("c", "Cast", "conversion", 7), op("m", "Max", "f32", 3)]
    facts = SessionFacts("onnxruntime", "1", "CPUExecutionProvider", 1, precision)
    return evidence(side("fp16", ops, [layer("a", stored), layer("b", stored)], 95, facts=facts, **more))


def test_half_precision_that_ran_in_float_costs_casts_and_lost_fusions():
    """7 µs of casts and 3 µs of an op that was fused before."""
    found = first(half({"f32": 4, "conversion": 1}))
    assert (found.key, found.lost_s) == ("precision-not-realised", pytest.approx(10 * US))
    assert "precision-not-realised" not in keys(half({"f16": 3, "f32": 1}))


def test_a_hint_that_was_ignored_is_told():
    """bf16 asked for, f32 ran; ops that do not tell their precision are no proof."""
    asked = {"options": {"precision": "bf16"}, "stored": "float"}
    assert "precision-not-realised" in keys(half({"f32": 4}, **asked))
    assert "precision-not-realised" not in keys(half({"f32": 2, "undetermined": 1}, **asked))


def tiny(macs, wall_us=8):
    layers = [layer("a", macs=macs), layer("b", macs=macs)]
    reference = side("fp32", [op("a", "Conv", "f32", 2, "a"), op("b", "Conv", "f32", 2, "b")], layers, wall_us)
    mine = side(
        "int8-static", [op("a", "QLinearConv", "i8", 1, "a"), op("b", "QLinearConv", "i8", 1, "b")], layers, wall_us
    )
    return evidence(mine, reference)


def test_a_model_without_arithmetic_is_tiny():
    """192 multiplications take 0.04 µs of 8: all the rest is fixed cost."""
    found = first(tiny(96))
    assert (found.key, found.lost_s) == ("tiny-model", pytest.approx(8 * US - 192 / 5e9))
    assert "tiny-model" not in keys(tiny(1_000_000))
    assert "tiny-model" not in keys(tiny(None))


def weight_only(**more):
    ops = [op(name, "MatMulNBits", "int4-weight", 60, name) for name in "ab"]
    return evidence(side("int4-weight", ops, [layer("a", "weight-only"), layer("b", "weight-only")], 125), **more)


def test_weight_only_gains_nothing_where_weights_are_cached():
    """120 − 80 µs; the float weights fit into the cache."""
    found = first(weight_only())
    assert (found.key, found.certainty, found.lost_s) == ("not-memory-bound", "estimate", pytest.approx(40 * US))


def test_ops_that_wait_for_weights_are_memory_bound():
    """100 MB of weights at 20 GB/s are 5 ms of 6."""
    big = [layer(name, "qdq", weight_bytes=50_000_000, macs=50_000_000) for name in "ab"]
    ops = [op(name, "QGemm", "i8", 3000, name) for name in "ab"]
    reference = side("fp32", [op(name, "Gemm", "f32", 9000, name) for name in "ab"], big, 18_000)
    found = first(evidence(side("int8-static", ops, big, 6000), reference))
    assert (found.key, found.lost_s) == ("memory-bound", pytest.approx(1e-3))


def test_plain_kernels_are_named_unless_the_reference_has_them_too():
    """`ref_` kernels of the same op type on both sides explain no difference."""
    slow = op("g", "Interpolate", "i8", 30, kernel="ref_i8")
    mine = replace(GOOD, ops=(*GOOD_OPS, slow))
    assert "reference-kernels" in keys(evidence(mine))
    reference = side("fp32", (*REFERENCE_OPS, slow), [layer("a"), layer("b")], 115)
    assert "reference-kernels" not in keys(evidence(mine, reference))


def test_layers_left_in_float_are_bounded_by_the_instructions():
    """40 µs of float beside int8: at most 30 µs with VNNI."""
    ops = (op("a", "QLinearConv", "i8", 12, "a"), op("b", "Conv", "f32", 40, "b"))
    found = first(evidence(side("int8-static", ops, [layer("a", "qdq"), layer("b")], 55)))
    assert (found.key, found.lost_s) == ("left-float", pytest.approx(30 * US))


def test_channels_that_do_not_fill_the_lanes_gain_less():
    """b has 1 input channel and takes as long as before; a gains 4 times."""
    layers = [layer("a", "qdq"), layer("b", "qdq", in_channels=1)]
    reference = side("fp32", REFERENCE_OPS, [layer("a"), layer("b", in_channels=1)], 85)
    ops = (op("a", "QLinearConv", "i8", 10, "a"), op("b", "QLinearConv", "i8", 40, "b"))
    found = first(evidence(side("int8-static", ops, layers, 55), reference))
    assert (found.key, found.lost_s) == ("small-shapes", pytest.approx(30 * US))


def test_full_layers_that_are_slower_are_named_with_their_time():
    """50 against 40 µs."""
    ops = (op("a", "QLinearConv", "i8", 10, "a"), op("b", "QLinearConv", "i8", 50, "b"))
    found = first(evidence(side("int8-static", ops, [layer("a", "qdq"), layer("b", "qdq")], 65)))
    assert (found.key, found.lost_s) == ("slower-kernels", pytest.approx(10 * US))


def test_facts_stand_before_estimates_and_small_things_last():
    """Threads of unknown cost are a fact; the slower layer is an estimate, though a larger one."""
    ops = (op("a", "QLinearConv", "i8", 10, "a"), op("b", "QLinearConv", "i8", 50, "b"))
    made = side("int8-static", ops, [layer("a", "qdq"), layer("b", "qdq")], 65, threads=4)
    assert keys(evidence(made)) == ["thread-contention", "slower-kernels"]
    hardly = Counterfactual("threads", "2 threads", (64 * US,), (65 * US,))
    assert keys(evidence(made, counterfactuals=(hardly,))) == ["slower-kernels", "thread-contention"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(1.5e-3, "1.5 ms"), (12.34e-6, "12.3 µs"), (1e-19, "0 µs"), (0.0, "0 µs")]
)
def test_durations_are_shown_in_three_digits(seconds, text):
    """What floating-point sums leave is nothing."""
    assert shown(seconds) == text
