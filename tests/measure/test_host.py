"""Host counters: what is there is read and subtracted, what is not is absent."""

from __future__ import annotations

import errno
import os
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.measure import host, memory
from profiler.measure.host import Counters

sys.path.insert(0, str(Path(__file__).parents[1] / "trees"))
from planting import MACHINES, plant, read, write

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
    } == host.difference(before, after, cores=2)  # fmt: skip


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


PROCESS = {"involuntary_switches", "major_faults"}
"""What is asked of the process itself, whatever the tree says."""


def everything(root, cores=range(4)):
    return {key: value for key, value in host.read(root, cores).values.items() if key not in PROCESS}


def test_a_laptop_tells_everything(tmp_path):
    """Pressure in seconds; the mean clock of our cores; the processor's temperature, not the disk's; each throttling once."""
    assert everything(plant("laptop", tmp_path), [6, 7, 8, 9]) == {
        "busy_s": pytest.approx(120_900 / TICKS), "steal_s": 0.0, "run_delay_s": 0.002, "cpu_pressure_s": 3.0,
        "memory_pressure_s": 0.001, "io_pressure_s": 0.07, "throttled_s": 0.0, "nr_throttled": 0.0, "clock_hz": 1.5e9,
        "temperature_c": 61.0, "thermal_throttles": 4 * 3 + 40.0,
    }  # fmt: skip


def test_a_board_tells_what_it_has(tmp_path):
    """No throttle counters, no pressure: absent, not zero. The zone that is off does not count."""
    found = everything(plant("jetson-orin-nano", tmp_path))

    assert (found["clock_hz"], found["temperature_c"]) == (7.296e8, 49.312)
    assert not {"thermal_throttles", "cpu_pressure_s", "throttled_s"} & set(found)


def test_a_virtual_machine_has_no_sensors(tmp_path):
    """And its container's counters lie at the mount, because the path is the host's."""
    assert everything(plant("bare-vm", tmp_path)) == {
        "busy_s": pytest.approx(5_039 / TICKS), "steal_s": pytest.approx(4_600 / TICKS), "run_delay_s": 0.002,
        "cpu_pressure_s": 3.0, "memory_pressure_s": 0.0, "io_pressure_s": 0.0, "throttled_s": 0.5, "nr_throttled": 12.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("mount", "line", "text", "scale"),
    [
        ("", "0::/a.slice/b.service", "usage_usec 5\nnr_throttled {}\nthrottled_usec {}000000", 1.0),
        ("unified", "0::/a.slice/b.service", "nr_throttled {}\nthrottled_usec {}000000", 1.0),
        ("cpu", "3:cpu:/a.slice/b.service", "nr_throttled {}\nthrottled_time {}000000000", 1.0),
        ("cpu,cpuacct", "3:cpu,cpuacct:/a.slice/b.service", "nr_throttled {}\nthrottled_time {}000000000", 1.0),
    ],
)
def test_quotas_of_all_groups_above_ours_count(tmp_path, mount, line, text, scale):
    """A group's own counters leave out what the groups above it did to it. Siblings are not ours."""
    group = f"sys/fs/cgroup/{mount}/" if mount else "sys/fs/cgroup/"
    files = {
        "proc/self/cgroup": f"9:memory:/elsewhere\n{line}",
        f"{group}cpu.stat": text.format(1, 1),
        f"{group}a.slice/cpu.stat": text.format(20, 20),
        f"{group}a.slice/b.service/cpu.stat": text.format(300, 300),
        f"{group}a.slice/c.service/cpu.stat": text.format(4000, 4000),
        f"{group}elsewhere/cpu.stat": text.format(50000, 50000),
    }
    found = everything(write(files, tmp_path))

    assert (found["nr_throttled"], found["throttled_s"]) == (321.0, 321.0 * scale)


def test_one_hierarchy_by_two_names_counts_once(tmp_path):
    """`cpu` is usually a link to `cpu,cpuacct`."""
    stat = "nr_throttled 2\nthrottled_time 5000000000"
    files = {
        "proc/self/cgroup": "3:cpu,cpuacct:/",
        "sys/fs/cgroup/cpu,cpuacct/cpu.stat": stat,
        "sys/fs/cgroup/cpu/cpu.stat": stat,
    }

    assert everything(write(files, tmp_path))["throttled_s"] == 5.0


def test_a_group_path_does_not_leave_the_mount(tmp_path):
    """`..` is what a process outside of its cgroup namespace sees."""
    write({"sys/secret/cpu.stat": "nr_throttled 7", "proc/self/cgroup": "0::/../../secret"}, tmp_path)

    assert "nr_throttled" not in everything(tmp_path)


def test_a_moved_process_is_followed(tmp_path):
    """Its group is asked for at each reading."""
    root = write(
        {
            "proc/self/cgroup": "0::/a",
            "sys/fs/cgroup/a/cpu.stat": "nr_throttled 1",
            "sys/fs/cgroup/b/cpu.stat": "nr_throttled 9",
        },
        tmp_path,
    )
    first = everything(root)["nr_throttled"]
    write({"proc/self/cgroup": "0::/b"}, root)

    assert (first, everything(root)["nr_throttled"]) == (1.0, 9.0)


@pytest.mark.parametrize(
    ("release", "there"),
    [("5.15.0-119-generic", False), ("5.19.0", True), ("6.8.0", True), ("4.19.0", False), ("odd", True)],
)
def test_clocks_that_take_ten_milliseconds_each_are_left_to_the_slow_reading(tmp_path, release, there):
    """x86 kernels before 5.19 sleep in that file; other processors' never did."""
    root = plant("laptop", tmp_path)
    write({"proc/sys/kernel/osrelease": release}, root)

    assert ("clock_hz" in everything(root)) is there
    assert host.slow_read(root, nvml=no_nvml).values["clock_hz"] == pytest.approx(1.6e9)


def test_at_most_eight_cores_are_read(tmp_path):
    """A reading of a machine with hundreds of cores must stay quick."""
    files = {
        f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq": f"{1000000 if core < 8 else 3000000}"
        for core in range(64)
    }

    assert everything(write(files, tmp_path), range(64))["clock_hz"] == 1e9


def test_what_happened_is_the_difference_and_levels_are_levels():
    before = {"memory_pressure_s": 1.0, "io_pressure_s": 2.0, "cpu_pressure_s": 3.0, "major_faults": 5.0,
              "thermal_throttles": 40.0, "nr_throttled": 2.0, "throttled_s": 0.1, "clock_hz": 1e9,
              "temperature_c": 70.0}  # fmt: skip
    after = {"memory_pressure_s": 1.25, "io_pressure_s": 2.0, "cpu_pressure_s": 3.5, "major_faults": 9.0,
             "thermal_throttles": 41.0, "nr_throttled": 5.0, "throttled_s": 0.4, "clock_hz": 2e9,
             "temperature_c": 65.0}  # fmt: skip

    assert host.difference(Counters(0, 0, before), Counters(1, 1, after)) == {
        "memory_pressure_s": 0.25, "io_pressure_s": 0.0, "cpu_pressure_s": 0.5, "major_faults": 4.0, "thermal_throttles": 1.0,
        "nr_throttled": 3.0, "throttled_s": pytest.approx(0.3), "clock_hz": 2e9, "temperature_c": 70.0,
    }  # fmt: skip


def test_a_sensor_that_vanished_between_the_readings_is_absent(tmp_path):
    """Unplugged, powered down, or a module unloaded."""
    root = plant("laptop", tmp_path)
    before = host.read(root, [0])
    (root / "sys/class/thermal/thermal_zone1/temp").unlink()
    (root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq").unlink()
    (root / "sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count").unlink()
    (root / "proc/pressure/io").unlink()
    labels = host.difference(before, host.read(root, [0]))

    assert "cpu_pressure_s" in labels
    assert not {"temperature_c", "clock_hz", "thermal_throttles", "io_pressure_s"} & set(labels)


ALL = ("busy_s", "steal_s", "run_delay_s", "throttled_s", "cpu_pressure_s", "memory_pressure_s", "io_pressure_s",
       "involuntary_switches", "major_faults", "nr_throttled", "thermal_throttles")  # fmt: skip


def test_counters_that_go_backwards_say_nothing():
    """After a suspend, a migration, or a group that was made anew."""
    assert host.difference(Counters(0, 0, dict.fromkeys(ALL, 10.0)), Counters(1, 1, dict.fromkeys(ALL, 9.0))) == {}


def test_more_time_than_there_was_is_no_time():
    """A counter that jumped: 100 s of steal, pressure and run-queue delay of a year in one second."""
    before = dict.fromkeys(ALL[:7], 0.0)
    after = {**dict.fromkeys(ALL[:7], 100.0), "run_delay_s": 3e7, "throttled_s": 3e7}

    assert host.difference(Counters(0, 0, before), Counters(1, 1, after), cores=4) == {}


def test_a_tick_that_falls_into_a_short_block_is_kept():
    """On 2 ms, one tick of 10 ms on each of two cores is coarse, not absurd."""
    labels = host.difference(Counters(0, 0, {"steal_s": 0.0}), Counters(0.002, 0, {"steal_s": 0.02}), cores=2)

    assert labels["steal_share"] == pytest.approx(10)


def test_a_wall_clock_that_jumps_back_gives_no_shares():
    """Counts remain, for they need no clock."""
    before = Counters(
        10, 1, {"steal_s": 1.0, "cpu_pressure_s": 1.0, "busy_s": 1.0, "major_faults": 1.0, "temperature_c": 50.0}
    )
    after = Counters(
        9, 1, {"steal_s": 1.0, "cpu_pressure_s": 1.0, "busy_s": 1.0, "major_faults": 3.0, "temperature_c": 50.0}
    )

    assert host.difference(before, after) == {"major_faults": 2.0, "temperature_c": 50.0}


def test_a_process_clock_that_jumps_back_tells_nothing_of_others():
    labels = host.difference(Counters(0, 5, {"busy_s": 1.0}), Counters(1, 1, {"busy_s": 1.5}), cores=4)

    assert labels == {}


READINGS = st.dictionaries(st.sampled_from([*ALL, "clock_hz", "temperature_c"]), st.floats(0, 1e18))


@given(READINGS, READINGS, st.floats(-10, 1e6), st.floats(-10, 1e6), st.integers(1, 256))
def test_no_pair_of_readings_gives_a_negative_or_endless_label(first, second, wall, cpu, cores):
    """Whatever the counters did in between."""
    labels = host.difference(Counters(0, 0, first), Counters(wall, cpu, second), cores)

    assert all(0 <= value < float("inf") for value in labels.values())
    for share in ("steal_share", "other_cpu_share"):
        assert labels.get(share, 0) * max(wall, 1e-9) <= cores * (max(wall, 1e-9) + 0.01) * 1.001


HOSTILE = ["", "\x00\x01", "-1", "9" * 4000, "nan", "cpu " + "-5 " * 10, "cpu " + "9" * 400 + " 1 1 1 1 1 1 1", "some total=-5",
           "some total=1e999", "nr_throttled -1\nthrottled_usec x", "1 -2 3", ":::\n0::", "0::" + "/x" * 5000]  # fmt: skip


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("content", HOSTILE)
def test_no_content_of_any_file_is_an_error(tmp_path, machine, content):
    """Nor a value that is negative or endless."""
    root = write(dict.fromkeys(read(machine), content), tmp_path)
    found = everything(root)

    assert all(
        -60 < value < 2e10 if key in ("clock_hz", "temperature_c") else 0 <= value < 2e19
        for key, value in found.items()
    )
    host.difference(host.read(root), host.read(root))
    host.slow_read(root, run=no_command, nvml=no_nvml)


def no_command(command):
    raise OSError(errno.ENOENT, "No such file or directory")


def no_nvml():
    raise RuntimeError("NVML Shared Library Not Found")


def test_the_slow_reading_of_a_pi_in_trouble(tmp_path):
    """Hottest of all sensors, and what the firmware says, in words."""
    found = host.slow_read(plant("raspberry-pi-5", tmp_path), run=no_command, nvml=no_nvml)

    assert found.values == {"hottest_c": 49.4, "clock_hz": 1.5e9}
    assert found.throttled_now == ("under-voltage", "throttled")
    assert found.tells_throttling


def test_the_slow_reading_of_a_machine_without_sensors_is_reasons(tmp_path):
    found = host.slow_read(plant("bare-vm", tmp_path), run=no_command, nvml=no_nvml)

    assert (found.values, found.throttled_now, found.tells_throttling) == ({}, (), False)
    assert len(found.reasons) == 4
    assert host.slow_difference(found, found) == {}


def test_the_slow_reading_of_a_jetson_and_a_laptop(tmp_path):
    jetson = host.slow_read(plant("jetson-orin-nano", tmp_path / "jetson"), nvml=no_nvml)
    laptop = host.slow_read(plant("laptop", tmp_path / "laptop"), nvml=no_nvml)

    assert (jetson.values["gpu_clock_hz"], jetson.values["gpu_load_share"]) == (3.06e8, 0.125)
    assert laptop.values["on_battery"] == 1.0


def slow(root, bits):
    write({"sys/devices/platform/soc/soc:firmware/get_throttled": bits}, root)
    return host.slow_read(root, run=no_command, nvml=no_nvml)


@pytest.mark.parametrize(
    ("before", "after", "held"),
    [("0", "0", 0.0), ("0", "50000", 1.0), ("50000", "50000", 0.0), ("50000", "50005", 1.0), ("50005", "50000", 1.0)],
)
def test_a_sticky_bit_counts_when_it_is_new(tmp_path, before, after, held):
    """An event before the run is no event of the run; one that came and went between two readings is."""
    root = plant("raspberry-pi-5", tmp_path)
    labels = host.slow_difference(slow(root, before), slow(root, after))

    assert labels["device_throttled"] == held


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
