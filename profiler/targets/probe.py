"""Which device a target is, from what its agent tells: board, processor, GPUs, power, cloud; and the profile that fits.

`recognise` is pure: facts in, findings out. What a device tells is untrusted: texts are bounded, cleaned and matched, and what
does not look like what it should be is as if it were not told. What is not told is not guessed; `unsure` says what and why.

Sources: NVIDIA's JetPack archive (developer.nvidia.com/embedded/jetpack-archive) for the releases; SMBIOS (DSP0134, 7.4.1) for
chassis types; Linux' arch/arm64/include/asm/cputype.h for cores; the GPUs' names are those that `nvidia-smi` prints.
"""

from __future__ import annotations

import fnmatch
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends import cpu
from profiler.cost import detect, match
from profiler.measure import cores, power_mode, sensors
from profiler.targets import agent, config
from profiler.targets.remote import Agent

JETPACKS = {
    "38.2.1": "7.0", "38.2.0": "7.0",
    "36.5.0": "6.2.2", "36.4.7": "6.2.1", "36.4.4": "6.2.1", "36.4.3": "6.2", "36.4.0": "6.1", "36.3.0": "6.0",
    "36.2.0": "6.0 DP",
    "35.6.2": "5.1.5", "35.6.1": "5.1.5", "35.6.0": "5.1.4", "35.5.0": "5.1.3", "35.4.1": "5.1.2", "35.3.1": "5.1.1",
    "35.2.1": "5.1", "35.1.0": "5.0.2", "34.1.1": "5.0.1 DP", "34.1.0": "5.0 DP",
    "32.7.6": "4.6.6", "32.7.5": "4.6.5", "32.7.4": "4.6.4", "32.7.3": "4.6.3", "32.7.2": "4.6.2", "32.7.1": "4.6.1",
    "32.6.1": "4.6", "32.5.1": "4.5.1", "32.5.0": "4.5", "32.4.4": "4.4.1", "32.4.3": "4.4",
}  # fmt: skip
"""L4T release → JetPack. Only those that two public copies of NVIDIA's archive give alike."""
_JETPACK_MAJOR = {"32": "4", "34": "5", "35": "5", "36": "6", "38": "7"}
_PORTABLE = {"8", "9", "10", "11", "14", "30", "31", "32"}
_RACKED = {"17", "23", "25", "28", "29"}
_STANDING = {"3", "4", "5", "6", "7", "13", "15", "16", "24", "34", "35", "36"}
_ARM_CORES = {
    ("0x41", "0xd03"): "Cortex-A53", ("0x41", "0xd04"): "Cortex-A35", ("0x41", "0xd05"): "Cortex-A55",
    ("0x41", "0xd07"): "Cortex-A57", ("0x41", "0xd08"): "Cortex-A72", ("0x41", "0xd09"): "Cortex-A73",
    ("0x41", "0xd0a"): "Cortex-A75", ("0x41", "0xd0b"): "Cortex-A76", ("0x41", "0xd0c"): "Neoverse-N1",
    ("0x41", "0xd0d"): "Cortex-A77", ("0x41", "0xd40"): "Neoverse-V1", ("0x41", "0xd41"): "Cortex-A78",
    ("0x41", "0xd42"): "Cortex-A78AE", ("0x41", "0xd44"): "Cortex-X1", ("0x41", "0xd46"): "Cortex-A510",
    ("0x41", "0xd47"): "Cortex-A710", ("0x41", "0xd48"): "Cortex-X2", ("0x41", "0xd49"): "Neoverse-N2",
    ("0x41", "0xd4f"): "Neoverse-V2", ("0x4e", "0x003"): "NVIDIA Denver 2", ("0x4e", "0x004"): "NVIDIA Carmel",
}  # fmt: skip
"""(implementer, part) of `/proc/cpuinfo` → name."""
_CLOUD_TYPES = {
    "aws": re.compile(r"[a-z][a-z0-9-]{0,30}\.[a-z0-9-]{1,20}"),
    "azure": re.compile(r"(?:Standard|Basic)_[A-Za-z0-9_-]{1,40}"),
    "gcp": re.compile(r"[a-z][a-z0-9-]{1,40}"),
}
_PLACE = re.compile(r"[A-Za-z0-9-]{1,40}")
_VIRTUAL = {"QEMU", "Xen", "VMware, Inc.", "innotek GmbH", "Parallels Software International Inc."}
"""Hypervisors' names in DMI's `sys_vendor`: Arm kernels have no `hypervisor` flag."""
_PLACEHOLDERS = re.compile(
    r"to be filled|default string|system (?:product|manufacturer)|^o\.?e\.?m|not (?:specified|applicable)", re.I
)
_CPUINFO = "proc/cpuinfo"
_MOST_GPUS = 32
_MOST_FILES = 20_000
_PATTERNS = tuple(tuple(pattern.split("/")) for pattern in agent.PATTERNS)


@dataclass(frozen=True)
class FoundGpu:
    """One NVIDIA GPU as its driver names it. `device` is its profile; None with a `reason`."""

    name: str
    driver: str | None
    memory_bytes: int | None
    compute_capability: str | None
    device: str | None
    reason: str | None = None


@dataclass(frozen=True)
class Jetson:
    """What only a Jetson has."""

    module: str | None
    l4t: str | None
    jetpack: str | None
    """`6.2`; only the major version where the release is not in the table."""
    power_mode: int | None
    power_modes: Mapping[int, str]
    clocks_pinned: bool | None
    """Whether lowest and highest clock are the same for all online cores and the GPU, as `jetson_clocks` makes them."""


@dataclass(frozen=True)
class Found:
    """What is known of a machine. None and empty: not told."""

    kind: str
    """`jetson`, `raspberry-pi`, `board`, `laptop`, `desktop`, `server`, `cloud`, `virtual machine`, or `unknown`."""
    name: str
    """What its maker calls it, or its processor."""
    device: str | None
    """Profile of the machine, or of its GPU where only that one has a profile."""
    target: str | None
    """What prices it, as `--as` takes it: `aws:c7i.large`, `device:raspberry-pi-5-8gb`."""
    arch: str | None
    cpu: str | None
    isa: tuple[str, ...]
    physical_cores: int | None
    logical_cores: int | None
    core_classes: Mapping[str, tuple[int, ...]]
    memory_bytes: int | None
    governors: tuple[str, ...]
    on_battery: bool | None
    gpus: tuple[FoundGpu, ...] = ()
    jetson: Jetson | None = None
    throttled: sensors.PiThrottled | None = None
    place: str | None = None
    """Region or zone, as the cloud's metadata service tells it."""
    evidence: tuple[str, ...] = ()
    unsure: tuple[str, ...] = ()


def ask(spec: config.TargetSpec | None, *, metadata: bool = False) -> dict[str, Any]:
    """The facts of a target, of this machine for None. `metadata` also asks the cloud's own service, from the device.

    Raises TargetError and LinkLost.
    """
    if spec is None:
        home = str(Path(config.DEFAULT_FOLDER).expanduser())
        looked = agent.look(home, {}, b"")
        return {**looked, **agent.probe(home, {"metadata": _clouds(looked) if metadata else []}, b"")}
    with Agent(spec) as there:
        looked = there.ask("look")
        return {**looked, **there.ask("probe", metadata=_clouds(looked) if metadata else [])}


def recognise(facts: Mapping[str, Any]) -> Found:
    """What these facts say: `machine` and `files` as the agent's `look` sends them, `commands` and `metadata` as its `probe`."""
    files = _files(facts.get("files"))
    commands = _texts(facts.get("commands"), agent.QUESTIONS)
    with _planted(files) as root:
        # The readers of this very machine, so that a probe and a measurement cannot tell different things.
        isa = cpu.isa(root, system="Linux")
        supply = sensors.supply(root)
        throttled = sensors.pi_throttled(root, lambda words: _said(commands, words))
        gpu_clocks = sensors.jetson_gpu(root).values
    evidence: list[str] = []
    unsure: list[str] = []
    cloud, target, place = _cloud(files, facts.get("metadata"), evidence, unsure)
    virtual = cloud is not None or _is_virtual(files)
    kind = _kind(files, supply, cloud=cloud is not None, virtual=virtual)
    jetson = _jetson(files, gpu_clocks, unsure) if kind == "jetson" else None
    gpus = () if jetson else _gpus(files, commands)
    model = _processor(files.get(_CPUINFO, ""))
    counted = cores.physical_cores(files)
    board = detect.detect(files)
    device = None
    if board.target is not None and board.target.startswith("device:"):
        device, target = board.target.partition(":")[2], board.target
        evidence.append(board.evidence)
    elif kind in ("jetson", "raspberry-pi", "board", "unknown") or (cloud is not None and target is None):
        unsure.append(f"which device it is: {board.evidence}")
    elif not virtual and model is not None:
        fit = match.match_cpu(model, _sockets(files), counted)
        device, target = fit.device, f"device:{fit.device}" if fit.device else None
        (evidence if fit.device else unsure).append(fit.reason)
    elif virtual and cloud is None:
        unsure.append(
            "which machine is behind this virtual one: `edgeprof target add NAME --device ID` or --as in a run says it"
        )
    for gpu in gpus:
        unsure += [gpu.reason] if gpu.reason else []
    if device is None:
        device = match.same(gpu.device for gpu in gpus)
        evidence += [f"GPU '{gpus[0].name}'"] if device else []
    if isinstance(throttled, str) and kind == "raspberry-pi":
        unsure.append(f"whether it was throttled: {throttled}")
    return Found(
        kind=kind,
        name=_name(files) or model or "an unknown machine",
        device=device,
        target=target,
        arch=_ARCHITECTURES.get(str(facts.get("machine"))[:20].lower()),
        cpu=model,
        isa=isa,
        physical_cores=counted,
        logical_cores=len(_online(files)) or None,
        core_classes=cores.classes(files),
        memory_bytes=detect.memory_bytes(files),
        governors=_governors(files),
        on_battery=supply.on_battery,
        gpus=gpus,
        jetson=jetson,
        throttled=None if isinstance(throttled, str) else throttled,
        place=place,
        evidence=tuple(evidence),
        unsure=tuple(dict.fromkeys(unsure)),
    )


_ARCHITECTURES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "arm64", "arm64": "arm64"}


def _cloud(
    files: Mapping[str, str], answers: Any, evidence: list[str], unsure: list[str]
) -> tuple[str | None, str | None, str | None]:
    """The cloud, what it prices the machine as, and the place; what its metadata service tells goes before the firmware."""
    cloud, board = detect.cloud(files), detect.detect(files)
    told = answers if isinstance(answers, dict) else {}
    for name, pattern in _CLOUD_TYPES.items():
        answer = _texts(told.get(name), ("type", "place", "error"))
        kind, place = answer.get("type", ""), answer.get("place", "")
        if pattern.fullmatch(kind):
            place = place if _PLACE.fullmatch(place) else ""
            evidence.append(f"{name}'s metadata service: {kind}{f' in {place}' if place else ''}")
            return name, f"{name}:{kind}", place or None
        if answer and cloud in (None, name):
            said = answer.get("error") or f"it answered '{kind}'"
            unsure.append(f"{name}'s metadata service tells no type of machine: {sensors.clean(said)}")
    if cloud is not None and board.target is not None:
        evidence.append(board.evidence)
    return cloud, board.target if cloud is not None else None, None


def _clouds(looked: Mapping[str, Any]) -> list[str]:
    """Whose metadata service to ask: that of the cloud which the firmware names, all where it names none."""
    cloud = detect.cloud(_files(looked.get("files")))
    return list(_CLOUD_TYPES) if cloud is None else [cloud]


def _kind(files: Mapping[str, str], supply: sensors.Supply, *, cloud: bool, virtual: bool) -> str:
    model, compatible = files.get(detect.MODEL, ""), " ".join(detect.compatibles(files))
    if "Jetson" in model or "tegra" in compatible or "etc/nv_tegra_release" in files:
        return "jetson"
    if "Raspberry Pi" in model or "raspberrypi," in compatible:
        return "raspberry-pi"
    if cloud or virtual:
        return "cloud" if cloud else "virtual machine"
    chassis = files.get("sys/devices/virtual/dmi/id/chassis_type", "").strip()
    for kind, numbers in (("laptop", _PORTABLE), ("server", _RACKED), ("desktop", _STANDING)):
        if chassis in numbers:
            return kind
    if supply.charge_share is not None:
        return "laptop"
    return "board" if model or compatible else "unknown"


def _is_virtual(files: Mapping[str, str]) -> bool:
    flags = re.search(r"^flags[ \t]*:(.*)$", files.get(_CPUINFO, ""), re.MULTILINE)
    vendor = files.get("sys/devices/virtual/dmi/id/sys_vendor", "").strip()
    return (
        (flags is not None and "hypervisor" in flags[1].split())
        or vendor in _VIRTUAL
        or "dummy-virt" in files.get(detect.COMPATIBLE, "")
    )


def _name(files: Mapping[str, str]) -> str | None:
    model = sensors.clean(files.get(detect.MODEL, "").replace("\0", " "))
    words = [
        word
        for name in ("sys_vendor", "product_name")
        if (word := sensors.clean(files.get(f"sys/devices/virtual/dmi/id/{name}", "")))
        and not _PLACEHOLDERS.search(word)
    ]
    return model or " ".join(words) or None


def _processor(cpuinfo: str) -> str | None:
    """`model name`, or the kinds of Arm cores: `4 Cortex-A76`, `4 Cortex-A76 + 4 Cortex-A55`."""
    parts: Counter[str] = Counter()
    implementer = ""
    for line in cpuinfo.splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "model name" and value and not value.startswith("ARMv"):
            return sensors.clean(value)
        if key == "CPU implementer":
            implementer = value
        elif key == "CPU part":
            parts[_ARM_CORES.get((implementer, value), sensors.clean(f"Arm core {implementer}/{value}"))] += 1
    return sensors.clean(" + ".join(f"{number} {name}" for name, number in parts.most_common(4))) or None


def _online(files: Mapping[str, str]) -> tuple[int, ...]:
    return next(
        (found for name in ("online", "present") if (found := cores.cpu_list(files.get(f"{cores.CPU}/{name}", "")))), ()
    )


def _sockets(files: Mapping[str, str]) -> int | None:
    return len({text.strip() for path, text in files.items() if path.endswith("/topology/physical_package_id")}) or None


def _governors(files: Mapping[str, str]) -> tuple[str, ...]:
    found = {sensors.clean(text) for path, text in files.items() if path.endswith("/cpufreq/scaling_governor")}
    return tuple(sorted(found - {""}))[:8]


def _gpus(files: Mapping[str, str], commands: Mapping[str, str]) -> tuple[FoundGpu, ...]:
    """By `nvidia-smi`, or by the driver's files where a container has only those."""
    version = re.search(
        r"^NVRM version:.{0,120}?\s(\d{3}\.\d{1,3}(?:\.\d{1,3})?)\s", files.get("proc/driver/nvidia/version", "")
    )
    driver = version[1] if version else None
    told: list[tuple[str, str | None, int | None, str | None]] = []
    for line in commands.get("nvidia-smi", "").splitlines():
        fields = [sensors.clean(part) for part in line.split(",")]
        if len(fields) == 4:
            size = re.fullmatch(r"(\d{1,8}) MiB", fields[2])
            capability = fields[3] if re.fullmatch(r"\d{1,2}\.\d", fields[3]) else None
            told.append((fields[0], fields[1] or driver, int(size[1]) * 2**20 if size else None, capability))
    if not told:
        for path, text in files.items():
            model = (
                re.search(r"^Model:[ \t]{1,40}(\S.{0,80})$", text, re.MULTILINE)
                if path.endswith("/information")
                else None
            )
            told += [(sensors.clean(model[1]), driver, None, None)] if model else []
    found = []
    for name, release, size_bytes, capability in told[:_MOST_GPUS]:
        fit = match.match_gpu(name, size_bytes)
        found.append(FoundGpu(name, release, size_bytes, capability, fit.device, None if fit.device else fit.reason))
    return tuple(found)


def _jetson(files: Mapping[str, str], gpu_clocks: Mapping[str, float], unsure: list[str]) -> Jetson:
    release = re.match(
        r"# R(\d{2}) \(release\), REVISION: (\d{1,2}(?:\.\d{1,2})?)", files.get("etc/nv_tegra_release", "")
    )
    l4t = f"{release[1]}.{release[2]}" if release else None
    jetpack = JETPACKS.get(l4t or "") or (_JETPACK_MAJOR.get(release[1]) if release else None)
    if l4t is None:
        unsure.append("its Jetson Linux release: /etc/nv_tegra_release is not readable (containers do not see it)")
    elif l4t not in JETPACKS:
        unsure.append(f"the JetPack of Jetson Linux {l4t}: newer than this edgeprof's table")
    # Neither blank lines, which the pattern takes in one by one for each that follows, nor endless ones.
    listed = "\n".join(
        line for line in files.get("etc/nvpmodel.conf", "").splitlines() if line.strip() and len(line) <= 200
    )
    modes = {number: sensors.clean(name) for number, name in power_mode.catalogue(listed).items() if number < 10_000}
    status = re.match(r"pmode:\s?(\d{1,4})\b", files.get("var/lib/nvpmodel/status", ""))
    pinned = _pinned(files, gpu_clocks)
    if pinned is not None:
        unsure.append("whether the memory's clock is pinned: only root sees it")
    return Jetson(
        module=detect.jetson_module(files),
        l4t=l4t,
        jetpack=jetpack,
        power_mode=int(status[1]) if status else None,
        power_modes=dict(sorted(modes.items())[:64]),
        clocks_pinned=pinned,
    )


def _pinned(files: Mapping[str, str], gpu_clocks: Mapping[str, float]) -> bool | None:
    pairs = [
        tuple(
            sensors.number(files.get(f"{cores.CPU}/cpu{core}/cpufreq/scaling_{end}_freq", "")) for end in ("min", "max")
        )
        for core in _online(files)
    ]
    pairs.append((gpu_clocks.get("lowest_hz"), gpu_clocks.get("highest_hz")))
    known = [pair for pair in pairs if None not in pair]
    if any(low != high for low, high in known):
        return False
    return True if len(known) == len(pairs) > 1 else None


def _said(commands: Mapping[str, str], words: Sequence[str]) -> str:
    for name, question in agent.QUESTIONS.items():
        if tuple(words) == question and name in commands:
            return commands[name]
    raise OSError(f"`{words[0]}` is not there or may not be used")


def _texts(told: Any, names: Iterator[str] | Sequence[str] | Mapping[str, Any]) -> dict[str, str]:
    """The texts under these names, of what should be an object; nothing for anything else."""
    found = told if isinstance(told, dict) else {}
    return {name: found[name][: agent.MAX_FILE_BYTES] for name in names if isinstance(found.get(name), str)}


def _files(told: Any) -> dict[str, str]:
    """Those files that the agent is asked for."""
    found = told if isinstance(told, dict) else {}
    names = [name for name in list(found)[:_MOST_FILES] if isinstance(name, str) and _asked_for(name)]
    files = _texts(found, names)
    if len(files.get(_CPUINFO, "")) >= agent.MAX_FILE_BYTES:  # the account of one core is cut off
        files[_CPUINFO] = files[_CPUINFO].rpartition("\n\n")[0]
    return files


def _asked_for(name: str) -> bool:
    parts = name.split("/")
    if name in agent.FILES:
        return True
    # `*` and `?` of a pattern stand for a part of one name, never for a step up or to a hidden file.
    plain = (
        len(name) <= 200 and name.isascii() and name.isprintable() and not any(part[:1] in ("", ".") for part in parts)
    )
    return plain and any(
        len(parts) == len(pattern) and all(map(fnmatch.fnmatchcase, parts, pattern)) for pattern in _PATTERNS
    )


@contextmanager
def _planted(files: Mapping[str, str]) -> Iterator[Path]:
    """A root folder that holds these files."""
    with tempfile.TemporaryDirectory(prefix="edgeprof-probe-") as folder:
        root = Path(folder)
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text, encoding="utf-8", errors="replace")
        yield root
