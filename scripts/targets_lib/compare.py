"""Two runs side by side: whether one holds what the other does, and whether ratios agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from profiler.stats.ratios import RatioEstimate, ratio_interval
from profiler.store import RunData

Key = tuple[str, int, int, int]


def local_key(case: str, target: str) -> str:
    """A case's key as it would be on this machine."""
    return case.removesuffix(f"@{target}")


def differences(there: RunData, here: RunData, target: str, *, same_arithmetic: bool = True) -> list[str]:
    """What differs between a run on a target and the same run on this machine, besides times; nothing when they are equal.

    Plan, artifacts, blocks, processes, answers of each row and failures. Without `same_arithmetic` answers may differ, and
    are compared elsewhere.
    """
    found: list[str] = []

    def same(what: str, one: object, other: object) -> None:
        if one != other:
            found.append(f"{what} differ: {_short(one, other)}")

    def cases(run: RunData) -> set[str]:
        return {
            "|".join(f"{key}={value}" for key, value in case.items() if key != "target") for case in run.plan["cases"]
        }

    same("cases", cases(there), cases(here))
    same("artifacts", {(r.variant, r.sha256) for r in there.artifacts}, {(r.variant, r.sha256) for r in here.artifacts})
    same("blocks", set(blocks(there, target)), set(blocks(here, target)))
    same("blocks' counts", len(there.blocks), len(here.blocks))
    same("processes", processes(there, target), processes(here, target))
    same("failures", failures(there, target), failures(here, target))
    same("evaluated cases", set(answers(there, target)), set(answers(here, target)))
    if same_arithmetic:
        mine, its = answers(here, target), answers(there, target)
        found += [f"answers of {case} differ" for case in mine if case in its and mine[case] != its[case]]
    known = {(r.case, r.replicate, r.attempt, r.group) for r in there.processes}
    lost = [b for b in there.blocks if (b.case, b.replicate, b.attempt, b.group) not in known]
    if lost:
        found.append(f"{len(lost)} blocks belong to no process")
    wrong = [b for b in there.blocks if not b.case.endswith(f"@{target}")]
    if wrong:
        found.append(f"{len(wrong)} blocks were measured elsewhere")
    return found


def blocks(run: RunData, target: str) -> list[Key]:
    """What identifies each block."""
    return [(local_key(b.case, target), b.replicate, b.group, b.round) for b in run.blocks]


def processes(run: RunData, target: str) -> set[tuple[str, int, int]]:
    """What was measured in processes of its own, whatever the attempt."""
    return {(local_key(p.case, target), p.replicate, p.group) for p in run.processes}


def failures(run: RunData, target: str) -> set[tuple[str, str, str]]:
    """What failed, where and how."""
    return {(local_key(f.case, target), f.stage, f.kind) for f in run.failures}


def answers(run: RunData, target: str) -> dict[str, tuple[bytes, bytes, str]]:
    """Each case's answers on every row."""
    return {
        local_key(q.case, target): (
            q.per_sample.tobytes(), b"" if q.predictions is None else q.predictions.tobytes(), q.metric,
        )
        for q in run.qualities
    }  # fmt: skip


def log_ratios(run: RunData, target: str, variant: str, reference: str) -> list[np.ndarray]:
    """log(median of the variant's block / of the reference's) in each round they share, one array per process pair."""
    medians: dict[str, dict[tuple[int, int, int], float]] = {variant: {}, reference: {}}
    for block in run.blocks:
        case = local_key(block.case, target)
        if case in medians:
            medians[case][block.replicate, block.group, block.round] = float(
                np.median(block.samples_s[block.discarded :])
            )
    shared = sorted(medians[variant].keys() & medians[reference].keys())
    pairs: dict[tuple[int, int], list[float]] = {}
    for replicate, group, index in shared:
        ratio = medians[variant][replicate, group, index] / medians[reference][replicate, group, index]
        pairs.setdefault((replicate, group), []).append(float(np.log(ratio)))
    return [np.array(values) for values in pairs.values()]


def agreement(
    there: Sequence[np.ndarray], here: Sequence[np.ndarray], level: float = 0.95
) -> tuple[RatioEstimate, RatioEstimate, tuple[float, float, float]]:
    """The ratio there, the ratio here, and there / here with its interval at `level` (Welch's, over process pairs)."""
    from scipy.special import stdtrit

    one, other = ratio_interval(there), ratio_interval(here)
    means = [np.array([np.median(values) for values in side]) for side in (there, here)]
    variances = [float(side.var(ddof=1)) / len(side) for side in means]
    difference, error = float(means[0].mean() - means[1].mean()), float(np.sqrt(sum(variances)))
    freedom = sum(variances) ** 2 / max(sum(v**2 / (len(m) - 1) for v, m in zip(variances, means, strict=True)), 1e-300)
    half = float(stdtrit(max(freedom, 1.0), (1 + level) / 2)) * error
    return one, other, (float(np.exp(difference)), float(np.exp(difference - half)), float(np.exp(difference + half)))


def overlap(one: RatioEstimate, other: RatioEstimate) -> bool:
    """Whether the two intervals have a point in common."""
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return False
    return one.low <= other.high and other.low <= one.high


def p50_s(run: RunData, target: str) -> Mapping[str, float]:
    """Median of the medians of each case's blocks, in seconds."""
    found: dict[str, list[float]] = {}
    for block in run.blocks:
        found.setdefault(local_key(block.case, target), []).append(float(np.median(block.samples_s[block.discarded :])))
    return {case: float(np.median(values)) for case, values in found.items()}


def _short(one: object, other: object) -> str:
    if isinstance(one, set) and isinstance(other, set):
        only, missing = sorted(map(str, one - other)), sorted(map(str, other - one))
        return f"only there {only[:3]} ({len(only)}), missing there {missing[:3]} ({len(missing)})"
    return f"{one} there, {other} here"
