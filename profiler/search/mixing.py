"""From a model and the target to variants of mixed precision: sensitivities and times per op are measured, then weighed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

from backends.base import OpTime, read_op_time
from profiler.data import Dataset
from profiler.errors import BudgetError, EdgeprofError, StoreError, TargetError
from profiler.explain.evidence import without_overhead
from profiler.explain.layers import Names, read_layers
from profiler.job import Job
from profiler.records import REFERENCE_VARIANT
from profiler.search.mixed import gains, mixes, text
from profiler.study import Case
from profiler.targets.maker import Maker, limits_of
from profiler.targets.process import WorkerFailure
from profiler.variants.sensitivity import Sensitivity, sensitivity_of

BASE = "int8-static{per_channel=true}"
RUNS, GOES = 30, 3
"""The median of the goes counts: in one of them somebody else may have had the processor for milliseconds."""
ROWS = 32


def mixed_variants(job: Job, reference: Case) -> list[str]:
    """Texts that leave sensitive ops of `BASE` in float, along the trade-off of error and time on the reference's backend.

    Empty, with a note, where nothing can be quantized or the sensitivities cannot be had. Where the runtime tells no
    times per op the errors alone decide. The artifact of `BASE` has to be made already.
    """
    calibration = job.prepared.calibration
    if calibration is None or BASE not in job.artifacts:
        return []
    try:
        errors, names = _sensitive(job, calibration, reference.batch)
        before, after = (op_times(job, replace(reference, variant=name), names) for name in (REFERENCE_VARIANT, BASE))
        found = mixes(gains(errors, before, after))
    except WorkerFailure as failure:
        job.progress.note(f"no mixed precision: {failure}")
        return []
    except (BudgetError, TargetError, StoreError):
        raise
    except (EdgeprofError, ValueError) as error:
        job.progress.note(f"no mixed precision: {error}")
        return []
    return [text(BASE, mix) for mix in found]


def _sensitive(job: Job, calibration: Dataset, batch: int) -> tuple[list[Sensitivity], Names]:
    """What the output loses by each op of the model, and the names of its layers. Raises EdgeprofError."""
    limits = limits_of(job.study.time_limit_s, job.study.memory_limit_bytes, job.budget.left_s)
    with Maker(lambda: limits) as maker:
        what = "looking for ops that lose accuracy"
        rows = maker.lay_out(calibration.inputs, "rows")
        found = maker.do("sensitivities", what, path=job.prepared.source, rows=rows, variant=BASE, limit=ROWS)
        facts, nodes = read_layers(maker, job.prepared.source, batch)
    names = Names(nodes, facts.layers)
    return [sensitivity_of(one) for one in found], names


def op_times(job: Job, case: Case, names: Names) -> Mapping[str, float]:
    """Seconds per inference by layer of the unmodified model; empty where the runtime tells none."""
    try:
        with job.open(case) as worker:
            job.load(worker, case)
            worker.request("feed", job.feeds(case), timeout_s=job.limit_s)
            goes = [worker.request("ops", timeout_s=job.limit_s, runs=RUNS, wall_runs=3)[0] for _ in range(GOES)]
    except WorkerFailure as failure:
        job.progress.note(f"{case.key}: no times per op ({failure})")
        return {}
    found = [layer_times([read_op_time(op) for op in go["ops"] or ()], float(go["wall_s"]), names) for go in goes]
    return {layer: statistics.median(times[layer] for times in found if layer in times) for layer in found[0]}


def layer_times(ops: Sequence[OpTime], wall_s: float, names: Names) -> dict[str, float]:
    """Seconds of one inference by layer, of all ops that belong to it: fused, split, and what converts its numbers.

    The profiler's own share is taken off (`without_overhead`). What belongs to no layer is left out.
    """
    found: dict[str, float] = {}
    for op, seconds in zip(ops, without_overhead(ops, wall_s), strict=True):
        layer = names.layer((op.name, *op.origins))
        if layer is not None:
            found[layer] = found.get(layer, 0.0) + seconds
    return found
