"""Disturbed rounds are measured again, precision is pursued, and a time budget is kept: with workers that are made up."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

from profiler import campaign
from profiler.budget import Budget
from profiler.errors import BudgetError
from profiler.records import BlockRecord
from profiler.study import Case, make_study

CASES = (Case("fp32", "fake", "local", 1, 1), Case("graph", "fake", "local", 1, 1))


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Memory:
    """A store that keeps blocks in a list."""

    def __init__(self) -> None:
        self.blocks: list[BlockRecord] = []

    def add(self, run_id, record):
        if isinstance(record, BlockRecord):
            self.blocks.append(record)
        return True

    def records(self, run_id, kind):
        return ()

    def done_blocks(self, run_id):
        return set()

    def last_attempt(self, run_id, replicate, group):
        return -1

    def run(self, run_id):
        return None


class Quiet:
    def __init__(self) -> None:
        self.notes: list[str] = []

    def stage(self, title, steps):
        pass

    def step(self, text=""):
        pass

    def note(self, text):
        self.notes.append(text)


@pytest.fixture
def world(monkeypatch):
    """A campaign whose set-up takes `setup_s` and whose blocks take `block_s` of an injected clock, dirty where `dirty` says."""

    def make(
        *, dirty=lambda replicate, index: False, setup_s=2.0, block_s=0.5, budget=None, converge_at=None, **effort
    ):
        clock, store, progress = Clock(), Memory(), Quiet()
        study = make_study(model="m", effort={"processes": 3, "rounds": 4, **effort}, time_budget_s=budget)
        job = SimpleNamespace(
            study=study, store=store, run_id="r", progress=progress, budget=Budget(budget, clock=clock, began=0.0),
            fail=lambda *a: None, resume="edgeprof run --resume latest",
        )  # fmt: skip

        @contextmanager
        def opened(job, case, replicate, attempt, group, warmup_s):
            clock.now += setup_s
            yield campaign._Lane(case, SimpleNamespace(kill=lambda: None))

        def block(job, lane, replicate, attempt, group, index, position):
            clock.now += block_s
            # What takes the processor away makes them longer, too: else nothing is left out for it.
            wall = np.full(20, 3e-3 if dirty(replicate, index) else 1e-3)
            cpu = np.full(20, 0.9e-3 if dirty(replicate, index) else 1e-3)
            return BlockRecord(
                lane.case.key, replicate, attempt, group, index, position, clock.now, wall, 0, 1, 1, 0.02, 0.02, {},
                wall, cpu, None, 1,
            )  # fmt: skip

        monkeypatch.setattr(campaign, "_opened", opened)
        monkeypatch.setattr(campaign, "_block", block)
        monkeypatch.setattr(
            campaign.stopping, "look",
            lambda run: SimpleNamespace(
                converged=converge_at is not None and 1 + max(b.replicate for b in store.blocks) >= converge_at
            ),
        )  # fmt: skip
        return job, store, clock

    return make


def rounds_of(store, replicate):
    return sorted({b.round for b in store.blocks if b.replicate == replicate})


def test_a_quiet_machine_measures_what_was_planned(world):
    job, store, _ = world()
    campaign.measure(job, [CASES])

    assert [rounds_of(store, r) for r in range(3)] == [[0, 1, 2, 3]] * 3
    assert len(store.blocks) == 3 * 4 * 2


def test_a_disturbed_round_is_measured_again_with_all_cases(world):
    # The first three rounds teach the rule what is usual.
    job, store, _ = world(dirty=lambda replicate, index: (replicate, index) == (1, 3))
    campaign.measure(job, [CASES])

    assert rounds_of(store, 0) == [0, 1, 2, 3]
    assert rounds_of(store, 1) == [0, 1, 2, 3, 4]
    assert len([b for b in store.blocks if b.replicate == 1]) == 10
    assert "1 disturbed rounds were measured again" in job.progress.notes


def test_on_a_noisy_machine_extra_rounds_have_a_limit(world):
    job, store, _ = world(dirty=lambda replicate, index: index % 2 == 1 or index >= 4, rounds=4, requeue_share=0.5)
    campaign.measure(job, [CASES])

    assert all(len(rounds_of(store, r)) == 6 for r in range(3))


def test_measuring_again_can_be_switched_off(world):
    job, store, _ = world(dirty=lambda replicate, index: index == 3, requeue_share=0.0)
    campaign.measure(job, [CASES])

    assert [rounds_of(store, r) for r in range(3)] == [[0, 1, 2, 3]] * 3


def test_fresh_processes_follow_until_precise(world):
    job, store, _ = world(precision=0.01, converge_at=5, max_processes=20)
    campaign.measure(job, [CASES])

    # Looks are at 3, 5, 8, … processes.
    assert {b.replicate for b in store.blocks} == set(range(5))


def test_going_on_ends_at_the_limit(world):
    job, store, _ = world(precision=0.01, converge_at=None, max_processes=7)
    campaign.measure(job, [CASES])

    assert {b.replicate for b in store.blocks} == set(range(7))


@pytest.mark.parametrize("budget", [7.0, 15.0, 24.0, 60.0, 200.0, 1000.0])
def test_a_time_budget_is_kept_and_used(world, budget):
    job, store, clock = world(budget=budget, max_processes=27)
    campaign.measure(job, [CASES])

    assert clock.now <= 1.05 * budget
    assert store.blocks
    # What is left would not hold another replicate of one round, or all processes were measured.
    assert budget - clock.now < 2 * 2.0 + 2 * 0.5 + 1 or len({b.replicate for b in store.blocks}) == 27


def test_a_short_budget_keeps_processes_rather_than_rounds(world):
    """Three processes of one round say more than one of eight: processes are what differs."""
    job, store, _ = world(budget=20.0)
    campaign.measure(job, [CASES])

    assert {b.replicate for b in store.blocks} == {0, 1, 2}


@pytest.mark.parametrize("budget", [0.5, 3.0])
def test_a_budget_too_short_for_one_round_says_what_was_reached(world, budget):
    job, store, _ = world(budget=budget)
    with pytest.raises(BudgetError, match=r"time budget of .* before one round of 2 cases.*--time-budget"):
        campaign.measure(job, [CASES])

    assert store.blocks == []


def test_groups_share_a_budget(world):
    job, store, clock = world(budget=30.0)
    campaign.measure(job, [CASES, CASES[:1]])

    assert {b.group for b in store.blocks} == {0, 1}
    assert clock.now <= 31.5


def test_a_step_that_takes_longer_than_what_is_left_ends_the_campaign_and_not_the_run(world, monkeypatch):
    """A case that hangs is no failure of the case when only the budget was over."""
    job, store, clock = world(budget=40.0)
    real = campaign._block

    def block(job, lane, replicate, *rest):
        if replicate == 1:
            clock.now += 100.0
            raise BudgetError("the time budget was used up")
        return real(job, lane, replicate, *rest)

    monkeypatch.setattr(campaign, "_block", block)
    campaign.measure(job, [CASES])

    assert {b.replicate for b in store.blocks} == {0}
    assert any("time budget is used up" in note for note in job.progress.notes)
