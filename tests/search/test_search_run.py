"""A search with real processes: its run is a run like any other, survives being killed, and says what it decided."""

from __future__ import annotations

import re
from datetime import date
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from profiler.analysis import analyse
from profiler.decide import view
from profiler.errors import StudyError
from profiler.records import RACE as RACE_LABEL
from profiler.records import BlockRecord
from profiler.run import execute
from profiler.search import bench as live
from profiler.search import engine
from profiler.search.run import Asked, decisions, execute_search
from profiler.search.shared import SCREENING
from profiler.store import Store, open_store
from profiler.study import Effort, make_study

pytestmark = [pytest.mark.process, pytest.mark.runtime]

TINY = {"processes": 2, "rounds": 2, "block_s": 0.002, "block_samples": 5, "warmup_s": 0.002, "warmup_max_s": 0.02}
RACE = Effort(processes=1, rounds=2, block_s=0.002, block_samples=5, warmup_s=0.002, warmup_max_s=0.02, requeue_share=0)
FAST, SLOW = "fake{latency_us=200,read=false}", "fake{latency_us=4000,read=false}"
BROKEN = "fake{fail=raise,read=false}"


@pytest.fixture
def data(tmp_path):
    rows = np.random.default_rng(0).standard_normal((256, 4)).astype(np.float32)
    labels = (rows[:, 0] > 0).astype(np.int64)
    path = tmp_path / "data.npz"
    np.savez(path, x=rows, labels=labels)
    return path


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch):
    monkeypatch.setattr(live, "RACE_EFFORT", RACE)


def asked(small_model, data, **changes):
    settings = {
        "model": str(small_model), "data": None if data is None else str(data), "variants": ("fp32",),
        "backends": (FAST, SLOW, BROKEN),
        "effort": {**TINY, "requeue_share": 0.0}, "constraints": {"max_drop": "20pt"},
    }  # fmt: skip
    return make_study(**{**settings, **changes})


def read(out):
    store = open_store(out, create=False)
    try:
        return store.run(store.resolve("latest"))
    finally:
        store.close()


def test_a_search_is_a_run_with_its_decisions(small_model, data, tmp_path):
    run_id = execute_search(asked(small_model, data), Asked(seeds=False), out=tmp_path)
    run = read(tmp_path)
    assert (run.id, run.status) == (run_id, "finished")
    told = decisions(run)
    slow = [item for item in told if item["subject"].startswith(f"fp32@{SLOW}")]
    assert [(item["stage"], item["outcome"]) for item in slow] == [("race", "dropped")]
    assert slow[0]["ratio"] > slow[0]["ratio_low"] > 1
    assert {item["outcome"] for item in told if BROKEN in item["subject"]} == {"failed"}
    analysis = analyse(run, today=date(2026, 1, 1))
    by_key = {case.key: case for case in analysis.cases}
    reference = by_key[f"fp32@{FAST}/b1/t1"]
    assert reference.status == "measured"
    left_out = by_key[f"fp32@{SLOW}/b1/t1"]
    assert left_out.status == "skipped"
    assert "dropped by the search: takes" in left_out.failure.message
    assert by_key[f"fp32@{BROKEN}/b1/t1"].status == "failed"
    assert reference in view(analysis).members
    # What was chosen with is not what is shown: other rows, other blocks.
    shown = {q.case: q for q in run.qualities}
    assert len(shown[f"fp32@{FAST}/b1"].per_sample) == 128
    assert len(shown[f"{SCREENING}fp32@{FAST}/b1"].per_sample) == 128
    assert shown[f"fp32@{FAST}/b1"].data_sha256 != shown[f"{SCREENING}fp32@{FAST}/b1"].data_sha256
    final = [block for block in run.blocks if RACE_LABEL not in block.labels]
    assert {block.case for block in final} <= {case.key for case in analysis.cases if case.status == "measured"}
    assert len([b for b in final if b.case == reference.key]) == TINY["processes"] * TINY["rounds"]
    assert any(RACE_LABEL in block.labels and block.case == left_out.key for block in run.blocks)


def test_killed_anywhere_it_is_readable_and_goes_on_to_the_same_end(small_model, data, tmp_path, monkeypatch):
    study = asked(small_model, data, backends=(FAST, SLOW))
    whole = tmp_path / "whole"
    execute_search(study, Asked(seeds=False), out=whole)
    expected = read(whole)
    out, add, count = tmp_path / "killed", Store.add, {"left": 0}

    def failing(self, run_id, record):
        count["left"] -= 1
        if count["left"] < 0:
            raise KeyboardInterrupt
        return add(self, run_id, record)

    monkeypatch.setattr(Store, "add", failing)
    resume = None
    for attempt in range(60):
        count["left"] = 3 + attempt
        try:
            execute_search(None if resume else study, None if resume else Asked(seeds=False), out=out, resume=resume)
        except KeyboardInterrupt:
            resume = "latest"
            partial = read(out)
            assert partial.status == "interrupted"
            analyse(partial, today=date(2026, 1, 1))
        else:
            break
    monkeypatch.undo()
    run = read(out)
    assert run.status == "finished"
    assert {q.case for q in run.qualities} == {q.case for q in expected.qualities}
    # Which of two equal candidates a race drops depends on noise; nothing may be measured twice, and each has an end.
    places = [(b.case, b.replicate, b.group, b.round) for b in run.blocks]
    assert len(places) == len(set(places))
    ends = {item["subject"] for item in decisions(run)}
    assert {case["variant"] for case in run.plan["cases"]} == {case["variant"] for case in expected.plan["cases"]}
    assert f"fp32@{FAST}/b1/t1" in ends


def test_what_a_finished_search_had_no_time_for_is_tried_when_it_goes_on(small_model, data, tmp_path, monkeypatch):
    """Not called failed for the record that says it was not tried."""
    monkeypatch.setattr(live.LiveBench, "fits_finish", lambda _: 1)
    study = asked(small_model, data, backends=(FAST,), variants=("fp32", "graph"), threads=(1, 2))
    execute_search(study, Asked(seeds=False), out=tmp_path)
    first = read(tmp_path)
    untried = {item["subject"] for item in decisions(first) if item["outcome"] in ("not tried", "raced")}
    assert untried <= {record.case for record in first.failures}
    monkeypatch.undo()
    monkeypatch.setattr(live, "RACE_EFFORT", RACE)
    execute_search(None, out=tmp_path, resume="latest")
    again = read(tmp_path)

    assert untried
    assert {item["outcome"] for item in decisions(again) if item["subject"] in untried} <= {"contender", "dropped"}
    assert not [record for record in again.failures if record.message.startswith("not tried")]
    assert len({item["subject"] for item in decisions(again)}) == len(decisions(again))


def test_a_budget_that_leaves_most_candidates_untried_is_told_beforehand(small_model, data, tmp_path):
    notes = []
    heard = SimpleNamespace(stage=lambda *_: None, step=lambda *_: None, note=notes.append)
    study = asked(small_model, data, backends=(FAST, SLOW), threads=(1, 2), time_budget_s=8.0)
    execute_search(study, Asked(seeds=False), out=tmp_path, progress=heard)

    assert any(
        re.search(r"candidates in \d+ s are about [\d.]+ s each: many will not be tried", note) for note in notes
    )


def test_what_cannot_be_searched_says_so(small_model, data, tmp_path):
    with pytest.raises(StudyError, match="unknown objective 'speed'"):
        Asked(objective="speed")
    with pytest.raises(StudyError, match="unknown variant 'nope'"):
        execute_search(asked(small_model, data, variants=("nope",)), out=tmp_path)
    with pytest.raises(StudyError, match="unknown backend 'nope'"):
        execute_search(asked(small_model, data, backends=("nope",)), out=tmp_path)
    with pytest.raises(StudyError, match="nothing to search"):
        execute_search(None, out=tmp_path)
    with pytest.raises(StudyError, match="edgeprof load"):
        execute_search(asked(small_model, data, load={"settings": ("server",), "rates_per_s": (1.0,)}), out=tmp_path)


def test_a_profile_is_no_search_and_other_data_is_no_resume(small_model, data, tmp_path):
    run_id = execute(asked(small_model, data, backends=(FAST,), variants=("fp32",)), out=tmp_path)
    with pytest.raises(StudyError, match=f"edgeprof run --resume {run_id}"):
        execute_search(None, out=tmp_path, resume="latest")
    execute_search(asked(small_model, data, backends=(FAST,)), Asked(seeds=False), out=tmp_path)
    rows = np.random.default_rng(9).standard_normal((256, 4)).astype(np.float32)
    np.savez(data, x=rows, labels=np.zeros(256, np.int64))
    with pytest.raises(StudyError, match="the data changed"):
        execute_search(None, out=tmp_path, resume="latest")


def test_throughput_compares_batches_by_row(small_model, data, tmp_path):
    backend = "fake{latency_us=1000,read=false,row_us=50}"
    study = asked(small_model, data, backends=(backend,), batches=(1, 16), variants=("fp32",))
    execute_search(study, Asked(objective="throughput", seeds=False), out=tmp_path)
    run = read(tmp_path)
    # The reference is never dropped, however slow a row is at its batch.
    contenders = [item["subject"] for item in decisions(run) if item["outcome"] == "contender"]
    assert contenders == [f"fp32@{backend}/b1/t1", f"fp32@{backend}/b16/t1"]


def test_without_data_latency_alone_is_raced(small_model, tmp_path):
    study = asked(small_model, None, backends=(FAST, SLOW))
    execute_search(study, out=tmp_path)
    run = read(tmp_path)
    assert run.status == "finished"
    assert not run.qualities
    dropped = [item["subject"] for item in decisions(run) if item["outcome"] == "dropped"]
    assert dropped == [f"fp32@{SLOW}/b1/t1"]
    assert any(isinstance(block, BlockRecord) and RACE_LABEL not in block.labels for block in run.blocks)


def test_a_calibrated_contender_is_made_again_with_other_seeds_and_the_spread_is_kept(
    build_model, data, tmp_path, monkeypatch
):
    # Whether int8 pays on such a small model is not the question here: nothing is dropped, and all is frontier.
    monkeypatch.setattr(engine.racing, "dominated", lambda *args, **options: [])
    monkeypatch.setattr(engine.Search, "_frontier", lambda self, left: list(left))
    model = build_model(tmp_path / "wide.onnx")
    study = asked(
        model, data, backends=("ort",), variants=("int8-static{samples=32}",), constraints={"max_drop": "90pt"}
    )
    execute_search(study, out=tmp_path / "out")
    run = read(tmp_path / "out")
    (spread,) = run.plan["search"]["seed_spreads"]
    assert spread["case"] == "int8-static{samples=32}@ort/b1"
    assert set(spread["values"]) == {
        f"int8-static{{{rest}}}" for rest in ("samples=32", "samples=32,seed=1", "samples=32,seed=2")
    }
    assert spread["missing"] == {}
    assert all(0 <= value <= 1 for value in spread["values"].values())
    siblings = [case for case in analyse(run, today=date(2026, 1, 1)).cases if "seed=" in case.key]
    assert [case.status for case in siblings] == ["skipped", "skipped"]
    assert all("not timed" in case.failure.message for case in siblings)


def test_nothing_that_runs_is_a_result_and_no_crash(small_model, data, tmp_path):
    """Not even the reference: an empty race, a finished run, and every case with its reason."""
    execute_search(asked(small_model, data, backends=(BROKEN,)), Asked(seeds=False), out=tmp_path)
    run = read(tmp_path)

    assert run.status == "finished"
    assert {case.status for case in analyse(run, today=date(2026, 1, 1)).cases} == {"failed"}


def test_a_model_made_elsewhere_that_changed_is_not_resumed(small_model, data, tmp_path):
    """Its accuracy was measured on another file: the figures would belong to neither."""
    other = tmp_path / "other.onnx"
    first = onnx.load(small_model)
    stored = first.graph.initializer[0]
    stored.CopyFrom(onnx.numpy_helper.from_array(3 * onnx.numpy_helper.to_array(stored), stored.name))
    other.write_bytes(first.SerializeToString())
    variants = ("fp32", f"external{{path={other}}}")
    execute_search(
        asked(small_model, data, backends=(FAST,), variants=variants), Asked(seeds=False), out=tmp_path / "out"
    )
    changed = onnx.load(small_model)
    weights = changed.graph.initializer[0]
    weights.CopyFrom(onnx.numpy_helper.from_array(2 * onnx.numpy_helper.to_array(weights), weights.name))
    other.write_bytes(changed.SerializeToString())

    with pytest.raises(StudyError, match="changed since run"):
        execute_search(None, out=tmp_path / "out", resume="latest")


def test_too_few_rows_for_a_drop_is_said_before_the_search():
    """By the paired normal interval: 3 % changed answers on 1,153 rows give a half width of one point."""
    from profiler.search.screening import too_few_rows

    assert too_few_rows(1153, 0.01) is None
    said = too_few_rows(500, 0.01)
    assert "1.3 % of the answers" in said
    assert "2305 rows" in said
    assert too_few_rows(10, 0.0) is None
