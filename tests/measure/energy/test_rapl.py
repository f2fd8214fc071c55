"""RAPL: packages and their DRAM are added, nothing is added twice, counters wrap, and closed files say how to open them."""

from __future__ import annotations

import os

import pytest

from profiler.measure.energy import rapl
from profiler.measure.energy.base import Absent, MeterLost

ROOT = "sys/class/powercap"


def zone(name, place, energy_uj, range_uj=262143328850):
    # The range is the documented one of a desktop package (kernel documentation, power/powercap).
    return {
        f"{ROOT}/{place}/name": f"{name}\n",
        f"{ROOT}/{place}/energy_uj": f"{energy_uj}\n",
        f"{ROOT}/{place}/max_energy_range_uj": f"{range_uj}\n",
    }


SERVER = {
    f"{ROOT}/intel-rapl/enabled": "1\n",
    **zone("package-0", "intel-rapl:0", 1_000_000),
    **zone("core", "intel-rapl:0:0", 600_000),
    **zone("dram", "intel-rapl:0:1", 200_000, 65712999613),
    **zone("package-1", "intel-rapl:1", 5_000_000),
    **zone("dram", "intel-rapl:1:0", 300_000, 65712999613),
    **zone("psys", "intel-rapl:2", 9_000_000),
    **zone("package-0", "intel-rapl-mmio:0", 1_000_000),
}


def test_packages_and_dram_are_the_total_and_nothing_is_added_twice(tree):
    """Two sockets: core lies inside a package, psys overlaps them, the mmio zone is the first package again."""
    info = rapl.find(tree(SERVER)).info

    assert info.total_rails == ("package-0", "package-0/dram", "package-1", "package-1/dram")
    assert set(info.rails) - set(info.total_rails) == {"package-0/core", "psys"}
    assert (info.kind, info.coverage) == ("counter", "2 processor packages and DRAM")
    assert "upper bound on a shared machine: the whole socket" in info.notes[0]


def test_microjoules_become_joules_from_the_first_reading_on(tree):
    """Each zone by itself."""
    meter = rapl.find(tree(SERVER))
    first = meter.read()
    tree(zone("package-0", "intel-rapl:0", 3_500_000) | zone("dram", "intel-rapl:0:1", 450_000, 65712999613))
    second = meter.read()

    assert set(first.values()) == {0.0}
    assert second["package-0"] == pytest.approx(2.5)
    assert second["package-0/dram"] == pytest.approx(0.25)
    assert second["package-1"] == 0.0


def test_a_counter_that_wraps_goes_on(tree):
    """From its range back to zero, twice; a window over the wrap holds what really flowed."""
    limit = 262143328850
    meter = rapl.find(tree(zone("package-0", "intel-rapl:0", limit - 1_000_000)))
    meter.read()
    seen = []
    for value in (2_000_000, limit - 500_000, 500_000):
        tree(zone("package-0", "intel-rapl:0", value))
        seen.append(meter.read()["package-0"])

    assert seen == pytest.approx([3.0, 3.0 + (limit - 2_500_000) / 1e6, 3.0 + (limit - 2_500_000) / 1e6 + 1.0])


def test_a_counter_that_runs_backwards_without_a_range_is_lost(tree):
    """Nobody knows how far it went."""
    root = tree(zone("package-0", "intel-rapl:0", 5_000_000))
    (root / ROOT / "intel-rapl:0/max_energy_range_uj").unlink()
    meter = rapl.find(root)
    meter.read()
    (root / ROOT / "intel-rapl:0/energy_uj").write_text("4000000\n")

    with pytest.raises(MeterLost, match="ran backwards"):
        meter.read()


@pytest.mark.parametrize("damage", ["gone", "garbage"])
def test_a_zone_that_vanishes_is_lost(tree, damage):
    """It is named."""
    root = tree(SERVER)
    meter = rapl.find(root)
    path = root / ROOT / "intel-rapl:1/energy_uj"
    path.unlink() if damage == "gone" else path.write_text("many\n")

    with pytest.raises(MeterLost, match="package-1"):
        meter.read()


def closed(monkeypatch, *places):
    """Files that this user may not read. Root may read everything, so the refusal comes from the reader's own function."""
    real = rapl.read_text

    def refuse(path):
        if path.parent.name in places and path.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(rapl, "read_text", refuse)


def test_a_counter_for_root_only_says_how_to_open_it(tree, monkeypatch):
    """The usual state since CVE-2020-8694."""
    closed(monkeypatch, "intel-rapl:0", "intel-rapl:0:1")
    root = tree(zone("package-0", "intel-rapl:0", 1) | zone("dram", "intel-rapl:0:1", 1))
    absent = rapl.find(root)

    assert isinstance(absent, Absent)
    assert absent.reason.startswith("/sys/class/powercap/intel-rapl:0/energy_uj may not be read by this user")
    assert "sudo chmod o+r /sys/class/powercap/intel-rapl:*/energy_uj" in absent.reason


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_real_permissions_are_seen(tree):
    """Mode 0400 of another user is what the kernel sets; mode 0 has the same effect here."""
    root = tree(zone("package-0", "intel-rapl:0", 1))
    (root / ROOT / "intel-rapl:0/energy_uj").chmod(0)

    assert "sudo chmod" in rapl.find(root).reason


def test_a_closed_part_is_left_out_and_said(tree, monkeypatch):
    """A total without DRAM does not claim to have it."""
    closed(monkeypatch, "intel-rapl:0:1")
    root = tree(zone("package-0", "intel-rapl:0", 1) | zone("dram", "intel-rapl:0:1", 1))
    info = rapl.find(root).info

    assert info.coverage == "1 processor package, without DRAM"
    assert any("left out" in note and "intel-rapl:0:1/energy_uj" in note for note in info.notes)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"proc/cpuinfo": "flags\t\t: fpu vme hypervisor sse\n"}, "virtual machines hide it; measure on the host"),
        ({"proc/cpuinfo": "Features\t: fp asimd\n"}, "only x86 processors"),
        ({"proc/cpuinfo": "flags\t\t: fpu vme sse\n"}, "CONFIG_POWERCAP"),
        ({}, "virtual machines hide it, and some kernels"),
        ({f"{ROOT}/intel-rapl/enabled": "1\n"}, "intel_rapl_msr may not be loaded"),
        (zone("psys", "intel-rapl:0", 1), "no processor package"),
        (zone("package-0", "intel-rapl:0", "garbage"), "no processor package"),
    ],
    ids=["virtual", "arm", "kernel", "unknown", "no zones", "psys only", "garbage"],
)
def test_its_absence_has_a_reason(tree, files, words):
    """What a person needs to know to get it, or to stop trying."""
    absent = rapl.find(tree(files))

    assert isinstance(absent, Absent)
    assert words in absent.reason
