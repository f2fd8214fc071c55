"""SmoothQuant: outliers of activations are moved into the weights that read them, where each channel has room.

G. Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models", ICML 2023: channel
j of the activations is divided by s = max|X_j|^α / max|W_j|^(1−α) and row j of the weights multiplied by it. Nothing
changes in float.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from profiler.onnx_io import clone, walk_nodes, write_model
from profiler.variants.running import scratch, session

Feeds = Callable[[], Iterable[Mapping[str, NDArray[Any]]]]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class _Site:
    """An activation and the products with stored weights that read it."""

    tensor: str
    products: tuple[NodeProto, ...]
    alone: bool
    """Nothing else reads the activation."""


def smooth(model: ModelProto, alpha: float, feeds: Feeds, nodes: Iterable[str]) -> tuple[int, int]:
    """Smooth the inputs of the MatMul and Gemm named in `nodes`, in place: `(folded, inserted)` activations.

    Folded factors went into the LayerNormalization, vector scale or linear layer before, and cost nothing. Where others
    read the activation too (the residual after a post-norm), one Mul per activation is inserted behind a normalization;
    activations of other origin stay as they are.
    """
    sites = _sites(model, set(nodes))
    largest = _largest(model, [site.tensor for site in sites], feeds)
    folded = inserted = 0
    for site in sites:
        if site.tensor not in largest:
            continue
        stored = {tensor.name: tensor for tensor in model.graph.initializer}
        factor = _factor(site, largest[site.tensor], alpha, stored)
        if factor is None:
            continue
        fold = _fold(model, site, stored) if site.alone else None
        if fold is not None:
            for name in fold:
                _scale(stored[name], 1 / factor, axis=-1)
            folded += 1
        elif _normalized(model, site.tensor, stored):
            _insert(model, site, 1 / factor)
            inserted += 1
        else:
            continue
        for product in site.products:
            _scale(stored[product.input[1]], factor, axis=_input_axis(product))
    return folded, inserted


def _sites(model: ModelProto, nodes: set[str]) -> list[_Site]:
    uses: dict[str, int] = {}
    for node in walk_nodes(model):
        for name in node.input:
            uses[name] = uses.get(name, 0) + 1
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    outputs = {value.name for value in model.graph.output}
    found: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        if node.name in nodes and node.op_type in ("Gemm", "MatMul") and len(node.input) > 1:
            weight = stored.get(node.input[1])
            fits = weight is not None and len(weight.dims) == 2 and weight.data_type == TensorProto.FLOAT
            if fits and uses[node.input[1]] == 1 and not _flag(node, "transA"):
                found.setdefault(node.input[0], []).append(node)
    return [
        _Site(name, tuple(products), uses[name] == len(products) and name not in outputs)
        for name, products in found.items()
    ]


def _largest(model: ModelProto, names: list[str], feeds: Feeds) -> dict[str, Array]:
    """Largest magnitude of each channel (last axis) of each tensor over all rows."""
    import onnx

    watched = clone(model)
    inputs = {value.name for value in model.graph.input}
    present = {value.name for value in model.graph.output}
    inner = [name for name in names if name not in inputs]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner if name not in present)
    largest: dict[str, Array] = {}
    if not inner:
        return largest
    with scratch() as folder:
        runner = session(write_model(watched, folder))
        for row in feeds():
            for name, array in zip(inner, runner.run(inner, dict(row)), strict=True):
                if array.ndim == 0 or array.dtype.kind != "f":
                    continue
                most = np.abs(np.asarray(array, np.float64)).reshape(-1, array.shape[-1]).max(axis=0)
                largest[name] = np.maximum(largest[name], most) if name in largest else most
    return largest


def _factor(site: _Site, largest: Array, alpha: float, stored: Mapping[str, TensorProto]) -> Array | None:
    weights = np.zeros_like(largest)
    for product in site.products:
        array = np.abs(np.asarray(numpy_helper.to_array(stored[product.input[1]]), np.float64))
        rows = array.max(axis=1 - _input_axis(product))
        if len(rows) != len(largest):
            return None
        weights = np.maximum(weights, rows)
    alive = (largest > 0) & (weights > 0) & np.isfinite(largest)
    if not alive.any():
        return None
    factor = np.where(alive, largest, 1.0) ** alpha / np.where(alive, weights, 1.0) ** (1 - alpha)
    return np.asarray(np.where(alive, np.clip(factor, 1e-5, 1e5), 1.0))


def _input_axis(product: NodeProto) -> int:
    return 1 if _flag(product, "transB") else 0


def _flag(node: NodeProto, name: str) -> bool:
    return any(attribute.name == name and attribute.i for attribute in node.attribute)


def _scale(tensor: TensorProto, factor: Array, axis: int) -> None:
    array = numpy_helper.to_array(tensor)
    shape = [1] * array.ndim
    shape[axis] = -1
    scaled = np.asarray(array, np.float64) * factor.reshape(shape)
    tensor.CopyFrom(numpy_helper.from_array(scaled.astype(array.dtype), tensor.name))


def _fold(model: ModelProto, site: _Site, stored: Mapping[str, TensorProto]) -> list[str] | None:
    """Stored tensors whose last axis scales with the activation, or None: then nothing before it can take the factor."""
    width = stored[site.products[0].input[1]].dims[_input_axis(site.products[0])]
    uses: dict[str, int] = {}
    for node in walk_nodes(model):
        for name in node.input:
            uses[name] = uses.get(name, 0) + 1
    makers = {name: node for node in model.graph.node for name in node.output}

    def vector(name: str) -> bool:
        tensor = stored.get(name)
        return (
            tensor is not None
            and list(tensor.dims) == [width]
            and uses[name] == 1
            and tensor.data_type == TensorProto.FLOAT
        )

    maker = makers.get(site.tensor)
    taken = list[str]()
    if maker is not None and maker.op_type == "Add":
        shift = next((name for name in maker.input if vector(name)), None)
        other = next((name for name in maker.input if name != shift), "")
        if shift is None or uses.get(other) != 1:
            return None
        taken.append(shift)
        maker = makers.get(other)
    if maker is None:
        return None
    if maker.op_type == "Mul":
        scale = next((name for name in maker.input if vector(name)), None)
        return None if scale is None else [*taken, scale]
    if maker.op_type == "LayerNormalization":
        fits = len(maker.output) == 1 and all(vector(name) for name in maker.input[1:]) and _last_axis(maker)
        return [*taken, *maker.input[1:]] if fits else None
    return _fold_linear(maker, taken, stored, uses, width)


def _fold_linear(
    maker: NodeProto, taken: list[str], stored: Mapping[str, TensorProto], uses: Mapping[str, int], width: int
) -> list[str] | None:
    """A linear layer before: its output columns and its bias take the factor."""
    if maker.op_type not in ("Gemm", "MatMul") or _flag(maker, "transB"):
        return None
    names = list(maker.input[1:])
    fits = all(
        name in stored
        and stored[name].dims
        and stored[name].dims[-1] == width
        and uses[name] == 1
        and stored[name].data_type == TensorProto.FLOAT
        for name in names
    )
    return [*taken, *names] if fits else None


def _last_axis(node: NodeProto) -> bool:
    return all(attribute.i == -1 for attribute in node.attribute if attribute.name == "axis")


def _normalized(model: ModelProto, tensor: str, stored: Mapping[str, TensorProto]) -> bool:
    """Whether `tensor` comes out of a normalization, whole or written as scale and shift."""
    makers = {name: node for node in model.graph.node for name in node.output}
    maker = makers.get(tensor)
    if maker is not None and maker.op_type == "Add" and any(name in stored for name in maker.input):
        maker = makers.get(next((name for name in maker.input if name not in stored), ""))
        return maker is not None and maker.op_type == "Mul" and any(name in stored for name in maker.input)
    return maker is not None and maker.op_type in ("LayerNormalization", "RMSNormalization")


def _insert(model: ModelProto, site: _Site, factor: Array) -> None:
    name = f"{site.tensor}_smoothed"
    vector = numpy_helper.from_array(factor.astype(np.float32), f"{name}_by")
    model.graph.initializer.append(vector)
    node = helper.make_node("Mul", [site.tensor, vector.name], [name], f"{name}_mul")
    first = min(place for place, other in enumerate(model.graph.node) for p in site.products if other.name == p.name)
    for product in site.products:
        product.input[0] = name
    model.graph.node.insert(first, node)
