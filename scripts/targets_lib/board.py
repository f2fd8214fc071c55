"""An emulated arm64 board: Debian's own arm64 packages under qemu, in namespaces of their own, that shows a Raspberry Pi's files.

Nothing on this machine changes: the kernel's table of foreign executables (binfmt_misc) is the namespace's own, which takes
Linux 6.7 or later. Without a /sys of ARM's kind OpenVINO crashes and ONNX Runtime reads the host's; so the board gets one, made
of the files that both read, as the kernel documents them (Documentation/ABI/testing/sysfs-devices-system-cpu).
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path

from scripts.targets_lib import packages
from scripts.targets_lib.packages import Missing, run

PACKAGES = (
    "python3.11", "python3.11-minimal", "libpython3.11-stdlib", "libc6", "libstdc++6", "libgcc-s1", "libgomp1", "coreutils",
    "dash",
)  # fmt: skip
MODEL = "Raspberry Pi 4 Model B Rev 1.2"
CORES = 4
_MIDR = 0x410FD083
"""Cortex-A72 r0p3, the Raspberry Pi 4's cores: implementer 0x41, part 0xd08, revision 3."""
_MEMINFO = "MemTotal: 3885396 kB\nMemFree: 2985400 kB\nMemAvailable: 3487680 kB\nBuffers: 52000 kB\nCached: 520000 kB\n"
"""What Linux leaves of the 4 GB board's memory."""
_FEATURES = "fp asimd evtstrm crc32 cpuid"
# ELF, 64 bit, little endian, AArch64; the mask lets the ABI's byte and shared objects pass. F: opened now, outside of the root.
_BINFMT = (
    r":qemu-aarch64:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00:"
    r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:"
)


class Board:
    """The board's root below the cache, and the script that runs a command on it."""

    def __init__(self, folder: Path) -> None:
        """Raises Missing for what cannot be had here. `folder` takes the script and the board's files, the home among them."""
        packages.needs("unshare", "chroot", "mount")
        self.folder, self.home = folder, folder / "home"
        emulator = packages.unpacked("qemu", ["qemu-user-static"]) / "usr" / "bin" / "qemu-aarch64-static"
        root = arm64_root()
        self.home.mkdir(parents=True)
        self._write_files()
        self.command = folder / "board"
        self.command.write_text(self._script(root, emulator))
        self.command.chmod(0o755)
        done = run([str(self.command), "python3", "-c", "import platform; print(platform.machine())"])
        if done.stdout.strip() != "aarch64":
            raise Missing(
                "no emulated arm64 process starts here; it takes Linux 6.7 or later and user namespaces: "
                f"{done.stderr.strip()[-300:]}"
            )

    def prefix(self, cpu: str) -> str:
        """What stands before the interpreter for a board with that processor, as qemu names them."""
        return shlex.join(["env", f"QEMU_CPU={cpu}", str(self.command)])

    def listing(self) -> list[str]:
        """Everything in the account's home."""
        return sorted(path.relative_to(self.home).as_posix() for path in self.home.rglob("*"))

    def _script(self, root: Path, emulator: Path) -> str:
        quoted = {name: shlex.quote(str(path)) for name, path in {"r": root, "f": self.folder, "q": emulator}.items()}
        r, f, q = quoted["r"], quoted["f"], quoted["q"]
        inside = "\n".join(
            [
                "set -e",
                "mount -t binfmt_misc none /proc/sys/fs/binfmt_misc",
                f"printf '%s' {shlex.quote(_BINFMT)}{q}:F > /proc/sys/fs/binfmt_misc/register",
                f"mount --bind {r} {r}",
                f"mount --rbind /proc {r}/proc",
                f"mount --bind {f}/cpuinfo {r}/proc/cpuinfo",
                f"mount --bind {f}/meminfo {r}/proc/meminfo",
                f"mount --bind {f}/sys {r}/sys",
                f"mount --rbind /dev {r}/dev",
                f"mount --bind {f}/home {r}/root",
                f"mount -t tmpfs none {r}/tmp",
                f'exec chroot {r} /usr/bin/env -i -C /root HOME=/root PATH=/usr/bin:/bin LANG=C.UTF-8 QEMU_CPU="$QEMU_CPU" "$@"',
            ]
        )
        # --kill-child: unshare itself waits outside and would leave the board running.
        spaces = "unshare --user --map-root-user --mount --pid --net --fork --kill-child --mount-proc"
        return (
            '#!/bin/sh\n: "${QEMU_CPU:=cortex-a72}"\nexport QEMU_CPU\n'
            f'exec {spaces} sh -c {shlex.quote(inside)} board "$@"\n'
        )

    def _write_files(self) -> None:
        cpu = "sys/devices/system/cpu"
        files: dict[str, str] = {"cpuinfo": _cpuinfo(), "meminfo": _MEMINFO}
        listed = f"0-{CORES - 1}\n"
        files |= {f"{cpu}/{name}": listed for name in ("possible", "present", "online")}
        files |= {"sys/devices/system/node/online": "0\n", "sys/devices/system/node/node0/cpulist": listed}
        for core in range(CORES):
            files |= _core(f"{cpu}/cpu{core}", core)
        files |= {
            "sys/firmware/devicetree/base/model": f"{MODEL}\0",
            "sys/firmware/devicetree/base/compatible": "raspberrypi,4-model-b\0brcm,bcm2711\0",
            "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
            "sys/class/thermal/thermal_zone0/temp": "48312\n",
        }
        for name, text in files.items():
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_text(text)


def arm64_root() -> Path:
    """An arm64 root with a Python, from the cache when it was made before. Raises Missing."""
    place = packages.CACHE / "arm64"
    if (place / ".complete").is_file():
        return place
    packages.needs("apt-get", "dpkg")
    state, fresh = packages.CACHE / f".apt.{os.getpid()}", packages.CACHE / f".arm64.{os.getpid()}"
    try:
        for name in ("lists/partial", "cache/archives/partial"):
            (state / name).mkdir(parents=True)
        # An empty list of what is installed: the resolver then names everything that the packages need.
        (state / "status").touch()
        settings = {
            "APT::Architecture": "arm64", "APT::Architectures": "arm64", "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "root" if os.getuid() == 0 else "", "Debug::NoLocking": "1", "Dir::Cache": state / "cache",
            "Dir::State": state, "Dir::State::Lists": state / "lists", "Dir::State::status": state / "status",
        }  # fmt: skip
        options = [f"-o{key}={value}" for key, value in settings.items()]
        # A list of packages that has no arm64 part is no matter, as long as the wanted ones are in another.
        run(["apt-get", *options, "-qq", "update"])
        done = run(["apt-get", *options, "-qq", "-y", "--download-only", "install", *PACKAGES])
        if done.returncode:
            raise Missing(f"apt-get has no arm64 packages here: {done.stderr.strip()[-300:]}")
        packages.unpack(sorted((state / "cache" / "archives").glob("*.deb")), fresh)
        (fresh / "usr" / "bin" / "python3").unlink(missing_ok=True)
        (fresh / "usr" / "bin" / "python3").symlink_to("python3.11")
        for name in ("tmp", "proc", "sys", "dev", "root"):
            (fresh / name).mkdir(exist_ok=True)
        packages.publish(fresh, place)
    finally:
        shutil.rmtree(state, ignore_errors=True)
        shutil.rmtree(fresh, ignore_errors=True)
    return place


def _cpuinfo() -> str:
    core = (
        f"BogoMIPS\t: 108.00\nFeatures\t: {_FEATURES}\nCPU implementer\t: 0x{_MIDR >> 24:02x}\nCPU architecture: 8\n"
        f"CPU variant\t: 0x{_MIDR >> 20 & 0xF:x}\nCPU part\t: 0x{_MIDR >> 4 & 0xFFF:03x}\nCPU revision\t: {_MIDR & 0xF}\n\n"
    )
    cores = "".join(f"processor\t: {index}\n{core}" for index in range(CORES))
    return f"{cores}Hardware\t: BCM2835\nRevision\t: c03112\nModel\t\t: {MODEL}\n"


def _core(folder: str, core: int) -> Mapping[str, str]:
    everyone, alone = f"{(1 << CORES) - 1:x}\n", f"{1 << core:x}\n"
    files = {
        "topology/core_id": f"{core}\n", "topology/cluster_id": "0\n", "topology/physical_package_id": "0\n",
        "topology/core_siblings": everyone, "topology/core_siblings_list": f"0-{CORES - 1}\n",
        "topology/package_cpus_list": f"0-{CORES - 1}\n", "topology/thread_siblings": alone,
        "topology/thread_siblings_list": f"{core}\n", "regs/identification/midr_el1": f"0x{_MIDR:016x}\n",
        "cpufreq/scaling_governor": "ondemand\n", "cpufreq/cpuinfo_max_freq": "1500000\n", "cpufreq/cpuinfo_min_freq": "600000\n",
        "cpufreq/scaling_cur_freq": "1500000\n", "online": "1\n",
    }  # fmt: skip
    # Of the Cortex-A72 in the BCM2711: 32 kB of data, 48 kB of code, 1 MB shared.
    caches = (("Data", 1, 32, 2, False), ("Instruction", 1, 48, 3, False), ("Unified", 2, 1024, 16, True))
    for index, (kind, level, kilobytes, ways, shared) in enumerate(caches):
        sets = kilobytes * 1024 // (64 * ways)
        entries = {
            "type": kind, "level": level, "size": f"{kilobytes}K", "ways_of_associativity": ways, "coherency_line_size": 64,
            "number_of_sets": sets, "shared_cpu_list": f"0-{CORES - 1}" if shared else core,
            "shared_cpu_map": (everyone if shared else alone).strip(),
        }  # fmt: skip
        files |= {f"cache/index{index}/{name}": f"{value}\n" for name, value in entries.items()}
    return {f"{folder}/{name}": text for name, text in files.items()}
