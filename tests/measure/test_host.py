"""Host counters: what is there is read and subtracted, what is not is absent."""

from __future__ import annotations

import os
import sys
import time

import pytest

from profiler.measure import host, memory
from profiler.measure.host import Counters

TICKS = os.sysconf("SC_CLK_TCK")


@pytest.fixture
def tree(tmp_path):
    """`tree({path: text})` is a root folder with those files."""

    def make(files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return make


FULL = {
    "proc/stat": "cpu  100 20 30 400 50 6 7 8 0 0\ncpu0 1 2\n",
    "proc/self/task/1/schedstat": "5 2000000000 7\n",
    "proc/self/task/2/schedstat": "5 500000000 7\n",
    "proc/pressure/cpu": "some avg10=0.00 avg60=0.00 avg300=0.00 total=3000000\nfull avg10=0\n",
    "sys/fs/cgroup/cpu.stat": "usage_usec 5\nthrottled_usec 250000\n",
}


def test_a_linux_tree_is_read(tree):
    """Ticks, nanoseconds and microseconds become seconds."""
    values = host.read(tree(FULL)).values

    assert pytest.approx((100 + 20 + 30 + 6 + 7) / TICKS) == values["busy_s"]
    assert pytest.approx(8 / TICKS) == values["steal_s"]
    assert (values["run_delay_s"], values["cpu_pressure_s"], values["throttled_s"]) == (2.5, 3.0, 0.25)


def test_the_older_control_groups_count_in_nanoseconds(tree):
    """cgroup v1."""
    assert host.read(tree({"sys/fs/cgroup/cpu/cpu.stat": "throttled_time 500000000\n"})).values["throttled_s"] == 0.5


@pytest.mark.parametrize("damage", ["", "garbage", "cpu x y z\n", "some total=\n", "throttled_usec many\n"])
def test_unreadable_counters_are_absent(tree, damage):
    """Not zero: a counter that says nothing says nothing."""
    values = host.read(tree(dict.fromkeys(FULL, damage))).values

    assert set(values) <= {"involuntary_switches", "major_faults"}


def test_differences_are_shares_of_one_core():
    """Half of a second of somebody else's time in one second of ours is 0.5."""
    before = Counters(10.0, 1.0, {"busy_s": 5.0, "steal_s": 1.0, "run_delay_s": 0.1, "involuntary_switches": 3.0})
    after = Counters(11.0, 1.75, {"busy_s": 6.25, "steal_s": 1.2, "run_delay_s": 0.2, "involuntary_switches": 5.0})

    assert {
        "other_cpu_share": pytest.approx(0.5), "steal_share": pytest.approx(0.2), "run_delay_s": pytest.approx(0.1),
        "involuntary_switches": 2.0,
    } == host.difference(before, after)  # fmt: skip


def test_our_own_ticks_do_not_make_others_negative():
    """The kernel's 10 ms ticks lag behind the process clock."""
    labels = host.difference(Counters(0, 0, {"busy_s": 0}), Counters(0.01, 0.01, {"busy_s": 0}))

    assert labels["other_cpu_share"] == 0


def test_a_counter_that_vanished_is_absent():
    """A control group may disappear in between."""
    assert host.difference(Counters(0, 0, {"throttled_s": 1.0}), Counters(1, 0, {})) == {}


def test_no_time_between_readings_is_no_division_by_zero():
    """Two readings in one tick of a coarse clock."""
    assert host.difference(Counters(1, 1, {"steal_s": 1.0}), Counters(1, 1, {"steal_s": 1.0})) == {"steal_share": 0.0}


def test_this_machine_can_be_read():
    """Whatever it offers: numbers that grow."""
    before = host.read()
    end = time.process_time() + 0.02
    while time.process_time() < end:
        pass
    after = host.read()

    assert after.cpu_s - before.cpu_s >= 0.02
    assert all(value >= 0 for value in host.difference(before, after).values())


def test_memory_is_read_from_the_kernels_account(tree):
    """kB of /proc are 1,024 bytes."""
    root = tree({"proc/self/status": "Name:\tpython\nVmHWM:\t  2048 kB\nVmRSS:\t  1024 kB\n"})

    assert memory.Memory(1 << 20, 2 << 20) == memory.read(root)


def test_without_a_kernel_account_the_portable_way_is_taken(tmp_path):
    """psutil and getrusage, in bytes: within a factor of two of what Linux says."""
    portable, here = memory.read(tmp_path), memory.read()

    assert portable.rss_bytes > 1 << 20
    if sys.platform.startswith("linux"):
        assert 0.5 < portable.peak_rss_bytes / here.peak_rss_bytes < 2


@pytest.mark.parametrize("text", ["VmRSS:\n", "VmRSS: many kB\n"])
def test_a_status_that_cannot_be_read_is_no_reason_to_stop(tree, text):
    """The portable way again."""
    assert memory.read(tree({"proc/self/status": text})).rss_bytes > 1 << 20
