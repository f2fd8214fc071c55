"""A draft of a device profile for a machine that has none: what the probe knows filled in, the rest as lines to fill.

The result is the TOML of `device_profiles/`; `profiler.cost.devices.parse_profile` takes it once the lines marked `required` are
filled. Figures that were derived are listed in `source.unverified`, since no data sheet was read.
"""

from __future__ import annotations

import json
import re

from profiler.errors import TargetError
from profiler.targets.probe import Found, FoundGpu

_SIZES_GB = (
    0.5,
    1,
    2,
    3,
    4,
    6,
    8,
    10,
    11,
    12,
    16,
    20,
    24,
    32,
    40,
    48,
    64,
    80,
    96,
    128,
    141,
    192,
    256,
    384,
    512,
    768,
    1024,
)
_KEPT_BACK = 0.2
"""Firmware and an integrated GPU keep at most this share of the memory from the kernel."""
_CLASSES = {
    "jetson": "edge",
    "raspberry-pi": "edge",
    "board": "edge",
    "laptop": "laptop",
    "desktop": "desktop",
    "server": "server",
}

_NO_DEVICES = ("cloud", "virtual machine")


def draft(found: Found) -> str:
    """The draft for the machine, or for its GPU where the machine is known or rented. Raises TargetError when none is missing."""
    if found.kind not in _NO_DEVICES and (found.device is None or found.device in {gpu.device for gpu in found.gpus}):
        return _machine(found)
    lacking = next((gpu for gpu in found.gpus if gpu.device is None), None)
    if lacking is not None:
        return _gpu(lacking)
    if found.device is not None:
        raise TargetError(
            f"{found.name} has the profile '{found.device}': nothing to draft. `edgeprof devices show {found.device}`"
        )
    raise TargetError(
        f"{found.name} is a {found.kind}: device profiles are of things one can hold. Price it with --as aws:TYPE, gcp:TYPE or "
        "azure:SIZE; docs/adding-a-device.md tells more."
    )


def file_name(text: str) -> str:
    """What the draft's file must be called: its id, and .toml."""
    found = re.search(r'^id = "([a-z0-9-]+)"$', text, re.MULTILINE)
    return f"{found[1] if found else 'device'}.toml"


def _machine(found: Found) -> str:
    size = _nominal_gb(found.memory_bytes)
    watts = _watts(found)
    derived = ["memory.gb"] if size is not None else []
    cores = found.physical_cores or found.logical_cores
    return _written(
        name=found.name,
        device_class=_CLASSES.get(found.kind),
        head=[
            f"arch = {_text(found.arch)}" if found.arch else '# arch = "arm64"                # x86_64 or arm64',
            *_compute_unit(found),
            *(['# gpu_names = ["…"]               # words in the name that the driver gives the GPU'] if found.jetson else []),
        ],
        memory=f"gb = {size:g}" if size is not None else "# gb = …                          # of the data sheet, in GB",
        cpu=[
            f"cores = {cores}" if cores else "# cores = …",
            f"isa = {_text(' '.join(found.isa))}" if found.isa else '# isa = "…"',
        ],
        power=[
            f"modes_w = [{', '.join(f'{watt:g}' for watt in watts)}]" if watts
            else "# modes_w = [7, 15]               # W, where it has power modes"
        ],
        derived=derived,
        evidence=[*_seen(found), *found.evidence],
    )  # fmt: skip


def _gpu(gpu: FoundGpu) -> str:
    size = _nominal_gb(gpu.memory_bytes)
    name = gpu.name if gpu.name.casefold().startswith("nvidia") else f"NVIDIA {gpu.name}"
    kind = next((word for word in gpu.name.split() if any(char.isdigit() for char in word)), None)
    return _written(
        name=name,
        device_class="gpu",
        head=[
            '# compute_unit = "…"              # required: architecture, cores, tensor cores, clock',
            f"gpu_names = [{_text(kind)}]" if kind else '# gpu_names = ["…"]',
        ],
        memory=f"gb = {size:g}" if size is not None else "# gb = …                          # of the data sheet, in GB",
        cpu=[],
        power=[],
        derived=["memory.gb"] if size is not None else [],
        evidence=[
            f"{gpu.name}, driver {gpu.driver or 'not told'}, compute capability {gpu.compute_capability or 'not told'}"
        ],
    )


def _written(
    *, name: str, device_class: str | None, head: list[str], memory: str, cpu: list[str], power: list[str], derived: list[str],
    evidence: list[str],
) -> str:  # fmt: skip
    lines = [
        "# A draft by `edgeprof target probe --draft`. Fill the lines that say `required`, delete what stays unknown: see",
        "# docs/adding-a-device.md for what each figure means. Seen on the device:",
        *(f"#   {_printable(line)}" for line in evidence),
        f"id = {_text(_id(name))}",
        f"name = {_text(name)}",
        f"class = {_text(device_class)}"
        if device_class
        else '# class = "edge"                  # required: edge, laptop, desktop, server',
        *head,
        "",
        "[peak]                            # dense and sparse apart, DLA apart from GPU",
        "# fp32_tflops = …",
        "# fp16_dense_tflops = …",
        "# int8_dense_tops = …",
        "# int8_sparse_tops = …            # 2:4 structured; headlines count these",
        '# basis = "…"                     # what is counted, and how it was derived',
        "",
        "[memory]",
        memory,
        "# bandwidth_gbs = …               # GB/s of the data sheet",
        *(["", "[cpu]", *cpu] if cpu else []),
        "",
        "[power]",
        *power,
        "# tdp_w = …                       # W",
        "# idle_w = …                      # W, whole device, default mode, with idle_source",
        "# load_w = …                      # W, the same under load, with load_source",
        "",
        "# [price]",
        "# usd = …",
        '# date = "2026-01"',
        '# source = "https://…"',
        "# verified = true",
        '# covers = "…"                    # what is in the box',
        "",
        "[source]",
        '# spec = "https://…"              # required: where the figures come from',
        f"unverified = [{', '.join(map(_text, derived))}]",
    ]
    return "\n".join(lines) + "\n"


def _compute_unit(found: Found) -> list[str]:
    if found.jetson is None and found.cpu:
        return [f"compute_unit = {_text(f'CPU, {found.cpu}')}"]
    return ['# compute_unit = "…"              # required: what runs the model, its cores and clock']


def _seen(found: Found) -> list[str]:
    seen = [found.name, *([found.cpu] if found.cpu else [])]
    if found.jetson is not None and found.jetson.module:
        seen.append(f"module {found.jetson.module}")
    return seen


def _watts(found: Found) -> list[float]:
    modes = found.jetson.power_modes.values() if found.jetson is not None else ()
    told = (re.search(r"(?:^|_)(\d{1,3})W(?:_|$)", mode) for mode in modes)
    return sorted({float(watt[1]) for watt in told if watt and int(watt[1]) > 0})


def _nominal_gb(size_bytes: int | None) -> float | None:
    """The size that it was sold with: the smallest one that holds what the kernel has; None when none is near."""
    if size_bytes is None:
        return None
    gib = size_bytes / 2**30
    size = next((size for size in _SIZES_GB if size >= gib), None)
    return size if size is not None and gib >= size * (1 - _KEPT_BACK) else None


def _id(name: str) -> str:
    return (
        re.sub(r"[^a-z0-9]+", "-", name.casefold().encode("ascii", "ignore").decode()).strip("-")[:60].strip("-")
        or "device"
    )


def _text(value: str) -> str:
    """A TOML string: JSON's are, once no control characters are in them."""
    return json.dumps(_printable(value), ensure_ascii=False)


def _printable(value: str) -> str:
    return "".join(char for char in value if char.isprintable())
