"""Dominance, dominance under uncertainty, hypervolume and knee against naive oracles and laws."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import profiler.frontier as module
from profiler.frontier import frontier, hypervolume_2d, knee, nondominated

# Few different values make ties and duplicates common.
grid = st.integers(0, 5).map(float)
tables = st.integers(1, 4).flatmap(
    lambda d: arrays(np.float64, st.tuples(st.integers(0, 14), st.just(d)), elements=grid)
)
planes = arrays(np.float64, st.tuples(st.integers(0, 12), st.just(2)), elements=grid)


def dominates(a, b) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))


def naive(points) -> list[bool]:
    return [not any(dominates(other, p) for other in points) for p in points]


class TestNondominated:
    @settings(deadline=None, max_examples=60)
    @given(tables)
    def test_the_definition(self, points):
        """Every answer equals the quadratic double loop; duplicates share their fate."""
        assert naive(points) == nondominated(points).tolist()

    @settings(deadline=None, max_examples=60)
    @given(tables, st.data())
    def test_negating_a_column_and_its_direction_changes_nothing(self, points, data):
        """Maximising x is minimising -x, column by column."""
        flip = data.draw(st.lists(st.booleans(), min_size=points.shape[1], max_size=points.shape[1]))
        turned = points * np.where(flip, -1, 1)

        np.testing.assert_array_equal(nondominated(points), nondominated(turned, maximise=flip))

    @settings(deadline=None, max_examples=60)
    @given(tables)
    def test_removing_dominated_points_keeps_the_frontier(self, points):
        """The frontier of the frontier is itself."""
        assert nondominated(points[nondominated(points)]).all()

    def test_infinities_are_worst_and_best_values(self):
        """An unbounded cost loses to any other in that column."""
        assert nondominated(np.array([[1.0, 2.0], [1.0, np.inf]])).tolist() == [True, False]

    @pytest.mark.parametrize(
        ("points", "maximise", "message"),
        [
            (np.array([[1.0, 2.0], [np.nan, 1.0]]), False, r"points \[1\] hold NaN"),
            (np.array([1.0, 2.0]), False, "shape"),
            (np.ones((2, 2)), [True], "one per column: got 1 for 2"),
        ],
    )
    def test_what_cannot_be_ordered_is_refused(self, points, maximise, message):
        """NaN, flat lists and missing directions are errors that name what came."""
        with pytest.raises(ValueError, match=message):
            nondominated(points, maximise=maximise)


class TestFrontierUnderUncertainty:
    @settings(deadline=None, max_examples=60)
    @given(st.data())
    def test_the_definition(self, data):
        """Members, dominators and ties equal the written definition, for both kinds of separation."""
        points = data.draw(tables)
        n, d = points.shape
        below = data.draw(arrays(np.float64, (n, d), elements=grid))
        above = data.draw(arrays(np.float64, (n, d), elements=grid))
        low, high = points - below, points + above
        separation = data.draw(st.sampled_from(["any", "all"]))
        members = naive(points)
        dominators = [[j for j in range(n) if members[j] and dominates(points[j], points[i])] for i in range(n)]

        def surely(j: int, i: int) -> bool:
            better = any(high[j, c] < low[i, c] for c in range(d))
            return better and (separation == "any" or all(high[j, c] <= low[i, c] for c in range(d)))

        tied = [not members[i] and not any(surely(j, i) for j in dominators[i]) for i in range(n)]
        got = frontier(points, low, high, separation=separation)

        assert members == got.members.tolist()
        assert dominators == got.dominated_by
        assert tied == got.tied.tolist()

    @settings(deadline=None, max_examples=60)
    @given(tables)
    def test_exact_values_leave_no_ties(self, points):
        """With zero-width intervals every point is a member or dominated for sure."""
        for separation in ("any", "all"):
            assert not frontier(points, points, points, separation=separation).tied.any()

    @settings(deadline=None, max_examples=60)
    @given(tables, st.sampled_from([np.nan, np.inf]))
    def test_unbounded_intervals_separate_nothing(self, points, unbounded):
        """Without bounds all points off the frontier are tied."""
        low, high = np.full_like(points, -unbounded), np.full_like(points, unbounded)
        got = frontier(points, low, high)

        np.testing.assert_array_equal(~got.members, got.tied)

    @settings(deadline=None, max_examples=60)
    @given(tables)
    def test_direction_mirrors_bounds_too(self, points):
        """Maximising negated values with negated, exchanged bounds gives the same answer."""
        low, high = points - 1, points + 2
        one = frontier(points, low, high)
        other = frontier(-points, -high, -low, maximise=True)

        assert one.dominated_by == other.dominated_by
        np.testing.assert_array_equal(one.members, other.members)
        np.testing.assert_array_equal(one.tied, other.tied)

    def test_the_case_of_the_report(self):
        """Same answers, latency intervals that touch: tied. Twice the latency, overlapping drops: dominated, yet not at `all`."""
        values = np.array([[80.0, 0.1], [81.0, 0.1], [160.0, 0.15]])
        low = np.array([[79.0, -0.2], [79.0, -0.2], [158.0, -0.1]])
        high = np.array([[81.0, 0.4], [83.0, 0.4], [162.0, 0.4]])

        got = frontier(values, low, high)

        assert got.members.tolist() == [True, False, False]
        assert got.dominated_by == [[], [0], [0]]
        assert got.tied.tolist() == [False, True, False]
        assert frontier(values, low, high, separation="all").tied.tolist() == [False, True, True]

    def test_bounds_of_another_shape_are_refused(self):
        """Every value needs its bounds."""
        with pytest.raises(ValueError, match="shape of values"):
            frontier(np.ones((2, 2)), np.ones((2, 1)), np.ones((2, 2)))


class TestHypervolume:
    @settings(deadline=None, max_examples=60)
    @given(planes)
    def test_it_counts_dominated_cells(self, points):
        """On a whole-number grid the area is the number of unit cells below the reference that some point dominates."""
        cells = [(x, y) for x in range(6) for y in range(6) if any(p[0] <= x and p[1] <= y for p in points)]

        assert len(cells) == hypervolume_2d(points, (6.0, 6.0))

    @settings(deadline=None, max_examples=60)
    @given(planes)
    def test_dominated_points_add_nothing(self, points):
        """Removing them leaves the area unchanged."""
        assert hypervolume_2d(points, (4.0, 4.0)) == hypervolume_2d(points[nondominated(points)], (4.0, 4.0))

    @settings(deadline=None, max_examples=60)
    @given(planes)
    def test_direction_and_column_order_do_not_matter(self, points):
        """Negating with the direction, and exchanging the columns, keep the area."""
        area = hypervolume_2d(points, (4.0, 5.0))

        assert area == hypervolume_2d(-points, (-4.0, -5.0), maximise=True)
        assert area == hypervolume_2d(points * [1, -1], (4.0, -5.0), maximise=[False, True])
        assert area == hypervolume_2d(points[:, ::-1], (5.0, 4.0))

    @pytest.mark.parametrize(
        ("points", "reference", "message"),
        [
            (np.array([[np.inf, 1.0]]), (2.0, 2.0), "finite"),
            (np.array([[-np.inf, 1.0]]), (2.0, 2.0), "finite"),
            (np.ones((1, 3)), (2.0, 2.0), "two columns"),
            (np.ones((1, 2)), (2.0, np.inf), "finite"),
        ],
    )
    def test_what_has_no_area_is_refused(self, points, reference, message):
        """Infinite points and other dimensions are errors."""
        with pytest.raises(ValueError, match=message):
            hypervolume_2d(points, reference)


class TestKnee:
    def test_the_furthest_bend_is_found(self):
        """The corner of an L is its knee, whatever dominated points surround it."""
        points = np.array([[5.0, 5.0], [0.0, 10.0], [1.0, 1.0], [3.0, 0.9], [10.0, 0.0]])

        assert knee(points) == 2

    @settings(deadline=None, max_examples=60)
    @given(planes, st.sampled_from([1e-3, 1.0, 64.0]), st.sampled_from([0.25, 1e6]))
    def test_units_and_directions_do_not_matter(self, points, x_unit, y_unit):
        """Scaling columns, or negating them with their direction, keeps the knee."""
        expected = knee(points)
        scaled = points * [x_unit, y_unit]
        turned = knee(scaled * [1, -1], maximise=[False, True])

        for got in (knee(scaled), turned):
            assert (expected is None) == (got is None)
            if expected is not None:
                # Rounding may choose another of two equal bends.
                assert bend(points, expected) == pytest.approx(bend(points, got))

    @settings(deadline=None, max_examples=60)
    @given(planes)
    def test_no_other_frontier_point_bends_more(self, points):
        """The knee is on the frontier, and a straight or hollow frontier has none."""
        front = np.flatnonzero(nondominated(points))
        found = knee(points)
        bends = [bend(points, i) for i in front] if len(np.unique(points[front], axis=0)) > 2 else [0.0]

        if found is None:
            assert max(bends) <= 1e-9
        else:
            assert found in front
            assert bend(points, found) == pytest.approx(max(bends))

    @pytest.mark.parametrize(
        "points",
        [
            [[1.0, 2.0], [2.0, 1.0]],
            [[0.0, 2.0], [1.0, 1.0], [2.0, 0.0]],
            [[0.0, 4.0], [3.0, 3.0], [4.0, 0.0]],
            [[1.0, 1.0]] * 4,
        ],
    )
    def test_two_points_a_line_a_bulge_and_copies_have_none(self, points):
        """Where nothing bends towards the better side there is no knee."""
        assert knee(np.array(points)) is None


def bend(points, index: int) -> float:
    """Cross product with the line between the ends of the frontier, scaled to its extent."""
    front = points[nondominated(points)]
    left, right = front[front[:, 0].argmin()], front[front[:, 0].argmax()]
    (dx, dy), (x, y) = right - left, points[index] - left
    return float((y * dx - x * dy) / (dx * dy))


def test_inputs_are_not_changed():
    """No function writes into its arguments."""
    values = np.array([[1.0, 4.0], [2.0, 2.0], [4.0, 1.0], [5.0, 5.0]])
    before = values.copy()
    values.flags.writeable = False
    frontier(values, values, values, maximise=[True, False])
    hypervolume_2d(values, (6.0, 6.0), maximise=False)
    knee(values)

    np.testing.assert_array_equal(before, values)


def test_a_point_added_off_the_frontier_changes_no_membership():
    """Dominated newcomers leave the others as they were."""
    values = np.array([[1.0, 4.0], [2.0, 2.0], [4.0, 1.0]])
    for worse in values + 0.5:
        assert nondominated(np.vstack([values, worse])).tolist() == [True, True, True, False]


def test_examples_in_docstrings_run():
    """What the documentation shows is what happens."""
    assert tuple(doctest.testmod(module)) == (0, 2)
