"""The doctor: each machine's troubles are found with their repair, healthy ones are left in peace, and nothing makes it fall."""

from __future__ import annotations

import errno
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from backends.base import Availability
from profiler.doctor import CHECKS, Probes, Report, dedicated, examine, fixed_clocks
from profiler.doctor.findings import ORDER, Finding
from profiler.doctor.machine import Process, core_list
from profiler.measure.cores import shown as cores_text
from profiler.measure.host import Counters

sys.path.insert(0, str(Path(__file__).parent / "trees"))
from planting import MACHINES, plant, read, write

CORES = {"laptop": 12, "server": 8, "jetson-orin-nano": 6, "raspberry-pi-5": 4, "bare-vm": 2}
QUIET = {
    "busy_s": 0.01,
    "steal_s": 0.0,
    "run_delay_s": 0.0,
    "cpu_pressure_s": 0.0,
    "memory_pressure_s": 0.0,
    "io_pressure_s": 0.0,
}


def no_command(command):
    raise OSError(errno.ENOENT, "No such file or directory")


def no_nvml():
    raise RuntimeError("NVML Shared Library Not Found")


def probes(*, cores=range(4), happened=QUIET, processes=((), ()), **others):
    """Answers of a quiet machine; `happened` is what the counters gain in the second that is watched."""
    readings = iter([Counters(0.0, 0.0, dict.fromkeys(happened, 0.0)), Counters(1.0, 0.0, dict(happened))])
    lists = iter(() if callable(processes) else processes)
    answers = {
        "affinity": lambda: frozenset(cores), "counters": lambda root: next(readings),
        "processes": processes if callable(processes) else lambda: next(lists),
        "disk_free": lambda folder: 80_000_000_000, "availability": lambda: [("ort", "cpu", Availability(True, "1.20"))],
        "memory": lambda: None, "on_battery": lambda: None, "debug_build": lambda: False, "run": no_command, "nvml": no_nvml,
        "sleep": lambda seconds: None, "own_pids": (1,),
    }  # fmt: skip
    return Probes(**{**answers, **others})


def look(root, *, environ=(), **settings):
    """The findings by name."""
    report = examine(root, out=Path("runs"), environ=dict(environ), probes=probes(**settings))
    return {finding.name: finding for finding in report.findings}


def of(machine, tmp_path, **settings):
    return look(plant(machine, tmp_path), cores=range(CORES[machine]), **settings)


def severities(found):
    return {name: finding.severity for name, finding in found.items() if finding.severity != "ok"}


# Whole machines ---------------------------------------------------------------------------------------------------------


def test_a_server_that_was_set_up_for_measuring_is_left_in_peace(tmp_path):
    """On its isolated cores there is nothing to say."""
    report = examine(plant("server", tmp_path), environ={}, probes=probes(cores=range(4, 8)))

    assert {finding.severity for finding in report.findings} == {"ok"}
    assert report.verdict.startswith("Nothing found that will spoil measurements here (")
    assert "could not" not in report.verdict


def test_a_laptop_on_battery(tmp_path):
    """On battery, turbo, a powersave governor, heat since boot; swap and siblings to know."""
    found = of("laptop", tmp_path)

    assert severities(found) == {
        "power supply": "problem", "thermal throttling": "warning", "cpu governor": "warning", "turbo": "warning", "swap": "note",
        "hyper-threading": "note",
    }  # fmt: skip
    assert found["power supply"].seen == "on battery, battery at 71 %"
    assert found["thermal throttling"].seen == "times since boot: core 36, package 40"
    assert found["hyper-threading"].fix == "taskset -c 0,2,4,6 edgeprof …"


def test_a_jetson_with_clocks_that_move(tmp_path):
    found = of("jetson-orin-nano", tmp_path)

    assert found["jetson"].severity == "warning"
    assert found["jetson"].seen == "power mode 0 (15W); clocks are not locked"
    assert found["jetson"].fix == "sudo jetson_clocks"
    assert found["huge pages"].severity == "note"
    assert "throttle count" in found["sensors"].seen
    assert "temperature" not in found["sensors"].seen


def test_a_jetson_with_locked_clocks_still_has_a_power_mode(tmp_path):
    """The fastest mode is not the highest number: it is told by name."""
    root = plant("jetson-orin-nano", tmp_path)
    write({f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_min_freq": "1510400" for core in range(6)}, root)
    write({"sys/class/devfreq/17000000.gpu/min_freq": "624750000"}, root)
    found = look(root, cores=range(6))

    assert (found["jetson"].severity, found["jetson"].fix) == ("note", "sudo nvpmodel -m 2 && sudo jetson_clocks")
    assert found["cpu governor"].severity == "ok"
    write({"var/lib/nvpmodel/status": "pmode:0002"}, root)
    assert look(root, cores=range(6))["jetson"].severity == "ok"


def test_a_raspberry_pi_on_a_weak_supply(tmp_path):
    found = of("raspberry-pi-5", tmp_path)

    assert found["raspberry pi"].severity == "problem"
    assert found["raspberry pi"].seen == "now: under-voltage, throttled (0x50005)"
    assert "supply" in found["raspberry pi"].why


@pytest.mark.parametrize(
    ("bits", "severity", "word"),
    [("0", "ok", None), ("50000", "warning", "supply"), ("e0000", "warning", "Heat"), ("8", "problem", "Heat")],
)
def test_what_the_pis_firmware_remembers(tmp_path, bits, severity, word):
    root = plant("raspberry-pi-5", tmp_path)
    write({"sys/devices/platform/soc/soc:firmware/get_throttled": bits}, root)
    finding = look(root)["raspberry pi"]

    assert finding.severity == severity
    assert finding.why is None if word is None else word in finding.why


def test_a_container_in_a_virtual_machine(tmp_path):
    """A quota, a slow clock source, no random layout, steal since boot; what the host keeps to itself is absent."""
    found = of("bare-vm", tmp_path)

    assert severities(found) == {
        "steal": "warning", "cpu quota": "warning", "free memory": "warning", "clock source": "warning",
        "address layout": "warning", "huge pages": "note", "virtual machine": "note", "container": "note",
        "cpu governor": "absent", "sensors": "absent", "other load": "note",
    }  # fmt: skip
    assert (
        found["clock source"].fix
        == "echo tsc | sudo tee /sys/devices/system/clocksource/clocksource0/current_clocksource"
    )
    assert found["address layout"].fix == "sudo sysctl kernel.randomize_va_space=2"
    assert found["virtual machine"].seen == "yes (QEMU)"
    assert found["container"].seen == "docker"
    assert "clock, temperature, throttle count, processor energy" in found["sensors"].seen


def test_no_linux_is_told_and_not_guessed(tmp_path):
    """macOS: what psutil tells is used, the rest is absent."""
    found = look(tmp_path, happened={}, memory=lambda: (100_000_000, 8_000_000_000), on_battery=lambda: True)

    assert found["power supply"].severity == "problem"
    assert found["free memory"].severity == "problem"
    assert {found["sensors"].severity, found["other load"].severity} == {"absent"}
    assert "virtual machine" not in found


# Single checks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("busy", "severity"), [(0.05, "ok"), (0.3, "warning"), (5.0, "problem")])
def test_other_load_is_watched_and_named(tmp_path, busy, severity):
    """Ourselves and processes that only just began are left out."""
    first = [Process(1, "edgeprof", 5.0), Process(7, "cc1", 10.0), Process(8, "sleeper", 1.0)]
    then = [
        Process(1, "edgeprof", 9.0),
        Process(7, "cc1", 10.0 + busy),
        Process(8, "sleeper", 1.0),
        Process(9, "new", 50.0),
    ]
    found = of("server", tmp_path, happened={**QUIET, "busy_s": busy}, processes=(first, then))["other load"]

    assert found.severity == severity
    if severity != "ok":
        assert f"(cc1 {busy:.2f})" in found.seen
        assert found.fix == "ps -o pid,user,pcpu,etime,args -p 7"


def test_processes_that_cannot_be_listed_are_no_reason_to_stop(tmp_path):
    """The load is known without their names."""

    def fail():
        raise PermissionError("denied")

    found = of("server", tmp_path, happened={**QUIET, "busy_s": 1.0}, processes=fail)["other load"]

    assert (found.severity, found.fix) == ("warning", None)
    assert found.seen.startswith("1.0 cores busy")


def test_a_load_average_that_is_still_high_is_told(tmp_path):
    root = plant("server", tmp_path)
    write({"proc/loadavg": "6.10 3.00 1.00 1/300 4242"}, root)

    assert look(root, cores=range(4, 8))["other load"].severity == "note"


@pytest.mark.parametrize(
    ("happened", "severity"),
    [({"memory_pressure_s": 0.05}, "problem"), ({"io_pressure_s": 0.3}, "warning"), ({"cpu_pressure_s": 0.05}, "ok")],
)
def test_waiting_is_told(tmp_path, happened, severity):
    assert of("server", tmp_path, happened={**QUIET, **happened})["pressure"].severity == severity


def test_a_kernel_without_pressure_accounting_says_how_to_get_it(tmp_path):
    """As Raspberry Pi OS has it by default."""
    happened = {"busy_s": 0.0, "steal_s": 0.0}
    found = of("raspberry-pi-5", tmp_path, happened=happened)["pressure"]

    assert found.severity == "absent"
    assert "psi=1" in found.why


def test_swap_matters_most_while_memory_is_waited_for(tmp_path):
    found = of("laptop", tmp_path, happened={**QUIET, "memory_pressure_s": 0.001})["swap"]

    assert (found.severity, found.fix) == ("problem", "sudo swapoff -a && sudo swapon -a")


@pytest.mark.parametrize(("stolen", "severity"), [(0.0, "ok"), (0.01, "ok"), (0.05, "problem")])
def test_steal_now(tmp_path, stolen, severity):
    assert of("server", tmp_path, happened={**QUIET, "steal_s": stolen})["steal"].severity == severity


def test_a_quota_that_held_us_back_is_a_problem(tmp_path):
    found = of("bare-vm", tmp_path, happened={**QUIET, "nr_throttled": 3.0})["cpu quota"]

    assert found.severity == "problem"
    assert "3 times" in found.seen


def test_throttling_at_rest_is_a_problem(tmp_path):
    assert (
        of("laptop", tmp_path, happened={**QUIET, "thermal_throttles": 2.0})["thermal throttling"].severity == "problem"
    )


def test_a_processor_near_its_limit_is_told(tmp_path):
    root = plant("laptop", tmp_path)
    write({"sys/class/thermal/thermal_zone1/temp": "92000"}, root)
    found = look(root)["temperature"]

    assert (found.severity, found.seen) == ("warning", "x86_pkg_temp is 3 °C below its limit of 95 °C")


def test_a_clock_limit_is_told_with_both_clocks(tmp_path):
    root = plant("server", tmp_path)
    write({f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_max_freq": "2000000" for core in (4, 5)}, root)
    found = look(root, cores=range(4, 8))["clock limit"]

    assert (found.severity, found.seen) == ("note", "cores 4-5 are held to 2.00 of 3.30 GHz")
    assert found.fix == "sudo cpupower frequency-set --max 3300MHz"


def test_siblings_that_others_use_are_told(tmp_path):
    """We have one half of each of two cores."""
    found = look(plant("laptop", tmp_path), cores=(0, 2))["hyper-threading"]

    assert "others may use (1,3)" in found.seen
    assert found.fix == "echo off | sudo tee /sys/devices/system/cpu/smt/control"


def test_isolated_cores_that_lie_idle_are_told(tmp_path):
    found = look(plant("server", tmp_path), cores=range(4))["cores"]

    assert (found.severity, found.fix) == ("note", "taskset -c 4-7 edgeprof …")


def test_a_clock_source_without_a_better_one_has_no_command(tmp_path):
    root = plant("server", tmp_path)
    folder = "sys/devices/system/clocksource/clocksource0"
    write({f"{folder}/current_clocksource": "acpi_pm", f"{folder}/available_clocksource": "hpet acpi_pm"}, root)
    found = look(root)["clock source"]

    assert (found.severity, found.fix) == ("warning", None)


def test_a_process_started_without_random_layout_is_told(tmp_path):
    """`setarch -R`, though the system's setting is right."""
    root = plant("server", tmp_path)
    write({"proc/self/personality": "00040000"}, root)

    assert look(root)["address layout"].severity == "warning"


@pytest.mark.parametrize(
    ("environ", "name", "severity", "fix"),
    [
        ({"OMP_NUM_THREADS": "1"}, "environment", "note", "unset OMP_NUM_THREADS"),
        (
            {"OV_CPU_MAX_ISA": "AVX2", "OMP_PROC_BIND": "true"},
            "environment",
            "warning",
            "unset OV_CPU_MAX_ISA OMP_PROC_BIND",
        ),
        ({"PYTHONDEVMODE": "1"}, "python", "warning", "unset PYTHONDEVMODE"),
        ({"OMP_NUM_THREADS": ""}, "environment", "ok", None),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "container", "note", None),
    ],
)
def test_variables_that_change_what_is_measured(tmp_path, environ, name, severity, fix):
    found = look(plant("server", tmp_path), environ=environ)[name]

    assert (found.severity, found.fix) == (severity, fix)


def test_an_escape_sequence_in_a_variable_stays_harmless(tmp_path):
    found = look(plant("server", tmp_path), environ={"LD_PRELOAD": "a\x1b[31m\nb"})["environment"]

    assert found.seen == "LD_PRELOAD=a [31m b"


def test_a_debug_build_of_python_is_a_problem(tmp_path):
    assert of("server", tmp_path, debug_build=lambda: True)["python"].severity == "problem"


@pytest.mark.parametrize(
    ("free", "severity"), [(None, "absent"), (5_000_000, "problem"), (500_000_000, "warning"), (1 << 40, "ok")]
)
def test_disk_space_where_runs_are_kept(tmp_path, free, severity):
    found = of("server", tmp_path, disk_free=lambda folder: free if folder == Path("runs") else 0)["free disk"]

    assert found.severity == severity


def test_without_a_runtime_nothing_can_be_measured(tmp_path):
    """The fake one does not count."""
    answers = [
        ("ort", "cpu", Availability(False, None, "not installed", "pip install onnxruntime")),
        ("fake", "cpu", Availability(True)),
    ]
    found = of("server", tmp_path, availability=lambda: answers)["runtimes"]

    assert (found.severity, found.fix) == ("problem", "pip install onnxruntime")


def gpu(**answers):
    """One H200 that is idle at full clock, as `pynvml` tells it."""
    told = {
        "ClockInfo": 1980, "MaxClockInfo": 1980, "CurrentClocksEventReasons": 1, "Temperature": 34, "PersistenceMode": 1,
        "Name": "NVIDIA H200", "ComputeRunningProcesses": [], **answers,
    }  # fmt: skip
    calls = {f"nvmlDeviceGet{name}": lambda handle, *kind, answer=answer: answer for name, answer in told.items()}
    return SimpleNamespace(
        NVML_CLOCK_SM=1, NVML_TEMPERATURE_GPU=0, nvmlDeviceGetCount=lambda: 1, nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlClocksEventReasonHwThermalSlowdown=0x40, **calls,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("answers", "severity", "fix"),
    [
        ({}, "ok", None),
        ({"CurrentClocksEventReasons": 0x41}, "problem", "nvidia-smi -q -d PERFORMANCE,TEMPERATURE,POWER"),
        ({"ComputeRunningProcesses": [SimpleNamespace(pid=4242)]}, "warning", "nvidia-smi"),
        ({"ComputeRunningProcesses": [SimpleNamespace(pid=1)]}, "ok", None),
        ({"PersistenceMode": 0}, "warning", "sudo nvidia-smi -pm 1"),
        ({"ClockInfo": 345}, "note", "sudo nvidia-smi -i 0 -lgc 1980"),
    ],
)
def test_what_slows_or_shares_a_gpu(tmp_path, answers, severity, fix):
    found = of("server", tmp_path, nvml=lambda: gpu(**answers))["nvidia gpu"]

    assert (found.severity, found.fix) == (severity, fix)


def test_a_driver_without_nvml_is_told_and_a_machine_without_a_driver_is_not(tmp_path):
    root = plant("server", tmp_path)
    without = look(root)
    write({"proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.1"}, root)

    assert "nvidia gpu" not in without
    assert look(root)["nvidia gpu"].severity == "absent"


# The report -------------------------------------------------------------------------------------------------------------


def test_the_verdict_counts_and_names_the_worst(tmp_path):
    report = examine(plant("laptop", tmp_path), environ={}, probes=probes(cores=range(12)))

    assert report.verdict.startswith("4 things will spoil measurements here; the worst: power supply: on battery")
    assert [ORDER.index(finding.severity) for finding in report.findings] == sorted(
        ORDER.index(finding.severity) for finding in report.findings
    )


def test_one_thing_is_one_thing():
    report = Report.of([Finding("a", "ok", "x"), Finding("b", "warning", "y"), Finding("c", "absent", "z")])

    assert report.verdict == "1 thing will spoil measurements here; b: y (3 checks; 1 of 3 could not be looked at)."


@pytest.mark.parametrize("machine", MACHINES)
def test_a_report_is_json_and_says_why_and_how(tmp_path, machine):
    """What is wrong always says why it matters."""
    report = examine(plant(machine, tmp_path), environ={}, probes=probes(cores=range(CORES[machine])))
    read_back = json.loads(json.dumps(report.to_json(), allow_nan=False))

    assert read_back["spoilers"] == len(report.spoilers)
    for finding in read_back["findings"]:
        assert finding["seen"]
        assert finding["name"] in CHECKS
        assert finding["severity"] in ("ok", "absent") or finding["why"]


def test_a_check_that_fails_is_told_and_the_others_go_on(tmp_path):
    """Foreign backends may raise anything when they are asked."""

    def fail():
        raise RuntimeError("driver exploded")

    found = of("server", tmp_path, availability=fail)

    assert found["runtimes"].severity == "absent"
    assert "driver exploded" in found["runtimes"].seen
    assert len(found) > 15


HOSTILE = [
    "",
    "\x00\x01\x02",
    "-1",
    "9" * 4000,
    "nan",
    "0-99999999",
    "-5-3,x",
    "\x1b[31mred",
    "[",
    "1 " * 3000,
    "some total=-5",
    "0x" + "f" * 30,
]


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("content", HOSTILE)
def test_no_content_of_any_file_makes_it_fall(tmp_path, machine, content):
    """No check fails (which would be told as a bug), nothing unprintable is shown, and the real counters are read, too."""
    root = write(dict.fromkeys(read(machine), content), tmp_path)
    honest = probes(cores=range(4), processes=((), ()))
    report = examine(root, environ={}, probes=Probes(**{**vars(honest), "counters": Probes.counters}))

    assert not [finding.seen for finding in report.findings if "check failed" in finding.seen]
    assert all(finding.seen.isprintable() for finding in report.findings)
    assert json.dumps(report.to_json(), allow_nan=False)
    assert fixed_clocks(root, range(4)) in (True, False, None)


def test_binary_files_make_no_fall(tmp_path):
    root = write(dict.fromkeys(read("laptop"), bytes(range(256)) * 4), tmp_path)

    assert not [
        item.seen for item in examine(root, environ={}, probes=probes()).findings if "check failed" in item.seen
    ]


def test_this_machine_can_be_examined(tmp_path):
    """With the real answers, and no waiting."""
    report = examine(out=tmp_path / "not" / "there", window_s=0.0)

    assert not [finding.seen for finding in report.findings if "check failed" in finding.seen]
    assert {"runtimes", "free disk", "python"} <= {finding.name for finding in report.findings}


@pytest.mark.parametrize(
    ("text", "cores"),
    [
        ("0-3,8", {0, 1, 2, 3, 8}),
        ("", set()),
        ("3", {3}),
        ("x", set()),
        ("5-3", set()),
        ("0-9999999", set()),
        (None, set()),
    ],
)
def test_core_lists(text, cores):
    assert core_list(text) == cores


def test_core_lists_are_written_as_they_are_read():
    assert cores_text({8, 0, 1, 2, 3, 10, 11}) == "0-3,8,10-11"
    assert core_list(cores_text({8, 0, 1, 2, 3, 10, 11})) == {8, 0, 1, 2, 3, 10, 11}


# What grades depend on --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machine", "answer"),
    [("server", True), ("laptop", False), ("jetson-orin-nano", False), ("raspberry-pi-5", True), ("bare-vm", None)],
)
def test_clocks_are_fixed_or_not_or_unknown(tmp_path, machine, answer):
    assert fixed_clocks(plant(machine, tmp_path), range(CORES[machine])) is answer


@pytest.mark.parametrize(
    ("changes", "answer"),
    [
        ({"intel_pstate/no_turbo": "0"}, True),  # base frequency is the limit: turbo has nothing to add
        ({"intel_pstate/no_turbo": "0", "cpu5/cpufreq/scaling_max_freq": "4000000"}, False),
        ({"cpu5/cpufreq/scaling_governor": "powersave"}, False),
        ({"cpu5/cpufreq/scaling_governor": "powersave", "cpu5/cpufreq/scaling_min_freq": "3300000"}, True),
        ({"cpu5/cpufreq/scaling_max_freq": "garbage"}, None),
    ],
)
def test_one_core_decides(tmp_path, changes, answer):
    root = plant("server", tmp_path)
    write({f"sys/devices/system/cpu/{name}": value for name, value in changes.items()}, root)

    assert fixed_clocks(root, range(4, 8)) is answer


ALONE = {"other_cpu_share": 0.01, "steal_share": 0.0}


@pytest.mark.parametrize(
    ("machine", "labels", "answer"),
    [
        ("server", ALONE, True),
        ("server", {**ALONE, "other_cpu_share": 0.5}, False),
        ("server", {**ALONE, "steal_share": 0.001}, False),
        ("server", {"steal_share": 0.0}, None),
        ("server", {"other_cpu_share": 0.0}, None),
        ("server", {}, None),
        ("bare-vm", ALONE, False),  # its quota
    ],
)
def test_a_machine_is_ours_alone_or_not_or_unknown(tmp_path, machine, labels, answer):
    assert dedicated(plant(machine, tmp_path), labels=labels) is answer


def test_a_quiet_virtual_machine_does_not_know_its_neighbours(tmp_path):
    root = plant("bare-vm", tmp_path)
    write({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1"}, root)

    assert dedicated(root, labels=ALONE) is None
    assert dedicated(root, labels={**ALONE, "steal_share": 0.1}) is False


def test_without_labels_the_machine_is_watched(tmp_path):
    root = plant("server", tmp_path)

    assert dedicated(root, probes=probes()) is True
    assert dedicated(root, probes=probes(happened={**QUIET, "busy_s": 0.9})) is False


@pytest.mark.parametrize(
    ("files", "name"),
    [
        (
            {
                "sys/devices/virtual/dmi/id/sys_vendor": "Amazon EC2",
                "sys/devices/virtual/dmi/id/product_name": "m7g.large",
            },
            "Amazon EC2",
        ),
        (
            {
                "sys/devices/virtual/dmi/id/sys_vendor": "Amazon EC2",
                "sys/devices/virtual/dmi/id/product_name": "m7g.metal",
            },
            None,
        ),
        ({"proc/device-tree/compatible": "linux,dummy-virt\0"}, "QEMU"),
        ({"proc/cpuinfo": "flags\t: fpu hypervisor"}, "unnamed"),
        ({"proc/cpuinfo": "model name\t: hypervisor"}, None),
        ({"sys/hypervisor/type": "xen"}, "xen"),
    ],
)
def test_virtual_machines_are_known_by_flag_or_name(tmp_path, files, name):
    """Arm has no flag; a bare-metal instance of a cloud is none."""
    found = look(write({"proc/stat": "cpu 1 2 3 4 5 6 7 8", **files}, tmp_path))["virtual machine"]

    assert found.seen == ("none seen" if name is None else f"yes ({name})")
