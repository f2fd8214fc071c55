"""The variants edgeprof knows: one line each, imported when one is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import cast

from backends import spec
from profiler.errors import StudyError, unknown
from profiler.variants.base import Variant, from_options

REGISTRY: Mapping[str, str] = {
    "fp32": "profiler.variants.plain:Fp32",
    "graph": "profiler.variants.graph:Graph",
    "fp16": "profiler.variants.fp16:Fp16",
    "bf16": "profiler.variants.plain:Bf16",
    "int8-dynamic": "profiler.variants.int8_dynamic:Int8Dynamic",
    "int8-static": "profiler.variants.int8_static:Int8Static",
    "int4-weight": "profiler.variants.int4_weight:Int4Weight",
    "prune-magnitude": "profiler.variants.prune:PruneMagnitude",
}

_DEFAULTS: Mapping[str, tuple[str, ...]] = {
    "quick": ("fp32", "int8-dynamic", "int8-static{per_channel=true}", "bf16"),
    "default": (
        "fp32",
        "graph",
        "fp16",
        "bf16",
        "int8-dynamic",
        "int8-static",
        "int8-static{per_channel=true}",
        "int4-weight",
    ),
    "thorough": (
        "fp32",
        "graph",
        "fp16",
        "bf16",
        "int8-dynamic",
        "int8-static",
        "int8-static{per_channel=true}",
        "int8-static{calibration=entropy,per_channel=true}",
        "int8-static{calibration=percentile,per_channel=true}",
        "int4-weight",
        "prune-magnitude{sparsity=0.5}",
    ),
}


def names() -> tuple[str, ...]:
    """All variant names."""
    return tuple(REGISTRY)


def make(text: str) -> Variant:
    """The variant of a text such as `int8-static{per_channel=true}`.

    Raises StudyError for unknown names (with the known ones) and wrong options, SpecError for texts that do not parse.
    """
    parsed = spec.parse(text)
    if parsed.name not in REGISTRY:
        raise unknown("variant", parsed.name, REGISTRY)
    if parsed.device is not None:
        raise StudyError(f"variant '{text}' names a device '{parsed.device}': devices belong to backends, e.g. ov:GPU.")
    module, _, name = REGISTRY[parsed.name].partition(":")
    return cast("Variant", from_options(getattr(importlib.import_module(module), name), parsed.options))


def default_variants(effort: str = "default") -> tuple[str, ...]:
    """Texts of the variants that are tried when a study names none, the reference first."""
    if effort not in _DEFAULTS:
        raise unknown("effort", effort, _DEFAULTS)
    return _DEFAULTS[effort]
