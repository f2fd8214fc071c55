"""One process that tries recipes on models and says on its standard output, line by line, what it begins and what came of it."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import onnx

from profiler.errors import EdgeprofError
from profiler.onnx_io import model_inputs, model_outputs, read_model, write_model
from profiler.variants import registry
from profiler.variants.running import ONLY_UNOPTIMISED
from scripts.op_suite_lib.judge import OWN_ERROR, RUNTIMES, Arrays, answers, error, limit
from scripts.op_suite_lib.subjects import Subject, Unfit

TOLD = ("differ strongly", "optimiser changes", "OpenVINO answers otherwise")
"""Words of notes that warn of wrong answers."""


def main() -> None:
    """Read tasks from the file named in the arguments: `[[folder, form, [recipe, …]], …]`, and `memory_bytes` before it."""
    memory, tasks = int(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    # Native libraries print what they like; what is said to the parent goes another way.
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for place, form, recipes in tasks:
        subject = Subject(Path(place), form)
        with tempfile.TemporaryDirectory(prefix="edgeprof.ops.") as scratch:
            _subject(subject, recipes, Path(scratch), told)


def _tell(told: TextIO, **facts: Any) -> None:
    print(json.dumps(facts), file=told, flush=True)


def _subject(subject: Subject, recipes: list[str], scratch: Path, told: TextIO) -> None:
    _tell(told, begin=subject.key, recipe="")
    try:
        model, feeds = subject.load()
        source = write_model(model, scratch / "source")
        read_model(source)
    except Unfit as reason:
        for recipe in recipes:
            _tell(told, subject=subject.key, recipe=recipe, made="unfit", why=str(reason))
        return
    except Exception as problem:  # noqa: BLE001 (whatever it is, it is no recipe's fault)
        for recipe in recipes:
            _tell(told, subject=subject.key, recipe=recipe, made="unreadable", why=_words(problem))
        return
    before: dict[str, Arrays] = {}
    for runtime in RUNTIMES:
        with contextlib.suppress(Exception):
            before[runtime] = answers(source, feeds, runtime)
    wanted = before.get("ort off")
    for recipe in recipes:
        _tell(told, begin=subject.key, recipe=recipe)
        result = {"subject": subject.key, "recipe": recipe}
        _tell(told, **result, **_attempt(source, recipe, feeds, before, wanted, scratch))


def _attempt(
    source: Path, recipe: str, feeds: Arrays, before: dict[str, Arrays], wanted: Arrays | None, scratch: Path
) -> dict[str, Any]:
    variant = registry.make(recipe)
    model = read_model(source)
    # Rows are cut along the first axis, which must mean the same in every input then.
    fits = bool(feeds) and len({array.shape[:1] for array in feeds.values()}) == 1
    rows = feeds if fits else None
    if rows is None and variant.needs_calibration:
        return {"made": "unfit", "why": "its inputs have no rows in common"}
    try:
        made = variant.apply(model, rows)
    except EdgeprofError as refusal:
        return {"made": "refused", "why": _words(refusal)}
    except MemoryError:
        return {"made": "memory"}
    except Exception as problem:  # noqa: BLE001 (exactly these are looked for)
        return {"made": "foreign", "why": f"{type(problem).__name__}: {_words(problem)}"}
    if not made.changed:
        return {"made": "unchanged", "why": _words(" ".join(made.notes))}
    path = write_model(made.model, scratch / "made")
    found: dict[str, Any] = {"made": "yes", "notes": list(made.notes), "bad": []}
    found["bad"] += list(_structure(model, made.model, path))
    most = limit(recipe)
    for runtime in RUNTIMES:
        backend = runtime.partition(" ")[0]
        if runtime not in before or (variant.only_backends and backend not in variant.only_backends):
            continue
        try:
            got = answers(path, feeds, runtime, dict(variant.backend_options.get(backend, {})))
        except Exception as problem:  # noqa: BLE001 (each runtime has its own)
            known = runtime == "ort" and any(ONLY_UNOPTIMISED in note for note in made.notes)
            if not known and backend not in str(made.facts.get("refused_by") or "").split("|"):
                found["bad"].append([f"refused by {runtime}", _words(problem)])
            continue
        if wanted is None or most is None or error(wanted, before[runtime]) > OWN_ERROR:
            continue
        off = error(wanted, got)
        found.setdefault("errors", {})[runtime] = off if off < float("inf") else "inf"
        if off > most:
            told = any(words in note for words in TOLD for note in made.notes)
            found["bad"].append([f"wrong on {runtime}" if not told else f"wrong on {runtime}, and told", f"{off:.3g}"])
    return found


def _structure(model: onnx.ModelProto, made: onnx.ModelProto, path: Path) -> Iterator[list[str]]:
    try:
        onnx.checker.check_model(str(path), full_check=_full(model))
    except Exception as problem:  # noqa: BLE001 (the checker's own, and protobuf's)
        yield ["refused by checker", _words(problem)]
    for what, ask in (("input", model_inputs), ("output", model_outputs)):
        first = [(info.name, info.dtype) for info in ask(model)]
        second = [(info.name, info.dtype) for info in ask(made)]
        if first != second:
            yield [f"{what}s changed", f"{first} became {second}"]


def _full(model: onnx.ModelProto) -> bool:
    """Whether the original passes the checker with shape inference."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception:  # noqa: BLE001 (see above)
        return False
    return True


def _words(problem: object) -> str:
    return " ".join(str(problem).split())[:300]


if __name__ == "__main__":
    main()
