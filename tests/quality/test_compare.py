"""Paired changes, flips and verdicts: signs, identities, and what few or dependent samples may not prove."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.errors import DataError, StudyError
from profiler.quality import unseen
from profiler.quality.compare import Flips, agreement_estimate, count_flips, metric_estimate, paired_drop, worst_drop
from profiler.quality.metrics import FunctionMetric, get_metric
from profiler.quality.verdict import compare, drop_verdict, label_free_verdict
from profiler.records import Estimate
from profiler.stats.paired import tango_interval

TOP1 = get_metric("top1")


def answers(bad: int, good: int, n: int, both: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Reference and variant with that many flips; `both` samples are right with either."""
    both = n - bad - good if both is None else both
    rest = n - bad - good - both
    reference = np.repeat([1.0, 0.0, 1.0, 0.0], [bad, good, both, rest])
    variant = np.repeat([0.0, 1.0, 1.0, 0.0], [bad, good, both, rest])
    return reference, variant


def test_the_published_table_gives_its_tango_interval():
    """(59, 6, 16, 80): [−0.1240, −0.0054] with reference and variant in this order (contingencytables, test-ch8.R)."""
    change = paired_drop(TOP1, *answers(bad=16, good=6, n=161, both=59))

    assert (pytest.approx(change.value), change.unit) == (-10 / 161, "proportion")
    assert (pytest.approx(change.low, abs=5e-5), pytest.approx(change.high, abs=5e-5)) == (-0.1240, -0.0054)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 20), st.integers(0, 20), st.integers(41, 400))
def test_swapping_the_models_mirrors_the_change(bad, good, n):
    """Change, interval and flips change sides; the change is (good − bad) / n and lies in its interval."""
    reference, variant = answers(bad, good, n)
    forth, back = paired_drop(TOP1, reference, variant), paired_drop(TOP1, variant, reference)

    assert (good - bad) / n == pytest.approx(forth.value)
    assert forth.low <= forth.value <= forth.high
    assert (-forth.high, -forth.low) == (pytest.approx(back.low, abs=1e-9), pytest.approx(back.high, abs=1e-9))
    assert Flips(n, bad, good) == count_flips(reference, variant)
    assert forth.value == pytest.approx(variant.mean() - reference.mean())


@pytest.mark.parametrize("text", ["rmse", "mae"])
def test_a_larger_error_is_a_negative_change(text):
    """Negative always means worse, and the interval's ends keep their order."""
    rng = np.random.default_rng(0)
    metric, labels = get_metric(text), rng.normal(size=300)
    reference = metric.per_sample({"y": labels + 0.1 * rng.normal(size=300)}, labels)
    worse = metric.per_sample({"y": labels + 0.5 * rng.normal(size=300)}, labels)
    change = paired_drop(metric, reference, worse)

    assert metric.value(reference) - metric.value(worse) == pytest.approx(change.value)
    assert change.low < change.value < change.high < 0
    assert change.unit == "native"
    assert paired_drop(metric, worse, reference).low > 0


def test_an_error_rate_of_ones_counts_its_rises_as_bad():
    """For a 1/0 metric where lower is better, 0 → 1 is the bad flip, and the verdict agrees."""

    def mistake(outputs, labels):
        raise NotImplementedError

    mistake.higher_is_better = False
    mistake.unit = "proportion"
    right, wrong = answers(bad=40, good=5, n=1000)
    result = compare(FunctionMetric("m:mistake", mistake), 1 - right, 1 - wrong, max_drop=0.01)

    assert Flips(1000, 40, 5) == result.flips
    assert pytest.approx(result.change.value) == -0.035
    assert compare(TOP1, right, wrong, max_drop=0.01).verdict == result.verdict
    assert result.verdict.verdict == "FAIL"


@pytest.mark.parametrize("text", ["top1", "f1", "auc", "rmse", "agreement"])
@pytest.mark.parametrize("max_drop", [0.0, 0.01])
def test_the_reference_against_itself_is_exactly_zero_and_passes(text, max_drop):
    """By definition, not by sampling, at any margin."""
    metric = get_metric(text)
    rows = np.column_stack([np.arange(40) % 2, np.arange(40.0)]) if text in ("f1", "auc") else np.arange(40) % 2 * 1.0
    result = compare(metric, rows, rows.copy(), max_drop=max_drop, itself=True)

    assert Estimate(0.0, 0.0, 0.0, metric.unit, note="the reference against itself") == result.change
    assert result.verdict.verdict == "PASS"


def test_a_reference_that_differs_from_itself_is_an_error():
    """Then nothing can be compared with it."""
    with pytest.raises(DataError, match="differs from itself"):
        paired_drop(TOP1, *answers(1, 0, 10), itself=True)


def test_a_variant_without_flips_is_not_proven_equal_by_few_samples():
    """30 equal answers leave room for a drop; 300 rule out a point."""
    few, many = (compare(TOP1, *answers(0, 0, n), max_drop=0.01) for n in (30, 300))

    assert few.change.value == 0
    assert few.change.low < -0.05 < 0.05 < few.change.high
    assert (few.verdict.verdict, many.verdict.verdict) == ("INCONCLUSIVE", "PASS")
    assert 268 < few.verdict.needed_n < 2000


def test_views_of_one_source_do_not_count_as_samples():
    """Four equal views of each of 100 photographs bound the change like 100 samples; flips of one photograph stay together."""
    ids = np.repeat(np.arange(100), 4).astype(str)
    still = paired_drop(TOP1, *answers(0, 0, 400), ids=ids)
    one = np.repeat(answers(0, 0, 100)[0], 4)
    assert tango_interval(0, 0, 100) == (still.low, still.high)

    reference, variant = (np.repeat(array, 4) for array in answers(8, 2, 100))
    clustered, naive = paired_drop(TOP1, reference, variant, ids=ids), paired_drop(TOP1, reference, variant)
    assert clustered.value == pytest.approx(naive.value) == pytest.approx(-0.06)
    assert clustered.high - clustered.low > 1.6 * (naive.high - naive.low)
    assert clustered.note == "bootstrap over 100 clusters"

    share, independent = metric_estimate(TOP1, one, ids=ids), metric_estimate(TOP1, one)
    assert share.low < independent.low < 1.0 == share.high


def test_one_changed_cluster_bounds_no_tighter_than_none():
    """A bootstrap over clusters of which one changed is nearly sure of itself; less evidence must not read as more."""
    ids = np.repeat(np.arange(250).astype(np.str_), 2)
    reference = np.ones(500)
    variant = reference.copy()
    unchanged = paired_drop(TOP1, reference, variant, ids=ids)
    variant[0] = 0.0
    changed = paired_drop(TOP1, reference, variant, ids=ids)

    assert pytest.approx(changed.value) == -1 / 500
    assert changed.low < unchanged.low < -0.01
    assert changed.high > 0.005
    assert "1 of 250 clusters changed" in changed.note


def test_many_changed_clusters_are_left_to_the_bootstrap():
    """Where enough clusters changed nothing is widened."""
    ids = np.repeat(np.arange(100).astype(np.str_), 2)
    reference = np.ones(200)
    variant = reference.copy()
    variant[:60:2] = 0.0

    change = paired_drop(TOP1, reference, variant, ids=ids)

    assert change.note == "bootstrap over 100 clusters"
    assert pytest.approx(change.value) == -0.15
    assert -0.25 < change.low < change.value


def test_ids_without_repetition_are_independent_samples():
    """Tango's interval, as without ids."""
    pair = answers(5, 2, 100)
    assert paired_drop(TOP1, *pair) == paired_drop(TOP1, *pair, ids=np.arange(100).astype(str))


@pytest.mark.parametrize(
    ("text", "unit"), [("f1", "proportion"), ("auc", "proportion"), ("rmse", "native"), ("cosine", "native")]
)
def test_metrics_that_are_no_mean_of_ones_are_bootstrapped(text, unit):
    """The value is the plain difference, the interval holds it, one seed gives one interval."""
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 3, 400)
    logits = np.eye(3)[labels] + rng.normal(size=(400, 3))
    noisy = logits + 0.5 * rng.normal(size=(400, 3))
    metric = get_metric(text)
    target = np.eye(3)[labels] if text == "rmse" else labels
    reference, variant = (metric.per_sample({"y": y}, target, {"y": logits}) for y in (logits, noisy))
    first = paired_drop(metric, reference, variant, seed=3)

    sign = -1 if text == "rmse" else 1
    assert sign * (metric.value(variant) - metric.value(reference)) == pytest.approx(first.value)
    assert first.low < first.value < first.high
    assert (unit, None) == (first.unit, first.note)
    assert first == paired_drop(metric, reference, variant, seed=3)
    own = metric_estimate(metric, variant, seed=3)
    assert own.low < metric.value(variant) == own.value < own.high


@pytest.mark.parametrize("text", ["f1", "auc"])
def test_the_bootstrap_interval_of_one_case_covers_the_truth(text):
    """Against a large sample from the same source, in at least 8 of 10 draws."""
    metric = get_metric(text)

    def draw(seed: int, n: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, 2, n)
        return metric.per_sample({"y": np.stack([np.zeros(n), rng.normal(size=n) + 2 * labels - 1], 1)}, labels)

    truth = metric.value(draw(99, 400_000))
    estimates = [metric_estimate(metric, draw(seed, 120)) for seed in range(10)]

    assert sum(estimate.low <= truth <= estimate.high for estimate in estimates) >= 8


def test_unchanged_rows_of_other_metrics_say_how_rare_a_change_could_hide():
    """299 samples: changes in fewer than 1.2 % would probably not have shown, and an error has no upper end."""
    rows = np.random.default_rng(0).random(299)
    change = paired_drop(get_metric("mae"), rows, rows.copy())

    assert (change.value, change.low, change.high) == (0.0, None, None)
    assert "fewer than 1.23% of samples" in change.note
    assert compare(get_metric("mae"), rows, rows.copy(), max_drop=1.0).verdict.verdict == "INCONCLUSIVE"


def classes(labels, answers) -> np.ndarray:
    return np.stack([labels, answers], axis=1).astype(float)


@pytest.mark.parametrize(("n", "verdict"), [(5, "INCONCLUSIVE"), (200, "INCONCLUSIVE"), (4000, "PASS")])
def test_an_f1_without_a_change_is_no_proof_of_none(n, verdict):
    """Of five rows nothing follows; 4,000 rows of four classes bound what one unseen in a thousand could do."""
    rows = classes(np.arange(n) % 4, np.arange(n) % 4)
    result = compare(get_metric("f1"), rows, rows.copy(), max_drop=0.01)

    assert result.verdict.verdict == verdict
    assert (result.change.low is None) == (n == 5)
    assert n == 5 or result.change.low < 0 < result.change.high


@pytest.mark.parametrize("text", ["f1", "auc", "mae", "rmse"])
def test_a_bootstrap_of_few_rows_decides_nothing(text):
    """49 rows: no bound, and so no verdict, in either direction."""
    rng = np.random.default_rng(0)
    labels = np.arange(49) % 2
    reference = classes(labels, labels + rng.normal(0, 0.1, 49)) if text == "auc" else classes(labels, labels)
    variant = classes(labels, 1 - labels)
    if text in ("mae", "rmse"):
        reference, variant = rng.random(49), rng.random(49) + 100
    result = compare(get_metric(text), reference, variant, max_drop=0.01)

    assert (result.change.low, result.change.high, result.verdict.verdict) == (None, None, "INCONCLUSIVE")
    assert "needs 50" in result.verdict.reason


def test_a_class_of_few_rows_bounds_no_f1():
    """9 of 1,000: one of them weighs as much as 55 others."""
    labels = np.zeros(1000)
    labels[:9] = 1
    variant = labels.copy()
    variant[500:510] = 1
    change = paired_drop(get_metric("f1"), classes(labels, labels), classes(labels, variant))

    assert (change.low, change.high) == (None, None)
    assert "the rarest class has 9 rows" in change.note


def test_few_rows_that_failed_are_counted_and_rounding_errors_are_not_taken_for_failures():
    """Three failures of 1,000 beside noise in all rows: up to 0.88 % may fail as badly, whatever the bootstrap says."""
    rng = np.random.default_rng(0)
    reference = rng.random(1000)
    variant = reference + 1e-7 * rng.random(1000)
    variant[:3] += 10
    change = paired_drop(get_metric("mae"), reference, variant)

    assert change.low == pytest.approx(-10 * 0.008742, rel=1e-3)
    assert change.note.startswith("few rows changed (3 of 1000")


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.sampled_from(["f1", "auc", "rmse", "mae"]))
def test_losses_of_rows_add_up_to_the_drop(seed, text):
    """Their mean is the drop: exactly for errors, to first order for F1 and AUC."""
    rng = np.random.default_rng(seed)
    n = 600
    metric = get_metric(text)
    if text in ("rmse", "mae"):
        reference, variant = rng.random(n), rng.random(n)
    else:
        labels = rng.integers(0, 3, n) if text == "f1" else rng.integers(0, 2, n)
        said = np.where(rng.random(n) < 0.9, labels, rng.integers(0, 2, n))
        other = np.where(rng.random(n) < 0.97, said, rng.integers(0, 2, n))
        noise = rng.normal(size=(2, n)) * 0.5 if text == "auc" else np.zeros((2, n))
        reference, variant = classes(labels, said + noise[0]), classes(labels, other + noise[0] + 0.2 * noise[1])
    found = unseen.losses(metric, reference, variant, None)
    drop = (metric.value(reference) - metric.value(variant)) * (1 if metric.higher_is_better else -1)

    assert found.mean() == pytest.approx(drop, rel=1e-9 if text != "f1" else 0.15, abs=1e-12 if text != "f1" else 5e-4)
    largest = metric.largest_row_loss(reference) if text in ("f1", "auc") else None
    assert largest is None or np.abs(found).max() <= largest * (1 + 1e-9)


def test_one_sample_or_one_cluster_has_no_interval():
    """The bound is absent with its reason, and the verdict is INCONCLUSIVE."""
    ids = np.array(["a"] * 4)
    result = compare(get_metric("mae"), np.ones(4), np.arange(4.0), ids=ids, max_drop=0.1)

    assert (result.change.low, result.change.high) == (None, None)
    assert "no interval: 1 independent" in result.change.note
    assert result.verdict.verdict == "INCONCLUSIVE"
    assert "1 independent" in result.verdict.reason


@pytest.mark.parametrize(
    ("reference", "variant"), [(np.ones(3), np.ones(4)), (np.ones(0), np.ones(0)), (np.ones(4), np.ones((4, 2)))]
)
def test_rows_that_are_not_the_same_samples_are_refused(reference, variant):
    """Pairing is by position."""
    with pytest.raises(DataError, match="same samples"):
        paired_drop(TOP1, reference, variant)


@pytest.mark.parametrize(
    ("bad", "good", "n", "max_drop", "expected"),
    [
        (0, 0, 1000, 0.01, "PASS"),
        (13, 8, 900, 0.01, "INCONCLUSIVE"),
        (60, 8, 1000, 0.01, "FAIL"),
        (0, 60, 1000, 0.0, "PASS"),
        (20, 20, 1000, 0.0, "INCONCLUSIVE"),
        (20, 0, 1000, 0.0, "FAIL"),
        (500, 0, 1000, 1.0, "PASS"),
    ],
)
def test_verdicts_follow_the_non_inferiority_test(bad, good, n, max_drop, expected):
    """A drop that is not significant is not therefore small: 13 against 8 of 900 is INCONCLUSIVE."""
    verdict = compare(TOP1, *answers(bad, good, n), max_drop=max_drop).verdict

    assert expected == verdict.verdict
    assert (verdict.needed_n is None) or expected == "INCONCLUSIVE"
    assert "points" in verdict.reason


def test_the_verdict_switches_where_tangos_one_sided_test_does():
    """n = 3000, margin one point, ψ ≈ 5 %: PASS exactly for the bad flips whose 90 % interval stays above the margin."""
    for bad in range(75, 110):
        good = 150 - bad
        verdict = compare(TOP1, *answers(bad, good, 3000), max_drop=0.01).verdict.verdict
        low, high = tango_interval(bad, good, 3000, 0.90)
        assert ("PASS" if low > -0.01 else "FAIL" if high < -0.01 else "INCONCLUSIVE") == verdict


def test_the_needed_samples_follow_the_published_formula():
    """ψ = 5 %, no drop seen, margin one point: 3,091 at 80 % power; with few flips more than the formula says."""
    many = compare(TOP1, *answers(25, 25, 1000), max_drop=0.01).verdict
    few = compare(TOP1, *answers(1, 1, 200), max_drop=0.01).verdict

    assert (many.verdict, pytest.approx(many.needed_n, rel=0.05)) == ("INCONCLUSIVE", 3091)
    assert "roughly 3,000 samples may decide (a guess from this estimate)" in many.reason
    assert few.needed_n > 618


def test_samples_that_no_one_has_are_not_asked_for():
    """A change at the margin is never decided, and the text says so."""
    verdict = compare(TOP1, *answers(20, 10, 1000), max_drop=0.01).verdict

    assert (verdict.verdict, verdict.needed_n) == ("INCONCLUSIVE", None)
    assert "no practical number" in verdict.reason


def test_intervals_decide_where_there_are_no_flips():
    """By their ends, in the metric's own unit."""
    passed = drop_verdict(Estimate(-0.01, -0.02, 0.0, "native"), 0.03)
    failed = drop_verdict(Estimate(-0.1, -0.2, -0.05, "native"), 0.03)
    open_ = drop_verdict(Estimate(-0.02, -0.05, 0.01, "native"), 0.03, samples=100)

    assert [verdict.verdict for verdict in (passed, failed, open_)] == ["PASS", "FAIL", "INCONCLUSIVE"]
    # The half-width 0.03 has to shrink to 0.01 · 1.96 / (1.96 + 0.84): 3 · 1.43 squared is 18.4.
    assert pytest.approx(open_.needed_n, rel=0.01) == 1838
    assert drop_verdict(Estimate(-0.02, -0.05, 0.01, "native"), 0.03).needed_n is None


@pytest.mark.parametrize("max_drop", [-0.01, math.nan, math.inf])
def test_impossible_margins_are_refused(max_drop):
    """Negative, NaN, infinite."""
    with pytest.raises(StudyError, match="largest accepted drop"):
        drop_verdict(Estimate(0, 0, 0, "proportion"), max_drop)


@pytest.mark.parametrize(("n", "most"), [(299, 0), (500, 1), (1000, 4), (2000, 12), (5000, 38), (10000, 83)])
def test_a_point_is_certified_without_labels_up_to_the_known_disagreements(n, most):
    """Clopper–Pearson at 95 %: one more disagreement is INCONCLUSIVE, never FAIL."""
    agreed = np.ones(n)
    agreed[:most] = 0
    more = agreed.copy()
    more[most] = 0

    assert label_free_verdict(agreed, 0.01).verdict == "PASS"
    assert label_free_verdict(more, 0.01).verdict == "INCONCLUSIVE"
    assert most / n == worst_drop(agreed).value
    assert worst_drop(agreed).high <= 0.01 < worst_drop(more).high
    assert worst_drop(agreed).low == 0


def test_clusters_widen_the_bound_without_labels():
    """299 views of 23 sources are 23 sources."""
    ids = np.repeat(np.arange(23), 13).astype(str)

    assert pytest.approx(worst_drop(np.ones(299), ids=ids).high) == 1 - 0.05 ** (1 / 23)
    with pytest.raises(DataError, match="class answers"):
        worst_drop(np.array([0.5, 1.0]))


def test_agreement_is_a_share_for_classes_and_a_mean_for_values():
    """Clopper–Pearson: 299 of 299 is above 98.77 %; similarities get a bootstrap interval."""
    share = agreement_estimate(np.ones(299))
    mean = agreement_estimate(np.linspace(0.9, 1.0, 101))

    assert (share.value, share.high, share.unit) == (1.0, 1.0, "proportion")
    assert pytest.approx(share.low) == 0.025 ** (1 / 299)
    assert (pytest.approx(mean.value), mean.unit) == (0.95, "native")
    assert 0.94 < mean.low < 0.95 < mean.high < 0.96
    with pytest.raises(DataError, match="no sample"):
        agreement_estimate(np.ones(0))


def test_accuracy_of_one_case_has_its_exact_interval():
    """8 of 10: [0.444, 0.975] (Clopper and Pearson)."""
    estimate = metric_estimate(TOP1, np.repeat([1.0, 0.0], [8, 2]))

    assert (
        estimate.value,
        pytest.approx(estimate.low, abs=1e-4),
        pytest.approx(estimate.high, abs=1e-4),
    ) == (0.8, 0.4439, 0.9748)


def test_what_gets_worse_almost_everywhere_is_a_fail_whatever_two_rows_gained():
    """135 of 137 sequences are far worse, two a little better: counting those two must not hide the others."""
    random = np.random.default_rng(4)
    before = random.gamma(2.0, 0.15, 137)
    after = before + random.normal(0.135, 0.03, 137)
    after[:2] = before[:2] - 0.02
    change = paired_drop(get_metric("mae"), before, after)

    assert change.value == pytest.approx(-(after - before).mean())
    assert change.high == pytest.approx(-(after - before).mean(), abs=0.02)
    assert change.high < -0.1
    assert change.low < change.value


@pytest.mark.parametrize("n", [20, 160, 299, 2000])
@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_the_bound_where_nothing_changed_is_the_share_that_may_have_gone_unseen(n, alpha):
    """(1 − p)^n = alpha, exactly: never less than what so many rows cannot show."""
    same = np.ones(n)
    unseen = 1 - alpha ** (1 / n)
    found = compare(get_metric("top1"), same, same, max_drop=unseen * 1.001, alpha=alpha).verdict

    assert found.verdict == "PASS"
    assert found.low == pytest.approx(-unseen)
    short = compare(get_metric("top1"), same, same, max_drop=unseen * 0.999, alpha=alpha).verdict
    assert short.verdict == "INCONCLUSIVE"
