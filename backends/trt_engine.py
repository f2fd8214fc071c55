"""The engine for one model on one GPU: from the cache under everything it depends on, else built and kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from backends.base import LoadOptions
from backends.trt_build import Built, Settings, build, target_names
from backends.trt_cache import EngineCache, key, model_digest
from backends.trt_cuda import CudaDevice
from backends.trt_find import Found


def engine_for(
    trt: Any, found: Found, device: CudaDevice, artifact: Path, settings: Settings, options: LoadOptions
) -> tuple[Built, str]:
    """The engine of `artifact` for `device`, and where it came from: `cache` or `built`."""
    cache = EngineCache(options.cache_dir)
    machine = {
        "flavour": found.flavour,
        "version": str(trt.__version__),
        "gpu": device.name,
        "compute_capability": device.compute_capability,
    }
    shapes = {name: list(shape) for name, shape in options.sample_shapes.items()}
    asked = {"settings": repr(settings), "shapes": shapes, "batch": options.batch}
    name = f"{key(model=model_digest(artifact), **machine, **asked)}.engine"
    plan = cache.get(name)
    if plan is not None:
        return Built(plan, None, ()), "cache"
    timing = f"{key(**machine)}.timing"
    targets = target_names(trt, *device.compute_capability)
    # With the timings of an earlier build TensorRT would choose as it did then.
    known = b"" if settings.build else cache.get(timing) or b""
    built = build(trt, found, artifact, settings, options, targets, known)
    cache.put(name, built.plan)
    if built.timing_cache and not settings.build:
        cache.put(timing, built.timing_cache)
    return built, "built"


def details_of(found: Found, device: CudaDevice, settings: Settings, built: Built, origin: str) -> dict[str, str]:
    """The facts of a build that records keep."""
    major, minor = device.compute_capability
    details = {
        "module": found.module,
        "compute_capability": f"{major}.{minor}",
        "cuda_driver": device.cuda_version,
        "engine": origin,
        "engine_size_bytes": str(len(built.plan)),
        "typing": "strong" if settings.precision == "model" else f"weak, {settings.precision} allowed",
        "tf32": str(settings.tf32).lower(),
        "cuda_graph": str(settings.graph).lower(),
        "sparse_weights": str(settings.sparse).lower(),
    }
    if built.sparsity:
        details["sparsity"] = " | ".join(built.sparsity)[:1000]
    if built.warnings:
        details["warnings"] = " | ".join(built.warnings)[:1000]
    return details
