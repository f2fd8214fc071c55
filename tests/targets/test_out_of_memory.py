"""A kill for memory is told from a kill by somebody, with what the case needed at least."""

from __future__ import annotations

import os
import sys
from dataclasses import replace

import numpy as np
import pytest

from profiler.measure.memory import group_folder, group_limit
from profiler.targets.base import local
from profiler.targets.out_of_memory import Witness, machine_kills, speaks_of_memory
from profiler.targets.process import WorkerFailure, WorkerProcess

MB = 1_000_000
GROUP = "sys/fs/cgroup/box"
MEMINFO = "MemTotal: 16000000 kB\nMemFree: 1 kB\nMemAvailable: {} kB\n"


@pytest.fixture
def machine(tmp_path):
    """`machine(kills=…, …)` writes (or changes) the kernel's counts and returns their root."""

    def write(*, kills=None, group_kills=None, limit="max", used=0, available_kb=15_000_000, pid=7):
        files = {"proc/meminfo": MEMINFO.format(available_kb)}
        if kills is not None:
            files["proc/vmstat"] = f"nr_free_pages 5\noom_kill {kills}\n"
        if group_kills is not None:
            files |= {
                f"proc/{pid}/cgroup": "0::/box\n", f"{GROUP}/memory.current": str(used), f"{GROUP}/memory.max": f"{limit}\n",
                f"{GROUP}/memory.events": f"low 0\nhigh 0\nmax 3\noom 3\noom_kill {group_kills}\n",
            }  # fmt: skip
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return write


def witness(root, **fields):
    seen = Witness(True, root=root, pid=7, **{"_inherited_bytes": 50 * MB, **fields})
    seen.look()
    return seen


def test_a_kill_that_the_machine_counted_is_a_lack_of_memory(machine):
    """With the highest resident set as the lower bound of what it needs, and a way on."""
    seen = witness(machine(kills=3))
    machine(kills=4)
    found = seen.of_kill("load", 800 * MB)

    assert (found.is_memory, found.needs_more_than_bytes) == (True, 800 * MB)
    assert "needs more than 800 MB: it had 800 MB resident when it was killed" in found.message
    assert "'load'" in found.message
    assert "machine was out of memory" in found.message
    assert "smaller batch" in found.message


def test_a_kill_that_its_group_counted_names_the_groups_limit(machine):
    """A container's limit is what has to be raised."""
    seen = witness(machine(kills=3, group_kills=0, limit=256_000_000))
    machine(kills=4, group_kills=1, limit=256_000_000)
    found = seen.of_kill("first", 250 * MB)

    assert found.is_memory
    assert "whose limit is 256 MB" in found.message
    assert "raise the limit of its container" in found.message


def test_a_kill_that_nobody_counted_was_sent_by_somebody(machine):
    """No out-of-memory event, little resident, plenty free: not called a lack of memory."""
    found = witness(machine(kills=3)).of_kill("time", 61 * MB)

    assert (found.is_memory, found.needs_more_than_bytes) == (False, None)
    assert "killed (SIGKILL) from outside during 'time'" in found.message
    assert "61.0 MB resident" in found.message
    assert "still free" in found.message


@pytest.mark.parametrize(
    ("available_kb", "resident", "is_memory"),
    [
        (15_000_000, 61 * MB, False),
        (1_000_000, 61 * MB, True),
        (15_000_000, 14_000 * MB, True),
        (3_000_000, 2_000 * MB, True),
    ],
)
def test_without_an_event_it_is_what_was_free_that_decides(machine, available_kb, resident, is_memory):
    """What the worker had is free again when it is looked at, and is taken off. A full machine has user-space killers too."""
    found = witness(machine(kills=3, available_kb=available_kb)).of_kill("time", resident)

    assert found.is_memory == is_memory
    assert ("systemd-oomd" in found.message) == is_memory


def test_a_full_group_on_an_empty_machine_is_full(machine):
    """The smallest room counts."""
    root = machine(kills=3, group_kills=0, limit=256_000_000, used=50_000_000)

    assert witness(root).of_kill("time", 200 * MB).is_memory
    assert not witness(root).of_kill("time", 61 * MB).is_memory


def test_without_the_kernels_counts_plenty_is_still_plenty(machine):
    """An old kernel: resident set and free memory tell alone; with neither, the usual cause is named as a guess."""
    root = machine()

    assert not witness(root).of_kill("time", 61 * MB).is_memory
    guess = witness(root).of_kill("time", None)
    assert guess.is_memory
    assert "probably" in guess.message
    assert guess.needs_more_than_bytes is None


def test_another_kill_on_a_machine_far_away_is_not_looked_up_here(machine):
    """The local kernel knows nothing of it."""
    root = machine(kills=3)
    seen = Witness(False, root=root, pid=7)
    machine(kills=9)
    found = seen.of_kill("load", 61 * MB)

    assert "cannot be read" in found.message
    assert found.is_memory


def test_a_peak_that_may_be_the_parents_is_not_claimed(machine):
    """A child starts with its parent's watermark: below that the kernel says nothing about the child."""
    seen = witness(machine(kills=3), _inherited_bytes=300 * MB)
    machine(kills=4)
    unknown = seen.of_kill("load", 300 * MB)
    seen.heard({"phases": {"import": {"peak_rss_bytes": 40 * MB}, "load": {"peak_rss_bytes": 120 * MB}}})
    told = seen.of_kill("first", 300 * MB)

    assert unknown.needs_more_than_bytes is None
    assert "not known" in unknown.message
    assert told.needs_more_than_bytes == 120 * MB


def test_an_allocation_that_failed_under_a_limit_names_the_limit(machine):
    """And what it had when it failed."""
    seen = witness(machine(kills=0), limit_bytes=400 * MB)
    status = seen.root / "proc/7/status"
    status.parent.mkdir(parents=True, exist_ok=True)
    status.write_text("VmHWM:\t 100000 kB\n")
    found = seen.of_allocation("std::bad_alloc.", alive=True)

    assert found.needs_more_than_bytes == 400 * MB
    assert found.message.startswith("std::bad_alloc. Needs more than the 400 MB it may allocate (--memory-limit): ")
    assert "it had 102 MB resident when an allocation failed" in found.message


def test_a_full_gpu_is_not_a_lack_of_host_memory(machine):
    """The bound is of host memory, so there is none; the device's is told."""
    seen = witness(machine(kills=0), limit_bytes=400 * MB)
    seen.heard({"phases": {"load": {"gpu_bytes": 900 * MB, "peak_rss_bytes": 100 * MB}}})
    found = seen.of_allocation("CUDA error: out of memory.", alive=True)

    assert found.needs_more_than_bytes is None
    assert "more GPU memory than the 900 MB it held after 'load'" in found.message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("terminate called after throwing an instance of 'std::bad_alloc'", True),
        ("numpy._core._exceptions._ArrayMemoryError: Unable to allocate", True),
        ("Segmentation fault", False), (None, False),
    ],
)  # fmt: skip
def test_last_words_may_speak_of_memory(text, expected):
    """C++ and Python say it before they end."""
    assert speaks_of_memory(text) == expected


def test_limits_above_a_group_count_too(tmp_path):
    """The lowest one on the way up; `max` is none. Version 1 adds them up itself."""
    inner = tmp_path / "a/b"
    inner.mkdir(parents=True)
    for folder, text in ((inner, "max"), (tmp_path / "a", "5000"), (tmp_path, "9000")):
        (folder / "memory.max").write_text(text)
    older = tmp_path / "v1"
    older.mkdir()
    (older / "memory.stat").write_text("cache 0\nhierarchical_memory_limit 9223372036854771712\n")

    assert group_limit(inner, 2) == 5000
    assert group_limit(older, 1) is None


@pytest.fixture
def artifact(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(b"anything")
    return path


def load(worker, artifact, **options):
    return worker.request("load", backend="fake", path=str(artifact), threads=1, batch=1, options=options, timeout_s=30)


@pytest.mark.process
def test_a_worker_that_is_killed_while_the_kernel_counts_ran_out_of_memory(machine, artifact):
    """The whole way: phases told before, the count risen meanwhile, the bound in the failure."""
    root = machine(kills=0)
    with WorkerProcess(local(), root=root) as worker:
        load(worker, artifact, fail="oom", fail_at="2", memory_mb="150")
        worker.request("feed", {"0/x": np.zeros((1, 4), np.float32)}, timeout_s=5)
        worker.request("first", timeout_s=5)
        machine(kills=1)
        with pytest.raises(WorkerFailure) as caught:
            worker.request("time", timeout_s=5, min_s=0.0, min_samples=3, max_s=1.0)

    assert caught.value.kind == "out_of_memory"
    assert caught.value.needs_more_than_bytes > 150 * MB
    assert "needs more than" in str(caught.value)


@pytest.mark.process
def test_a_failed_allocation_says_what_there_was(artifact):
    """The worker lives and its resident set can be asked for."""
    with WorkerProcess(local()) as worker, pytest.raises(WorkerFailure) as caught:
        load(worker, artifact, fail="alloc", memory_mb="80")

    assert caught.value.kind == "out_of_memory"
    assert "MemoryError" in str(caught.value)
    if sys.platform.startswith("linux"):
        assert caught.value.needs_more_than_bytes > 80 * MB


@pytest.mark.process
@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("print('std::bad_alloc', file=sys.stderr, flush=True); os.abort()", "out_of_memory"),
        ("print('assertion failed', file=sys.stderr, flush=True); os.abort()", "crash"),
        ("raise MemoryError", "out_of_memory"),
        ("os._exit(137)", "crash"),
    ],
)
def test_an_end_with_words_of_memory_is_a_lack_of_it(code, kind):
    """C++ aborts with its exception's name; a container or shell passes SIGKILL on as 137."""
    target = replace(local(), command=(sys.executable, "-c", f"import os, sys; {code}"))
    with WorkerProcess(target) as worker, pytest.raises(WorkerFailure) as caught:
        worker.request("hello", timeout_s=20)

    if "137" in code and machine_kills() is None:
        pytest.skip("this kernel counts no out-of-memory kills, so the cause of a kill is a guess")
    assert caught.value.kind == kind


@pytest.fixture
def small_group():
    """A control group of our own with 160 MB, or a skip that says why there is none."""
    found = group_folder()
    if found is None:
        pytest.skip("this process is in no control group for memory")
    folder, version = found
    box = folder / f"edgeprof-test-{os.getpid()}"
    try:
        box.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error.strerror}")
    try:
        (box / ("memory.limit_in_bytes" if version == 1 else "memory.max")).write_text(str(160 * MB))
        swap = box / "memory.swap.max"
        if swap.exists():
            swap.write_text("0")
        yield box
    except OSError as error:
        pytest.skip(f"the control group takes no memory limit here: {error.strerror}")
    finally:
        box.rmdir()


@pytest.mark.process
def test_a_real_control_group_kills_and_is_named(small_group, artifact):
    """A container's limit, for real: the kernel kills, the failure says what there was and whose limit it is."""
    here = local()
    start = 'echo $$ > "$0/cgroup.procs" && exec "$@"'
    target = replace(here, command=("sh", "-c", start, str(small_group), *here.command))
    with WorkerProcess(target) as worker:
        hello, _ = worker.request("hello", timeout_s=30)
        with pytest.raises(WorkerFailure) as caught:
            load(worker, artifact, memory_mb="600")

    assert hello["pid"] == worker.pid
    assert caught.value.kind == "out_of_memory"
    assert "its control group, whose limit is 160 MB" in str(caught.value)
    # Pages of libraries that others loaded are resident too, but counted to them; below our own peak nothing is known.
    assert caught.value.needs_more_than_bytes is None or 80 * MB < caught.value.needs_more_than_bytes < 300 * MB
