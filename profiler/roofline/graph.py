"""A model's graph with sizes: the shape and element type of every value at a batch size, and what is stored in the file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import onnx
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, inliner

from profiler.errors import ModelError
from profiler.onnx_io import clone, model_inputs, op_name

Shape = tuple[int, ...]

_HEAVY_BYTES = 4096
"""Stored tensors beyond this hold weights, and not the sizes that shape inference computes with."""
FOUR_BITS = frozenset({TensorProto.INT4, TensorProto.UINT4, getattr(TensorProto, "FLOAT4E2M1", -1)})
"""Element types of which two share a byte."""
_QUARTERS = {getattr(TensorProto, "INT2", -1), getattr(TensorProto, "UINT2", -1)}
_RANDOM = {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}


@dataclass(frozen=True)
class Tensor:
    """A value of the graph: its sizes and its element type (`onnx.TensorProto.DataType`)."""

    shape: Shape
    elem_type: int

    @property
    def elements(self) -> int:
        """Number of values; 1 for a scalar."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """As it lies in memory, sub-byte types packed."""
        return packed_bytes(self.elements, self.elem_type)


@dataclass(frozen=True)
class Graph:
    """The main graph of a model at one batch size, with model-local functions inlined."""

    model: ModelProto
    nodes: tuple[NodeProto, ...]
    tensors: Mapping[str, Tensor]
    """Values whose shape is known. Those that are not in here could not be inferred."""
    stored: Mapping[str, int]
    """Values that need no input of the model, initializers and what is folded from them: bytes to read, at their stored type."""
    producers: Mapping[str, NodeProto]
    consumers: Mapping[str, tuple[NodeProto, ...]]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    notes: tuple[str, ...] = ()


def read_graph(model: ModelProto, batch: int, input_shapes: Mapping[str, Shape] | None = None) -> Graph:
    """Infer all shapes for inferences of `batch` rows. `input_shapes` gives dynamic inputs' sizes without the batch axis.

    The model's weights need not be loaded, and it is not changed. Raises ModelError when an input fixes another batch, or a
    given shape contradicts it; what stays unknown is merely missing from `tensors`.
    """
    if batch < 1:
        raise ModelError(f"a batch of {batch} rows is not possible, the smallest is 1.")
    notes: list[str] = []
    light = _light(model)
    if light.functions:
        light = _attempt(inliner.inline_local_functions, light, notes, "model-local functions could not be inlined")
    _set_sizes(light, batch, input_shapes or {})
    shaped = _attempt(
        lambda given: onnx.shape_inference.infer_shapes(given, data_prop=True),
        light,
        notes,
        "shapes could not be inferred",
    )
    tensors = _tensors(shaped)
    if any(name not in tensors for node in shaped.graph.node for name in node.output if name) and _foreign(shaped):
        known = _attempt(
            _by_onnxruntime, light, notes, "ONNX Runtime's shape inference failed on ops of its own domain"
        )
        tensors = {**_tensors(known), **tensors}
    nodes = tuple(shaped.graph.node)
    stored = _stored(shaped, nodes, tensors)
    consumers: dict[str, list[NodeProto]] = {}
    for node in nodes:
        for name in dict.fromkeys(filter(None, node.input)):
            consumers.setdefault(name, []).append(node)
    return Graph(
        model=shaped,
        nodes=nodes,
        tensors=tensors,
        stored=stored,
        producers={name: node for node in nodes for name in node.output if name},
        consumers={name: tuple(found) for name, found in consumers.items()},
        inputs=tuple(info.name for info in model_inputs(shaped)),
        outputs=tuple(value.name for value in shaped.graph.output),
        notes=tuple(notes),
    )


def packed_bytes(elements: int, elem_type: int) -> int:
    """Bytes of so many values of an `onnx.TensorProto.DataType`; text counts nothing."""
    if elem_type in FOUR_BITS:
        return -(-elements // 2)
    if elem_type in _QUARTERS:
        return -(-elements // 4)
    if elem_type in (TensorProto.UNDEFINED, TensorProto.STRING):
        return 0
    return elements * int(onnx.helper.tensor_dtype_to_np_dtype(elem_type).itemsize)


def subgraphs(node: NodeProto) -> bool:
    """Whether the node has bodies: If, Loop, Scan."""
    return any(item.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for item in node.attribute)


def constant_tensor(node: NodeProto) -> TensorProto | None:
    """What a Constant node holds as a tensor; None for other nodes and for its scalar and text forms."""
    if op_name(node) != "Constant":
        return None
    return next((item.t for item in node.attribute if item.name == "value"), None)


def _light(model: ModelProto) -> ModelProto:
    """A copy without the weights' values: inference needs only their shapes, and fails above 2 GB."""
    light = clone(model)
    held = list(light.graph.initializer)
    held += [tensor for node in light.graph.node if (tensor := constant_tensor(node)) is not None]
    for tensor in held:
        if packed_bytes(math.prod(tensor.dims), tensor.data_type) > _HEAVY_BYTES or tensor.external_data:
            for content in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
                tensor.ClearField(content)
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
    return light


def _set_sizes(model: ModelProto, batch: int, input_shapes: Mapping[str, Shape]) -> None:
    names = {info.name for info in model_inputs(model)}
    strange = [name for name in input_shapes if name not in names]
    if strange:
        raise ModelError(
            f"the model has no input '{strange[0]}' to give a shape to; it has {', '.join(sorted(names))}."
        )
    symbols: dict[str, int] = {}
    for value in model.graph.input:
        if value.name not in names or not value.type.HasField("tensor_type"):
            continue
        dims = value.type.tensor_type.shape.dim
        given = input_shapes.get(value.name)
        sizes = (batch, *(given if given is not None else (None,) * (len(dims) - 1)))
        if len(sizes) != max(len(dims), 1):
            raise ModelError(
                f"input '{value.name}' has {len(dims)} axes, batch included, and the shape given has {len(sizes)}."
            )
        for place, (dim, size) in enumerate(zip(dims, sizes, strict=False)):
            if size is None:
                continue
            if not dim.HasField("dim_value") or dim.dim_value < 0:
                if dim.dim_param:
                    symbols.setdefault(dim.dim_param, size)
                dim.dim_value = size
            elif dim.dim_value != size and (place == 0 or given is not None):
                what = "a fixed batch axis" if place == 0 else f"a fixed axis {place}"
                raise ModelError(
                    f"input '{value.name}' has {what} of {dim.dim_value}, not {size}: ask for {dim.dim_value}."
                )
    _replace_symbols((*model.graph.input, *model.graph.value_info, *model.graph.output), symbols)


def _replace_symbols(values: Iterable[ValueInfoProto], symbols: Mapping[str, int]) -> None:
    for value in values:
        for dim in value.type.tensor_type.shape.dim if value.type.HasField("tensor_type") else ():
            if dim.dim_param in symbols:
                dim.dim_value = symbols[dim.dim_param]


def _attempt(change: Callable[[ModelProto], ModelProto], model: ModelProto, notes: list[str], words: str) -> ModelProto:
    """`change(model)`, or the model as it is and a note: what stays unknown is left out of the count, and said."""
    try:
        return change(model)
    except Exception as error:  # noqa: BLE001 (onnx, sympy and ONNX Runtime each raise their own)
        notes.append(f"{words} ({' '.join(str(error).split())[:120] or type(error).__name__})")
        return model


def _foreign(model: ModelProto) -> bool:
    return any("::" in op_name(node) for node in model.graph.node)


def _by_onnxruntime(model: ModelProto) -> ModelProto:
    """The shapes of ops in the com.microsoft domain, which onnx does not know."""
    from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

    from profiler.variants.preparing import quiet
    from profiler.variants.running import inside, scratch

    # Where it gives up, it leaves a copy of the model in the working directory.
    with quiet(), scratch() as folder, inside(folder):
        found: ModelProto = SymbolicShapeInference.infer_shapes(model, auto_merge=True, guess_output_rank=False)
    return found


def _tensors(model: ModelProto) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        kind = value.type.tensor_type
        if not value.type.HasField("tensor_type") or not kind.HasField("shape"):
            continue
        if all(dim.HasField("dim_value") and dim.dim_value >= 0 for dim in kind.shape.dim):
            found[value.name] = Tensor(tuple(dim.dim_value for dim in kind.shape.dim), kind.elem_type)
    for tensor in model.graph.initializer:
        found[tensor.name] = Tensor(tuple(tensor.dims), tensor.data_type)
    for node in model.graph.node:
        held = constant_tensor(node)
        if held is not None:
            found[node.output[0]] = Tensor(tuple(held.dims), held.data_type)
    return found


def _stored(model: ModelProto, nodes: Iterable[NodeProto], tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Bytes behind each value that a runtime can compute while it loads: the fewer of what is stored and what comes of it."""
    fed = {info.name for info in model_inputs(model)}
    stored = {
        tensor.name: tensors[tensor.name].size_bytes for tensor in model.graph.initializer if tensor.name not in fed
    }
    for sparse in model.graph.sparse_initializer:
        stored[sparse.values.name] = sum(
            packed_bytes(math.prod(part.dims), part.data_type) for part in (sparse.values, sparse.indices)
        )
    for node in nodes:
        inputs = [name for name in node.input if name]
        if op_name(node) in _RANDOM or subgraphs(node) or any(name not in stored for name in inputs):
            continue
        behind = sum(stored[name] for name in inputs)
        for name in node.output:
            known = tensors.get(name)
            if known is not None:
                stored[name] = min(behind, known.size_bytes) if inputs else known.size_bytes
            elif inputs:
                stored[name] = behind
    return stored
