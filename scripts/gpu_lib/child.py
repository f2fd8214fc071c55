"""One step, in its own process: reads it from the command line, prints its answer as the last line. Needs numpy and the runtimes.

`{"skipped": why}` is an answer: nothing here ends without one but a crash, which the parent tells.
"""

from __future__ import annotations

import json
import platform
import random
import sys
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from backends import base, registry
from profiler.measure import loop
from profiler.measure.energy import serve

ROUNDS, BLOCK_S, WARM_S = 6, 0.08, 0.4
Answer = dict[str, Any]


def machine(_: Path, __: Mapping[str, Any]) -> Answer:
    """Driver, GPU, packages."""
    found: Answer = {"python": sys.version.split()[0], "system": platform.platform(), "packages": {}}
    for name in (
        "onnxruntime-gpu",
        "onnxruntime",
        "torch",
        "numpy",
        "tensorrt-rtx-cu13-bindings",
        "nvidia-ml-py",
        "psutil",
    ):
        try:
            found["packages"][name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        found |= {
            "gpu": str(pynvml.nvmlDeviceGetName(handle)),
            "driver": str(pynvml.nvmlSystemGetDriverVersion()),
            "capability": ".".join(map(str, pynvml.nvmlDeviceGetCudaComputeCapability(handle))),
        }
    except Exception as error:  # noqa: BLE001 (whatever NVML says is the finding)
        found["gpu"] = f"none: {type(error).__name__}: {error}"
    return found


def provider(bundle: Path, fields: Mapping[str, Any]) -> Answer:
    """What runs when CUDA is asked for; ONNX Runtime itself would fall back to the CPU with a line on stderr."""
    session, why = _opened(bundle, fields["model"], "fp32", "ort:cuda", 1)
    if session is None:
        return {"skipped": why}
    return {"provider": session.facts.provider, "version": session.facts.runtime_version}


def answers(bundle: Path, fields: Mapping[str, Any]) -> Answer:
    """Each variant's answers on all rows against the CPU's in float32: largest error over the output's range, same argmax."""
    rows, expected = _rows(bundle, fields["model"])
    count = len(next(iter(rows.values())))
    found: Answer = {}
    for backend in fields["backends"]:
        for variant in _variants(bundle, fields["model"]):
            session, why = _opened(bundle, fields["model"], variant, backend, count)
            if session is None:
                found[f"{variant} @ {backend}"] = {"skipped": why}
                continue
            outputs = session.infer(rows)
            found[f"{variant} @ {backend}"] = {
                name: _compared(outputs[name], wanted) for name, wanted in expected.items()
            }
            session.close()
    return found


def latency(bundle: Path, fields: Mapping[str, Any]) -> Answer:
    """Median latency of all variants on CUDA and the CPU, in turns of short blocks in random order; ratios to fp32 on CUDA."""
    found: Answer = {}
    for batch in fields["batches"]:
        found[f"batch {batch}"] = _raced(bundle, fields["model"], ("ort:cuda", "trt", "ort"), batch)
    return found


def options(bundle: Path, fields: Mapping[str, Any]) -> Answer:
    """The same for one backend with different options, fp32."""
    lanes = {}
    for given in fields["options"]:
        text = ",".join(f"{key}={value}" for key, value in given.items()) or "as it is"
        lanes[text] = _opened(bundle, fields["model"], "fp32", fields["backend"], 1, given)
    return _timed(lanes, _rows(bundle, fields["model"])[0], 1)


def energy(bundle: Path, fields: Mapping[str, Any]) -> Answer:
    """Joules an inference by NVML: a window of work, and one of nothing, which is taken off."""
    told = serve.meters(0)
    names = [item["name"] for item in told["meters"]]
    if "nvml" not in names:
        reasons = [str(item["reason"]) for item in told["absent"] if item["meter"] == "nvml"]
        return {"skipped": "; ".join(reasons) or f"no NVML among {names}"}
    found: Answer = {}
    rows, batch = _rows(bundle, fields["model"])[0], fields["batch"]
    feeds = [{name: value[:batch] for name, value in rows.items()}]
    header = {"meter": "nvml", "window_s": 3.0, "lead_s": 1.0, "gpu": 0}
    idle = serve.measure(None, [], header)
    for variant in _variants(bundle, fields["model"]):
        session, why = _opened(bundle, fields["model"], variant, "ort:cuda", batch)
        if session is None:
            found[variant] = {"skipped": why}
            continue
        taken = serve.measure(session.infer, feeds, header)
        session.close()
        if "lost" in taken or "lost" in idle:
            found[variant] = {"skipped": taken.get("lost") or idle.get("lost")}
            continue
        work, rest = taken["window"], idle["window"]
        joules, idle_w = sum(work["energy_j"].values()), sum(rest["energy_j"].values()) / rest["wall_s"]
        found[variant] = {
            "joules_per_batch": joules / work["inferences"],
            "above_idle_joules_per_batch": (joules - idle_w * work["wall_s"]) / work["inferences"],
            "watts": joules / work["wall_s"], "idle_watts": idle_w, "inferences": work["inferences"],
            "readings": work["readings"],
        }  # fmt: skip
    return found


def copies(bundle: Path, fields: Mapping[str, Any]) -> Answer:
    """An inference from and to the host beside one whose inputs and outputs stay on the GPU: the difference are the copies."""
    import onnxruntime as ort

    if "CUDAExecutionProvider" not in ort.get_available_providers():
        return {"skipped": f"onnxruntime {ort.__version__} has no CUDA provider"}
    rows, _ = _rows(bundle, fields["model"])
    found: Answer = {}
    session = ort.InferenceSession(
        str(bundle / "models" / fields["model"] / "fp32.onnx"),
        providers=["CUDAExecutionProvider", "CPUExecutionProvider"],
    )
    if session.get_providers()[0] != "CUDAExecutionProvider":
        return {"skipped": f"CUDA was asked for, {session.get_providers()[0]} runs"}
    for batch in fields["batches"]:
        feeds = {name: np.ascontiguousarray(value[:batch]) for name, value in rows.items()}
        binding = session.io_binding()
        for name, value in feeds.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(value, "cuda", 0))
        for output in session.get_outputs():
            binding.bind_output(output.name, "cuda", 0)

        def there(_: object, binding: Any = binding) -> None:
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()

        def both(feeds: Any) -> object:
            return session.run(None, feeds)

        samples = _interleaved({"with copies": (both, [feeds]), "on the GPU": (there, [feeds])})
        found[f"batch {batch}"] = {
            **{name: float(np.median(np.concatenate(values))) for name, values in samples.items()},
            "bytes_in": sum(value.nbytes for value in feeds.values()),
        }
    return found


def tensorrt(bundle: Path, fields: Mapping[str, Any]) -> Answer:
    """Whether a TensorRT can run here, and how long it takes to build the model."""
    told = registry.get("trt").availability()
    if not told.available:
        return {"skipped": told.reason}
    begin = time.perf_counter()
    session, why = _opened(bundle, fields["model"], "fp32", "trt", 1)
    if session is None:
        return {"version": told.version, "skipped": why}
    return {"version": told.version, "build_s": time.perf_counter() - begin, "details": dict(session.facts.details)}


def _raced(bundle: Path, model: str, backends: tuple[str, ...], batch: int) -> Answer:
    lanes = {
        f"{variant} @ {backend}": _opened(bundle, model, variant, backend, batch)
        for backend in backends
        for variant in _variants(bundle, model)
    }
    return _timed(lanes, _rows(bundle, model)[0], batch)


def _timed(lanes: Mapping[str, tuple[base.Session | None, str]], rows: Mapping[str, Any], batch: int) -> Answer:
    """Each lane's median, and its ratio to the first one's in the same rounds, with the range over rounds."""
    feeds = [{name: np.ascontiguousarray(value[:batch]) for name, value in rows.items()}]
    open_lanes = {name: session for name, (session, _) in lanes.items() if session is not None}
    samples = _interleaved({name: (session.infer, feeds) for name, session in open_lanes.items()})
    found: Answer = {name: {"skipped": why} for name, (session, why) in lanes.items() if session is None}
    first = next(iter(samples), None)
    for name, blocks in samples.items():
        assert first is not None
        ratios = [float(np.median(own) / np.median(other)) for own, other in zip(blocks, samples[first], strict=True)]
        found[name] = {
            "p50_s": float(np.median(np.concatenate(blocks))), "p99_s": float(np.quantile(np.concatenate(blocks), 0.99)),
            "against": first, "ratio": float(np.median(ratios)), "ratio_range": [min(ratios), max(ratios)],
            "provider": open_lanes[name].facts.provider,
        }  # fmt: skip
    for session in open_lanes.values():
        session.close()
    return found


def _interleaved(work: Mapping[str, tuple[Callable[[Any], object], list[Any]]]) -> dict[str, list[Any]]:
    """Durations in seconds by lane, a block each round, in random order."""
    limits, clock, order = loop.Limits(BLOCK_S, 5, 2.0), time.perf_counter_ns, random.Random(0)
    for infer, feeds in work.values():
        loop.time_inferences(infer, feeds, loop.Limits(WARM_S, 5, 5.0), clock=clock)
    samples: dict[str, list[Any]] = {name: [] for name in work}
    for _ in range(ROUNDS if work else 0):
        for name in order.sample(sorted(work), len(work)):
            infer, feeds = work[name]
            samples[name].append(loop.time_inferences(infer, feeds, limits, clock=clock).durations_ns[1:] / 1e9)
    return samples


def _opened(
    bundle: Path, model: str, variant: str, backend: str, batch: int, options: Mapping[str, str] | None = None
) -> tuple[base.Session | None, str]:
    """A session, or why there is none."""
    path, (name, _, device) = bundle / "models" / model / f"{variant}.onnx", backend.partition(":")
    if not path.is_file():
        return None, f"{variant} could not be made for {model}"
    told = registry.get(name).availability(device or None)
    if not told.available:
        return None, str(told.reason)
    rows, _ = _rows(bundle, model)
    shapes = {key: (batch, *value.shape[1:]) for key, value in rows.items()}
    asked = base.LoadOptions(device or None, batch=batch, sample_shapes=shapes, options=dict(options or {}))
    try:
        session = registry.get(name).load(path, asked)
        session.infer({key: np.ascontiguousarray(value[:batch]) for key, value in rows.items()})
    except Exception as error:  # noqa: BLE001 (the runtime's own words are the finding)
        return None, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return session, ""


def _variants(bundle: Path, model: str) -> list[str]:
    order = ("fp32", "fp16", "int8", "fp8")
    return [name for name in order if (bundle / "models" / model / f"{name}.onnx").is_file()]


def _rows(bundle: Path, model: str) -> tuple[dict[str, Any], dict[str, Any]]:
    with np.load(bundle / "models" / model / "rows.npz") as opened:
        arrays = {name: opened[name] for name in opened.files}
    parts = {
        kind: {name[len(kind) :]: value for name, value in arrays.items() if name.startswith(kind)}
        for kind in ("in/", "out/")
    }
    return parts["in/"], parts["out/"]


def _compared(output: Any, wanted: Any) -> Answer:
    if output.shape != wanted.shape:
        return {"shape": list(output.shape), "wanted": list(wanted.shape)}
    scale = float(np.ptp(wanted)) or 1.0
    found: Answer = {"largest_error_of_range": float(np.max(np.abs(output.astype(np.float64) - wanted))) / scale}
    if wanted.ndim == 2 and wanted.shape[1] > 1:
        found["same_answers"] = float(np.mean(output.argmax(1) == wanted.argmax(1)))
    return found


KINDS = {one.__name__: one for one in (machine, provider, answers, latency, options, energy, copies, tensorrt)}

if __name__ == "__main__":
    asked = json.loads(sys.argv[2])
    print(json.dumps(KINDS[asked["kind"]](Path(sys.argv[1]), asked["fields"])))
