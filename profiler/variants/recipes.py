"""Which eight-bit variants are worth trying on a backend and processor, and why; what no other choice can beat is left out."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from onnx import ModelProto

from backends import spec
from profiler.onnx_io import count_ops

ORT_DOCS = "onnxruntime.ai/docs/performance/model-optimizations/quantization.html"
TRT_DOCS = "docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-quantized-types.html"
TRT_RESIDUAL = (
    "docs.nvidia.com/deeplearning/tensorrt/tensorflow-quantization-toolkit/docs/docs/add_custom_qdq_cases.html"
)
NNCF_PRESET = (
    "nncf/quantization/algorithms/min_max/algorithm.py: preset of a transformer is mixed, of others performance"
)
SEEN = "counted in the runtime's own optimised model, docs/quantization.md"

VNNI = ("avx512_vnni", "avx_vnni", "avx512vnni", "avxvnni", "amx_int8")
"""Names of the instructions that multiply u8 by s8 and add into 32 bits, as Linux and the runtimes write them."""


@dataclass(frozen=True)
class Suggestion:
    """One variant worth trying."""

    text: str
    """The variant's text form."""
    reason: str
    """One sentence."""
    source: str
    """Where the claim comes from."""


def recipes(model: ModelProto, backend: str, isa: Collection[str], machine: str = "x86_64") -> list[Suggestion]:
    """Eight-bit variants for `model` on `backend` (`ort`, `ov`, `trt`), the likeliest winner first; empty when nothing fits.

    `isa`: the processor's instruction sets (flags of /proc/cpuinfo, any case). `machine` as `platform.machine()` says it.
    """
    counts = count_ops(model)
    convs, products = counts["Conv"] + counts["ConvTranspose"], counts["MatMul"] + counts["Gemm"]
    if not convs + products:
        return []
    transformer = counts["MatMul"] > counts["Conv"]
    family = spec.parse(backend).name
    if family == "trt":
        return _tensorrt(transformer, counts["Add"] > 0 and convs > 0)
    x86 = machine.lower() in ("x86_64", "amd64", "i686")
    fast = {name.lower() for name in isa} & set(VNNI) or not x86
    if family == "ov":
        return _openvino(transformer, bool(fast))
    return _onnxruntime(transformer, bool(fast), x86)


def _static(*options: str) -> str:
    return f"int8-static{{{','.join(sorted(options))}}}"


def _onnxruntime(transformer: bool, fast: bool, x86: bool) -> list[Suggestion]:
    base = ["per_channel=true"]
    if not x86:
        base.append("symmetric_activations=true")
    elif not fast:
        base.append("reduce_range=true")
    why = (
        "signed activations and weights are what ONNX Runtime's documentation tries first, and no sums saturate on ARM"
        if not x86
        else "7-bit weights cannot saturate the 16-bit sums of processors without VNNI"
        if not fast
        else "with VNNI, products of u8 and s8 add up in 32 bits, so all 8 bits are usable"
    )
    if transformer:
        outputs = "float_outputs=Gemm|MatMul"
        return [
            Suggestion(
                _static(*base, outputs, "smooth=0.5"),
                f"{why}; outputs that feed float ops stay float, and outliers behind normalizations move into the weights.",
                f"{ORT_DOCS}; {SEEN}; Xiao et al. 2023",
            ),
            Suggestion(
                _static(*base, outputs),
                "products read int8 and write float with their bias in one kernel, without a quantize and dequantize between.",
                SEEN,
            ),
            Suggestion(
                "int8-dynamic", "ranges per inference are more exact, at a pass over each activation.", ORT_DOCS
            ),
            Suggestion(
                "int8-weight",
                "a quarter of the weights' memory at next to no loss, and faster where memory is what limits.",
                SEEN,
            ),
        ]
    return [
        Suggestion(
            _static(*base, "bias_correction=true"),
            f"{why}; one scale per channel for depthwise weights, and mean shifts taken off the biases, cost no time.",
            f"{ORT_DOCS}; Nagel et al. 2019",
        ),
        Suggestion(
            _static(*base, "bias_correction=true", "op_types=Add|Conv|Gemm|MatMul"),
            "a residual sum whose result feeds a float op stays int8 too, and its Relu with it.",
            SEEN,
        ),
        Suggestion(
            _static(*base, "bias_correction=true", "calibration=mse"),
            "clipping rare outliers leaves finer steps for the rest, at the same speed.",
            "Banner et al. 2019",
        ),
    ]


def _openvino(transformer: bool, fast: bool) -> list[Suggestion]:
    base = ["float_outputs=Conv|Gemm|MatMul", "per_channel=true", *([] if fast else ["reduce_range=true"])]
    if transformer:
        return [
            Suggestion(
                _static(*base, "smooth=0.5"),
                "asymmetric u8 activations suit normalizations and GELU, and quantized outputs would cost a Convert per product.",
                f"{NNCF_PRESET}; {SEEN}",
            ),
            Suggestion(_static(*base), "the same without touching the normalizations.", SEEN),
            Suggestion(
                "int8-weight", "OpenVINO keeps int8 weights compressed and computes in its own precision.", SEEN
            ),
        ]
    return [
        Suggestion(
            _static(*base, "bias_correction=true"),
            "convolutions fuse the residual sum and Relu when only inputs of ops are quantized, as NNCF places them.",
            SEEN,
        ),
        Suggestion(
            _static(*base, "bias_correction=true", "op_types=Add|Conv|Gemm|MatMul"),
            "residual sums are quantized on both sides, which keeps what follows them in u8.",
            SEEN,
        ),
        Suggestion(
            _static(*base, "bias_correction=true", "symmetric_activations=true"),
            "NNCF's performance preset for convolutional models: no zero points.",
            NNCF_PRESET,
        ),
    ]


def _tensorrt(transformer: bool, residual: bool) -> list[Suggestion]:
    base = ["per_channel=true", "quantize_bias=false", "symmetric_activations=true"]
    found = [
        Suggestion(
            _static(*base, "float_outputs=Conv|Gemm|MatMul"),
            "TensorRT's scheme is symmetric; that biases stay in float is this variant's own advice, not tried here.",
            TRT_DOCS,
        ),
        Suggestion(
            "fp8+fp16" if transformer else "fp8{bias_correction=true}+fp16",
            "float8 products with the rest in half precision, on GPUs from compute capability 8.9 on; others refuse to build it.",
            TRT_DOCS,
        ),
    ]
    if residual:
        found.insert(
            0,
            Suggestion(
                _static(*base, "float_outputs=Conv|Gemm|MatMul", "op_types=Add|Conv|Gemm|MatMul"),
                "NVIDIA asks for Q/DQ on residual connections, without which int8 fusions are not the best; not tried here.",
                TRT_RESIDUAL,
            ),
        )
    return found
