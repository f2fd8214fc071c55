"""The stage: a plan that is the same when resumed, workers that serve it, searches that find what theory says.

The worker here lives in the test's process, on virtual time: a whole search is exact and takes no waiting.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.base import EdgeprofError, LoadOptions, TensorInfo
from backends.fake import FakeBackend
from profiler.budget import Budget
from profiler.data.feeding import Feeding
from profiler.errors import BudgetError, StudyError
from profiler.job import Job
from profiler.load import figures, stage
from profiler.load.scenario import LoadPlan
from profiler.measure.lanes import Lanes
from profiler.records import FailureRecord, LoadRecord
from profiler.report import load as report
from profiler.run import execute
from profiler.store import open_store
from profiler.study import Case, make_study
from profiler.targets.process import WorkerFailure

sys.path.append(str(Path(__file__).parents[1] / "measure"))
from virtual import VirtualKernel

CASE = Case("fp32", "fake{read=false}", "local", 1, 1)


@dataclass
class Prepared:
    rows: dict[str, Any]

    @property
    def feeding(self) -> Feeding:
        return Feeding.plain(
            [TensorInfo(name, array.dtype.name, ("N", *array.shape[1:])) for name, array in self.rows.items()]
        )


@dataclass
class Shop:
    """Stands for job and workers: sessions that take `service` seconds and `row` more per request, on virtual time."""

    options: dict[str, str]
    path: Path
    study: Any
    records: list[Any] = field(default_factory=list)
    requests: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    opened: int = 0
    closed: int = 0
    stop_after: int | None = None
    """Runs stored before the whole thing is killed."""
    late_ns: int = 0
    budget: Budget = field(default_factory=Budget)

    def open(self, case):
        self.opened += 1
        return Worker(self)

    def load(self, worker, case, *, streams=1, varying_batch=False):
        worker.kernel = VirtualKernel(self.late_ns)
        backend = FakeBackend(worker.kernel.now, worker.kernel.spend)
        options = {"read": "false", "wait": "sleep", **self.options}
        worker.session = backend.load(self.path, LoadOptions(batch=case.batch, streams=streams, options=options))
        return {}

    def add(self, run_id, record):
        if self.stop_after is not None and sum(isinstance(r, LoadRecord) for r in self.records) >= self.stop_after:
            raise KeyboardInterrupt
        self.records.append(record)
        return True

    def job(self, progress):
        shop = self
        rows = {"x": np.random.default_rng(0).standard_normal((32, 4)).astype(np.float32)}

        class Store:
            add = staticmethod(shop.add)

            @staticmethod
            def records(run_id, kind):
                return tuple(record for record in shop.records if isinstance(record, kind))

        class VirtualJob(Job):
            open = staticmethod(shop.open)
            load = staticmethod(shop.load)

        names = dict.fromkeys(Job.__dataclass_fields__)
        return VirtualJob(
            **{
                **names,
                "run_id": "run",
                "study": self.study,
                "store": Store(),
                "prepared": Prepared(rows),
                "progress": progress,
                "budget": self.budget,
            }
        )


class Worker:
    def __init__(self, shop):
        self.shop, self.lanes = shop, Lanes()

    def request(self, command, arrays=None, *, timeout_s, **fields):
        assert command == "serve"
        self.shop.requests.append((fields["scenario"], fields))
        try:
            return self.lanes.serve(self.session, fields, dict(arrays or {}), kernel=self.kernel)
        except EdgeprofError as error:
            raise WorkerFailure("error", str(error)) from error

    def close(self):
        self.shop.closed += 1


@pytest.fixture
def shop(tmp_path, listener):
    """`shop(load, **options)`: a job over virtual workers; `run()` does the stage."""
    path = tmp_path / "model.bin"
    path.write_bytes(b"any")

    def make(load, **options):
        study = make_study(
            model="m.onnx", backends=(CASE.backend,), load=load, effort={"warmup_s": 0.01, "warmup_max_s": 0.01}
        )
        found = Shop(options, path, study)
        found.listener = listener()
        found.run = lambda: stage.measure_load(found.job(found.listener), [CASE])
        found.loads = lambda: [record for record in found.records if isinstance(record, LoadRecord)]
        return found

    return make


SERVED = {
    "settings": ("server", "server{workers=2}", "single"),
    "rates_per_s": (100, 300),
    "duration_s": 1.0,
    "repeats": 2,
}


def test_a_plan_is_the_same_every_time_and_mixes_its_settings():
    """Numbers are the order of the runs; each repeat has every setting and rate once, in another order."""
    load = LoadPlan(**{**SERVED, "repeats": 6})
    cases = [CASE, Case("int8", "ort", "local", 1, 1)]
    plan = stage.plan_runs(cases, load, load.rates_per_s, 3)
    per_repeat = [[(p.case.key, str(p.setting), p.rate_per_s) for p in plan if p.repeat == r] for r in range(6)]

    assert plan == stage.plan_runs(cases, load, load.rates_per_s, 3)
    assert [p.run for p in plan] == list(range(6 * 10))
    assert all(set(one) == set(per_repeat[0]) and len(one) == 10 for one in per_repeat)
    assert len({tuple(one) for one in per_repeat}) > 1


def test_every_run_is_stored_with_what_was_asked(shop):
    """Rates, seeds and processes: another schedule and a fresh process in every repeat, the same schedule for all settings."""
    made = shop(SERVED, latency_us="1000")
    made.run()
    loads = made.loads()
    schedules = {(r.rate_per_s, r.seed): r.scheduled_s.tobytes() for r in loads if r.scheduled_s is not None}

    assert [r.run for r in loads] == list(range(10))
    assert all(schedules[r.rate_per_s, r.seed] == r.scheduled_s.tobytes() for r in loads if r.scheduled_s is not None)
    assert len(set(schedules.values())) == 4
    assert len({r.labels["process"] for r in loads}) == 6
    assert (made.opened, made.closed) == (6, 6)
    assert all(figures.validity(r).valid for r in loads)


def test_an_interrupted_stage_goes_on_where_it_stopped(shop):
    """Killed after any run: resumed it has the same runs, and none was done twice."""
    whole, cut = shop(SERVED, latency_us="1000"), shop(SERVED, latency_us="1000")
    whole.run()
    cut.stop_after = 4
    with pytest.raises(KeyboardInterrupt):
        cut.run()
    cut.stop_after = None
    cut.run()

    def seen(made):
        return [(r.run, r.setting, r.rate_per_s, r.completed_s.tobytes()) for r in made.loads()]

    assert seen(cut) == seen(whole)
    assert cut.closed == cut.opened


def test_a_setting_that_fails_is_a_failure_and_the_others_go_on(shop):
    """Told once, left out in later repeats, with the worker's own words."""
    load = {**SERVED, "settings": ("server", "single"), "rates_per_s": (100,)}
    made = shop(load, latency_us="1000", fail="raise", fail_at="60")
    made.run()
    failures = [record for record in made.records if isinstance(record, FailureRecord)]

    assert sorted((f.case, f.stage, f.kind) for f in failures) == [
        (f"{CASE.key} server", "serve", "error"), (f"{CASE.key} single", "serve", "error"),
    ]  # fmt: skip
    assert "fail=raise" in failures[0].message
    assert made.opened == made.closed == 2


def test_a_trace_is_followed_stretched_and_cut(shop, tmp_path):
    """Gaps are the file's, at the rate asked for."""
    trace = tmp_path / "trace.txt"
    trace.write_text("10\n11\n13\n14\n")
    load = {"settings": ("server{arrivals=trace}",), "trace": str(trace), "duration_s": 3.5, "repeats": 1}
    own, faster = shop(load, latency_us="1000"), shop({**load, "rates_per_s": (1.5,)}, latency_us="1000")
    own.run()
    faster.run()

    np.testing.assert_allclose(own.loads()[0].scheduled_s, [0, 1, 3])
    np.testing.assert_allclose(faster.loads()[0].scheduled_s, [0, 0.5, 1.5, 2])
    assert own.loads()[0].rate_per_s == pytest.approx(0.75)


def test_a_trace_that_changed_is_not_mixed_into_an_old_run(shop, tmp_path):
    """A run is about one trace."""
    trace = tmp_path / "trace.txt"
    trace.write_text("0\n1\n2\n")
    load = {"settings": ("server{arrivals=trace}",), "trace": str(trace), "repeats": 2}
    made = shop(load, latency_us="1000")
    made.stop_after = 1
    with pytest.raises(KeyboardInterrupt):
        made.run()
    made.stop_after = None
    trace.write_text("0\n1.5\n2\n")

    with pytest.raises(StudyError, match="changed since run run began"):
        made.run()


def test_a_queue_that_only_grows_is_stored_as_diverged_and_shown_as_invalid(shop):
    """Three times the capacity."""
    made = shop({"settings": ("server",), "rates_per_s": (300,), "duration_s": 30, "repeats": 1}, latency_us="10000")
    made.run()
    found = figures.summarise(made.loads())[0]

    assert made.loads()[0].ended == "diverged"
    assert not found.valid
    assert "queue only grew" in found.reasons[0]


# Searches ----------------------------------------------------------------------------------------------------------------

SEARCH = {
    "settings": ("server", "server{max_batch=8,max_delay_s=0.002}"), "find_max_rate": True, "slo_s": 0.01, "repeats": 2,
    "budget_queries": 15_000,
}  # fmt: skip


def exceedance(rate, service, slo, count=150_000):
    """Share of late requests of a queue with one server and Poisson arrivals, by its recursion."""
    gaps = np.random.default_rng(99).exponential(1 / rate, count)
    wait, late = 0.0, 0
    for gap in gaps:
        wait = max(0.0, wait + service - gap)
        late += wait + service > slo
    return late / count


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A finished search over both strategies, 1 ms an inference and 50 µs a row."""
    path = tmp_path_factory.mktemp("searched") / "model.bin"
    path.write_bytes(b"any")

    class Quiet:
        def stage(self, title, steps): ...
        def step(self, text=""): ...
        def note(self, text): ...

    study = make_study(
        model="m.onnx", backends=(CASE.backend,), load=SEARCH, effort={"warmup_s": 0.01, "warmup_max_s": 0.01}
    )
    made = Shop({"latency_us": "1000", "row_us": "50"}, path, study)
    stage.measure_load(made.job(Quiet()), [CASE])
    loads = [record for record in made.records if isinstance(record, LoadRecord)]
    return made, loads, figures.max_rates(loads, study.load, [CASE.key], study.seed, {})


def test_the_highest_rate_is_that_of_theory(searched):
    """At the rate found, about 1 % of requests are later than the limit; 5 % less and 5 % more are clearly below and above."""
    plain = searched[2][0]
    rate = plain.rate_per_s

    assert plain.estimate.attainable
    assert exceedance(rate * 0.95, 0.00105, 0.01) < 0.01 < exceedance(rate * 1.05, 0.00105, 0.01)


def test_batches_carry_more_when_rows_cost_little(searched):
    """And the first sentence says by how much, since the intervals lie apart."""
    plain, batching = searched[2]
    sentence = figures_decision(searched)[0]

    assert batching.rate_per_s > 2 * plain.rate_per_s
    assert sentence.startswith("batch up to 8 within 2 ms carries ")
    assert "× the rate of no batching under p99 ≤ 10 ms" in sentence


def figures_decision(searched):
    from profiler.load.decision import decide_max_rate

    return decide_max_rate(searched[2])


def test_a_search_is_confirmed_with_a_schedule_of_its_own_and_its_runs_are_stored(searched):
    """Every run of the estimate is a record; two processes took turns."""
    made, loads, rates = searched
    seeds = {record.seed for record in loads if record.rate_per_s is not None}

    for rate in rates:
        assert {run.seed for run in rate.estimate.runs} <= seeds
        assert rate.estimate.confirmation.seed not in {run.seed for run in rate.estimate.runs[:-2]}
    assert len({record.labels["process"] for record in loads}) == 4
    assert made.opened == made.closed == 4
    assert {record.purpose for record in loads} == {"search"}


def test_an_interrupted_search_goes_on_and_ends_as_the_whole_one(shop):
    """Played back from the stored runs: the same estimate, and not a run twice."""
    load = {**SEARCH, "settings": ("server",), "budget_queries": 6000, "repeats": 1}
    whole, cut = (shop(load, latency_us="1000") for _ in range(2))
    whole.run()
    for stop in (1, 4):
        cut.stop_after = stop
        with pytest.raises(KeyboardInterrupt):
            cut.run()
    before = figures.max_rates(cut.loads(), cut.study.load, [CASE.key], 0, {})[0]
    cut.stop_after = None
    cut.run()
    after = [figures.max_rates(made.loads(), made.study.load, [CASE.key], 0, {})[0] for made in (whole, cut)]

    assert before.estimate is None
    assert "not finished" in before.reason
    assert after[0].rate_per_s == after[1].rate_per_s
    assert len(whole.loads()) == len(cut.loads()) == len({r.run for r in cut.loads()})


def test_a_limit_below_the_service_time_is_said_and_nothing_is_searched(shop):
    """With the measured service time."""
    made = shop({**SEARCH, "settings": ("server",), "slo_s": 0.0008}, latency_us="1000")
    made.run()
    rate = figures.max_rates(made.loads(), made.study.load, [CASE.key], 0, {})[0]

    assert rate.reason == "not attainable at any rate: 1 ms (p99) is what the service takes alone, the limit is 0.8 ms"
    assert {record.setting for record in made.loads()} == {"single", "offline"}
    assert any("not attainable" in note for note in made.listener.notes)


def test_a_generator_that_is_late_gives_no_rate_and_says_why(shop):
    """Late by most of the limit on every request: nothing that it measures is a latency of the model."""
    made = shop({**SEARCH, "settings": ("server",), "budget_queries": 3000}, latency_us="1000")
    made.late_ns = int(0.8e9 * made.study.load.slo_s)
    made.run()
    rate = figures.max_rates(made.loads(), made.study.load, [CASE.key], 0, {})[0]

    assert rate.rate_per_s is None
    assert "late" in rate.reason


def test_a_time_budget_holds_for_serving_too(shop):
    """No run is begun that cannot end in time; what was served stands, and where nothing was it is an error."""
    made = shop({"settings": ("server",), "rates_per_s": (50,), "duration_s": 4.0, "repeats": 3}, latency_us="1000")
    spent = iter([0.0] * 8 + [100.0] * 1000)
    made.budget = Budget(10.0, clock=lambda: next(spent), began=0.0)
    made.run()
    some = len(made.loads())
    late = shop({"settings": ("server",), "rates_per_s": (50,), "duration_s": 40.0, "repeats": 1}, latency_us="1000")
    late.budget = Budget(10.0, clock=lambda: 0.0, began=0.0)
    with pytest.raises(BudgetError, match="time budget"):
        late.run()

    assert 0 < some < 3
    assert late.loads() == []


# Real processes ----------------------------------------------------------------------------------------------------------


@pytest.mark.process
def test_a_run_with_load_stores_serves_and_is_read_back(fake_study, tmp_path):
    """From the study to the report, through real workers: two lanes, batches, an open and closed loops, and one failure."""
    load = {
        "settings": (
            "server{max_batch=4,max_delay_s=0.002,workers=2}", "concurrency{in_flight=4,workers=2}", "offline",
            "multi{samples=3}",
        ),
        "rates_per_s": (200,), "duration_s": 0.2, "repeats": 1, "only": True,
    }  # fmt: skip
    backends = ("fake{latency_us=200,read=false,wait=sleep}", "fake{fail=segv,fail_at=30,read=false}")
    run_id = execute(fake_study(load=load, backends=backends), out=tmp_path)
    store = open_store(tmp_path, create=False)
    run = store.run(run_id)
    store.close()
    result = report.read_result(run)
    good = f"fp32@{backends[0]}/b1/t1"

    assert {(r.setting, len(r.sent_s) > 0, r.ended) for r in run.loads if r.case == good} == {
        (text, True, "complete") for text in run.study.load.settings
    }
    assert {(f.stage, f.kind) for f in run.failures} == {("serve", "crash")}
    assert (run.blocks, run.qualities, run.status) == ((), (), "finished")
    assert len(result.scenarios) == 4
    assert "fail" in report.to_json(result)
