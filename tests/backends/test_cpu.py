"""Instruction sets and usable cores are read from the system's own files; fixture trees stand for machines."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends import cpu


def tree(root: Path, **files: str) -> Path:
    """Write files whose names have `__` for `/`."""
    return write(root, {name.replace("__", "/"): text for name, text in files.items()})


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_x86_flags_are_the_decisive_ones_in_fixed_order(tmp_path):
    """Of all flags those that decide inference latency are told."""
    tree(
        tmp_path,
        proc__cpuinfo="processor\t: 0\nflags\t\t: fpu amx_int8 avx512_vnni sse4_2 avx2 ht avx512f\n\nprocessor\t: 1\n",
    )

    assert cpu.isa(tmp_path, "Linux") == ("sse4_2", "avx2", "avx512f", "avx512_vnni", "amx_int8")


def test_unequal_cores_have_what_all_have(tmp_path):
    """On big.LITTLE a set that only some cores have cannot be counted on."""
    tree(
        tmp_path,
        proc__cpuinfo="processor : 0\nFeatures : fp asimd asimddp\n\nprocessor : 4\nFeatures : fp asimd asimddp i8mm bf16\n",
    )

    assert cpu.isa(tmp_path, "Linux") == ("asimd", "asimddp")


def test_mac_features_get_linux_names(tmp_path):
    """Apple's sysctl tells the same under other names; 0 means absent."""
    text = "hw.optional.AdvSIMD: 1\nhw.optional.arm.FEAT_DotProd: 1\nhw.optional.arm.FEAT_I8MM: 0\nhw.optional.floatingpoint: 1\n"

    assert cpu.isa(tmp_path, "Darwin", sysctl=lambda: text) == ("asimd", "asimddp")


@pytest.mark.parametrize("text", [None, "", "model name : something\n"])
def test_a_system_that_does_not_tell_gives_nothing(tmp_path, text):
    """Without a readable list there is no guess."""
    if text is not None:
        tree(tmp_path, proc__cpuinfo=text)

    assert cpu.isa(tmp_path, "Linux") == ()


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "250000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "1600000 100000\n"}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "nonsense\n"}, 8),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/cpu.max": "300000 100000\n",
                "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
            },
            3,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/x\n2:cpu,cpuacct:/docker/abc\n0::/\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "400000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            4,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/job\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "100000\n",
                "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000\n",
            },
            1,
        ),
        (
            {
                "proc/self/cgroup": "3:cpuset:/job\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            8,
        ),
    ],
    ids=[
        "none",
        "v2 no limit",
        "v2 2",
        "v2 2.5",
        "v2 half",
        "v2 more than cores",
        "v2 unreadable",
        "v2 above",
        "v1 container",
        "v1",
        "v1 other controller",
    ],
)
def test_quota_cuts_the_affinity_mask(tmp_path, files, expected):
    """Usable cores are the mask's, cut by the tightest quota at or above the process, rounded down, at least 1."""
    assert expected == cpu.usable_cores(write(tmp_path, files), affinity=lambda: 8)


def test_this_machine_answers():
    """On the machine the tests run on, there is at least one core."""
    assert cpu.usable_cores() >= 1
