"""MLPerf LoadGen: its summary is read, its driver survives what models do, and the command says what is missing."""

from __future__ import annotations

import importlib.util
import json
from types import SimpleNamespace

import numpy as np
import pytest

from backends.base import BackendError, BackendUnavailable, TensorInfo
from profiler import mlperf
from profiler.errors import DataError, StudyError
from profiler.measure import loadgen
from profiler.study import make_study

needs_loadgen = pytest.mark.skipif(
    importlib.util.find_spec(loadgen.MODULE) is None,
    reason="mlcommons-loadgen is not installed: pip install 'edgeprof[mlperf]'",
)

# Beginnings of real summaries of mlcommons-loadgen 6.0.17, from runs of one second.
SINGLE = """\
================================================
MLPerf Results Summary
================================================
SUT name : PySUT
Scenario : SingleStream
Mode     : PerformanceOnly
90.0th percentile latency (ns) : 8654732
Result is : VALID
  Min duration satisfied : Yes
  Min queries satisfied : Yes
  Early stopping satisfied: Yes
Early Stopping Result:
 * Processed at least 64 queries (414).
 * Would discard 26 highest latency queries.
 * Early stopping 90.0th percentile estimate: 16324467
 * Not enough queries processed for 99.0th percentile
 early stopping estimate (would need to process at
 least 662 total queries).

================================================
Additional Stats
================================================
QPS w/ loadgen overhead         : 411.84
QPS w/o loadgen overhead        : 413.26

Min latency (ns)                : 401615
Max latency (ns)                : 34054084
Mean latency (ns)               : 2419782
50.00 percentile latency (ns)   : 402957
90.00 percentile latency (ns)   : 8654732
95.00 percentile latency (ns)   : 17991506
97.00 percentile latency (ns)   : 20348268
99.00 percentile latency (ns)   : 25879613
99.90 percentile latency (ns)   : 34054084
"""
SERVER = """\
================================================
MLPerf Results Summary
================================================
SUT name : PySUT
Scenario : Server
Mode     : PerformanceOnly
Completed samples per second    : 493.65
Result is : INVALID
  Performance constraints satisfied : NO
  Min duration satisfied : Yes
  Min queries satisfied : Yes
  Early stopping satisfied: NO
Recommendations:
 * Reduce target QPS to improve latency.
Early Stopping Result:
 * Run unsuccessful.
 * Processed 498 queries.
 * Would need to run at least 32269 more queries,
 with the run being successful if every additional
 query were under latency.

================================================
Additional Stats
================================================
Scheduled samples per second : 494.84
Min latency (ns)                : 411914
Max latency (ns)                : 43210458
Mean latency (ns)               : 10201846
50.00 percentile latency (ns)   : 6314283
90.00 percentile latency (ns)   : 28053957
99.00 percentile latency (ns)   : 40855800
"""
MULTI = """\
SUT name : PySUT
Scenario : MultiStream
Mode     : PerformanceOnly
99.0th percentile latency (ns) : 44388606
Result is : INVALID
  Min duration satisfied : Yes
  Min queries satisfied : Yes
  Early stopping satisfied: NO
Recommendations:
Early Stopping Result:
 * Only processed 100 queries.
 * Need to process at least 662 queries for early stopping.

Per-query latency:  
Mean latency (ns)               : 20323753
50.00 percentile latency (ns)   : 23187164
"""  # noqa: W291 (LoadGen's own spaces)
OFFLINE = """\
Scenario : Offline
Mode     : PerformanceOnly
Samples per second: 736.176
Result is : VALID
  Early stopping satisfied: Yes

Mean latency (ns)               : 1588438533
50.00 percentile latency (ns)   : 1760350374
"""


class TestSummary:
    def test_a_single_stream(self):
        """Percentiles in seconds, throughput without LoadGen's own time, and the bound that early stopping gave."""
        found = mlperf.parse_summary(SINGLE)

        assert (found.scenario, found.valid, found.early_stopping) == ("SingleStream", True, True)
        assert found.latency_s[0.5] == pytest.approx(402.957e-6)
        assert found.latency_s[0.99] == pytest.approx(25.879613e-3)
        assert found.latency_s[0.999] == pytest.approx(34.054084e-3)
        assert found.mean_s == pytest.approx(2.419782e-3)
        assert found.throughput_per_s == 413.26
        assert found.early_stopping_s == {0.9: pytest.approx(16.324467e-3)}
        assert found.words[-1].endswith("(would need to process at least 662 total queries).")

    def test_a_server_that_missed_its_limit(self):
        """INVALID, with the advice and the words of early stopping."""
        found = mlperf.parse_summary(SERVER)

        assert (found.valid, found.early_stopping, found.throughput_per_s) == (False, False, 493.65)
        assert found.words[:2] == ("Reduce target QPS to improve latency.", "Run unsuccessful.")
        assert found.words[-1].startswith("Would need to run at least 32269 more queries, with the run")
        assert found.early_stopping_s == {}

    def test_a_multi_stream_that_was_too_short(self):
        """No advice, but the reason."""
        found = mlperf.parse_summary(MULTI)

        assert (found.valid, found.throughput_per_s) == (False, None)
        assert found.words[1] == "Need to process at least 662 queries for early stopping."

    def test_offline(self):
        """A throughput."""
        assert mlperf.parse_summary(OFFLINE).throughput_per_s == 736.176

    @pytest.mark.parametrize("line", ["\r\n", "\n"])
    def test_line_ends_do_not_matter(self, line):
        """A file from another system."""
        assert mlperf.parse_summary(SINGLE.replace("\n", line)).latency_s[0.9] == pytest.approx(8.654732e-3)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "no summary of LoadGen: scenario 'None'"),
            (SINGLE.replace("SingleStream", "Interactive"), "scenario 'Interactive'"),
            (SINGLE.replace("Result is : VALID", "Result is : MAYBE"), "result 'MAYBE'"),
            (OFFLINE.replace("736.176", "many"), "cannot be read"),
            ("x" * (1 << 21), "2,097,152 characters"),
        ],
    )
    def test_anything_else_is_refused(self, text, message):
        """In words."""
        with pytest.raises(DataError, match=message):
            mlperf.parse_summary(text)


class FakeLoadGen(SimpleNamespace):
    """The calls of mlperf_loadgen that the driver makes; it issues `queries` and writes the logs."""

    def __init__(self, queries):
        scenarios = SimpleNamespace(**{name: name for name in loadgen.SCENARIOS})
        super().__init__(
            TestScenario=scenarios, TestMode=SimpleNamespace(PerformanceOnly="performance"), TestSettings=SimpleNamespace,
            LogSettings=SimpleNamespace, LogOutputSettings=SimpleNamespace, queries=queries, completed=[], destroyed=0,
        )  # fmt: skip

    def ConstructSUT(self, issue, flush):  # noqa: N802
        self.issue, self.flush = issue, flush
        return 1

    def ConstructQSL(self, total, performance, load, unload):  # noqa: N802
        self.library = (total, performance)
        return 2

    def DestroySUT(self, sut):  # noqa: N802
        self.destroyed += 1

    def DestroyQSL(self, qsl):  # noqa: N802
        self.destroyed += 1

    def QuerySampleResponse(self, number, data, size):  # noqa: N802
        return number

    def QuerySamplesComplete(self, responses):  # noqa: N802
        self.completed.append(list(responses))

    def StartTestWithLogSettings(self, sut, qsl, settings, logs, audit):  # noqa: N802
        from pathlib import Path

        self.settings, self.audit = settings, audit
        number = 0
        for size in self.queries:
            samples = [SimpleNamespace(id=number + i, index=(number + i) % self.library[0]) for i in range(size)]
            number += size
            self.issue(samples)
        self.flush()
        for name in loadgen.LOGS:
            Path(logs.log_output.outdir, name).write_text(f"{name}\n")


class Session:
    """Sums its rows; fails at the n-th inference."""

    inputs = (TensorInfo("x", "float32", ("batch", 2)),)

    def __init__(self, fail_at=None):
        self.fed, self._fail_at = [], fail_at

    def infer(self, feeds):
        self.fed.append(feeds["x"][:, 0].tolist())
        if self._fail_at is not None and len(self.fed) >= self._fail_at:
            raise RuntimeError("device lost")
        return {"y": feeds["x"].sum(axis=1)}


POOL = {"x": np.arange(6, dtype=np.float32).reshape(3, 2)}


def drive(queries, session=None, **header):
    lg = FakeLoadGen(queries)
    session = session or Session()
    fields = {"scenario": "SingleStream", "min_duration_s": 2.0, **header}
    reply, logs = loadgen.drive(session, POOL, fields, load=lambda: lg)
    return lg, session, reply, logs


class TestDriver:
    def test_every_sample_is_served_with_its_row_and_completed_once(self):
        """Row `index` of the pool, in LoadGen's order."""
        lg, session, reply, logs = drive([1, 1, 1, 1])

        assert session.fed == [[0.0], [0.0], [2.0], [4.0], [0.0]]  # the first one warms up
        assert lg.completed == [[0], [1], [2], [3]]
        assert reply["samples"] == 4
        assert {name: bytes(array).decode() for name, array in logs.items()} == {
            f"log/{name}": f"{name}\n" for name in loadgen.LOGS
        }
        assert lg.destroyed == 2

    def test_a_multi_stream_query_is_cut_into_batches(self):
        """Eight samples in batches of three."""
        lg, session, reply, _ = drive([8], scenario="MultiStream", max_batch=3, samples=8)

        assert [len(fed) for fed in session.fed[3:]] == [3, 3, 2]
        assert lg.completed == [[0, 1, 2], [3, 4, 5], [6, 7]]
        assert lg.settings.multi_stream_samples_per_query == 8
        assert reply["samples"] == 8

    @pytest.mark.parametrize("scenario", ["Server", "Offline"])
    def test_server_and_offline_are_answered_from_a_thread(self, scenario):
        """All samples once, whatever the batches were."""
        lg, _, reply, _ = drive([5, 1, 1], scenario=scenario, max_batch=2, qps=100.0, slo_s=0.01)

        assert sorted(number for batch in lg.completed for number in batch) == list(range(7))
        assert all(len(batch) <= 2 for batch in lg.completed)
        assert reply["samples"] == 7

    def test_settings_are_what_was_asked(self):
        """Nanoseconds, milliseconds, seeds that differ, and no audit file from the working folder."""
        lg, *_ = drive([1], scenario="Server", qps=250.0, slo_s=0.005, seed=7, min_duration_s=1.5)
        settings = lg.settings

        assert (settings.server_target_qps, settings.server_target_latency_ns) == (250.0, 5_000_000)
        assert (settings.scenario, settings.min_duration_ms) == ("Server", 1500)
        assert settings.server_target_latency_percentile == 0.99
        assert len({settings.qsl_rng_seed, settings.sample_index_rng_seed, settings.schedule_rng_seed}) == 3
        assert lg.audit == ""

    @pytest.mark.parametrize("scenario", ["SingleStream", "Server"])
    def test_an_error_of_the_model_is_raised_after_loadgen_has_returned(self, scenario):
        """Not inside its C++, where it would end the process; every query is answered all the same."""
        lg = FakeLoadGen([1] * 5)
        with pytest.raises(RuntimeError, match="device lost"):
            loadgen.drive(Session(fail_at=3), POOL, {"scenario": scenario, "min_duration_s": 1.0}, load=lambda: lg)

        assert sorted(number for batch in lg.completed for number in batch) == [0, 1, 2, 3, 4]
        assert lg.destroyed == 2

    def test_without_the_package_it_says_what_to_install(self):
        """And that a Raspberry Pi needs a compiler."""

        def missing():
            raise ImportError("no")

        with pytest.raises(BackendUnavailable, match=r"edgeprof\[mlperf\].*aarch64"):
            loadgen.drive(Session(), POOL, {"scenario": "Server"}, load=missing)

    def test_an_unknown_scenario_is_refused(self):
        """With the known ones."""
        with pytest.raises(BackendError, match="SingleStream, MultiStream, Server, Offline"):
            drive([1], scenario="Interactive")


class TestAsked:
    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"scenario": "Sever"}, "Did you mean Server"),
            ({"scenario": "Server"}, "add --qps 200 --slo-p99 10ms"),
            ({"scenario": "Server", "qps": 10.0}, "--slo-p99"),
            ({"scenario": "Offline", "slo_s": 0.1}, "belongs to the Server scenario"),
            ({"scenario": "SingleStream", "qps": 5.0}, "closed loop without a rate"),
            ({"scenario": "SingleStream", "max_batch": 4}, "one sample at a time"),
            ({"scenario": "Offline", "qps": 0.0}, "--qps is 0"),
            ({"scenario": "Offline", "min_duration_s": 0.0}, "expected 0.1s to 3600s"),
            ({"scenario": "MultiStream", "samples": 0}, "from 1 to 4096, got 0 and 1"),
        ],
    )
    def test_what_cannot_be_asked_is_refused_before_any_work(self, fields, message):
        """With the option and the way out."""
        with pytest.raises(StudyError, match=message):
            mlperf.Asked(**fields)

    def test_without_the_package_the_command_is_one_message(self, edgeprof_command, small_model, monkeypatch):
        """The pip command, exit code 2, nothing measured."""
        monkeypatch.setattr(mlperf.require_loadgen, "__defaults__", (lambda name: None,))
        code, out, err = edgeprof_command("mlperf", small_model)

        assert (code, out) == (2, "")
        assert "pip install 'edgeprof[mlperf]'" in err
        assert "aarch64" in err
        assert len(err.strip().splitlines()) == 1


@pytest.fixture
def edgeprof_command(capsys):
    """Run the command line inside this process: exit code, stdout, stderr."""

    def run(*arguments):
        from profiler.cli import main

        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return int(caught.value.code or 0), said.out, said.err

    return run


FAKE = "fake{latency_us=300,read=false}"


@pytest.mark.mlperf
@pytest.mark.process
@needs_loadgen
class TestReal:
    @pytest.mark.parametrize(
        ("scenario", "more"),
        [
            ("SingleStream", {}),
            ("MultiStream", {"samples": 2}),
            ("Server", {"qps": 100.0, "slo_s": 5.0}),
            ("Offline", {}),
        ],
    )
    def test_both_engines_measure_the_same_worker(self, small_model, small_data, listener, scenario, more, tmp_path):
        """A model that takes at least 0.3 ms does so for both, in every scenario; the log files can be read again."""
        study = make_study(
            model=str(small_model), data=str(small_data), backends=(FAKE,), variants=("fp32",), time_limit_s=60.0
        )
        asked = mlperf.Asked(scenario, min_duration_s=0.5, **more)

        found = mlperf.compare(study, asked, listener())

        figures = {figure.name: figure for figure in found.figures}
        least = 300e-6 * (asked.samples if scenario == "MultiStream" else 1)
        for name in {"p50", "p90", "p99"} & set(figures):
            assert figures[name].loadgen >= least
            assert figures[name].ours >= least
        if scenario in ("SingleStream", "Offline"):
            assert 0 < figures["throughput"].loadgen < 1 / 300e-6
            assert 0 < figures["throughput"].ours < 1 / 300e-6
        assert found.summary.scenario == scenario
        assert found.loadgen_samples >= 100
        assert found.our_samples >= 100
        paths = mlperf.write_logs(found, tmp_path / "new" / "logs")
        assert mlperf.parse_summary(paths[0].read_text()) == found.summary
        assert '"key": "loadgen_version"' in paths[1].read_text()

    def test_the_command_prints_both_and_writes_the_logs(self, edgeprof_command, small_model, small_data, tmp_path):
        """As JSON: figures of both, where the logs are, exit code by LoadGen's verdict."""
        code, out, _ = edgeprof_command(
            "mlperf", small_model, "--data", small_data, "--backend", FAKE, "--min-duration", "500ms", "--json", "--logs",
            tmp_path / "logs",
        )  # fmt: skip
        told = json.loads(out)

        assert code == (0 if told["summary"]["valid"] else 1)
        assert [figure["name"] for figure in told["figures"]] == ["p50", "p90", "p99", "throughput"]
        assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == sorted(loadgen.LOGS)

    def test_the_table_names_both(self, edgeprof_command, small_model, small_data):
        """For people."""
        _, out, _ = edgeprof_command(
            "mlperf", small_model, "--data", small_data, "--backend", FAKE, "--min-duration", "500ms"
        )

        assert "SingleStream" in out
        assert "LoadGen" in out
        assert "p99" in out

    def test_a_crash_inside_loadgen_is_a_failure_in_words(self, small_model, small_data, listener):
        """The model dies in the middle: the parent lives and says so."""
        from profiler.errors import TargetError

        study = make_study(
            model=str(small_model), data=str(small_data), backends=("fake{fail=segv,fail_at=20,read=false}",),
            variants=("fp32",), time_limit_s=60.0,
        )  # fmt: skip
        with pytest.raises(TargetError, match="crashed"):
            mlperf.compare(study, mlperf.Asked("SingleStream", min_duration_s=0.5), listener())

    def test_logs_that_cannot_be_written_are_told(self, small_model, small_data, listener, tmp_path):
        """A file where the folder should be."""
        study = make_study(
            model=str(small_model), data=str(small_data), backends=(FAKE,), variants=("fp32",), time_limit_s=60.0
        )
        found = mlperf.compare(study, mlperf.Asked("SingleStream", min_duration_s=0.2), listener())
        (tmp_path / "file").write_text("")

        with pytest.raises(StudyError, match="cannot write LoadGen's logs"):
            mlperf.write_logs(found, tmp_path / "file")
