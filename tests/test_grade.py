"""The letter of a run: what it takes, and what is missing for a better one."""

from __future__ import annotations

import pytest

from profiler.grade import dedicated, grade

GOOD = {"passed": True}


@pytest.mark.parametrize(
    ("settings", "letter", "words"),
    [
        ({}, "A", ""),
        ({"dedicated": False}, "B", "shared"),
        ({"dedicated": None}, "B", "nothing tells whether"),
        ({"fixed_clocks": False}, "B", "clocks"),
        ({"dirty": 0.05}, "B", "5%"),
        ({"dirty": 0.10}, "C", "10%"),
        ({"dirty": 0.5}, "C", "50%"),
        ({"dirty": None}, "C", "nothing on this system tells"),
        ({"selftest": None}, "D", "edgeprof selftest"),
        ({"selftest": {"passed": False}}, "D", "cannot be trusted"),
        ({"processes": 2}, "D", "at least 3"),
        ({"selftest": None, "dirty": 0.4}, "D", "40%"),
    ],
)
def test_a_grade_names_what_keeps_it_from_a_better_one(settings, letter, words):
    found = grade(
        **{"dirty": 0.0, "processes": 5, "selftest": GOOD, "dedicated": True, "fixed_clocks": True, **settings}
    )

    assert found.letter == letter
    assert words in str(found)
    # No self-test is another thing than a failed one, and says so in place of a letter.
    assert str(found).startswith("no grade: " if settings.get("selftest", GOOD) is None else letter)


@pytest.mark.parametrize(
    ("made", "labels", "expected"),
    [
        (True, [{"steal_share": 0.0, "other_cpu_share": 0.02}], True),
        (True, [{"steal_share": 0.0, "other_cpu_share": 0.02}, {"steal_share": 0.1, "other_cpu_share": 0.0}], False),
        (True, [{"other_cpu_share": 0.9}, {"other_cpu_share": 0.0}], False),
        (None, [{"other_cpu_share": 0.0}], None),
        (False, [{"other_cpu_share": 0.0}], False),
        (True, [{}], None),
    ],
)
def test_a_machine_is_dedicated_by_its_make_and_by_what_was_seen(made, labels, expected):
    assert dedicated(made, labels) is expected


def test_limits_on_absolute_figures_need_a_machine_that_was_mostly_left_alone():
    def absolute(dirty):
        return grade(dirty=dirty, processes=5, selftest=GOOD, dedicated=False, fixed_clocks=None).absolute

    assert [absolute(share) for share in (0.0, 0.3, 0.31, None)] == [True, True, False, True]
