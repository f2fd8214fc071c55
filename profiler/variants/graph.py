"""The same numbers from a simpler graph: dead ends removed, constants folded, patterns merged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import onnx
from onnx import ModelProto

from profiler.errors import VariantError
from profiler.onnx_io import canonical, clone, count_ops, opset_of, walk_nodes, write_model
from profiler.variants.base import Calibration, Fact, Recipe, VariantResult
from profiler.variants.preparing import EQUAL_COSINE, quiet
from profiler.variants.running import cosine, ensure_loads, probe, scratch, short


@dataclass(frozen=True)
class Graph(Recipe):
    """onnxslim, then ONNX Runtime's offline optimization.

    `level=portable` keeps to standard ops, so every backend can load the result. `level=ort` adds the extended fusions,
    whose ops of the com.microsoft domain only ONNX Runtime knows.
    """

    name: ClassVar[str] = "graph"

    level: Literal["portable", "ort"] = "portable"

    def apply(self, model: ModelProto, calibration: Calibration | None) -> VariantResult:
        """Simplify; the result is refused when its outputs differ from the model's."""
        notes: list[str] = []
        result = self._checked(model, self._slim(model, notes), calibration, "onnxslim", notes)
        result = self._checked(result, self._optimize(result, notes), calibration, "ONNX Runtime's optimizer", notes)
        ensure_loads(result, self.text)
        before, after = count_ops(model), count_ops(result)
        facts: dict[str, Fact] = {
            "ops_before": before.total() - before["Constant"],
            "ops_after": after.total() - after["Constant"],
            "opset": opset_of(result),
        }
        changed = _bytes(result) != _bytes(model)
        if not changed:
            notes.append("nothing was simplified: the graph is as it was.")
        return VariantResult(result, facts, tuple(notes), changed=changed)

    def _slim(self, model: ModelProto, notes: list[str]) -> ModelProto:
        import onnxslim

        try:
            with quiet():
                slimmed = onnxslim.slim(clone(model))
        except Exception as error:  # noqa: BLE001 (onnxslim raises many unrelated types)
            notes.append(f"onnxslim failed and was left out: {short(error, 120)}.")
            return model
        return slimmed if isinstance(slimmed, ModelProto) else model

    def _optimize(self, model: ModelProto, notes: list[str]) -> ModelProto:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = 4
        levels = ort.GraphOptimizationLevel
        portable = self.level == "portable"
        options.graph_optimization_level = levels.ORT_ENABLE_BASIC if portable else levels.ORT_ENABLE_EXTENDED
        with scratch() as folder:
            target = folder / "optimized.onnx"
            options.optimized_model_filepath = str(target)
            source = write_model(model, folder / "in")
            if len(list(source.parent.iterdir())) > 1:
                options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "out.data")
            try:
                ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
                optimized = onnx.load(str(target))
            except Exception as error:  # noqa: BLE001 (ONNX Runtime raises many unrelated types)
                notes.append(f"ONNX Runtime's optimizer failed and was left out: {short(error, 120)}.")
                return model
        foreign = {node.domain for node in walk_nodes(optimized)} - {node.domain for node in walk_nodes(model)}
        if portable and foreign - {"", "ai.onnx"}:
            notes.append(f"ONNX Runtime's optimizer brought ops of {', '.join(sorted(foreign))} and was left out.")
            return model
        return canonical(optimized)

    def _checked(
        self, before: ModelProto, after: ModelProto, calibration: Calibration | None, who: str, notes: list[str]
    ) -> ModelProto:
        """`after` unless it answers differently from `before`."""
        if after is before:
            return before
        agree = cosine(before, after, probe(before, calibration))
        if agree is None:
            notes.append(f"the outputs after {who} could not be compared: no calibration data that fit.")
        elif agree < EQUAL_COSINE:
            notes.append(f"{who} changed the outputs (cosine {agree:.4f}) and was left out.")
            return before
        return after


def _bytes(model: ModelProto) -> bytes:
    try:
        data: bytes = canonical(model).SerializeToString(deterministic=True)
    except Exception as error:
        raise VariantError(f"the simplified model cannot be serialized: {short(error)}.") from error
    return data
