"""Variants one after the other, written with a plus: `prune-channels{ratio=0.5}+int8-static{per_channel=true}`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, cast

from onnx import ModelProto

from backends.spec import split_steps
from profiler.errors import StudyError
from profiler.records import REFERENCE_VARIANT
from profiler.variants.base import Calibration, Fact, Variant, VariantResult
from profiler.variants.openvino_judge import OTHERWISE, judge_openvino
from profiler.variants.preparing import judged

MAX_STEPS = 4


@dataclass(frozen=True)
class Pipeline:
    """Recipes applied from left to right; each sees the model that the one before made. Made by `make_pipeline`."""

    steps: tuple[Variant, ...]

    name: ClassVar[str] = "pipeline"

    @property
    def text(self) -> str:
        """Canonical text: those of the steps, joined by plus signs."""
        return "+".join(step.text for step in self.steps)

    @property
    def needs_calibration(self) -> bool:
        """Whether any step does."""
        return any(step.needs_calibration for step in self.steps)

    @property
    def looks_at_calibration(self) -> bool:
        """Whether any step does."""
        return any(step.looks_at_calibration for step in self.steps)

    @property
    def only_backends(self) -> tuple[str, ...] | None:
        """The backends that can run every step's result; None when no step restricts them."""
        limits = [step.only_backends for step in self.steps if step.only_backends is not None]
        if not limits:
            return None
        return tuple(name for name in limits[0] if all(name in other for other in limits[1:]))

    @property
    def backend_options(self) -> Mapping[str, Mapping[str, str]]:
        """The load options of all steps together."""
        merged: dict[str, dict[str, str]] = {}
        for step in self.steps:
            for backend, options in step.backend_options.items():
                merged.setdefault(backend, {}).update(options)
        return merged

    def content_key(self) -> str | None:
        """Those of all steps together."""
        keys = [step.content_key() or "" for step in self.steps]
        return "+".join(keys) if any(keys) else None

    def apply(self, model: ModelProto, calibration: Calibration | None) -> VariantResult:
        """Apply the steps. Facts of step n are called `n.fact`; outputs are compared with those of the model given.

        Raises VariantError of the step that cannot be made. A step that changes nothing is said and the others go on.
        """
        result, changed = model, False
        facts: dict[str, Fact] = {}
        notes: list[str] = []
        for number, step in enumerate(self.steps, start=1):
            rows = calibration if step.looks_at_calibration or step.needs_calibration else None
            made = step.apply(result, rows)
            facts |= {f"{number}.{key}": value for key, value in made.facts.items()}
            notes += [f"{step.text}: {note}" for note in made.notes]
            # A load option changes how the file is run, not the file: it is no reason to leave the model before it.
            result, changed = made.model, changed or made.changed
        if not changed:
            return VariantResult(model, facts, tuple(notes), changed=False)
        judged(model, result, calibration, facts, notes)
        # What a step before has told is no longer true of the file.
        notes = [note for note in notes if OTHERWISE not in note]
        if any(node.op_type == "DequantizeLinear" for node in result.graph.node):
            judge_openvino(model, result, calibration, facts, notes)
        return VariantResult(result, facts, tuple(notes), changed=True)


def make_pipeline(text: str, make: Callable[[str], Variant]) -> Variant:
    """The variant of a text with plus signs; `make` makes one step. A text without them is `make(text)`.

    Raises StudyError for an empty step, for `fp32` as a step, for too many, and when no backend could run the result.
    """
    parts = split_steps(text)
    if len(parts) == 1:
        return make(text)
    if not all(parts):
        raise StudyError(f"variant '{text}' has an empty step: expected first+second, e.g. graph+int8-dynamic.")
    if len(parts) > MAX_STEPS:
        raise StudyError(f"variant '{text}' has {len(parts)} steps, at most {MAX_STEPS} are accepted.")
    steps = tuple(make(part) for part in parts)
    if any(step.text == REFERENCE_VARIANT for step in steps):
        raise StudyError(f"variant '{text}' holds {REFERENCE_VARIANT}, which changes nothing: leave it out.")
    pipeline = Pipeline(steps)
    if pipeline.only_backends == ():
        named = "; ".join(f"{step.text}: {', '.join(step.only_backends)}" for step in steps if step.only_backends)
        raise StudyError(f"variant '{text}' fits no backend, its steps are made for different ones ({named}).")
    # Its facts belong to the steps and so are properties, where the protocol speaks of class variables.
    return cast("Variant", pipeline)
