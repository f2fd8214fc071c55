"""Which variants of ours are measured, by model, in one place. The reference `fp32` is always there."""

from __future__ import annotations

from collections.abc import Mapping

PLAIN = ("bf16",)
"""Load options that both sides have: whoever uses OpenVINO as it is gets them."""

_ADDS = "op_types=Add|Conv|Gemm|MatMul"
_CONVOLUTIONS = (
    "int8-static{per_channel=true}",
    "int8-static{bias_correction=true,per_channel=true}",
    f"int8-static{{bias_correction=true,{_ADDS},per_channel=true}}",
    f"int8-static{{bias_correction=true,float_outputs=Conv|Gemm|MatMul,{_ADDS},per_channel=true}}",
)

CANDIDATES: Mapping[str, tuple[str, ...]] = {
    "mini-resnet": (
        *_CONVOLUTIONS,
        f"int8-static{{bias_correction=true,{_ADDS},per_channel=true,skip=Conv:0}}",
        f"prune-channels{{allocation=cost,ratio=0.3,round_to=16}}+int8-static{{bias_correction=true,{_ADDS},per_channel=true}}",
    ),
    "efficientnet-lite0": _CONVOLUTIONS,
    "magika": (
        "int8-static{per_channel=true}",
        "int8-static{bias_correction=true,per_channel=true}",
        "int8-static{calibration=mse,per_channel=true}",
        "int8-static{float_outputs=Gemm|MatMul,per_channel=true}",
    ),
    "minilm-sentiment": (
        "int8-dynamic",
        "int8-weight",
        "int8-static{float_outputs=Gemm|MatMul,per_channel=true}",
        "int8-static{float_outputs=Gemm|MatMul,per_channel=true,smooth=0.5}",
    ),
    "ppocr-det": _CONVOLUTIONS,
}
"""Ours by model. Texts as on the command line; searched ones are added with `--add`."""

BACKENDS = ("ort", "ov", "ov{precision=runtime}")
"""The last is OpenVINO left alone: on processors that have it, float ops run in bfloat16."""

TRANSFORMERS = ("minilm-sentiment",)
"""Models for which NNCF's documentation asks for `model_type=TRANSFORMER`."""
