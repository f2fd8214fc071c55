"""`edgeprof search`, as a table of contents: a run like any other, whose cases are raced instead of all measured."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from profiler import __version__, advice, prepare
from profiler.budget import Budget
from profiler.cluster.client import Cluster
from profiler.cluster.evaluating import ClusterEvaluation
from profiler.cost.detect import detect_machine
from profiler.data.dataset import Dataset
from profiler.environment import describe
from profiler.errors import StudyError, unknown
from profiler.evaluate import Elsewhere
from profiler.fleet.classes import settled
from profiler.fleet.devices import machine_of
from profiler.fleet.queues import DeviceJob, Queues
from profiler.job import Job
from profiler.machines import device_of
from profiler.named_code import named_code
from profiler.progress import Progress, Silent
from profiler.records import RACE, REFERENCE_VARIANT, ArtifactRecord, QualityRecord
from profiler.run import (
    clusters,
    complete_places,
    conditions,
    look,
    make_ahead,
    of_targets,
    only_run_in,
    status_kept,
    store_of_artifacts,
    through_links,
    warn_about_price,
    without_closing,
)
from profiler.search import screening as screens
from profiler.search.bench import LiveBench, Objective
from profiler.search.engine import Found, Rules, Search
from profiler.search.space import ladder, rung, seeds_of
from profiler.store import RunData, Store, open_store
from profiler.study import Case, Study
from profiler.targets import setup
from profiler.targets.config import LOCAL
from profiler.targets.maker import Maker, limits_of, model_errors
from profiler.targets.remote import LinkLost
from profiler.variants import registry

SEED_SPREADS = 3
"""Frontier variants at most whose calibration is repeated with other seeds."""
AHEAD_SHARE = 0.8
"""How much of the time for making variants a cluster may take to make all of them at once."""
SHORT_S = 5.0
"""Seconds for each candidate below which a search cannot try most of them: each is made, screened and raced in a process."""
DEFAULT_MARGIN = 0.01
"""Accepted drop where the user names none: the search must know what is hopeless."""


@dataclass(frozen=True)
class Asked:
    """What a search is asked beyond a study."""

    objective: Objective = "latency"
    alpha: float = 0.05
    seeds: bool = True
    """Whether variants on the frontier that were calibrated are made again with two more calibration seeds."""
    enough: float | None = None
    """Share of the reference's time that is fast enough: the ladder is climbed until a candidate surely reaches it."""
    mixed: bool = False
    """Whether int8 variants that leave sensitive ops in float are added, chosen by what is measured."""

    def __post_init__(self) -> None:
        """Check; raises StudyError."""
        if self.objective not in get_args(Objective):
            raise unknown("objective", str(self.objective), get_args(Objective))
        if not 0 < self.alpha <= 0.5:
            raise StudyError(f"the error rate of a search is a share up to 0.5, got {self.alpha:g}.")
        if self.enough is not None and not 0 < self.enough < 1:
            raise StudyError(
                f"enough is a share of the reference's time below 1, got {self.enough:g}: try --enough 1.5x."
            )


def execute_search(
    study: Study | None,
    asked: Asked | None = None,
    *,
    out: Path,
    resume: str | None = None,
    progress: Progress | None = None,
    database: str | None = None,
    cluster: Cluster | None = None,
) -> str:
    """Search, or resume the search `resume` of the folder `out`; returns the run's id.

    Raises EdgeprofError before anything is measured when it is not possible. Killed at any moment, the run holds what was
    measured and decided, and resuming goes on from there. KeyboardInterrupt marks the run as interrupted and passes on.
    """
    progress, began = progress or Silent(), time.monotonic()
    with only_run_in(out):
        store = open_store(database or out)
        try:
            if resume is not None:
                run_id = store.resolve(resume, search=True, unfinished=True)
                before = store.run(run_id)
                if "search" not in before.plan:
                    raise StudyError(f"run {run_id} is no search: go on with `{advice.resume(run_id)}`.")
                study, asked = before.study, Asked(**before.plan["search"]["asked"])
            elif study is None:
                raise StudyError("there is nothing to search: give a model, or a search to resume with --resume RUN.")
            else:
                # Written down whole: a later edgeprof, whose ladder is longer, resumes what this one began.
                study = settled(study.absolute(), store, progress)
                study = study.model_copy(update={"variants": ladder(study.variants, suggested(study, progress))})
            asked = asked or Asked()
            variants = _checked(study, fresh=resume is None)
            if resume is None:
                run_id = store.create_run(study, describe(), version=__version__)
                plan: dict[str, Any] = {"cases": [], "search": {"asked": asdict(asked), "decisions": []}}
                store.set_plan(run_id, plan, ())
            advice.began(run_id, search=True, code=named_code(study))
            with status_kept(store, run_id, out / run_id, fresh=resume is None):
                budget = Budget(without_closing(study.time_budget_s), began=began)
                _execute(run_id, study, asked, variants, store, out, progress, budget, cluster)
        finally:
            store.close()
    return run_id


def suggested(study: Study, progress: Progress) -> tuple[str, ...]:
    """Recipes for this model where it will run; none where variants were named, or the model still has to be exported: the
    ladder's own are tried then. Raises TargetError.
    """
    path, device = Path(study.model).expanduser(), device_of(study.targets[0])
    if study.variants or path.suffix != ".onnx" or not path.is_file():
        return ()
    try:
        machine = describe() if device == LOCAL else setup.place(device).environment
    except LinkLost as error:
        progress.note(f"{error} The recipes that are tried are therefore not chosen for its processor.")
        return ()
    limits = limits_of(study.time_limit_s, study.memory_limit_bytes)
    with model_errors(), Maker(lambda: limits) as maker:
        found = maker.do(
            "suggestions", f"looking for recipes for '{path}'", path=path, backends=study.backends,
            isa=machine.cpu_isa, machine=machine.machine,
        )  # fmt: skip
    return tuple(map(str, found))


def _checked(study: Study, *, fresh: bool) -> tuple[Any, ...]:
    """The variants, reference first. Names of backends, metric and prices are checked as for any study."""
    prepare.check_names(study.model_copy(update={"variants": (REFERENCE_VARIANT,)}), fresh=fresh)
    if study.load is not None or study.soak is not None:
        raise StudyError(
            "a search races latencies: leave load and soak out, and serve or soak its winner afterwards (edgeprof load, "
            "edgeprof soak)."
        )
    return tuple(registry.make(text) for text in dict.fromkeys((REFERENCE_VARIANT, *study.variants)))


def _execute(
    run_id: str, study: Study, asked: Asked, variants: tuple[Any, ...], store: Store, out: Path, progress: Progress,
    budget: Budget, cluster: Cluster | None,
) -> None:  # fmt: skip
    store.set_status(run_id, "running")
    artifact_store, folder = store_of_artifacts(out, cluster, progress, study, budget), out / run_id
    elsewhere = None if cluster is None else ClusterEvaluation(cluster)
    folder.mkdir(parents=True, exist_ok=True)
    # The maker stays until the end, for there is always a next candidate; it sleeps while others are measured.
    with artifact_store, prepare.working_folder() as scratch:
        progress.stage("reading model and data", 1)
        prepared = prepare.prepare(study, variants, scratch, maker=artifact_store.maker)
        parts = None if prepared.evaluation is None else screens.split(prepared.evaluation, study.seed)
        margin = study.constraints.max_drop if study.constraints.max_drop is not None else DEFAULT_MARGIN
        if parts is not None:
            prepared = replace(prepared, evaluation=parts[1], notes=(*prepared.notes, *parts[1].notes[-1:]))
            few = screens.too_few_rows(len(parts[1]), margin)
            if few is not None:
                progress.note(few)
        resume = advice.resume(run_id, search=True, code=named_code(study))
        job = Job(run_id, study, store, artifact_store, {}, prepared, folder, progress, budget, resume)
        fresh = "source_sha256" not in store.plan(run_id)
        warn_about_price(study, store.run(run_id).environment, detect_machine(), progress)
        store.set_plan(run_id, _planned(store.run(run_id), prepared, store, progress), prepared.notes)
        if (short := _too_short(study, len(variants), budget.left_s)) is not None:
            progress.note(short)
        if fresh:
            look(job, variants[0])
        rules = Rules(margin=margin, tolerance=max(margin, 1e-3), alpha=asked.alpha, enough=asked.enough)
        rungs = 1 if asked.enough is None else len({rung(variant.text) for variant in variants})
        # Before anything is timed, and so that its own turn, in which it comes from the cache, is still within its time.
        make_ahead(artifact_store, prepared, variants, progress, AHEAD_SHARE * rules.make_until / rungs * budget.left_s)
        screened = None if parts is None else parts[0]

        def work(mine: DeviceJob) -> None:
            # All of it again after a lost connection or lease: what is stored is not measured twice.
            through_links(mine, lambda: _searched(mine, asked, rules, screened, elsewhere), mine.stop.sleep)

        device = device_of(study.targets[0])
        with job.modes, Queues(job, {device: machine_of(device)}) as queues:
            queues.one(device, work)
    store.set_status(run_id, "finished")


def _too_short(study: Study, variants: int, left_s: float) -> str | None:
    """What to say beforehand of a budget that leaves most candidates untried; None where there is time."""
    candidates = variants * len(study.backends) * len(study.batches) * len(study.threads)
    if left_s / candidates >= SHORT_S:
        return None
    return (
        f"{candidates} candidates in {left_s:.0f} s are about {left_s / candidates:.2g} s each: many will not be tried. "
        "Name fewer with --variants, or give more time."
    )


def _searched(
    job: DeviceJob, asked: Asked, rules: Rules, screened: Dataset | None, elsewhere: Elsewhere | None
) -> None:
    complete_places(job, job.device)
    study, before, made = job.study, job.store.run(job.run_id), dict[str, ArtifactRecord]()
    decided = decisions(before)
    job.store.take_back(job.run_id, (item for item in before.failures if LiveBench.may_be_tried(item, decided)))
    job = replace(job, artifacts=made)
    screening = None if screened is None else screens.Screening(job, screened, elsewhere=elsewhere)
    had = {record.variant: record.sha256 for record in before.artifacts}
    raced = frozenset(block.case for block in before.blocks if RACE in block.labels)
    bench = LiveBench(
        job, asked.objective, screening, job.store.plan(job.run_id), made=made, before=had, raced_before=raced,
        elsewhere=elsewhere,
    )  # fmt: skip
    reference = Case(REFERENCE_VARIANT, study.backends[0], study.targets[0], study.batches[0], study.threads[0])
    job.progress.stage("searching", len(study.variants))
    found = Search(study.variants, reference, bench, rules, rung).run()
    if found.enough is not None:
        bench.plan["search"]["enough"] = found.enough
        bench.save()
    if asked.seeds and job.prepared.evaluation is not None:
        spread_over_seeds(bench, found, job.store.run(job.run_id))
    bench.left_out()


def _planned(before: RunData, prepared: prepare.Prepared, store: Store, progress: Progress) -> dict[str, Any]:
    """The plan: as it is stored, or new. Raises StudyError when a resumed run finds another model or other data."""
    data = prepared.evaluation
    facts = {
        "source_sha256": prepared.source_sha256,
        "data_sha256": None if data is None else data.sha256,
    }
    stored = dict(before.plan)
    changed = [key for key, value in facts.items() if key in stored and stored[key] != value]
    if changed:
        what = "data" if changed[0] == "data_sha256" else "model"
        raise StudyError(f"the {what} changed since run {before.id} began: start a new search instead of resuming.")
    if "source_sha256" in stored:
        return stored
    return {
        **stored, **facts,
        "data_name": None if data is None else data.name,
        "data_rows": None if data is None else len(data),
        "calibration_rows": None if prepared.calibration is None else len(prepared.calibration),
        "clusters": clusters(prepared),
        "detected": asdict(detect_machine()),
        **of_targets(before.study, before.environment, progress),
        **conditions(store, before.environment),
    }  # fmt: skip


def spread_over_seeds(bench: LiveBench, found: Found, run: RunData) -> None:
    """Make calibrated contenders again with other calibration seeds, evaluate them, and keep the spread in the plan.

    Only as long as there is time; what is missing stands there with its reason.
    """
    qualities = {record.case: record for record in run.qualities}
    spreads: list[dict[str, Any]] = list(bench.plan["search"].get("seed_spreads", []))
    done = {item["case"] for item in spreads}
    chosen = {case.quality_key: case for case in found.provisional if seeds_of(case.variant)}
    for key, case in list(chosen.items())[:SEED_SPREADS]:
        if key in done or key not in qualities or qualities[key].question is not None:
            continue
        values = {case.variant: _value(qualities[key])}
        takes_s = bench.made[case.variant].seconds + qualities[key].seconds + bench.process_s
        missing: dict[str, str] = {}
        for text in seeds_of(case.variant):
            if bench.job.budget.left_s <= takes_s:
                missing[text] = "no time was left"
                continue
            problem = bench.make(text)
            if problem is not None:
                missing[text] = problem
                continue
            bench.untimed(text, f"made to see how much the calibration rows of {case.variant} matter: not timed")
            sibling = replace(case, variant=text)
            bench.confirm([sibling])
            again = {record.case: record for record in bench.job.store.records(run.id, QualityRecord)}
            if sibling.quality_key in again:
                values[text] = _value(again[sibling.quality_key])
        spreads.append({"case": key, "values": values, "missing": missing})
        bench.plan["search"]["seed_spreads"] = spreads
        bench.save()


def _value(record: QualityRecord) -> float:
    """The mean of what the metric keeps, in its own unit."""
    return float(np.mean(record.per_sample))


def decisions(run: RunData) -> tuple[Mapping[str, Any], ...]:
    """What a search decided, in order; empty for other runs. Keys as the fields of `engine.Decision`."""
    return tuple(run.plan.get("search", {}).get("decisions", ()))
