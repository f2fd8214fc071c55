"""Errors for people: one base class (it lives in backends.errors, the lowest package that raises), few subclasses, good texts."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from backends.errors import EdgeprofError

__all__ = [
    "BudgetError",
    "DataError",
    "EdgeprofError",
    "ModelError",
    "StoreError",
    "StudyError",
    "TargetError",
    "VariantError",
    "unknown",
]


class StudyError(EdgeprofError):
    """What was asked cannot be done as asked: an unknown name, an impossible value, a contradiction."""


class BudgetError(StudyError):
    """The time budget ended before anything could be measured."""


class ModelError(EdgeprofError):
    """The model cannot be read, checked or exported."""


class DataError(EdgeprofError):
    """The data cannot be read, or does not fit the model or its labels."""


class VariantError(EdgeprofError):
    """A variant could not be made from this model."""


class TargetError(EdgeprofError):
    """A worker could not be started, died, hung or answered nonsense."""


class StoreError(EdgeprofError):
    """The run database cannot be opened, read or written."""


def unknown(kind: str, name: str, known: Iterable[str], *, hint: str = "") -> StudyError:
    """The error for an unknown name, with the near matches and the known ones."""
    names = sorted(known)
    near = get_close_matches(name, names, n=3, cutoff=0.5)
    suggestion = f" Did you mean {' or '.join(near)}?" if near else ""
    return StudyError(
        f"unknown {kind} '{name}'.{suggestion} Known: {', '.join(names) or 'none'}.{' ' + hint if hint else ''}"
    )
