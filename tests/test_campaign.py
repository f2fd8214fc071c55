"""Which cases are resident together, and how a block's beginning is cut off."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.campaign import MAX_RESIDENT, plan_groups
from profiler.measure.loop import reentry_samples
from profiler.study import Case, expand, make_study, own_reference, reference_case


@given(
    variants=st.integers(0, 12), backends=st.integers(1, 3), batches=st.sets(st.integers(1, 9), min_size=1, max_size=3),
    threads=st.sets(st.integers(1, 4), min_size=1, max_size=2), megabytes=st.integers(0, 400), budget=st.integers(0, 20),
)  # fmt: skip
def test_groups_hold_every_case_once_beside_its_reference(variants, backends, batches, threads, megabytes, budget):
    """Whatever the study: each group has the reference of each of its cases, no case twice, no more than may be resident."""
    study = make_study(
        model="m", backends=tuple(f"b{n}" for n in range(backends)), batches=tuple(batches), threads=tuple(threads)
    )
    cases = expand(study, tuple(f"v{n}" for n in range(variants)))
    references = {case.key: (reference_case(case, study), own_reference(case)) for case in cases}
    groups = plan_groups(cases, {case.variant: megabytes << 20 for case in cases}, budget << 30, references)
    need = (200 + 3 * megabytes) << 20

    assert set(cases) == {case for group in groups for case in group}
    for group in groups:
        assert len(group) == len(set(group))
        assert all(set(references[case.key]) <= set(group) for case in group)
        assert len(group) <= MAX_RESIDENT
        assert len(group) <= 3 or len(group) * need <= budget << 30
    others = [case for group in groups for case in group if not case.is_reference_variant]
    assert len(others) == len(set(others))


def test_a_reference_in_a_shared_group_is_there_once():
    """Being its own reference makes it no second case."""
    case = [Case("fp32", "ort", "local", batch, 1) for batch in (1, 8)]
    groups = plan_groups(case, {"fp32": 1}, 8 << 30, {one.key: (one,) for one in case})

    assert [case] == groups


def test_targets_do_not_share_a_group():
    """Their disturbances have nothing to do with each other."""
    cases = [Case("fp32", "ort", target, 1, 1) for target in ("local", "jetson")]

    assert [[cases[0]], [cases[1]]] == plan_groups(cases, {"fp32": 1}, 8 << 30, {})


def test_a_case_whose_reference_is_not_in_the_plan_stands_alone():
    """The reference may have failed."""
    assert [[Case("graph", "ov", "local", 1, 1)]] == plan_groups(
        [Case("graph", "ov", "local", 1, 1)], {"graph": 1}, 1, {}
    )


@pytest.mark.parametrize(
    ("samples", "per_sample", "cut"),
    [
        ([1e-3] * 100, 1, 19),  # 20 ms are 20 samples, a fifth is 20
        ([1e-5] * 1000, 1, 200),
        ([1e-5] * 30_000, 1, 1999),
        ([1e-5] * 30_000, 10, 199),
        ([0.1] * 100, 1, 3),
        ([0.1] * 5, 1, 1),
        ([0.1] * 4, 1, 0),
        ([5.0], 1, 0),
    ],
    ids=str,
)
def test_the_beginning_of_a_block_is_cut_but_never_much_of_it(samples, per_sample, cut):
    """Three samples or 20 ms, at most a fifth: one sample always stays."""
    assert pytest.approx(cut, abs=1) == reentry_samples(np.array(samples), per_sample)


@given(st.lists(st.floats(1e-9, 10), min_size=1, max_size=300), st.integers(1, 50))
def test_a_fifth_is_the_most_that_is_cut(samples, per_sample):
    """Of any block."""
    assert 0 <= reentry_samples(np.array(samples), per_sample) <= len(samples) / 5
