"""The variants edgeprof knows: one line each, imported when one is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import cast

from backends import spec
from profiler.errors import StudyError, unknown
from profiler.variants.base import Variant, from_options
from profiler.variants.pipeline import make_pipeline

REGISTRY: Mapping[str, str] = {
    "fp32": "profiler.variants.plain:Fp32",
    "graph": "profiler.variants.graph:Graph",
    "fp16": "profiler.variants.fp16:Fp16",
    "bf16": "profiler.variants.plain:Bf16",
    "fp8": "profiler.variants.fp8:Fp8",
    "int8-dynamic": "profiler.variants.int8_dynamic:Int8Dynamic",
    "int8-static": "profiler.variants.int8_static:Int8Static",
    "int8-weight": "profiler.variants.int8_weight:Int8Weight",
    "int4-weight": "profiler.variants.int4_weight:Int4Weight",
    "nncf": "profiler.variants.nncf:Nncf",
    "prune-channels": "profiler.variants.prune_structured:PruneChannels",
    "prune-magnitude": "profiler.variants.prune:PruneMagnitude",
    "prune-nm": "profiler.variants.prune_nm:PruneNM",
    "external": "profiler.variants.external:External",
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
        "int8-static{bias_correction=true,per_channel=true}",
        "int8-weight",
        "int4-weight",
        "prune-channels{scope=inner}",
        "prune-channels{allocation=cost,ratio=0.3,round_to=16}",
        "prune-channels{allocation=cost,ratio=0.3,round_to=16}+int8-static{bias_correction=true,per_channel=true}",
        "prune-magnitude{sparsity=0.5}",
    ),
}


def names() -> tuple[str, ...]:
    """All variant names."""
    return tuple(REGISTRY)


def make(text: str) -> Variant:
    """The variant of a text such as `int8-static{per_channel=true}`, or of several steps, `graph+int8-dynamic`.

    Raises StudyError for unknown names (with the known ones) and wrong options, SpecError for texts that do not parse.
    """
    return make_pipeline(text, _make_one)


def _make_one(text: str) -> Variant:
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
