"""Small models with what people's models have: taken names, tied weights, bodies, old versions, odd biases, odd shapes."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

MODELS: dict[str, Callable[[], ModelProto]] = {}
F = TensorProto.FLOAT


def model(build):
    MODELS[build.__name__] = build
    return build


def rand(*shape, seed=0, spread=False):
    """Normal values of variance one over the inputs; `spread` gives the rows very different sizes."""
    rng = np.random.default_rng((seed, *shape))
    array = rng.standard_normal(shape) / np.sqrt(shape[0])
    if spread:
        array *= np.exp(rng.uniform(-3, 0, (shape[0], *[1] * (len(shape) - 1))))
    return array.astype(np.float32)


def node(op, inputs, outputs, **attributes):
    return helper.make_node(op, inputs.split(" "), outputs.split(" "), **attributes)


def value(name, *shape, kind=F):
    return helper.make_tensor_value_info(name, kind, shape or None)


def made(nodes, stored, *, x=("N", 16), y=("N", 5), opset=17, ir=8, outputs=None, **more):
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in stored.items()]
    outputs = [value("y", *y)] if outputs is None else outputs
    graph = helper.make_graph(nodes, "g", [value("x", *x)], outputs, tensors, **more)
    result = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)
    onnx.checker.check_model(result)
    return result


def branch(name, nodes, stored=(), shape=("N", 5)):
    tensors = [numpy_helper.from_array(array, key) for key, array in dict(stored).items()]
    return helper.make_graph(nodes, name, [], [value(nodes[-1].output[0], *shape)], tensors)


ASKED = [node("ReduceSum", "x", "sum", keepdims=0), node("Greater", "sum zero", "positive")]


@model
def tied_square():
    """One square weight read as it is and transposed, its rows of very different sizes."""
    nodes = [node("Gemm", "x w b", "e", transB=1), node("Relu", "e", "z"), node("Gemm", "z w c", "y")]
    return made(nodes, {"w": rand(16, 16, spread=True), "b": rand(16), "c": rand(16, seed=1)}, y=("N", 16))


@model
def tied_oblong():
    nodes = [node("Gemm", "x w b", "e", transB=1), node("Relu", "e", "z"), node("Gemm", "z w c", "y")]
    return made(nodes, {"w": rand(24, 16), "b": rand(24), "c": rand(16, seed=1)}, y=("N", 16))


@model
def tied_products():
    """MatMul and Gemm share a weight, and so does an output."""
    nodes = [
        node("MatMul", "x w", "e"),
        node("Relu", "e", "z"),
        node("Gemm", "z w c", "d", transB=1),
        node("Mul", "d w0", "y"),
    ]
    nodes.append(node("Identity", "w", "given"))
    outputs = [value("y", "N", 16), value("given", 16, 16)]
    return made(nodes, {"w": rand(16, 16, spread=True), "c": rand(16), "w0": rand(16)}, outputs=outputs)


@model
def shared_bias():
    """Two convolutions share a bias, and a value has the name that the quantizer would give its copy."""
    nodes = [
        node("Conv", "x w1 b", "c1", pads=[1] * 4), node("Relu", "c1", "b0"), node("Conv", "b0 w2 b", "c2", pads=[1] * 4),
        node("GlobalAveragePool", "c2", "p"), node("Flatten", "p", "f"), node("Gemm", "f w3 b3", "y"),
    ]  # fmt: skip
    stored = {"w1": rand(8, 3, 3, 3), "w2": rand(8, 8, 3, 3), "b": rand(8), "w3": rand(8, 5), "b3": rand(5)}
    return made(nodes, stored, x=("N", 3, 8, 8))


@model
def taken_scale():
    """A stored value has the name of another one's scale."""
    nodes = [
        node("MatMul", "x w", "a"),
        node("Mul", "a w_scale", "m"),
        node("Relu", "m", "r"),
        node("Gemm", "r v b", "y"),
    ]
    return made(nodes, {"w": rand(16, 32), "w_scale": np.exp(rand(32)), "v": rand(32, 5), "b": rand(5)})


@model
def taken_values():
    """Values in between are named like everything that a quantizer makes of `w` and `x`."""
    ends = ("w_int8", "w_quantized", "x_QuantizeLinear_Output", "w_Q4", "w_zero_point", "w_DequantizeLinear_Output")
    nodes, last = [node("MatMul", "x w", "w_scales")], "w_scales"
    for end in ends:
        nodes.append(node("Sigmoid" if end == "w_Q4" else "Identity" if end == "w_int8" else "Abs", last, end))
        last = end
    nodes.append(node("Gemm", f"{last} v w_zero_points", "y"))
    return made(nodes, {"w": rand(16, 32), "v": rand(32, 5), "w_zero_points": rand(5)})


@model
def taken_output():
    """The output has the name of a weight's scale, the input that of a quantized weight."""
    nodes = [node("Gemm", "w_quantized w b", "a"), node("Relu", "a", "r"), node("Gemm", "r v c", "w_scale")]
    stored = {"w": rand(16, 32), "b": rand(32), "v": rand(32, 5), "c": rand(5)}
    tensors = [numpy_helper.from_array(array, name) for name, array in stored.items()]
    graph = helper.make_graph(nodes, "g", [value("w_quantized", "N", 16)], [value("w_scale", "N", 5)], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def read_in_bodies(activation, **stored):
    yes, no = (branch(n, [node("MatMul", f"h {w}", f"{n}_out")]) for n, w in (("yes", "v"), ("no", "u")))
    choice = node("If", "positive", "y", then_branch=yes, else_branch=no)
    held = {"w": rand(16, 16), "v": rand(16, 5), "u": rand(16, 5, seed=1), "zero": np.float32(0), **stored}
    return made([node("MatMul", "x w", "m"), activation, *ASKED, choice], held)


@model
def relu_for_bodies():
    return read_in_bodies(node("Relu", "m", "h"))


@model
def clip_for_bodies():
    return read_in_bodies(node("Clip", "m zero six", "h"), six=np.float32(6))


@model
def clip_away_from_zero():
    """A range for int8 always holds zero: this Clip is no rounding."""
    nodes = [node("Gemm", "x w b", "a"), node("Clip", "a low high", "c"), node("Gemm", "c v d", "y")]
    stored = {
        "w": rand(16, 32),
        "b": rand(32),
        "low": np.float32(0.5),
        "high": np.float32(2),
        "v": rand(32, 5),
        "d": rand(5),
    }
    return made(nodes, stored)


@model
def twin_branches():
    """Both branches call their own weight and result the same."""
    yes, no = (
        branch(n, [node("MatMul", "h own", "out")], {"own": rand(32, 5, seed=s)}) for s, n in enumerate(("yes", "no"))
    )
    choice = node("If", "positive", "y", then_branch=yes, else_branch=no)
    nodes = [node("Gemm", "x w b", "a"), node("Relu", "a", "h"), *ASKED, choice]
    return made(nodes, {"w": rand(16, 32), "b": rand(32), "zero": np.float32(0)})


@model
def old_ir():
    """IR version 3: initializers are inputs too."""
    nodes = [node("Conv", "x w b", "c", pads=[1] * 4), node("Relu", "c", "r"), node("GlobalAveragePool", "r", "p")]
    nodes += [node("Flatten", "p", "f"), node("Gemm", "f v d", "y")]
    stored = {"w": rand(8, 3, 3, 3), "b": rand(8), "v": rand(8, 5), "d": rand(5)}
    result = made(nodes, stored, x=("N", 3, 8, 8), opset=9, ir=4)
    result.ir_version = 3
    result.graph.input.extend(value(name, *array.shape) for name, array in stored.items())
    onnx.checker.check_model(result)
    return result


def gemm_with(bias, x=("N", 16), y=("N", 5)):
    nodes = [node("Gemm", "x w b", "a", beta=0.5), node("Relu", "a", "r"), node("Gemm", "r v d", "y", transB=1)]
    return made(nodes, {"w": rand(16, 32), "b": bias, "v": rand(5, 32), "d": rand(5)}, x=x, y=y)


@model
def bias_of_one():
    return gemm_with(np.float32([0.7]))


@model
def bias_scalar():
    return gemm_with(np.float32(0.7))


@model
def bias_row():
    return gemm_with(rand(32)[None])


@model
def bias_matrix():
    return gemm_with(rand(8, 32), x=(8, 16), y=(8, 5))


@model
def bias_column():
    return gemm_with(rand(8, 1), x=(8, 16), y=(8, 5))


@model
def constant_output():
    """One output is stored, one is made of a Constant."""
    nodes = [node("Gemm", "x w b", "y"), helper.make_node("Constant", [], ["k"], value_floats=[1.0, 2.0])]
    return made(nodes, {"w": rand(16, 5), "b": rand(5)}, outputs=[value("y", "N", 5), value("k", 2), value("b", 5)])


@model
def batched_weights():
    nodes = [node("MatMul", "x w", "a"), node("Relu", "a", "r"), node("Flatten", "r", "f"), node("MatMul", "f v", "y")]
    weights = np.stack([rand(8, 8, seed=s) * 4.0**-s for s in range(4)])
    return made(nodes, {"w": weights, "v": rand(32, 5)}, x=("N", 4, 1, 8))


@model
def vector_weights():
    nodes = [node("MatMul", "x w", "a"), node("Relu", "a", "r"), node("MatMul", "r v", "y")]
    return made(nodes, {"w": rand(16, 32), "v": rand(32)}, y=("N",))


@model
def weights_on_the_left():
    nodes = [node("MatMul", "w x", "a"), node("Relu", "a", "r"), node("MatMul", "v r", "y")]
    return made(nodes, {"w": rand(24, 16, spread=True), "v": rand(5, 24, spread=True)}, x=("N", 16, 3), y=("N", 5, 3))


def chain(widths, act):
    nodes, stored, last = [], {}, "x"
    for index, (before, after) in enumerate(itertools.pairwise(widths)):
        end = index == len(widths) - 2
        nodes.append(node("MatMul", f"{last} w{index}", "y" if end else f"m{index}"))
        stored[f"w{index}"] = rand(before, after, seed=index)
        if not end:
            nodes.append(node(act, f"m{index}", f"r{index}"))
            last = f"r{index}"
    return made(nodes, stored, x=("N", widths[0]), y=("N", widths[-1]))


@model
def chain_of_two():
    return chain([16, 64, 5], "Relu")


@model
def chain_of_three():
    return chain([16, 32, 32, 5], "Sigmoid")


@model
def mean_of_norm():
    """LayerNormalization gives out its mean too."""
    nodes = [
        node("Gemm", "x w b", "a"),
        node("LayerNormalization", "a g s", "n mean", axis=-1),
        node("Gemm", "n v d", "y"),
    ]
    stored = {
        "w": rand(16, 32),
        "b": rand(32),
        "g": np.ones(32, np.float32),
        "s": rand(32),
        "v": rand(32, 5),
        "d": rand(5),
    }
    return made(nodes, stored, outputs=[value("y", "N", 5), value("mean", "N", 1)])


@model
def stale_shapes():
    """What the file says of values in between is wrong; ONNX Runtime believes none of it, inference of shapes did."""
    nodes = [node("Gemm", "x w b", "a"), node("Relu", "a", "r"), node("Gemm", "r v d", "y")]
    stored = {"w": rand(16, 32), "b": rand(32), "v": rand(32, 5), "d": rand(5)}
    return made(nodes, stored, value_info=[value("r", "M", 32)], outputs=[value("y", None, None)])


@model
def adding_scatter():
    """ScatterND with a reduction, and sequences."""
    nodes = [
        node("Gemm", "x w b", "a"), node("ScatterND", "a at more", "s", reduction="add"), node("SequenceConstruct", "s a", "q"),
        node("SequenceAt", "q one", "t"), node("Add", "s t", "u"), node("Gemm", "u v d", "y"),
    ]  # fmt: skip
    stored = {"w": rand(16, 32), "b": rand(32), "at": np.int64([[0], [1]]), "more": rand(2, 32), "one": np.int64(1)}
    return made(nodes, {**stored, "v": rand(32, 5), "d": rand(5)}, x=(8, 16), y=(8, 5))


@model
def shared_lstm():
    """Two LSTMs read the same weights."""
    nodes = [
        node("Transpose", "x", "t", perm=[1, 0, 2]), node("LSTM", "t w r b", "o h", hidden_size=8),
        node("Squeeze", "o axis", "i"),
        node("LSTM", "i w r b", "p h2", hidden_size=8), node("Squeeze", "h2 first", "k"), node("MatMul", "k v", "y"),
    ]  # fmt: skip
    stored = {
        "w": rand(1, 32, 8),
        "r": rand(1, 32, 8, seed=1),
        "b": rand(1, 64),
        "axis": np.int64([1]),
        "first": np.int64([0]),
    }
    return made(nodes, {**stored, "v": rand(8, 5)}, x=("N", 4, 8))
