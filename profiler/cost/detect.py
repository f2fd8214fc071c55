"""Which machine is this, as far as its own files tell: EC2 by DMI, Jetson and Raspberry Pi by device tree. No network.

The files come as texts by path (as a target's agent sends them) or lie below a root.

Firmware tables are read as untrusted text. What they don't tell is not guessed: the answer is None with the reason and
what to declare instead.

Sources: EC2 Nitro puts the instance type in DMI `product_name` (docs.aws.amazon.com/AWSEC2 "Detect whether a host is an
EC2 instance"); Azure's chassis asset tag is a constant (cloud-init, `ChassisAssetTag.AZURE_CLOUD`); Jetson part numbers
are NVIDIA's (L4T developer guide, "Supported modules"), as the device tree or, on carriers of other makers, the flash record
`nv_boot_control.conf` (L4T developer guide, "Bootloader": TNSPEC) names them; Raspberry Pi models are the kernel's names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from profiler.cost.devices import load_profiles

AZURE_CHASSIS_TAG = "7783-7084-3265-9085-8269-3286-77"
_EC2_TYPE = re.compile(r"[a-z][a-z0-9-]*\.(?:\d*x?large|metal(?:-\d+xl)?|nano|micro|small|medium)")
_MAX_READ = 4096
_DMI = "sys/devices/virtual/dmi/id"
_DMI_NAMES = ("sys_vendor", "board_vendor", "product_name", "board_asset_tag", "chassis_asset_tag")
MODEL = "proc/device-tree/model"
COMPATIBLE = "proc/device-tree/compatible"
FLASHED = "etc/nv_boot_control.conf"
MEMORY = "proc/meminfo"
FILES = (MODEL, COMPATIBLE, FLASHED, MEMORY, *(f"{_DMI}/{name}" for name in _DMI_NAMES))
"""What is looked at."""

_DECLARE = "declare it with --as"

JETSON_MODULES = {
    "p3767-0000": "jetson-orin-nx-16gb",
    "p3767-0003": "jetson-orin-nano-8gb",
    "p3767-0004": "jetson-orin-nano-4gb",
    "p3767-0005": "jetson-orin-nano-8gb",
    "p3701-0005": "jetson-agx-orin-64gb",
    "p2888-0003": "jetson-agx-xavier-32gb",
    "p2888-0004": "jetson-agx-xavier-32gb",
    "p3668-0000": "jetson-xavier-nx-8gb",
    "p3668-0001": "jetson-xavier-nx-8gb",
    "p3448-0000": "jetson-nano-4gb",
    "p3448-0002": "jetson-nano-4gb",
}
"""NVIDIA module part number → device profile."""
_MODULE_FAMILIES = ("p2180", "p2888", "p3310", "p3448", "p3489", "p3636", "p3668", "p3701", "p3767", "p3834")
"""Part numbers of modules, TX1 to Thor; the others in a device tree are those of carrier boards."""


@dataclass(frozen=True)
class DetectedMachine:
    """`target` as `--as` takes it (`aws:c7i.large`, `device:raspberry-pi-5-8gb`) or None; `evidence` says why."""

    target: str | None
    evidence: str


def detect_machine(root: Path = Path("/")) -> DetectedMachine:
    """Recognise the machine whose `/sys` and `/proc` lie under `root`. Never raises for what those files hold."""
    return detect({name: text for name in FILES if (text := _read(root / name))})


def detect(files: Mapping[str, str]) -> DetectedMachine:
    """The same from the texts of `FILES` by path; what is missing was not readable. Never raises for what they hold."""
    model = files.get(MODEL, "")[:_MAX_READ].replace("\0", "").strip()
    compatible = compatibles(files)
    if model or compatible:
        found = _board(files, model, compatible)
        if found is not None:
            return found
    return _cloud(_dmi(files), model)


def compatibles(files: Mapping[str, str]) -> list[str]:
    """The device tree's names for the machine, the most exact one first."""
    return [part for part in files.get(COMPATIBLE, "")[:_MAX_READ].split("\0") if part.strip()]


def jetson_module(files: Mapping[str, str]) -> str | None:
    """Part number of a Jetson's module, e.g. `p3767-0005`, by its device tree or by what it was flashed as."""
    parts = [number for part in compatibles(files) for number in re.findall(r"p\d{4}-\d{4}", part)]
    # TNSPEC 3767-300-0005-K.2-1-1-jetson-orin-nano-devkit-: board, version, SKU.
    flashed = re.search(r"^TNSPEC (\d{4})-[0-9A-Z]{0,4}-(\d{4})-", files.get(FLASHED, "")[:_MAX_READ], re.MULTILINE)
    parts += [f"p{flashed[1]}-{flashed[2]}"] if flashed else []
    return next((part for part in parts if part[:5] in _MODULE_FAMILIES), None)


def cloud(files: Mapping[str, str]) -> str | None:
    """The cloud whose firmware tables these are, `aws`, `azure` or `gcp`; None when they name none."""
    facts = _dmi(files)
    if "Amazon EC2" in (facts["sys_vendor"], facts["board_vendor"]):
        return "aws"
    if facts["sys_vendor"] == "Google" or facts["product_name"] == "Google Compute Engine":
        return "gcp"
    return "azure" if facts["chassis_asset_tag"] == AZURE_CHASSIS_TAG else None


def _dmi(files: Mapping[str, str]) -> dict[str, str]:
    return {name: files.get(f"{_DMI}/{name}", "")[:_MAX_READ].strip() for name in _DMI_NAMES}


def _cloud(facts: Mapping[str, str], model: str) -> DetectedMachine:
    vendor, product = facts["sys_vendor"], facts["product_name"]
    shown = ", ".join(f"{name} '{_clip(value)}'" for name, value in facts.items() if value)
    if "Amazon EC2" in (vendor, facts["board_vendor"]):
        if _EC2_TYPE.fullmatch(product):
            return DetectedMachine(f"aws:{product}", f"DMI: {shown}")
        return DetectedMachine(
            None, f"an EC2 machine whose DMI gives no instance type ({shown}): {_DECLARE} aws:TYPE, e.g. aws:c7i.large"
        )
    if vendor == "Google" or product == "Google Compute Engine":
        return DetectedMachine(
            None,
            f"a Google Cloud machine; DMI doesn't tell its machine type: {_DECLARE} gcp:TYPE, e.g. gcp:c3-standard-4",
        )
    if facts["chassis_asset_tag"] == AZURE_CHASSIS_TAG:
        return DetectedMachine(
            None, f"an Azure machine; DMI doesn't tell its size: {_DECLARE} azure:SIZE, e.g. azure:Standard_D4s_v5"
        )
    if vendor == "Microsoft Corporation" and product == "Virtual Machine":
        return DetectedMachine(
            None, f"a Hyper-V machine, on Azure or not ({shown}): {_DECLARE} azure:SIZE or --as device:ID"
        )
    hint = f"{_DECLARE} aws:TYPE, gcp:TYPE, azure:SIZE or device:ID"
    if shown or model:
        return DetectedMachine(
            None, f"no known cloud machine or board ({shown or f'device tree {_clip(model)!r}'}): {hint}"
        )
    return DetectedMachine(None, f"neither DMI nor a device tree is readable here: {hint}")


def _board(files: Mapping[str, str], model: str, compatible: list[str]) -> DetectedMachine | None:
    evidence = f"device tree: model '{_clip(model)}', compatible '{_clip(', '.join(compatible))}'"
    if any(part.startswith("raspberrypi,") for part in compatible) or model.startswith("Raspberry Pi"):
        return _raspberry(files, model, evidence)
    if "Jetson" in model or any(part.startswith("nvidia,p") or "tegra" in part for part in compatible):
        return _jetson(files, model, evidence)
    if "rockchip,rk3588s" in compatible and any(part.startswith("firefly,") for part in compatible):
        return _profile("firefly-rk3588s", evidence)
    return None


def _raspberry(files: Mapping[str, str], model: str, evidence: str) -> DetectedMachine:
    generation = re.match(r"Raspberry Pi (\d+)\b", model)
    total = memory_bytes(files)
    if generation is None or total is None:
        missing = "its generation" if generation is None else "its memory size"
        return _undeclared(f"a Raspberry Pi; the files don't tell {missing} ({evidence})")
    # Boards come with 2, 4, 8 or 16 GiB; firmware and GPU keep some of it back from MemTotal.
    gib = total / 2**30
    size = min((1, 2, 4, 8, 16), key=lambda option: abs(option - gib * 1.03))
    return _profile(f"raspberry-pi-{generation[1]}-{size}gb", f"{evidence}, MemTotal {gib:.1f} GiB")


def memory_bytes(files: Mapping[str, str]) -> int | None:
    """Main memory that the kernel has, `MemTotal`; None when the file does not tell."""
    found = re.search(r"^MemTotal: {1,20}(\d{1,12}) kB", files.get(MEMORY, "")[:_MAX_READ], re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _jetson(files: Mapping[str, str], model: str, evidence: str) -> DetectedMachine:
    module = jetson_module(files)
    profile = JETSON_MODULES.get(module or "")
    if profile is None:
        return _undeclared(
            f"an NVIDIA Jetson; no profile is known for {f'module {module}' if module else 'its module'} ({evidence})"
        )
    if profile == "jetson-orin-nano-8gb" and "Super" in model:
        # The same module with other clocks: the device tree of the Super configuration says so in its model name.
        profile = "jetson-orin-nano-super-8gb"
    return _profile(profile, evidence)


def _profile(profile: str, evidence: str) -> DetectedMachine:
    if profile in load_profiles():
        return DetectedMachine(f"device:{profile}", evidence)
    return _undeclared(f"'{profile}' has no device profile ({evidence})")


def _undeclared(reason: str) -> DetectedMachine:
    how = "device:ID (`edgeprof devices` lists them; docs/adding-a-device.md adds one)"
    return DetectedMachine(None, f"{reason}: {_DECLARE} {how}")


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_READ).decode("utf-8", errors="replace")
    except OSError:
        return ""


def _clip(text: str) -> str:
    printable = "".join(char if char.isprintable() else "?" for char in text)
    return printable if len(printable) <= 120 else printable[:117] + "…"
