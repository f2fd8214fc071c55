"""Devices are recognised from what their agents tell; the trees stand for machines, each with its SOURCE.

The telemetry readers are tried on the same trees, so that a probe and a measurement cannot tell different things.
"""

from __future__ import annotations

import functools
import json
import os
import re
import stat
import sys
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from profiler.cost.devices import parse_profile
from profiler.cost.match import match_cpu, match_gpu
from profiler.errors import TargetError
from profiler.measure import cores, sensors
from profiler.measure.energy import ina3221
from profiler.targets import agent, config, draft, probe

sys.path.insert(0, str(Path(__file__).parents[1] / "trees"))

import planting

TREES = Path(__file__).parent / "trees"
MACHINES = sorted(path.name for path in TREES.iterdir() if path.is_dir())
DMI = "sys/devices/virtual/dmi/id"
GIB = 2**30


@functools.cache
def tree(name: str) -> dict[str, str]:
    """The files of a machine, as planting has them."""
    return planting.read(str(TREES / name / "tree"))


def told(name: str, root: Path, machine: str = "x86_64") -> dict[str, Any]:
    """What an agent on this machine answers: its real `facts`, and the recorded answers of programs."""
    planting.write(tree(name), root)
    answers = TREES / name / "answers.txt"
    lines = answers.read_text(encoding="utf-8").splitlines() if answers.exists() else []
    commands = dict(line.split(": ", 1) for line in lines)
    return {"machine": machine, "files": agent.facts(str(root)), "commands": commands}


def recognised(name: str, root: Path, machine: str = "aarch64") -> probe.Found:
    return probe.recognise(told(name, root, machine))


# The recorded machines ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MACHINES)
def test_every_tree_says_where_it_is_from(name: str):
    """Trees are composed of public accounts, which are named."""
    source = (TREES / name / "SOURCE").read_text(encoding="utf-8")

    assert len(source) > 300
    assert "Composed, not copied" in source


@pytest.mark.parametrize(
    ("name", "kind", "device", "cpu", "physical", "logical"),
    [
        ("jetson-agx-orin", "jetson", "jetson-agx-orin-64gb", "12 Cortex-A78AE", None, 12),
        ("jetson-xavier-nx", "jetson", "jetson-xavier-nx-8gb", "6 NVIDIA Carmel", None, 6),
        ("raspberry-pi-4", "raspberry-pi", "raspberry-pi-4-4gb", "4 Cortex-A72", 4, 4),
        ("raspberry-pi-5", "raspberry-pi", "raspberry-pi-5-8gb", "4 Cortex-A76", None, 4),
        ("rk3588s", "board", "firefly-rk3588s", "4 Cortex-A55 + 4 Cortex-A76", None, 8),
        ("laptop", "laptop", "intel-i7-12700h", "12th Gen Intel(R) Core(TM) i7-12700H", 14, 20),
        ("server", "server", "intel-xeon-8380-2s", "Intel(R) Xeon(R) Platinum 8380 CPU @ 2.30GHz", 80, 160),
    ],
)
def test_machines_are_recognised(tmp_path, name, kind, device, cpu, physical, logical):
    """Kind, profile, processor and cores; what prices it is the profile."""
    found = recognised(name, tmp_path, "x86_64" if name in ("laptop", "server") else "aarch64")

    assert (found.kind, found.device, found.cpu) == (kind, device, cpu)
    assert (found.physical_cores, found.logical_cores) == (physical, logical)
    assert found.target == f"device:{device}"
    assert found.evidence


def test_a_jetsons_release_module_and_modes(tmp_path):
    """L4T 36.4.4 is JetPack 6.2.1; clocks that move are not pinned."""
    found = recognised("jetson-agx-orin", tmp_path)

    assert found.jetson == probe.Jetson(
        module="p3701-0005",
        l4t="36.4.4",
        jetpack="6.2.1",
        power_mode=0,
        power_modes={0: "MAXN", 1: "MODE_15W", 2: "MODE_30W", 3: "MODE_50W"},
        clocks_pinned=False,
    )
    assert found.gpus == ()
    assert found.governors == ("schedutil",)
    assert found.memory_bytes == 64349184 * 1024
    assert found.arch == "arm64"
    assert found.unsure == ("whether the memory's clock is pinned: only root sees it",)


def test_pinned_clocks_are_seen(tmp_path):
    """All cores and the GPU have one clock left: what jetson_clocks does."""
    jetson = recognised("jetson-xavier-nx", tmp_path).jetson

    assert jetson is not None
    assert (jetson.l4t, jetson.jetpack, jetson.clocks_pinned) == ("35.4.1", "5.1.2", True)
    assert (jetson.power_mode, jetson.power_modes[2], len(jetson.power_modes)) == (2, "MODE_15W_6CORE", 9)
    assert jetson.module == "p3668-0000"


@pytest.mark.parametrize("missing", ["17000000.gv11b/min_freq", "cpu3/cpufreq/scaling_min_freq"])
def test_clocks_that_are_not_all_told_are_not_pinned(tmp_path, missing):
    """One core or the GPU that does not tell leaves it open."""
    facts = told("jetson-xavier-nx", tmp_path)
    kept = {path: text for path, text in facts["files"].items() if missing not in path}
    assert len(kept) < len(facts["files"])

    jetson = probe.recognise({**facts, "files": kept}).jetson

    assert jetson is not None
    assert jetson.clocks_pinned is None


@pytest.mark.parametrize(
    ("line", "l4t", "jetpack", "sure"),
    [
        ("# R32 (release), REVISION: 7.1, GCID: 29818004, BOARD: t210ref", "32.7.1", "4.6.1", True),
        ("# R36 (release), REVISION: 9.9, GCID: 1", "36.9.9", "6", False),
        ("# R77 (release), REVISION: 1.0", "77.1.0", None, False),
        ("something else", None, None, False),
    ],
)
def test_releases_outside_the_table_are_not_guessed(tmp_path, line, l4t, jetpack, sure):
    """The major version of a known line, and the doubt is told."""
    facts = told("jetson-agx-orin", tmp_path)
    facts["files"]["etc/nv_tegra_release"] = line

    found = probe.recognise(facts)

    assert found.jetson is not None
    assert (found.jetson.l4t, found.jetson.jetpack) == (l4t, jetpack)
    assert any("JetPack" in text or "Jetson Linux release" in text for text in found.unsure) == (not sure)


def test_a_module_on_another_makers_carrier_is_known_by_its_flash_record(tmp_path):
    """The device tree names the carrier only; TNSPEC names the module. The line is that of an Orin Nano developer kit."""
    facts = told("jetson-agx-orin", tmp_path)
    facts["files"]["proc/device-tree/compatible"] = "acme,carrier\0nvidia,tegra234\0"
    facts["files"]["etc/nv_boot_control.conf"] = (
        "TNSPEC 3767-300-0005-K.2-1-1-jetson-orin-nano-devkit-\nTEGRA_CHIPID 0x23\n"
    )

    found = probe.recognise(facts)

    assert found.jetson is not None
    assert (found.jetson.module, found.device) == ("p3767-0005", "jetson-orin-nano-8gb")


def test_a_pi_tells_its_throttling_by_file_or_by_command(tmp_path):
    """0x50005 now and since boot; 0xe0000 by vcgencmd, which only says what was."""
    five = recognised("raspberry-pi-5", tmp_path / "5").throttled
    four = recognised("raspberry-pi-4", tmp_path / "4").throttled

    assert five is not None
    assert four is not None
    assert (five.now, five.since_boot) == (("under-voltage", "throttled"), ("under-voltage", "throttled"))
    assert (four.now, four.since_boot) == ((), ("clock capped", "throttled", "soft temperature limit"))


def test_a_pi_whose_firmware_is_not_asked_says_so(tmp_path):
    """No file and no command: not known, and not `fine`."""
    found = probe.recognise({**told("raspberry-pi-4", tmp_path), "commands": {}})

    assert found.throttled is None
    assert any("whether it was throttled" in text and "vcgencmd" in text for text in found.unsure)


def test_a_laptops_classes_battery_and_governor(tmp_path):
    """P and E cores by Intel's lists, mains by the adapter that is out."""
    found = recognised("laptop", tmp_path, "x86_64")

    assert found.core_classes == {"big": tuple(range(12)), "little": tuple(range(12, 20))}
    assert (found.on_battery, found.governors, found.name) == (True, ("powersave",), "Dell Inc. XPS 15 9520")
    assert "avx_vnni" in found.isa
    assert "avx512f" not in found.isa


def test_a_servers_gpu_has_its_own_profile(tmp_path):
    """The machine is the host; the card's profile stands at the card."""
    found = recognised("server", tmp_path, "x86_64")

    assert found.gpus == (probe.FoundGpu("NVIDIA L4", "535.129.03", 23034 * 2**20, "8.9", "nvidia-l4"),)
    assert found.device == "intel-xeon-8380-2s"
    assert found.core_classes == {"all": tuple(range(160))}


def test_a_container_without_nvidia_smi_sees_the_drivers_files(tmp_path):
    """Name and driver version from /proc/driver/nvidia."""
    found = probe.recognise({**told("server", tmp_path), "commands": {}})

    assert found.gpus == (probe.FoundGpu("NVIDIA L4", "535.129.03", None, None, "nvidia-l4"),)


def test_big_and_little_of_a_board(tmp_path):
    """By capacity; the same from a real folder, as workers read it."""
    found = recognised("rk3588s", tmp_path)

    assert found.core_classes == {"big": (4, 5, 6, 7), "little": (0, 1, 2, 3)}
    assert cores.core_classes(tmp_path) == found.core_classes


# Telemetry on the same trees --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "jetson-agx-orin",
            {"cpu-thermal": 52.562, "soc0-thermal": 49.093, "soc1-thermal": 49.656, "soc2-thermal": 48.437,
             "tj-thermal": 52.562},
        ),
        (
            "jetson-xavier-nx",
            {"CPU-therm": 46.5, "GPU-therm": 45.5, "AUX-therm": 45, "AO-therm": 45, "PMIC-Die": 50, "thermal-fan-est": 45.6},
        ),
        ("raspberry-pi-4", {"cpu-thermal": 53.8, "cpu_thermal temp1": 53.8}),
        ("raspberry-pi-5", {"cpu-thermal": 49.4}),
        ("rk3588s", {"soc-thermal": 44.3, "bigcore0-thermal": 45.3, "bigcore1-thermal": 45.3, "littlecore-thermal": 45.3,
                     "center-thermal": 43.4, "gpu-thermal": 42.5}),
        ("laptop", {"x86_pkg_temp": 61}),
        ("server", {"x86_pkg_temp": 38, "x86_pkg_temp 2": 41}),
    ],
)  # fmt: skip
def test_temperatures_are_those_of_the_record(tmp_path, name, expected):
    """In °C under the kernel's names; a sensor that is powered down is absent with its reason."""
    reading = sensors.temperatures(planting.write(tree(name), tmp_path))

    assert dict(reading.values) == pytest.approx(expected)
    assert reading.reasons == (("gpu-thermal: powered down",) if name == "jetson-agx-orin" else ())


@pytest.mark.parametrize(
    ("name", "rails"),
    [
        ("jetson-agx-orin", {"VDD_GPU_SOC": 2.412, "VDD_CPU_CV": 1.607, "VIN_SYS_5V0": 4.707}),
        ("jetson-xavier-nx", {"VDD_IN": 2.763, "VDD_CPU_GPU_CV": 0.65, "VDD_SOC": 0.65}),
    ],
)
def test_powers_are_those_of_the_record(tmp_path, name, rails):
    """In W by label, to the milliampere that the tree holds."""
    meter = ina3221.find(planting.write(tree(name), tmp_path))

    assert isinstance(meter, ina3221.Ina3221Meter)
    assert dict(meter.read()) == pytest.approx(rails, abs=0.005)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("jetson-agx-orin", [(tuple(range(12)), (2188e6 + 2112e6 + 1036e6) / 3, 2201.6e6)]),
        ("jetson-xavier-nx", [(tuple(range(6)), 1420.8e6, 1907.2e6)]),
        ("raspberry-pi-4", [((0, 1, 2, 3), 600e6, 1500e6)]),
        ("raspberry-pi-5", [((0, 1, 2, 3), 1500e6, 2400e6)]),
        ("laptop", [(tuple(range(12)), 1800e6, 4700e6), (tuple(range(12, 20)), 1200e6, 3500e6)]),
        ("server", [(tuple(range(160)), 2300e6, 3400e6)]),
    ],
)
def test_clocks_are_those_of_the_record(tmp_path, name, expected):
    """By class of core, in Hz."""
    found, _ = sensors.clocks(planting.write(tree(name), tmp_path))

    assert [(kind.cores, kind.now_hz, kind.highest_hz) for kind in found] == expected


def test_gpu_throttling_and_supply_are_those_of_the_record(tmp_path):
    """What the remaining readers tell of the machines that have it."""
    roots = {name: planting.write(tree(name), tmp_path / name) for name in MACHINES}

    assert dict(sensors.jetson_gpu(roots["jetson-agx-orin"]).values) == {
        "clock_hz": 306e6, "lowest_hz": 306e6, "highest_hz": 1300.5e6, "load_share": 0.0,
    }  # fmt: skip
    assert sensors.jetson_gpu(roots["jetson-xavier-nx"]).values["clock_hz"] == 114.75e6
    assert sensors.pi_throttled(roots["raspberry-pi-5"]) == sensors.PiThrottled(0x50005)
    assert sensors.supply(roots["laptop"]) == sensors.Supply(True, 0.71)
    assert dict(sensors.throttle_counts(roots["server"]).values) == {"core": 0, "package": 0}


# Clouds -----------------------------------------------------------------------------------------------------------------


def cloud(**names: str) -> dict[str, str]:
    """A virtual machine with these DMI entries."""
    files = {f"{DMI}/{name}": f"{text}\n" for name, text in names.items()}
    return {
        **files,
        "proc/cpuinfo": "processor : 0\nmodel name : Intel(R) Xeon(R) Platinum 8488C\nflags : avx2 hypervisor\n",
    }


EC2 = cloud(sys_vendor="Amazon EC2", product_name="g4dn.xlarge")
GCE = cloud(sys_vendor="Google", product_name="Google Compute Engine")


def test_a_cloud_machine_is_known_by_its_firmware():
    """EC2 tells the type without any network; the GPU's profile is the device."""
    found = probe.recognise(
        {"machine": "x86_64", "files": EC2, "commands": {"nvidia-smi": "Tesla T4, 580.82.07, 15360 MiB, 7.5\n"}}
    )

    assert (found.kind, found.target, found.device, found.place) == ("cloud", "aws:g4dn.xlarge", "nvidia-t4", None)
    assert found.cpu == "Intel(R) Xeon(R) Platinum 8488C"


def test_googles_firmware_does_not_tell_the_type_but_its_metadata_does():
    """Without --metadata the doubt is told, with what to declare."""
    silent = probe.recognise({"files": GCE})
    asked = probe.recognise({"files": GCE, "metadata": {"gcp": {"type": "g2-standard-4", "place": "us-central1-a"}}})

    assert silent.target is None
    assert any("--as gcp:TYPE" in text for text in silent.unsure)
    assert (asked.target, asked.place, asked.unsure) == ("gcp:g2-standard-4", "us-central1-a", ())


@pytest.mark.parametrize(
    "answer",
    [
        {"error": "timed out"}, {"type": "c7i.large; reboot"}, {"type": "\x1b[2J"}, {"type": "x" * 9000}, {"type": 7}, "no", {},
        {"type": "../etc", "place": "a"},
    ],
)  # fmt: skip
def test_nonsense_from_a_metadata_service_changes_nothing(answer):
    """The firmware's answer stays; what was answered is shown clean, if at all."""
    found = probe.recognise({"files": EC2, "metadata": {"aws": answer, "gcp": answer, "other": {"type": "a.b"}}})

    assert found.target == "aws:g4dn.xlarge"
    assert all(text.isprintable() and len(text) < 300 for text in found.unsure)
    assert any("metadata" in text for text in found.unsure) == (
        isinstance(answer, dict) and isinstance(answer.get("error", answer.get("type")), str)
    )


@pytest.mark.parametrize(
    ("files", "asked"),
    [(EC2, ["aws"]), (GCE, ["gcp"]), ({}, ["aws", "azure", "gcp"]),
     (cloud(sys_vendor="Microsoft Corporation", chassis_asset_tag="7783-7084-3265-9085-8269-3286-77"), ["azure"])],
)  # fmt: skip
def test_only_the_named_cloud_is_asked(monkeypatch, files, asked):
    """And none unless the user says so."""
    seen: list[Any] = []
    monkeypatch.setattr(agent, "look", lambda *_: {"files": files})
    monkeypatch.setattr(agent, "probe", lambda _home, fields, _body: seen.append(fields["metadata"]) or {})

    probe.ask(None, metadata=True)
    probe.ask(None)

    assert seen == [asked, []]


class Metadata(BaseHTTPRequestHandler):
    """A metadata service as the three clouds document theirs."""

    def do_PUT(self) -> None:
        """IMDSv2's token."""
        good = self.path == "/latest/api/token" and self.headers.get("X-aws-ec2-metadata-token-ttl-seconds") == "60"
        self._answer(200 if good else 403, "token/==")

    def do_GET(self) -> None:
        """Each with the header that it wants."""
        wanted = {
            "/latest/meta-data/instance-type": ("X-aws-ec2-metadata-token", "token/==", "c7i.large"),
            "/latest/meta-data/placement/region": ("X-aws-ec2-metadata-token", "token/==", "eu-west-1"),
            "/computeMetadata/v1/instance/machine-type": (
                "Metadata-Flavor",
                "Google",
                "projects/42/machineTypes/c3-highcpu-4",
            ),
            "/computeMetadata/v1/instance/zone": ("Metadata-Flavor", "Google", "projects/42/zones/us-central1-a"),
            "/metadata/instance/compute/vmSize?api-version=2021-02-01&format=text": (
                "Metadata",
                "true",
                "Standard_D4s_v5",
            ),
            "/metadata/instance/compute/location?api-version=2021-02-01&format=text": ("Metadata", "true", "eastus"),
        }
        if self.server.moved:  # type: ignore[attr-defined]
            self.send_response(302)
            self.send_header("Location", f"http://127.0.0.1:{self.server.server_port}/elsewhere")  # type: ignore[attr-defined]
            self.end_headers()
            return
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        name, value, answer = wanted.get(self.path, ("", "", ""))
        good = bool(name) and self.headers.get(name) == value
        self._answer(200 if good else 404, answer, google="/computeMetadata" in self.path)

    def _answer(self, status: int, text: str, *, google: bool = False) -> None:
        self.send_response(status)
        if google and not self.server.foreign:  # type: ignore[attr-defined]
            self.send_header("Metadata-Flavor", "Google")
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def service() -> Iterator[HTTPServer]:
    """A running service on loopback."""
    server = HTTPServer(("127.0.0.1", 0), Metadata)
    server.moved = server.foreign = False  # type: ignore[attr-defined]
    server.asked = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("name", "kind", "place"),
    [
        ("aws", "c7i.large", "eu-west-1"),
        ("gcp", "c3-highcpu-4", "us-central1-a"),
        ("azure", "Standard_D4s_v5", "eastus"),
    ],
)
def test_metadata_services_are_asked_as_they_document_it(service, monkeypatch, name, kind, place):
    """Token or header; only type and place; never by way of a proxy, and no account number comes along."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")

    answer = agent.metadata(name, f"http://127.0.0.1:{service.server_port}")

    assert answer == {"type": kind, "place": place}
    assert len(service.asked) == 2


def test_a_metadata_service_that_sends_elsewhere_is_not_followed(service):
    """A redirect is an error, and the other address is not asked."""
    service.moved = True

    assert "302" in agent.metadata("azure", f"http://127.0.0.1:{service.server_port}")["error"]
    assert service.asked == []


def test_a_service_that_is_not_googles_is_not_believed(service):
    """Google's answers carry Google's header."""
    service.foreign = True

    assert "not Google's" in agent.metadata("gcp", f"http://127.0.0.1:{service.server_port}")["error"]


def test_nobody_there_is_an_answer():
    """A closed port: a reason, no exception."""
    assert "error" in agent.metadata("aws", "http://127.0.0.1:9")


# What a device may send -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "facts",
    [
        {}, {"files": None, "commands": 3, "metadata": []}, {"files": {"proc/cpuinfo": 7}}, {"files": ["proc/cpuinfo"]},
        {"machine": ["x"], "files": {"proc/meminfo": "MemTotal: " + "9" * 60_000 + " kB"}},
        {"files": {"proc/cpuinfo": "flags: " + "\x1b[31m" * 9000, "proc/device-tree/model": "\x1b]0;owned\x07" * 900}},
        {"files": {"etc/nvpmodel.conf": "\n" * 60_000, "etc/nv_tegra_release": "# R36"}},
        {"files": {"etc/nvpmodel.conf": "< POWER_MODEL ID=" + "9" * 60_000 + " NAME=x >", "etc/nv_tegra_release": ""}},
        {"files": {"etc/nvpmodel.conf": " " * 60_000 + "<", "var/lib/nvpmodel/status": "pmode:" + "1" * 6000}},
        {"files": {"sys/devices/system/cpu/online": "0-4000000000"}, "commands": {"nvidia-smi": "a,b,c,d\n" * 9000}},
        {"commands": {"nvidia-smi": "NVIDIA \x1b[2J, 1, 99999999999999 MiB, 8"}},
    ],
)  # fmt: skip
def test_nothing_that_a_device_tells_breaks_the_host(facts):
    """An answer always, printable and short, and nothing is recognised in nonsense."""
    found = probe.recognise(facts)

    assert found.device is None
    assert found.name.isprintable()
    assert len(found.name) <= 200
    assert len(json.dumps(found.unsure)) < 20_000
    assert all(text.isprintable() for text in (*found.unsure, *found.evidence))


@pytest.mark.parametrize(
    "name",
    [
        "../../outside", "/etc/passwd", "sys/class/power_supply/../../../../outside/type", "sys/class/power_supply/a/b/type",
        "sys/class/power_supply/.hidden/type", "sys/class/power_supply/\0/type", "sys/class/power_supply//type", "proc/self/mem",
        "sys/class/power_supply/" + "a" * 3000 + "/type",
    ],
)  # fmt: skip
def test_only_files_that_are_asked_for_are_taken(tmp_path, monkeypatch, name):
    """Names with steps upwards, null bytes or other folders never reach the file system."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    planted: list[str] = []
    real = probe._planted
    monkeypatch.setattr(probe, "_planted", lambda files: planted.extend(files) or real(files))

    probe.recognise({"files": {name: "Battery", "sys/class/power_supply/BAT0/type": "Battery"}})

    assert planted == ["sys/class/power_supply/BAT0/type"]
    assert list(tmp_path.iterdir()) == []


def test_a_cut_off_account_of_a_core_is_not_read(tmp_path):
    """The last core's flags end in the middle on machines with hundreds of cores: they do not take features away."""
    block = "processor : 0\nflags : avx2 avx512f " + "x" * 900 + " avx512_vnni\n\n"
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(block * 100)

    found = probe.recognise({"files": agent.facts(str(tmp_path))})

    assert found.isa == ("avx2", "avx512f", "avx512_vnni")


def test_the_agent_sends_a_bounded_amount(tmp_path):
    """However many cores there are, an answer fits the longest line that the host takes."""
    for core in range(2000):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{core}/cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_governor").write_text("\x00" * 300)

    found = agent.facts(str(tmp_path))

    assert "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor" in found
    assert len(json.dumps(found)) < 2 << 20


def test_the_agent_runs_its_own_questions_and_no_others(tmp_path, monkeypatch):
    """Programs by name from its own table; one that fails or is not there has no answer."""
    script = tmp_path / "nvidia-smi"
    script.write_text('#!/bin/sh\necho "NVIDIA L4, 535.129.03, 23034 MiB, 8.9"\necho "$@" >> "$0.asked"\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "vcgencmd").write_text("#!/bin/sh\necho VCHI initialization failed; exit 1\n")
    (tmp_path / "vcgencmd").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    answer = agent.probe("", {"metadata": ["nowhere"], "commands": ["id"]}, b"")

    assert answer == {"commands": {"nvidia-smi": "NVIDIA L4, 535.129.03, 23034 MiB, 8.9\n"}, "metadata": {}}
    assert (tmp_path / "nvidia-smi.asked").read_text().startswith("--query-gpu=name,driver_version")


# Profiles by name -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "mib", "device"),
    [
        ("Tesla T4", 15360, "nvidia-t4"), ("NVIDIA L4", 23034, "nvidia-l4"), ("NVIDIA L40S", 46068, "nvidia-l40s"),
        ("NVIDIA A10G", 23028, "nvidia-a10g"), ("NVIDIA A10", 23028, "nvidia-a10"), ("NVIDIA A2", 15356, "nvidia-a2"),
        ("NVIDIA A100-SXM4-40GB", 40960, "nvidia-a100-sxm-40gb"), ("NVIDIA A100-SXM4-80GB", 81920, "nvidia-a100-sxm-80gb"),
        ("NVIDIA A100-SXM4-80GB", None, "nvidia-a100-sxm-80gb"), ("NVIDIA A100 80GB PCIe", 81920, None),
        ("NVIDIA H100 80GB HBM3", 81559, "nvidia-h100-sxm-80gb"), ("NVIDIA H100 PCIe", 81559, "nvidia-h100-pcie-80gb"),
        ("NVIDIA H100 NVL", 95830, None), ("NVIDIA H200", 143771, "nvidia-h200-sxm-141gb"), ("NVIDIA H200 NVL", 143771, None),
        ("NVIDIA GH200 480GB", 97871, None), ("NVIDIA A10-4Q", 4096, None), ("NVIDIA RTX A2000 12GB", 12282, None),
        ("NVIDIA A100-SXM4", None, None),
    ],
)  # fmt: skip
def test_gpus_by_the_drivers_names(name: str, mib: int | None, device: str | None):
    """Siblings, slices and other form factors have no profile of their relatives."""
    found = match_gpu(name, None if mib is None else mib * 2**20)

    assert found.device == device
    assert name in found.reason


@pytest.mark.parametrize(
    ("name", "sockets", "physical", "device"),
    [
        ("12th Gen Intel(R) Core(TM) i7-12700H", 1, 14, "intel-i7-12700h"),
        ("11th Gen Intel(R) Core(TM) i7-1185G7 @ 3.00GHz", 1, 4, "intel-i7-1185g7"),
        ("Intel(R) Core(TM) Ultra 7 165H", 1, None, "intel-ultra7-165h"),
        ("INTEL(R) XEON(R) PLATINUM 8580", 2, 120, "intel-xeon-8580-2s"),
        ("INTEL(R) XEON(R) PLATINUM 8580", 1, 60, None),
        ("12th Gen Intel(R) Core(TM) i7-12700H", 1, 6, None),
        ("12th Gen Intel(R) Core(TM) i7-12700", 1, 12, None),
        ("AMD EPYC 7763 64-Core Processor", 2, 128, None),
    ],
)
def test_processors_by_their_own_names(name: str, sockets: int, physical: int | None, device: str | None):
    """Other sockets, fewer cores or one letter less is another machine."""
    assert match_cpu(name, sockets, physical).device == device


# Drafts -----------------------------------------------------------------------------------------------------------------


def filled(text: str) -> str:
    """The draft with its required lines filled, as a user would."""
    values = {"compute_unit": '"a unit"', "spec": '"https://example.com/sheet"', "class": '"edge"'}
    for key, value in values.items():
        text = re.sub(rf"^# {key} = .*# required.*$", f"{key} = {value}", text, flags=re.MULTILINE)
    return text


def unknown_orin(root: Path) -> dict[str, Any]:
    """An Orin NX 8GB, which has no profile."""
    facts = told("jetson-agx-orin", root, "aarch64")
    facts["files"]["proc/device-tree/model"] = 'NVIDIA Jetson Orin NX 8GB "Developer" Kit\0'
    facts["files"]["proc/device-tree/compatible"] = "nvidia,p3768-0000+p3767-0001\0nvidia,p3767-0001\0nvidia,tegra234\0"
    facts["files"]["proc/meminfo"] = "MemTotal:        7650336 kB\n"
    return facts


def unknown_laptop(root: Path) -> dict[str, Any]:
    """A laptop with another processor."""
    facts = told("laptop", root)
    facts["files"]["proc/cpuinfo"] = (
        "model name : AMD Ryzen 7 7840U w/ Radeon 780M Graphics\nflags : avx2 avx512_vnni\n"
    )
    return facts


def test_a_draft_holds_what_is_known_and_parses_once_filled(tmp_path):
    """Memory as it was sold, marked as derived; the watts of the modes; the module stands in a comment."""
    text = draft.draft(probe.recognise(unknown_orin(tmp_path)))
    profile = parse_profile(filled(text), draft.file_name(text))

    assert "p3767-0001" in text
    assert (profile.device_class, profile.arch, profile.memory.gb) == ("edge", "arm64", 8)
    assert profile.power.modes_w == (15, 30, 50)
    assert profile.source.unverified == ("memory.gb",)
    assert profile.peak.int8_dense_tops is None


@pytest.mark.parametrize("key", ["compute_unit", "spec"])
def test_a_draft_without_its_required_lines_is_refused_by_name(tmp_path, key):
    """Nobody contributes an unfilled draft by accident."""
    text = draft.draft(probe.recognise(unknown_orin(tmp_path)))
    text = text.replace(f"# {key} = ", f"# left out: {key} = ")

    with pytest.raises(Exception, match=key):
        parse_profile(filled(text), draft.file_name(text))


def test_every_line_of_a_draft_can_be_filled(tmp_path):
    """Each commented figure is one that the schema knows."""
    text = draft.draft(probe.recognise(unknown_laptop(tmp_path)))
    full = filled(text)
    for key, value in {"date": '"2026-01"', "source": '"https://e.org"', "covers": '"all"', "basis": '"so"',
                       "verified": "true"}.items():  # fmt: skip
        full = re.sub(rf"^# {key} = .*$", f"{key} = {value}", full, flags=re.MULTILINE)
    full = re.sub(r"^# (\[price\])", r"\1", full, flags=re.MULTILINE)
    full = re.sub(r"^# (\w+) = \[.*$", r"\1 = [5, 15]", full, flags=re.MULTILINE)
    full = re.sub(r"^# (tdp_w|usd|\w*_t(?:fl)?ops|bandwidth_gbs) = .*$", r"\1 = 12", full, flags=re.MULTILINE)
    full = re.sub(r"^# (idle|load)_w = .*$", r'\1_w = 3\n\1_source = "measured"', full, flags=re.MULTILINE)

    profile = parse_profile(full, draft.file_name(text))

    assert [line for line in full.splitlines() if re.match(r"# \w+ = ", line)] == []
    assert (profile.device_class, profile.cpu.cores, profile.memory.gb) == ("laptop", 14, 16)
    assert profile.price is not None
    assert profile.power.idle_w == 3


def test_a_gpu_without_a_profile_gets_its_own_draft():
    """In a rented machine the card is what can have one."""
    facts = {"files": EC2, "commands": {"nvidia-smi": "NVIDIA RTX 6000 Ada Generation, 550.1.2, 49140 MiB, 8.9"}}
    text = draft.draft(probe.recognise(facts))
    profile = parse_profile(filled(text), draft.file_name(text))

    assert (profile.device_class, profile.gpu_names, profile.memory.gb) == ("gpu", ("6000",), 48)
    assert "compute capability 8.9" in text


@pytest.mark.parametrize(
    ("name", "said"), [("raspberry-pi-5", "has the profile 'raspberry-pi-5-8gb'"), ("laptop", "intel-i7-12700h")]
)
def test_a_known_device_needs_no_draft(tmp_path, name, said):
    """The message names the profile."""
    with pytest.raises(TargetError, match=re.escape(said)):
        draft.draft(recognised(name, tmp_path))


def test_a_rented_machine_has_no_draft():
    """Its price is what counts."""
    with pytest.raises(TargetError, match="--as aws:TYPE"):
        draft.draft(probe.recognise({"files": EC2}))


@pytest.mark.parametrize("model", ['A "quoted" \\ name', "newline\nname = 3", "\x1b[2Jname", "名前", "!!!"])
def test_a_devices_words_cannot_break_a_drafts_form(tmp_path, model):
    """Quotes, lines and control characters of the device stay in their string."""
    facts = unknown_orin(tmp_path)
    facts["files"]["proc/device-tree/model"] = f"{model}\0"
    text = draft.draft(probe.recognise(facts))

    assert parse_profile(filled(text), draft.file_name(text)).device_class == "edge"
    assert text.replace("\n", "").isprintable()


# The command ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """The command line over a private list of targets, and agents that answer from the given facts: exit code and stdout."""
    from profiler.cli import main

    monkeypatch.setenv("EDGEPROF_TARGETS", str(tmp_path / "targets.toml"))
    monkeypatch.setenv("COLUMNS", "200")

    def command(facts: Mapping[str, Any], *words: str) -> tuple[int, str]:
        monkeypatch.setattr(probe, "ask", lambda spec, metadata: facts)
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main(["target", "probe", *words])
        return int(caught.value.code or 0), capsys.readouterr().out

    return command


def test_the_command_remembers_the_device(run, tmp_path):
    """And says what was remembered and why."""
    config.save(config.TargetSpec("pi", ("true",)))

    code, out = run(told("raspberry-pi-5", tmp_path / "root", "aarch64"), "pi")

    assert code == 0
    assert config.get("pi").device == "raspberry-pi-5-8gb"
    assert "under-voltage" in out
    assert "remembered for pi" in out
    assert re.search(r"^because of +device tree", out, re.MULTILINE)


def test_a_declared_device_stays_when_nothing_is_found(run):
    """And is told when something else was."""
    config.save(config.TargetSpec("box", ("true",), device="nvidia-t4"))

    _, kept = run({"files": GCE}, "box")
    _, changed = run({"files": GCE, "commands": {"nvidia-smi": "NVIDIA L4, 1.2, 23034 MiB, 8.9"}}, "box")

    assert "kept" in kept
    assert "(it was nvidia-t4)" in changed
    assert config.get("box").device == "nvidia-l4"


def test_the_command_as_json_and_with_a_draft_file(run, tmp_path):
    """One JSON document on stdout; the draft in the folder under its right name, never over another file."""
    facts = unknown_orin(tmp_path / "root")

    _, out = run(facts, "local", "--json", "--draft", str(tmp_path))
    over_another, _ = run(facts, "local", "--draft", str(tmp_path))
    both_printed, _ = run(facts, "local", "--json", "--draft", "-")

    found = json.loads(out)
    assert found["jetson"]["module"] == "p3767-0001"
    assert (found["device"], over_another, both_printed) == (None, 2, 2)
    written = next(tmp_path.glob("*.toml"))
    assert parse_profile(filled(written.read_text()), written.name).memory.gb == 8


def test_the_draft_on_the_terminal_is_nothing_but_the_draft(run, tmp_path):
    """So that it can be redirected into a file."""
    _, out = run(unknown_orin(tmp_path), "local", "--draft", "-")

    assert parse_profile(filled(out), draft.file_name(out)).arch == "arm64"


def test_this_machine_can_be_probed():
    """For real: whatever it is, it has a processor and says what it is not sure of or why."""
    found = probe.recognise(probe.ask(None))

    assert found.logical_cores == len(cores.cpu_list(Path("/sys/devices/system/cpu/online").read_text()))
    assert found.memory_bytes is not None
    assert found.device is not None or found.unsure


@pytest.mark.process
def test_another_target_can_be_probed(tmp_path):
    """Through a pipe, with the agent's own text, on a machine that is this one."""
    spec = config.TargetSpec("here", ("env",), python=sys.executable, folder=str(tmp_path / "there"))
    through, direct = probe.recognise(probe.ask(spec)), probe.recognise(probe.ask(None))

    assert through == direct
    assert not (tmp_path / "there").exists()


def test_the_device_tree_below_sys_stands_in_for_a_hidden_one(tmp_path):
    """The kernel shows the same tree in two places, and an emulator may hide one; the names told stay the same."""
    tree = tmp_path / "sys/firmware/devicetree/base"
    tree.mkdir(parents=True)
    (tree / "model").write_text("Raspberry Pi 4 Model B")

    assert agent.facts(str(tmp_path)) == {"proc/device-tree/model": "Raspberry Pi 4 Model B"}
