"""The study scripts: their counting on made-up data with a known answer, and each of them in small on the fake backend."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from profiler.disturbance import Judged
from profiler.records import BlockRecord

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def scripts_importable(monkeypatch):
    """The scripts put the repository on the path themselves."""
    monkeypatch.syspath_prepend(str(ROOT))


def pairs(count: int, effect: float, *, process_sd: float = 0.003, rounds: int = 6, seed: int = 0) -> list[np.ndarray]:
    """Log ratios of rounds: the effect, a lasting offset of each process pair, and noise."""
    random = np.random.default_rng(seed)
    return [effect + random.normal(0, process_sd) + random.normal(0, 0.002, rounds) for _ in range(count)]


def test_a_false_positive_is_counted_and_an_effect_is_found():
    """No effect: about the nominal rate with processes as the unit, far more when blocks are; +5 %: always found."""
    from scripts.studies_lib import aa

    nothing = pairs(400, 0.0)
    free = aa.false_positives(aa.disjoint(nothing, 5))

    assert free["differs"] == {
        "hits": 0,
        "count": 80,
        "share": 0.0,
        "low": 0.0,
        "high": pytest.approx(0.045, abs=0.001),
    }
    assert 0 < free["interval_excludes_1"]["share"] < 0.15
    assert aa.paired_blocks(nothing)["share"] > 0.4
    assert aa.detections(aa.disjoint(pairs(100, np.log(1.05)), 10))["differs"]["share"] == 1.0
    assert aa.detections(aa.disjoint(pairs(100, -np.log(1.05)), 10))["differs"]["share"] == 0.0


def test_resampling_draws_different_pairs_and_swaps_labels():
    """With swaps a constant offset of all pairs cancels; without them it is there in every experiment."""
    from scripts.studies_lib import aa

    offset = [np.full(6, 0.01 + place * 1e-5) for place in range(20)]
    kept = aa.resampled(offset, 5, 50, 1, swap=False)
    swapped = aa.resampled(offset, 5, 50, 1, swap=True)

    assert all(decision.ratio > 1.009 and decision.excludes_one for decision in kept)
    assert {decision.ratio > 1 for decision in swapped} == {True, False}
    assert kept == aa.resampled(offset, 5, 50, 1, swap=False)
    assert aa.resampled(offset, 21, 50, 1, swap=False) == []


def test_naive_tests_find_what_is_there_and_little_else():
    """Independent samples: about 5 % of equal ones, all of clearly different ones."""
    from scripts.studies_lib import aa

    random = np.random.default_rng(0)
    equal = [(random.lognormal(0, 0.05, 400), random.lognormal(0, 0.05, 400)) for _ in range(60)]
    apart = [(a, 1.05 * b) for a, b in equal]

    assert all(rate["share"] < 0.15 for rate in aa.naive_rates(equal).values())
    assert all(rate["share"] == 1.0 for rate in aa.naive_rates(apart).values())


def test_errors_are_of_ratios_whose_truth_is_one():
    """Either side counts."""
    from scripts.studies_lib import aa

    found = aa.errors([0.98, 1.0, 1.01])

    assert (found["p50"], found["max"]) == (pytest.approx(0.01), pytest.approx(0.02))
    assert aa.errors([])["p90"] is None


def test_shares_have_exact_intervals():
    """Clopper and Pearson's for 0 of 10 and 10 of 10 end at 0.308 and 0.692."""
    from scripts.studies_lib import tables

    assert tables.share(0, 10)["high"] == pytest.approx(0.3085, abs=1e-4)
    assert tables.share(10, 10)["low"] == pytest.approx(0.6915, abs=1e-4)
    assert tables.share(0, 0)["share"] is None
    assert tables.share_text(tables.share(1, 4)) == "1 of 4 = 25.0 % (0.6–80.6)"


def judged(replicate: int, samples: np.ndarray, flags: np.ndarray) -> Judged:
    block = BlockRecord(
        case="c", replicate=replicate, attempt=0, group=0, round=0, position=0, started_s=0.0, samples_s=samples, discarded=0,
        inferences_per_sample=1, batch=1, cpu_s=1.0, wall_s=float(samples.sum()), window_s=samples,
    )  # fmt: skip
    return Judged(block, flags, ())


def test_the_spread_between_processes_is_that_of_what_is_kept():
    """Two processes, one with labelled outliers: raw p99 differ, clean ones do not."""
    from scripts.studies_lib import interference

    calm = np.full(1000, 1e-3)
    rough = np.where(np.arange(1000) < 50, 5e-3, 1e-3)
    found = interference.spread([judged(0, calm, calm > 2e-3), judged(1, rough, rough > 2e-3)])

    assert found["observed"]["cv"] == pytest.approx(np.std([1, 5], ddof=1) / 3)
    assert found["clean"] == {"processes": 2, "median_s": 1e-3, "cv": 0.0}
    assert interference.moved(found, found) == {"observed": pytest.approx(2.0), "clean": 0.0}


def test_quiet_labels_are_all_false_ones():
    """Without anything injected there is no recall, only a share."""
    from scripts.studies_lib import interference

    rough = np.where(np.arange(1000) < 50, 5e-3, 1e-3)
    found = interference.labels("quiet", [judged(0, rough, rough > 2e-3)], ())

    assert (found["recall"], found["false_share"], found["unit"]) == (None, 0.05, "sample")


@pytest.mark.parametrize(
    ("line", "seconds"),
    [("[ INFO ]    Median:        218.86 us", 218.86e-6), ("    Median:     1.37 ms", 1.37e-3), ("Median: 2.5 s", 2.5)],
)
def test_benchmark_app_s_median_is_read_with_its_unit(line, seconds):
    """As the 2026.4 wheel prints it, and in its other units."""
    from scripts.studies_lib import others

    assert others.read_median(f"[ INFO ] Latency:\n{line}\n[ INFO ]    Average:       824.88 us\n") == pytest.approx(
        seconds
    )


def test_benchmark_app_without_a_median_is_quoted():
    """Its last words say why."""
    from scripts.studies_lib import others

    with pytest.raises(ValueError, match="printed no median: bad flag"):
        others.read_median("", "bad flag\n")


def run(name: str, *arguments: object, tmp_path: Path) -> tuple[str, dict[str, object]]:
    out = tmp_path / "out.json"
    command = [sys.executable, str(ROOT / "scripts" / name), *map(str, arguments), "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(out.read_text())


@pytest.mark.process
def test_study_aa_in_small(small_model, tmp_path):
    """Every replicate has its naive pair, every case its ratios; too few pairs for an experiment give no share."""
    out, found = run(
        "study_aa", "--backend", "fake{latency_us=400,read=false}", "--model", small_model, "--processes", 3, "--rounds", 2,
        "--block-s", 0.01, "--warmup-s", 0.01, "--experiments", 5, tmp_path=tmp_path,
    )  # fmt: skip

    # Two blocks of ten milliseconds may both be disturbed on a busy machine: then that pair has no ratio.
    assert found["pairs"] <= len(found["sequential_ratios"]) == 3
    assert {name: len(logs) <= 3 for name, logs in found["logs"].items()} == {"A'": True, "+2%": True, "+5%": True}
    assert found["false_positives_disjoint"]["differs"]["share"] is None
    assert found["naive_sequential"]["pooled Welch t"]["count"] == 3
    assert "| sequential, pooled Mann-Whitney |" in out


@pytest.mark.process
def test_study_interference_in_small(small_model, tmp_path):
    """Quiet and stop pulses: a row for each, with counts."""
    out, found = run(
        "study_interference", "--backends", "fake{latency_us=400,read=false}", "--threads", 1, "--model", small_model,
        "--processes", 2, "--rounds", 4, "--block-s", 0.1, "--warmup-s", 0.01, "--gap-s", 0.1,
        "--conditions", "quiet,stop pulses",
        tmp_path=tmp_path,
    )  # fmt: skip
    quiet, stopped = (next(iter(found["conditions"][name].values())) for name in ("quiet", "stop pulses"))

    assert quiet["labels"]["blocks"] == stopped["labels"]["blocks"] == 8
    assert stopped["labels"]["disturbed"] >= 1
    assert stopped["labels"]["recall"] is not None
    assert quiet["p99"]["clean"]["processes"] <= 2
    assert out.count("stop pulses") == 2


def test_an_unknown_condition_is_refused():
    """With the known ones."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts/study_interference"), "--conditions", "noise"],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip

    assert done.returncode == 2
    assert "unknown condition 'noise', known: quiet, spinners, quota, stop pulses" in done.stderr


@pytest.mark.runtime
@pytest.mark.process
def test_crosscheck_in_small(small_model, tmp_path):
    """onnxruntime beside a bare loop: two repetitions, a ratio of the right order."""
    pytest.importorskip("onnxruntime")
    out, found = run(
        "crosscheck", "--backends", "ort", "--model", small_model, "--shape", "x=1,4", "--processes", 2, "--seconds", 0.2,
        tmp_path=tmp_path,
    )  # fmt: skip
    comparison = found["comparisons"][0]

    assert len(comparison["repetitions"]) == 2
    assert comparison["ratio"] == pytest.approx(
        np.exp(np.mean([np.log(row["ours_s"] / row["theirs_s"]) for row in comparison["repetitions"]]))
    )
    assert "| ort | bare loop |" in out
