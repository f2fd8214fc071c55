"""Conditions of a machine, applied in a process: cores, memory, power modes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from profiler.measure import afterwards, conditions, power_mode
from profiler.measure.control_group import PREFIX, Groups, NoControlGroup
from profiler.measure.power_mode import NoPowerMode, PowerModes, catalogue, find

MB = 1_000_000
needs_affinity = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no processes")


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("0", (0,)),
        ("0-3|6", (0, 1, 2, 3, 6)),
        ("2|1", (1, 2)),
        ("3-1", None),
        ("big", None),
        ("0-", None),
        ("-1", None),
        ("0-99999", None),
    ],
)
def test_processors_are_read(text, numbers):
    """Ranges and lists; anything else is the name of a class."""
    assert conditions.parse_cores(text) == numbers


def test_processors_are_written_as_they_are_read():
    """In runs."""
    assert conditions.format_cores((6, 0, 1, 2, 3)) == "0-3|6"


def test_physical_cores_come_first():
    """Of two threads of a core, the second is taken when there is no other core left."""
    pairs = {0: {0, 1}, 1: {0, 1}, 2: {2, 3}, 3: {2, 3}}

    assert conditions.choose(2, [0, 1, 2, 3], lambda cpu: frozenset(pairs[cpu])) == (0, 2)
    assert conditions.choose(3, [0, 1, 2, 3], lambda cpu: frozenset(pairs[cpu])) == (0, 1, 2)


# Control groups, on trees as the kernel shows them.


def put(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


@pytest.fixture
def tree(tmp_path):
    """`tree(1)`: a root with a process 71 in its control groups; `made` fills a new group with the files of that version."""

    class Tree:
        root = tmp_path

        def __init__(self, version: int, **limits: str) -> None:
            self.version = version
            self.left: list[tuple[str, ...]] = []
            base = tmp_path / "sys/fs/cgroup"
            if version == 1:
                lines = "4:memory:/job\n3:cpuset:/\n2:cpu,cpuacct:/job\n"
                put(base / "memory/job", cgroup__procs="71")
                put(base / "cpuset", cgroup__procs="71", cpuset__mems="0-1")
                put(base / "cpu,cpuacct/job", cgroup__procs="71")
            else:
                lines = "0::/user/job\n"
                names = "cpuset cpu io memory pids"
                put(base / "user", cgroup__procs="", cgroup__subtree_control="memory pids", cgroup__type="domain")
                put(base / "user/job", cgroup__procs="71", cgroup__controllers=names, cgroup__type="domain", **limits)
            put(tmp_path / "proc/71", cgroup=lines)

        def groups(self) -> Groups:
            return Groups(self.root, 71, self.mkdir, Path.rmdir, lambda script, *words: self.left.append(words))

        def mkdir(self, path: Path) -> None:
            path.mkdir()
            first = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "cpu.cfs_period_us", "cpu.cfs_quota_us"]
            second = ["memory.max", "memory.swap.max", "cpu.max"]
            files = {1: [*first, "cpuset.mems"], 2: second}[self.version]
            put(path, **{name.replace(".", "__"): "" for name in (*files, "cpuset.cpus", "cgroup.procs")})

        def texts(self, folder: str) -> dict[str, str]:
            found = (self.root / "sys/fs/cgroup" / folder / f"{PREFIX}71").iterdir()
            return {file.name: file.read_text() for file in found if file.read_text()}

    return Tree


def test_version_1_has_a_group_for_each_controller(tree):
    """Below the process's own; swap counts with memory; an empty cpuset cannot be entered, so it gets memory nodes."""
    made = tree(1)
    groups = made.groups()
    means = (groups.memory(500 * MB), groups.quota(0.5), groups.cpus((0, 2)))
    groups.enter()

    assert means == ("cgroup v1", "cgroup v1 cpu quota", "cgroup v1 cpuset")
    assert made.texts("memory/job") == {
        "memory.limit_in_bytes": "500000000", "memory.memsw.limit_in_bytes": "500000000", "cgroup.procs": "71",
    }  # fmt: skip
    assert made.texts("cpu,cpuacct/job") == {
        "cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "50000", "cgroup.procs": "71",
    }  # fmt: skip
    assert made.texts("cpuset") == {"cpuset.mems": "0-1", "cpuset.cpus": "0,2", "cgroup.procs": "71"}
    assert made.left == [tuple(map(str, groups.made))]


def test_version_2_has_one_group_beside_the_own(tree):
    """A group with processes hands nothing down; controllers that are missing above are switched on."""
    made = tree(2)
    groups = made.groups()
    means = (groups.memory(500 * MB), groups.quota(1.5), groups.cpus((1,)))
    groups.enter()

    assert means == ("cgroup v2", "cgroup v2 cpu quota", "cgroup v2 cpuset")
    assert made.texts("user") == {
        "memory.max": "500000000", "memory.swap.max": "0", "cpu.max": "150000 100000", "cpuset.cpus": "1",
        "cgroup.procs": "71",
    }  # fmt: skip
    assert "+cpuset" in (made.root / "sys/fs/cgroup/user/cgroup.subtree_control").read_text()


def test_limits_of_the_group_that_is_left_still_hold(tree):
    """Beside it they would not: an envelope never gives more than there was."""
    made = tree(2, memory__max="300000000", cpu__max="100000 200000")
    groups = made.groups()
    groups.memory(500 * MB)
    groups.quota(1.5)

    assert made.texts("user") == {
        "memory.max": "300000000",
        "memory.swap.max": "0",
        "cpu.max": "50000 100000",
    }


def test_a_container_sees_its_group_at_the_mount(tree):
    """The path in /proc is the host's."""
    made = tree(1)
    put(made.root / "proc/71", cgroup="4:memory:/docker/8a1f\n")
    put(made.root / "sys/fs/cgroup/memory", cgroup__procs="71")
    made.groups().memory(MB)

    assert (made.root / f"sys/fs/cgroup/memory/{PREFIX}71/memory.limit_in_bytes").read_text() == "1000000"


def test_groups_of_dead_processes_are_removed(tree):
    """Only theirs: a killed machine could not do it."""
    made = tree(1)
    home = made.root / "sys/fs/cgroup/memory/job"
    for name in (f"{PREFIX}70", f"{PREFIX}72", "others"):
        (home / name).mkdir()
    (made.root / "proc/72").mkdir()
    made.groups().memory(MB)

    assert sorted(path.name for path in home.iterdir() if path.is_dir()) == [f"{PREFIX}71", f"{PREFIX}72", "others"]


def test_a_machine_without_control_groups_says_so(tmp_path):
    """Then there is another way."""
    with pytest.raises(NoControlGroup, match="no control group for memory"):
        Groups(tmp_path, 71).memory(MB)


def test_a_group_that_is_not_ours_says_so(tree):
    """An ordinary user's."""
    made = tree(1)
    groups = made.groups()

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    groups.mkdir = refuse
    with pytest.raises(NoControlGroup, match="not ours to write"):
        groups.memory(MB)


def test_without_a_way_to_remove_groups_none_are_left(tree):
    """No shell: the group is taken back."""
    made = tree(1)
    groups = made.groups()
    groups.mkdir = Path.mkdir
    groups.afterwards = lambda *words: (_ for _ in ()).throw(OSError(2, "no shell"))
    with pytest.raises(NoControlGroup):
        groups.cpus((0,))
    with pytest.raises(NoControlGroup, match="no shell"):
        groups.enter()

    assert not list((made.root / "sys/fs/cgroup/cpuset").glob(f"{PREFIX}*"))


# Applied to a process.

APPLY = """
import json, os, sys
from pathlib import Path
from profiler.measure import conditions
from profiler.measure.power_mode import PowerModes
root = Path(sys.argv[2])
try:
    told = conditions.apply(json.loads(sys.argv[1]), PowerModes(), root=root)
except conditions.NotPossible as error:
    told = {"refused": str(error)}
import resource
print(json.dumps([told, sorted(os.sched_getaffinity(0)), resource.getrlimit(resource.RLIMIT_DATA)[0]]))
"""


def applied(asked: str, root: Path) -> tuple[dict[str, str], list[int], int]:
    """In a process of its own, which has no control groups when `root` has none."""
    import json

    done = subprocess.run([sys.executable, "-c", APPLY, asked, str(root)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told, affinity, limit = json.loads(done.stdout)
    return told, affinity, limit


@pytest.mark.process
@needs_affinity
def test_without_control_groups_there_are_affinity_and_a_limit_of_data(tmp_path):
    """And the answer says so."""
    first = min(os.sched_getaffinity(0))
    told, affinity, limit = applied('{"cpus": 1, "memory_bytes": 400000000}', tmp_path)

    assert told["cpus"] == f"affinity, processors {first}"
    assert told["memory"].startswith("rlimit data, as there is no control group")
    assert (affinity, limit) == ([first], 400 * MB)


@pytest.mark.process
@needs_affinity
@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ('{"cpus": 0.5}', "cpus=0.5 needs a control group"),
        ('{"cpus": 4096}', "cpus=4096 is not possible: the worker may use processors"),
        ('{"cores": "60000"}', "processors 60000 are not there or not ours"),
        ('{"memory_bytes": 9000000}', "the worker alone"),
    ],
)
def test_what_cannot_be_is_refused_with_what_there_is(asked, words, tmp_path):
    """A fraction of a processor without control groups, too many, not there, too little."""
    told, affinity, _ = applied(asked, tmp_path)

    assert words in told["refused"]
    assert affinity == sorted(os.sched_getaffinity(0))


@pytest.mark.process
@needs_affinity
def test_a_class_of_cores_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    """Every machine can name processors by number."""
    told, _, _ = applied('{"cores": "tiny"}', tmp_path)

    assert "no such class of cores" in told["refused"]
    assert "cores=" in told["refused"]


@pytest.mark.process
@needs_affinity
def test_a_class_of_cores_binds_to_its_processors(tmp_path):
    """Capacities as ARM kernels tell them: two classes, of processors that this machine may have or not."""
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        pytest.skip("this process may use one processor only")
    for cpu, capacity in ((allowed[0], "446"), (allowed[1], "1024")):
        put(tmp_path / f"sys/devices/system/cpu/cpu{cpu}", cpu_capacity=capacity)
    put(tmp_path / "sys/devices/system/cpu", present=f"{allowed[0]}-{allowed[1]}", online=f"{allowed[0]}-{allowed[1]}")
    told, affinity, _ = applied('{"cores": "big"}', tmp_path)

    assert (told, affinity) == ({"cores": f"affinity, processors {allowed[1]}"}, [allowed[1]])


@pytest.mark.process
@needs_affinity
def test_threads_that_run_already_are_bound_too():
    """Libraries start some at import."""
    code = (
        "import os, threading\n"
        "from profiler.measure import conditions\n"
        "done = threading.Event()\n"
        "thread = threading.Thread(target=done.wait)\n"
        "thread.start()\n"
        "first = min(os.sched_getaffinity(0))\n"
        "conditions.set_affinity([first])\n"
        "print([os.sched_getaffinity(int(name)) == {first} for name in os.listdir('/proc/self/task')])\n"
        "done.set()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[True, True]"


# What is done when a process has ended.


def until(what, seconds: float = 30.0) -> bool:
    """Waits for something that another process does; the time is a limit and no measure."""
    end = time.monotonic() + seconds
    while not what() and time.monotonic() < end:
        time.sleep(0.02)
    return bool(what())


@pytest.mark.process
@pytest.mark.parametrize("end", ["os._exit(0)", "os.kill(os.getpid(), 9)"])
def test_a_script_runs_after_any_end(end, tmp_path):
    """Also after a SIGKILL; the words arrive as they are."""
    code = (
        "import os, sys; from profiler.measure.afterwards import run_afterwards\n"
        'run_afterwards(\'printf %s "$1" > "$2"\', sys.argv[1], sys.argv[2])\n'
        "assert not os.path.exists(sys.argv[2])\n" + end
    )
    out, word = tmp_path / "out file", "a 'word' $(true) \"of\" shells"
    # Its pipes would stay open if the script held them.
    subprocess.run([sys.executable, "-c", code, word, str(out)], capture_output=True, timeout=60, check=False)

    assert until(out.exists)
    assert until(lambda: out.read_text() == word)


def test_a_script_runs_when_its_pipe_is_closed(tmp_path):
    """And not before."""
    out = tmp_path / "out"
    writer = afterwards.run_afterwards('echo done > "$1"', str(out))
    assert not out.exists()
    os.close(writer)

    assert until(out.exists)


# Power modes.

ORIN_NANO = """
# comment < POWER_MODEL ID=9 NAME=COMMENTED >
< PARAM TYPE=FILE NAME=CPU_ONLINE >
CORE_0 /sys/devices/system/cpu/cpu0/online
< POWER_MODEL ID=0 NAME=15W >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=1 NAME=25W >
< POWER_MODEL ID=2 NAME=MAXN_SUPER >
< PM_CONFIG DEFAULT=1 >
"""
XAVIER_NX = {0: "MODE_15W_2CORE", 1: "MODE_15W_4CORE", 3: "MODE_10W_2CORE", 8: "MODE_20W_6CORE"}


def test_the_catalogue_is_read():
    """As /etc/nvpmodel.conf of an Orin Nano Super has it; comments are none."""
    assert catalogue(ORIN_NANO) == {0: "15W", 1: "25W", 2: "MAXN_SUPER"}
    assert catalogue("anything") == {}


@pytest.mark.parametrize(
    ("asked", "modes", "number"),
    [
        ("15W", catalogue(ORIN_NANO), 0),
        ("maxn_super", catalogue(ORIN_NANO), 2),
        ("2", catalogue(ORIN_NANO), 2),
        ("MAXN", catalogue(ORIN_NANO), 2),
        ("30W", {0: "MAXN", 2: "MODE_30W"}, 2),
        ("20W", XAVIER_NX, 8),
    ],
)
def test_a_mode_is_found_by_name_watts_or_number(asked, modes, number):
    """Boards write 15W, MODE_15W and MODE_15W_2CORE for the same."""
    assert find(asked, modes) == number


@pytest.mark.parametrize(("asked", "words"), [("15W", "fits several"), ("40W", "none of"), ("7", "none of")])
def test_a_mode_that_is_not_one_is_refused_with_all_of_them(asked, words):
    """Ambiguous watts too: which cores run is another mode."""
    with pytest.raises(NoPowerMode, match=f"{words}.*0=MODE_15W_2CORE, 1=MODE_15W_4CORE"):
        find(asked, XAVIER_NX)


NVPMODEL = """#!/bin/sh
# As the vendor's: remembers its mode, asks before a reboot.
here=$(dirname "$0")
names() { sed -n "s/^< POWER_MODEL ID=$1 NAME=\\([^ ]*\\) >/\\1/p" "$here/../etc/nvpmodel.conf"; }
case "$1" in
  -q) mode=$(cat "$here/mode"); echo "NVPM WARN: fan mode is not set!"; echo "NV Power Mode: $(names "$mode")"; echo "$mode" ;;
  -m)
    echo "$2" >> "$here/calls"
    if [ -e "$here/reboot" ]; then
      echo "NVPM WARN: Golden image context is already created"
      echo "NVPM WARN: Reboot required for changing to this power mode: $2"
      echo "NVPM WARN: DO YOU WANT TO REBOOT NOW? enter YES/yes to confirm:"
      read -r answer
      [ "$answer" = yes ] && touch "$here/rebooted"
      echo "NVPM ERROR: optMask is 1, no request for power mode"
      exit 255
    fi
    [ -e "$here/deaf" ] || echo "$2" > "$here/mode" ;;
esac
"""
SUDO = """#!/bin/sh
here=$(dirname "$0")
[ -e "$here/locked" ] && { echo "sudo: a password is required"; exit 1; }
[ "$1" = -n ] && shift && echo sudo >> "$here/calls" && exec "$@"
"""


@pytest.fixture
def jetson(tmp_path):
    """A machine with the catalogue of an Orin Nano in mode 1, a fake nvpmodel and sudo."""
    put(tmp_path / "etc", nvpmodel__conf=ORIN_NANO)
    folder = put(tmp_path / "bin", mode="1", nvpmodel=NVPMODEL, sudo=SUDO)
    for name in ("nvpmodel", "sudo"):
        (folder / name).chmod(0o755)
    return tmp_path


def modes_of(root: Path, *, is_root: bool = True, **others) -> PowerModes:
    return PowerModes(
        root, which=lambda name: str(root / "bin" / name) if (root / "bin" / name).exists() else None,
        is_root=lambda: is_root, marker=root / "cache/mark", sleep=lambda seconds: None, **others,
    )  # fmt: skip


def mode_of(root: Path) -> str:
    return (root / "bin/mode").read_text().strip()


@pytest.mark.process
def test_a_mode_is_set_and_restored(jetson):
    """Two in a row: what comes back is the mode from before the first."""
    modes = modes_of(jetson)
    assert modes.set("15W") == "15W (mode 0)"
    assert mode_of(jetson) == "0"
    assert modes.set("MAXN_SUPER") == "MAXN_SUPER (mode 2)"
    assert modes.verify("2") == "MAXN_SUPER (mode 2)"
    modes.restore()

    assert mode_of(jetson) == "1"
    assert (jetson / "cache/mark").read_text() == ""


@pytest.mark.process
def test_the_mode_that_is_set_already_is_not_set_again(jetson):
    """And nothing has to be restored."""
    modes = modes_of(jetson)
    modes.set("25W")
    modes.restore()

    assert not (jetson / "bin/calls").exists()


@pytest.mark.process
def test_without_root_it_goes_through_sudo(jetson):
    """Which is never allowed to ask."""
    modes = modes_of(jetson, is_root=False)
    modes.set("15W")
    assert (jetson / "bin/calls").read_text().split() == ["sudo", "0"]
    (jetson / "bin/locked").touch()
    with pytest.raises(NoPowerMode, match=r"needs root.*NOPASSWD: .*/nvpmodel`?\)"):
        modes.set("MAXN_SUPER")
    (jetson / "bin/locked").unlink()
    modes.restore()

    assert mode_of(jetson) == "1"


@pytest.mark.process
def test_a_mode_that_needs_a_reboot_is_refused(jetson):
    """The question is answered with no."""
    (jetson / "bin/reboot").touch()
    with pytest.raises(NoPowerMode, match=r"needs a reboot.*sudo nvpmodel -m 0"):
        modes_of(jetson).set("15W")

    assert (mode_of(jetson), (jetson / "bin/rebooted").exists()) == ("1", False)


@pytest.mark.process
def test_a_mode_that_was_not_taken_is_noticed(jetson):
    """nvpmodel's exit code says nothing."""
    (jetson / "bin/deaf").touch()
    with pytest.raises(NoPowerMode, match=r"15W \(mode 0\) was not taken.*the mode is 25W \(mode 1\)"):
        modes_of(jetson).set("15W")


@pytest.mark.process
def test_verifying_changes_nothing(jetson):
    """A measured worker only looks; another mode than the asked one is refused."""
    with pytest.raises(NoPowerMode, match=r"should be 15W \(mode 0\), but it is 25W \(mode 1\)"):
        modes_of(jetson).verify("15W")
    assert modes_of(jetson).check("15W") == "15W (mode 0)"

    assert not (jetson / "bin/calls").exists()
    assert not (jetson / "cache").exists()


def test_the_status_file_tells_where_nvpmodel_does_not(tmp_path):
    """`pmode:0002`, as the vendor's tool leaves it."""
    put(tmp_path / "var/lib/nvpmodel", status="pmode:0002 fmode:quiet")

    assert modes_of(tmp_path).current() == 2


def test_another_machine_has_none(tmp_path):
    """Told as such."""
    with pytest.raises(NoPowerMode, match="only NVIDIA Jetson"):
        modes_of(tmp_path).check("15W")


def test_a_hanging_nvpmodel_is_told(jetson):
    """The desktop's indicator can hold it."""

    def hang(command):
        if "-m" in command:
            raise subprocess.TimeoutExpired(command, 60)
        return power_mode.run(command)

    with pytest.raises(NoPowerMode, match="nvpmodel_indicator"):
        modes_of(jetson, run=hang, afterwards=lambda *words, pass_fds: 0).set("15W")


HOLD = """
import os, sys
from pathlib import Path
from profiler.measure.power_mode import PowerModes
root = Path(sys.argv[1])
modes = PowerModes(root, which=lambda name: str(root / "bin" / name), is_root=lambda: True, marker=root / "cache/mark")
modes.set("15W")
print("set", flush=True)
sys.stdin.read()
"""


@pytest.mark.process
def test_the_device_restores_its_mode_after_a_kill(jetson):
    """By itself, whoever held it and however that ended; the marker goes with it."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(jetson)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout.readline() == b"set\n"
        assert mode_of(jetson) == "0"
        with pytest.raises(NoPowerMode, match="another run holds"):
            modes_of(jetson).set("MAXN_SUPER")
        holder.kill()

    assert until(lambda: not (jetson / "cache/mark").exists())
    assert mode_of(jetson) == "1"


@pytest.mark.process
def test_after_a_reboot_in_the_middle_the_mode_from_before_comes_back(jetson):
    """The machine kept the mode and the marker, and lost whoever would have restored it."""
    put(jetson / "cache", mark="1")
    (jetson / "bin/mode").write_text("0")
    modes = modes_of(jetson)
    modes.set("MAXN_SUPER")
    modes.restore()

    assert mode_of(jetson) == "1"
