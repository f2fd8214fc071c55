"""The tensors of a TensorRT engine: buffers on both sides, addresses, copies; and what its layers compute in."""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends.base import BackendError, FeedError, LoadOptions, TensorInfo, format_shape
from backends.trt_build import fixed_shape
from backends.trt_cuda import CudaDevice, Pinned

_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}
# Words in the inspector's "Format/Datatype", such as "Row major linear FP16 format" or "Half".
_PRECISIONS = (
    ("bf16", r"bf16|bfloat16"),
    ("f16", r"fp16|half|float16"),
    ("f8", r"fp8|float8"),
    ("f4", r"fp4|float4"),
    ("f32", r"fp32|float|float32"),
    ("u8", r"uint8"),
    ("i8", r"int8"),
    ("i4", r"int4"),
    ("i32", r"int32"),
    ("i64", r"int64"),
    ("bool", r"bool"),
)
_CONVERSIONS = {"reformat", "quantize", "dequantize", "cast"}
_NOT_COUNTED = {"noop", "constant", "signal", "wait"}
_OTHER = {"i32", "i64", "u8", "bool"}  # indices, shapes and masks: not what a precision is chosen for


class Input:
    """An input's page-locked buffer and its twin on the device."""

    def __init__(self, info: TensorInfo, host: Pinned, address: int, array: NDArray[np.generic]) -> None:
        """`array` is a view of `host` with the input's shape and dtype."""
        self.info, self._host, self.address, self._array = info, host, address, array

    def send(self, value: NDArray[np.generic], device: CudaDevice, stream: int) -> None:
        """Copy `value` into the page-locked buffer and queue the copy to the device."""
        if value.shape != self._array.shape:  # numpy would broadcast it in silence
            raise FeedError(
                f"input '{self.info.name}' got shape {tuple(value.shape)}, this engine was compiled for "
                f"{format_shape(self.info.shape)}; load a session for that shape."
            )
        np.copyto(self._array, value, casting="no")
        device.to_device(self.address, self._host.address, self._array.nbytes, stream)


class Output:
    """An output whose size is known before the run."""

    def __init__(self, info: TensorInfo, host: Pinned, address: int, array: NDArray[np.generic]) -> None:
        """`array` is a view of `host` with the output's shape and dtype."""
        self.info, self._host, self.address, self._array = info, host, address, array

    def fetch(self, device: CudaDevice, stream: int) -> None:
        """Queue the copy to the host."""
        device.to_host(self._host.address, self.address, self._array.nbytes, stream)

    def array(self, device: CudaDevice, stream: int) -> NDArray[np.generic]:  # noqa: ARG002 (GrowingOutput needs them)
        """The values, after the stream is idle."""
        return self._array


class GrowingOutput(Output):
    """An output whose size depends on the data: TensorRT asks for memory during the run and tells the shape."""

    def __init__(self, info: TensorInfo, device: CudaDevice) -> None:
        """Holds nothing yet."""
        self.info, self._device = info, device
        self.address = self._size_bytes = 0
        self.shape: tuple[int, ...] = ()

    def allocator(self, trt: Any) -> Any:
        """An IOutputAllocator that serves this output; the caller keeps it alive."""
        output = self

        class Allocator(trt.IOutputAllocator):  # type: ignore[misc]  # the base class is known only at run time
            def __init__(self) -> None:
                trt.IOutputAllocator.__init__(self)

            def reallocate_output(self, tensor_name: str, memory: int, size: int, alignment: int) -> int:  # noqa: ARG002
                return output.reserve(size)

            def reallocate_output_async(
                self,
                tensor_name: str,  # noqa: ARG002
                memory: int,  # noqa: ARG002
                size: int,
                alignment: int,  # noqa: ARG002
                stream: int,  # noqa: ARG002
            ) -> int:
                return output.reserve(size)

            def notify_shape(self, tensor_name: str, shape: Any) -> None:  # noqa: ARG002
                output.shape = tuple(int(size) for size in shape)

        return Allocator()

    def reserve(self, size_bytes: int) -> int:
        """The address of at least `size_bytes` on the device (CUDA aligns to 256); 0, TensorRT's null, when it is full."""
        if self.address and size_bytes <= self._size_bytes:
            return self.address
        self.release()
        try:
            self.address = self._device.allocate(size_bytes)
        except BackendError:  # an exception can't pass through TensorRT's C++; its own failure follows from the null
            return 0
        self._size_bytes = size_bytes
        return self.address

    def release(self) -> None:
        """Free the device memory, if any."""
        if self.address:
            self._device.free(self.address)
            self.address = self._size_bytes = 0

    def fetch(self, device: CudaDevice, stream: int) -> None:
        """Nothing to queue: the shape isn't known before the stream is idle."""

    def array(self, device: CudaDevice, stream: int) -> NDArray[np.generic]:
        """Copy the values that the run made; waits once more."""
        values = np.empty(self.shape, self.info.dtype)
        if values.nbytes:
            device.to_host(values.ctypes.data, self.address, values.nbytes, stream)
            device.synchronize(stream)
        return values


def bind(
    trt: Any,
    engine: Any,
    context: Any,
    device: CudaDevice,
    closing: contextlib.ExitStack,
    artifact: str,
    options: LoadOptions,
) -> tuple[list[Input], list[Output]]:
    """Fix the input shapes, make every buffer and tell the context their addresses. `closing` frees what was made."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    input_names = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    inputs: list[Input] = []
    outputs: list[Output] = []
    for name in input_names:
        if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
            raise BackendError(f"trt: input '{name}' of '{artifact}' is a shape; make it a constant in the model.")
        shape = fixed_shape(artifact, name, tuple(int(size) for size in engine.get_tensor_shape(name)), options)
        if not context.set_input_shape(name, shape):
            raise BackendError(
                f"trt: the engine of '{artifact}' does not take {format_shape(shape)} as input '{name}'."
            )
        info = TensorInfo(name, _dtype(engine, name, artifact), shape)
        inputs.append(Input(info, *_buffers(info, shape, context, device, closing)))
    unknown = context.infer_shapes()
    if unknown:
        raise BackendError(
            f"trt: shapes of {', '.join(unknown)} in '{artifact}' depend on more than the inputs' shapes."
        )
    for name in (name for name in names if name not in input_names):
        shape = tuple(int(size) for size in context.get_tensor_shape(name))
        info = TensorInfo(name, _dtype(engine, name, artifact), tuple(None if size == -1 else size for size in shape))
        if -1 in shape:
            outputs.append(_growing(trt, info, context, device, closing))
        else:
            outputs.append(Output(info, *_buffers(info, shape, context, device, closing)))
    return inputs, outputs


def _dtype(engine: Any, name: str, artifact: str) -> str:
    kind = engine.get_tensor_dtype(name).name
    if kind not in _DTYPES:
        raise BackendError(
            f"trt: tensor '{name}' of '{artifact}' has type {kind}, which numpy has not; "
            f"expected one of {', '.join(_DTYPES.values())}. Cast it inside the model."
        )
    return _DTYPES[kind]


def _buffers(
    info: TensorInfo, shape: tuple[int, ...], context: Any, device: CudaDevice, closing: contextlib.ExitStack
) -> tuple[Pinned, int, NDArray[np.generic]]:
    dtype = np.dtype(info.dtype)
    size_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    host = device.pin(size_bytes)
    closing.callback(device.unpin, host)
    address = device.allocate(size_bytes)
    closing.callback(device.free, address)
    if not context.set_tensor_address(info.name, address):
        raise BackendError(f"trt: the context refused the address of '{info.name}'; this is a bug, please report it.")
    return host, address, host.array.view(dtype).reshape(shape)


def _growing(
    trt: Any, info: TensorInfo, context: Any, device: CudaDevice, closing: contextlib.ExitStack
) -> GrowingOutput:
    output = GrowingOutput(info, device)
    closing.callback(output.release)
    allocator = output.allocator(trt)
    closing.callback(lambda: allocator)  # lives as long as the context, which doesn't hold it
    if not context.set_output_allocator(info.name, allocator):
        raise BackendError(
            f"trt: output '{info.name}' has a size that depends on the data, and this TensorRT takes no allocator for it; "
            "pad it inside the model."
        )
    return output


def realised_precision(trt: Any, engine: Any) -> tuple[Mapping[str, int] | None, str | None]:
    """Layers by the type of their first input, from the engine's inspector; or None and why not.

    TensorRT fuses ops, so a layer may stand for many of the model's. Reformats, casts and Q/DQ count as `conversion`,
    layers on integers and booleans as `other`.
    """
    inspector = engine.create_engine_inspector()
    if inspector is None:
        return None, "the engine gave no inspector"
    text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    return layer_precisions(text)


def inspected_layers(trt: Any, engine: Any) -> dict[str, tuple[str, str, str | None]]:
    """Type, realised precision and kernel of each layer by its name; empty where the inspector tells names only."""
    inspector = engine.create_engine_inspector()
    if inspector is None:
        return {}
    try:
        layers = json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON))["Layers"]
    except (ValueError, KeyError, TypeError):
        return {}
    found = {}
    for layer in filter(lambda item: isinstance(item, dict) and "Name" in item, layers):
        counts, _ = layer_precisions(json.dumps({"Layers": [layer]}))
        kernel = layer.get("TacticName") or None
        found[str(layer["Name"])] = (
            str(layer.get("LayerType", "layer")),
            next(iter(counts or ()), "undetermined"),
            kernel,
        )
    return found


def layer_precisions(text: str) -> tuple[Mapping[str, int] | None, str | None]:
    """Count precisions in the inspector's JSON. The first of the pair is None when it has none, with the reason."""
    try:
        layers = json.loads(text)["Layers"]
    except (ValueError, KeyError, TypeError) as error:
        return None, f"the inspector's answer could not be read ({type(error).__name__})"
    counts: Counter[str] = Counter()
    for layer in layers:
        if not isinstance(layer, dict):  # names only: an engine built with less verbosity
            continue
        layer_type = str(layer.get("LayerType", "")).lower()
        tensors = [item for item in (*layer.get("Inputs", ()), *layer.get("Outputs", ())) if isinstance(item, dict)]
        kind = _precision(str(tensors[0].get("Format/Datatype", ""))) if tensors else None
        if kind is None or layer_type in _NOT_COUNTED:
            continue
        counts["conversion" if layer_type in _CONVERSIONS else "other" if kind in _OTHER else kind] += 1
    if not counts:
        return None, "the inspector tells no layer types for this engine"
    return dict(counts), None


def _precision(words: str) -> str | None:
    for name, pattern in _PRECISIONS:
        if re.search(rf"\b(?:{pattern})\b", words, re.IGNORECASE):
            return name
    return None
