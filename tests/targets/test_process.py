"""The parent notices every way in which a worker can end, and says which it was."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from profiler import wire
from profiler.errors import TargetError
from profiler.targets import process
from profiler.targets.base import Target, local
from profiler.targets.out_of_memory import machine_kills
from profiler.targets.process import WorkerFailure, WorkerProcess
from profiler.targets.remote import LinkLost

ROWS = {"0/x": np.zeros((1, 4), np.float32)}
TIMED = {"min_s": 0.0, "min_samples": 3, "max_s": 1.0}


@pytest.fixture
def artifact(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(b"anything")
    return path


@pytest.fixture
def quick_grace(monkeypatch):
    monkeypatch.setattr(process, "_GRACE_S", 0.5)


def loaded(worker: WorkerProcess, artifact: Path, *, timeout_s: float = 20, **options: str):
    return worker.request(
        "load", backend="fake", path=str(artifact), threads=1, batch=1, options=options, timeout_s=timeout_s
    )


def python(code: str) -> Target:
    """A target whose worker is this code."""
    return Target("script", (sys.executable, "-c", textwrap.dedent(code)), shares_files=True)


def failure_of(worker: WorkerProcess, command: str = "hello", **fields) -> WorkerFailure:
    with pytest.raises(WorkerFailure) as caught:
        worker.request(command, **{"timeout_s": 10, **fields})
    return caught.value


@pytest.mark.process
def test_a_worker_does_a_case_from_load_to_outputs(artifact):
    """Load, feed, first, time, memory, facts and infer answer what they promise."""
    with WorkerProcess(local()) as worker:
        hello, _ = worker.request("hello", timeout_s=20)
        answer, _ = loaded(worker, artifact, latency_us="200")
        fed, _ = worker.request("feed", {**ROWS, "1/x": np.ones((1, 4), np.float32)}, timeout_s=5)
        first, _ = worker.request("first", timeout_s=5)
        timing, arrays = worker.request("time", timeout_s=5, min_s=0.0, min_samples=7, max_s=5.0)
        memory, _ = worker.request("memory", timeout_s=5)
        facts, _ = worker.request("facts", timeout_s=5)
        _, outputs = worker.request("infer", {"x": ROWS["0/x"]}, timeout_s=5)

    assert (wire.PROTOCOL, worker.pid) == (hello["protocol"], hello["pid"])
    assert [info["name"] for info in answer["inputs"]] == ["x"]
    assert fed["turns"] == 2
    assert first["first_inference_s"] >= 200e-6
    assert len(arrays["durations_ns"]) == 7
    assert (arrays["durations_ns"] >= 200_000).all()
    assert timing["cpu_s"] > 0
    assert memory["peak_rss_bytes"] >= memory["rss_bytes"] > 1 << 20
    assert facts["facts"]["runtime"] == "fake"
    assert outputs["y"].shape == (1, 2)


@pytest.mark.process
@pytest.mark.parametrize(
    ("where", "fail", "kind", "words"),
    [
        ("infer", "segv", "crash", "SIGSEGV"),
        ("load", "segv", "crash", "SIGSEGV"),
        ("infer", "oom", "crash", "killed (SIGKILL) from outside"),
        ("load", "exit", "crash", "exit code 3"),
        ("infer", "alloc", "out_of_memory", "MemoryError"),
        ("infer", "raise", "error", "told to fail"),
        ("load", "unsupported", "unsupported", "FakeOp"),
    ],
)
def test_every_way_to_fail_has_its_kind(artifact, where, fail, kind, words):
    """A native crash, a kill, exit(), a failed allocation, an error, an unknown op: while loading and while running."""
    if fail == "oom" and machine_kills() is None:
        pytest.skip("this kernel counts no out-of-memory kills, so the cause of a kill is a guess")
    with WorkerProcess(local()) as worker:
        if where == "load":
            with pytest.raises(WorkerFailure) as caught:
                loaded(worker, artifact, fail=fail, fail_at="load")
            failure = caught.value
        else:
            loaded(worker, artifact, fail=fail, fail_at="2")
            worker.request("feed", ROWS, timeout_s=5)
            worker.request("first", timeout_s=5)
            failure = failure_of(worker, "time", **TIMED)

    assert kind == failure.kind
    assert words in str(failure)


@pytest.mark.process
def test_a_hung_worker_is_ended_at_its_deadline_by_itself(artifact):
    """The worker's own timer ends it, so that it would also end where the parent is gone; its stack is in the log."""
    with WorkerProcess(local()) as worker:
        loaded(worker, artifact, fail="hang", fail_at="1")
        worker.request("feed", ROWS, timeout_s=5)
        failure = failure_of(worker, "first", timeout_s=0.5)

        assert failure.kind == "timeout"
        assert "'first' within 0.5 s (--time-limit)" in str(failure)
        assert "_hang" in (failure.log_tail or "")
        assert worker._process.poll() == 1


@pytest.mark.process
def test_a_hang_deep_in_the_stack_is_still_a_time_out(quick_grace):
    """The timer's first line is what tells; the stack below it may be longer than the tail of the log."""
    worker = WorkerProcess(
        python("""
        import faulthandler, time
        faulthandler.dump_traceback_later(0.2, exit=True)
        def deep(n): time.sleep(60) if n == 0 else deep(n - 1)
        deep(60)
        """)
    )
    failure = failure_of(worker, timeout_s=20)
    worker.close()

    assert failure.kind == "timeout"
    assert "--time-limit" in str(failure)


@pytest.mark.process
def test_a_worker_whose_own_timer_fails_is_ended_by_the_parent(quick_grace):
    """Deaf to everything: it is killed with its children, and it counts as hung."""
    worker = WorkerProcess(
        python("""
        import subprocess, sys, time
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        print(child.pid, file=sys.stderr, flush=True)
        time.sleep(600)
        """)
    )
    while not worker.log_tail():
        time.sleep(0.02)
    child = int(worker.log_tail())
    failure = failure_of(worker, timeout_s=0.2)

    assert failure.kind == "timeout"
    assert worker._process.poll() == -signal.SIGKILL
    assert wait_until(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE)
    worker.close()


@pytest.mark.process
def test_a_memory_limit_is_an_allocation_that_fails_and_not_a_dead_machine(artifact):
    """The limit is the worker's own: the case is out of memory, with the words for it."""
    with WorkerProcess(local(), memory_limit_bytes=400 << 20) as worker, pytest.raises(WorkerFailure) as caught:
        loaded(worker, artifact, memory_mb="1500")

    assert caught.value.kind == "out_of_memory"
    assert caught.value.needs_more_than_bytes == 400 << 20
    assert "--memory-limit" in str(caught.value)


@pytest.mark.process
def test_below_the_memory_limit_nothing_happens(artifact):
    """The same case fits into more."""
    with WorkerProcess(local(), memory_limit_bytes=2 << 30) as worker:
        loaded(worker, artifact, memory_mb="100")
        memory, _ = worker.request("memory", timeout_s=5)

    assert memory["peak_rss_bytes"] > 100e6


@pytest.mark.process
@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        ("import sys; print('no such module: profiler', file=sys.stderr); sys.exit(5)", "crash", "exit code 5"),
        ("print('hello, I am chatty and no worker')", "crash", "exit code 0"),
        ("import sys; sys.stdout.buffer.write(b'\\xff' * 100); sys.stdout.flush(); sys.stdin.read()", "error", "pipe"),
        ("import sys, time; sys.stdout.close(); import os; os.close(1); time.sleep(600)", "error", "pipe"),
        ("import sys; sys.stdout.buffer.write(b'\\x00\\x00\\x00\\x02{}'); sys.stdout.flush(); sys.stdin.read()", "error", "pipe"),
        (
            "import sys; sys.stdout.buffer.write(b'\\x00\\x00\\x00\\x0d{\"arrays\":[]}'); sys.stdout.flush(); sys.stdin.read()",
            "error",
            "no reason",
        ),
    ],
    ids=["exit", "chatter", "garbage", "closed pipe", "no arrays", "no verdict"],
)  # fmt: skip
def test_something_that_is_no_worker_is_told(quick_grace, code, kind, words):
    """Wrong command, banner on stdout, garbage, half a frame: a failure in words, and the process is gone."""
    worker = WorkerProcess(python(code))
    failure = failure_of(worker)
    worker.close()

    assert kind == failure.kind
    assert words in str(failure)
    assert worker._process.poll() is not None


@pytest.mark.process
@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (
            "sys.exit('connect: no route')",
            TargetError,
            "no worker starts on 'pi' (exit code 1). It said: connect: no route.",
        ),
        ("print('no route', file=sys.stderr); sys.exit(255)", LinkLost, "exit code 255. It said: no route."),
        ("sys.exit(7)", LinkLost, "'pi' cannot be reached"),
    ],
)
def test_a_device_that_does_not_answer_at_all_is_no_failure_of_a_case(quick_grace, code, kind, words):
    """Whatever prefix leads to it, and whether or not its own exit codes are known: the case stays unmeasured."""
    target = Target("pi", (sys.executable, "-c", f"import sys; {code}"), shares_files=False)
    with WorkerProcess(target) as worker, pytest.raises(TargetError) as caught:
        worker.greet()

    assert type(caught.value) is kind
    assert words in str(caught.value)


@pytest.mark.process
@pytest.mark.parametrize(("elsewhere", "named"), [(True, True), (False, False)])
def test_a_full_disk_elsewhere_names_the_device_and_what_to_do(quick_grace, elsewhere, named):
    """On this machine the words of the system are enough."""
    told = json.dumps(
        {"arrays": [], "ok": False, "kind": "error", "message": "[Errno 28] No space left on device: '/x'"}
    )
    code = (
        "import struct, sys; text = sys.argv[1].encode(); out = sys.stdout.buffer\n"
        "out.write(struct.pack('>I', len(text)) + text); out.flush(); sys.stdin.read()"
    )
    target = Target("pi", (sys.executable, "-c", code, told), shares_files=not elsewhere)
    with WorkerProcess(target) as worker, pytest.raises(TargetError) as caught:
        worker.request("put", timeout_s=10)

    assert "No space left on device" in str(caught.value)
    assert ("'pi' has no room left" in str(caught.value)) == named
    # There a case fails, elsewhere the device: it is measured when there is room.
    assert isinstance(caught.value, WorkerFailure) != named


@pytest.mark.process
def test_the_log_tail_is_the_end_of_what_was_written(quick_grace):
    """The last lines, whatever bytes they hold, and not megabytes of them."""
    worker = WorkerProcess(
        python("""
        import sys
        for n in range(5000):
            print("line", n, file=sys.stderr)
        sys.stderr.buffer.write(b"\\xff\\xfe the end\\n")
        sys.exit(4)
        """)
    )
    tail = failure_of(worker).log_tail
    worker.close()

    assert tail.endswith("the end")
    assert len(tail.splitlines()) == process._LOG_TAIL_LINES


def test_a_command_that_does_not_exist_is_a_target_error():
    """Nothing was started, and the message names the command."""
    with pytest.raises(TargetError, match=r"/no/such/python.*No such file"):
        WorkerProcess(Target("far", ("/no/such/python",), shares_files=False))


@pytest.mark.process
def test_a_worker_that_was_asked_after_its_death_fails_again():
    """Not an endless wait."""
    with WorkerProcess(python("import os; os._exit(9)")) as worker:
        kinds = {failure_of(worker).kind for _ in range(2)}

    assert {"crash"} == kinds


@pytest.mark.process
def test_bytes_that_were_not_sent_are_never_written_to_another_file(tmp_path, quick_grace):
    """After a time-out the pipe's descriptor number is free for others: what is left in the buffer must not follow it."""
    worker = WorkerProcess(python("import time; time.sleep(600)"))
    failure_of(worker, "infer", arrays={"x": np.full(110_000, 7, np.uint8)}, timeout_s=0.2)
    number = worker._pipe._write_fd
    worker.close()
    handle = os.open(tmp_path / "innocent", os.O_RDWR | os.O_CREAT)
    os.dup2(handle, number)
    try:
        worker._writer.flush()
    except ValueError:
        pass
    finally:
        os.close(number)
        if handle != number:
            os.close(handle)

    assert (tmp_path / "innocent").read_bytes() == b""


@pytest.mark.process
def test_many_open_files_do_not_matter():
    """A notebook may hold over a thousand: descriptors beyond 1023 work like any other."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1500:
        pytest.skip(f"at most {hard} open files are allowed here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1500), hard))
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        with WorkerProcess(local()) as worker:
            assert worker.request("hello", timeout_s=20)[0]["protocol"] == wire.PROTOCOL
    finally:
        for handle in held:
            os.close(handle)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.process
def test_a_closed_worker_is_gone_and_closing_twice_is_harmless(artifact):
    """Its stdin ended, so it left by itself with exit code 0."""
    worker = WorkerProcess(local())
    loaded(worker, artifact)
    worker.close()
    worker.close()

    assert worker._process.poll() == 0


def workers_with(mark: str) -> list[int]:
    """Ids of living processes that carry `mark` in their environment."""
    found = []
    for one in psutil.process_iter():
        try:
            if mark in one.environ().values() and one.status() != psutil.STATUS_ZOMBIE:
                found.append(one.pid)
        except (psutil.Error, OSError):
            continue
    return found


def wait_until(condition, seconds: float = 30) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


@pytest.mark.process
def test_workers_do_not_outlive_a_parent_that_was_killed(tmp_path, artifact):
    """kill -9 of the parent: an idle worker and one in the middle of a command are gone, without anybody to end them."""
    mark = str(tmp_path / "mark")
    code = f"""
        import sys, time
        from pathlib import Path
        import numpy as np
        from profiler.targets.base import local
        from profiler.targets.process import WorkerProcess
        idle, busy = (WorkerProcess(local(), cache=Path({mark!r})) for _ in range(2))
        for worker in (idle, busy):
            worker.request(
                "load", backend="fake", path={str(artifact)!r}, threads=1, batch=1, options={{"latency_us": "1000"}}, timeout_s=20
            )
            worker.request("feed", {{"0/x": np.zeros((1, 4), np.float32)}}, timeout_s=5)
        print("ready", flush=True)
        busy.request("time", timeout_s=2, min_s=1.0, min_samples=1, max_s=1.0)
        time.sleep(600)
        """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert parent.stdout.readline().strip() == b"ready"
    parent_and_workers = workers_with(mark)
    time.sleep(0.1)
    parent.kill()
    parent.wait()
    parent.stdout.close()

    assert len(parent_and_workers) == 2
    assert wait_until(lambda: not workers_with(mark))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems have no death signal")
def test_a_worker_in_the_middle_of_an_inference_dies_with_its_parent(artifact, tmp_path):
    """It reads no pipe then and would go on until its deadline."""
    code = f"""
        import os, signal, sys
        from profiler.targets.base import local
        from profiler.targets.process import WorkerProcess
        import numpy as np
        worker = WorkerProcess(local())
        worker.request("load", backend="fake", path={str(artifact)!r}, threads=1, batch=1, timeout_s=20,
                       options={{"read": "false", "fail": "hang", "fail_at": "infer"}})
        worker.request("feed", {{"0/x": np.zeros((1, 4), np.float32)}}, timeout_s=20)
        print(worker.pid, flush=True)
        worker.request("first", timeout_s=200)
        """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    with parent.stdout, contextlib.suppress(psutil.NoSuchProcess):
        worker.wait(30)

    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE
