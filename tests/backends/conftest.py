"""Small ONNX models that between them have what adapters trip over, each with feeds and an independent answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

Arrays = dict[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Example:
    """A model file, how to feed it, and what onnx's own reference implementation answers."""

    name: str
    path: Path
    feed: Callable[[int, int], Arrays]
    """(rows, seed) -> feeds."""
    atol: float = 1e-4

    def expected(self, feeds: Arrays) -> Arrays:
        model = onnx.load(self.path)
        answers = ReferenceEvaluator(model).run(None, feeds)
        return dict(zip((output.name for output in model.graph.output), answers, strict=True))


def _weights(*shape: int, seed: int) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).standard_normal(shape) * 0.4).astype(np.float32)


def _floats(name: str, *shape: int) -> Callable[[int, int], Arrays]:
    return lambda rows, seed: {name: np.random.default_rng(seed).standard_normal((rows, *shape)).astype(np.float32)}


def _model(nodes, inputs, outputs, constants, opset: int = 17) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes, "example", inputs, outputs, [numpy_helper.from_array(v, k) for k, v in constants.items()]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


def _tensor(name: str, shape: list[int | str], kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def mlp() -> onnx.ModelProto:
    """Two matrix products with a dynamic batch."""
    return _model(
        [
            helper.make_node("MatMul", ["x", "w1"], ["a"]),
            helper.make_node("Add", ["a", "b1"], ["b"]),
            helper.make_node("Relu", ["b"], ["c"]),
            helper.make_node("MatMul", ["c", "w2"], ["y"]),
        ],
        [_tensor("x", ["N", 8])],
        [_tensor("y", ["N", 4])],
        {"w1": _weights(8, 16, seed=1), "b1": _weights(16, seed=2), "w2": _weights(16, 4, seed=3)},
    )


def conv() -> onnx.ModelProto:
    """Convolution, batch normalisation, pooling and a classifier head."""
    return _model(
        [
            helper.make_node("Conv", ["image", "w"], ["a"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
            helper.make_node("BatchNormalization", ["a", "scale", "bias", "mean", "var"], ["b"]),
            helper.make_node("Relu", ["b"], ["c"]),
            helper.make_node("GlobalAveragePool", ["c"], ["d"]),
            helper.make_node("Flatten", ["d"], ["e"]),
            helper.make_node("Gemm", ["e", "head"], ["logits"]),
        ],
        [_tensor("image", ["N", 3, 8, 8])],
        [_tensor("logits", ["N", 5])],
        {
            "w": _weights(6, 3, 3, 3, seed=4),
            "scale": np.abs(_weights(6, seed=5)) + 0.5,
            "bias": _weights(6, seed=6),
            "mean": _weights(6, seed=7),
            "var": np.abs(_weights(6, seed=8)) + 0.5,
            "head": _weights(6, 5, seed=9),
        },
    )


def embedding() -> onnx.ModelProto:
    """Two inputs of different types: int64 tokens and float32 features."""
    return _model(
        [
            helper.make_node("Gather", ["table", "token"], ["a"]),
            helper.make_node("ReduceMean", ["a"], ["b"], axes=[1], keepdims=0),
            helper.make_node("Add", ["b", "features"], ["c"]),
            helper.make_node("Softmax", ["c"], ["y"], axis=-1),
        ],
        [_tensor("token", ["N", 3], TensorProto.INT64), _tensor("features", ["N", 6])],
        [_tensor("y", ["N", 6])],
        {"table": _weights(10, 6, seed=10)},
    )


def stateful() -> onnx.ModelProto:
    """One recurrent step: the state goes in and comes out, and the state out is an intermediate of the output."""
    return _model(
        [
            helper.make_node("MatMul", ["x", "wx"], ["a"]),
            helper.make_node("MatMul", ["state", "wh"], ["b"]),
            helper.make_node("Add", ["a", "b"], ["c"]),
            helper.make_node("Tanh", ["c"], ["next_state"]),
            helper.make_node("MatMul", ["next_state", "wy"], ["y"]),
        ],
        [_tensor("x", ["N", 4]), _tensor("state", ["N", 6])],
        [_tensor("y", ["N", 2]), _tensor("next_state", ["N", 6])],
        {"wx": _weights(4, 6, seed=11), "wh": _weights(6, 6, seed=12), "wy": _weights(6, 2, seed=13)},
    )


def branching() -> onnx.ModelProto:
    """An If whose condition depends on the data; its branches read a tensor from outside."""

    def branch(op: str) -> onnx.GraphProto:
        return helper.make_graph([helper.make_node(op, ["x"], [f"{op}_out"])], op, [], [_tensor(f"{op}_out", ["N", 4])])

    return _model(
        [
            helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0),
            helper.make_node("Greater", ["total", "zero"], ["positive"]),
            helper.make_node("If", ["positive"], ["y"], then_branch=branch("Exp"), else_branch=branch("Neg")),
        ],
        [_tensor("x", ["N", 4])],
        [_tensor("y", ["N", 4])],
        {"zero": np.array(0, np.float32)},
    )


QDQ_STEP = 0.05


def qdq() -> onnx.ModelProto:
    """A quantized matrix product in QDQ form, symmetric int8."""
    weights = np.random.default_rng(14).integers(-127, 128, (8, 4)).astype(np.int8)
    return _model(
        [
            helper.make_node("QuantizeLinear", ["x", "sx", "zero"], ["xq"]),
            helper.make_node("DequantizeLinear", ["xq", "sx", "zero"], ["xd"]),
            helper.make_node("DequantizeLinear", ["w", "sw", "zero"], ["wd"]),
            helper.make_node("MatMul", ["xd", "wd"], ["m"]),
            helper.make_node("QuantizeLinear", ["m", "sy", "zero"], ["mq"]),
            helper.make_node("DequantizeLinear", ["mq", "sy", "zero"], ["y"]),
        ],
        [_tensor("x", ["N", 8])],
        [_tensor("y", ["N", 4])],
        {
            "sx": np.array(0.02, np.float32),
            "sw": np.array(0.005, np.float32),
            "sy": np.array(QDQ_STEP, np.float32),
            "zero": np.array(0, np.int8),
            "w": weights,
        },
        opset=19,  # the oldest whose DequantizeLinear onnx's reference implements
    )


def _embedding_feed(rows: int, seed: int) -> Arrays:
    generator = np.random.default_rng(seed)
    return {
        "token": generator.integers(0, 10, (rows, 3)),
        "features": generator.standard_normal((rows, 6)).astype(np.float32),
    }


def _stateful_feed(rows: int, seed: int) -> Arrays:
    return _floats("x", 4)(rows, seed) | _floats("state", 6)(rows, seed + 1)


_EXAMPLES = {
    "mlp": (mlp, _floats("x", 8), 1e-4),
    "conv": (conv, _floats("image", 3, 8, 8), 1e-4),
    "embedding": (embedding, _embedding_feed, 1e-4),
    "stateful": (stateful, _stateful_feed, 1e-4),
    "branching": (branching, _floats("x", 4), 1e-4),
    # Integer kernels may round the result to the neighbouring step.
    "qdq": (qdq, _floats("x", 8), 1.01 * QDQ_STEP),
}


@pytest.fixture(scope="session")
def examples(tmp_path_factory) -> dict[str, Example]:
    """All examples by name."""
    folder = tmp_path_factory.mktemp("examples")
    made = {}
    for name, (build, feed, atol) in _EXAMPLES.items():
        (folder / name).mkdir()
        onnx.save(build(), folder / name / "model.onnx")
        made[name] = Example(name, folder / name / "model.onnx", feed, atol)
    return made


@pytest.fixture(params=sorted(_EXAMPLES))
def example(request, examples) -> Example:
    """Each example in turn."""
    return examples[request.param]


@pytest.fixture
def mlp_file(examples) -> Path:
    """The plainest model."""
    return examples["mlp"].path


@pytest.fixture
def no_model(tmp_path) -> Path:
    """A file that is no model."""
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\xff\x00 this is not a model \xff" * 20)
    return path
