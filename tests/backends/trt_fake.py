"""A TensorRT binding and a GPU made of host memory, for the adapter's logic.

The fake has the names of one version and flavour and no others; setting an undeclared attribute fails. `contract()` lists these
names, and scripts/check_trt_api compares them with NVIDIA's real bindings, so that the fake can't offer what they don't have.
"""

from __future__ import annotations

import ctypes
import json
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np

from backends.trt_cuda import Pinned

DTYPES = {1: "FLOAT", 2: "UINT8", 3: "INT8", 6: "INT32", 7: "INT64", 9: "BOOL", 10: "HALF", 16: "BF16"}
NUMPY = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
    "UINT8": "uint8",
}
LAYERS = {
    "Layers": [
        {"Name": "q", "LayerType": "Quantize", "Inputs": [{"Format/Datatype": "Row major linear FP32"}]},
        {
            "Name": "conv",
            "LayerType": "CaskConvolution",
            "Inputs": [{"Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}],
        },
        {"Name": "fc", "LayerType": "gemm", "Inputs": [{"Format/Datatype": "Half"}]},
        {"Name": "sm", "LayerType": "kgen", "Inputs": [{"Format/Datatype": "Row major linear FP32"}]},
    ]
}


class Strict:
    """Refuses attributes that its class doesn't declare."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and not hasattr(type(self), name):
            raise AttributeError(f"{type(self).__name__} has no attribute {name}")
        object.__setattr__(self, name, value)


class FakeDevice:
    """Device memory is host memory at another address; every call goes into the journal."""

    def __init__(self, journal: list, name: str = "NVIDIA Fake", compute_capability: tuple[int, int] = (8, 6)) -> None:
        self.journal, self.name, self.compute_capability, self.cuda_version = journal, name, compute_capability, "13.0"
        self.live: dict[int, Any] = {}
        self.graphs: dict[int, Any] = {}
        self.uncapturable = False
        self.closed = 0
        self.limit_bytes = 1 << 30

    def _new(self, size: int) -> tuple[int, Any]:
        memory = (ctypes.c_uint8 * max(1, size))()
        address = ctypes.addressof(memory)
        self.live[address] = memory
        return address, memory

    def allocate(self, size_bytes: int) -> int:
        from backends.trt_cuda import CudaError

        if size_bytes > self.limit_bytes:
            raise CudaError("CUDA: cuMemAlloc_v2 failed with error 2 CUDA_ERROR_OUT_OF_MEMORY (out of memory).")
        return self._new(size_bytes)[0]

    def free(self, address: int) -> None:
        del self.live[address]

    def pin(self, size_bytes: int) -> Pinned:
        address, memory = self._new(size_bytes)
        return Pinned(address, np.frombuffer(memory, np.uint8, count=size_bytes))

    def unpin(self, memory: Pinned) -> None:
        del self.live[memory.address]

    def create_stream(self) -> int:
        return self._new(8)[0]

    def destroy_stream(self, stream: int) -> None:
        del self.live[stream]

    def to_device(self, target: int, source: int, size_bytes: int, stream: int) -> None:
        assert stream in self.live
        self.journal.append("to_device")
        ctypes.memmove(target, source, size_bytes)

    def to_host(self, target: int, source: int, size_bytes: int, stream: int) -> None:
        assert stream in self.live
        self.journal.append("to_host")
        ctypes.memmove(target, source, size_bytes)

    def capture(self, stream: int, queue: Any) -> int:
        assert stream in self.live
        if self.uncapturable:
            from backends.trt_cuda import CudaError

            raise CudaError(
                "CUDA: cuStreamEndCapture failed with error 901 (operation failed due to a previous error)."
            )
        graph = self._new(8)[0]
        self.journal.append("capture")
        self.graphs[graph] = queue
        return graph

    def launch(self, graph: int, stream: int) -> None:
        assert stream in self.live
        self.journal.append("launch")
        self.graphs[graph]()

    def destroy_graph(self, graph: int) -> None:
        del self.live[graph], self.graphs[graph]

    def create_event(self) -> int:
        return self._new(8)[0]

    def destroy_event(self, event: int) -> None:
        del self.live[event]

    def record(self, event: int, stream: int) -> None:
        assert stream in self.live
        self.journal.append("record")
        # As far as what was queued until now takes: a copy there 20 µs, one back 10 µs, all else nothing.
        took_us = 20 * self.journal.count("to_device") + 10 * self.journal.count("to_host")
        ctypes.memmove(event, ctypes.byref(ctypes.c_double(took_us / 1e6)), 8)

    def elapsed_s(self, start: int, end: int) -> float:
        first, last = (ctypes.c_double.from_address(event).value for event in (start, end))
        return last - first

    def synchronize(self, stream: int) -> None:
        assert stream in self.live
        self.journal.append("synchronize")

    def close(self) -> None:
        self.closed += 1


def contract(trt: Any) -> set[str]:
    """Every public name of the fake: `Builder`, `Builder.create_network`, `BuilderFlag.TF32`, …"""
    names = set()
    for name, item in vars(trt).items():
        if not isinstance(item, type):
            continue
        names.add(name)
        members = item.__members__ if issubclass(item, IntEnum) else vars(item)
        names.update(f"{name}.{member}" for member in members if not member.startswith("_"))
    return names


def everything() -> set[str]:
    """The names of all versions together; what one version's fake lacks of them its real binding must lack too."""
    return set().union(
        *(contract(fake_trt(*which)) for which in (("trt", "10.13.2"), ("trt", "11.4.0"), ("rtx", "1.7.1")))
    )


def fake_trt(flavour: str = "trt", version: str = "11.4.0") -> Any:  # noqa: C901 (a module, written as a function)
    """A module-like object. `journal` records calls; `plans` are bytes; `behave` changes what calls answer."""
    major = int(version.split(".", maxsplit=1)[0])
    rtx, ten = flavour == "rtx", flavour == "trt" and major == 10
    journal: list[Any] = []
    behave: dict[str, Any] = {}

    class ILogger(Strict):
        class Severity(IntEnum):
            INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

        def log(self, severity: Any, msg: str) -> None:
            raise NotImplementedError

    def say(logger: Any, key: str) -> None:
        for severity, text in behave.get(key, ()):
            logger.log(ILogger.Severity[severity], text)

    flags = ["TF32", "SPARSE_WEIGHTS"] + (["FP16", "BF16", "INT8"] if ten else [])
    BuilderFlag = IntEnum("BuilderFlag", flags, start=0)  # noqa: N806
    NetworkDefinitionCreationFlag = IntEnum("NetworkDefinitionCreationFlag", {"STRONGLY_TYPED": 1})  # noqa: N806
    MemoryPoolType = IntEnum("MemoryPoolType", ["WORKSPACE"], start=0)  # noqa: N806
    ProfilingVerbosity = IntEnum("ProfilingVerbosity", ["DETAILED"], start=0)  # noqa: N806
    LayerInformationFormat = IntEnum("LayerInformationFormat", ["JSON"], start=0)  # noqa: N806
    TensorIOMode = IntEnum("TensorIOMode", ["INPUT", "OUTPUT"], start=1)  # noqa: N806
    TensorLocation = IntEnum("TensorLocation", ["DEVICE", "HOST"], start=0)  # noqa: N806
    names = ["FLOAT", "HALF", "INT8", "UINT8", "INT32", "INT64", "BOOL", "BF16"]
    DataType = IntEnum("DataType", names, start=0)  # noqa: N806

    class ITensor(Strict):
        name = ""
        shape: tuple[int, ...] = ()
        is_shape_tensor = False

        def __init__(self, name: str, shape: tuple[int, ...]) -> None:
            self.name, self.shape = name, shape
            self.is_shape_tensor = name in behave.get("shape_tensors", ())

    class INetworkDefinition(Strict):
        num_inputs = 0
        _graph: Any = None

        def get_input(self, index: int) -> ITensor:
            entry = self._graph["inputs"][index]
            return ITensor(entry["name"], tuple(entry["shape"]))

    class IOptimizationProfile(Strict):
        def __init__(self) -> None:
            self._shapes: dict[str, Any] = {}

        def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:  # noqa: A002
            journal.append(("set_shape", input, min, opt, max))
            self._shapes[input] = (list(min), list(max))

    class ITimingCache(Strict):
        def __init__(self, data: bytes) -> None:
            self._data = data

        def serialize(self) -> bytes:
            return self._data + b"+"

    class IBuilderConfig(Strict):
        builder_optimization_level = 3
        profiling_verbosity = 0
        num_compute_capabilities = 0

        def __init__(self) -> None:
            self._profiles: list[Any] = []

        def set_flag(self, flag: Any) -> None:
            journal.append(("set_flag", flag.name))

        def clear_flag(self, flag: Any) -> None:
            journal.append(("clear_flag", flag.name))

        def set_memory_pool_limit(self, pool: Any, size: int) -> None:
            journal.append(("set_memory_pool_limit", pool.name, size))

        def add_optimization_profile(self, profile: Any) -> int:
            self._profiles.append(profile)
            return behave.get("add_optimization_profile", 0)

        def create_timing_cache(self, data: bytes) -> Any:
            journal.append(("create_timing_cache", data))
            return None if data in behave.get("bad_timing_caches", ()) else ITimingCache(data)

        def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
            assert cache is not None
            return True

    if rtx:
        members = ["NONE", "CURRENT", "SM75", "SM80", "SM86", "SM89", "SM120", "SM121"]
        ComputeCapability = IntEnum("ComputeCapability", members, start=0)  # noqa: N806

        def set_compute_capability(self: Any, value: Any, index: int) -> bool:
            assert index < self.num_compute_capabilities
            journal.append(("set_compute_capability", value.name, index))
            return behave.get("set_compute_capability", True)

        IBuilderConfig.set_compute_capability = set_compute_capability
    else:
        del IBuilderConfig.num_compute_capabilities

    class Builder(Strict):
        def __init__(self, logger: Any) -> None:
            self._logger = logger
            say(logger, "builder_log")
            if "builder" in behave:
                raise behave["builder"]

        def create_network(self, flags: int) -> INetworkDefinition:
            journal.append(("create_network", flags))
            return INetworkDefinition()

        def create_builder_config(self) -> IBuilderConfig:
            trt.last_config = IBuilderConfig()
            return trt.last_config

        def create_optimization_profile(self) -> IOptimizationProfile:
            return IOptimizationProfile()

        def build_serialized_network(self, network: Any, config: Any) -> bytes | None:
            journal.append("build")
            say(self._logger, "build_log")
            graph = json.loads(json.dumps(network._graph))
            graph["ranges"] = {name: sizes for profile in config._profiles for name, sizes in profile._shapes.items()}
            return None if behave.get("build", 0) is None else json.dumps(graph).encode()

    class ErrorCode(IntEnum):
        INVALID_NODE = 5
        UNSUPPORTED_NODE = 8

    class ParserError(Strict):
        def __init__(self, facts: tuple) -> None:
            self._facts = facts

        def node(self) -> int:
            return self._facts[0]

        def node_name(self) -> str:
            return self._facts[1]

        def node_operator(self) -> str:
            return self._facts[2]

        def code(self) -> Any:
            return ErrorCode[self._facts[3]]

        def desc(self) -> str:
            return self._facts[4]

        def func(self) -> str:
            return f"import{self._facts[2]}"

    class OnnxParser(Strict):
        num_errors = 0

        def __init__(self, network: Any, logger: Any) -> None:
            self._network, self._logger = network, logger

        def parse_from_file(self, path: str) -> bool:
            import onnx

            say(self._logger, "parse_log")
            self.num_errors = len(behave.get("parse_errors", ()))
            if self.num_errors or behave.get("parse") is False:
                return False
            graph = onnx.load(path).graph
            self._network._graph = {
                "inputs": [entry(v) for v in graph.input],
                "outputs": [entry(v) for v in graph.output],
            }
            self._network.num_inputs = len(graph.input)
            return True

        def get_error(self, index: int) -> ParserError:
            return ParserError(behave["parse_errors"][index])

    def entry(value: Any) -> dict[str, Any]:
        kind = value.type.tensor_type
        sizes = [
            d.dim_value if d.HasField("dim_value") else (-2 if d.dim_param == "found" else -1) for d in kind.shape.dim
        ]
        return {"name": value.name, "shape": sizes, "dtype": DTYPES[kind.elem_type]}

    class IOutputAllocator(Strict):
        pass

    class EngineInspector(Strict):
        def get_engine_information(self, layout: Any) -> str:
            return behave.get("layers", json.dumps(LAYERS))

    class IProfiler(Strict):
        def report_layer_time(self, layer_name: str, ms: float) -> None:
            raise NotImplementedError

    class IExecutionContext(Strict):
        profiler = None

        def __init__(self, engine: Any) -> None:
            self._engine, self._shapes, self._addresses, self._allocators = engine, {}, {}, {}

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            journal.append(("set_input_shape", name, shape))
            self._shapes[name] = shape
            least, most = self._engine._graph["ranges"].get(name, (shape, shape))
            fits = all(a <= size <= b for a, size, b in zip(least, shape, most, strict=True))
            return fits and behave.get("set_input_shape", True)

        def infer_shapes(self) -> list[str]:
            return behave.get("infer_shapes", [])

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            batch = next(iter(self._shapes.values()))[0]
            sizes = self._engine._entry(name)["shape"]
            return tuple({-1: batch, -2: -1}.get(size, size) for size in sizes)

        def set_tensor_address(self, name: str, address: int) -> bool:
            journal.append(("set_tensor_address", name))
            self._addresses[name] = address
            return True

        def set_output_allocator(self, name: str, allocator: Any) -> bool:
            self._allocators[name] = allocator
            return behave.get("set_output_allocator", True)

        def execute_async_v3(self, stream: int) -> bool:
            journal.append("execute")
            say(self._engine._logger, "run_log")
            if behave.get("execute") is False:
                return False
            for name, ms in behave.get("layer_times", ()) if self.profiler is not None else ():
                self.profiler.report_layer_time(name, ms)
            source = self._engine._graph["inputs"][0]
            values = view(self._addresses[source["name"]], self._shapes[source["name"]], source["dtype"])
            for item in self._engine._graph["outputs"]:
                if item["name"] in self._allocators:  # a data-dependent output: the positive values
                    found = values[values > 0].astype(NUMPY[item["dtype"]])
                    allocator = self._allocators[item["name"]]
                    address = allocator.reallocate_output_async(item["name"], 0, found.nbytes, 256, stream)
                    if not address:
                        return False
                    allocator.notify_shape(item["name"], found.shape)
                    view(address, found.shape, item["dtype"])[...] = found
                else:
                    shape = self.get_tensor_shape(item["name"])
                    view(self._addresses[item["name"]], shape, item["dtype"])[...] = (values * 2).reshape(shape)
            return True

    class ICudaEngine(Strict):
        num_io_tensors = 0

        def __init__(self, graph: dict[str, Any], logger: Any) -> None:
            self._graph, self._logger = graph, logger
            self.num_io_tensors = len(graph["inputs"]) + len(graph["outputs"])

        def _entry(self, name: str) -> dict[str, Any]:
            return next(item for item in self._graph["inputs"] + self._graph["outputs"] if item["name"] == name)

        def get_tensor_name(self, index: int) -> str:
            return (self._graph["inputs"] + self._graph["outputs"])[index]["name"]

        def get_tensor_mode(self, name: str) -> Any:
            return TensorIOMode.INPUT if any(i["name"] == name for i in self._graph["inputs"]) else TensorIOMode.OUTPUT

        def get_tensor_location(self, name: str) -> Any:
            return TensorLocation.HOST if name in behave.get("host_tensors", ()) else TensorLocation.DEVICE

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return tuple(self._entry(name)["shape"])

        def get_tensor_dtype(self, name: str) -> Any:
            return DataType[self._entry(name)["dtype"]]

        def create_engine_inspector(self) -> Any:
            return EngineInspector()

        def create_execution_context(self, runtime_config: Any = None) -> Any:
            if runtime_config is not None:
                journal.append(("kernels", runtime_config.dynamic_shapes_kernel_specialization_strategy.name))
            return None if behave.get("context", 0) is None else IExecutionContext(self)

    class IRuntimeConfig(Strict):
        pass

    ICudaEngine.create_runtime_config = lambda self: IRuntimeConfig()

    class Runtime(Strict):
        def __init__(self, logger: Any) -> None:
            journal.append("runtime")
            self._logger = logger

        def deserialize_cuda_engine(self, plan: bytes) -> Any:
            say(self._logger, "deserialize_log")
            return None if behave.get("deserialize", 0) is None else ICudaEngine(json.loads(plan), self._logger)

    classes: dict[str, Any] = {
        k: v for k, v in locals().items() if isinstance(v, type) and (issubclass(v, (Strict, IntEnum)))
    }
    if rtx:

        class EngineInvalidityDiagnostics(IntEnum):
            UNSUPPORTED_CC = 2
            OLD_CUDA_DRIVER = 4

        class DynamicShapesKernelSpecializationStrategy(IntEnum):
            LAZY, EAGER, NONE = range(3)

        IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY
        Runtime.get_engine_validity = lambda self, plan: (0, behave.get("diagnostics", 0))
        classes |= {
            "EngineInvalidityDiagnostics": EngineInvalidityDiagnostics,
            "DynamicShapesKernelSpecializationStrategy": DynamicShapesKernelSpecializationStrategy,
        }
    trt = SimpleNamespace(__version__=version, journal=journal, behave=behave, **classes)
    return trt


def view(address: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """The array that lies at a (fake) device address."""
    kind = np.dtype(NUMPY[dtype])
    size = int(np.prod(shape)) * kind.itemsize
    return np.frombuffer((ctypes.c_uint8 * size).from_address(address), kind).reshape(shape)
