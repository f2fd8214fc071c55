"""Memory by phase: peaks belong to their phase, kinds are told apart, and what cannot be read is absent with a reason."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from profiler.measure import gpu_memory, memory

STATUS = (
    "Name:\tpython\nVmHWM:\t  4096 kB\nVmRSS:\t  1024 kB\nRssAnon:\t 600 kB\nRssFile:\t 400 kB\nRssShmem:\t 24 kB\n"
)
ROLLUP = "00400000-7ffe rollup\nRss: 100 kB\nPss:  {} kB\nPss_Dirty: 7 kB\n"
LINUX = sys.platform.startswith("linux")
needs_linux = pytest.mark.skipif(not LINUX, reason="reads /proc")


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
    "proc/self/status": STATUS,
    "proc/self/clear_refs": "",
    "proc/self/smaps_rollup": ROLLUP.format(500),
    "proc/self/task/1/children": "12 13\n",
    "proc/12/smaps_rollup": ROLLUP.format(30),
    "proc/12/task/12/children": "14",
    "proc/13/smaps_rollup": "",
    "proc/14/smaps_rollup": ROLLUP.format(7),
    "proc/self/cgroup": "0::/box\n",
    "sys/fs/cgroup/box/memory.current": "1000",
    "sys/fs/cgroup/box/memory.peak": "9000\n",
}


def test_a_phase_holds_what_the_kernel_tells(tree):
    """Kibibytes become bytes; the watermark was set back before it."""
    meter = memory.Meter(tree(FULL))
    meter.begin()
    found = meter.end("load")

    assert (found.peak_rss_bytes, found.rss_anon_bytes, found.rss_file_bytes, found.rss_shmem_bytes) == (
        4096 << 10, 600 << 10, 400 << 10, 24 << 10,
    )  # fmt: skip
    assert found.pss_bytes == (500 + 30 + 7) << 10
    assert (found.gpu_bytes, found.gpu_device_bytes) == (None, None)
    assert (meter.root / "proc/self/clear_refs").read_text() == "5"
    assert meter.phases == {"load": found}


def test_the_highest_peak_survives_setting_back(tree):
    """The process's peak is that of its highest phase, wherever that was."""
    root = tree(FULL)
    meter = memory.Meter(root)
    for peak in (900, 7000, 800):
        meter.begin()
        (root / "proc/self/status").write_text(STATUS.replace("4096", str(peak)))
        meter.end(f"phase {peak}")

    assert meter.peak_rss_bytes == 7000 << 10
    assert [found.peak_rss_bytes for found in meter.phases.values()] == [900 << 10, 7000 << 10, 800 << 10]


def test_a_peak_between_two_phases_counts_for_the_process(tree):
    """Receiving the inputs belongs to no phase, but the memory was needed all the same."""
    root = tree(FULL)
    meter = memory.Meter(root)
    meter.begin()
    meter.end("load")
    (root / "proc/self/status").write_text(STATUS.replace("4096", "9999"))
    meter.begin()
    (root / "proc/self/status").write_text(STATUS)
    meter.end("first")

    assert meter.peak_rss_bytes == 9999 << 10


def test_a_watermark_that_stays_is_told(tree):
    """Not permitted, or not built into the kernel: then peaks are of everything so far."""
    root = tree({name: text for name, text in FULL.items() if not name.endswith("clear_refs")})
    (root / "proc/self/clear_refs").mkdir()
    meter = memory.Meter(root)
    meter.begin()
    meter.begin()

    assert [note for note in meter.notes if "everything so far" in note and "Is a directory" in note] == list(
        meter.notes
    )


def test_a_bare_system_gives_no_numbers_it_does_not_know(tmp_path):
    """Without /proc: resident memory by psutil, the rest absent, each with a reason."""
    meter = memory.Meter(tmp_path)
    meter.begin()
    found = meter.end("load")

    assert found.peak_rss_bytes > 1 << 20
    assert {None} == {found.rss_anon_bytes, found.pss_bytes, found.cgroup_peak_bytes, found.gpu_bytes}
    assert all(any(word in note for note in meter.notes) for word in ("RssAnon", "PSS", "control group", "everything"))


@pytest.mark.parametrize("damage", ["", "garbage", "Pss:\n", "Pss: many kB\n"])
def test_a_damaged_rollup_is_absent(tree, damage):
    """Not zero."""
    assert memory.proportional_bytes(tree({**FULL, "proc/self/smaps_rollup": damage}))[0] is None


GROUP_PEAK = "sys/fs/cgroup/box/memory.peak"
V1, V2 = "sys/fs/cgroup/memory", "sys/fs/cgroup"


@pytest.mark.parametrize(
    ("files", "peak"),
    [
        ({"proc/self/cgroup": "0::/box\n", f"{V2}/box/memory.current": "1", f"{V2}/box/memory.peak": "77"}, 77),
        ({"proc/self/cgroup": "0::/seen/outside\n", f"{V2}/memory.current": "1", f"{V2}/memory.peak": "78"}, 78),
        (
            {
                "proc/self/cgroup": "5:cpu:/\n4:memory:/box\n0::/\n", f"{V1}/box/memory.usage_in_bytes": "1",
                f"{V1}/box/memory.max_usage_in_bytes": "79",
            },
            79,
        ),
        (
            {
                "proc/self/cgroup": "4:memory,hugetlb:/docker/x\n", f"{V1}/memory.usage_in_bytes": "1",
                f"{V1}/memory.max_usage_in_bytes": "80",
            },
            80,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/\n", f"{V1}/memory.usage_in_bytes": "1", f"{V1}/release_agent": "",
                f"{V1}/memory.max_usage_in_bytes": "81",
            },
            None,
        ),
        ({"proc/self/cgroup": "0::/box\n", "sys/fs/cgroup/box/memory.current": "1"}, None),
        ({"proc/self/cgroup": "nonsense\n"}, None),
        ({}, None),
    ],
    ids=["v2", "v2 in a container", "v1", "v1 in a container", "v1 root", "v2 before 5.19", "damaged", "none"],
)  # fmt: skip
def test_the_control_group_is_found(tree, files, peak):
    """Both versions, seen from outside and from inside of a container; the whole machine is no group."""
    meter = memory.Meter(tree({"proc/self/status": STATUS, **files}))

    assert meter.end("load").cgroup_peak_bytes == peak
    assert peak is not None or any("control group" in note for note in meter.notes)


def test_the_newer_groups_watermark_is_set_back_for_this_reader(tree):
    """Written through the descriptor that is read again, as Linux 6.12 wants it; then nothing has to be said about it."""
    root = tree(FULL)
    meter = memory.Meter(root)
    meter.begin()
    asked = (root / GROUP_PEAK).read_text()
    (root / GROUP_PEAK).write_text("5555\n")

    assert asked.startswith("reset")
    assert meter.end("load").cgroup_peak_bytes == 5555
    assert not meter.notes


def test_the_older_groups_watermark_is_left_to_others(tree):
    """Setting it back would take it from everybody who reads it."""
    files = {
        "proc/self/cgroup": "4:memory:/box\n",
        f"{V1}/box/memory.usage_in_bytes": "1",
        f"{V1}/box/memory.max_usage_in_bytes": "5",
    }
    root = tree({"proc/self/status": STATUS, **files})
    meter = memory.Meter(root)
    meter.begin()
    meter.end("load")

    assert (root / V1 / "box/memory.max_usage_in_bytes").read_text() == "5"
    assert any("since the group was made" in note for note in meter.notes)


@needs_linux
def test_a_peak_belongs_to_its_phase_on_this_machine():
    """64 MiB that were freed again: in the first phase's peak, not in the second's, nor in what is held."""
    meter = memory.Meter()
    meter.begin()
    block = bytearray(os.urandom(1)) * (64 << 20)
    del block
    first = meter.end("first")
    if any("everything so far" in note for note in meter.notes):
        pytest.skip("this kernel does not let a process set back its watermark")
    meter.begin()
    second = meter.end("second")

    assert first.peak_rss_bytes - second.peak_rss_bytes > 50 << 20
    assert meter.peak_rss_bytes >= first.peak_rss_bytes


@needs_linux
def test_a_mapped_file_is_not_anonymous_memory(tmp_path):
    """Weights that are mapped and read: file pages grow by their size, anonymous ones do not."""
    path = tmp_path / "weights"
    path.write_bytes(b"\1" * (32 << 20))
    before = memory.read()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        touched = sum(mapped[place] for place in range(0, len(mapped), mmap.PAGESIZE))
        after = memory.read()

    assert touched == (32 << 20) // mmap.PAGESIZE
    assert after.rss_file_bytes - before.rss_file_bytes > 28 << 20
    assert after.rss_anon_bytes - before.rss_anon_bytes < 16 << 20


@needs_linux
@pytest.mark.process
def test_children_count_into_the_proportional_size():
    """A runtime's helper process is part of what a case needs."""
    alone, _ = memory.proportional_bytes()
    code = "block = bytearray(b'x') * (48 << 20); print('ready', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        child.stdout.readline()
        together, _ = memory.proportional_bytes()
        child.communicate("\n")

    if alone is None:
        pytest.skip("no smaps_rollup here")
    assert together - alone > 40 << 20


@pytest.mark.parametrize(
    ("backend", "device", "kind"),
    [
        ("ort", None, "none"), ("ort", "cpu", "none"), ("ort", "cuda.1", "nvidia"), ("ort", "tensorrt", "nvidia"),
        ("trt", None, "nvidia"), ("trt", "gpu.0", "nvidia"), ("ov", "CPU", "none"), ("ov", "GPU", "other"),
        ("ov", "NPU", "other"), ("fake", "cpu", "none"),
    ],
)  # fmt: skip
def test_whose_memory_a_device_has(backend, device, kind):
    """OpenVINO's GPU is Intel's: NVML knows nothing of it."""
    assert gpu_memory.kind_of(backend, device) == kind


class FakeNvml:
    """Two devices; `processes` by device as (pid, bytes or None)."""

    def __init__(self, processes, used=(1000, 2000), error=None):
        self.processes, self.used, self.error = processes, used, error

    def nvmlInit(self):  # noqa: N802
        if self.error:
            raise RuntimeError(self.error)

    def nvmlDeviceGetCount(self):  # noqa: N802
        return len(self.processes)

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        return index

    def nvmlDeviceGetMemoryInfo(self, handle):  # noqa: N802
        return SimpleNamespace(used=self.used[handle])

    def nvmlDeviceGetComputeRunningProcesses(self, handle):  # noqa: N802
        return [SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in self.processes[handle]]


@pytest.mark.parametrize(
    ("processes", "own", "words"),
    [
        (([(7, 500)], [(7, 20)]), 520, None),
        (([(7, 500), (8, 9)], []), 500, "other processes"),
        (([(7, None)], []), None, "MIG"),
        (([(99, 500)], []), None, "--pid=host"),
        (([], []), None, None),
    ],
)
def test_device_memory_is_the_drivers_account_of_the_process(processes, own, words):
    """Summed over devices; None with a reason under MIG and in containers; nothing held is not known to be nothing."""
    reading = gpu_memory.Nvml(FakeNvml(processes)).read(7)

    assert (reading.process_bytes, reading.device_used_bytes) == (own, 3000)
    assert (words is None) == (not reading.notes)
    assert words is None or any(words in note for note in reading.notes)


def test_no_driver_is_a_reason():
    """In its own words."""
    reading = gpu_memory.Nvml(FakeNvml(([], []), error="Driver Not Loaded")).read(7)

    assert (reading.process_bytes, reading.device_used_bytes) == (None, None)
    assert "Driver Not Loaded" in reading.notes[0]


def test_a_meter_watches_the_gpu_from_its_case_on(tree):
    """The device's growth since then, and the process's own; not read at all for a CPU case."""
    library = FakeNvml(([(os.getpid(), 300)], [(os.getpid(), 0)]))
    meter = memory.Meter(tree(FULL), gpu=lambda: gpu_memory.Nvml(library))
    meter.watch_gpu("ort", "cpu")
    cpu = meter.end("import")
    meter.watch_gpu("ort", "cuda")
    library.used = (1400, 2100)
    gpu = meter.end("load")

    assert (cpu.gpu_bytes, cpu.gpu_device_bytes) == (None, None)
    assert (gpu.gpu_bytes, gpu.gpu_device_bytes) == (300, 500)


def test_an_accelerator_without_an_account_is_told(tree):
    """No number, a note."""
    meter = memory.Meter(tree(FULL))
    meter.watch_gpu("ov", "NPU")

    assert meter.end("load").gpu_bytes is None
    assert any("'NPU'" in note for note in meter.notes)


NVMAP = """CLIENT                        PROCESS      PID        SIZE
user  python3  7  2048K
user  gnome-shell  9  1M
user  python3  7  1K
total  3073K
"""


@pytest.mark.parametrize("sign", ["etc/nv_tegra_release", "proc/device-tree/compatible"])
def test_a_jetson_has_one_memory(tree, sign):
    """nvmap's clients by process, and the warning not to add them to the host's."""
    root = tree({sign: "nvidia,p3701-0000\0nvidia,tegra234\0", "sys/kernel/debug/nvmap/iovmm/clients": NVMAP})
    reading = gpu_memory.reader(root).read(7)

    assert reading.process_bytes == 2049 << 10
    assert reading.device_used_bytes == 3073 << 10
    assert "do not add" in reading.notes[0]


def test_a_jetson_that_hides_nvmap_says_so(tree):
    """Only root may read it."""
    reading = gpu_memory.reader(tree({"etc/nv_tegra_release": "# R36"})).read(7)

    assert reading.process_bytes is None
    assert any("needs root" in note for note in reading.notes)


def test_other_machines_are_no_jetsons(tree):
    """An ordinary device tree, and none."""
    assert not gpu_memory.is_jetson(tree({"proc/device-tree/compatible": "raspberrypi,5-model-b\0brcm,bcm2712\0"}))
    assert isinstance(gpu_memory.reader(tree({})), gpu_memory.Nvml)
