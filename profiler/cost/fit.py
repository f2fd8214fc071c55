"""Whether a declared machine can be the one a case was measured on.

A price belongs to the machine that did the work. A declaration that contradicts what the run recorded (architecture, CPU
maker, GPU, threads, firmware) is refused; one that cannot be checked is told as a remark.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from backends.base import SessionFacts
from profiler.cost.detect import DetectedMachine
from profiler.cost.devices import DeviceProfile, find_profile
from profiler.cost.prices import Price
from profiler.records import Environment

_ARCHITECTURES = {"amd64": "x86_64", "x86_64": "x86_64", "x64": "x86_64", "aarch64": "arm64", "arm64": "arm64"}
_ACCELERATED = re.compile(r"cuda|tensorrt|trt|nvidia|gpu|npu|rocm|migraphx|dml|coreml|neuron|tpu", re.IGNORECASE)
_NVIDIA = re.compile(r"cuda|tensorrt|trt|nvidia", re.IGNORECASE)
_GPU_KIND = re.compile(r"(?:[tlavhb]\d{1,3}[a-z]?)")
"""Kinds that a driver prints as one word of the GPU's name: t4, t4g, a10g, l40s, h100."""


@dataclass(frozen=True)
class Fit:
    """`refusal` is why the declared machine isn't the measured one (None: nothing contradicts it)."""

    refusal: str | None = None
    remarks: tuple[str, ...] = ()


def fit_instance(price: Price, environment: Environment, facts: SessionFacts) -> Fit:
    """Compare a priced cloud machine with the run's environment and what the session says really ran."""
    refusal = _other_architecture(price.name, price.arch, environment) or _other_maker(price, environment)
    accelerated = runs_accelerated(facts)
    remarks = []
    if refusal is None and price.accelerator and not accelerated:
        refusal = f"{price.name} is a GPU or accelerator machine ({price.accelerator}), the case ran on CPU ({facts.provider})"
    if refusal is None and accelerated and not price.accelerator and price.facts_source:
        refusal = f"{price.name} has no accelerator, the case ran on {facts.provider}"
    if refusal is None and accelerated and price.accelerator:
        kind = price.accelerator.partition("-")[0]
        refusal = _other_gpu(price.name, (kind,) if _GPU_KIND.fullmatch(kind) else (), environment)
        if not environment.gpus:
            remarks.append("the run doesn't tell which GPU it used")
        if price.accelerator_count is not None and price.accelerator_count > 1:
            remarks.append(f"the price is for {price.accelerator_count:g} accelerators, the case used one")
    if refusal is None and not accelerated and price.vcpus is not None:
        threads = facts.threads
        if threads is not None and threads > price.vcpus:
            refusal = f"{price.name} has {price.vcpus:g} vCPUs, the case used {threads} threads"
        elif threads is not None and threads < price.vcpus:
            used = f"{threads} thread" + ("s" if threads > 1 else "")
            remarks.append(f"the machine has {price.vcpus:g} vCPUs, the case used {used}")
        if environment.usable_cores > price.vcpus:
            remarks.append(
                f"measured where {environment.usable_cores} cores were usable, {price.sku} has {price.vcpus:g} vCPUs"
            )
    if price.arch is None and price.vcpus is None:
        remarks.append(f"the price list doesn't tell what {price.sku} is: not checked against the measured machine")
    return Fit(refusal, tuple(remarks))


def fit_device(profile: DeviceProfile, environment: Environment, facts: SessionFacts) -> Fit:
    """Compare a declared device kind with the run's environment and what the session says really ran."""
    refusal = _other_architecture(profile.name, profile.arch, environment)
    accelerated = runs_accelerated(facts)
    remarks = []
    if refusal is None and profile.needs_host and not accelerated:
        refusal = f"{profile.name} is an accelerator, the case ran on CPU ({facts.provider})"
    if refusal is None and accelerated and profile.gpu_names:
        refusal = _other_gpu(profile.name, profile.gpu_names, environment)
    if refusal is None and accelerated and not profile.gpu_names and _NVIDIA.search(facts.provider):
        refusal = f"{profile.name} has no NVIDIA GPU, the case ran on {facts.provider}"
    if refusal is None and not accelerated and profile.cpu.cores is not None and facts.threads is not None:
        # x86 cores may run two threads each; the Arm cores of these boards run one.
        threads = profile.cpu.cores * (2 if profile.arch == "x86_64" else 1)
        if facts.threads > threads:
            refusal = f"{profile.name} runs at most {threads} threads at once, the case used {facts.threads}"
    if profile.needs_host:
        remarks.append("the price is for the card or chip only, without the machine around it")
    return Fit(refusal, tuple(remarks))


def processors(
    price: Price | None, profile: DeviceProfile | None, environment: Environment
) -> tuple[float | None, str]:
    """How many threads the machine that is paid for runs at once, as far as known, and in words: `2 vCPUs`.

    A cloud's by its price list, a device's by what was measured on.
    """
    if price is not None:
        return (None, "") if price.vcpus is None else (price.vcpus, f"{price.vcpus:g} vCPUs")
    if profile is None or profile.needs_host:
        return None, ""
    return float(environment.logical_cores), f"{environment.logical_cores} cores"


def doubt(price: Price | None, profile: DeviceProfile | None, environment: Environment) -> str | None:
    """What speaks against the declared machine without ruling it out: another number of cores. None where nothing does.

    Cores can be switched off (power modes of boards), and containers see those of their host.
    """
    here = environment.logical_cores
    if price is not None:
        known = price.vcpus is not None and price.vcpus != here
        return f"{price.sku} has {price.vcpus:g} vCPUs, there are {here}" if known else None
    cores = None if profile is None or profile.needs_host else profile.cpu.cores
    if profile is None or cores is None or cores <= here <= cores * (2 if profile.arch == "x86_64" else 1):
        return None
    return f"{profile.name} has {cores} cores, there are {here}"


def contradicts(declared: str, detected: DetectedMachine) -> str | None:
    """Why `declared` (as `--as` takes it) is not the machine that its own firmware names, or None."""
    if detected.target is None or detected.target == declared.partition("@")[0]:
        return None
    if declared.startswith("device:") and detected.target.startswith("device:"):
        one, two = (find_profile(text.partition(":")[2]) for text in (declared, detected.target))
        # One board has several profiles when its power modes differ (Jetson Super mode).
        if (one.memory.gb, one.cpu.cores, one.gpu_names) == (two.memory.gb, two.cpu.cores, two.gpu_names):
            return None
    return f"the machine is {detected.target} ({detected.evidence}), not {declared}"


def runs_accelerated(facts: SessionFacts) -> bool:
    """Whether the session runs on something else than the CPU, by the provider's or device's name."""
    return not facts.provider.lower().startswith("cpu") and _ACCELERATED.search(facts.provider) is not None


def _other_architecture(name: str, arch: str | None, environment: Environment) -> str | None:
    measured = _ARCHITECTURES.get(environment.machine.lower(), environment.machine)
    if arch is None or measured == arch:
        return None
    return f"{name} is {arch}, the case was measured on {measured}"


def _other_maker(price: Price, environment: Environment) -> str | None:
    model = (environment.cpu_model or "").casefold()
    rival = {"intel": "amd", "amd": "intel"}.get(price.cpu_vendor or "")
    if rival is None or re.search(rf"\b{rival}\b", model) is None:
        return None
    return f"{price.name} has an {price.cpu_vendor} CPU, the case was measured on {environment.cpu_model}"


def _other_gpu(name: str, kinds: tuple[str, ...], environment: Environment) -> str | None:
    if not kinds or not environment.gpus:
        return None
    names = " | ".join(environment.gpus)
    if any(re.search(rf"\b{re.escape(kind)}\b", names, re.IGNORECASE) for kind in kinds):
        return None
    return f"{name} has {' or '.join(kinds)}, the case was measured on {names}"
