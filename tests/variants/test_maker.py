"""What a model does to the tools that work on it ends their process, is told with its reason, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper

from profiler import prepare
from profiler.artifacts import ArtifactStore
from profiler.errors import BudgetError, ModelError, StudyError, VariantError
from profiler.making import MakerStore
from profiler.records import REFERENCE_VARIANT
from profiler.run import execute
from profiler.store import open_store
from profiler.targets import maker as makers
from profiler.targets.maker import Limits, Maker, describe, limits_of, read_rows, write_rows
from profiler.targets.process import WorkerFailure
from profiler.variants import registry

GIB = 1 << 30
PLENTY = Limits(240.0, "the test's", 4 * GIB, "the test's")


def value(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def saved(path, nodes, initializers=(), width=8, shape=None):
    """A model that adds the scalar `d` of `nodes` to its input, and multiplies by stored weights."""
    rng = np.random.default_rng(0)
    weights = numpy_helper.from_array(rng.standard_normal((width, 8)).astype(np.float32), "w")
    nodes = [*nodes, helper.make_node("Add", ["x", "d"], ["h"]), helper.make_node("MatMul", ["h", "w"], ["y"])]
    graph = helper.make_graph(
        nodes, "g", [value("x", shape or ["N", width])], [value("y", ["N", 8])], [weights, *initializers]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


def whole(values, name):
    return numpy_helper.from_array(np.array(values, np.int64), name)


@pytest.fixture
def plain(tmp_path):
    """Nothing is wrong with it."""
    return saved(tmp_path / "model" / "plain.onnx", [], [numpy_helper.from_array(np.float32(1), "d")])


@pytest.fixture
def dividing(tmp_path):
    """The smallest whole number over -1: the processor raises where constants are folded."""
    nodes = [helper.make_node("Div", ["low", "minus"], ["q"]), helper.make_node("Cast", ["q"], ["d"], to=1)]
    return saved(tmp_path / "model" / "dividing.onnx", nodes, [whole([-(2**63)], "low"), whole([-1], "minus")])


@pytest.fixture
def endless(tmp_path):
    """A Loop that goes on as long as its condition, which is what it was."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["co"]), helper.make_node("Relu", ["v"], ["vo"])],
        "body",
        [value("i", [], TensorProto.INT64), value("c", [], TensorProto.BOOL), value("v", ["N", 8])],
        [value("co", [], TensorProto.BOOL), value("vo", ["N", 8])],
    )
    always = numpy_helper.from_array(np.array(True), "always")
    loop = helper.make_node("Loop", ["", "always", "x"], ["d"], body=body)
    return saved(tmp_path / "model" / "endless.onnx", [loop], [always])


class Changing:
    """Limits that a test changes between pieces of work."""

    def __init__(self):
        self.now = PLENTY

    def __call__(self):
        return self.now


@pytest.fixture
def limits():
    return Changing()


@pytest.fixture
def store(tmp_path, limits):
    with MakerStore(tmp_path / "cache", limits) as store:
        yield store


def left(store):
    """What lies in the store's folder for files of the moment, beside the folder of the maker that still runs."""
    found = [path for path in (store.folder / "tmp").iterdir() if not path.name.startswith(makers.PREFIX)]
    return found + [path for path in (store.folder / "tmp").glob("*/process-*/*") if path.name != ".held"]


def made(store, path, variant, calibration=None):
    return store.make(path, registry.make(variant), calibration, None if calibration is None else "rows")


@pytest.mark.process
@pytest.mark.runtime
def test_what_is_made_there_is_what_would_be_made_here(store, plain, tmp_path):
    """The record and the bytes, with calibration rows and without."""
    rows = {"x": np.random.default_rng(1).standard_normal((16, 8)).astype(np.float32)}
    here = ArtifactStore(tmp_path / "here")
    for variant in (REFERENCE_VARIANT, "int8-static{per_channel=true}", "bf16"):
        there, own = made(store, plain, variant, rows), made(here, plain, variant, rows)

        assert replace(there, seconds=0.0) == replace(own, seconds=0.0)
        assert store.verify(there.sha256)
    assert left(store) == []


@pytest.mark.process
@pytest.mark.runtime
def test_a_crash_while_a_variant_is_made_is_its_failure_and_the_next_one_is_made(store, dividing):
    """The reason names the signal; nothing is left of the process; what comes next has another one."""
    made(store, dividing, REFERENCE_VARIANT)
    with pytest.raises(WorkerFailure, match=r"making graph .*SIGFPE") as caught:
        made(store, dividing, "graph")

    assert caught.value.kind == "crash"
    assert left(store) == []
    assert made(store, dividing, "bf16").variant == "bf16"


@pytest.mark.process
@pytest.mark.runtime
def test_what_does_not_end_is_ended_and_told_with_the_option(store, endless, limits):
    """A loop without an end, in the runtime that compares outputs."""
    made(store, endless, REFERENCE_VARIANT)
    limits.now = replace(limits_of(10.0), time_s=4.0)
    with pytest.raises(WorkerFailure, match=r"graph did not end within 4 s \(3 times --time-limit\)") as caught:
        made(store, endless, "graph")

    assert caught.value.kind == "timeout"
    limits.now = PLENTY
    assert made(store, endless, "bf16").variant == "bf16"
    assert left(store) == []


@pytest.mark.process
@pytest.mark.runtime
def test_memory_beyond_the_limit_is_told_with_the_limit(store, tmp_path, limits):
    """A row of half a GB, which is made up, as float64, where there are no calibration rows."""
    limits.now = Limits(240.0, "the test's", GIB, "75% of this machine's, more with --memory-limit")
    wide = saved(
        tmp_path / "model" / "wide.onnx", [], [numpy_helper.from_array(np.float32(1), "d")], shape=["N", 1 << 27]
    )
    made(store, wide, REFERENCE_VARIANT)
    with pytest.raises(WorkerFailure, match=r"1\.07 GB that it may allocate .*--memory-limit") as caught:
        made(store, wide, "graph")

    assert caught.value.kind == "out_of_memory"
    assert caught.value.needs_more_than_bytes == GIB
    assert "--batch" not in str(caught.value)
    assert left(store) == []


@pytest.mark.process
@pytest.mark.runtime
def test_a_run_records_the_kind_and_goes_on(store, dividing, fake_study, tmp_path, listener):
    """Each failure with its kind, the reason in its message and what the process wrote last."""
    study = fake_study(model=str(dividing), data=None, variants=("graph", "bf16", "int8-static"))
    prepared = prepare.prepare(study, prepare.check_names(study), tmp_path, maker=store.maker)
    records, failures = prepare.make_artifacts(prepared, prepare.check_names(study), store, listener())

    assert [record.variant for record in records] == ["fp32", "bf16"]
    assert [(one.case, one.kind) for one in failures] == [("graph", "crash"), ("int8-static", "unsupported")]
    assert "SIGFPE" in failures[0].message
    assert "calibration data" in failures[1].message


@pytest.mark.process
def test_a_reference_that_ends_its_process_ends_the_run(store, plain, fake_study, tmp_path, limits, listener):
    """As an error of the model, which is told and ends with 2: there is nothing to compare with."""
    study = fake_study(model=str(plain), data=None)
    prepared = prepare.prepare(study, prepare.check_names(study), tmp_path, maker=store.maker)
    store.maker.close()
    limits.now = replace(PLENTY, memory_bytes=64 << 20)
    with pytest.raises(ModelError, match="making fp32"):
        prepare.make_artifacts(prepared, prepare.check_names(study), store, listener())
    with pytest.raises(ModelError, match="reading the model"):
        describe(plain, store.maker)


def test_without_time_left_no_variant_is_begun(plain, fake_study, tmp_path, listener):
    """The budget's own error, which marks the run as interrupted."""
    study = fake_study(model=str(plain), data=None, variants=("bf16",))
    prepared = prepare.Prepared(plain, (), None, None, {}, ())

    def over():
        raise BudgetError("the time budget was used up")

    with pytest.raises(BudgetError):
        prepare.make_artifacts(prepared, prepare.check_names(study), ArtifactStore(tmp_path / "c"), listener(), over)


@pytest.mark.process
@pytest.mark.runtime
def test_an_interruption_ends_the_process_at_once_and_leaves_nothing(store, endless, limits):
    """Ctrl-C while a native loop runs, which looks at nothing."""
    made(store, endless, REFERENCE_VARIANT)
    worker = store.maker._worker
    assert worker is not None

    def interrupt():
        # Once it is at work: the tool's files are there.
        until = time.monotonic() + 120
        while not list((store.folder / "tmp").glob("*/process-*/edgeprof.variant.*")) and time.monotonic() < until:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        made(store, endless, "graph")
    thread.join()

    assert not psutil.pid_exists(worker.pid)
    assert left(store) == []
    assert made(store, endless, "bf16").variant == "bf16"


@pytest.mark.process
@pytest.mark.runtime
def test_a_process_that_somebody_killed_meanwhile_is_replaced(store, plain):
    """Between two variants nothing is lost with it."""
    made(store, plain, REFERENCE_VARIANT)
    os.kill(store.maker._worker.pid, signal.SIGKILL)
    store.maker._worker._process.wait()

    assert made(store, plain, "graph").variant == "graph"


@pytest.mark.process
@pytest.mark.runtime
def test_a_thread_that_ends_does_not_take_the_process_with_it(store, plain):
    """The kernel ends a child with the thread that started it: searches ask from threads that come and go."""
    thread = threading.Thread(target=made, args=(store, plain, REFERENCE_VARIANT))
    thread.start()
    thread.join()
    worker = store.maker._worker

    assert made(store, plain, "bf16").variant == "bf16"
    assert store.maker._worker is worker
    assert worker.alive


@pytest.mark.process
@pytest.mark.runtime
def test_errors_for_people_come_back_as_they_were_raised(store, plain, tmp_path, monkeypatch):
    """With the class that decides what they mean, the path as it was given, and nothing of the process's own folder."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(VariantError, match="needs calibration data"):
        made(store, plain, "int8-static")
    with pytest.raises(ModelError, match=r"no model file 'gone\.onnx'"):
        describe(type(plain)("gone.onnx"), store.maker)


@pytest.mark.process
@pytest.mark.runtime
def test_nothing_is_imported_from_where_the_model_or_the_user_is(store, plain, tmp_path, monkeypatch):
    """A folder with a model may hold files that are named like the tools."""
    for name in ("onnx", "onnxslim", "numpy", "profiler"):
        (plain.parent / f"{name}.py").write_text("raise SystemExit('imported')")
    monkeypatch.chdir(plain.parent)

    assert made(store, plain.relative_to(plain.parent), "graph").variant == "graph"


@pytest.mark.process
@pytest.mark.runtime
def test_what_native_libraries_write_does_not_reach_our_terminal(store, dividing, capfd):
    """Neither their log nor the stack of a process that was ended."""
    for variant in ("graph", "int8-dynamic"):
        with pytest.raises(WorkerFailure):
            made(store, dividing, variant)

    assert tuple(capfd.readouterr()) == ("", "")


@pytest.mark.process
@pytest.mark.runtime
def test_a_relative_path_of_another_model_counts_from_where_the_user_is(store, plain, tmp_path, monkeypatch):
    """The process that reads it works elsewhere."""
    monkeypatch.chdir(plain.parent)

    assert made(store, plain, "external{path=plain.onnx}").variant == "external{path=plain.onnx}"


@pytest.mark.process
@pytest.mark.runtime
def test_many_tensors_over_one_sparse_file_are_refused_by_what_they_announce(store, tmp_path, limits):
    """Nothing is allocated: the file has a block, the tensors have 20 GB."""
    tensors = []
    for index in range(1000):
        tensor = TensorProto(name=f"t{index}", data_type=1, dims=[5 << 20], data_location=TensorProto.EXTERNAL)
        for key, text in (("location", "w.bin"), ("offset", "0"), ("length", str(20 << 20))):
            tensor.external_data.add(key=key, value=text)
        tensors.append(tensor)
    path = saved(tmp_path / "model" / "sparse.onnx", [], [numpy_helper.from_array(np.float32(1), "d"), *tensors])
    with (path.parent / "w.bin").open("wb") as file:
        file.truncate(20 << 20)

    with pytest.raises(ModelError, match=r"several name the same bytes of 'w\.bin'"):
        describe(path, store.maker)


RUN = """
import json, sys
from pathlib import Path
from profiler.run import execute
from profiler.study import make_study
execute(make_study(**json.loads(sys.argv[1])), out=Path(sys.argv[2]))
"""


@pytest.mark.process
@pytest.mark.runtime
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_ends_while_a_variant_is_made_goes_on_later(endless, fake_study, tmp_path, monkeypatch, ending):
    """Its maker ends with it, its status can be resumed, and the next run removes what a killed one left."""
    study = fake_study(model=str(endless), data=None, variants=("graph",), time_limit_s=60.0, backends=("fake",))
    out = tmp_path / "out"
    run = subprocess.Popen([sys.executable, "-c", RUN, study.to_json(), str(out)], stderr=subprocess.DEVNULL)
    until = time.monotonic() + 200
    while not (working := list(out.glob("cache/tmp/*/process-*/edgeprof.variant.*"))) and time.monotonic() < until:
        time.sleep(0.05)
    assert working
    children = psutil.Process(run.pid).children()
    run.send_signal(ending)
    run.wait()
    psutil.wait_procs(children, timeout=60)

    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)
    store = open_store(out)
    run_id = store.resolve("latest")
    assert store.run(run_id).status == ("interrupted" if ending == signal.SIGINT else "running")
    store.close()

    monkeypatch.setattr(makers, "STEPS", 0.1)
    execute(None, out=out, resume="latest")
    store = open_store(out)
    data = store.run(run_id)
    store.close()

    assert data.status == "finished"
    assert [(one.case, one.kind) for one in data.failures if one.stage == "variant"] == [("graph", "timeout")]
    assert {block.case for block in data.blocks} == {"fp32@fake/b1/t1"}
    assert list((out / "cache" / "tmp").iterdir()) == []


def test_rows_travel_as_files_whatever_they_hold(tmp_path):
    """Numbers, flags, text, nothing; and what reads them may write into them."""
    rows = {
        "x/é": np.arange(6, dtype=np.float16).reshape(3, 2), "flags": np.array([True, False, True]),
        "text": np.array(["a", "bc", "ü"], dtype=object), "none": np.zeros((3, 0), np.float32), "one": np.full((), 3.5),
    }  # fmt: skip
    write_rows(rows, tmp_path)
    found = read_rows(tmp_path)

    assert list(found) == list(rows)
    for name, array in rows.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(found[name], array)
    found["x/é"][0] = 9
    assert read_rows(tmp_path)["x/é"][0, 0] == 0


def test_limits_follow_the_options_and_say_so():
    """Half of what a budget leaves at most; a limit for cases never lowers that of the tools."""
    usual = limits_of()
    assert usual.time_s == 3 * 300
    assert limits_of(10.0).time_s == 30
    assert "--time-limit" in limits_of(10.0).time_told
    assert limits_of(10.0, left_s=40.0).time_s == 20
    assert "--time-budget" in limits_of(10.0, left_s=40.0).time_told
    assert limits_of(10.0, left_s=-5.0).time_s == makers.SHORTEST_S
    assert "the least" in limits_of(1.0).time_told
    assert limits_of(10.0, 1 << 20).memory_bytes == usual.memory_bytes < psutil.virtual_memory().total
    assert limits_of(10.0, 1 << 45).memory_bytes == 1 << 45


def test_a_maker_that_was_never_asked_costs_nothing(tmp_path):
    """No process, no folder."""
    with Maker(folder=tmp_path) as maker:
        assert maker._worker is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shape", [["N", 1 << 31], ["N", 1 << 16, 1 << 16]])
@pytest.mark.process
def test_rows_that_nobody_has_are_refused_before_they_are_made(fake_study, tmp_path, shape):
    """By their size, with the input and its shape."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])], "g", [value("x", shape)], [value("y", shape)]
    )
    path = tmp_path / "wide.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    study = fake_study(model=str(path), data=None)

    with pytest.raises(StudyError, match=r"input 'x' would take .* GB for 1 rows"):
        prepare.prepare(study, prepare.check_names(study), tmp_path)
