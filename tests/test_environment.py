"""The facts about a machine: read where they are, absent where they are not."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from profiler import environment
from profiler.records import Environment


@pytest.fixture
def tree(tmp_path):
    def make(files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return tmp_path

    return make


def test_this_machine_can_be_described():
    """With numbers that make sense, as JSON."""
    here = environment.describe()

    assert 1 <= here.usable_cores <= here.logical_cores
    assert here.memory_bytes > 1 << 28
    assert "numpy" in here.versions
    assert json.loads(json.dumps(asdict(here), allow_nan=False))


def test_an_x86_guest_is_read(tree):
    """Model, instruction sets, the hypervisor by the firmware's name, the governor."""
    root = tree(
        {
            "proc/cpuinfo": "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nflags\t\t: fpu avx2 avx512_vnni hypervisor\n",
            "sys/devices/virtual/dmi/id/sys_vendor": "QEMU\n",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
        }
    )
    found = environment.describe(root)

    assert (found.cpu_model, found.hypervisor, found.governor) == ("Some CPU @ 2 GHz", "QEMU", "powersave")
    assert found.cpu_isa == ("avx2", "avx512_vnni")


def test_an_arm_board_is_read(tree):
    """`Model` and `Features`; no hypervisor, no governor."""
    root = tree(
        {"proc/cpuinfo": "processor : 0\nFeatures : fp asimd asimddp\n\nHardware : BCM2712\nModel : Raspberry Pi 5\n"}
    )
    found = environment.describe(root)

    assert found.cpu_model in {"BCM2712", "Raspberry Pi 5"}
    assert (found.hypervisor, found.governor) == (None, None)


def test_an_unnamed_hypervisor_is_still_one(tree):
    """The flag alone."""
    assert environment.describe(tree({"proc/cpuinfo": "flags : fpu hypervisor\n"})).hypervisor == "unnamed"


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00 model name", b"no colon here\n:\n: :\n"])
def test_odd_files_are_no_error(tree, content):
    """Whatever a kernel writes."""
    found = environment.describe(tree({"proc/cpuinfo": content}))

    assert found.cpu_isa == ()
    assert found.hypervisor is None


def test_an_empty_tree_is_no_error(tmp_path):
    """Not Linux, or a container without /proc."""
    assert environment.describe(tmp_path).governor is None


HERE = Environment(
    hostname="one", machine="x86_64", system="Linux 6.8.0", python="3.12.1", cpu_model="Some CPU", cpu_isa=("avx2",),
    logical_cores=8, usable_cores=4, memory_bytes=1 << 34, hypervisor=None, gpus=(), governor="performance", load_1min=0.1,
    versions={"numpy": "2.0", "onnxruntime": "1.20", "openvino": "2026.4"},
)  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"hostname": "two"},
        {"load_1min": 9.0},
        {"governor": "powersave"},
        {"notes": ("x",)},
        {"memory_bytes": 1},
        {"logical_cores": 64},
    ],
)
def test_a_self_test_holds_for_a_twin_machine(change):
    """Its name and load are no part of what was tested."""
    assert environment.fingerprint(replace(HERE, **change), "0.1") == environment.fingerprint(HERE, "0.1")


@pytest.mark.parametrize(
    "change",
    [{"machine": "aarch64"}, {"cpu_model": "Other"}, {"cpu_model": None}, {"usable_cores": 2}, {"system": "Linux 6.9.0"},
     {"hypervisor": "QEMU"}, {"versions": {**HERE.versions, "onnxruntime": "1.21"}},
     {"versions": {"numpy": "2.0"}}],
)  # fmt: skip
def test_a_self_test_does_not_hold_for_another_machine_or_other_software(change):
    assert environment.fingerprint(replace(HERE, **change), "0.1") != environment.fingerprint(HERE, "0.1")


def test_another_version_of_edgeprof_must_test_itself_again():
    from profiler import __version__

    assert environment.fingerprint(HERE, "0.1") != environment.fingerprint(HERE, "0.2")
    assert environment.fingerprint(HERE) == environment.fingerprint(HERE, __version__)


def test_the_fingerprint_is_the_same_in_every_process():
    """A known answer: stored self-tests are found by it."""
    assert environment.fingerprint(HERE, "0.1") == "596732072b126f71"


def test_a_containers_limit_is_the_memory_that_there_is(tmp_path):
    """What lies beyond it cannot be used, whatever the machine has."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/box\n")
    group = tmp_path / "sys/fs/cgroup/box"
    group.mkdir(parents=True)
    (group / "memory.current").write_text("1000\n")
    (group / "memory.max").write_text("50000000\n")

    assert environment.describe(tmp_path).memory_bytes == 50_000_000
    (group / "memory.max").write_text("max\n")
    assert environment.describe(tmp_path).memory_bytes > 50_000_000
