"""What a variant is: a frozen recipe whose fields are its options, and whose text form parses back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, TypeVar, get_args, get_origin, get_type_hints, runtime_checkable

import numpy as np
import onnx
from numpy.typing import NDArray

from backends.spec import Spec
from profiler.errors import StudyError, unknown

Calibration = Mapping[str, NDArray[np.generic]]
"""Rows of representative input by input name, batch axis first; disjoint from the rows that are evaluated."""

Fact = str | int | float | bool | None

NOTHING_QUANTIZED = "nothing was quantized"


@dataclass(frozen=True)
class VariantResult:
    """What a recipe made of a model."""

    model: onnx.ModelProto
    facts: Mapping[str, Fact]
    """What it did, counted recursively through subgraphs."""
    notes: tuple[str, ...]
    """What a person should know; sentences."""
    changed: bool
    """False when the result computes what the input did because nothing in it fitted the recipe."""


@runtime_checkable
class Variant(Protocol):
    """A transformation recipe: a frozen dataclass whose fields are its options. Derive from `Recipe` to get `text`."""

    name: ClassVar[str]
    needs_calibration: ClassVar[bool]
    looks_at_calibration: ClassVar[bool]
    """Whether rows, when there are any, enter the result or its facts; decides whether the cache key holds them."""
    only_backends: ClassVar[tuple[str, ...] | None]
    """Backends that can run the result, or None for: any may try."""
    backend_options: ClassVar[Mapping[str, Mapping[str, str]]]
    """Load options by backend that belong to the recipe: `{"ov": {"precision": "bf16"}}`."""

    @property
    def text(self) -> str:
        """Canonical text, its name in records and on the command line: `int8-static{per_channel=true}`."""
        ...

    def content_key(self) -> str | None:
        """Hash of files that the recipe reads beside the model, for cache keys; None when there are none."""
        ...

    def apply(self, model: onnx.ModelProto, calibration: Calibration | None) -> VariantResult:
        """Make the variant. `model` is never modified. Raises VariantError when it cannot be made from this model."""
        ...


class Recipe:
    """Base of the variants here: the text form and the class facts, with their usual values."""

    name: ClassVar[str]
    needs_calibration: ClassVar[bool] = False
    looks_at_calibration: ClassVar[bool] = True
    only_backends: ClassVar[tuple[str, ...] | None] = None
    backend_options: ClassVar[Mapping[str, Mapping[str, str]]] = {}

    @property
    def text(self) -> str:
        """Canonical text: the options that differ from their defaults, so a new option keeps old texts valid."""
        options = {}
        for option in dataclasses.fields(self):  # type: ignore[arg-type]  # every recipe is a dataclass
            value = getattr(self, option.name)
            if value != option.default:
                options[option.name] = option_text(value)
        return str(Spec(self.name, None, options))

    def content_key(self) -> str | None:
        """None: the text says everything."""
        return None


V = TypeVar("V")


def from_options(recipe: type[V], options: Mapping[str, str]) -> V:
    """A recipe from its options as text.

    Raises StudyError that names the known options, the missing one, or the value that was expected.
    """
    name = getattr(recipe, "name", recipe.__name__)
    known = {option.name: option for option in dataclasses.fields(recipe)}  # type: ignore[arg-type]
    hints = get_type_hints(recipe)
    values: dict[str, Any] = {}
    for key, text in options.items():
        if key not in known:
            raise unknown(f"option of variant '{name}'", key, known)
        values[key] = _convert(text, hints[key], f"option '{key}' of variant '{name}'")
    for key, option in known.items():
        if key not in values and option.default is dataclasses.MISSING:
            example = option.metadata.get("example", "value")
            raise StudyError(f"variant '{name}' needs option '{key}', e.g. {name}{{{key}={example}}}.")
    return recipe(**values)


def required(example: str) -> Any:
    """An option without default; `example` stands in the message when it is missing."""
    return field(metadata={"example": example})


def expect(recipe: Recipe, option: str, holds: bool, expected: str) -> None:
    """Raise StudyError that shows the option's value and `expected`, unless `holds`."""
    if not holds:
        value = option_text(getattr(recipe, option))
        raise StudyError(f"option '{option}' of variant '{recipe.name}' is {value}, expected {expected}.")


def option_text(value: object) -> str:
    """An option's value as it stands in the text form."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "|".join(str(part) for part in value)
    return str(value)


def _convert(text: str, hint: Any, what: str) -> Any:
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        found = next((choice for choice in choices if str(choice) == text), None)
        if found is None:
            raise StudyError(f"{what} got '{text}', expected one of: {', '.join(map(str, choices))}.")
        return found
    if hint is bool:
        if text not in ("true", "false"):
            raise StudyError(f"{what} got '{text}', expected true or false.")
        return text == "true"
    if get_origin(hint) is tuple:
        parts = tuple(part for part in text.split("|") if part)
        if not parts:
            raise StudyError(f"{what} got '{text}', expected names joined by '|', e.g. Conv|MatMul.")
        return parts
    if hint in (int, float):
        try:
            number = hint(text)
        except ValueError:
            number = None
        # Python reads "nan", "inf" and "1_000" as numbers; nobody means them here.
        if number is None or "_" in text or not np.isfinite(number):
            expected = "a whole number" if hint is int else "a number"
            raise StudyError(f"{what} got '{text}', expected {expected}.")
        return number
    return text
