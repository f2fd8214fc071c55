"""NNCF's post-training quantization, Intel's second opinion: the same kind of file as `int8-static`, made by another engine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import metadata
from typing import Any, ClassVar, Literal

from onnx import ModelProto, NodeProto

from profiler.data.feeding import rows_fed
from profiler.errors import VariantError
from profiler.onnx_io import clone, count_ops, opset_of
from profiler.variants.base import Calibration, Fact, Recipe, VariantResult, expect
from profiler.variants.int8_static import WEIGHTED
from profiler.variants.loading import loading_facts
from profiler.variants.openvino_judge import judge_openvino
from profiler.variants.preparing import judged, prepare, quiet, tally, unchanged
from profiler.variants.running import batches, ensure_runs, short
from profiler.variants.selection import aliases

INSTALL = "pip install 'edgeprof[nncf]'"
SMOOTH_ALPHA = 0.95
"""NNCF's own for matrix products (`AdvancedSmoothQuantParameters`)."""
OFF = -1.0
NO_TELEMETRY = "NNCF_CI"
"""Environment variable that NNCF knows (`nncf.definitions`); nothing but telemetry depends on it."""
MOVING = ("Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
"""Ops that give their first input on as it is."""


@dataclass(frozen=True)
class Nncf(Recipe):
    """`nncf.quantize` on the ONNX model: Q/DQ pairs placed by NNCF's rules for Intel CPUs, with bias correction.

    It quantizes the inputs of elementwise additions too, so that a residual block stays int8 from end to end; `int8-static`
    by default does not. The rest of its rules: docs.openvino.ai, "Basic Quantization Flow".
    """

    name: ClassVar[str] = "nncf"
    needs_calibration: ClassVar[bool] = True

    preset: Literal["auto", "performance", "mixed"] = "auto"
    """`performance`: symmetric weights and activations; `mixed`: asymmetric activations where they help; `auto`: NNCF's own
    choice, `mixed` for transformers and `performance` for the others."""
    model_type: Literal["none", "transformer"] = "none"
    """`transformer` keeps some products in float and scales activations into weights (SmoothQuant)."""
    fast_bias_correction: bool = True
    """false: each layer's bias is corrected on the already quantized layers below it. More accurate and far slower."""
    subset: int = 300
    """Most calibration rows that are run."""
    ignored: tuple[str, ...] = ()
    """Op types that stay float, or nodes by name in the prepared model or as `Conv:12` (the 13th Conv)."""
    smooth_quant_alpha: float = SMOOTH_ALPHA
    """How much of the activations' range moves into weights, 0 to 1; -1: none. Counts only for transformers."""

    def __post_init__(self) -> None:
        """Check the options; raises StudyError."""
        expect(self, "subset", self.subset >= 1, "at least 1")
        alpha = self.smooth_quant_alpha
        expect(self, "smooth_quant_alpha", alpha == OFF or 0 <= alpha <= 1, "a number from 0 to 1, or -1 for none")
        fits = alpha == SMOOTH_ALPHA or self.model_type == "transformer"
        expect(self, "smooth_quant_alpha", fits, "model_type=transformer beside it")

    def content_key(self) -> str | None:
        """NNCF's version, which decides the result as much as the options do; None where it is missing."""
        try:
            return f"nncf {metadata.version('nncf')}"
        except metadata.PackageNotFoundError:
            return None

    def apply(self, model: ModelProto, calibration: Calibration | None) -> VariantResult:
        """Quantize. Raises VariantError without nncf, without calibration rows, for ignored names that the model does not
        have, and when no runtime loads the result.
        """
        engine, version = _engine(self.text)
        if not calibration:
            raise VariantError(f"{self.text} needs calibration data: give --data or --calibration.")
        prepared, notes = prepare(model, calibration)
        names = self._ignored_names(prepared)
        feeds = list(batches(prepared, calibration, self.subset))
        try:
            with quiet():
                result: ModelProto = engine.quantize(
                    clone(prepared), engine.Dataset(feeds), **self._options(engine, len(feeds), names)
                )
        except Exception as error:
            raise VariantError(f"{self.text}: NNCF {version} could not quantize the model: {short(error)}.") from error
        counts = count_ops(result)
        if not counts["DequantizeLinear"]:
            return unchanged(model, "NNCF left every op as it was")
        done, around = _on_int8(result)
        facts: dict[str, Fact] = {
            "ops_quantized": len(done),
            "ops_left_float": sum(counts[op] for op in WEIGHTED) - len(done),
            "quantized": tally(done),
            "others_on_int8": tally(around) or None,
            "calibration_rows": sum(rows_fed(calibration, row) for row in feeds),
            "opset": opset_of(result),
            "nncf": version,
        }
        facts.update(loading_facts(result, self.text, notes))
        if "ort" not in str(facts.get("refused_by") or ""):
            notes += ensure_runs(model, result, calibration, self.text)
        judged(model, result, calibration, facts, notes)
        judge_openvino(model, result, calibration, facts, notes)
        return VariantResult(result, facts, tuple(notes), changed=True)

    def _options(self, engine: Any, feeds: int, ignored: list[str]) -> dict[str, Any]:
        """Arguments of `nncf.quantize`; what is at NNCF's default is left to it."""
        presets = {
            "auto": None,
            "performance": engine.QuantizationPreset.PERFORMANCE,
            "mixed": engine.QuantizationPreset.MIXED,
        }
        options: dict[str, Any] = {
            "preset": presets[self.preset],
            "subset_size": feeds,
            "fast_bias_correction": self.fast_bias_correction,
            "model_type": engine.ModelType.TRANSFORMER if self.model_type == "transformer" else None,
        }
        if ignored:
            options["ignored_scope"] = engine.IgnoredScope(names=ignored)
        if self.smooth_quant_alpha != SMOOTH_ALPHA:
            # Convolutions are not smoothed unless asked (`convolution=-1`), in NNCF's defaults as here.
            alphas = engine.AdvancedSmoothQuantParameters(matmul=self.smooth_quant_alpha)
            options["advanced_parameters"] = engine.AdvancedQuantizationParameters(smooth_quant_alphas=alphas)
        return options

    def _ignored_names(self, model: ModelProto) -> list[str]:
        """Names of the nodes that `ignored` means, in the model's order."""
        nodes = list(model.graph.node)  # NNCF does not enter branches
        short_forms = aliases(model)
        known = {*short_forms, *(node.name for node in nodes), *(node.op_type for node in nodes)}
        for wanted in self.ignored:
            if wanted not in known:
                near = get_close_matches(wanted, sorted(known), n=3)
                meant = f" Did you mean {' or '.join(near)}?" if near else ""
                raise VariantError(f"{self.text}: the prepared model has no node or op type '{wanted}'.{meant}")
        named = {short_forms.get(wanted, wanted) for wanted in self.ignored}
        return [node.name for node in nodes if {node.name, node.op_type} & named]


def _engine(what: str) -> tuple[Any, str]:
    before = os.environ.get(NO_TELEMETRY)
    # NNCF reports each call to its makers (Google Analytics) without asking. Whoever profiles here didn't agree to that.
    os.environ[NO_TELEMETRY] = "1"
    try:
        # Its banner and its deprecation warnings are not ours to show.
        with quiet():
            import nncf
    except ImportError as error:
        raise VariantError(f"{what} needs nncf, which is not installed ({error}): {INSTALL}.") from error
    finally:
        # It looks once, while it is imported.
        if before is None:
            del os.environ[NO_TELEMETRY]
        else:
            os.environ[NO_TELEMETRY] = before
    return nncf, str(nncf.__version__)


def _on_int8(model: ModelProto) -> tuple[list[NodeProto], list[NodeProto]]:
    """Weighted nodes with both inputs from DequantizeLinear, and the other nodes with their first input from there.

    NNCF moves pairs up through ops that only move values, which runtimes see through: so does this.
    """
    made = {name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    done: list[NodeProto] = []
    around: list[NodeProto] = []
    for node in model.graph.node:  # in topological order
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") or not node.input or node.input[0] not in made:
            continue
        if node.op_type in MOVING:
            made.update(node.output)
        elif node.op_type not in WEIGHTED:
            around.append(node)
        elif {*node.input[:2]} <= made:
            done.append(node)
    return done, around
