"""Classes of cores by the kernel's own accounts; texts stand for machines."""

from __future__ import annotations

from pathlib import Path

import pytest

from profiler.measure import cores

CPU = "sys/devices/system/cpu"


def capacities(*values: int) -> dict[str, str]:
    """A machine whose cores have these capacities, all online."""
    files = {f"{CPU}/cpu{core}/cpu_capacity": f"{value}\n" for core, value in enumerate(values)}
    return {**files, f"{CPU}/online": f"0-{len(values) - 1}\n"}


def test_big_and_little_by_the_schedulers_scale():
    """An RK3588: four A55 of 530, four A76 of 1024."""
    assert cores.classes(capacities(530, 530, 530, 530, 1024, 1024, 1024, 1024)) == {
        "big": (4, 5, 6, 7),
        "little": (0, 1, 2, 3),
    }


def test_three_kinds_have_a_middle():
    """A phone with one prime core, three big and four little ones."""
    found = cores.classes(capacities(325, 325, 325, 325, 828, 828, 828, 1024))

    assert found == {"big": (7,), "middle": (4, 5, 6), "little": (0, 1, 2, 3)}


def test_cores_of_one_kind_are_all():
    """Favoured cores differ by a few per cent and are no class of their own."""
    assert cores.classes(capacities(1024, 1000, 960, 1024)) == {"all": (0, 1, 2, 3)}


def test_intels_own_lists_go_before_the_scale():
    """Newer kernels give hybrid processors capacities as well: favoured cores would make classes of their own."""
    files = {
        **capacities(1024, 1024, 870, 870, 560, 560),
        "sys/devices/cpu_core/cpus": "0-3\n",
        "sys/devices/cpu_atom/cpus": "4-5\n",
    }

    assert cores.classes(files) == {"big": (0, 1, 2, 3), "little": (4, 5)}


def test_the_highest_clock_is_the_last_resort():
    """No capacities: 4.7 and 3.5 GHz tell the kinds, 4.7 and 4.6 do not."""
    clocks = (4_700_000, 4_600_000, 3_500_000, 3_500_000)
    files = {f"{CPU}/cpu{core}/cpufreq/cpuinfo_max_freq": str(khz) for core, khz in enumerate(clocks)}

    assert cores.classes({**files, f"{CPU}/online": "0-3"}) == {"big": (0, 1), "little": (2, 3)}


def test_offline_cores_are_in_no_class():
    """A Jetson in a mode with fewer cores, and a hybrid with its efficiency cores off."""
    files = {**capacities(1024, 1024, 1024, 1024), f"{CPU}/online": "0-1"}
    hybrid = {"sys/devices/cpu_core/cpus": "0-3", "sys/devices/cpu_atom/cpus": "4-7", f"{CPU}/online": "0-3"}

    assert cores.classes(files) == {"all": (0, 1)}
    assert cores.classes({**hybrid, **{k: v for k, v in capacities(1, 1, 1, 1).items() if "capacity" in k}}) == {
        "all": (0, 1, 2, 3)
    }


@pytest.mark.parametrize(
    "files",
    [
        {},
        {f"{CPU}/online": "0-3"},
        {f"{CPU}/cpu0/cpu_capacity": "1024", f"{CPU}/online": "0-1"},
        {f"{CPU}/cpu0/cpu_capacity": "many", f"{CPU}/cpu1/cpu_capacity": "0", f"{CPU}/online": "0-1"},
        {"sys/devices/cpu_core/cpus": "0-999999999", "sys/devices/cpu_atom/cpus": "1-"},
    ],
)
def test_what_is_not_told_is_not_guessed(files: dict[str, str]):
    """No files, a core that tells nothing, and nonsense."""
    assert cores.classes(files) == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0-3,8\n", (0, 1, 2, 3, 8)), ("5", (5,)), ("3,1-2", (1, 2, 3)), ("", ()), ("4-2", ()), ("0-99999", ()), ("a", ()),
        ("0-", ()), ("-1", ()), (",".join(["0-4000"] * 500), ()), ("0-4000,5000-9000", ()),
    ],
)  # fmt: skip
def test_lists_of_cores(text: str, expected: tuple[int, ...]):
    """The kernel's form, and what is not it; endless lists cost nothing."""
    assert cores.cpu_list(text) == expected


@pytest.mark.parametrize("text", ["0-3,8", "5", "0", "0,2,4-6", ""])
def test_lists_are_shown_as_the_kernel_writes_them(text: str):
    """Reading and showing are inverse."""
    assert cores.shown(cores.cpu_list(text)) == text


def test_threads_of_a_core_count_once(tmp_path: Path):
    """Two threads each on two cores, one core without; read from a real folder."""
    for core, siblings in enumerate(("0,3", "1,4", "2", "0,3", "1,4")):
        path = tmp_path / f"{CPU}/cpu{core}/topology/thread_siblings_list"
        path.parent.mkdir(parents=True)
        path.write_text(f"{siblings}\n")
    (tmp_path / CPU / "cpufreq").mkdir()

    assert cores.physical_cores(cores.read(tmp_path)) == 3
    assert cores.physical_cores({}) is None
    assert cores.core_classes(tmp_path / "nothing") == {}
