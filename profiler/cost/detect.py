"""Which machine is this, as far as its own files tell: EC2 by DMI, Jetson and Raspberry Pi by device tree. No network.

Firmware tables are read as untrusted text. What they don't tell is not guessed: the answer is None with the reason and
what to declare instead.

Sources: EC2 Nitro puts the instance type in DMI `product_name` (docs.aws.amazon.com/AWSEC2 "Detect whether a host is an
EC2 instance"); Azure's chassis asset tag is a constant (cloud-init, `ChassisAssetTag.AZURE_CLOUD`); Jetson part numbers
are NVIDIA's (L4T developer guide, "Supported modules"); Raspberry Pi models are the kernel's device-tree names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from profiler.cost.devices import load_profiles

AZURE_CHASSIS_TAG = "7783-7084-3265-9085-8269-3286-77"
_EC2_TYPE = re.compile(r"[a-z][a-z0-9-]*\.(?:\d*x?large|metal(?:-\d+xl)?|nano|micro|small|medium)")
_MAX_READ = 4096

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


@dataclass(frozen=True)
class DetectedMachine:
    """`target` as `--as` takes it (`aws:c7i.large`, `device:raspberry-pi-5-8gb`) or None; `evidence` says why."""

    target: str | None
    evidence: str


def detect_machine(root: Path = Path("/")) -> DetectedMachine:
    """Recognise the machine whose `/sys` and `/proc` lie under `root`. Never raises for what those files hold."""
    tree = root / "proc" / "device-tree"
    model = _read(tree / "model").replace("\0", "").strip()
    compatible = [part for part in _read(tree / "compatible").split("\0") if part]
    if model or compatible:
        found = _board(root, model, compatible)
        if found is not None:
            return found
    return _cloud(root / "sys" / "devices" / "virtual" / "dmi" / "id", model)


def _cloud(dmi: Path, model: str) -> DetectedMachine:
    names = ("sys_vendor", "board_vendor", "product_name", "board_asset_tag", "chassis_asset_tag")
    facts = {name: _read(dmi / name).strip() for name in names}
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


def _board(root: Path, model: str, compatible: list[str]) -> DetectedMachine | None:
    evidence = f"device tree: model '{_clip(model)}', compatible '{_clip(', '.join(compatible))}'"
    if any(part.startswith("raspberrypi,") for part in compatible) or model.startswith("Raspberry Pi"):
        return _raspberry(root, model, evidence)
    if "Jetson" in model or any(part.startswith("nvidia,p") or "tegra" in part for part in compatible):
        return _jetson(model, compatible, evidence)
    return None


def _raspberry(root: Path, model: str, evidence: str) -> DetectedMachine:
    generation = re.match(r"Raspberry Pi (\d+)\b", model)
    memory = re.search(r"^MemTotal:\s+(\d+) kB", _read(root / "proc" / "meminfo"), re.MULTILINE)
    if generation is None or memory is None:
        missing = "its generation" if generation is None else "its memory size"
        return _undeclared(f"a Raspberry Pi; the files don't tell {missing} ({evidence})")
    # Boards come with 2, 4, 8 or 16 GiB; firmware and GPU keep some of it back from MemTotal.
    gib = int(memory[1]) / 2**20
    size = min((1, 2, 4, 8, 16), key=lambda option: abs(option - gib * 1.03))
    return _profile(f"raspberry-pi-{generation[1]}-{size}gb", f"{evidence}, MemTotal {gib:.1f} GiB")


def _jetson(model: str, compatible: list[str], evidence: str) -> DetectedMachine:
    parts = [number for part in compatible for number in re.findall(r"p\d{4}-\d{4}", part)]
    profile = next((JETSON_MODULES[number] for number in parts if number in JETSON_MODULES), None)
    if profile is None:
        named = f"module {', '.join(dict.fromkeys(parts))}" if parts else "its module"
        return _undeclared(f"an NVIDIA Jetson; no profile is known for {named} ({evidence})")
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
