"""Device profiles: what is known about each kind of device, with source and date.

A figure that nobody could source is absent, and one that was only derived or remembered is listed in `source.unverified`
(or has `price.verified = false`), so that no reader takes it for a measured fact. Dense, sparse and DLA peaks stay apart:
vendors' headlines add them up.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from device_profiles import profile_files
from profiler.errors import StudyError, unknown

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover - the same interface under its older name
    import tomli as tomllib

ACCELERATOR_CLASSES = ("gpu", "asic", "accelerator")
"""Kinds that run a model only as an accelerator: a CPU measurement never stands for them."""

PartialDate = Annotated[str, StringConstraints(pattern=r"^\d{4}(-\d\d(-\d\d)?)?$")]
"""`2026`, `2026-07` or `2026-07-20`: no more digits than the source gives."""

_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Text = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Peak(_Frozen):
    """Arithmetic peaks of the compute unit. Sparse is 2:4 structured; `basis` says what is counted and how derived."""

    fp32_tflops: _Positive | None = None
    fp16_dense_tflops: _Positive | None = None
    bf16_dense_tflops: _Positive | None = None
    fp8_dense_tflops: _Positive | None = None
    int8_dense_tops: _Positive | None = None
    int8_sparse_tops: _Positive | None = None
    dla_int8_dense_tops: _Positive | None = None
    """Peak of the deep-learning accelerators beside the GPU, not contained in `int8_dense_tops`."""
    basis: _Text | None = None


class Memory(_Frozen):
    """Memory that the compute unit reads: size in GB, bandwidth in GB/s."""

    gb: _Positive | None = None
    bandwidth_gbs: _Positive | None = None
    cache_mb: _Positive | None = None
    """All caches of the compute unit together: what may stay there from one inference to the next needs no bandwidth."""


class Cpu(_Frozen):
    """Cores and instruction sets of the host processor."""

    cores: Annotated[int, Field(gt=0)] | None = None
    isa: _Text | None = None


class MeasuredPower(_Frozen):
    """A power measurement that holds for one workload and power mode only."""

    watts: _Positive
    what: _Text
    source: _Text


class Power(_Frozen):
    """Power in W. `load_w` and `idle_w` are whole-device figures of the default mode and need a source."""

    modes_w: tuple[_Positive, ...] = ()
    tdp_w: _Positive | None = None
    idle_w: _Positive | None = None
    load_w: _Positive | None = None
    load_source: _Text | None = None
    idle_source: _Text | None = None
    measured: tuple[MeasuredPower, ...] = ()

    @model_validator(mode="after")
    def _sourced(self) -> Power:
        for name in ("load", "idle"):
            if getattr(self, f"{name}_w") is not None and getattr(self, f"{name}_source") is None:
                raise ValueError(f"{name}_w needs {name}_source")
        return self


class ListPrice(_Frozen):
    """What one device was sold for, when, and what is in the box."""

    usd: _Positive
    date: PartialDate
    source: _Text
    verified: bool
    covers: _Text


class SpecSource(_Frozen):
    """Where the figures come from; `unverified` lists those (as `table.key`) that are derived or from memory."""

    spec: _Text
    unverified: tuple[str, ...] = ()


class DeviceProfile(_Frozen):
    """Facts about one kind of device. Absent facts are None."""

    id: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    name: _Text
    device_class: Literal["edge", "laptop", "desktop", "server", "gpu", "asic", "accelerator"] = Field(alias="class")
    compute_unit: _Text
    aliases: tuple[str, ...] = ()
    arch: Literal["x86_64", "arm64"] | None = None
    """Architecture of the host processor; None for a card or chip that has no host of its own."""
    gpu_names: tuple[str, ...] = ()
    """Words by which the driver names the GPU of this device: `T4`, `Orin`."""
    notes: _Text | None = None
    peak: Peak = Peak()
    memory: Memory = Memory()
    cpu: Cpu = Cpu()
    power: Power = Power()
    price: ListPrice | None = None
    source: SpecSource

    @property
    def needs_host(self) -> bool:
        """Whether this is a card or chip, not a machine."""
        return self.device_class in ACCELERATOR_CLASSES

    @property
    def peak_is_of_cpu(self) -> bool:
        """Whether `peak` is what the processor cores do together; else it is an accelerator's, and theirs is not known."""
        return self.compute_unit.casefold().startswith("cpu")

    @model_validator(mode="after")
    def _unverified_figures_exist(self) -> DeviceProfile:
        for path in self.source.unverified:
            table, _, key = path.partition(".")
            if getattr(getattr(self, table, None), key, None) is None:
                raise ValueError(f"source.unverified names '{path}', which this profile does not have")
        return self


def parse_profile(text: str, origin: str) -> DeviceProfile:
    """One profile from its TOML text. Raises StudyError that names `origin` and the field."""
    try:
        profile = DeviceProfile.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise StudyError(f"device profile {origin} is not TOML: {error}.") from error
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, item['loc'])) or 'profile'}: {item['msg']}" for item in error.errors()
        )
        raise StudyError(f"device profile {origin}: {problems}. See docs/adding-a-device.md.") from error
    if origin != f"{profile.id}.toml":
        raise StudyError(f"device profile {origin} has id '{profile.id}': name the file {profile.id}.toml.")
    return profile


@lru_cache(maxsize=1)
def _shipped() -> tuple[DeviceProfile, ...]:
    return tuple(parse_profile(text, name) for name, text in profile_files().items())


def load_profiles() -> dict[str, DeviceProfile]:
    """All shipped profiles by id."""
    return {profile.id: profile for profile in _shipped()}


def find_profile(name: str) -> DeviceProfile:
    """The profile with that id, alias or display name, in any case. Raises StudyError with the near matches."""
    wanted = name.strip().casefold()
    profiles = load_profiles()
    for profile in profiles.values():
        if wanted in (profile.id, profile.name.casefold(), *map(str.casefold, profile.aliases)):
            return profile
    raise unknown(
        "device", name, profiles, hint="`edgeprof devices` tells about them; docs/adding-a-device.md adds one."
    )
