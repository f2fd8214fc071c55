"""How often what is decided is wrong, on data whose truth is known, through the functions that ship.

Each function returns rows for a table: what was stated, what was found at the boundary, and what the rule before it did.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends.base import SessionFacts
from profiler.analysis import Analysis, analyse
from profiler.decide import recommend, view
from profiler.errors import DataError
from profiler.quality.compare import PairedChange, paired_change
from profiler.quality.metrics import Metric, get_metric
from profiler.quality.verdict import ALPHA, change_verdict
from profiler.records import ArtifactRecord, BlockRecord, Environment, ProcessRecord, QualityRecord
from profiler.stats.paired import paired_bootstrap, tango_noninferior_p
from profiler.stats.quantiles import quantile_interval
from profiler.stats.ratios import holm
from profiler.store import RunData
from profiler.study import Case, make_study

Rows = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], tuple[Rows, Rows]]
TODAY = date(2026, 1, 2)
LIMIT = 0.01


# ---- one variant, metrics that are no mean of 1 and 0 -------------------------------------------------------------------


def answers(shares: Sequence[float], right: float, changed: float) -> Draw:
    """Labels of these shares, answers right with that chance, of which the variant changes a share to any other class."""

    def draw(rng: np.random.Generator, n: int) -> tuple[Rows, Rows]:
        labels = rng.choice(len(shares), n, p=shares)
        other = (labels + rng.integers(1, len(shares), n)) % len(shares)
        said = np.where(rng.random(n) < right, labels, other)
        moved = np.where(rng.random(n) < changed, (said + rng.integers(1, len(shares), n)) % len(shares), said)
        return np.stack([labels, said], 1).astype(float), np.stack([labels, moved], 1).astype(float)

    return draw


def failing(share: float, loss: float, noise: float) -> Draw:
    """Absolute errors of which a share fails by `loss` times the usual, the others unchanged or changed by noise."""

    def draw(rng: np.random.Generator, n: int) -> tuple[Rows, Rows]:
        errors = np.abs(rng.normal(size=n))
        return errors, np.abs(errors + noise * rng.normal(size=n)) + loss * (rng.random(n) < share)

    return draw


def squared(tail: str) -> Draw:
    """Squared errors; the variant adds independent ones of a quarter of the size."""

    def draw(rng: np.random.Generator, n: int) -> tuple[Rows, Rows]:
        errors = rng.normal(size=n) if tail == "normal" else rng.standard_t(3, n)
        added = rng.normal(size=n) if tail == "normal" else rng.standard_t(3, n)
        return errors**2, (errors + added / 4) ** 2

    return draw


def scores(rng: np.random.Generator, n: int) -> tuple[Rows, Rows]:
    """Scores of a detector with 30 % positives; the variant adds noise."""
    labels = (rng.random(n) < 0.3).astype(float)
    clean = labels * 1.5 + rng.normal(size=n)
    return np.stack([labels, clean], 1), np.stack([labels, clean + 0.4 * rng.normal(size=n)], 1)


UNSEEN = "MAE, 0.5 % fail, noise in all"
"""Where no failing row is among those seen, nothing tells this from a variant that only rounds differently."""
SETTINGS: Mapping[str, tuple[str, Draw]] = {
    "macro F1, 4 classes, 4 % of answers change": ("f1", answers((0.25,) * 4, 0.9, 0.04)),
    "macro F1, rare class 1 %, 1 % change": ("f1", answers((0.99, 0.01), 0.98, 0.01)),
    "MAE, 0.5 % of rows fail, others unchanged": ("mae", failing(0.005, 20, 0.0)),
    UNSEEN: ("mae", failing(0.005, 20, 1e-6)),
    "RMSE, normal errors": ("rmse", squared("normal")),
    "RMSE, t3 errors": ("rmse", squared("t3")),
    "AUC, 30 % positive": ("auc", scores),
}


def drops(rng: np.random.Generator, simulations: int, sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Shares of PASS where the true drop is the limit, and PASS at a limit of twice the true drop (power)."""
    rows = []
    for name, (text, draw) in SETTINGS.items():
        metric = get_metric(text)
        truth = _true_drop(metric, draw)
        for n in sizes:
            count = simulations if n < 2000 or text == "mae" else max(50, simulations // 3)
            passed, before, power = 0, 0, 0
            for _ in range(count):
                reference, variant = draw(rng, n)
                try:
                    change = paired_change(metric, reference, variant)
                except DataError:  # rows of one class only: undefined, so no verdict
                    continue
                passed += change_verdict(change, truth).verdict == "PASS"
                power += change_verdict(change, 2 * truth).verdict == "PASS"
                before += _naive(metric, reference, variant, change, truth)
            found = (passed / count, before / count, power / count)
            rows.append(
                {"metric": name, "n": n, "runs": count, "pass": found[0], "before": found[1], "power": found[2]}
            )
    return rows


def _true_drop(metric: Metric, draw: Draw) -> float:
    rng = np.random.default_rng(12345)
    reference, variant = draw(rng, 2_000_000)
    if metric.name.startswith("auc"):
        reference, variant = reference[:400_000], variant[:400_000]
    drop = metric.value(reference) - metric.value(variant)
    return drop if metric.higher_is_better else -drop


def _naive(metric: Metric, reference: Rows, variant: Rows, change: PairedChange, limit: float) -> bool:
    """The percentile bootstrap alone, and nothing changed taken for a proof."""
    if np.array_equal(reference, variant):
        return True
    sign = 1.0 if metric.higher_is_better else -1.0
    if change.draws is not None:
        return bool(np.quantile(change.draws, 0.025) >= -limit)
    statistic = np.mean if metric.mean_reduced else metric.value
    try:
        _, low, high = paired_bootstrap(reference, variant, statistic, seed=0)
    except DataError:  # a resample without one of the classes
        return False
    end = low if sign > 0 else None if high is None else -high
    return end is not None and end >= -limit


# ---- many variants ------------------------------------------------------------------------------------------------------


def families(rng: np.random.Generator, simulations: int, counts: Sequence[int]) -> list[dict[str, Any]]:
    """Runs in which anything beyond the limit passes: each alone, and all together; and PASS of one without any loss."""
    rows = []
    for n, psi in ((600, 0.05), (2000, 0.03)):
        for count in counts:
            for extra in (0.0, 0.002):
                alone, together = 0, 0
                for _ in range(simulations):
                    found, passed = _family(rng, count, n, psi, LIMIT + extra)
                    alone += any(found)
                    together += any(passed)
                rows.append(
                    {
                        "n": n, "psi": psi, "count": count, "drop": LIMIT + extra, "alone": alone / simulations,
                        "together": together / simulations, "runs": simulations,
                    }
                )  # fmt: skip
    return rows


def powers(rng: np.random.Generator, simulations: int, counts: Sequence[int]) -> list[dict[str, Any]]:
    """Chance that a variant without any loss passes, by how many such are compared."""
    rows = []
    for n, psi in ((1000, 0.02), (2000, 0.01), (2000, 0.02), (4000, 0.02)):
        for count in counts:
            alone, together = [], []
            for _ in range(max(20, simulations // count)):
                found, passed = _family(rng, count, n, psi, 0.0)
                alone += found
                together += passed
            rows.append(
                {
                    "n": n,
                    "psi": psi,
                    "count": count,
                    "alone": float(np.mean(alone)),
                    "together": float(np.mean(together)),
                }
            )
    return rows


def _family(rng: np.random.Generator, count: int, n: int, psi: float, drop: float) -> tuple[list[bool], list[bool]]:
    """Which of `count` independent variants of that true drop pass alone, and which together.

    By Tango's p-values and Holm's correction, which `quality/family.py` is tested to be (tests/quality/test_family.py), because
    bounds take a hundred times as long.
    """
    flips = rng.multinomial(n, [(psi + drop) / 2, (psi - drop) / 2, 1 - psi], size=count)[:, :2].tolist()
    found = np.array([tango_noninferior_p(bad, good, n, LIMIT) for bad, good in flips])
    return (found < ALPHA).tolist(), (holm(found) < ALPHA).tolist()


# ---- the decision as a whole --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Truth:
    """What is true of one case: seconds, and the drop of its accuracy."""

    seconds: float
    drop: float


def made(
    rng: np.random.Generator, truth: Mapping[str, Truth], n: int, psi: float, *, offsets: float = 0.007, **settings: Any
) -> RunData:
    """A run of these variants beside fp32, in the default effort with short blocks; latencies with process offsets."""
    processes, rounds, samples = 5, 6, 20
    cases, blocks, started, qualities, artifacts = [], [], [], [], []
    weather = np.exp(rng.normal(0, 0.05, (processes, rounds)))
    right = (rng.random(n) < 0.9).astype(float)
    facts = SessionFacts("made", "1", "cpu", 1, None, "made up")
    for index, (variant, item) in enumerate(truth.items()):
        case = Case(variant, "ort", "local", 1, 1)
        cases.append(case)
        artifacts.append(ArtifactRecord(variant, f"{index:064x}", 1000, 500, True, {}))
        for process in range(processes):
            offset = item.seconds * math.exp(rng.normal(0, offsets))
            started.append(ProcessRecord(case.key, process, 0, 0, process, 0.1, 0.1, 0.1, 10**7, 6 * 10**7, facts))
            for index_ in range(rounds):
                times = offset * weather[process, index_] * np.exp(rng.normal(0, 0.008) + rng.normal(0, 0.01, samples))
                blocks.append(
                    BlockRecord(
                        case=case.key, replicate=process, attempt=0, group=0, round=index_, position=0,
                        started_s=float(index_), samples_s=times, discarded=3, inferences_per_sample=1, batch=1,
                        cpu_s=float(times.sum()), wall_s=float(times.sum()),
                    )
                )  # fmt: skip
        rows = right
        if variant != "fp32":
            # Of right ones (90 %) some become wrong, of wrong ones (10 %) some right: psi in all, and the drop between them.
            worse, better = (psi + item.drop) / 2 / 0.9, (psi - item.drop) / 2 / 0.1
            draw = rng.random(n)
            rows = np.where(right == 1, draw >= worse, draw < better).astype(float)
        qualities.append(
            QualityRecord(case.quality_key, "top1", rows, None, (rows == right).astype(float), "d" * 64, 0.1)
        )
    environment = Environment("h", "x86_64", "Linux", "3.11", None, (), 2, 2, 8 << 30, None, (), {})
    study = make_study(
        model="m.onnx", data="d.npz", backends=("ort",), effort={"processes": processes, "rounds": rounds}, **settings
    )
    return RunData(
        id="20260101-000000-0000", created_at="2026-01-01T00:00:00+00:00", status="finished", edgeprof_version="0",
        study=study, environment=environment, notes=(), plan={"cases": [asdict(case) for case in cases]},
        artifacts=tuple(artifacts), processes=tuple(started), blocks=tuple(blocks), qualities=tuple(qualities), failures=(),
    )  # fmt: skip


def wholes(rng: np.random.Generator, simulations: int) -> list[dict[str, Any]]:
    """Runs in which `recommend()` ships one that loses more than the limit, from 20 faster ones that all do, by 0.2 points."""
    rows = []
    for n, psi, given in ((600, 0.05, True), (2000, 0.05, True), (300, 0.05, False)):
        truth = {"fp32": Truth(2e-3, 0.0)}
        truth |= {f"v{index}": Truth(1e-3 * (1 + index / 40), LIMIT + 0.002) for index in range(20)}
        wrong, alone = 0, 0
        settings = {"constraints": {"max_drop": LIMIT}} if given else {}
        for _ in range(simulations):
            analysis = analyse(made(rng, truth, n, psi, **settings), today=TODAY)
            advice = recommend(analysis, view(analysis))
            wrong += advice.case is not None and advice.case.case.variant != "fp32"
            checks = [case.checks[0] if given else case.default_check for case in analysis.measured]
            alone += any(
                check is not None and check.verdict == "PASS" and not case.is_reference
                for check, case in zip(checks, analysis.measured, strict=True)
            )
        limit = "1 point" if given else "none given"
        rows.append(
            {
                "n": n,
                "psi": psi,
                "limit": limit,
                "alone": alone / simulations,
                "wrong": wrong / simulations,
                "runs": simulations,
            }
        )
    return rows


# ---- a limit on p99 -----------------------------------------------------------------------------------------------------


def limits(rng: np.random.Generator, simulations: int) -> list[dict[str, Any]]:
    """PASS where the limit is the true p99 of fresh processes: by the figure that is shown, and by that for a fresh process."""
    rows = []
    for jitter, spread in ((0.05, 0.01), (0.02, 0.01), (0.03, 0.03), (0.01, 0.02), (0.005, 0.01)):
        big = np.random.default_rng(5).normal(0, spread, 4_000_000) + np.random.default_rng(6).normal(
            0, jitter, 4_000_000
        )
        limit = math.exp(float(np.quantile(big, 0.99)))
        for effort, processes, rounds in (("quick", 5, 3), ("default", 5, 6), ("thorough", 10, 6)):
            owners = np.repeat(np.arange(processes), rounds).tolist()
            before, after, typical = 0, 0, 0
            for _ in range(simulations):
                offsets = rng.normal(0, spread, processes)
                samples = np.exp(offsets[:, None, None] + rng.normal(0, jitter, (processes, rounds, 80))).reshape(
                    -1, 80
                )
                found = quantile_interval(list(samples), 0.99, processes=owners)
                typical += found.typical
                before += found.high is not None and found.high <= limit
                after += found.fresh_high is not None and found.fresh_high <= limit
            rows.append(
                {
                    "jitter": jitter, "offsets": spread, "effort": effort, "before": before / simulations,
                    "after": after / simulations, "typical": typical / simulations, "runs": simulations,
                }
            )  # fmt: skip
    return rows


# ---- words of the frontier ----------------------------------------------------------------------------------------------


def frontiers(rng: np.random.Generator, simulations: int) -> list[dict[str, Any]]:
    """How often what the frontier says of two cases is false: `dominated`, `ahead on one axis`, and a member that is beaten."""
    rows = []
    for space, n in (("random", 2000), ("random", 600), ("near-equal", 2000), ("near-equal", 600)):
        counted = dict.fromkeys(
            ("dominated", "false", "behind", "false behind", "members", "beaten", "beaten alone"), 0
        )
        for _ in range(simulations):
            truth = {"fp32": Truth(1.5e-3, 0.0)}
            for index in range(11):
                wide = space == "random"
                seconds = 1e-3 * (math.exp(rng.uniform(-0.5, 0.5)) if wide else math.exp(rng.normal(0, 0.01)))
                truth[f"v{index}"] = Truth(seconds, float(rng.uniform(0, 0.02) if wide else rng.normal(0.002, 0.001)))
            analysis = analyse(made(rng, truth, n, 0.05), today=TODAY)
            _count(counted, analysis, truth)
        members = max(1, counted["members"])
        rows.append(
            {
                "space": space, "n": n, "runs": simulations, "cases": 12 * simulations, "dominated": counted["dominated"],
                "false": counted["false"], "behind": counted["behind"], "false behind": counted["false behind"],
                "beaten": counted["beaten"] / members, "beaten alone": counted["beaten alone"] / members,
            }
        )  # fmt: skip
    return rows


def _count(counted: dict[str, int], analysis: Analysis, truth: Mapping[str, Truth]) -> None:
    found = view(analysis)

    def of(key: str) -> Truth:
        return truth[key.partition("@")[0]]

    for case, by in found.dominated:
        one, other = of(by), of(case.key)
        # Equal within 2 % counts as no slower, as the words say.
        good = one.seconds <= 1.02 * other.seconds and one.drop <= other.drop + 1e-12
        counted["dominated"] += 1
        counted["false"] += not (good and (one.seconds < other.seconds or one.drop < other.drop))
    for case, by in (*found.behind, *((case, found.why[case.key].split(" ")[0]) for case in found.tied)):
        one, other = of(by), of(case.key)
        said = found.why[case.key]
        counted["behind"] += 1
        faster, better = " faster" in said and "by estimate" not in said, "accuracy better" in said
        counted["false behind"] += (faster and one.seconds >= other.seconds) or (better and one.drop >= other.drop)
    for case in found.members:
        mine = of(case.key)
        beaten = any(item.seconds < mine.seconds and item.drop < mine.drop for item in truth.values())
        counted["members"] += 1
        counted["beaten"] += beaten
        counted["beaten alone"] += beaten and not any(case.key in group for group in found.equal)
