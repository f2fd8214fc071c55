"""A window holds exactly its inferences and their energy, on counters and on power meters, working and idle."""

from __future__ import annotations

import threading

import pytest

from profiler.measure.energy import Found, serve, window
from profiler.measure.energy.base import Absent, MeterLost


class Sampled(window.Samples):
    """Takes its readings at every inference instead of in a thread: the same ones on every machine."""

    def __init__(self, meter, clock) -> None:
        super().__init__(meter, clock)
        clock.samples = self
        self._thread = threading.Thread(target=lambda: None)


def work(clock, seconds, *, sampled=False, log=None):
    """An inference that takes so long on the test's clock."""

    def infer():
        clock.pass_(seconds)
        if log is not None:
            log.append(clock.now)
        if sampled and getattr(clock, "samples", None) is not None:
            clock.samples.take()

    return infer


def take(clock, meter, infer, **settings):
    fields = {
        "window_s": 5.0,
        "lead_s": 0.5,
        "clock": clock,
        "unix": clock.unix,
        "pause": clock.pass_,
        "samples": Sampled,
    }
    return window.take(meter, infer, **{**fields, **settings})


def test_a_fast_counter_is_read_at_both_ends(clock, made_meter):
    """10 ms inferences at 40 W for 5 s: 500 of them, 200 J, and the lead is in neither."""
    meter = made_meter(clock, lambda _: 40.0, kind="counter")
    taken = take(clock, meter, work(clock, 0.01))

    assert taken.inferences == pytest.approx(500, abs=1)
    assert taken.energy_j["all"] == pytest.approx(40 * taken.wall_s, rel=1e-3)
    assert taken.energy_j["part"] == pytest.approx(10 * taken.wall_s, rel=1e-3)
    assert taken.energy_j["all"] / taken.inferences == pytest.approx(0.4, rel=1e-3)
    assert (taken.readings, meter.reads) == (2, 2)
    assert taken.started_unix_s == pytest.approx(1e9 + 100.5, abs=0.02)


@pytest.mark.parametrize("phase", [0.0, 0.013, 0.05, 0.087])
def test_a_slow_counter_is_read_at_its_updates(clock, made_meter, phase):
    """Updated every 100 ms: at any phase the energy fits the time to a fraction of an update, not to a whole one."""
    meter = made_meter(clock, lambda _: 40.0, kind="counter", update_s=0.1, cost_s=0.0001)
    taken = take(clock, meter, work(clock, 0.002), window_s=1.0, lead_s=phase)

    assert taken.energy_j["all"] == pytest.approx(40 * taken.wall_s, rel=0.01)
    assert taken.energy_j["all"] % 4 == pytest.approx(0, abs=1e-6)
    assert taken.wall_s >= 1.0
    # Without waiting for updates, up to 4 J of 40 J would be missing or too much: 10 %.


def test_reading_does_not_become_the_load(clock, made_meter):
    """While an update is awaited, inferences go on; a slow read happens at most every twentieth of an update."""
    meter = made_meter(clock, lambda _: 40.0, kind="counter", update_s=0.1, cost_s=0.001)
    taken = take(clock, meter, work(clock, 0.0005), window_s=1.0)

    assert meter.reads <= 2 * 25
    assert taken.inferences * 0.0005 > 0.95 * taken.wall_s - 0.05


def test_a_counter_that_stands_still_is_lost(clock, made_meter):
    """A GPU that draws nothing for two seconds has a broken counter."""
    with pytest.raises(MeterLost, match="stood still for 2"):
        take(clock, made_meter(clock, lambda _: 0.0, kind="counter", update_s=0.1), work(clock, 0.01))


def test_a_counter_that_starts_anew_is_lost(clock, made_meter):
    """The driver was loaded again inside the window: the difference is negative, and no energy is."""
    meter = made_meter(clock, lambda _: 40.0, kind="counter")
    real = meter.read

    def read():
        reading = real()
        return reading if clock.now < 103 else {rail: joules - 4000 for rail, joules in reading.items()}

    meter.read = read
    with pytest.raises(MeterLost, match="ran backwards"):
        take(clock, meter, work(clock, 0.01))


@pytest.mark.parametrize(
    ("watts", "joules"),
    [(lambda t: 12.0, lambda a, b: 12 * (b - a)), (lambda t: 3 * t, lambda a, b: 1.5 * (b * b - a * a))],
    ids=["constant", "ramp"],
)
def test_power_is_integrated_between_the_first_and_the_last_inference(clock, made_meter, watts, joules):
    """A ramp is exact by trapezoid; readings before and after the window close its ends."""
    taken = take(clock, made_meter(clock, watts), work(clock, 0.01, sampled=True))
    begin = taken.started_unix_s - 1e9

    assert taken.energy_j["all"] == pytest.approx(joules(begin, begin + taken.wall_s), rel=1e-9)
    assert taken.energy_j["part"] == pytest.approx(taken.energy_j["all"] / 4)
    assert taken.inferences == pytest.approx(500, abs=1)
    assert taken.readings == pytest.approx(taken.inferences, abs=2)


def test_work_runs_as_long_as_the_sensor_looks_back(clock, made_meter):
    """An average over one second must not hold the time before the work."""
    log = []
    meter = made_meter(clock, lambda _: 1.0, settle_s=1.0)
    taken = take(clock, meter, work(clock, 0.01, sampled=True, log=log), lead_s=0.1)

    assert taken.started_unix_s - 1e9 == pytest.approx(101.0, abs=0.02)
    assert log[0] == pytest.approx(100.01)
    assert len([moment for moment in log if moment <= 101.0]) == pytest.approx(100, abs=1)


def test_an_idle_window_counts_no_inferences(clock, made_meter):
    """Nothing runs; the power is still read."""
    meter = made_meter(clock, lambda _: 3.0, kind="counter", update_s=0.001)
    taken = take(clock, meter, None)

    assert taken.inferences == 0
    assert taken.energy_j["all"] / taken.wall_s == pytest.approx(3.0, rel=1e-3)


def test_without_a_meter_time_and_inferences_are_counted(clock):
    """The meter is somebody else's: when it began, for how long, how many."""
    taken = take(clock, None, work(clock, 0.25))

    assert (taken.energy_j, taken.inferences, taken.wall_s, taken.readings) == ({}, 20, pytest.approx(5.0), 0)
    assert taken.started_unix_s == pytest.approx(1e9 + 100.5)


@pytest.mark.parametrize("kind", ["counter", "power"])
@pytest.mark.parametrize("lost_at", [100.0, 102.0, 105.5], ids=["at once", "inside", "at the end"])
def test_a_meter_that_vanishes_loses_the_window_only(clock, made_meter, kind, lost_at):
    """At any moment: one exception that is caught where windows are dropped."""
    meter = made_meter(clock, lambda _: 5.0, kind=kind, lost_at=lost_at)

    with pytest.raises(MeterLost, match="gone"):
        take(clock, meter, work(clock, 0.01, sampled=True))


def test_too_few_readings_lose_the_window(clock, made_meter):
    """Three inferences of two seconds that hold the interpreter: nobody knows what power did meanwhile."""
    with pytest.raises(MeterLost, match="no reading for 2 s of a window of 6 s"):
        take(clock, made_meter(clock, lambda _: 5.0), work(clock, 2.0, sampled=True))


class Real:
    """Constant power, and an event when enough was read."""

    def __init__(self, made, enough) -> None:
        self.info, self.enough, self.reads, self.event = made.info, enough, 0, threading.Event()
        self.lost_after = None

    def read(self):
        self.reads += 1
        if self.reads >= self.enough:
            self.event.set()
        if self.lost_after is not None and self.reads > self.lost_after:
            raise MeterLost("the real meter is gone")
        return {"all": 8.0, "part": 2.0}


def test_a_thread_reads_while_inferences_run(clock, made_meter):
    """On this machine's own clock: constant power gives power x time, however the threads were scheduled."""
    meter = Real(made_meter(clock, None), enough=12)
    with window.Samples(meter, iter(range(1000)).__next__) as taken:
        assert meter.event.wait(60)
    # The clock ticks at every look, two of them at each reading: the k-th reading has the stamp 2k + 1/2.
    energy, readings = taken.joules(0.5, 16.5)

    assert energy == {"all": pytest.approx(8 * 16), "part": pytest.approx(2 * 16)}
    assert readings == 9


def test_a_loss_inside_the_thread_is_told_at_its_end(clock, made_meter):
    """And the thread is over."""
    meter = Real(made_meter(clock, None), enough=3)
    meter.lost_after = 2
    before = threading.active_count()
    with pytest.raises(MeterLost, match="real meter"), window.Samples(meter, iter(range(1000)).__next__):
        assert meter.event.wait(60)

    assert threading.active_count() == before


def test_an_error_of_the_model_is_not_hidden_by_the_meter(clock, made_meter):
    """The model's own words reach the controller."""

    def infer():
        raise RuntimeError("the model broke")

    with pytest.raises(RuntimeError, match="the model broke"):
        take(clock, made_meter(clock, lambda _: 5.0), infer, lead_s=0.0)


HEADER = {"meter": "made", "window_s": 0.001, "lead_s": 0.0, "gpu": 1}


def test_a_worker_answers_with_plain_values(clock, made_meter):
    """What travels: the window, and what the meter is, found by its name for the GPU asked."""
    asked = []

    def find(**fields):
        asked.append(fields)
        return Found((made_meter(clock, lambda _: 40.0, kind="counter"),), ())

    turns = []
    reply = serve.measure(lambda feed: (turns.append(feed), clock.pass_(0.01)), ["a", "b"], HEADER, find=find)

    assert asked == [{"gpu": 1, "names": ["made"]}]
    assert reply["meter"]["total_rails"] == ("all",)
    assert reply["window"]["inferences"] == len(turns)
    assert turns[:4] == ["a", "b", "a", "b"]


def test_a_lost_meter_is_an_answer_and_no_failure(clock, made_meter):
    """Gone before the window, or inside it."""
    gone = serve.measure(None, [], HEADER, find=lambda **_: Found((), (Absent("made", "unplugged"),)))
    meter = made_meter(clock, lambda _: 1.0, kind="counter", lost_at=0.0)
    inside = serve.measure(None, [], HEADER, find=lambda **_: Found((meter,), ()))

    assert gone == {"lost": "the meter made is gone: unplugged"}
    assert inside == {"lost": "the made meter is gone"}


def test_a_worker_tells_its_meters(clock, made_meter):
    """And why the others are absent."""
    found = Found((made_meter(clock, lambda _: 1.0),), (Absent("rapl", "no"),))
    reply = serve.meters(0, find=lambda **_: found)

    assert [meter["name"] for meter in reply["meters"]] == ["made"]
    assert reply["absent"] == [{"meter": "rapl", "reason": "no"}]
