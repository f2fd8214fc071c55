"""The same numbers from a simpler graph: dead ends removed, constants folded, patterns merged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import onnx
from onnx import ModelProto

from profiler.errors import VariantError
from profiler.models.initializers import as_constants
from profiler.models.interface import restore_interface
from profiler.onnx_io import canonical, clone, count_ops, model_inputs, opset_of, walk_nodes, write_model
from profiler.variants.base import Calibration, Fact, Recipe, VariantResult
from profiler.variants.preparing import quiet
from profiler.variants.running import (
    Arrays,
    answers,
    different_outputs,
    ensure_loads,
    outputs_for,
    probe,
    scratch,
    short,
)

PASSES = ("graph_fusion", "constant_folding", "subexpression_elimination", "weight_tying", "dead_node_elimination")
"""Passes of onnxslim that it can leave out, the ones that err most first."""


@dataclass(frozen=True)
class Graph(Recipe):
    """onnxslim, then ONNX Runtime's offline optimization.

    `level=portable` keeps to standard ops, so every backend can load the result. `level=ort` adds the extended fusions,
    whose ops of the com.microsoft domain only ONNX Runtime knows.
    """

    name: ClassVar[str] = "graph"

    level: Literal["portable", "ort"] = "portable"

    def apply(self, model: ModelProto, calibration: Calibration | None) -> VariantResult:
        """Simplify; a step whose result differs from the model, or cannot be compared with it, is taken back or done without
        the pass that breaks it. Inputs and outputs keep names, types and order.
        """
        notes: list[str] = []
        source = clone(model)
        as_constants(source)
        feeds = _feeds(source, calibration)
        result = self._slim(source, feeds, notes)
        optimized = self._optimize(result, notes)
        if optimized is not result:
            # These optimisations are those that ONNX Runtime does whenever it loads the file: without rows to compare on, the
            # result is what a user would run anyway.
            fault = _fault(result, optimized, feeds)
            if fault is None or fault.uncompared:
                result = optimized
            else:
                notes.append(f"ONNX Runtime's optimizer was left out: {fault.text}.")
        if (loading := ensure_loads(result, self.text)) is not None:
            notes.append(loading)
        before, after = count_ops(model), count_ops(result)
        facts: dict[str, Fact] = {
            "ops_before": before.total() - before["Constant"],
            "ops_after": after.total() - after["Constant"],
            "opset": opset_of(result),
        }
        changed = _bytes(result) != _bytes(source)
        if not changed:
            notes.append("nothing was simplified: the graph is as it was.")
        return VariantResult(result if changed else clone(model), facts, tuple(notes), changed=changed)

    def _slim(self, model: ModelProto, feeds: list[Arrays], notes: list[str]) -> ModelProto:
        """What onnxslim makes of `model`; without the first of its passes that has to be left out; else `model`."""
        reasons: list[str] = []
        for skipped in ((), *((name,) for name in PASSES), ("graph_fusion", "constant_folding")):
            try:
                slimmed = _slimmed(model, skipped)
            except Exception as error:  # noqa: BLE001 (onnxslim raises many unrelated types)
                reasons.append(f"it failed ({short(error, 120)})")
                continue
            changed = restore_interface(slimmed, model)
            fault = _fault(model, slimmed, feeds) if changed is None else _Fault(changed)
            if fault is None:
                if skipped:
                    notes.append(f"onnxslim went without {' and '.join(skipped)}: with it, {reasons[0]}.")
                return slimmed
            reasons.append(fault.text)
            if fault.uncompared:
                break
        notes.append(f"onnxslim was left out: {reasons[0]}.")
        return model

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
        if portable and len(optimized.graph.node) > len(model.graph.node):
            # Casts around ops without a kernel of that type here: other runtimes have one.
            notes.append("ONNX Runtime's optimizer added nodes and was left out.")
            return model
        foreign = {node.domain for node in walk_nodes(optimized)} - {node.domain for node in walk_nodes(model)}
        if portable and foreign - {"", "ai.onnx"}:
            notes.append(f"ONNX Runtime's optimizer brought ops of {', '.join(sorted(foreign))} and was left out.")
            return model
        return canonical(optimized)


def _slimmed(model: ModelProto, skipped: tuple[str, ...]) -> ModelProto:
    import onnxslim

    with quiet():
        slimmed = onnxslim.slim(clone(model), **({"skip_optimizations": list(skipped)} if skipped else {}))
    if not isinstance(slimmed, ModelProto):
        raise TypeError("it gave no model back")
    return slimmed


def _feeds(model: ModelProto, calibration: Calibration | None) -> list[Arrays]:
    """Feeds to compare on; several rows at once too, where the batch is dynamic: a simplifier may have counted on one.

    Empty when the model itself does not run on them.
    """
    feeds = probe(model, calibration)
    if answers(model, feeds[:1]) is None:
        return []
    inputs = model_inputs(model)
    if all(info.shape and not isinstance(info.shape[0], int) for info in inputs):
        several = (
            [{name: np.concatenate([array] * 2) for name, array in feeds[0].items()}]
            if len(feeds) == 1
            else [{name: np.concatenate([row[name] for row in feeds[:3]]) for name in feeds[0]}]
        )
        if answers(model, several) is not None:
            feeds = [*feeds, *several]
    return feeds


class _Fault(NamedTuple):
    """Why a result cannot stand for the model it was made from."""

    text: str
    uncompared: bool = False
    """Nothing is wrong with it as far as known: no rows fit the model, so nobody looked at its outputs."""


def _fault(before: ModelProto, after: ModelProto, feeds: list[Arrays]) -> _Fault | None:
    """What is wrong with `after`; None when it is valid and answers like `before`."""
    try:
        onnx.checker.check_model(after)
    except onnx.checker.ValidationError as error:
        return _Fault(f"the result is no valid model ({short(error, 120)})")
    except Exception as error:
        # Above 2 GB the checker cannot serialize: then loading decides.
        if not isinstance(error, ValueError):
            raise
    uncompared = _Fault(
        "its outputs could not be compared with the model's, as no rows fit: give --data", uncompared=True
    )
    if not feeds:
        return uncompared
    try:
        made = outputs_for(after, feeds)
    except Exception as error:  # noqa: BLE001 (ONNX Runtime raises many unrelated types)
        return _Fault(f"the result does not run where the model does ({short(error, 120)})")
    different = different_outputs(before, answers(before, feeds), made)
    if different is None:
        return uncompared
    return _Fault(different[0].text) if different else None


def _bytes(model: ModelProto) -> bytes:
    try:
        data: bytes = canonical(model).SerializeToString(deterministic=True)
    except Exception as error:
        raise VariantError(f"the simplified model cannot be serialized: {short(error)}.") from error
    return data
