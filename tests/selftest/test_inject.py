"""Disturbances really happen, are logged on the clock that blocks are dated with, and never stay behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from profiler.selftest import inject
from profiler.selftest.inject import CannotInject, cpu_quota, memory_hog, merged, spinners, stop_pulses


class Enough(Exception):  # noqa: N818
    """Something goes wrong inside the block."""


def helpers() -> list[psutil.Process]:
    """Disturbing programs that this process started and that still live."""
    found = []
    for process in psutil.Process().children():
        try:
            if any(part.endswith("child.py") for part in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def wait_for(condition, seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.fixture
def sleeper():
    """A process that sleeps."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def test_intervals_are_joined():
    """In order; overlapping and adjoining ones become one."""
    assert merged([(5.0, 6.0), (1.0, 2.0), (1.5, 3.0), (3.0005, 4.0)]) == ((1.0, 4.0), (5.0, 6.0))
    assert merged([(1.0, 9.0), (2.0, 3.0)]) == ((1.0, 9.0),)


@pytest.mark.process
def test_spinners_use_processors_and_leave_nothing():
    """They use processor time while the block runs, and are gone after it."""
    before = time.monotonic()
    with spinners(2) as injected:
        running = helpers()
        wait_for(lambda: sum(sum(p.cpu_times()[:2]) for p in running) > 0.2)
    after = time.monotonic()

    assert len(running) == 2
    assert helpers() == []
    assert injected.intervals
    assert before <= injected.intervals[0][0] < injected.intervals[-1][1] <= after


@pytest.mark.process
@pytest.mark.parametrize("error", [Enough, KeyboardInterrupt])
def test_an_error_or_ctrl_c_ends_them_too(error):
    """Whatever happens inside the block."""
    running = []
    with pytest.raises(error), spinners(1, on_s=0.01, off_s=0.01):  # noqa: PT012 (what happens inside is the point)
        running += helpers()
        raise error

    assert len(running) == 1

    assert helpers() == []


@pytest.mark.process
def test_they_end_by_themselves_when_their_parent_is_killed():
    """An injected disturbance must not outlive the experiment."""
    code = (
        "import time, psutil\nfrom profiler.selftest.inject import spinners\n"
        "with spinners(1):\n    print(psutil.Process().children()[0].pid, flush=True)\n    time.sleep(60)\n"
    )
    root = Path(inject.__file__).parents[2]
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=root)
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()

    wait_for(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


@pytest.mark.process
def test_pulses_really_stop_the_process_and_let_it_go_on(sleeper):
    """It is seen stopped, the log holds the pulses, and afterwards it runs."""
    process = psutil.Process(sleeper.pid)
    seen = []
    with stop_pulses([sleeper.pid], stop_s=0.05, gap_s=0.02) as injected:
        wait_for(
            lambda: seen.append(process.status()) or (psutil.STATUS_STOPPED in seen and len(injected.intervals) > 2)
        )

    assert process.status() != psutil.STATUS_STOPPED
    assert all(end - start >= 0.05 for start, end in injected.intervals)
    assert helpers() == []


@pytest.mark.process
def test_a_stopped_process_goes_on_when_the_block_fails(sleeper):
    """Also when it is stopped by something else meanwhile: the way out continues it."""
    with pytest.raises(Enough), stop_pulses([sleeper.pid], gap_s=60):  # noqa: PT012 (what happens inside is the point)
        os.kill(sleeper.pid, signal.SIGSTOP)
        raise Enough

    wait_for(lambda: psutil.Process(sleeper.pid).status() != psutil.STATUS_STOPPED)


@pytest.mark.process
def test_a_hog_is_bounded_by_what_is_free():
    """A quarter of it at most, in its own process."""
    with memory_hog(1 << 40, available_bytes=lambda: 64 << 20):
        hog = helpers()[0]
        wait_for(lambda: hog.memory_info().rss > 14 << 20)

        assert hog.memory_info().rss < 40 << 20


def test_a_hog_needs_some_free_memory():
    """Or says that it cannot be injected."""
    with (
        pytest.raises(CannotInject, match="1 MiB of memory are free"),
        memory_hog(1 << 30, available_bytes=lambda: 1 << 20),
    ):
        pass


def tree(root: Path, version: int, own: str = "/jobs/42") -> Path:
    """A cgroup file system as far as a quota needs it; returns the process's own group."""
    process = root / "proc/77"
    process.mkdir(parents=True)
    base = root / ("sys/fs/cgroup" if version == 2 else "sys/fs/cgroup/cpu")
    home = base / own.lstrip("/")
    home.mkdir(parents=True, exist_ok=True)
    process.joinpath("cgroup").write_text(f"0::{own}\n" if version == 2 else f"3:memory:/x\n2:cpu:{own}\n0::/\n")
    (home / "cgroup.procs").write_text("")
    if version == 2:
        (base / "cgroup.controllers").write_text("cpuset cpu io memory\n")
        for folder in (home, home.parent):
            (folder / "cgroup.subtree_control").write_text("memory\n")
    return home


def kernel_mkdir(path: Path) -> None:
    """A new group has its files at once."""
    path.mkdir()
    for name in ("cpu.max", "cpu.cfs_quota_us", "cpu.cfs_period_us", "cgroup.procs"):
        (path / name).write_text("")


def test_a_quota_of_version_1_is_set_below_the_own_group(tmp_path):
    """Half a processor: 50 of 100 ms; the process moves in, moves back, and the group is removed."""
    home = tree(tmp_path, 1)
    group = home / "edgeprof-selftest-77"
    moments = iter([10.0, 13.0])
    with cpu_quota(
        0.5, pid=77, root=tmp_path, mkdir=kernel_mkdir, rmdir=shutil.rmtree, clock=lambda: next(moments)
    ) as injected:
        assert (group / "cpu.cfs_quota_us").read_text() == "50000"
        assert (group / "cpu.cfs_period_us").read_text() == "100000"
        assert (group / "cgroup.procs").read_text() == "77"

    assert (home / "cgroup.procs").read_text() == "77"
    assert not group.exists()
    assert injected.intervals == ((10.0, 13.0),)


def test_a_quota_of_version_2_is_set_beside_the_own_group(tmp_path):
    """Version 2 keeps processes and controlled children apart; the controller is switched on and off again."""
    home = tree(tmp_path, 2)
    group = home.parent / "edgeprof-selftest-77"
    with cpu_quota(0.25, pid=77, root=tmp_path, mkdir=kernel_mkdir, rmdir=shutil.rmtree):
        assert (group / "cpu.max").read_text() == "25000 100000"
        assert (home.parent / "cgroup.subtree_control").read_text().startswith("+cpu")

    assert (home.parent / "cgroup.subtree_control").read_text().startswith("-cpu")
    assert (home / "cgroup.procs").read_text() == "77"
    assert not group.exists()


def test_an_error_inside_moves_the_process_back(tmp_path):
    """And removes the group."""
    home = tree(tmp_path, 1)
    with pytest.raises(Enough), cpu_quota(0.5, pid=77, root=tmp_path, mkdir=kernel_mkdir, rmdir=shutil.rmtree):
        raise Enough

    assert (home / "cgroup.procs").read_text() == "77"
    assert not (home / "edgeprof-selftest-77").exists()


def test_where_control_groups_are_absent_it_says_so(tmp_path):
    """No controller, no group of ours, or files that cannot be written: one sentence, nothing left behind."""
    (tmp_path / "proc/77").mkdir(parents=True)
    (tmp_path / "proc/77/cgroup").write_text("0::/\n")
    with pytest.raises(CannotInject, match="cannot be injected here"), cpu_quota(0.5, pid=77, root=tmp_path):
        pass

    home = tree(tmp_path / "other", 1)
    with pytest.raises(CannotInject, match=r"cpu\.cfs_period_us"), cpu_quota(0.5, pid=77, root=tmp_path / "other"):
        pass
    assert not (home / "edgeprof-selftest-77").exists()


@pytest.mark.process
def test_a_real_quota_throttles_this_process():
    """Where control groups are ours: the processor time of a busy loop falls to about the quota."""
    try:
        with cpu_quota(0.2):
            wall, cpu = time.monotonic(), time.process_time()
            while time.monotonic() < wall + 0.6:
                pass
            share = (time.process_time() - cpu) / (time.monotonic() - wall)
    except CannotInject as error:
        pytest.skip(str(error))

    assert share < 0.6
