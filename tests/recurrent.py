"""A model that is not fed row by row: `sr` without axes, `h` with its rows on axis 1 and carried to `hn`; and its own truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LAYERS, WIDTH, FEATURES, CLASSES = 2, 6, 5, 3
RATE = 16000


def weights(seed: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    draw = lambda *shape: (rng.standard_normal(shape) * 0.9).astype(np.float32)  # noqa: E731
    return {"w": draw(FEATURES, WIDTH), "u": draw(WIDTH, WIDTH), "v": draw(WIDTH, WIDTH), "o": draw(WIDTH, CLASSES)}


def build(path: Path, batch: str | int = "N", symbol: str | int | None = "N", sr: bool = True, seed: int = 3) -> Path:
    """Two layers: a = tanh(x·g·W + h[0]·U), b = tanh(a·V + h[1]), y = b·O, hn = [a, b]; g is sr / 16000."""
    node, value = helper.make_node, helper.make_tensor_value_info
    nodes = [
        node("Cast", ["sr"], ["srf"], to=TensorProto.FLOAT),
        node("Div", ["srf", "rate"], ["g"]),
        node("Mul", ["x", "g"], ["xg"]),
    ] if sr else [node("Identity", ["x"], ["xg"])]  # fmt: skip
    nodes += [
        node("Split", ["h", "ones"], ["h0", "h1"], axis=0),
        node("Squeeze", ["h0", "axis"], ["s0"]),
        node("Squeeze", ["h1", "axis"], ["s1"]),
        node("MatMul", ["xg", "w"], ["xw"], "first"),
        node("MatMul", ["s0", "u"], ["su"], "carried"),
        node("Add", ["xw", "su"], ["pa"]),
        node("Tanh", ["pa"], ["a"]),
        node("MatMul", ["a", "v"], ["av"], "second"),
        node("Add", ["av", "s1"], ["pb"]),
        node("Tanh", ["pb"], ["b"]),
        node("MatMul", ["b", "o"], ["y"], "last"),
        node("Unsqueeze", ["a", "axis"], ["ua"]),
        node("Unsqueeze", ["b", "axis"], ["ub"]),
        node("Concat", ["ua", "ub"], ["hn"], axis=0),
    ]
    shape = [LAYERS, symbol, WIDTH]
    inputs = [value("x", TensorProto.FLOAT, [batch, FEATURES]), value("h", TensorProto.FLOAT, shape)]
    inputs += [value("sr", TensorProto.INT64, [])] if sr else []
    stored = {**weights(seed), "rate": np.float32(RATE), "axis": np.array([0]), "ones": np.array([1, 1])}
    graph = helper.make_graph(
        nodes,
        "recurrent",
        inputs,
        [value("y", TensorProto.FLOAT, [batch, CLASSES]), value("hn", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in stored.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def step(x: np.ndarray, h: np.ndarray, rate: float = RATE, seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Scores [classes] and next state [layers, width] of one row, in float64."""
    w = {name: array.astype(np.float64) for name, array in weights(seed).items()}
    a = np.tanh(x * (rate / RATE) @ w["w"] + h[0] @ w["u"])
    b = np.tanh(a @ w["v"] + h[1])
    return b @ w["o"], np.stack([a, b])


def scores(x: np.ndarray, ids: np.ndarray, rate: float = RATE, start: np.ndarray | None = None) -> np.ndarray:
    """Scores of all rows [n, classes], each sequence carried from zeros or from `start` [n, layers, width] at its first row."""
    made = np.zeros((len(x), CLASSES))
    states: dict[Any, np.ndarray] = {}
    for row, name in enumerate(ids.tolist()):
        first = np.zeros((LAYERS, WIDTH)) if start is None else start[row]
        made[row], states[name] = step(x[row].astype(np.float64), states.get(name, first), rate)
    return made


def rows(count: int = 90, sequences: int = 7, seed: int = 0) -> dict[str, np.ndarray]:
    """Rows of sequences of different lengths, interleaved; labels are the truth's classes."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, FEATURES)).astype(np.float32)
    ids = np.sort(rng.integers(0, sequences, count))[rng.permutation(count)]
    return {"x": x, "ids": ids, "labels": scores(x, ids).argmax(axis=1)}
