"""The models that mutants are made of: the demo's, small ones built here, exports of what is installed, cached packages'."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from profiler.onnx_io import model_inputs

ROOT = Path(__file__).resolve().parents[2]
CACHED_BYTES = 3_000_000
"""Larger models only make each run slower."""
ROWS = 12


@dataclass(frozen=True)
class Base:
    """A sound model."""

    name: str
    model: ModelProto

    def rows(self) -> dict[str, NDArray[Any]]:
        """Random inputs of the model's types, `ROWS` of them; dynamic axes beside the first get 8."""
        rng = np.random.default_rng(0)
        found: dict[str, NDArray[Any]] = {}
        for info in model_inputs(self.model):
            shape = [ROWS, *(size if isinstance(size, int) and size > 0 else 8 for size in info.shape[1:])]
            dtype = np.dtype(info.dtype)
            whole = dtype.kind != "f"
            found[info.name] = (rng.integers(0, 4, shape) if whole else rng.standard_normal(shape)).astype(dtype)
        return found


def bases(only: Collection[str] = ()) -> list[Base]:
    """All that can be had here, or those of these names, in a fixed order."""
    makers: dict[str, Callable[[], ModelProto]] = {
        "demo": lambda: onnx.load(str(ROOT / "profiler" / "demo" / "fashion_mnist_resnet.onnx")),
        **{build.__name__: build for build in (mlp, convolutions, branches, recurrent, quantized, loop)},
        "sklearn": _sklearn,
        "torch": _torch,
        **{path.stem: partial(onnx.load, str(path)) for path in _cached()},
    }
    found = []
    for name, make in makers.items():
        # An exporter that is missing or too new for this Python is no reason to stop.
        with contextlib.suppress(ImportError, RuntimeError):
            if not only or name in only:
                found.append(Base(name, make()))
    return found


def _cached() -> Iterator[Path]:
    for path in sorted((ROOT / ".cache").glob("real_models/*/**/*.onnx")):
        if "runs" not in path.parts and path.stat().st_size <= CACHED_BYTES:
            yield path


def _value(name: str, shape: list[int | str], kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _weights(name: str, *shape: int) -> TensorProto:
    rng = np.random.default_rng(len(name) + sum(shape))
    return numpy_helper.from_array((rng.standard_normal(shape) * 0.3).astype(np.float32), name)


def _stored(name: str, array: object) -> TensorProto:
    return numpy_helper.from_array(np.asarray(array), name)


def _model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    tensors: list[TensorProto],
) -> ModelProto:
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


_node: Callable[..., onnx.NodeProto] = helper.make_node


def mlp() -> ModelProto:
    """Two products with biases, and a second input added."""
    nodes = [
        _node("MatMul", ["x", "w"], ["a"]), _node("Add", ["a", "b"], ["c"]), _node("Add", ["c", "z"], ["d"]),
        _node("Relu", ["d"], ["e"]), _node("Gemm", ["e", "v", "u"], ["y"]), _node("Softmax", ["y"], ["p"]),
    ]  # fmt: skip
    tensors = [_weights("w", 16, 24), _weights("b", 24), _weights("v", 24, 5), _weights("u", 5)]
    inputs = [_value("x", ["N", 16]), _value("z", ["N", 24])]
    return _model(nodes, inputs, [_value("y", ["N", 5]), _value("p", ["N", 5])], tensors)


def convolutions() -> ModelProto:
    """Padding, a batch norm, a depthwise convolution, a residual, pooling."""
    nodes = [
        _node("Pad", ["x", "pads"], ["q"]), _node("Conv", ["q", "w"], ["a"]),
        _node("BatchNormalization", ["a", "s", "b", "m", "v"], ["n"]), _node("Relu", ["n"], ["r"]),
        _node("Conv", ["r", "d"], ["e"], group=8, auto_pad="SAME_UPPER"), _node("Add", ["e", "r"], ["f"]),
        _node("Clip", ["f", "low", "high"], ["g"]), _node("GlobalAveragePool", ["g"], ["h"]), _node("Flatten", ["h"], ["i"]),
        _node("MatMul", ["i", "o"], ["y"]),
    ]  # fmt: skip
    tensors = [
        _stored("pads", np.int64([0, 0, 1, 1, 0, 0, 1, 1])), _weights("w", 8, 3, 3, 3), _weights("s", 8), _weights("b", 8),
        _weights("m", 8), _stored("v", np.full(8, 0.5, np.float32)), _weights("d", 8, 1, 3, 3),
        _stored("low", np.float32(0)), _stored("high", np.float32(6)), _weights("o", 8, 4),
    ]  # fmt: skip
    return _model(nodes, [_value("x", ["N", 3, 10, 10])], [_value("y", ["N", 4])], tensors)


def branches() -> ModelProto:
    """An If whose branches hold weights."""

    def branch(name: str) -> onnx.GraphProto:
        node = _node("MatMul", ["x", f"w_{name}"], [f"y_{name}"])
        return helper.make_graph([node], name, [], [_value(f"y_{name}", ["N", 8])], [_weights(f"w_{name}", 8, 8)])

    nodes = [
        _node("ReduceSum", ["x"], ["s"], keepdims=0),
        _node("Greater", ["s", "zero"], ["c"]),
        _node("If", ["c"], ["y"], then_branch=branch("one"), else_branch=branch("two")),
    ]
    return _model(nodes, [_value("x", ["N", 8])], [_value("y", ["N", 8])], [_stored("zero", np.float32(0))])


def recurrent() -> ModelProto:
    """A GRU over a sequence whose first axis is the batch."""
    nodes = [
        _node("Transpose", ["x"], ["t"], perm=[1, 0, 2]), _node("GRU", ["t", "w", "r"], ["", "h"], hidden_size=6),
        _node("Squeeze", ["h", "axis"], ["s"]), _node("MatMul", ["s", "v"], ["y"]),
    ]  # fmt: skip
    tensors = [_weights("w", 1, 18, 5), _weights("r", 1, 18, 6), _weights("v", 6, 2), _stored("axis", np.int64([0]))]
    return _model(nodes, [_value("x", ["N", 7, 5])], [_value("y", ["N", 2])], tensors)


def quantized() -> ModelProto:
    """Q/DQ pairs around a product."""
    nodes = [
        _node("QuantizeLinear", ["x", "s", "z"], ["a"]), _node("DequantizeLinear", ["a", "s", "z"], ["b"]),
        _node("DequantizeLinear", ["w", "t", "z"], ["c"]), _node("MatMul", ["b", "c"], ["y"]),
    ]  # fmt: skip
    whole = np.random.default_rng(0).integers(-127, 127, (12, 4)).astype(np.int8)
    tensors = [
        _stored("s", np.float32(0.05)), _stored("z", np.int8(0)), _stored("t", np.float32(0.01)), _stored("w", whole)
    ]  # fmt: skip
    return _model(nodes, [_value("x", ["N", 12])], [_value("y", ["N", 4])], tensors)


def loop() -> ModelProto:
    """Three turns of a Loop that carries a value."""
    body = helper.make_graph(
        [_node("MatMul", ["v", "w"], ["u"]), _node("Tanh", ["u"], ["o"]), _node("Identity", ["c"], ["d"])],
        "body",
        [_value("i", [], TensorProto.INT64), _value("c", [], TensorProto.BOOL), _value("v", ["N", 6])],
        [_value("d", [], TensorProto.BOOL), _value("o", ["N", 6])],
        [],
    )
    nodes = [_node("Loop", ["turns", "go", "x"], ["y"], body=body)]
    tensors = [_stored("turns", np.int64(3)), _stored("go", np.bool_(True)), _weights("w", 6, 6)]
    return _model(nodes, [_value("x", ["N", 6])], [_value("y", ["N", 6])], tensors)


def _sklearn() -> ModelProto:
    from skl2onnx import to_onnx
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 6)).astype(np.float32)
    made: ModelProto = to_onnx(LogisticRegression().fit(x, x[:, 0] > 0), x[:1], options={"zipmap": False})
    return made


def _torch() -> ModelProto:
    import io

    import torch

    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.GELU(), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 8), torch.nn.LayerNorm(8)
    )
    buffer = io.BytesIO()
    torch.onnx.export(
        net.eval(), (torch.zeros(1, 1, 8, 8),), buffer, input_names=["x"], output_names=["y"],
        dynamic_axes={"x": {0: "N"}, "y": {0: "N"}}, opset_version=17, dynamo=False,
    )  # fmt: skip
    return onnx.load_model_from_string(buffer.getvalue())
