"""A run stops when it knows enough, and not because one look happened to be narrow."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from profiler.stopping import look, sequential
from profiler.study import make_study


def spread(run, gap_s: float = 3.0):
    """The same run with its blocks apart in time, process after process."""
    rounds = max(block.round for block in run.blocks) + 1
    blocks = [replace(b, started_s=gap_s * (b.replicate * rounds + b.round)) for b in run.blocks]
    return replace(run, blocks=tuple(blocks))


@pytest.fixture
def two_cases(made_run):
    def make(ratio: float, *, processes: int = 12, noise: float = 0.001, samples: int = 400, **effort):
        run = made_run(processes=processes, rounds=6, samples=samples, weather=0.0, seed=3)
        slow, fast = run.case("fp32"), run.case("int8-static")
        run.timed(slow, 1e-3, noise=0.02, offsets=noise).timed(fast, 1e-3 / ratio, noise=0.02, offsets=noise)
        return run.data(effort={"processes": processes, "rounds": 6, "precision": 0.02, **effort})

    return make


def test_a_study_goes_on_only_when_asked():
    assert not sequential(make_study(model="m"))
    assert sequential(make_study(model="m", time_budget_s=60.0))
    assert sequential(make_study(model="m", effort={"precision": 0.01}))


def test_a_well_known_pair_has_converged(two_cases):
    found = look(spread(two_cases(1.5)))

    assert found.converged, found.by_case
    assert "differs" in found.by_case["int8-static@ort/b1/t1"].reason


def test_a_short_look_never_counts(two_cases):
    """However narrow: what was seen within ten seconds is one mood of the machine."""
    found = look(spread(two_cases(1.5), gap_s=0.1))

    assert not found.converged
    assert all("watched for" in item.reason for item in found.by_case.values())


def test_a_noisy_case_is_named(two_cases):
    run = spread(two_cases(1.5))
    random = np.random.default_rng(0)
    shaken = [
        replace(b, samples_s=b.samples_s * np.exp(random.normal(0, 0.3))) if b.case.startswith("int8") else b
        for b in run.blocks
    ]
    found = look(replace(run, blocks=tuple(shaken)))

    assert found.by_case["fp32@ort/b1/t1"].converged
    assert not found.by_case["int8-static@ort/b1/t1"].converged
    assert "p50" in found.by_case["int8-static@ort/b1/t1"].reason


def test_a_precision_not_reached_is_missing(two_cases):
    assert not look(spread(two_cases(1.5, precision=0.0001))).converged


def test_nothing_measured_has_not_converged(two_cases):
    assert not look(replace(two_cases(1.5), blocks=())).converged
