"""Conditions in a target's text, and workers under them."""

from __future__ import annotations

import io
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.errors import StudyError
from profiler.measure.conditions import format_cores
from profiler.study import make_study
from profiler.targets import base, conditions, launch
from profiler.targets.conditions import Conditions, canonical, combine, describe, label, too_many_threads
from profiler.targets.modes import Modes
from profiler.targets.process import WorkerFailure

MB = 1_000_000
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processors and groups of Linux")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("local", "local"),
        ("local{}", "local"),
        ("local{memory=0.5GB, cpus=1.0}", "local{cpus=1,memory=500MB}"),
        ("pi{memory=1GiB}", "pi{memory=1GiB}"),
        ("pi{memory=1048577}", None),
        ("pi{memory=536870912}", "pi{memory=512MiB}"),
        ("rk{cores=7|4-6}", "rk{cores=4-7}"),
        ("jetson{power=maxn_super}", "jetson{power=MAXN_SUPER}"),
    ],
)
def test_a_target_has_one_text(text, expected):
    """Amounts, numbers, ranges and order are brought into one form."""
    if expected is None:
        with pytest.raises(StudyError, match="memory is an amount"):
            canonical(text)
    else:
        assert canonical(text) == expected


asked = st.builds(
    Conditions,
    st.none() | st.integers(1, 1000).map(float) | st.integers(50, 100_000).map(lambda n: round(n / 1000, 3)),
    st.none() | st.integers(1 << 24, 1 << 50),
    st.none() | st.sampled_from(["big", "little"]) | st.sets(st.integers(0, 99), min_size=1).map(format_cores),
    st.none() | st.sampled_from(["15W", "MAXN_SUPER", "2"]),
)


@given(asked)
def test_texts_hold_all_that_is_asked(wanted):
    """Reading what was written gives the same, whatever the amounts."""
    text = _text("pi", wanted)

    assert conditions.parse(text) == ("pi", wanted)
    assert canonical(text) == text


def _text(name: str, wanted: Conditions) -> str:
    options = ",".join(f"{key}={value}" for key, value in sorted(wanted.options().items()))
    return name + (f"{{{options}}}" if options else "")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("local{cpu=1}", "unknown option of target 'local' 'cpu'. Did you mean cpus"),
        ("local{memroy=1GB}", "Did you mean memory"),
        ("local{cpus=0}", "cpus is a number of processors"),
        ("local{cpus=nan}", "cpus is a number of processors"),
        ("local{cpus=many}", "cpus is a number of processors"),
        ("local{memory=1MB}", "at least 16.8 MB"),
        ("local{memory=lots}", "512MB or 2GiB"),
        ("local{cores=Big}", "a class such as big or little"),
        ("local{cores=3-1}", "a class such as big or little"),
        ("local{power=a/b}", "15W, MAXN or its number"),
        ("local:gpu", "has no device after a colon"),
    ],
)
def test_conditions_that_cannot_be_are_refused(text, words):
    """Saying what came and what would do."""
    with pytest.raises(StudyError) as caught:
        base.get(text)

    assert words in str(caught.value)


def test_the_machine_of_a_text_is_its_name():
    """With its conditions beside it."""
    target = base.get("local{memory=512MB,cpus=1}")

    assert (target.name, target.text) == ("local", "local{cpus=1,memory=512MB}")
    assert target.conditions == Conditions(1.0, 512 * MB)
    assert (base.get("local").text, base.get("local").conditions) == ("local", Conditions())


def test_studies_hold_canonical_targets():
    """Sorted options, each once."""
    study = make_study(model="m.onnx", targets=("local{memory=512MB, cpus=1}", "local{cpus=1,memory=512MB}", "pi"))

    assert study.targets == ("local{cpus=1,memory=512MB}", "pi")


def test_an_envelope_is_labelled():
    """Never as a device's latency; classes of cores and power modes are the device itself."""
    assert label("local{cpus=1,memory=512MB}") == (
        "envelope: 1 cpu, 512 MB on this machine, not the latency of a device of that size"
    )
    assert label("pi{cpus=0.5}") == "envelope: 0.5 cpus on pi, not the latency of a device of that size"
    assert [label(text) for text in ("local", "pi{cores=big}", "jetson{power=15W}")] == [None, None, None]


def test_a_target_is_described_in_words():
    """For headings."""
    assert describe("local") == "this machine"
    assert describe("jetson{cores=0-3,power=15W}") == "jetson, power mode 15W, processors 0-3"
    assert describe("rk{cores=big,cpus=2}") == "rk, big cores, limited to 2 cpus"


@pytest.mark.parametrize(
    ("text", "threads", "too_many"),
    [
        ("local", 64, False),
        ("local{cpus=1}", 1, False),
        ("local{cpus=1}", 2, True),
        ("local{cpus=0.5}", 1, False),
        ("local{cpus=1.5}", 2, True),
        ("local{cores=0-3}", 4, False),
        ("local{cores=0-3,cpus=2}", 4, True),
        ("local{cores=big}", 4, False),
    ],
)
def test_threads_that_would_take_turns_are_noticed(text, threads, too_many):
    """How many processors a class has only the machine knows."""
    assert (too_many_threads(text, threads) is not None) == too_many


@pytest.mark.parametrize(
    ("key", "stopped"),
    [
        ("fp32@ort/b1/t1@local{cpus=0.5}", True),
        ("fp32@ort/b1@pi{cpus=1.5,memory=1GB}", True),
        ("fp32@ort/b1/t1@local{cpus=2}", False),
        ("fp32@ort/b1/t1@local{memory=1GB}", False),
        ("fp32@ort/b1/t1", False),
        ("int8-static{path=a@b}@ort/b1/t1@pi", False),
        ("fp32@ort/b1/t1@pi{cpus=0.5,later=1}", False),
    ],
)
def test_a_case_on_a_fraction_of_a_processor_is_known_by_its_key(key, stopped):
    """Its quota stops it in every period, which nobody should take for interference."""
    assert conditions.stopped_by_quota(key) == stopped


def test_limits_hold_for_all_targets_and_classes_and_modes_are_axes():
    """One text for each."""
    assert combine(["local", "rk"], memory="512MB", cpus="1") == (
        "local{cpus=1,memory=512MB}",
        "rk{cpus=1,memory=512MB}",
    )
    assert combine(["rk"], cores="big,little") == ("rk{cores=big}", "rk{cores=little}")
    assert combine(["jetson"], power="15W, 30W", cores="0-3") == (
        "jetson{cores=0-3,power=15W}",
        "jetson{cores=0-3,power=30W}",
    )
    assert combine(["local", "local"]) == ("local",)


@pytest.mark.parametrize(
    ("target", "options", "words"),
    [
        ("local{cpus=2}", {"cpus": "1"}, "sets cpus itself"),
        ("local", {"cores": ","}, "--cores is empty"),
        ("local", {"memory": "512 elephants"}, "elephants"),
        ("local:0", {"cpus": "1"}, "no device after a colon"),
    ],
)
def test_conditions_are_given_once_and_readable(target, options, words):
    """In the text or as an option."""
    with pytest.raises(Exception, match=words):
        combine([target], **options)


# Workers under conditions.


@pytest.mark.process
@linux
def test_a_worker_is_bound_before_any_runtime():
    """Its threads, its environment, and its notes say so."""
    first = min(os.sched_getaffinity(0))
    with launch.start(base.get("local{cpus=1}")) as worker:
        reply, _ = worker.request("environment", timeout_s=60)
        masks = {frozenset(os.sched_getaffinity(int(task.name))) for task in Path(f"/proc/{worker.pid}/task").iterdir()}

    assert masks == {frozenset([first])}
    assert reply["environment"]["usable_cores"] == 1
    assert worker.told["cpus"].endswith(f"processors {first}")
    assert worker.notes == (f"cpus: {worker.told['cpus']}",)


@pytest.mark.process
@pytest.mark.runtime
@linux
def test_onnxruntime_stays_within_the_processors(small_model):
    """It takes its number of threads from the machine and not from the mask; ours are told, and none is outside."""
    first = min(os.sched_getaffinity(0))
    with launch.start(base.get("local{cpus=1}")) as worker:
        worker.request("load", backend="ort", path=str(small_model), threads=1, batch=1, timeout_s=60)
        worker.request("feed", {"0/x": np.zeros((1, 4), np.float32)}, timeout_s=60)
        worker.request("first", timeout_s=60)
        facts, _ = worker.request("facts", timeout_s=60)
        masks = {frozenset(os.sched_getaffinity(int(task.name))) for task in Path(f"/proc/{worker.pid}/task").iterdir()}

    assert facts["facts"]["threads"] == 1
    assert masks == {frozenset([first])}


@pytest.mark.process
@linux
@pytest.mark.parametrize(
    ("text", "words"),
    [("local{cpus=1000}", "cpus=1000 is not possible"), ("local{cores=9000}", "not there or not ours"),
     ("local{memory=17MB}", "the worker alone"), ("local{power=15W}", "only NVIDIA Jetson")],
)  # fmt: skip
def test_what_the_machine_cannot_do_is_known_before_the_run(text, words):
    """As a mistake in the study, with the machine's words; in the middle of a run it is the case's failure."""
    if Path("/etc/nvpmodel.conf").exists():
        pytest.skip("this machine has power modes")
    with pytest.raises(StudyError, match=words):
        launch.probe(base.get(text))
    with pytest.raises(WorkerFailure, match=words) as caught:
        launch.start(base.get(text))

    assert caught.value.kind == "unavailable"


@pytest.mark.process
@linux
def test_what_does_not_fit_runs_out_of_memory_and_names_the_envelope(tmp_path):
    """By the kernel or by a failed allocation, whichever the machine allows."""
    artifact = tmp_path / "model.bin"
    artifact.write_bytes(b"anything")

    def load(worker, memory_mb):
        worker.request(
            "load",
            backend="fake",
            path=str(artifact),
            threads=1,
            batch=1,
            options={"memory_mb": memory_mb},
            timeout_s=60,
        )

    with launch.start(base.get("local{memory=300MB}")) as worker:
        load(worker, "60")
        memory, _ = worker.request("memory", timeout_s=60)
        with pytest.raises(WorkerFailure) as caught:
            load(worker, "600")

    assert any(note.startswith("memory: ") for note in memory["memory_notes"])
    assert caught.value.kind == "out_of_memory"
    assert caught.value.needs_more_than_bytes == 300 * MB
    assert "does not fit into the 300 MB of the envelope local{memory=300MB}" in str(caught.value)
    assert str(caught.value).count("Try a smaller") == 1
    assert str(caught.value).endswith("or a larger envelope.")
    group = _group_of(worker.told["memory"], worker.pid)
    if group is not None:
        assert "its control group" in str(caught.value)
        # Removed by itself, once its counts could be read.
        assert _until(lambda: not group.exists())


def _group_of(means: str, pid: int) -> Path | None:
    if not means.startswith("cgroup"):
        return None
    from profiler.measure.memory import group_folder

    found = group_folder()
    assert found is not None
    places = [parent / f"edgeprof-envelope-{pid}" for parent in (found[0], found[0].parent)]
    return next((place for place in places if place.exists()), places[0])


def _until(what, seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while not what() and time.monotonic() < end:
        time.sleep(0.05)
    return bool(what())


# Power modes, with real workers on a made-up Jetson.

WORKER = """
import functools, sys
sys.path[:] = [p for p in sys.path if p]
from pathlib import Path
from profiler.measure import power_mode
root = Path(sys.argv[1])
power_mode.PowerModes = functools.partial(
    power_mode.PowerModes, root=root, is_root=lambda: True, marker=root / "mark",
    which=lambda name: str(root / name) if name == "nvpmodel" else None,
)
from profiler.worker import main
main()
"""
NVPMODEL = """#!/bin/sh
here=$(dirname "$0")
case "$1" in
  -q) echo "NV Power Mode: any"; cat "$here/mode" ;;
  -m) echo "$2" >> "$here/calls"; echo "$2" > "$here/mode" ;;
esac
"""


@pytest.fixture
def jetson(tmp_path):
    """`jetson("15W")`: the target in that power mode; `jetson.mode()`: the mode the machine is in."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nvpmodel.conf").write_text("< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=30W >\n")
    (tmp_path / "nvpmodel").write_text(NVPMODEL)
    (tmp_path / "nvpmodel").chmod(0o755)
    (tmp_path / "mode").write_text("2\n")
    here = base.local()

    class Jetson:
        def __call__(self, power: str | None) -> base.Target:
            asked = Conditions(power=power)
            command = (sys.executable, "-c", WORKER, str(tmp_path))
            return replace(here, name="jetson", command=command, conditions=asked, text=_text("jetson", asked))

        def mode(self) -> str:
            return (tmp_path / "mode").read_text().strip()

        def calls(self) -> list[str]:
            path = tmp_path / "calls"
            return path.read_text().split() if path.exists() else []

    return Jetson()


@pytest.mark.process
def test_each_case_finds_its_mode_and_the_machine_gets_its_own_back(jetson):
    """One change for a whole group of cases; workers that are measured look whether it is so."""
    with Modes() as modes:
        for power, number in (("15W", "0"), ("15W", "0"), ("30W", "1")):
            modes.ensure(jetson(power))
            with launch.start(jetson(power)) as worker:
                assert worker.told["power"] == f"nvpmodel: {power} (mode {number})"
        modes.ensure(jetson(None))
        assert jetson.mode() == "2"
        modes.ensure(jetson("30W"))

    assert jetson.mode() == "2"
    assert jetson.calls() == ["0", "1", "2", "1", "2"]


@pytest.mark.process
def test_a_case_in_another_mode_is_not_measured(jetson):
    """Somebody set it meanwhile."""
    with pytest.raises(WorkerFailure, match=r"should be 15W \(mode 0\)") as caught:
        launch.start(jetson("15W"))

    assert caught.value.kind == "unavailable"
    assert jetson.calls() == []


@pytest.mark.process
def test_an_error_in_the_middle_restores_the_mode(jetson):
    """And an interrupt."""

    def fail(error):
        with Modes() as modes:
            modes.ensure(jetson("15W"))
            assert jetson.mode() == "0"
            raise error

    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error):
            fail(error)

        assert jetson.mode() == "2"


@pytest.mark.process
def test_a_holder_that_dies_restores_the_mode_and_the_next_case_sets_it_again(jetson):
    """As when a link is lost: the device does it by itself, and the run goes on."""
    started = []

    def start(target):
        started.append(launch.ConditionedWorker(target))
        return started[-1]

    with Modes(start) as modes:
        modes.ensure(jetson("15W"))
        os.kill(started[0].pid, signal.SIGKILL)
        assert _until(lambda: jetson.mode() == "2")
        assert _until(lambda: not started[0].alive)
        modes.ensure(jetson("15W"))
        assert jetson.mode() == "0"

    assert len(started) == 2
    assert jetson.mode() == "2"


@pytest.mark.process
def test_a_mode_that_there_is_not_leaves_the_one_before(jetson):
    """With the machine's modes in the message."""
    with Modes() as modes:
        modes.ensure(jetson("15W"))
        with pytest.raises(WorkerFailure, match="0=15W, 1=30W"):
            modes.ensure(jetson("60W"))
        assert jetson.mode() == "0"

    assert jetson.mode() == "2"


@pytest.mark.process
def test_looking_whether_a_mode_can_be_had_changes_nothing(jetson):
    """Before a run."""
    with launch.probe(jetson("30W")) as worker:
        assert worker.told == {"power": "nvpmodel: 30W (mode 1)"}

    assert jetson.calls() == []


# From the command line to the records.


def test_power_modes_are_changed_only_when_agreed(monkeypatch):
    """Without a terminal nobody can be asked; other conditions change nothing and need no answer."""
    from profiler.cli.options import confirm_changes

    monkeypatch.setattr("sys.stdin", io.StringIO())
    with pytest.raises(StudyError, match=r"jetson: 15W, 30W.*--yes"):
        confirm_changes(("jetson{power=15W}", "jetson{power=30W}", "pi"), yes=False)
    confirm_changes(("jetson{power=15W}",), yes=True)
    confirm_changes(("local{cpus=1}", "rk{cores=big}"), yes=False)


def test_options_become_targets():
    """One text for each machine, mode and class."""
    from profiler.cli.options import targets

    none = {"limit_memory": None, "limit_cpus": None, "cores": None, "power_mode": None}
    assert targets("local", **none) == ("local",)
    assert targets("pi{cores=big},local", **{**none, "limit_memory": "1GB"}) == (
        "pi{cores=big,memory=1GB}",
        "local{memory=1GB}",
    )
    with pytest.raises(StudyError, match="--target is empty"):
        targets(" , ", **none)


@pytest.mark.process
@linux
def test_a_run_measures_the_machine_and_its_envelope_as_cases_of_their_own(fake_study, tmp_path):
    """With the means in every process record; the reference of each is the unmodified model in the same place."""
    from profiler.run import execute
    from profiler.store import open_store

    run_id = execute(fake_study(targets=("local", "local{cpus=1}")), out=tmp_path)
    store = open_store(tmp_path)
    run = store.run(run_id)
    store.close()

    whole, limited = "fp32@fake{read=false}/b1/t1", "fp32@fake{read=false}/b1/t1@local{cpus=1}"
    assert {record.case for record in run.blocks} == {whole, limited}
    assert not run.failures
    for record in run.processes:
        told = [note for note in record.notes if note.startswith("cpus: ")]
        assert len(told) == (record.case == limited)


@pytest.mark.process
@linux
def test_a_case_that_does_not_fit_fails_and_the_others_are_measured(fake_study, tmp_path):
    """An out_of_memory failure with the envelope's limit; the run is finished."""
    from profiler.run import execute
    from profiler.store import open_store

    backends = ("fake{read=false}", "fake{memory_mb=600,read=false}")
    run_id = execute(fake_study(targets=("local{memory=300MB}",), backends=backends), out=tmp_path)
    store = open_store(tmp_path)
    run = store.run(run_id)
    store.close()

    assert run.status == "finished"
    assert {record.case for record in run.blocks} == {"fp32@fake{read=false}/b1/t1@local{memory=300MB}"}
    assert {(record.kind, record.needs_more_than_bytes) for record in run.failures} == {("out_of_memory", 300 * MB)}
