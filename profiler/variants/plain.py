"""The reference, and variants that change how the model is loaded instead of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from onnx import ModelProto

from profiler.onnx_io import clone, opset_of, weights_count
from profiler.variants.base import Calibration, Recipe, VariantResult


@dataclass(frozen=True)
class Fp32(Recipe):
    """The unmodified model: what all variants are paired against."""

    name: ClassVar[str] = "fp32"
    looks_at_calibration: ClassVar[bool] = False

    def apply(self, model: ModelProto, calibration: Calibration | None) -> VariantResult:  # noqa: ARG002 (the contract)
        """A copy."""
        return VariantResult(
            clone(model), {"weights": weights_count(model), "opset": opset_of(model)}, (), changed=False
        )


@dataclass(frozen=True)
class Bf16(Recipe):
    """Compute in bfloat16 where the backend has kernels for it.

    ONNX Runtime's CPU provider has none, so a rewritten file would run nowhere on CPUs; OpenVINO converts while it loads.
    The artifact is therefore the fp32 file and the recipe is a load option.
    """

    name: ClassVar[str] = "bf16"
    looks_at_calibration: ClassVar[bool] = False
    only_backends: ClassVar[tuple[str, ...] | None] = ("ov",)
    backend_options: ClassVar[Mapping[str, Mapping[str, str]]] = {"ov": {"precision": "bf16"}}

    def apply(self, model: ModelProto, calibration: Calibration | None) -> VariantResult:  # noqa: ARG002 (the contract)
        """A copy, with the option that makes the difference."""
        notes = (
            "the file is the fp32 model; the backend computes in bf16 because it is asked to when it loads.",
            "without bf16 instructions (AVX-512 BF16, AMX, Arm BF16) the backend may compute in fp32: see realised precision.",
        )
        return VariantResult(
            clone(model), {"weights": weights_count(model), "opset": opset_of(model)}, notes, changed=False
        )
