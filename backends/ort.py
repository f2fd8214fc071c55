"""ONNX Runtime: `ort` (CPU), `ort:cuda`, `ort:tensorrt`, with `.N` for the N-th device.

Options: `opt=all|extended|basic|off` (graph optimisation), `spin=true|false` (whether idle pool threads spin),
`cpu_ops=allow|refuse` (whether single ops may run on the CPU while the device runs the rest), `fp16=true|false`
(TensorRT provider only: whether it may lower float32 to float16), `tf32=true|false` (CUDA: products in TF32; off).

ONNX Runtime falls back to the CPU with no more than a line on stderr, when a session is made and once more when a run fails.
Here the first is a ProviderMismatch and the second is switched off.
"""

from __future__ import annotations

import copy
import json
import re
import tempfile
import warnings
from collections.abc import Sequence
from importlib import metadata, util
from pathlib import Path
from typing import Any

import numpy as np

from backends.base import (
    Availability,
    BackendError,
    BackendUnavailable,
    Feeds,
    LoadOptions,
    NoOpTimes,
    OpTime,
    Outputs,
    ProviderMismatch,
    SessionFacts,
    TensorInfo,
    warm_runs,
)
from backends.options import choice, flag, require_known
from backends.ort_facts import Executed, executed, timed

_PROVIDERS = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
}
_DISTRIBUTIONS = ("onnxruntime-gpu", "onnxruntime", "onnxruntime-openvino", "onnxruntime-directml", "onnxruntime-rocm")
_NUMPY_NAMES = {"float": "float32", "double": "float64", "string": "object"}
_OPTIMISATION = {
    "all": "ORT_ENABLE_ALL",
    "extended": "ORT_ENABLE_EXTENDED",
    "basic": "ORT_ENABLE_BASIC",
    "off": "ORT_DISABLE_ALL",
}
_INSTALL = {
    "cpu": "pip install onnxruntime",
    "cuda": "pip install onnxruntime-gpu",
    "tensorrt": "pip install onnxruntime-gpu",
}

INSPECTION_LIMIT_BYTES = 200_000_000
"""Larger models are not loaded a second time to learn the realised precision: edge devices could not hold two of them."""


class OrtBackend:
    """Adapter for ONNX Runtime."""

    name = "ort"
    modules = ("onnxruntime",)
    """What the worker imports before it loads, so that import and load are timed apart."""

    def devices(self) -> Sequence[str]:
        """`cpu`, `cuda`, `tensorrt`; the last two take an index, `cuda.1`."""
        return tuple(_PROVIDERS)

    def availability(self, device: str | None = None) -> Availability:
        """Told from the installed files, without importing onnxruntime. Whether a GPU then works, only `load` can tell."""
        kind, _ = _device(device)
        spec = util.find_spec("onnxruntime")
        if spec is None or spec.origin is None:
            return Availability(False, reason="onnxruntime is not installed", install=_INSTALL[kind])
        version = _version()
        libraries = Path(spec.origin).parent / "capi"
        if kind != "cpu" and not any(libraries.glob(f"*onnxruntime_providers_{kind}.*")):
            reason = f"the installed onnxruntime {version or ''} has no {_PROVIDERS[kind][0]}"
            return Availability(False, version, reason, _INSTALL[kind])
        return Availability(True, version)

    def load(self, artifact: Path, options: LoadOptions) -> OrtSession:
        """Make a session on exactly the asked provider. See `Backend.load` for the errors."""
        kind, index = _device(options.device)
        require_known(self.name, options.options, ("opt", "spin", "cpu_ops", "fp16", "tf32"))
        if not artifact.is_file():
            raise BackendError(f"ort: model file '{artifact}' is not there; make the artifact first.")
        try:
            import onnxruntime as ort
        except ImportError as error:
            raise BackendUnavailable(
                f"onnxruntime cannot be imported: {error}. Install it: {_INSTALL[kind]}."
            ) from error
        ort.set_default_logger_severity(2)
        wanted = _PROVIDERS[kind][0]
        if wanted not in ort.get_available_providers():
            raise BackendUnavailable(
                f"ort:{kind} needs {wanted}; onnxruntime {ort.__version__} here has {', '.join(ort.get_available_providers())}. "
                f"Install one that has it: {_INSTALL[kind]}."
            )
        return OrtSession(artifact, options, kind, _providers(kind, index, options))


class OrtSession:
    """One `InferenceSession`. `run` copies outputs into new arrays, so what `infer` returns stays as it is."""

    def __init__(self, artifact: Path, options: LoadOptions, kind: str, providers: list[Any]) -> None:
        """Made by `OrtBackend.load`."""
        self._artifact, self._options, self._kind, self._providers = artifact, options, kind, providers
        self._facts: SessionFacts | None = None
        self._session: Any = _open(artifact, options, providers)
        used, wanted = self._session.get_providers(), _PROVIDERS[kind][0]
        if not used or used[0] != wanted:
            self._session = None
            raise ProviderMismatch(
                f"ort:{kind} asked for {wanted}, but onnxruntime would run '{artifact.name}' on {', '.join(used) or 'nothing'}. "
                f"The provider's libraries do not load (CUDA, cuDNN, driver); its own words are in the log. "
                f"Repair them, or ask for 'ort:cpu'."
            )
        self._session.disable_fallback()
        self.inputs: Sequence[TensorInfo] = tuple(map(_tensor_info, self._session.get_inputs()))
        self.outputs: Sequence[TensorInfo] = tuple(map(_tensor_info, self._session.get_outputs()))
        self._names = [info.name for info in self.outputs]
        self._used = used

    def infer(self, feeds: Feeds) -> Outputs:
        """Run once; the outputs are new arrays on the host."""
        try:
            return dict(zip(self._names, self._session.run(self._names, dict(feeds)), strict=True))
        except Exception as error:  # onnxruntime's exceptions have no base but Exception
            if self._session is None:
                raise BackendError(f"ort: the session of '{self._artifact.name}' is closed; load it again.") from error
            raise BackendError(f"ort could not run '{self._artifact.name}': {error}") from error

    def lane(self) -> OrtSession:
        """Another handle on the same `InferenceSession`, whose `run` is thread-safe. Lanes share one pool of `threads`."""
        if self._session is None:
            raise BackendError(f"ort: the session of '{self._artifact.name}' is closed; load it again.")
        return copy.copy(self)

    @property
    def facts(self) -> SessionFacts:
        """What runs. The first call loads the model a second time, profiles one inference and forgets it.

        So call it outside timed code and after the peak memory was read.
        """
        if self._facts is None:
            self._facts = self._find_facts()
        return self._facts

    def op_times(self, feeds: Feeds, runs: int) -> Sequence[OpTime] | NoOpTimes:
        """Times per op from a second session with the same options and onnxruntime's profiler on."""
        if self._kind == "tensorrt":
            return NoOpTimes("TensorRT's provider runs whole subgraphs as one op: ask the backend 'trt' for its layers")
        if self._kind == "cuda":
            return NoOpTimes("onnxruntime's profile holds the time to launch a kernel on the GPU, not the kernel's own")
        if self._session is None:
            raise BackendError(f"ort: the session of '{self._artifact.name}' is closed; load it again.")
        with tempfile.TemporaryDirectory(prefix="edgeprof-") as folder:
            session = _open(self._artifact, self._options, self._providers, Path(folder) / "profile", packed=True)
            warm, fed = warm_runs(runs), dict(feeds)
            try:
                for _ in range(warm + runs):
                    session.run(self._names, fed)
                events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
            except Exception as error:
                raise BackendError(f"ort could not profile '{self._artifact.name}': {error}") from error
        return timed(events, warm) or NoOpTimes("onnxruntime's profile lists no ops")

    def close(self) -> None:
        """Free the session."""
        self._session = None

    def _find_facts(self) -> SessionFacts:
        import onnxruntime as ort

        seen, reason = self._inspect()
        details = {
            "opt": self._options.options.get("opt", "all"),
            "spin": self._options.options.get("spin", "true"),
            "providers": ",".join(self._used),
        }
        if self._options.streams > 1:
            details["lanes"] = f"{self._options.streams}, sharing one pool of {self._options.threads} threads"
        if seen is not None:
            details |= {f"ops on {provider}": str(count) for provider, count in seen.providers.items()}
        return SessionFacts(
            runtime="onnxruntime",
            runtime_version=ort.__version__,
            provider=self._used[0],
            threads=self._options.threads if self._kind == "cpu" else None,
            precision=seen.precision if seen else None,
            precision_reason=reason,
            details=details,
        )

    def _inspect(self) -> tuple[Executed | None, str | None]:
        if self._kind == "tensorrt":
            return None, "not looked up: it would build the TensorRT engine a second time"
        # External data lie beside the model under a name that begins like the model's.
        files = [path for path in self._artifact.parent.iterdir() if path.name.startswith(self._artifact.stem)]
        size = sum(path.stat().st_size for path in files)
        if size > INSPECTION_LIMIT_BYTES:
            return (
                None,
                f"not looked up: it would load the model's {size} bytes a second time (limit {INSPECTION_LIMIT_BYTES})",
            )
        with tempfile.TemporaryDirectory(prefix="edgeprof-") as folder:
            try:
                session = _open(self._artifact, self._options, self._providers, profile=Path(folder) / "profile")
                session.run(self._names, {info.name: _zeros(info, self._options) for info in self.inputs})
                events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
            except Exception as error:  # noqa: BLE001 (a fact that cannot be had must not cost the case)
                return None, f"the profiled inference on zeros failed: {error}"
        seen = executed(events)
        return (seen, None) if seen.precision else (None, "onnxruntime's profile lists no ops")


def _open(
    artifact: Path, options: LoadOptions, providers: list[Any], profile: Path | None = None, *, packed: bool = False
) -> Any:
    import onnxruntime as ort

    opt = choice("ort", options.options, "opt", tuple(_OPTIMISATION), "all")
    spin = flag("ort", options.options, "spin", default=True)
    refuse = choice("ort", options.options, "cpu_ops", ("allow", "refuse"), "allow") == "refuse"
    settings = ort.SessionOptions()
    # Always explicit: with 0 onnxruntime makes a thread per core of the machine, whatever the affinity mask or quota allows.
    settings.intra_op_num_threads = options.threads
    settings.inter_op_num_threads = 1
    settings.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    settings.graph_optimization_level = getattr(ort.GraphOptimizationLevel, _OPTIMISATION[opt])
    settings.log_severity_level = 2
    settings.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
    if refuse and len(providers) > 1:
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    if profile is not None:
        settings.enable_profiling = True
        settings.profile_file_prefix = str(profile)
        settings.log_severity_level = 4
        # Packed weights vanish from the profile, and with them the bit width of weight-only ops; but they are what is fast.
        settings.add_session_config_entry("session.disable_prepacking", "0" if packed else "1")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return ort.InferenceSession(str(artifact), settings, providers=providers)
    except Exception as error:
        raise BackendError(f"ort could not load '{artifact.name}': {error}") from error


def _device(device: str | None) -> tuple[str, int]:
    match = re.fullmatch(r"([a-z]+)(?:\.(\d+))?", (device or "cpu").lower())
    if match is None or match[1] not in _PROVIDERS or (match[1] == "cpu" and match[2]):
        raise BackendError(
            f"backend 'ort' has no device '{device}', expected one of: {', '.join(_PROVIDERS)} (or cuda.1, …)."
        )
    return match[1], int(match[2] or 0)


def _providers(kind: str, index: int, options: LoadOptions) -> list[Any]:
    if kind == "cpu":
        return list(_PROVIDERS[kind])
    settings: dict[str, dict[str, str]] = {name: {"device_id": str(index)} for name in _PROVIDERS[kind][:-1]}
    # ONNX Runtime's own default lets float32 products lose 13 bits on Ampere and later; the reference must not change.
    tf32 = flag("ort", options.options, "tf32", default=False)
    settings["CUDAExecutionProvider"]["use_tf32"] = "1" if tf32 else "0"
    if kind == "tensorrt":
        fp16 = flag("ort", options.options, "fp16", default=False)
        settings["TensorrtExecutionProvider"]["trt_fp16_enable"] = "1" if fp16 else "0"
        if options.cache_dir is not None:
            settings["TensorrtExecutionProvider"] |= {
                "trt_engine_cache_enable": "1",
                "trt_engine_cache_path": str(options.cache_dir),
            }
    return [*settings.items(), "CPUExecutionProvider"]


def _tensor_info(info: Any) -> TensorInfo:
    match = re.fullmatch(r"tensor\((\w+)\)", info.type)
    dtype = _NUMPY_NAMES.get(match[1], match[1]) if match else str(info.type)
    return TensorInfo(info.name, dtype, tuple(size if size != "" else None for size in info.shape))


def _zeros(info: TensorInfo, options: LoadOptions) -> Any:
    shape: tuple[int, ...] | None = options.sample_shapes.get(info.name)
    if shape is None:
        shape = tuple(
            size if isinstance(size, int) else (options.batch if axis == 0 else 1)
            for axis, size in enumerate(info.shape)
        )
    return np.full(shape, "", object) if info.dtype == "object" else np.zeros(shape, np.dtype(info.dtype))


def _version() -> str | None:
    for distribution in _DISTRIBUTIONS:
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return None
