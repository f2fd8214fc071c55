"""Variants suggested for a backend and processor: they exist, fit the processor, and say why."""

from __future__ import annotations

import pytest

from backends import spec
from profiler.variants import recipes as suggested
from profiler.variants.base import from_options
from profiler.variants.int8_static import Int8Static

BACKENDS = ("ort", "ort:CUDA", "ov", "trt")
FLAGS = {"vnni": ("avx2", "AVX512_VNNI"), "none": ("avx2",)}


def statics(found):
    return [from_options(Int8Static, spec.parse(s.text).options) for s in found if s.text.startswith("int8-static")]


@pytest.mark.parametrize("kind", ["cnn", "mlp"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("isa", FLAGS)
def test_each_suggestion_is_canonical_and_reasoned(kind, backend, isa, cnn, mlp):
    """Texts parse back to themselves, none stands twice, reasons are sentences with a source."""
    found = suggested.recipes(cnn if kind == "cnn" else mlp, backend, FLAGS[isa])

    assert found
    assert len({one.text for one in found}) == len(found)
    assert [one.text for one in found if one.text.startswith("int8-static")] == [v.text for v in statics(found)]
    assert all(one.reason.endswith(".") and one.source for one in found)


def test_seven_bit_weights_are_for_x86_without_vnni_only(cnn):
    """Saturation is a matter of one instruction; elsewhere the eighth bit is accuracy for free."""

    def reduced(isa, machine):
        return {variant.reduce_range for variant in statics(suggested.recipes(cnn, "ort", isa, machine))}

    assert reduced(FLAGS["vnni"], "x86_64") == {False}
    assert reduced(FLAGS["none"], "x86_64") == {True}
    assert reduced((), "aarch64") == {False}


def test_arm_and_tensorrt_get_signed_activations(cnn):
    """And TensorRT no quantized biases."""
    arm = statics(suggested.recipes(cnn, "ort", (), "aarch64"))
    tensorrt = statics(suggested.recipes(cnn, "trt", ()))

    assert all(variant.symmetric_activations for variant in arm + tensorrt)
    assert not any(variant.quantize_bias for variant in tensorrt)


def test_onnx_runtime_keeps_convolution_outputs_in_int8(cnn, mlp):
    """Without a QuantizeLinear behind it, a convolution is not fused there."""
    for model in (cnn, mlp):
        assert all("Conv" not in variant.float_outputs for variant in statics(suggested.recipes(model, "ort", ())))


def test_nothing_fits_a_model_without_products(elementwise):
    """No suggestion is better than a useless one."""
    assert suggested.recipes(elementwise, "ort", ()) == []
