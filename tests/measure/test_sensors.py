"""Sensors: what machines' files say is read with its unit, what they do not say is absent, and nothing in them is an error."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.measure import sensors

sys.path.insert(0, str(Path(__file__).parents[1] / "trees"))
from planting import MACHINES, plant, read, write


def no_command(command):
    raise OSError(errno.ENOENT, "No such file or directory")


def no_nvml():
    raise RuntimeError("NVML Shared Library Not Found")


# Files ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "number"),
    [("12", 12.0), ("-256000", -256000.0), ("0.5", 0.5), ("", None), ("12 34", None), ("nan", None), ("inf", None),
     ("1e400", None), ("9" * 5000, None), ("0x10", None), ("1_000", None), ("twelve", None),
     (None, None), ("99999999999999999999", None)],
)  # fmt: skip
def test_a_number_is_finite_and_fits_64_bits(content, number):
    assert sensors.number(content) == number


def test_counts_are_not_negative():
    assert (sensors.count("7"), sensors.count("-7")) == (7.0, None)


@given(st.binary(max_size=300))
def test_words_are_one_short_printable_line_whatever_is_in_the_file(tmp_path_factory, content):
    """An escape sequence in a sysfs name must not reach the terminal."""
    path = tmp_path_factory.mktemp("word") / "name"
    path.write_bytes(content)
    word = sensors.word(path)

    assert word is None or (word.isprintable() and 0 < len(word) <= 80)


def test_a_pipe_a_folder_and_an_odd_name_are_no_files(tmp_path):
    """And none of them blocks: nobody ever writes into that pipe."""
    os.mkfifo(tmp_path / "pipe")

    assert sensors.text(tmp_path / "pipe") in (None, "")
    assert sensors.text(tmp_path) is None
    assert sensors.text(f"{tmp_path}/\0") is None
    assert sensors.listing(tmp_path / "nothing") == []


def test_a_huge_file_is_read_only_at_its_beginning(tmp_path):
    (tmp_path / "huge").write_bytes(b"7" * 10_000_000)

    assert len(sensors.text(tmp_path / "huge")) == 4096


# Temperatures -----------------------------------------------------------------------------------------------------------


def test_a_jetsons_zones_are_told_by_name_and_those_that_are_off_say_so(tmp_path):
    """-256 °C stands for a powered-down block, and a zone without a sensor has no temperature."""
    found = sensors.temperatures(plant("jetson-orin-nano", tmp_path))

    assert found.values == {"cpu-thermal": 47.75, "soc0-thermal": 46.531, "tj-thermal": 49.312}
    assert found.reasons == ("gpu-thermal: powered down", "cv0-thermal: cannot be read (ENOENT)")


def test_a_laptops_zones_and_chips_are_told_with_their_labels(tmp_path):
    found = sensors.temperatures(plant("laptop", tmp_path))

    assert found.values == {
        "acpitz": 52.0, "x86_pkg_temp": 61.0, "coretemp Package id 0": 61.0, "coretemp Core 0": 58.0, "nvme Composite": 41.85
    }  # fmt: skip
    assert found.reasons == ()


def test_two_sensors_of_one_name_are_both_kept(tmp_path):
    found = sensors.temperatures(plant("server", tmp_path))

    assert (found.values["x86_pkg_temp"], found.values["x86_pkg_temp 2"]) == (38.0, 41.0)


def test_a_machine_without_sensors_says_so(tmp_path):
    found = sensors.temperatures(plant("bare-vm", tmp_path))

    assert found.values == {}
    assert "/sys/class/thermal" in found.reasons[0]


def test_a_sensor_that_answers_try_again_is_absent_not_waited_for(tmp_path):
    """EAGAIN, as drivers of powered-down blocks answer: here from a pipe that is open for writing and empty."""
    zone = tmp_path / "sys/class/thermal/thermal_zone0"
    write({"sys/class/thermal/thermal_zone0/type": "cv1-thermal"}, tmp_path)
    os.mkfifo(zone / "temp")
    writer = os.open(zone / "temp", os.O_RDWR)
    try:
        assert sensors.temperatures(tmp_path).reasons == ("cv1-thermal: cannot be read (EAGAIN)",)
    finally:
        os.close(writer)


@pytest.mark.parametrize(
    "content", ["", "garbage", "\x00\xff", "9" * 4000, "-1", "0", "999999", "-99000", "1e308", "nan"]
)
def test_what_is_no_temperature_is_absent(tmp_path, content):
    """-1 and 0 are stuck registers; 1000 °C and -99 °C are nonsense."""
    write({"sys/class/thermal/thermal_zone0/temp": content, "sys/class/thermal/thermal_zone0/type": "cpu"}, tmp_path)
    found = sensors.temperatures(tmp_path)

    assert found.values == {}
    assert found.reasons[0].startswith("cpu: ")


def test_whole_degrees_of_old_drivers_are_understood(tmp_path):
    write({"sys/class/hwmon/hwmon0/temp1_input": "47", "sys/class/hwmon/hwmon0/name": "old"}, tmp_path)

    assert sensors.temperatures(tmp_path).values == {"old temp1": 47.0}


@pytest.mark.parametrize(
    ("machine", "names"),
    [("laptop", ["thermal_zone1"]), ("jetson-orin-nano", ["thermal_zone0", "thermal_zone8", "thermal_zone1", "thermal_zone5"]),
     ("raspberry-pi-5", ["thermal_zone0"]), ("server", ["thermal_zone0", "thermal_zone1"]), ("bare-vm", [])],
)  # fmt: skip
def test_the_processors_own_sensors_are_found_and_slow_ones_left_out(tmp_path, machine, names):
    """No ACPI zone, no disk."""
    found = sensors.processor_sensors(plant(machine, tmp_path))

    assert [Path(path).parent.name for path in found] == names


def test_without_a_zone_the_processors_chip_is_taken(tmp_path):
    """AMD desktops have no thermal zone for the processor."""
    files = {
        "sys/class/hwmon/hwmon0/name": "nvme", "sys/class/hwmon/hwmon0/temp1_input": "40000",
        "sys/class/hwmon/hwmon2/name": "k10temp", "sys/class/hwmon/hwmon2/temp1_input": "55000",
    }  # fmt: skip

    assert [Path(path).parent.name for path in sensors.processor_sensors(write(files, tmp_path))] == ["hwmon2"]


# Clocks and throttling --------------------------------------------------------------------------------------------------


def test_clocks_are_told_by_class_of_core(tmp_path):
    """Performance and efficiency cores apart, fastest first."""
    classes, reasons = sensors.clocks(plant("laptop", tmp_path))

    assert [(found.cores, found.now_hz, found.highest_hz) for found in classes] == [
        (tuple(range(8)), 1.8e9, 4.7e9), (tuple(range(8, 12)), 1.2e9, 3.5e9)
    ]  # fmt: skip
    assert reasons == ()


def test_the_clock_that_the_hardware_measured_is_preferred(tmp_path):
    """`cpuinfo_avg_freq` is what ran; `scaling_cur_freq` may be what was asked for."""
    root = plant("raspberry-pi-5", tmp_path)
    write({f"sys/devices/system/cpu/cpu{core}/cpufreq/cpuinfo_avg_freq": "2398000" for core in range(4)}, root)
    (found,), _ = sensors.clocks(root)

    assert found.now_hz == 2.398e9


def test_favoured_cores_are_no_class_of_their_own(tmp_path):
    """Two cores of a kind that may go 4 % higher."""
    folder = "sys/devices/system/cpu/cpu{}/cpufreq/cpuinfo_max_freq"
    root = write({folder.format(core): "5000000" if core in (2, 3) else "4800000" for core in range(6)}, tmp_path)
    (found,), reasons = sensors.clocks(root)

    assert (found.cores, found.now_hz, found.highest_hz) == (tuple(range(6)), None, 5.0e9)
    assert reasons == ("cores 0, 1, 2, 3, 4, 5 tell no clock",)


def test_without_cpufreq_there_is_no_clock(tmp_path):
    classes, (reason,) = sensors.clocks(plant("bare-vm", tmp_path))

    assert classes == ()
    assert "cpufreq" in reason


@pytest.mark.parametrize("content", ["0", "-5", "99999999999", "fast", "", "<unknown>"])
def test_what_is_no_clock_is_absent(tmp_path, content):
    """`<unknown>` is what the kernel writes when the driver fails."""
    write({"sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": content}, tmp_path)

    assert sensors.clock_hz(tmp_path, 0) is None


def test_a_packages_counter_is_counted_once_and_cores_each(tmp_path):
    """12 cores with 3 each; one package with 40, which every core shows."""
    assert sensors.throttle_counts(plant("laptop", tmp_path)).values == {"core": 36.0, "package": 40.0}


def test_two_packages_are_added(tmp_path):
    root = plant("server", tmp_path)
    write(
        {f"sys/devices/system/cpu/cpu{core}/thermal_throttle/package_throttle_count": "5" for core in range(4, 8)}, root
    )

    assert sensors.throttle_counts(root).values == {"core": 0.0, "package": 5.0}


def test_no_counter_is_no_zero(tmp_path):
    found = sensors.throttle_counts(plant("raspberry-pi-5", tmp_path))

    assert found.values == {}
    assert found.reasons


# Raspberry Pi -----------------------------------------------------------------------------------------------------------


def test_the_pis_file_is_read_without_a_command(tmp_path):
    """0x50005 of the public log: weak supply and throttled, now and before."""
    found = sensors.pi_throttled(plant("raspberry-pi-5", tmp_path), no_command)

    assert found.now == ("under-voltage", "throttled")
    assert found.since_boot == ("under-voltage", "throttled")


@pytest.mark.parametrize(
    ("answer", "now", "before"),
    [("throttled=0x0\n", (), ()), ("throttled=0x50000\n", (), ("under-voltage", "throttled")),
     ("throttled=0xe0000", (), ("clock capped", "throttled", "soft temperature limit")),
     ("throttled=0x8\n", ("soft temperature limit",), ())],
)  # fmt: skip
def test_the_command_is_asked_where_there_is_no_file(tmp_path, answer, now, before):
    asked = []
    write({"proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.2\0"}, tmp_path)
    found = sensors.pi_throttled(tmp_path, lambda command: (asked.append(tuple(command)), answer)[1])

    assert asked == [("vcgencmd", "get_throttled")]
    assert (found.now, found.since_boot) == (now, before)


@pytest.mark.parametrize(
    "answer",
    ["", 'error=1 error_msg="Command not registered"', "throttled=", "throttled=-0x1", "throttled=0x" + "f" * 40],
)
def test_an_answer_that_is_none_is_told(tmp_path, answer):
    """Nor is it taken for 'never throttled'."""
    write({"proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.2\0"}, tmp_path)

    assert "vcgencmd" in sensors.pi_throttled(tmp_path, lambda command: answer)


def test_no_command_runs_on_other_machines(tmp_path):
    def fail(command):
        raise AssertionError(command)

    assert sensors.pi_throttled(plant("laptop", tmp_path), fail) == "no Raspberry Pi"


def test_a_command_that_is_missing_fails_or_hangs_is_an_oserror():
    with pytest.raises(OSError, match="No such file"):
        sensors.run_command(["edgeprof-no-such-command"])
    with pytest.raises(OSError, match="failed"):
        sensors.run_command([sys.executable, "-c", "raise SystemExit(3)"], timeout_s=60)
    with pytest.raises(OSError, match="timed out"):
        sensors.run_command([sys.executable, "-c", "import time; time.sleep(60)"], timeout_s=0.2)
    assert sensors.run_command([sys.executable, "-c", "print('here')"], timeout_s=60) == "here\n"


# Power ------------------------------------------------------------------------------------------------------------------


def test_a_laptop_on_battery_and_its_mouse(tmp_path):
    """The mouse's battery (scope Device, 20 %) is not ours."""
    assert sensors.supply(plant("laptop", tmp_path)) == sensors.Supply(True, 0.71)


@pytest.mark.parametrize(
    ("status", "online", "on_battery"),
    [("Charging", "1", False), ("Full", "1", False), ("Not charging", "1", False), ("Discharging", "0", True),
     ("Unknown", "0", True), ("Unknown", "1", False), ("Discharging", "1", True)],
)  # fmt: skip
def test_battery_and_plug(tmp_path, status, online, on_battery):
    """A plug that is too weak to stop the discharge counts as battery; a battery that does not know is no help."""
    root = plant("laptop", tmp_path)
    write({"sys/class/power_supply/BAT0/status": status, "sys/class/power_supply/AC/online": online}, root)

    assert sensors.supply(root).on_battery is on_battery


@pytest.mark.parametrize("machine", ["server", "bare-vm", "jetson-orin-nano"])
def test_without_a_plug_that_tells_nothing_is_known(tmp_path, machine):
    found = sensors.supply(plant(machine, tmp_path))

    assert (found.on_battery, found.charge_share) == (None, None)
    assert found.reason


# GPUs -------------------------------------------------------------------------------------------------------------------


def test_a_jetsons_gpu(tmp_path):
    """Load in thousandths, clocks in Hz; the video engine beside it is no GPU."""
    found = sensors.jetson_gpu(plant("jetson-orin-nano", tmp_path))

    assert found.values == {"clock_hz": 3.06e8, "lowest_hz": 3.06e8, "highest_hz": 6.2475e8, "load_share": 0.125}


class Nvml:
    """Answers as `pynvml` does; what `lacks` names raises, as on GPUs that do not support it."""

    NVML_CLOCK_SM, NVML_TEMPERATURE_GPU = 1, 0

    def __init__(self, *, mask=0x1, pids=(), gpus=1, persistence=1, clock=1980, lacks=()):
        answers = {
            "nvmlDeviceGetClockInfo": clock, "nvmlDeviceGetMaxClockInfo": 1980, "nvmlDeviceGetCurrentClocksEventReasons": mask,
            "nvmlDeviceGetTemperature": 34, "nvmlDeviceGetPersistenceMode": persistence, "nvmlDeviceGetName": b"NVIDIA H200",
            "nvmlDeviceGetComputeRunningProcesses": [SimpleNamespace(pid=pid) for pid in pids],
        }  # fmt: skip
        reasons = (
            "GpuIdle", "ApplicationsClocksSetting", "SwPowerCap", "HwSlowdown", "SyncBoost", "SwThermalSlowdown",
            "HwThermalSlowdown", "HwPowerBrakeSlowdown",
        )  # fmt: skip
        for bit, name in enumerate(reasons):
            setattr(self, f"nvmlClocksEventReason{name}", 1 << bit)
        self.nvmlDeviceGetCount = lambda: gpus
        self.nvmlDeviceGetHandleByIndex = lambda index: index
        for name, answer in answers.items():
            if name not in lacks:
                setattr(self, name, lambda handle, *kind, answer=answer: answer)


def test_an_nvidia_gpu_is_told_in_si_units():
    (gpu,), reason = sensors.nvidia(lambda: Nvml(pids=[7, 4242, os.getpid()]), own_pids=[7])

    assert reason is None
    assert gpu == sensors.Gpu("NVIDIA H200", 1.98e9, 1.98e9, 34.0, (), True, (4242,))


@pytest.mark.parametrize(
    ("mask", "reasons"),
    [
        (0x1, ()),
        (0x2 | 0x10, ()),
        (0x4, ("power limit",)),
        (0x48, ("hardware slowdown", "heat (hardware)")),
        (0x80, ("power brake",)),
    ],
)
def test_only_reasons_that_slow_it_down_are_told(mask, reasons):
    """Idle, set clocks and sync boost are no throttling."""
    (gpu,), _ = sensors.nvidia(lambda: Nvml(mask=mask))

    assert gpu.throttled_by == reasons


def test_what_a_gpu_does_not_answer_is_none():
    """A MIG slice, or a Jetson's NVML."""
    names = [
        name
        for name in vars(Nvml())
        if name.startswith("nvmlDeviceGet") and name.split("Get")[1] not in ("Count", "HandleByIndex")
    ]
    (gpu,), _ = sensors.nvidia(lambda: Nvml(lacks=names))

    assert gpu == sensors.Gpu("NVIDIA GPU", None, None, None, None, None, None)


@pytest.mark.parametrize(
    ("error", "reason"),
    [(RuntimeError("driver not loaded"), "NVML: driver not loaded"), (ImportError("x"), "nvidia-ml-py")],
)
def test_without_a_driver_there_is_a_reason(error, reason):
    def fail():
        raise error

    assert sensors.nvidia(fail)[0] == ()
    assert reason in sensors.nvidia(fail)[1]


# Hostile trees ----------------------------------------------------------------------------------------------------------

HOSTILE = [
    "",
    "\x00\x01\x02",
    "-1",
    "9" * 4000,
    "nan",
    "inf",
    "0x",
    "some total=-5",
    ":::\n::",
    "[[[",
    "0-99999999",
    "\x1b[31m",
    "1 " * 3000,
]


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("content", HOSTILE)
def test_no_content_of_any_file_is_an_error(tmp_path, machine, content):
    """Every file of the machine holds the same nonsense: readings come back empty or plausible, names printable."""
    root = write(dict.fromkeys(read(machine), content), tmp_path)
    heat = sensors.temperatures(root)
    classes, _ = sensors.clocks(root)

    assert all(-60 < value < 200 for value in heat.values.values())
    assert all(name.isprintable() for name in heat.values)
    assert all(1e6 <= hz <= 2e10 for found in classes for hz in (found.now_hz, found.highest_hz) if hz is not None)
    assert all(value >= 0 for value in sensors.throttle_counts(root).values.values())
    assert sensors.supply(root).on_battery in (True, False, None)
    assert all(value >= 0 for value in sensors.jetson_gpu(root).values.values())
    sensors.pi_throttled(root, lambda command: content)


def test_folders_in_place_of_files_are_no_error(tmp_path):
    for name in read("laptop"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)

    assert sensors.temperatures(tmp_path).values == {}
    assert sensors.clocks(tmp_path)[0] == ()
    assert sensors.supply(tmp_path).on_battery is None
