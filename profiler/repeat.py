"""The command line that asks the same as a study: options where there are some, `--set` for every other setting."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from profiler import advice
from profiler.study import EFFORTS, Study, make_study
from profiler.units import parse_drop

_TABLES = ("effort", "cost", "energy", "soak", "load")


def study_command(study: Study, *, search: Mapping[str, Any] | None = None, place: bool = False) -> str:
    """One line, quoted for a shell, that gives an equal study when `edgeprof` reads it.

    `search` is what the run was asked beyond its study, for a command that searches again; with `place` the run goes where the
    others lie.
    """
    words = ["search" if search is not None else "profile", study.model, *_options(study, search)]
    for name, value in _rest(study, search is not None):
        words += ["--set", f"{name}={_toml(value)}"]
    return advice.of_run(*words) if place else advice.command(*words)


def _options(study: Study, search: Mapping[str, Any] | None) -> Iterator[str]:
    asked, usual = study.constraints, Study(model=study.model)
    texts: list[tuple[str, object, bool]] = [
        ("--data", study.data, study.data is not None),
        ("--calibration", study.calibration, study.calibration is not None),
        # A search that was free to choose its candidates chooses them again.
        ("--variants", ",".join(study.variants), bool(study.variants) and not (search or {}).get("mixed")),
        ("--backends", ",".join(study.backends), study.backends != usual.backends),
        ("--batch", ",".join(map(str, study.batches)), study.batches != usual.batches),
        ("--threads", ",".join(map(str, study.threads)), study.threads != usual.threads),
        ("--target", ",".join(study.targets), study.targets != usual.targets),
        ("--metric", study.metric, study.metric is not None),
        ("--max-drop", _drop(study), asked.max_drop is not None and _drop(study) is not None),
        ("--slo-p99", f"{asked.slo_p99_s!r}s", asked.slo_p99_s is not None),
        ("--max-memory", f"{asked.max_memory_bytes}B", asked.max_memory_bytes is not None and search is None),
        ("--max-cost", asked.max_usd_per_million, asked.max_usd_per_million is not None and search is None),
        ("--as", study.cost.machine, study.cost.machine is not None),
        ("--utilisation", study.cost.utilisation, study.cost.utilisation != usual.cost.utilisation),
        ("--prices", study.cost.prices, study.cost.prices is not None),
        ("--limit", study.limit, study.limit is not None),
        ("--calibration-samples", study.calibration_samples, study.calibration_samples != usual.calibration_samples),
        *[
            ("--shape", f"{name}={','.join(map(str, shape))}", True)
            for name, shape in study.input_shapes.items()
            if _shapes_fit(study)
        ],
        *[
            ("--input", asked_input.text(name), True)
            for name, asked_input in study.inputs.items()
            if _inputs_fit(study)
        ],
        ("--seed", study.seed, study.seed != usual.seed),
        ("--time-budget", f"{study.time_budget_s!r}s", study.time_budget_s is not None),
        ("--time-limit", f"{study.time_limit_s!r}s", study.time_limit_s != usual.time_limit_s),
        ("--memory-limit", f"{study.memory_limit_bytes}B", study.memory_limit_bytes is not None),
    ]
    if search is not None:
        enough = search.get("enough")
        texts += [
            ("--objective", search.get("objective"), search.get("objective", "latency") != "latency"),
            ("--alpha", search.get("alpha"), search.get("alpha", 0.05) != 0.05),
            ("--enough", f"{1 / enough!r}x" if isinstance(enough, float) and enough > 0 else "", bool(enough)),
        ]
    for name, value, wanted in texts:
        if wanted:
            yield from (name, str(value))
    if search is not None and search.get("seeds") is False:
        yield "--no-seeds"
    if (effort := _effort_name(study)) in ("quick", "thorough"):
        yield f"--{effort}"


def _shapes_fit(study: Study) -> bool:
    return not any("=" in name for name in study.input_shapes)


def _inputs_fit(study: Study) -> bool:
    return not any("{" in name for name in study.inputs)


def _effort_name(study: Study) -> str:
    """The named effort that the settings begin from."""
    return next((name for name, known in EFFORTS.items() if known == study.effort), "default")


def _drop(study: Study) -> str | None:
    """The limit as a text that gives the same number again; None when no text does."""
    drop, unit = study.constraints.max_drop, study.constraints.max_drop_unit
    if drop is None:
        return None
    text = {"points": f"{100 * drop:.12g}pt", "own": f"{drop!r}dB"}.get(unit or "", repr(drop))
    found = parse_drop(text)
    return text if (found.value, found.unit) == (drop, unit) else None


def _rest(study: Study, search: bool) -> Iterator[tuple[str, Any]]:
    """Every setting that no option above gave: its place in a study file, and its value."""
    whole, usual = study.model_dump(mode="json"), make_study(model=study.model).model_dump(mode="json")
    limits = (
        {} if _drop(study) is not None else {name: whole["constraints"][name] for name in ("max_drop", "max_drop_unit")}
    )
    if search:
        limits |= {name: whole["constraints"][name] for name in ("max_memory_bytes", "max_usd_per_million")}
    yield from ((f"constraints.{name}", value) for name, value in limits.items() if value is not None)
    if study.preprocessing is not None:
        yield "preprocessing", whole["preprocessing"]
    if not _shapes_fit(study):
        yield "input_shapes", whole["input_shapes"]
    if not _inputs_fit(study):
        yield "inputs", {name: _given(options) for name, options in whole["inputs"].items()}
    usual["effort"] = EFFORTS[_effort_name(study)].model_dump(mode="json")
    given = {"machine", "utilisation", "prices"}
    for table in _TABLES:
        own = whole[table]
        if own is None:
            continue
        known = usual[table] if usual[table] is not None else _defaults(table)
        differing = [
            (f"{table}.{name}", value)
            for name, value in own.items()
            if value is not None and value != known.get(name) and not (table == "cost" and name in given)
        ]
        if not differing and usual[table] is None:
            # A table that is there, with everything as usual.
            differing = [(table, {})]
        yield from differing


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    """TOML has nothing for None."""
    return {name: value for name, value in options.items() if value is not None}


def _defaults(table: str) -> dict[str, Any]:
    from profiler.load.scenario import LoadPlan
    from profiler.study import EnergyPlan, SoakPlan

    tables: dict[str, type[BaseModel]] = {"energy": EnergyPlan, "soak": SoakPlan, "load": LoadPlan}
    model = tables[table]
    return {
        name: list(field.default) if isinstance(field.default, tuple) else field.default
        for name, field in model.model_fields.items()
        if not field.is_required()
    }


def _toml(value: Any) -> str:
    """A value as TOML writes it; `profiler.study.toml_value` reads it back."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_toml(str(key))} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    # TOML's strings are JSON's, but without surrogate pairs.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f") if isinstance(value, str) else repr(value)
