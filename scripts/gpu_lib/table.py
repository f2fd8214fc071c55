"""What was found on a GPU, as a page and as lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def page(results: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a section a step, what was skipped with its reason."""
    head = "# On a GPU\n\nWritten by `scripts/gpu_check`. Ratios: interleaved blocks of one process, range over rounds."
    parts = [head, *(f"## {result['step']}\n\n{_body(result['found'])}" for result in results)]
    return "\n\n".join(parts) + "\n"


def short(found: Mapping[str, Any]) -> str:
    """One line: what came, or why nothing did."""
    if "skipped" in found:
        return f"skipped, {found['skipped']}"
    inner = [value for value in found.values() if isinstance(value, Mapping)]
    skipped = sum("skipped" in value for value in inner)
    return f"{len(found) - skipped} found" + (f", {skipped} skipped" if skipped else "")


def _body(found: Mapping[str, Any]) -> str:
    if "skipped" in found:
        return f"Not measured: {found['skipped']}."
    nested = {name: value for name, value in found.items() if isinstance(value, Mapping)}
    if len(nested) != len(found):
        return "\n".join(f"- {name}: {_cell(value)}" for name, value in found.items())
    if all(
        isinstance(item, Mapping) and "skipped" not in value for value in nested.values() for item in value.values()
    ):
        return "\n\n".join(f"### {name}\n\n{_rows(value)}" for name, value in nested.items())
    return _rows(nested)


def _rows(found: Mapping[str, Any]) -> str:
    whole = {name: value for name, value in found.items() if isinstance(value, Mapping) and "skipped" not in value}
    columns = list(dict.fromkeys(key for value in whole.values() for key in value))
    lines = []
    if whole:
        lines += [f"| | {' | '.join(columns)} |", f"| --- {'| --- ' * len(columns)}|"]
        lines += [
            f"| {name} | {' | '.join(_cell(value.get(key)) for key in columns)} |" for name, value in whole.items()
        ]
    skipped = {
        name: value["skipped"] for name, value in found.items() if isinstance(value, Mapping) and "skipped" in value
    }
    lines += ["", *(f"- {name}: not measured, {why}" for name, why in skipped.items())] if skipped else []
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return "—"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_cell, value))}]"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_cell(item)}" for name, item in value.items())
    return str(value)
