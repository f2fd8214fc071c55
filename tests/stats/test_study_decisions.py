"""scripts/study_decisions in small: the stated error of verdicts, limits and families, at the boundary, from fixed seeds."""

from __future__ import annotations

import numpy as np
import pytest

from scripts.studies_lib import decisions


@pytest.mark.parametrize("name", ["MAE, 0.5 % of rows fail, others unchanged", "macro F1, rare class 1 %, 1 % change"])
def test_nothing_passes_because_nothing_bad_was_seen(name, monkeypatch):
    """200 rows: the bootstrap alone passes a drop of exactly the limit in a third of the runs, the verdict in none."""
    monkeypatch.setattr(decisions, "SETTINGS", {name: decisions.SETTINGS[name]})
    (row,) = decisions.drops(np.random.default_rng(3), 25, (200,))

    assert row["pass"] == 0
    assert row["before"] > 0.1


def test_a_choice_among_many_errs_as_rarely_as_one():
    """12 and 48 variants that all lose exactly the limit: 5 % stated, 300 runs, so at most 8 %; alone every second run."""
    rows = decisions.families(np.random.default_rng(1), 300, (1, 12, 48))

    assert max(row["together"] for row in rows) <= 0.08
    assert min(row["alone"] for row in rows if row["count"] > 1 and row["drop"] == decisions.LIMIT) > 0.35


def test_a_recommendation_is_no_lucky_one():
    """Six whole runs of twenty variants that all lose 1.2 points: nothing is shipped, although some pass alone."""
    rows = decisions.wholes(np.random.default_rng(1), 2)

    assert sum(row["wrong"] for row in rows) == 0
    assert sum(row["alone"] for row in rows) > 0


def test_a_limit_at_the_true_p99_is_not_passed_because_five_processes_are_alike():
    """Offsets of the size of the jitter: the shown figure passes in most runs, what a limit is held against in few."""
    rows = decisions.limits(np.random.default_rng(1), 12)
    wide = [row for row in rows if row["offsets"] >= 2 * row["jitter"]]

    assert np.mean([row["before"] for row in wide]) > 0.5
    assert np.mean([row["after"] for row in wide]) <= 0.1
