"""What a search says of itself in reports."""

from __future__ import annotations

from types import SimpleNamespace

from profiler.report import searched


def run(search):
    return SimpleNamespace(plan={} if search is None else {"search": search})


def decision(subject, stage, outcome):
    return {"subject": subject, "stage": stage, "outcome": outcome, "reason": f"because of {subject}"}


def test_a_run_that_is_no_search_says_nothing():
    assert searched.lines(run(None)) == []
    assert searched.rows(run(None)) == []


def test_candidates_are_counted_by_where_they_ended():
    found = {
        "asked": {"alpha": 0.05},
        "decisions": [
            decision("a", "screen", "dropped"), decision("b", "race", "dropped"), decision("c", "race", "dropped"),
            decision("d", "make", "not tried"), decision("e", "finish", "contender"),
        ],
    }  # fmt: skip

    (line,) = searched.lines(run(found))

    assert "1 not tried at make, 1 dropped at screen, 2 dropped at race, 1 contender;" in line
    assert "left out wrongly with at most 5%" in line
    assert searched.rows(run(found))[0]["reason"] == "because of a"


def test_the_spread_over_calibration_seeds_is_shown_or_said_to_be_missing():
    spreads = [
        {"case": "int8@ort", "values": {"int8": 0.92, "int8{seed=1}": 0.93}, "missing": {}},
        {"case": "int8@ov", "values": {"int8": 0.92}, "missing": {"int8{seed=1}": "no time was left"}},
    ]

    lines = searched.lines(run({"decisions": [], "seed_spreads": spreads}))[1:]

    assert lines[0] == "calibration seeds of int8@ort: 2 draws of rows give 0.92 to 0.93"
    assert lines[1] == "calibration seeds of int8@ov: not repeated, no time was left"


def test_whether_a_stated_gain_was_reached_is_told():
    lines = searched.lines(run({"decisions": [], "enough": "1.5 times faster was reached: it"}))

    assert lines[1:] == ["enough: 1.5 times faster was reached: it"]


def test_a_plan_of_another_shape_is_no_crash():
    """Records are untrusted."""
    for search in (
        "text",
        [],
        {"enough": [1]},
        {"decisions": "x", "seed_spreads": [1], "asked": None},
        {"decisions": [3]},
    ):
        searched.lines(run(search))
        searched.rows(run(search))
