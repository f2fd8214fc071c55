"""Schedules: seeded, ascending, at the rate asked for; trace files are read with every mistake named by its line."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.errors import DataError
from profiler.load import schedule


@pytest.fixture
def trace(tmp_path):
    """`trace(text)` is a file."""

    def make(text):
        path = tmp_path / "trace.csv"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return make


def test_poisson_arrivals_have_exponential_gaps_of_the_mean_asked_for():
    """Mean and spread of the gaps are both 1 / rate, the share above the mean is 1/e, and neighbours are strangers."""
    gaps = np.diff(schedule.poisson(200.0, 50_000, 7), prepend=0.0)

    assert gaps.mean() == pytest.approx(1 / 200, rel=0.02)
    assert gaps.std() == pytest.approx(1 / 200, rel=0.03)
    assert (gaps > 1 / 200).mean() == pytest.approx(np.exp(-1), abs=0.01)
    assert abs(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]) < 0.02


def test_the_seed_is_the_schedule():
    """The same seed the same moments, another seed others."""
    first, again, other = (schedule.poisson(50, 100, seed) for seed in (1, 1, 2))

    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@given(rate=st.floats(0.01, 1e5), count=st.integers(1, 500), seed=st.integers(0, 2**32 - 1))
def test_schedules_ascend_from_zero_on(rate, count, seed):
    """Whatever the rate."""
    for times in (schedule.poisson(rate, count, seed), schedule.constant(rate, count)):
        assert len(times) == count
        assert times[0] >= 0
        assert (np.diff(times) >= 0).all()


def test_constant_arrivals_are_a_ruler():
    """Equal gaps, the first at 0."""
    np.testing.assert_allclose(schedule.constant(4, 5), [0, 0.25, 0.5, 0.75, 1.0])


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf")])
def test_rates_that_are_none_are_refused(rate):
    """By both generators."""
    for make in (lambda: schedule.poisson(rate, 5, 0), lambda: schedule.constant(rate, 5)):
        with pytest.raises(ValueError, match="rate must be positive"):
            make()


def test_absurdly_many_requests_are_refused_in_words():
    """Before memory is asked for."""
    with pytest.raises(DataError, match=r"1,000,000,000 requests.*at most 2,000,000"):
        schedule.requests_in(1e6, 1000)


@pytest.mark.parametrize(
    "text",
    [
        "5\n5.5\n7\n", "5\n5.5\n7", "# from the access log\n5\n\n5.5\n7\n", "time_s\n5\n5.5\n7\n", "id,time_s\na,5\nb,5.5\nc,7\n",
        "time_s,path\n5,/a\n5.5,/b\n7,/c\n", " 5 \r\n5.5\r\n7\r\n", "\ufefftime_s\n5\n5.5\n7\n", "5e0\n5.5\n7\n",
    ],
)  # fmt: skip
def test_traces_are_read_and_begin_at_zero(trace, text):
    """One time per line or a column `time_s`; comments, empty lines, Windows' line ends and a byte order mark are no matter."""
    np.testing.assert_allclose(schedule.read_trace(trace(text)), [0, 0.5, 2])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1\n2\n1.5\n", r"line 3: 1\.5 comes before 2"),
        ("1\n-2\n", r"line 2: a time of -2 is not possible"),
        ("1\nnan\n", r"line 2: a time of nan"),
        ("1\ninf\n", r"line 2: a time of inf"),
        ("1\n\n# noon\ntwo\n", r"line 4: 'two' is no time"),
        ("id,when\na,1\n", r"line 1: 2 columns, none of them named 'time_s'"),
        ("id,time_s\na,1\nb\n", r"line 3: '' is no time"),
        ("", r"holds no times"),
        ("# nothing\n\n", r"holds no times"),
        ("time_s\n", r"holds no times"),
        ("0\n1e-320\n", r"requests a second, at most 1e\+06"),
        ("0\n1e-9\n2e-9\n", r"1e\+09 requests a second"),
        ("0\n1e308\n", r"lasts 1,000,000,000,000,000 s"),
        ("0\n100000\n", r"lasts 100,000 s.*are its times seconds"),
        (b"\xff\xfe\x00", r"not text"),
        (b"1\n\x002\n", r"line 2|not text"),
    ],
)
def test_traces_that_are_none_are_refused_with_the_line(trace, text, words):
    """So that it can be found in an editor."""
    with pytest.raises(DataError, match=words):
        schedule.read_trace(trace(text))


def test_limits_of_traces(trace, monkeypatch, tmp_path):
    """Bytes before reading, requests while reading; a missing file is named."""
    monkeypatch.setattr(schedule, "MAX_REQUESTS", 2)
    with pytest.raises(DataError, match="line 3: more than 2 requests"):
        schedule.read_trace(trace("1\n2\n3\n"))
    monkeypatch.setattr(schedule, "MAX_TRACE_BYTES", 3)
    with pytest.raises(DataError, match="6 bytes, at most 3"):
        schedule.read_trace(trace("1\n2\n3\n"))
    with pytest.raises(DataError, match="cannot read the trace"):
        schedule.read_trace(tmp_path / "nowhere")


@given(
    st.lists(st.floats(0, 1000), min_size=3, max_size=50).filter(lambda t: max(t) - min(t) > 1e-3), st.floats(0.1, 1e4)
)
def test_stretching_keeps_the_pattern_and_gives_the_rate(times, rate):
    """All gaps by one factor."""
    before = np.sort(np.asarray(times))
    before -= before[0]
    after = schedule.stretched(before, rate)

    assert schedule.mean_rate(after) == pytest.approx(rate)
    np.testing.assert_allclose(after / after[-1], before / before[-1], atol=1e-12)


def test_a_trace_of_one_moment_cannot_be_stretched():
    """It has no rate."""
    with pytest.raises(DataError, match="3 requests at one moment"):
        schedule.stretched(np.zeros(3), 5)


def test_a_trace_is_cut_by_duration():
    """What comes until then, and the first in any case."""
    times = np.array([0.0, 1.0, 2.0])

    assert schedule.cut(times, 1.0).tolist() == [0, 1]
    assert schedule.cut(times, 0.5).tolist() == [0]
    assert schedule.cut(times, 9).tolist() == [0, 1, 2]


def test_a_trace_that_is_no_file_is_refused_at_once(tmp_path):
    """Opening a pipe would wait for somebody to write."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="no regular file"):
        schedule.read_trace(tmp_path / "pipe")
