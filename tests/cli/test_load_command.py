"""`edgeprof load`: options become a plan, mistakes are told before anything is measured, results are shown and stored."""

from __future__ import annotations

import json

import pytest

from profiler.cli.load_command import _settings
from profiler.store import open_store

BACKEND = "fake{latency_us=200,read=false,wait=sleep}"
QUICK = ("--variants", "fp32", "--duration", "200ms", "--repeats", "1", "--backends", BACKEND)


@pytest.mark.parametrize(
    ("names", "texts"),
    [
        (("single",), ["single"]),
        (("server",), [
            "server", "server{max_batch=8,max_delay_s=0.002}", "server{workers=2}",
            "server{max_batch=8,max_delay_s=0.002,workers=2}",
        ]),
        (("offline",), ["offline", "offline{max_batch=8}", "offline{workers=2}", "offline{max_batch=8,workers=2}"]),
    ],
)  # fmt: skip
def test_options_are_multiplied_where_they_mean_something(names, texts):
    """Workers times strategies; one at a time has neither, and offline never waits for company."""
    assert list(_settings(names, "1,2", "none,8:2ms", "1,2", "8", "poisson")) == texts


def test_each_scenario_takes_its_own_numbers():
    """Requests in flight are concurrency's, samples are multi's."""
    assert _settings(("concurrency", "multi"), "1", "none", "1,4", "3", "poisson") == (
        "concurrency", "concurrency{in_flight=4}", "multi{samples=3}",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "needs a rate: --rate 500, --trace FILE, or --find-max-rate"),
        (("--find-max-rate",), "add --slo-p99 5ms"),
        (("--scenario", "single", "--rate", "5"), "add --scenario server"),
        (("--scenario", "serve", "--rate", "5"), "Did you mean"),
        (("--rate", "fast"), "cannot read --rate 'fast'"),
        (("--rate", "-5"), "a rate of -5 per second is not possible"),
        (("--rate", "5", "--batching", "8-2"), "cannot read --batching '8-2'"),
        (("--rate", "5", "--batching", "1:2ms"), "a size from 2 on"),
        (("--rate", "5", "--batching", "8:soon"), "cannot read 'soon'"),
        (("--rate", "5", "--workers", "0"), "workers=0"),
        (("--rate", "5", "--workers", "two"), "--workers 'two'"),
        (("--trace", "nowhere.txt"), "nowhere.txt: No such file"),
        (("--trace", "nowhere.txt", "--constant"), "exclude each other"),
        (("--rate", "5", "--slo-p99", "0ms"), "load.slo_s"),
        (("--rate", "1000000", "--duration", "1h"), "a run has at most"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(edgeprof, tmp_path, small_model, arguments, words):
    """Exit code 2, one message with the next step, and no run left behind."""
    told = edgeprof("load", small_model, "--out", tmp_path, "--variants", "fp32", "--backends", BACKEND, *arguments)

    assert told.code == 2
    assert words in told.err
    assert "Traceback" not in told.err
    if (tmp_path / "edgeprof.sqlite").exists():
        store = open_store(tmp_path, create=False)
        assert store.runs() == []
        store.close()


@pytest.mark.process
def test_a_load_needs_no_labels_and_says_what_it_found(edgeprof, tmp_path, small_model):
    """Random rows, a rate, two strategies: the decision first, every setting below, all in the store."""
    told = edgeprof(
        "load", small_model, "--out", tmp_path, *QUICK, "--rate", "100", "--batching", "none,4:1ms",
        "--scenario", "server,single",
    )  # fmt: skip
    store = open_store(tmp_path, create=False)
    run = store.run(store.resolve("latest"))
    store.close()

    assert told.code in (0, 1), told.err
    assert told.out.startswith("▸ At 100 requests/s")
    assert "batch up to 4 within 1 ms" in told.out
    assert "The highest throughput of the closed scenarios" in told.out
    assert {record.setting for record in run.loads} == {"server", "server{max_batch=4,max_delay_s=0.001}", "single"}
    assert (run.qualities, run.blocks) == ((), ())


@pytest.mark.process
def test_json_is_json_and_has_both_rates(edgeprof, tmp_path, small_model):
    """No NaN, and what is not measured has a reason."""
    told = edgeprof(
        "load", small_model, "--out", tmp_path, *QUICK, "--rate", "100", "--scenario", "server,offline", "--json"
    )
    content = json.loads(told.out, parse_constant=pytest.fail)
    by_setting = {item["setting"]: item for item in content["scenarios"]}

    assert by_setting["server"]["offered_per_s"] > 50
    assert by_setting["server"]["runs"] == 1
    assert by_setting["offline"]["latency_p99_s"]["value"] is None
    assert "at once" in by_setting["offline"]["latency_p99_s"]["reason"]


@pytest.mark.process
def test_a_limit_below_the_service_time_ends_with_that_sentence(edgeprof, tmp_path, small_model):
    """And with exit code 1: done, but nothing meets it."""
    slow = ("--variants", "fp32", "--repeats", "1", "--backends", "fake{latency_us=3000,read=false,wait=sleep}")
    told = edgeprof(
        "load", small_model, "--out", tmp_path, *slow, "--find-max-rate", "--slo-p99", "1ms", "--budget-queries", "2000",
    )  # fmt: skip

    assert told.code == 1
    assert "not attainable at any rate" in told.out
    assert "is what the service takes alone" in told.out


@pytest.mark.process
def test_a_backend_without_lanes_says_so(edgeprof, tmp_path, small_model):
    """Two workers were asked for; the failure names the way out and is no crash."""
    told = edgeprof(
        "load", small_model, "--out", tmp_path, "--variants", "fp32", "--repeats", "1", "--duration", "100ms",
        "--backends", "injected:fake{read=false}", "--rate", "50", "--workers", "2",
    )  # fmt: skip

    assert told.code == 1
    assert "has no lanes" in told.out
    assert "use --workers 1" in told.out
