"""Which device profile fits the name that a processor or an NVIDIA GPU gives itself. Pure.

Names are compared word by word: an A10G is no A10, an H100 PCIe no H100 SXM. What fits nothing, or several, is answered with the
reason. The GPUs' names are those that `nvidia-smi` prints.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from profiler.cost.devices import DeviceProfile, load_profiles

_MEMORY_SHARE = 0.1
"""A GPU tells up to 6 % less memory than its data sheet (ECC takes some); its siblings differ by more than 10 %."""
_FORMS = ("sxm", "pcie", "nvl")
_NOISE = re.compile(
    r"\((?:r|tm|c)\)|®|™|\bcpu\b|\bprocessor\b|\b\d{1,2}th gen\b|@.*|\(.*?\)|\bwith radeon.*", re.IGNORECASE
)


@dataclass(frozen=True)
class Match:
    """A profile, or None and why; with the profile, `reason` says what it was told by."""

    device: str | None
    reason: str


def match_cpu(name: str, sockets: int | None, cores: int | None) -> Match:
    """The machine whose processor this is. `cores` are physical ones in all sockets together; None where not told."""
    wanted = _words(name)
    for profile in load_profiles().values():
        several = re.match(r"(\d)x ", profile.name)
        if profile.needs_host or wanted != _words(profile.name[several.end() :] if several else profile.name):
            continue
        of = int(several[1]) if several else 1
        if sockets is not None and sockets != of:
            return Match(None, f"'{profile.id}' has {of} such processors, this machine has {sockets}")
        if cores is not None and profile.cpu.cores is not None and cores != profile.cpu.cores:
            return Match(
                None,
                f"'{profile.id}' has {profile.cpu.cores} cores, {cores} are there: a part of it, or another one of that name",
            )
        return Match(profile.id, f"processor '{name}'")
    return Match(None, f"no profile is known for the processor '{name}'")


def match_gpu(name: str, memory_bytes: int | None) -> Match:
    """The card whose name the driver gives. The memory tells siblings and slices apart; the name's figure stands in for None."""
    words = [word for word in re.split(r"[\s-]+", name.casefold()) if word]
    if memory_bytes is None:
        sizes = [int(found[1]) for word in words if (found := re.fullmatch(r"(\d{1,4})gb", word))]
        memory_bytes = sizes[0] * 2**30 if sizes else None
    named = [
        profile
        for profile in load_profiles().values()
        if profile.device_class == "gpu" and any(kind.casefold() in words for kind in profile.gpu_names)
    ]
    if not named:
        return Match(None, f"no profile is known for the GPU '{name}'")
    form = next((kind for kind in _FORMS if any(word.startswith(kind) for word in words)), None)
    fitting = [profile for profile in named if _form_fits(form, profile) and _memory_fits(memory_bytes, profile)]
    if len(fitting) == 1:
        told = f", {memory_bytes / 2**30:.0f} GiB" if memory_bytes else ""
        return Match(fitting[0].id, f"GPU '{name}'{told}")
    known = ", ".join(profile.id for profile in fitting or named)
    if fitting:
        return Match(None, f"the GPU '{name}' may be any of {known}")
    size = f" with {memory_bytes / 2**30:.1f} GiB" if memory_bytes else ""
    return Match(None, f"the GPU '{name}'{size} is another make than {known}, or a part of it")


def same(devices: Iterable[str | None]) -> str | None:
    """The one profile that all are of; None when they differ or one is not known."""
    kinds = set(devices)
    return kinds.pop() if len(kinds) == 1 else None


def _form_fits(form: str | None, profile: DeviceProfile) -> bool:
    """A form factor that only one side names does not contradict, except that HBM cards without one are SXM modules."""
    own = next((kind for kind in _FORMS if kind in profile.name.casefold().split()), None)
    return own is None or own == form or (form is None and own == "sxm")


def _memory_fits(memory_bytes: int | None, profile: DeviceProfile) -> bool:
    if memory_bytes is None or profile.memory.gb is None:
        return True
    return abs(memory_bytes / 2**30 / profile.memory.gb - 1) < _MEMORY_SHARE


def _words(name: str) -> tuple[str, ...]:
    return tuple(_NOISE.sub(" ", name).casefold().split())
