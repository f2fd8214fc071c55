"""From a model and the target to variants of mixed precision: sensitivities and times per op are measured, then weighed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from backends.base import read_op_time
from profiler import onnx_io
from profiler.errors import BudgetError, EdgeprofError
from profiler.job import Job
from profiler.records import REFERENCE_VARIANT
from profiler.search.mixed import gains, mixes, node_times, text
from profiler.study import Case
from profiler.targets.process import WorkerFailure
from profiler.variants import registry
from profiler.variants.int8_static import Int8Static
from profiler.variants.sensitivity import sensitivities

BASE = "int8-static{per_channel=true}"
RUNS = 30
ROWS = 32


def mixed_variants(job: Job, reference: Case) -> list[str]:
    """Texts that leave sensitive ops of `BASE` in float, along the trade-off of error and time on the reference's backend.

    Empty, with a note, where nothing can be quantized or the sensitivities cannot be had. Where the runtime tells no
    times per op the errors alone decide. The artifact of `BASE` has to be made already.
    """
    recipe, calibration = registry.make(BASE), job.prepared.calibration
    assert isinstance(recipe, Int8Static)
    if calibration is None or BASE not in job.artifacts:
        return []
    try:
        model = onnx_io.read_model(job.prepared.source)
        errors = sensitivities(model, calibration.inputs, recipe, limit=ROWS)
        before, after = (op_times(job, replace(reference, variant=name)) for name in (REFERENCE_VARIANT, BASE))
        found = mixes(gains(errors, before, after))
    except BudgetError:
        raise
    except (EdgeprofError, ValueError) as error:
        job.progress.note(f"no mixed precision: {error}")
        return []
    return [text(BASE, mix) for mix in found]


def op_times(job: Job, case: Case) -> Mapping[str, float]:
    """Seconds per inference by node name; empty where the runtime tells none."""
    try:
        with job.open(case) as worker:
            job.load(worker, case)
            worker.request("feed", job.feeds(case), timeout_s=job.limit_s)
            report, _ = worker.request("ops", timeout_s=job.limit_s, runs=RUNS, wall_runs=3)
    except WorkerFailure as failure:
        job.progress.note(f"{case.key}: no times per op ({failure})")
        return {}
    return node_times([read_op_time(op) for op in report["ops"] or ()])
