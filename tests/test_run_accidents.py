"""Accidents from outside cost a step, not the reference: a worker that somebody kills, a cache that somebody clears."""

from __future__ import annotations

import os
import shutil
import signal

import pytest

from profiler.cli.app import EXIT_CODES, EXIT_NO_CASE, _run
from profiler.records import FailureRecord
from profiler.run import execute
from profiler.store import open_store
from profiler.targets.out_of_memory import Finding, Witness
from profiler.targets.process import WorkerProcess

pytestmark = pytest.mark.process
EFFORT = {
    "processes": 2, "rounds": 2, "block_s": 0.002, "block_samples": 5, "warmup_s": 0.002, "warmup_max_s": 0.02,
    "requeue_share": 0.0,
}  # fmt: skip


def read(out):
    store = open_store(out, create=False)
    try:
        return store.run(store.resolve("latest"))
    finally:
        store.close()


@pytest.fixture
def killer(monkeypatch):
    """`killer(command, times)`: the worker is killed when it is asked that, so many times; the kernel counts no lack of it."""
    monkeypatch.setattr(
        Witness, "of_kill", lambda self, command, peak: Finding(False, f"killed during '{command}'.", None)
    )

    # The first look at a few rows asks a worker too; what is killed there is looked at again where it is evaluated.
    monkeypatch.setattr("profiler.run.look", lambda *_: None)

    def install(command: str, times: int) -> list[str]:
        asked, left = [], [times]
        real = WorkerProcess.request

        def request(self, what, /, *arguments, **fields):
            asked.append(what)
            if what == command and left[0]:
                left[0] -= 1
                os.kill(self.pid, signal.SIGKILL)
            return real(self, what, *arguments, **fields)

        monkeypatch.setattr(WorkerProcess, "request", request)
        return asked

    return install


@pytest.mark.parametrize("command", ["load", "infer", "feed", "first", "memory"])
def test_a_worker_that_somebody_kills_is_tried_once_more(tmp_path, fake_study, listener, killer, command):
    """While it is made ready or evaluated: nothing is lost, and it is told."""
    killer(command, 1)
    progress = listener()
    execute(fake_study(effort=EFFORT), out=tmp_path, progress=progress)
    run = read(tmp_path)

    assert (len(run.blocks), len(run.qualities), run.failures) == (4, 1, ())
    assert [note for note in progress.notes if "It is tried once more." in note]


def test_a_worker_killed_among_its_blocks_costs_its_process_alone(tmp_path, fake_study, listener, killer, monkeypatch):
    """The next process measures; what is missing is measured when the run goes on."""
    seen = killer("nothing", 0)
    real = WorkerProcess.request
    killed = []

    def request(self, what, /, *arguments, **fields):
        # A block, not the warm-up, which weighs the harness.
        if what == "time" and not fields.get("weigh") and not killed:
            killed.append(self.pid)
            os.kill(self.pid, signal.SIGKILL)
        return real(self, what, *arguments, **fields)

    monkeypatch.setattr(WorkerProcess, "request", request)
    progress = listener()
    execute(fake_study(effort=EFFORT), out=tmp_path, progress=progress)
    run = read(tmp_path)
    assert (len(killed), run.failures) == (1, ())
    assert {block.replicate for block in run.blocks} == {1}
    assert [note for note in progress.notes if "Its next process goes on." in note]
    execute(None, out=tmp_path, resume="latest")

    assert sorted((block.replicate, block.round) for block in read(tmp_path).blocks) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert "time" in seen


def test_a_case_whose_worker_is_killed_again_has_failed(tmp_path, fake_study, listener, killer):
    """Whoever does it will do it again: no run without an end."""
    asked = killer("infer", 99)
    execute(fake_study(effort=EFFORT), out=tmp_path, progress=listener())
    (failure,) = read(tmp_path).failures

    assert (failure.stage, failure.kind, asked.count("infer")) == ("quality", "crash", 2)


def test_a_cache_that_is_gone_is_made_again(tmp_path, fake_study, listener):
    """In the middle of a run: the same artifacts, and no failure."""
    cleared = []

    def clear():
        cleared.append(True)
        shutil.rmtree(tmp_path / "cache")

    progress = listener(4, clear)
    execute(fake_study(effort=EFFORT, variants=("fp32", "bf16")), out=tmp_path, progress=progress)
    run = read(tmp_path)

    assert cleared
    assert [failure for failure in run.failures if failure.kind != "skipped"] == []
    assert {block.replicate for block in run.blocks} == {0, 1}
    assert [note for note in progress.notes if "made again" in note]


def test_without_a_reference_the_exit_code_says_so(tmp_path, fake_study, capsys):
    """Also when the run is resumed and there is nothing left to do."""
    backends = ("fake{fail=raise,read=false}",)
    execute(fake_study(effort=EFFORT, backends=backends), out=tmp_path)
    code = _run(["run", "--resume", "latest", "--out", str(tmp_path)], debug=True)
    capsys.readouterr()

    assert code == EXIT_NO_CASE
    assert "the unmodified model could not be" in EXIT_CODES


def test_a_message_is_of_a_length_that_somebody_reads(tmp_path):
    """Its beginning, its end, and how much was left out; wherever it came from."""
    text = "begin " + "x" * 900_000 + " end"
    record = FailureRecord("c", "load", "error", text, log_tail=text)

    for part in (record.message, record.log_tail):
        assert part.startswith("begin xxx")
        assert part.endswith("xxx end")
        assert "characters left out" in part
        assert len(part) <= 4000
    short = FailureRecord("c", "load", "error", "short", log_tail=None)
    assert (short.message, short.log_tail) == ("short", None)
