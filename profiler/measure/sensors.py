"""What a machine's sensors tell: temperatures, clocks, throttling, power supply, and the GPUs' own account.

Everything is read below `root`, so that a tree of small files stands for any machine; commands and NVML come in as
arguments. Absence is a normal answer: a reading holds the values there are and, for those that are not, reasons. A file
may hold anything at all (firmware writes these); what is no plausible reading is absent and never an exception.

Sources: the kernel's sysfs-class-thermal, sysfs-class-hwmon, sysfs-class-power and sysfs-devices-system-cpu in
Documentation/ABI; admin-guide/thermal/intel_thermal_throttle; Raspberry Pi documentation, "vcgencmd get_throttled"; NVIDIA's
Jetson developer guide, "Power and performance", and its NVML reference.
"""

from __future__ import annotations

import errno
import functools
import math
import os
import subprocess
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Run = Callable[[Sequence[str]], str]
"""Runs a command and gives its stdout; OSError when it is not there, fails or hangs."""

Nvml = Callable[[], Any]
"""Gives the initialised `pynvml` module; raises an exception whose text says why there is none."""

_POWERED_DOWN_C = -256.0
"""What Tegra's driver gives for a block that is off."""
_LOWEST_C, _HIGHEST_C = -60.0, 200.0
_LOWEST_HZ, _HIGHEST_HZ = 1e6, 2e10
_LARGEST_FILE = 4096


@dataclass(frozen=True)
class Reading:
    """Values by name, and for what could not be read one sentence each."""

    values: Mapping[str, float] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()


def text(path: Path | str, limit: int = _LARGEST_FILE) -> str | None:
    """The beginning of a small file, stripped; None when it cannot be read. Never waits, not even for a pipe."""
    try:
        return raw(path, limit)
    except OSError:
        return None


def raw(path: Path | str, limit: int = _LARGEST_FILE) -> str:
    """Like `text`, but raises the OSError. Three system calls, about 5 µs: a quarter of what `Path.read_text` takes."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except ValueError as error:  # a null byte in a name
        raise OSError(errno.EINVAL, str(error)) from None
    try:
        return os.read(descriptor, limit).decode("utf-8", "replace").strip()
    finally:
        os.close(descriptor)


def word(path: Path | str) -> str | None:
    """A name or setting from a file: one line of at most 80 printable characters, None when there is none."""
    return clean(text(path, 256) or "") or None


def clean(value: str) -> str:
    """One line of at most 80 printable characters: what a foreign file says must not steer a terminal."""
    kept = " ".join("".join(char if char.isprintable() else " " for char in value).split())
    return kept if len(kept) <= 80 else kept[:79] + "…"


def number(value: str | None) -> float | None:
    """A decimal number that is finite and fits in 64 bits; None for anything else."""
    try:
        found = float(value) if value is not None and len(value) <= 40 and "_" not in value else math.nan
    except ValueError:
        return None
    return found if abs(found) < 2.0**64 else None


def count(value: str | None) -> float | None:
    """A number that counts something: not negative."""
    found = number(value)
    return found if found is not None and found >= 0 else None


def listing(folder: Path) -> list[Path]:
    """What a folder holds, by name, numbers in their order; empty when it cannot be listed."""
    try:
        return sorted(folder.iterdir(), key=lambda path: (len(path.name), path.name))
    except (OSError, ValueError):
        return []


def run_command(command: Sequence[str], timeout_s: float = 2.0) -> str:
    """Run it for real."""
    try:
        done = subprocess.run(
            list(command), stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=timeout_s,
            check=True,
        )  # fmt: skip
    except subprocess.SubprocessError as error:
        raise OSError(errno.EIO, f"`{' '.join(command)}` failed: {error}") from None
    return done.stdout


@functools.lru_cache(maxsize=1)
def open_nvml() -> Any:
    """`pynvml`, initialised once for this process."""
    import pynvml

    pynvml.nvmlInit()
    return pynvml


# Temperatures ---------------------------------------------------------------------------------------------------------


def temperatures(root: Path = Path("/")) -> Reading:
    """Every temperature in °C, by the kernel's name for it: `cpu-thermal`, `x86_pkg_temp`, `coretemp Package id 0`, …

    Thermal zones first, then hwmon; a second sensor of one name gets its number. Slow on some machines (milliseconds a
    sensor where it sits behind firmware or a bus): not inside measurements.
    """
    values: dict[str, float] = {}
    reasons: list[str] = []
    sensors = [*_zones(root), *_hwmon(root)]
    if not sensors:
        return Reading({}, ("no temperature: neither /sys/class/thermal nor /sys/class/hwmon has a sensor",))
    for name, path in sensors:
        found = celsius(path)
        if isinstance(found, str):
            reasons.append(f"{name}: {found}")
        else:
            values[_unused(name, values)] = found
    return Reading(values, tuple(reasons))


def celsius(path: Path | str) -> float | str:
    """The millidegrees in a file as °C, or why they are no temperature."""
    try:
        content = raw(path, 64)
    except OSError as error:
        # Sensors of powered-down blocks answer EAGAIN or EIO instead of a number.
        return f"cannot be read ({errno.errorcode.get(error.errno or 0, type(error).__name__)})"
    found = number(content)
    if found is None:
        return "holds no number"
    if found in (_POWERED_DOWN_C, _POWERED_DOWN_C * 1000):
        return "powered down"
    # Some old drivers give whole degrees; less than one degree either way is a stuck register.
    degrees = found if 1 <= found < _HIGHEST_C else found / 1000 if abs(found) >= 1000 else 0.0
    return degrees if degrees and _LOWEST_C < degrees < _HIGHEST_C else f"holds no plausible temperature ({found:g})"


def _zones(root: Path) -> Iterable[tuple[str, Path]]:
    for zone in listing(root / "sys/class/thermal"):
        if zone.name.startswith("thermal_zone"):
            yield word(zone / "type") or zone.name, zone / "temp"


def _hwmon(root: Path) -> Iterable[tuple[str, Path]]:
    for chip in listing(root / "sys/class/hwmon"):
        name = word(chip / "name") or chip.name
        for file in listing(chip):
            if file.name.startswith("temp") and file.name.endswith("_input"):
                label = word(chip / file.name.replace("_input", "_label"))
                yield f"{name} {label or file.name[:-6]}", file


def processor_sensors(root: Path = Path("/")) -> tuple[str, ...]:
    """Paths of the temperatures that say how warm the processor is, at most four, in registers that are quick to read.

    ACPI zones, disks and wireless cards are left out: reading them takes milliseconds and disturbs.
    """
    wanted = ("x86_pkg_temp", "cpu", "tj", "gpu", "soc", "bcm2835_thermal")
    zones = {path: name.lower() for name, path in _zones(root)}
    ranked = [str(path) for want in wanted for path, name in zones.items() if name.startswith(want)]
    if not ranked:
        chips = ("coretemp", "k10temp", "zenpower", "cpu_thermal")
        ranked = [str(path) for name, path in _hwmon(root) if name.startswith(chips)]
    return tuple(dict.fromkeys(ranked))[:4]


def _unused(name: str, taken: Mapping[str, float]) -> str:
    following = (f"{name} {index}" for index in range(2, len(taken) + 3))
    return name if name not in taken else next(new for new in following if new not in taken)


# Clocks ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CoreClass:
    """Cores of one kind (big or little, performance or efficiency) and their clocks in Hz."""

    cores: tuple[int, ...]
    now_hz: float | None
    """Mean over the cores that tell."""
    highest_hz: float | None
    """What the hardware can do at best (`cpuinfo_max_freq`)."""


def clocks(root: Path = Path("/")) -> tuple[tuple[CoreClass, ...], tuple[str, ...]]:
    """Clocks by class of core, fastest first, and why those that are missing are missing.

    Cores belong to one class when their highest clocks are within 15 %: favoured cores of one kind differ by less.
    """
    folders = cpus(root)
    if not folders:
        return (), ("no clock: /sys/devices/system/cpu lists no cores",)
    known = [(highest_hz(root, core), clock_hz(root, core), core) for core in folders]
    if all(highest is None and now is None for highest, now, _ in known):
        return (), ("no clock: the kernel offers no cpufreq here (usual in virtual machines)",)
    classes: list[list[tuple[float | None, float | None, int]]] = []
    for item in sorted(known, key=lambda item: (-(item[0] or 0.0), item[2])):
        first = classes[-1][0][0] if classes else None
        same = bool(classes) and (item[0] == first or (item[0] and first and item[0] > first / 1.15))
        if same:
            classes[-1].append(item)
        else:
            classes.append([item])
    result = []
    for members in classes:
        now = [hz for _, hz, _ in members if hz is not None]
        result.append(
            CoreClass(
                tuple(sorted(core for _, _, core in members)), sum(now) / len(now) if now else None, members[0][0]
            )
        )
    silent = [str(core) for highest, now, core in known if now is None]
    return tuple(result), ((f"cores {', '.join(silent)[:60]} tell no clock",) if silent else ())


def cpus(root: Path = Path("/")) -> list[int]:
    """Numbers of the cores that the kernel lists."""
    names = (folder.name for folder in listing(root / "sys/devices/system/cpu"))
    return [int(name[3:]) for name in names if name.startswith("cpu") and name[3:].isdecimal() and len(name) < 9]


def clock_hz(root: Path, core: int) -> float | None:
    """The clock of one core now: measured by the hardware where it tells (`cpuinfo_avg_freq`), else as the driver set it."""
    folder = f"{root}/sys/devices/system/cpu/cpu{core}/cpufreq"
    for name in ("cpuinfo_avg_freq", "scaling_cur_freq"):
        hz = hertz(f"{folder}/{name}")
        if hz is not None:
            return hz
    return None


def highest_hz(root: Path, core: int) -> float | None:
    """The highest clock of one core by its hardware."""
    return hertz(f"{root}/sys/devices/system/cpu/cpu{core}/cpufreq/cpuinfo_max_freq")


def hertz(path: Path | str) -> float | None:
    """The kilohertz in a file as Hz; None for what is no clock."""
    found = number(text(path, 64))
    return found * 1000 if found is not None and _LOWEST_HZ <= found * 1000 <= _HIGHEST_HZ else None


# Throttling -----------------------------------------------------------------------------------------------------------


def throttle_counts(root: Path = Path("/"), cores: Iterable[int] | None = None) -> Reading:
    """How often the processor was throttled for heat since boot: `core` (sum over cores), `package` (sum over packages)."""
    values: dict[str, float] = {}
    packages: dict[str, float] = {}
    for core in cpus(root) if cores is None else cores:
        folder = f"{root}/sys/devices/system/cpu/cpu{core}"
        own = count(text(f"{folder}/thermal_throttle/core_throttle_count", 64))
        if own is not None:
            values["core"] = values.get("core", 0.0) + own
        package = count(text(f"{folder}/thermal_throttle/package_throttle_count", 64))
        if package is not None:
            # Every core of a package shows the package's one counter.
            packages[text(f"{folder}/topology/physical_package_id", 64) or "0"] = package
    if packages:
        values["package"] = sum(packages.values())
    return Reading(
        values, () if values else ("no throttle counts: only Intel processors outside virtual machines have them",)
    )


PI_BITS = ("under-voltage", "clock capped", "throttled", "soft temperature limit")
"""Bits 0 to 3 of `get_throttled`; 16 to 19 say the same of any time since boot."""


@dataclass(frozen=True)
class PiThrottled:
    """The firmware's account on a Raspberry Pi."""

    bits: int

    @property
    def now(self) -> tuple[str, ...]:
        """What holds at this moment."""
        return tuple(name for bit, name in enumerate(PI_BITS) if self.bits >> bit & 1)

    @property
    def since_boot(self) -> tuple[str, ...]:
        """What held at some time since boot; it stays set until the next boot."""
        return tuple(name for bit, name in enumerate(PI_BITS) if self.bits >> (16 + bit) & 1)


def is_raspberry_pi(root: Path = Path("/")) -> bool:
    """By the device tree's model."""
    return "Raspberry Pi" in (text(root / "proc/device-tree/model") or "")


def pi_throttled(root: Path = Path("/"), run: Run = run_command) -> PiThrottled | str:
    """The `get_throttled` bits of a Raspberry Pi, or why there are none. The file costs nothing; the command some ms."""
    if not is_raspberry_pi(root):
        return "no Raspberry Pi"
    platform = root / "sys/devices/platform"
    for soc in listing(platform):
        if soc.name.startswith("soc"):
            for folder in listing(soc):
                if "firmware" in folder.name:
                    bits = _hexadecimal(text(folder / "get_throttled", 64))
                    if bits is not None:
                        return PiThrottled(bits)
    try:
        answer = run(("vcgencmd", "get_throttled"))
    except OSError as error:
        return f"`vcgencmd get_throttled` cannot be run: {clean(error.strerror or str(error))}"
    bits = _hexadecimal(answer.strip().removeprefix("throttled="))
    return PiThrottled(bits) if bits is not None else f"`vcgencmd get_throttled` answered '{clean(answer)}'"


def _hexadecimal(value: str | None) -> int | None:
    try:
        return int(value, 16) if value and len(value) <= 18 and not value.startswith("-") else None
    except ValueError:
        return None


# Power ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Supply:
    """Where the power comes from. `on_battery` is None where the machine does not tell."""

    on_battery: bool | None
    charge_share: float | None
    reason: str | None = None


def supply(root: Path = Path("/")) -> Supply:
    """Mains or battery. Batteries of mice and headsets (`scope` Device) do not count."""
    mains: list[bool] = []
    discharging: list[bool] = []
    charges: list[float] = []
    for source in listing(root / "sys/class/power_supply"):
        kind = word(source / "type")
        if word(source / "scope") == "Device" or kind is None:
            continue
        if kind == "Battery":
            status = word(source / "status")
            discharging += [status == "Discharging"] if status in _BATTERY_STATES else []
            charge = count(text(source / "capacity", 64))
            charges += [charge / 100] if charge is not None and charge <= 100 else []
        else:
            online = number(text(source / "online", 64))
            mains += [online != 0] if online in (0, 1, 2) else []
    charge = min(charges, default=None)
    if any(discharging):
        return Supply(True, charge)
    if any(mains) or discharging:
        return Supply(False, charge)
    if mains and charges:  # every plug is out and the battery does not tell its state
        return Supply(True, charge)
    return Supply(None, charge, "neither a mains adapter nor a battery is listed in /sys/class/power_supply")


_BATTERY_STATES = ("Charging", "Discharging", "Not charging", "Full")


# GPUs -----------------------------------------------------------------------------------------------------------------


def jetson_gpu(root: Path = Path("/")) -> Reading:
    """The GPU of an NVIDIA Jetson: `clock_hz`, `lowest_hz`, `highest_hz`, `load_share`; empty elsewhere."""
    for device in listing(root / "sys/class/devfreq"):
        if not device.name.endswith((".gpu", ".gv11b", ".gp10b", ".ga10b", ".gm20b")) and device.name != "gpu-gpc-0":
            continue
        values = {}
        for name, file in (("clock_hz", "cur_freq"), ("lowest_hz", "min_freq"), ("highest_hz", "max_freq")):
            hz = number(text(device / file, 64))
            if hz is not None and _LOWEST_HZ <= hz <= _HIGHEST_HZ:
                values[name] = hz
        load = count(text(device / "device/load", 64))
        if load is not None and load <= 1000:
            values["load_share"] = load / 1000
        return Reading(values, tuple(f"{name}: not told" for name in ("clock_hz", "load_share") if name not in values))
    return Reading({}, ("no Jetson GPU in /sys/class/devfreq",))


HARMFUL_REASONS = {
    "SwPowerCap": "power limit",
    "HwSlowdown": "hardware slowdown",
    "SwThermalSlowdown": "heat (driver)",
    "HwThermalSlowdown": "heat (hardware)",
    "HwPowerBrakeSlowdown": "power brake",
}
"""NVML's clocks-event reasons that mean slower than asked; idle, set clocks and sync boost are not among them."""


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU now. What its driver does not tell is None."""

    name: str
    clock_hz: float | None
    highest_hz: float | None
    temperature_c: float | None
    throttled_by: tuple[str, ...] | None
    persistent: bool | None
    other_pids: tuple[int, ...] | None
    """Processes that compute on it besides ours. In a container only those that it shows."""


def nvidia(nvml: Nvml = open_nvml, own_pids: Collection[int] = ()) -> tuple[tuple[Gpu, ...], str | None]:
    """All NVIDIA GPUs, or none and why."""
    try:
        library = nvml()
        handles = [library.nvmlDeviceGetHandleByIndex(index) for index in range(library.nvmlDeviceGetCount())]
    except ImportError:
        return (), "nvidia-ml-py is not installed"
    except Exception as error:  # noqa: BLE001 (NVML's error class exists only where the library does)
        return (), f"NVML: {clean(str(error))}"
    ours = {os.getpid(), *own_pids}
    return tuple(_gpu(library, handle, ours) for handle in handles), None


def _gpu(library: Any, handle: Any, ours: Collection[int]) -> Gpu:
    def ask(call: str, *arguments: str) -> Any:
        """One question; a GPU, a MIG slice or an older driver may not answer it."""
        try:
            return getattr(library, call)(handle, *(getattr(library, name) for name in arguments))
        except Exception:  # noqa: BLE001 (as above)
            return None

    clock = number(str(ask("nvmlDeviceGetClockInfo", "NVML_CLOCK_SM")))
    highest = number(str(ask("nvmlDeviceGetMaxClockInfo", "NVML_CLOCK_SM")))
    mask = ask("nvmlDeviceGetCurrentClocksEventReasons")
    if mask is None:  # drivers before 535 know the older name only
        mask = ask("nvmlDeviceGetCurrentClocksThrottleReasons")
    degrees = number(str(ask("nvmlDeviceGetTemperature", "NVML_TEMPERATURE_GPU")))
    persistence = ask("nvmlDeviceGetPersistenceMode")
    processes = ask("nvmlDeviceGetComputeRunningProcesses")
    name = ask("nvmlDeviceGetName")
    return Gpu(
        name=clean(name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name or "NVIDIA GPU")),
        clock_hz=clock * 1e6 if clock else None,
        highest_hz=highest * 1e6 if highest else None,
        temperature_c=degrees if degrees is not None and _LOWEST_C < degrees < _HIGHEST_C else None,
        throttled_by=None if not isinstance(mask, int) else _reasons(library, mask),
        persistent=None if persistence is None else bool(persistence),
        other_pids=None if processes is None else tuple(sorted({p.pid for p in processes} - set(ours))),
    )


def _reasons(library: Any, mask: int) -> tuple[str, ...]:
    found = []
    for suffix, words in HARMFUL_REASONS.items():
        names = (f"nvmlClocksEventReason{suffix}", f"nvmlClocksThrottleReason{suffix}")
        bit = next((int(getattr(library, name)) for name in names if hasattr(library, name)), 0)
        if mask & bit:
            found.append(words)
    return tuple(found)
