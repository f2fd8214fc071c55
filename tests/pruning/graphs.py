"""Random small graphs with residuals, concatenations, depthwise convolutions, gates and Gemm heads, built with onnx.helper."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIZE = 6


class Builder:
    """Adds ops one after the other; a tensor is (name, channels)."""

    def __init__(self, seed, batch="N", opset=17):
        self.rng = np.random.default_rng(seed)
        self.batch, self.opset = batch, opset
        self.nodes, self.initializers = [], []

    def stored(self, array, kind=np.float32):
        name = f"w{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(array, kind), name))
        return name

    def weight(self, *shape):
        return self.stored(self.rng.standard_normal(shape) / np.sqrt(max(1, np.prod(shape[1:]))))

    def op(self, kind, *inputs, **attributes):
        out = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [out], name=f"{kind}_{len(self.nodes)}", **attributes))
        return out

    def conv(self, x, channels, kernel=3, bias=True, **attributes):
        name, have = x
        pads = [kernel // 2] * 4
        inputs = [name, self.weight(channels, have, kernel, kernel), *([self.weight(channels)] if bias else [])]
        return self.op("Conv", *inputs, pads=pads, **attributes), channels

    def depthwise(self, x, multiplier=1):
        name, have = x
        weights = [self.weight(have * multiplier, 1, 3, 3), self.weight(have * multiplier)]
        return self.op("Conv", name, *weights, pads=[1] * 4, group=have), have * multiplier

    def grouped(self, x, groups):
        name, have = x
        weights = [self.weight(have, have // groups, 3, 3), self.weight(have)]
        return self.op("Conv", name, *weights, pads=[1] * 4, group=groups), have

    def norm(self, x):
        name, have = x
        scale, shift, mean, var = (self.stored(self.rng.uniform(0.5, 1.5, have)) for _ in range(4))
        return self.op("BatchNormalization", name, scale, shift, mean, var), have

    def act(self, x):
        kind = ["Relu", "Sigmoid", "HardSwish", "Tanh"][self.rng.integers(4)]
        return self.op(kind, x[0]), x[1]

    def scaled(self, x):
        name, have = x
        shape = [(have, 1, 1), (1, have, 1, 1), (), (1,)][self.rng.integers(4)]
        return self.op("Mul", name, self.stored(self.rng.uniform(0.5, 1.5, shape))), have

    def residual(self, x):
        inner = self.act(self.conv(x, self.channels()))
        return self.op("Add", x[0], self.conv(inner, x[1])[0]), x[1]

    def joined(self, x):
        parts = [self.act(self.conv(x, self.channels(), 1)), self.act(self.conv(x, self.channels())), x]
        return self.op("Concat", *(name for name, _ in parts), axis=1), sum(count for _, count in parts)

    def gated(self, x):
        name, have = x
        squeezed = self.op("GlobalAveragePool", name), have
        gate = self.op("Sigmoid", self.conv(self.act(self.conv(squeezed, 8, 1)), have, 1)[0])
        return self.op("Mul", name, gate), have

    def parted(self, x):
        name, have = x
        sizes = self.stored([have // 2, have - have // 2], np.int64)
        outs = [f"s{len(self.nodes)}a", f"s{len(self.nodes)}b"]
        self.nodes.append(helper.make_node("Split", [name, sizes], outs, axis=1))
        first = self.act((outs[0], have // 2))
        return self.op("Concat", outs[1], first[0], axis=1), have

    def channels(self):
        return int(self.rng.choice([6, 8, 12, 16]))

    def head(self, x, kind):
        name, have = x
        if kind == "flatten":
            width = have * SIZE * SIZE
            flat = self.op("Flatten", name)
        elif kind == "reshape":
            width = have
            flat = self.op("Reshape", self.op("GlobalAveragePool", name), self.stored([0, have], np.int64))
        elif kind == "squeeze":
            width = have
            axes = self.stored([2, 3], np.int64)
            flat = self.op("Squeeze", self.op("GlobalAveragePool", name), axes)
        else:
            width = have
            flat = self.op("ReduceMean", name, axes=[2, 3], keepdims=0)
        hidden = self.op("Relu", self.op("Gemm", flat, self.weight(16, width), self.weight(16), transB=1))
        return self.op("Gemm", hidden, self.weight(16, 5), self.weight(5))

    def finish(self, output, shape):
        value = helper.make_tensor_value_info
        self.nodes[-1].output[0] = output
        graph = helper.make_graph(
            self.nodes,
            "g",
            [value("x", TensorProto.FLOAT, [self.batch, 3, SIZE, SIZE])],
            [value(output, TensorProto.FLOAT, [self.batch, *shape])],
            self.initializers,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)
        onnx.checker.check_model(model)
        return model


def random_model(seed, steps, head, batch="N"):
    """A graph of these steps on [N, 3, 6, 6], five outputs."""
    b = Builder(seed, batch)
    x = b.act(b.conv(("x", 3), b.channels()))
    for step in steps:
        x = {
            "conv": lambda x: b.act(b.conv(x, b.channels(), int(b.rng.choice([1, 3])))),
            "plain": lambda x: b.conv(x, b.channels(), bias=False),
            "norm": lambda x: b.act(b.norm(b.conv(x, b.channels(), bias=False))),
            "depthwise": lambda x: b.act(b.depthwise(x)),
            "doubled": lambda x: b.act(b.depthwise(x, 2)),
            "grouped": lambda x: b.grouped(x, 2) if x[1] % 2 == 0 else x,
            "residual": b.residual,
            "joined": b.joined,
            "gated": b.gated,
            "scaled": b.scaled,
            "pool": lambda x: (b.op("MaxPool", x[0], kernel_shape=[3, 3], pads=[1] * 4), x[1]),
            "parted": b.parted,
        }[step](x)
    return b.head(x, head) and b.finish("y", [5])


def rows(count, seed=1):
    """Standard normal images."""
    return {"x": np.random.default_rng(seed).standard_normal((count, 3, SIZE, SIZE)).astype(np.float32)}
