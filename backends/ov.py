"""OpenVINO: `ov` (CPU), `ov:GPU`, `ov:NPU`, with `.N` for the N-th device.

Options: `precision=f32|bf16|f16|runtime` (inference precision hint) and `shape=static|dynamic`.

Left alone (`precision=runtime`), OpenVINO computes float32 models in bfloat16 on CPUs that have it (AMX, AVX-512 BF16) and
in float16 on GPUs and newer Arm cores. A reference that is paired with variants must not change its arithmetic with the
host, so the hint here is f32 unless another is asked for. NPUs know no f32; their own precision is left and reported.

With `shape=static`, the default, a session is compiled for `LoadOptions.sample_shapes` and takes only these: OpenVINO
plans memory and kernels for fixed shapes. Without sample shapes, or if the model cannot take them, shapes stay dynamic and
`facts.details["shape"]` says so.
"""

from __future__ import annotations

import copy
import hashlib
import platform
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata, util
from pathlib import Path
from typing import Any

from backends import ov_embedded, signal_stack
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
    middle_mean,
    warm_runs,
)
from backends.options import choice, require_known

_DEVICES = ("CPU", "GPU", "NPU")
_INSTALL = {
    "CPU": "pip install openvino",
    "GPU": "pip install openvino, and Intel's OpenCL or Level Zero GPU driver",
    "NPU": "pip install openvino, and Intel's NPU driver",
}
_DTYPES = {"boolean": "bool", "bf16": "bfloat16", "string": "object"} | {
    f"{letter}{bits}": f"{word}{bits}"
    for letter, word in (("f", "float"), ("i", "int"), ("u", "uint"))
    for bits in (8, 16, 32, 64)
}
_CONVERSIONS = {"Reorder", "Convert"}
_NOT_EXECUTED = {"Input", "Output", "Const", "Constant", "Parameter", "Result"}
_INT8 = {"i8", "u8"}
_FLOATS = {"f16", "bf16", "f32", "f64"}
_NODE_FACTS = ("layerType", "primitiveType", "runtimePrecision", "originalLayersNames")
_REPORTED = ("INFERENCE_PRECISION_HINT", "PERFORMANCE_HINT", "NUM_STREAMS", "DYNAMIC_QUANTIZATION_GROUP_SIZE")


class OvBackend:
    """Adapter for OpenVINO."""

    name = "ov"
    modules = ("openvino",)
    """What the worker imports before it loads, so that import and load are timed apart."""

    def devices(self) -> Sequence[str]:
        """`CPU`, `GPU`, `NPU`; each takes an index, `GPU.1`."""
        return _DEVICES

    def availability(self, device: str | None = None) -> Availability:
        """Told from the installed package for the CPU; only for GPU and NPU OpenVINO itself is asked."""
        wanted = _device(device)
        install = _INSTALL[wanted.partition(".")[0]]
        if util.find_spec("openvino") is None:
            return Availability(False, reason="openvino is not installed", install=install)
        version = metadata.version("openvino")
        if not wanted.startswith("CPU"):
            found = list(_core().available_devices)
            if wanted not in {name for full in found for name in (full, full.partition(".")[0])}:
                reason = f"OpenVINO {version} sees no {wanted} here, only {', '.join(found) or 'nothing'}"
                return Availability(False, version, reason, install)
        return Availability(True, version)

    def load(self, artifact: Path, options: LoadOptions) -> OvSession:
        """Compile for exactly the asked device. See `Backend.load` for the errors."""
        device = _device(options.device)
        require_known(self.name, options.options, ("precision", "shape"))
        default = "runtime" if device.startswith("NPU") else "f32"
        precision = choice(self.name, options.options, "precision", ("f32", "bf16", "f16", "runtime"), default)
        static = choice(self.name, options.options, "shape", ("static", "dynamic"), "static") == "static"
        if not artifact.is_file():
            raise BackendError(f"ov: model file '{artifact}' is not there; make the artifact first.")
        availability = self.availability(device)
        if not availability.available:
            raise BackendUnavailable(
                f"ov:{device} cannot run here: {availability.reason}. Install: {availability.install}."
            )
        core = _core()
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": options.streams}
        if device.startswith("CPU"):
            # OpenVINO counts the threads of all streams together.
            settings["INFERENCE_NUM_THREADS"] = options.threads * options.streams
        if precision != "runtime":
            settings["INFERENCE_PRECISION_HINT"] = precision
        if options.cache_dir is not None:
            settings["CACHE_DIR"] = str(options.cache_dir / _kind(core, device, settings))

        def compile_with(more: Mapping[str, Any]) -> tuple[Any, str]:
            try:
                model = ov_embedded.read_model(core, artifact)
                note = _fix_shapes(model, options) if static else "dynamic, as asked"
                with signal_stack.kept():
                    return core.compile_model(model, device, {**settings, **more}), note
            except RuntimeError as error:
                raise BackendError(f"ov could not load '{artifact.name}': {_words(error)}") from error

        compiled, note = compile_with({})
        if precision != "runtime" and (used := _hint(compiled)) not in {precision, None}:
            raise ProviderMismatch(
                f"ov:{device} was asked for precision={precision}, but OpenVINO would compute '{artifact.name}' in {used} "
                f"on this machine; ask for precision={used}."
            )
        return OvSession(artifact.name, device, compiled, note, lambda: compile_with({"PERF_COUNT": True})[0])


class OvSession:
    """One compiled model with one request that is used again and again."""

    def __init__(
        self, artifact: str, device: str, compiled: Any, shape_note: str, profiled: Callable[[], Any] | None = None
    ) -> None:
        """Made by `OvBackend.load`. `profiled` compiles the model once more, with performance counters."""
        used = [name.strip("()") for name in compiled.get_property("EXECUTION_DEVICES")]
        if any(not name.startswith(device.partition(".")[0]) for name in used):
            raise ProviderMismatch(
                f"ov:{device} was asked for, but OpenVINO would run '{artifact}' on {', '.join(used)}; "
                f"ask for that device by name."
            )
        self._artifact, self._device, self._shape_note, self._compiled = artifact, device, shape_note, compiled
        self._profiled = profiled
        self._facts: SessionFacts | None = None
        self._request: Any = compiled.create_infer_request()
        self.inputs: Sequence[TensorInfo] = tuple(
            _tensor_info(port, port.get_node().get_friendly_name()) for port in compiled.inputs
        )
        self.outputs: Sequence[TensorInfo] = tuple(
            _tensor_info(port, port.get_node().get_friendly_name().partition("/sink_port_")[0])
            for port in compiled.outputs
        )
        self._names = [info.name for info in self.outputs]

    def infer(self, feeds: Feeds) -> Outputs:
        """Run once. The outputs are views of the request's memory: the next call overwrites them."""
        try:
            results = self._request.infer(feeds, share_inputs=True, share_outputs=True)
        except Exception as error:  # RuntimeError from the runtime, TypeError and KeyError from its Python wrapper
            if self._request is None:
                raise BackendError(f"ov: the session of '{self._artifact}' is closed; load it again.") from error
            raise BackendError(f"ov could not run '{self._artifact}': {_words(error)}") from error
        return dict(zip(self._names, results.values(), strict=True))

    def lane(self) -> OvSession:
        """Another request on the same compiled model. As many run at once as there are streams (`LoadOptions.streams`)."""
        if self._compiled is None:
            raise BackendError(f"ov: the session of '{self._artifact}' is closed; load it again.")
        lane = copy.copy(self)
        lane._request = self._compiled.create_infer_request()  # noqa: SLF001 (a copy of ourselves)
        return lane

    @property
    def facts(self) -> SessionFacts:
        """What runs, from the compiled model's properties and its execution graph."""
        if self._facts is None:
            self._facts = self._find_facts()
        return self._facts

    def op_times(self, feeds: Feeds, runs: int) -> Sequence[OpTime] | NoOpTimes:
        """Times per op from a second compiled model with performance counters, which cost time in every inference."""
        if self._compiled is None or self._profiled is None:
            raise BackendError(f"ov: the session of '{self._artifact}' is closed; load it again.")
        compiled = self._profiled()
        request = compiled.create_infer_request()
        seen: dict[str, list[float]] = {}
        kinds: dict[str, tuple[str, str]] = {}
        try:
            for run in range(-warm_runs(runs), runs):
                request.infer(feeds, share_inputs=True, share_outputs=True)
                if run < 0:
                    continue
                for info in request.get_profiling_info():
                    if info.status.name == "EXECUTED":
                        seen.setdefault(info.node_name, []).append(info.real_time.total_seconds())
                        kinds[info.node_name] = (info.node_type, info.exec_type)
            nodes = {node["name"]: node for node in _execution_graph(compiled)}
        except RuntimeError as error:
            raise BackendError(f"ov could not profile '{self._artifact}': {_words(error)}") from error
        hint = _hint(compiled)
        ops = [
            OpTime(
                name, kinds[name][0], _realised(nodes.get(name, {}), hint) or "undetermined", self._device,
                middle_mean([*times, *[0.0] * (runs - len(times))]), len(times) / runs, kinds[name][1],
                tuple(filter(None, nodes.get(name, {}).get("originalLayersNames", "").split(","))),
            )
            for name, times in seen.items()
        ]  # fmt: skip
        return tuple(ops) or NoOpTimes(f"OpenVINO's counters on {self._device} name no executed op")

    def close(self) -> None:
        """Free the request and the compiled model. Arrays from `infer` must not be used after it."""
        self._request = self._compiled = None

    def _find_facts(self) -> SessionFacts:
        if self._compiled is None:
            raise BackendError(f"ov: the session of '{self._artifact}' is closed; load it again.")
        supported = set(self._compiled.get_property("SUPPORTED_PROPERTIES"))
        details = {"shape": self._shape_note}
        for key in _REPORTED:
            if key in supported:
                value = self._compiled.get_property(key)
                details[key] = value.get_type_name() if hasattr(value, "get_type_name") else str(value)
        precision, kernels, reason = None, None, None
        try:
            precision, kernels = summarise(_execution_graph(self._compiled), _hint(self._compiled))
        except RuntimeError as error:
            reason = f"OpenVINO gives no execution graph for {self._device}: {_words(error)}"
        if kernels:
            details["kernels"] = ",".join(f"{kernel}={count}" for kernel, count in kernels.items())
        threads = None
        if self._device.startswith("CPU"):
            streams = max(1, int(self._compiled.get_property("NUM_STREAMS")))
            threads = int(self._compiled.get_property("INFERENCE_NUM_THREADS")) // streams
        return SessionFacts(
            runtime="openvino",
            runtime_version=metadata.version("openvino"),
            provider=",".join(self._compiled.get_property("EXECUTION_DEVICES")),
            threads=threads,
            precision=precision or None,
            precision_reason=reason or (None if precision else "the execution graph names no runtime precision"),
            details=details,
        )


def summarise(nodes: Iterable[Mapping[str, str]], hint: str | None) -> tuple[dict[str, int], dict[str, int]]:
    """Executed ops by precision and by kernel (`brgconv_avx512_amx_i8`), from the run-time info of an execution graph's nodes.

    A `Subgraph` is a whole group of ops compiled into one kernel. Its node tells the type of its results only: seen here, one
    that said f32 computed its MatMuls in bf16. So it counts by its node under an f32 hint, else as `undetermined`.
    """
    precision: Counter[str] = Counter()
    kernels: Counter[str] = Counter()
    for node in nodes:
        realised = _realised(node, hint)
        if realised is None:
            continue
        kernels[node.get("primitiveType") or "unknown"] += 1
        precision[realised] += 1
    return dict(sorted(precision.items())), dict(sorted(kernels.items()))


def _realised(node: Mapping[str, str], hint: str | None) -> str | None:
    kind, realised = node.get("layerType", ""), node.get("runtimePrecision", "")
    if kind in _NOT_EXECUTED or not realised:
        return None
    if kind in _CONVERSIONS:
        return "conversion"
    if realised in _INT8:
        return "i8"
    if kind == "Subgraph" and hint != "f32":
        return "undetermined"
    return realised if realised in _FLOATS else "other"


def _execution_graph(compiled: Any) -> list[dict[str, str]]:
    nodes: list[dict[str, str]] = []
    constant: set[str] = set()
    for op in compiled.get_runtime_model().get_ordered_ops():
        info = op.get_rt_info()
        node = {key: str(info[key].value) for key in _NODE_FACTS if key in info} | {"name": op.get_friendly_name()}
        sources = [value.get_node().get_friendly_name() for value in op.input_values()]
        # What has only constants above it (a transposed weight) ran once, at compilation.
        if node.get("layerType") in {"Const", "Constant"} or (sources and constant.issuperset(sources)):
            constant.add(op.get_friendly_name())
        else:
            nodes.append(node)
    return nodes


def _hint(compiled: Any) -> str | None:
    if "INFERENCE_PRECISION_HINT" not in set(compiled.get_property("SUPPORTED_PROPERTIES")):
        return None
    return str(compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name())


def _fix_shapes(model: Any, options: LoadOptions) -> str:
    shapes = options.sample_shapes
    if not shapes:
        return "dynamic where the model is: no sample shapes were given" if model.is_dynamic() else "static"
    before = {port: port.get_partial_shape() for port in model.inputs}

    def fixed(port: Any, shape: tuple[int, ...]) -> Any:
        import openvino

        first = before[port][0] if options.varying_batch else None
        if first is None or first.is_static:
            return openvino.PartialShape(list(shape))
        return openvino.PartialShape([openvino.Dimension(1, options.batch), *map(openvino.Dimension, shape[1:])])

    try:
        model.reshape(
            {port: fixed(port, shapes[name]) for port in model.inputs for name in port.get_names() & shapes.keys()}
        )
    except RuntimeError as error:
        model.reshape(before)
        return f"dynamic: the model cannot take the sample shapes ({_words(error)})"
    if options.varying_batch and model.is_dynamic():
        return f"batches of 1 to {options.batch}, the rest static"
    return "dynamic: some shapes follow from values" if model.is_dynamic() else "static"


def _tensor_info(port: Any, preferred: str) -> TensorInfo:
    # A tensor may carry several names after constant folding; the graph's own input or output name is the node's.
    names = port.get_names()
    name = preferred if preferred in names or not names else port.get_any_name()
    shape = tuple(dim.get_length() if dim.is_static else None for dim in port.get_partial_shape())
    element = port.get_element_type().get_type_name()
    return TensorInfo(name, _DTYPES.get(element, element), shape)


def _device(device: str | None) -> str:
    name = (device or "CPU").upper()
    if not re.fullmatch(r"(CPU|GPU|NPU)(\.\d+)?", name):
        raise BackendError(
            f"backend 'ov' has no device '{device}', expected one of: {', '.join(_DEVICES)} (or GPU.1, …). "
            f"AUTO, MULTI and HETERO are not taken, because the device that answers would be OpenVINO's choice."
        )
    return name


def _core() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise BackendUnavailable(f"openvino cannot be imported: {error}. Install it: {_INSTALL['CPU']}.") from error
    return openvino.Core()


def _kind(core: Any, device: str, settings: Mapping[str, Any]) -> str:
    """A name for what compiled models depend on beside the model: settings, device, machine and version.

    OpenVINO's own key is not enough. Seen with 2026.4.1 on arm64: after a session in f16, one that asked for f32 took the
    cached f16 model, computed in f16 and reported f32; nor does the key tell one Arm core from another.
    """

    def told(name: str) -> str:
        try:
            return str(core.get_property(device, name))
        except RuntimeError:
            return ""

    of_device = [told(name) for name in ("FULL_DEVICE_NAME", "DEVICE_ARCHITECTURE", "OPTIMIZATION_CAPABILITIES")]
    asked = [f"{name}={value}" for name, value in sorted(settings.items())]
    text = "\n".join([platform.machine(), metadata.version("openvino"), device, *of_device, *asked])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _words(error: Exception) -> str:
    # OpenVINO puts the C++ source line of each frame first; what it wants to say comes last.
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith("Exception from src/")]
    return " ".join(told or lines)[:2000]
