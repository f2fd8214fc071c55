"""A target that lies: whatever it answers, the host neither crashes nor hangs nor shows it raw, and the run goes on."""

from __future__ import annotations

import json
import re
import signal
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from backends.base import OpTime, SessionFacts
from profiler import run, wire
from profiler.errors import TargetError
from profiler.measure.energy.base import Absent, MeterInfo
from profiler.measure.realised import Cores
from profiler.store import RunData, open_store
from profiler.targets import answers, process
from profiler.targets.base import Target
from profiler.targets.process import WorkerFailure, WorkerProcess
from profiler.targets.remote import LinkLost

pytestmark = pytest.mark.process

EVIL = Path(__file__).with_name("evil.py")
RAW = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff]")
ESCAPES = "\x1b[2J\x1b]0;owned\x07\u202eevil\x9b31m"
ROWS = {"x": np.zeros((2, 4), np.float32)}
TIMED = {"min_s": 0.0, "min_samples": 3, "max_s": 1.0, "max_samples": 100, "weigh": True}


def evil(**lie: object) -> Target:
    """A target that tells this lie."""
    text = json.dumps({"protocol": wire.PROTOCOL, **lie})
    return Target(
        "evil", (sys.executable, "-I", "-S", str(EVIL), text), shares_files=False, link_codes=frozenset({255})
    )


@pytest.fixture
def short_grace(monkeypatch):
    monkeypatch.setattr(process, "_GRACE_S", 0.3)


ASKED: dict[str, dict] = {
    "hello": {}, "availability": {"backend": "ort"}, "environment": {}, "have": {"size": 5}, "load": {}, "feed": {}, "first": {},
    "time": TIMED, "memory": {}, "facts": {}, "ops": {"machine": True}, "serve": {}, "loadgen": {}, "infer": {}, "energy": {},
}  # fmt: skip
ENERGY = {"energy": {}, "energy clock": {"clock": True}, "energy window": {"window_s": 1.0}}

# Every field that somebody reads of an answer, and of which kind it is.
READ = {
    "hello": {"protocol": "any whole", "pid": "whole"},
    "availability": {"available": "flag", "version": "text?", "reason": "text?"},
    "environment": {"environment": "any mapping"},
    "have": {"have": "flag", "offset": "whole"},
    "load": {
        "import_s": "seconds", "load_s": "seconds", "rss_before_load_bytes": "whole?", "phases": "mapping",
        "phases.load": "mapping", "phases.load.peak_rss_bytes": "whole?", "inputs": "list", "inputs.0": "mapping",
        "inputs.0.name": "text", "outputs.0.shape": "list",
    },
    "first": {"first_inference_s": "seconds"},
    "time": {
        "started_s": "number", "cpu_s": "seconds", "wall_s": "seconds", "labels": "mapping", "labels.steal_share": "number",
        "parked_cpu_s": "seconds", "harness": "mapping", "harness.in_sample_s": "number", "harness.labelled_s": "number",
    },
    "memory": {"peak_rss_bytes": "whole?", "phases": "mapping", "memory_notes": "list"},
    "facts": {
        "facts": "mapping", "facts.runtime": "text", "facts.provider": "text", "facts.threads": "whole?",
        "facts.precision": "mapping?", "facts.details": "mapping",
    },
    "ops": {
        "wall_s": "seconds", "facts": "mapping", "ops": "list?", "ops.0": "mapping", "ops.0.duration_s": "seconds",
        "ops.0.name": "text", "ops.0.origins": "list", "machine": "mapping", "machine.usable_cores": "whole",
        "machine.isa": "list",
    },
    "serve": {"ended": "text", "wall_s": "seconds", "labels": "mapping", "generator_cpu_s": "number?", "padded_to": "whole?"},
    "loadgen": {"samples": "whole"},
    "energy": {
        "meters": "list", "meters.0": "mapping", "meters.0.rails": "list", "meters.0.update_s": "seconds",
        "meters.0.kind": "text", "absent": "list", "absent.0.reason": "text",
    },
    "energy clock": {"unix_s": "number"},
    "energy window": {
        "window": "mapping", "window.energy_j": "mapping", "window.energy_j.package": "number", "window.wall_s": "seconds",
        "window.readings": "whole", "meter.name": "text",
    },
}  # fmt: skip
EXAMPLES = {
    "text": "5", "number": 5.5, "whole": 5, "seconds": 5, "flag": True, "list": [], "mapping": {}, "gone": "GONE", "null": None,
    "negative": -5, "huge": 10**30, "longer than a life": 1e12, "list of lists": [[]], "mapping of lists": {"a": []},
}  # fmt: skip
GOOD = {
    "text": {"text"}, "number": {"number", "whole", "seconds", "negative", "longer than a life"}, "whole": {"whole", "seconds"},
    "seconds": {"number", "whole", "seconds"}, "flag": {"flag"}, "list": {"list"}, "mapping": {"mapping"},
    "any mapping": {"mapping", "mapping of lists"}, "any whole": {"whole", "seconds", "negative"},
}  # fmt: skip


MAY_BE_GONE = {
    "phases.load",
    "phases.load.peak_rss_bytes",
    "labels.steal_share",
    "window.energy_j.package",
    "inputs.0",
    "ops.0",
    "meters.0",
}
"""Entries of mappings and lists that may have any."""


def wrong_for(place: str, kind: str) -> list[str]:
    """Names of the examples that do not belong in a place."""
    good = (
        GOOD[kind.rstrip("?")]
        | ({"null"} if kind.endswith("?") else set())
        | ({"gone"} if place in MAY_BE_GONE else set())
    )
    return [name for name in EXAMPLES if name not in good]


@pytest.mark.parametrize("form", READ)
def test_every_field_that_is_read_is_checked(form):
    """Each kind of value in each place: what does not belong there is a failure in words, and the worker can be asked on."""
    command = form.partition(" ")[0]
    asked = ENERGY.get(form) or ASKED[command]
    believed, said = [], []
    with WorkerProcess(evil()) as worker:
        worker.request(command, timeout_s=20, **asked)
        wrong = [(place, name) for place, kind in READ[form].items() for name in wrong_for(place, kind)]
        for place, name in wrong:
            try:
                worker.request(command, timeout_s=20, lie={"set": {place: EXAMPLES[name]}}, **asked)
            except WorkerFailure as failure:
                said.append(str(failure))
            else:
                believed.append((place, name))

    assert believed == []
    assert all("what cannot be" in text and len(text) < 500 for text in said)


@pytest.mark.parametrize("command", ASKED)
def test_no_escape_comes_through(command):
    """In every text of every answer, also in names that nobody knows: what moves cursors is gone, in messages too."""
    lie = {"set": {"extra": {ESCAPES: [ESCAPES, {"deep": ESCAPES}]}}}
    with WorkerProcess(evil()) as worker:
        arrays = ROWS if command == "infer" else None
        answer, _ = worker.request(command, arrays, timeout_s=20, lie=lie, **ASKED[command])
        refusal = {"ok": False, "kind": ESCAPES, "message": f"first\n\tsecond {ESCAPES}"}
        with pytest.raises(WorkerFailure) as failed:
            worker.request(command, arrays, timeout_s=20, lie={"set": refusal}, **ASKED[command])
        with pytest.raises(WorkerFailure) as nonsense:
            worker.request("load", timeout_s=20, lie={"set": {"load_s": ESCAPES, f"inputs.0.{ESCAPES}": 5}})

    assert not RAW.search(json.dumps(answer, ensure_ascii=False))
    assert "?[2J" in str(answer["extra"])
    assert str(failed.value).startswith("first\n\tsecond ?[2J")
    assert failed.value.kind == "error"
    for failure in (failed, nonsense):
        assert not RAW.search(str(failure.value))


ARRAYS = {
    "no durations": {"without": ["durations_ns"]},
    "empty durations": {"arrays": [["durations_ns", "<i8", [0], ""]]},
    "two axes": {"arrays": [["durations_ns", "<i8", [2, 1], "01" + "00" * 7 + "01" + "00" * 7]]},
    "no axis": {"arrays": [["durations_ns", "<i8", [], "01" + "00" * 7]]},
    "not a number": {"arrays": [["durations_ns", "<f8", [1], "000000000000f87f"]]},
    "negative": {"arrays": [["durations_ns", "<i8", [1], "ff" * 8]]},
    "zero": {"arrays": [["durations_ns", "<i8", [1], "00" * 8]]},
    "flags": {"arrays": [["durations_ns", "|b1", [3], "010101"]]},
    "more than asked for": {"arrays": [["durations_ns", "|u1", [101], "01" * 101]]},
    "windows of other samples": {"arrays": [["window_ns", "|u1", [5], "01" * 5]]},
    "infinite windows": {"arrays": [["window_ns", "<f4", [12], "0000807f" * 12]]},
    "a canary without places": {"without": ["canary_at"]},
    "places without a canary": {"without": ["canary_ns"]},
    "a canary after the end": {"arrays": [["canary_at", "|u1", [2], "00ff"]]},
    "windows of no time": {"arrays": [["window_ns", "|u1", [12], "00" * 12]]},
    "windows that run backwards": {"arrays": [["window_ns", "|i1", [12], "ff" * 12]]},
    "a window of 1e308": {"arrays": [["cpu_ns", "<f8", [12], "a0c8eb85f3cce17f" * 12]]},
    "a duration of a century": {"arrays": [["durations_ns", "<i8", [1], "00" * 7 + "40"]]},
    "a duration beyond counting": {"arrays": [["durations_ns", "<u8", [1], "ff" * 8]]},
    "a canary of 1e308": {"arrays": [["canary_ns", "<f8", [2], "a0c8eb85f3cce17f" * 2]]},
    "a canary before the beginning": {"arrays": [["canary_at", "|i1", [2], "ff00"]]},
}


@pytest.mark.parametrize("lie", ARRAYS.values(), ids=ARRAYS)
def test_samples_that_no_clock_can_have_measured_are_refused(lie):
    """Their number, shape, type and values."""
    with WorkerProcess(evil()) as worker, pytest.raises(WorkerFailure, match="with what cannot be"):
        worker.request("time", timeout_s=20, lie=lie, **TIMED)


@pytest.mark.parametrize(
    "lie",
    [
        {"without": ["sent_ns"]}, {"arrays": [["batch_size", "|u1", [2], "0101"]]},
        {"arrays": [["completed_ns", "<f8", [3], "000000000000f87f" * 3]]}, {"arrays": [["sent_ns", "<u8", [3], "ff" * 24]]},
        {"arrays": [["batch_size", "|i1", [3], "ff01ff"]]}, {"arrays": [["sent_ns", "|u1", [3, 1], "010203"]]},
    ],
    ids=["missing", "another length", "not a number", "beyond counting", "no batch", "two axes"],
)  # fmt: skip
def test_requests_that_do_not_fit_each_other_are_refused(lie):
    """One moment each for every request."""
    with WorkerProcess(evil()) as worker, pytest.raises(WorkerFailure, match="with what cannot be"):
        worker.request("serve", timeout_s=20, lie=lie)


def test_more_requests_than_were_due_are_refused():
    """Each has a time that it was due at."""
    with WorkerProcess(evil()) as worker:
        worker.request("serve", {"schedule_s": np.arange(3.0)}, timeout_s=20)
        with pytest.raises(WorkerFailure, match="with what cannot be"):
            worker.request("serve", {"schedule_s": np.arange(2.0)}, timeout_s=20)


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        ({"without": ["y"]}, "there are no outputs"),
        ({"arrays": [["z", "|u1", [2], "0000"]]}, "output 'z' was missing"),
        ({"arrays": [["y", "<f8", [2, 2], "00" * 32]]}, r"output 'y' was float32 \[batch, 2\].*is float64 \[batch, 2\] now"),
        ({"arrays": [["y", "<f4", [2, 3], "00" * 24]]}, r"float32 \[batch, 3\] now"),
        ({"arrays": [["y", "<f4", [2], "00" * 8]]}, r"float32 \[batch, \] now"),
        ({"arrays": [["y\u200b", "<f4", [2], "00" * 8], ["y\u200c", "<f4", [2], "00" * 8]]}, "have the same name"),
    ],
)  # fmt: skip
def test_outputs_are_the_same_in_every_batch(lie, words):
    """Names, types and shapes; they are put together later."""
    with WorkerProcess(evil()) as worker:
        worker.request("infer", ROWS, timeout_s=20)
        with pytest.raises(WorkerFailure, match=words):
            worker.request("infer", ROWS, timeout_s=20, lie=lie)


def array(dtype: str = '"|u1"', shape: str = "[0]", more: str = "") -> str:
    """A header with one array of that dtype and shape, as JSON, and `more` of them."""
    return f'{{"ok": true, "arrays": [{{"name": "a", "dtype": {dtype}, "shape": {shape}}}{more}]}}'


SIZES = {
    "a header of 4 GB": {"text": "{}", "length": 0xFFFFFFFF},
    "a header of 5 MB": {"text": "{}", "length": 5 << 20},
    "an array of petabytes": {"text": array('"<f8"', "[1048576, 1048576, 1024]")},
    "arrays that are too much together": {"text": array(more=', {"name": "b", "dtype": "|u1", "shape": [99999999]}')},
    "shapes that are no sizes": {"text": array(shape='["9"]')},
    "negative shapes": {"text": array(shape="[-1, -1]")},
    "flags as sizes": {"text": array(shape="[true]")},
    "a shape that is none": {"text": array(shape="5")},
    "a thousand axes": {"text": array(shape="[" + "9," * 999 + "9]")},
    "a size of a million digits": {"text": array(shape="[" + "9" * 1_000_000 + "]")},
    "10^6 arrays": {"text": '{"ok": true, "arrays": [' + "{}," * 999_999 + "{}]}"},
    "5000 empty arrays": {"many": 5000},
    "objects as elements": {"text": array('"O"', "[1]")},
    "a dtype of a thousand fields": {"text": array('"' + "i4," * 1000 + '"')},
    "a dtype that is a mapping": {"text": array('{"names": []}')},
    "one name twice": {"text": array(more=', {"name": "a", "dtype": "|u1", "shape": [0]}')},
    "deep JSON": {"nested": 100_000},
    "JSON as deep as Python reads": {"nested": 300},
    "a number of a million digits": {"text": '{"ok": true, "arrays": [], "x": ' + "9" * 1_000_000 + "}"},
    "a number without an end": {"text": '{"ok": true, "arrays": [], "x": 1e999}'},
    "not a number": {"text": '{"ok": true, "arrays": [], "x": NaN}'},
    "more values than anybody reads": {"text": '{"ok": true, "arrays": [], "x": [' + "0," * 600_000 + "0]}"},
    "no mapping": {"text": "[]"},
    "no arrays": {"text": '{"ok": true}'},
    "no verdict": {"text": '{"arrays": []}'},
    "another verdict": {"text": '{"ok": "yes", "arrays": []}'},
    "no JSON": {"text": "GET / HTTP/1.1"},
    "no UTF-8": {"text": '{"ok": true, "arrays": [], "x": "\xff"}'},
    "nothing": {"text": ""},
}


@pytest.mark.parametrize("lie", SIZES.values(), ids=SIZES)
def test_answers_of_absurd_size_and_form_are_refused(short_grace, lie):
    """At once and without the memory that they announce; afterwards the worker is gone."""
    worker = WorkerProcess(evil())
    with worker, pytest.raises(WorkerFailure) as caught:
        worker.request("first", timeout_s=20, lie=lie)

    assert caught.value.kind == "error"
    assert len(str(caught.value)) < 1000
    assert not RAW.search(str(caught.value))
    assert worker._process.poll() is not None


ENDLESS = {
    "one byte at a time": {"drip_s": 0.1},
    "silence": {"cut": 0},
    "half of a frame, then silence": {"cut": 9},
}


@pytest.mark.parametrize("lie", ENDLESS.values(), ids=ENDLESS)
def test_an_answer_that_does_not_end_is_a_lost_link_at_its_time(short_grace, lie):
    """However many bytes come meanwhile."""
    worker = WorkerProcess(evil(at="first", **lie))
    with worker, pytest.raises(LinkLost, match=r"no word from 'evil' for 0\.8 s"):
        worker.request("first", timeout_s=0.5)

    assert worker._process.poll() == -signal.SIGKILL


@pytest.mark.parametrize(
    ("lie", "kind"),
    [
        ({"forever": "\0"}, "error"), ({"forever": "A"}, "error"),
        ({"cut": 20, "then": "exit"}, "crash"), ({"cut": 20, "then": "exit", "code": 3}, "crash"),
        ({"cut": 0, "then": "close"}, "error"), ({"cut": 20, "then": "close"}, "error"),
        ({"cut": 0, "then": "exit", "code": 137}, "out_of_memory"),
    ],
    ids=str,
)  # fmt: skip
def test_a_stream_that_is_none_ends_in_a_failure(short_grace, lie, kind):
    """Rubbish for ever, and pipes that close in the middle or before."""
    with WorkerProcess(evil(at="first", **lie)) as worker, pytest.raises(WorkerFailure) as caught:
        worker.request("first", timeout_s=20)

    assert caught.value.kind == kind


@pytest.mark.parametrize("lie", [{"cut": 20, "then": "exit", "code": 255}, {"kill": 9}, {"kill": 15}], ids=str)
def test_the_end_of_the_client_is_a_lost_link(short_grace, lie):
    """ssh's own exit code, and a client that was killed: nothing is known of the case."""
    with (
        WorkerProcess(evil(at="first", **lie)) as worker,
        pytest.raises(LinkLost, match=r"connection to 'evil' was lost"),
    ):
        worker.request("first", timeout_s=20)


def test_a_log_without_an_end_fills_nothing():
    """Of 30 MB the end is kept, a few lines of it are shown, without what moves cursors; the answer came through."""
    with WorkerProcess(evil(at="first", shout=30)) as worker:
        answer, _ = worker.request("first", timeout_s=60)
        tail = worker.log_tail()
        kept = len(worker._log._kept)

    assert answer["first_inference_s"] == 0.001
    assert kept <= 64_000
    assert tail.splitlines()[-1] == "?[2Jlast words ?"
    assert not RAW.search(tail)


def test_a_log_that_nobody_stops_is_left_alone(short_grace):
    """A worker that only writes its log: the request ends at its time, and closing does not wait for the writer."""
    worker = WorkerProcess(evil(at="first", shout=10**9))
    with pytest.raises(LinkLost):
        worker.request("first", timeout_s=0.3)
    worker.close()

    assert not worker._log._thread.is_alive()


@pytest.mark.parametrize("protocol", [0, 1, wire.PROTOCOL + 1, -1, 10**9])
def test_a_worker_of_another_protocol_is_told_by_its_greeting(protocol):
    """With the command that mends it."""
    with (
        WorkerProcess(evil(protocol=protocol)) as worker,
        pytest.raises(TargetError, match="edgeprof target setup evil"),
    ):
        worker.greet()


def test_what_is_checked_is_what_the_dataclasses_have():
    """A field added to one of them has to be added to what is checked."""
    pairs = [
        (answers._Facts, SessionFacts), (answers._Op, OpTime), (answers._Cores, Cores), (answers._Meter, MeterInfo),
        (answers._Absent, Absent),
    ]  # fmt: skip

    for checked, kind in pairs:
        assert set(checked.__annotations__) == {field.name for field in fields(kind)}, kind


# Whole runs -----------------------------------------------------------------------------------------------------------


LIES = {
    "load": {"at": "load", "set": {"load_s": "soon"}},
    "load of another form": {"at": "load", "text": "[]"},
    "first": {"at": "first", "set": {"first_inference_s": -1}},
    "samples": {"at": "time", "without": ["durations_ns"]},
    "labels": {"at": "time", "set": {"labels": [1]}},
    "harness": {"at": "time", "set": {"harness": None}},
    "memory": {"at": "memory", "set": {"peak_rss_bytes": "all"}},
    "facts": {"at": "facts", "set": {"facts": {"runtime": "x"}}},
    "no outputs": {"at": "infer", "without": ["y"]},
    "outputs of other rows": {"at": "infer", "arrays": [["y", "<f4", [7, 2], "00" * 56]]},
    "outputs of flags": {"at": "infer", "arrays": [["y", "|b1", [1, 2], "0001"]]},
    "outputs of no rows": {"at": "infer", "arrays": [["y", "<f4", [], "00" * 4]]},
    "a cache that has everything and nothing": {"at": "have", "set": {"have": "perhaps"}},
    "a death": {"at": "time", "cut": 5, "then": "exit", "code": 139},
    "an exit": {"at": "infer", "cut": 5, "then": "exit", "code": 4},
    "rubbish": {"at": "time", "forever": "B"},
    "escapes": {"at": "load", "set": {"ok": False, "kind": "error", "message": ESCAPES}},
    "a kind that is none": {"at": "load", "set": {"ok": False, "kind": ["skipped"], "message": {"a": 1}}},
}
STRANGE = {
    "outputs that are no numbers": [["y", "<f4", [1, 2], "0000c07f" * 2]],
    "outputs of another shape": [["y", "<f4", [1, 3], "00" * 12]],
    "an output called ../../z": [["../../z", "<f4", [1, 2], "00" * 8]],
}
"""What a model may answer too: figures, not failures."""


NO_REQUESTS = {"arrays": [[name, "|u1", [0], ""] for name in ("sent_ns", "started_ns", "completed_ns", "batch_size")]}


def done(study, out, listener) -> RunData:
    """Do it, and read what was stored. Nothing raw was told or stored, and nothing was written beside the run's own folder."""
    progress = listener()
    run.execute(study, out=out / "runs", progress=progress, machines=lambda _: None)
    return stored(out, progress)


def stored(out, progress) -> RunData:
    store = open_store(out / "runs")
    try:
        data = store.run(store.resolve("latest"))
    finally:
        store.close()
    for text in (*progress.notes, *(failure.message + (failure.log_tail or "") for failure in data.failures)):
        assert not RAW.search(text), text
    assert sorted(path.name for path in out.iterdir()) == [".targets.lock", "runs", "targets.toml"]
    return data


def of(records, place: str) -> list:
    """Those of one target."""
    return [record for record in records if ("@evil" in record.case) == (place == "evil")]


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_a_run_goes_on_beside_a_target_that_lies(study_of, tmp_path, listener, lie):
    """This machine is measured to its end; the liar has a failure record, and no figure of what it lied about."""
    data = done(study_of(lie), tmp_path, listener)

    assert data.status == "finished"
    assert (len(of(data.blocks, "local")), of(data.failures, "local")) == (1, [])
    assert len(of(data.failures, "evil")) == 1
    assert of(data.blocks, "evil") == []


@pytest.mark.parametrize("arrays", STRANGE.values(), ids=STRANGE)
def test_strange_outputs_are_compared_and_not_believed_to_be_a_crash(study_of, tmp_path, listener, arrays):
    """NaN, other classes, odd names: what a broken variant answers too."""
    without = ["y"] if arrays[0][0] != "y" else []
    data = done(study_of({"at": "infer", "arrays": arrays, "without": without}), tmp_path, listener)

    assert data.status == "finished"
    assert len(of(data.qualities, "evil")) + len(of(data.failures, "evil")) == 1
    assert len(of(data.blocks, "local")) == 1


@pytest.mark.parametrize(
    "lie",
    [
        {"at": "environment", "set": {"environment": {"hostname": 5}}}, {"at": "environment", "set": {"environment": ESCAPES}},
        {"at": "hello", "set": {"protocol": [ESCAPES]}}, {"at": "hello", "text": ESCAPES.encode().decode("latin-1")},
        {"at": "hello", "cut": 10, "then": "exit", "code": 255}, {"at": "time", "cut": 0},
    ],
    ids=["facts", "no facts", "protocol", "banner", "no connection", "frozen"],
)  # fmt: skip
def test_a_target_that_cannot_be_used_is_left_and_told(study_of, tmp_path, listener, monkeypatch, lie):
    """After the last try, in words, when all others were measured."""
    monkeypatch.setattr(run, "LINK_PAUSES_S", (0.01, 0.01))
    # The honest machine must answer within it too, however busy this one is.
    study, progress = study_of(lie, time_limit_s=5.0), listener()
    with pytest.raises(TargetError, match="evil") as caught:
        run.execute(study, out=tmp_path / "runs", progress=progress, machines=lambda _: None)
    data = stored(tmp_path, progress)

    assert not RAW.search(str(caught.value))
    assert (len(of(data.blocks, "local")), of(data.blocks, "evil")) == (1, [])


@pytest.mark.parametrize(
    "lie",
    [
        {"set": {"meters": "many"}}, {"set": {"meters.0.update_s": 1e9}}, {"set": {"meters.0.settle_s": -1}},
        {"set": {"absent": [5]}}, {"set": {"meters.0.rails": [["x"]]}}, {"text": "[]"},
    ],
    ids=str,
)  # fmt: skip
def test_lies_about_energy_cost_its_figure_and_nothing_else(study_of, tmp_path, listener, lie):
    """A meter that says it needs a year does not make the run wait for one."""
    plan = {"windows": 3, "window_s": 0.01}
    data = done(study_of({"at": "energy", **lie}, energy=plan), tmp_path, listener)

    assert data.status == "finished"
    assert {(failure.stage, failure.kind) for failure in of(data.failures, "evil")} == {("energy", "error")}
    assert len(of(data.blocks, "evil")) == 1


@pytest.mark.parametrize(
    "lie",
    [
        {"set": {"ended": "happily"}}, {"without": ["completed_ns"]}, {"set": {"labels": {"steal_share": "5"}}},
        {"cut": 30, "then": "exit"}, NO_REQUESTS,
    ],
    ids=["ended", "missing", "labels", "exit", "nothing"],
)  # fmt: skip
def test_lies_while_serving_cost_that_figure_and_nothing_else(study_of, tmp_path, listener, lie):
    """The load stage stores a failure for the liar and serves the others."""
    load = {"settings": ("single",), "duration_s": 0.01, "repeats": 1}
    data = done(study_of({"at": "serve", **lie}, load=load), tmp_path, listener)

    assert data.status == "finished"
    assert [failure.stage for failure in of(data.failures, "evil")] == ["serve"]
    assert (len(of(data.loads, "local")), of(data.loads, "evil")) == (1, [])
