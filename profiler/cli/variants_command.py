"""`edgeprof variants`."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from profiler.cli import options as o
from profiler.records import ArtifactRecord, FailureRecord


def command(
    model: o.Model,
    data: o.Data = None,
    calibration: o.Calibration = None,
    variants: o.Variants = None,
    calibration_samples: o.CalibrationSamples = 256,
    inputs: o.Inputs = None,
    seed: o.Seed = 0,
    time_limit: o.TimeLimit = "300s",
    memory_limit: o.MemoryLimit = None,
    out: o.Out = o.OUT_DEFAULT,
    json: o.Json = False,
) -> None:
    """Make variants of a model without measuring them, and say what each changed."""
    import json as json_module
    from dataclasses import asdict

    from rich.table import Table

    from backends.spec import split_list
    from profiler import prepare, units
    from profiler.cli import console
    from profiler.making import MakerStore
    from profiler.run import CACHE_NAME
    from profiler.study import make_study
    from profiler.targets.maker import limits_of

    study = make_study(
        model=model, data=data, calibration=calibration, variants=tuple(split_list(variants or "")), seed=seed,
        calibration_samples=calibration_samples, time_limit_s=units.parse_seconds(time_limit),
        memory_limit_bytes=None if memory_limit is None else units.parse_bytes(memory_limit), inputs=o.inputs(inputs),
    )  # fmt: skip
    recipes = prepare.check_names(study)
    limits = limits_of(study.time_limit_s, study.memory_limit_bytes)
    with (
        MakerStore(out / CACHE_NAME, lambda: limits) as store,
        console.bars() as progress,
        prepare.working_folder() as scratch,
    ):
        prepared = prepare.prepare(study, recipes, scratch, shapes_needed=False, maker=store.maker)
        made, failures = prepare.make_artifacts(prepared, recipes, store, progress)
    if json:
        rows = [asdict(record) | {"path": str(store.path(record.sha256))} for record in made]
        content = {"artifacts": rows, "failures": [asdict(failure) for failure in failures]}
        console.print_json(json_module.dumps(content, indent=2))
        _end(made, failures)
        return
    table = Table(box=None, pad_edge=False)
    for title in ("variant", "size", "compressed", "what it changed", "file"):
        table.add_column(title, overflow="fold")
    for record in made:
        compressed = "—" if record.compressed_bytes is None else units.size(record.compressed_bytes)
        facts = ", ".join(f"{key} {value}" for key, value in record.facts.items())
        what = f"equals {record.equal_to}" if record.equal_to else facts
        table.add_row(record.variant, units.size(record.size_bytes), compressed, what, str(store.path(record.sha256)))
    console.out.print(table)
    for record in made:
        for note in record.notes:
            console.out.print(f"{record.variant}: {note}", markup=False)
    for failure in failures:
        console.out.print(f"{failure.case}: not made: {failure.message}", markup=False)
    _end(made, failures)


def _end(made: Sequence[ArtifactRecord], failures: Sequence[FailureRecord]) -> None:
    """Exit with 1 when nothing that was asked for could be made: the reference is always there."""
    if failures and len(made) <= 1:
        raise typer.Exit(1)
