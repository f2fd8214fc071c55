"""scripts/study_coverage and scripts/study_warmup in small: what edgeprof's numbers promise, proved by simulation.

Seeds are fixed, so these are the same figures everywhere; the scripts print the long form as tables for the documentation.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from profiler.stats import simulate
from profiler.stats.warmup import steady_state

SCRIPTS = Path(__file__).parents[2] / "scripts"


def rows_of(script: str, *arguments: str) -> list[dict[str, Any]]:
    """What the script found; it must have reached everything that it requires."""
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / script), "--json", *arguments],
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    found = json.loads(done.stdout)
    assert found["missed"] == []
    return list(found["rows"])


@pytest.fixture(scope="module")
def coverage() -> list[dict[str, Any]]:
    return rows_of("study_coverage", "--quick")


@pytest.fixture(scope="module")
def warmup() -> list[dict[str, Any]]:
    return rows_of("study_warmup", "--series", "60")


def section(rows: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    found = [row for row in rows if row["section"] == name]
    assert found
    return found


class TestCoverage:
    def test_percentiles_are_covered_where_independence_is_assumed_in_vain(self, coverage):
        """Ours: 92 % or more at every effort, correlated or not; as if independent: under 40 % if correlated."""
        rows = section(coverage, "percentiles")
        regular = [row for row in rows if row["noise"] != "bursts"]

        assert {row["p"] for row in rows} == {0.5, 0.9, 0.99}
        assert len({row["design"].split(":")[0] for row in rows}) == 4
        assert all(row["ours"] >= 0.92 - 2 * row["error"] for row in regular)
        assert all(row["independent"] < 0.4 for row in rows if row["noise"] == "ar1")

    def test_the_median_of_the_default_effort_is_always_bounded(self, coverage):
        """Coverage by missing bounds would be free: p50 has both, always, with the default and the thorough effort."""
        rows = [row for row in section(coverage, "percentiles") if row["p"] == 0.5 and row["noise"] != "bursts"]
        found = {row["design"].split(":")[0]: row["bound_missing"] for row in rows}

        assert found["default"] == found["thorough"] == 0

    def test_ratios_are_covered_and_blocks_as_units_are_too_sure(self, coverage):
        """93-97 % with 3, 5 and 10 process pairs; counting blocks or inferences falls short with every number."""
        rows = section(coverage, "ratios")

        assert [row["processes"] for row in rows] == [3, 5, 10]
        for row in rows:
            assert 0.93 - 2 * row["error"] <= row["ours"] <= 0.97 + 2 * row["error"]
            assert row["blocks as units"] < 0.92
            assert row["inferences as units"] < 0.8
        assert rows[1]["half_width"] <= 0.01

    def test_identical_models_are_seldom_said_to_differ(self, coverage):
        """Interleaved and judged by process pairs: about 5 %, none beyond the margin; one after the other: every test fails."""
        rows = section(coverage, "aa")
        for row in rows:
            pooled = min(row["pooled Mann-Whitney"], row["pooled Welch"])
            assert pooled > 0.25
            if row["layout"] == "randomly interleaved":
                assert row["ours: process pairs"] <= 0.05 + 2 * row["error"]
                assert row['ours, called "differs" (margin 2 %)'] <= 0.01
            else:
                assert row["ours: process pairs"] > 0.2


class TestStopping:
    def rule(self, rows: list[dict[str, Any]], noise: str, start: str, runs: str) -> dict[str, Any]:
        (row,) = [r for r in rows if (r["noise"], r["runs"]) == (noise, runs) and r["rule"].startswith(start)]
        return row

    @pytest.mark.parametrize("noise", ["white and AR(1), 0.1 s", "white and AR(1), 5 s"])
    def test_our_rule_stops_later_and_covers_better_than_the_naive_one(self, coverage, noise):
        """The naive rule is content within two processes and then holds the median in under 60 %; ours in 92 %."""
        rows = section(coverage, "stopping")
        naive = self.rule(rows, noise, "95 % of independent", "stopped early")
        ours = self.rule(rows, noise, "ours", "stopped early")

        assert (naive["share"], naive["p50"] < 0.6) == (1.0, True)
        assert naive["processes"] < 2
        assert ours["processes"] >= 8
        assert ours["p50"] >= 0.92 - 3 * math.sqrt(0.92 * 0.08 / ours["count"])

    def test_a_tail_that_cannot_be_known_uses_the_budget(self, coverage):
        """Wholly correlated noise: our rule never claims p99, and what the whole budget gives holds the median."""
        ours = self.rule(section(coverage, "stopping"), "AR(1) 8 %, 0.1 s", "ours", "whole budget used")

        assert ours["share"] >= 0.95
        assert ours["p50"] >= 0.92 - 3 * math.sqrt(0.92 * 0.08 / ours["count"])

    def test_looking_at_every_process_cries_wolf_and_our_looks_do_not(self, coverage):
        """Identical models: over 10 % "differs" when one looks after each process at 95 %, at most 5 % with our looks."""
        rows = {(row["change"], row["rule"]): row for row in section(coverage, "ratio stopping")}
        eager, ours = rows[0.0, "95 %, after each process"], rows[0.0, "ours: 99 %, at our looks"]

        assert eager["differs"] > 0.1
        assert ours["differs"] <= 0.05 + 2 * ours["error"]
        assert rows[0.05, "ours: 99 %, at our looks"]["differs"] >= 0.99


class TestWarmup:
    def of(self, rows: list[dict[str, Any]], rule: str, shape: str, *, bursts: bool = False) -> dict[str, Any]:
        (row,) = [r for r in rows if (r["rule"], r["shape"], r["bursts"]) == (rule, shape, bursts)]
        return row

    @pytest.mark.parametrize("shape", ["decay", "step"])
    def test_decay_and_step_leave_at_most_three_per_mille(self, warmup, shape):
        """Mean |bias| of our rule <= 0.3 %, all series accepted; fixed counts and windows leave more than that."""
        ours = self.of(warmup, "ours, accepted at once", shape)

        assert ours["accepted"] == 1
        assert ours["mean_abs_bias"] <= 0.003
        for rule in ("1 inference", "fixed 200", "three windows within 10 %", "CoV < 2 %, k = 10"):
            assert self.of(warmup, rule, shape)["mean_abs_bias"] > 0.003

    def test_a_thermal_rise_is_told(self, warmup):
        """No series of it is called flat or warmed up, and what is left is less than what the other rules leave."""
        ours = self.of(warmup, "ours, accepted at once", "thermal")

        assert set(ours["labels"]) <= {"slowdown", "no_steady_state"}
        assert all(
            ours["mean_abs_bias"] < self.of(warmup, rule, "thermal")["mean_abs_bias"]
            for rule in ("fixed 200", "MSER-5")
        )

    @pytest.mark.parametrize("shape", ["flat", "decay", "step"])
    def test_with_bursts_a_run_gets_as_near_as_who_knows_the_cut(self, warmup, shape):
        """Nearly all series are accepted after extension, with no more bias than bursts alone cause."""
        ours = self.of(warmup, "ours, extended", shape, bursts=True)
        knows = self.of(warmup, "who knows the truth", shape, bursts=True)

        assert ours["accepted"] >= 0.95
        assert ours["mean_abs_bias"] <= knows["mean_abs_bias"]

    @pytest.mark.parametrize(("scatter", "accepted"), [(0.01, 1.0), (0.04, 1.0), (0.1, 0.9)])
    def test_a_flat_quiet_series_is_never_cut(self, scatter, accepted):
        """200 series of 3,000: no inference is cut. With 10 % noise the halves of a few differ by over 1 %: more is asked for."""
        data = 1e-3 * simulate.lognormal(np.random.default_rng(17), 200, 3000, scatter)
        found = [steady_state(x) for x in data]

        assert {0} == {f.cut for f in found}
        assert np.mean([f.accepted for f in found]) >= accepted
        assert {f.label for f in found if f.accepted} == {"flat"}

    @pytest.mark.parametrize("shape", ["flat", "decay", "step"])
    def test_the_default_effort_leaves_less_than_any_fixed_rule(self, warmup, shape):
        """From 0.5 s on: everything is accepted in the end, and half a per cent is left at the most."""
        ours = self.of(warmup, "ours, default effort", shape)

        assert ours["accepted"] == 1
        assert ours["mean_abs_bias"] <= 0.005


@pytest.mark.parametrize(
    ("script", "arguments"), [("study_coverage", ("--only", "ratios", "--quick")), ("study_warmup", ("--series", "20"))]
)
def test_tables_are_markdown(script, arguments):
    """Every line of the print-out is a title, an empty line, or a table row with as many cells as its head."""
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / script), *arguments], capture_output=True, text=True, timeout=280, check=True
    )
    tables = [block.splitlines() for block in done.stdout.strip().split("\n\n")]

    assert all(len(lines) == 1 and lines[0].startswith("**") for lines in tables[::2])
    for lines in tables[1::2]:
        assert len(lines) >= 3
        assert len({line.count(" | ") for line in lines}) == 1


def test_too_few_simulations_are_refused():
    """Twenty simulations tell nothing about 95 %, and the message says so."""
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "study_coverage"), "--simulations", "20"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert done.returncode == 2
    assert "fewer than 100" in done.stderr
