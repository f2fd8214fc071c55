"""What the kernel counts for the threads of a process, read from a recorded tree and from this process."""

from __future__ import annotations

import time

import pytest

from profiler.measure import loop, threads


def tree(root, delays: dict[int, tuple[int, int]]):
    for thread, (ran, waited) in delays.items():
        folder = root / "proc/self/task" / str(thread)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "schedstat").write_text(f"{ran} {waited} 17\n")
    return root


def test_delays_of_the_watched_threads_add_up(tmp_path):
    root = tree(tmp_path, {10: (900, 5), 11: (100, 70), 12: (50, 1000)})
    delay = threads.RunDelay(root, only={10, 11})

    assert delay() == 75
    tree(root, {10: (1900, 25)})
    assert delay() == 95
    delay.close()


def test_only_the_busiest_threads_are_read(tmp_path):
    root = tree(tmp_path, {number: (number, 1) for number in range(1, 30)})
    delay = threads.RunDelay(root)

    assert delay() == threads.MAX_THREADS
    delay.close()


def test_a_kernel_that_does_not_tell_leaves_the_cpu_time(tmp_path):
    (tmp_path / "proc/self/task").mkdir(parents=True)
    with pytest.raises(OSError, match="schedstat"):
        threads.RunDelay(tmp_path)
    with threads.counters(lambda: 1, threads.Watch(), root=tmp_path) as found:
        assert list(found) == ["cpu"]
    assert threads.executed(tmp_path / "nowhere") == {}


def test_hostile_files_are_passed_over(tmp_path):
    root = tree(tmp_path, {1: (5, 6)})
    (root / "proc/self/task/2").mkdir()
    (root / "proc/self/task/2/schedstat").write_bytes(b"\xff\xfe garbage")

    assert threads.executed(root) == {1: 5}


def test_one_busy_thread_is_judged_by_cpu_time_alone():
    second = 10**9

    assert threads.learn({1: 0, 2: 0}, {1: second, 2: 1000}, 1.0) == threads.Watch({1}, delay=False)
    # OpenVINO: the calling thread only waits, another one computes.
    assert threads.learn({1: 0, 2: 0}, {1: 8_000_000, 2: 990_000_000}, 1.0) == threads.Watch({1, 2}, delay=False)
    assert threads.learn({1: 0, 2: 0}, {1: second, 2: second}, 1.0) == threads.Watch({1, 2}, delay=True)
    # Two threads that somebody else left one processor between them.
    assert threads.learn({1: 0, 2: 0}, {1: second // 2, 2: second // 2}, 1.0) == threads.Watch({1, 2}, delay=True)
    assert threads.learn({}, {}, 1.0) == threads.Watch(None, delay=True)


def test_a_lone_thread_needs_no_delay(tmp_path):
    with threads.counters(lambda: 1, threads.Watch({1}, delay=False), root=tree(tmp_path, {1: (1, 1)})) as found:
        assert list(found) == ["cpu"]


def test_counters_of_this_process_only_rise():
    with threads.counters(time.process_time_ns, threads.Watch()) as found:
        first = {name: read() for name, read in found.items()}
        cost = loop.harness_cost(clock=time.perf_counter_ns, counters=found, count=50)

        assert all(read() >= first[name] for name, read in found.items())
    assert cost.in_sample_s > 0
