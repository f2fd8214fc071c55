"""How much of a device's limit a measured case reached. Pure; for `edgeprof show` and the report."""

from __future__ import annotations

from backends import spec
from backends.base import SessionFacts
from profiler import units
from profiler.analysis import CaseResult
from profiler.cost.devices import DeviceProfile, find_profile
from profiler.cost.fit import fit_device, runs_accelerated
from profiler.errors import StudyError
from profiler.records import Estimate, Figure, NotMeasured
from profiler.roofline.counting import ModelCounts
from profiler.roofline.limits import Floor, floor

_NO_ARITHMETIC = frozenset({"conversion", "other", "f64"})
_NAMED = frozenset({"f32", "f16", "bf16", "i8", "f8"})
_ASKED = {"fp16": "f16", "f16": "f16", "bf16": "bf16", "int8": "i8"}
_ANY = ("bf16", "f16", "i8")


def limit_share(case: CaseResult, counts: ModelCounts | NotMeasured, profile: DeviceProfile | None) -> Figure:
    """The floor of `counts` on `profile`, divided by the case's p50 latency: 1 is as fast as the data sheet allows.

    A proportion, with the interval of the latency. What is possible lies at or above the floor, so the case is at least so near
    to it. `counts` must be those of the case's artifact at its batch. NotMeasured with the reason when there is no latency, no
    profile, no peak for what it computes in, when the peaks are of another unit than the one that ran it, and for what an
    emulator or an envelope timed.
    """
    latency = case.latency_p50_s
    if isinstance(latency, NotMeasured):
        return latency
    if not case.machine.real:
        return NotMeasured(case.machine.why_not_real or "its timings are not those of a device")
    limit = case_floor(case, counts, profile)
    if isinstance(limit, NotMeasured):
        return limit
    share = limit.seconds / latency.value
    low, high = (None if end is None or end <= 0 else limit.seconds / end for end in (latency.high, latency.low))
    notes = [f"floor {units.seconds(limit.seconds)} on {limit.profile}, by {limit.bound}"]
    if limit.unverified:
        notes.append(f"unverified: {', '.join(limit.unverified)}")
    if share > 1:
        notes.append(
            "faster than the floor: fewer operations than the textbook's (Winograd, skipped zeros), a higher clock than the "
            "profile's, or another device"
        )
    return Estimate(share, low, high, "proportion", latency.level, "published", "; ".join((*notes, *limit.notes)))


def case_floor(
    case: CaseResult, counts: ModelCounts | NotMeasured, profile: DeviceProfile | None
) -> Floor | NotMeasured:
    """The floor under a case: in what it really ran, on as many threads as it really had."""
    if profile is None:
        return NotMeasured(
            "no device profile says what is possible: declare one with --as device:ID (`edgeprof devices`)"
        )
    if isinstance(counts, NotMeasured):
        return counts
    if counts.batch != case.case.batch:
        return NotMeasured(f"operations were counted for a batch of {counts.batch}, the case has {case.case.batch}")
    if case.process is None:
        return NotMeasured("nothing tells what the case ran on")
    facts = case.process.facts
    wrong = _other_unit(facts, profile)
    if wrong is None and case.machine.environment is not None:
        wrong = fit_device(profile, case.machine.environment, facts).refusal
    if wrong is not None:
        return NotMeasured(wrong)
    faster = _may_replace(facts, case.case.backend, counts)
    return floor(counts, profile, threads=facts.threads, faster=faster, sparse=_two_of_four(case.case.variant))


def declared_profile(machine: str | None) -> DeviceProfile | None:
    """The profile that `--as device:ID` or a target's device names; None for cloud machines, which have prices only."""
    if machine is None:
        return None
    try:
        return find_profile(machine.removeprefix("device:"))
    except StudyError:
        return None


def _other_unit(facts: SessionFacts, profile: DeviceProfile) -> str | None:
    """Why the peaks of the profile say nothing of what ran; None when they do."""
    accelerated = runs_accelerated(facts)
    if profile.peak_is_of_cpu != accelerated:
        return None
    unit = "processor cores" if profile.peak_is_of_cpu else profile.compute_unit.split(",")[0]
    return f"the case ran on {facts.provider}, and the peaks of {profile.id} are those of its {unit}"


def _may_replace(facts: SessionFacts, backend: str, counts: ModelCounts) -> tuple[str, ...]:
    """What ops may have been computed in instead of what their file says.

    What the runtime tells that ran; what it names otherwise (`undetermined`, weights of four bits) may be anything. Of a runtime
    that tells nothing, what it was asked for. Eight bits that ran beside float are the file's own when the file holds them, and
    replace nothing.
    """
    if facts.precision is None:
        options = spec.parse(backend).options
        found = {_ASKED[value] for key, value in options.items() if key == "precision" and value in _ASKED}
        found |= {_ASKED[key] for key, value in options.items() if key in _ASKED and value == "true"}
        return tuple(sorted(found))
    ran = {name for name, count in facts.precision.items() if count and name not in _NO_ARITHMETIC}
    if ran - _NAMED:
        return _ANY
    own = {"i8", "f8"} & {op.precision for op in counts.ops}
    return tuple(sorted(ran - own))


def _two_of_four(variant: str) -> bool:
    """Whether the variant's text says that its weights are 2:4 sparse."""
    try:
        steps = [spec.parse(step) for step in spec.split_steps(variant)]
    except spec.SpecError:
        return False
    return any(
        step.name == "prune-nm" and (step.options.get("n", "2"), step.options.get("m", "4")) == ("2", "4")
        for step in steps
    )
