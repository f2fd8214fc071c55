"""Which nodes cannot take float16 where a model has float32, and names that the converter makes."""

from __future__ import annotations

import re

import onnx
from onnx import ModelProto, NodeProto, TensorProto, inliner

from profiler.models.initializers import as_constants
from profiler.models.naming import Names, rename_values, value_names
from profiler.onnx_io import clone, opset_of, walk_nodes
from profiler.variants.preparing import lift_constants, name_nodes

RECURRENT = frozenset(("GRU", "LSTM", "RNN"))
"""They stay float32: ONNX Runtime's CPU provider has no float16 kernel for them, so nothing is gained. Of some such files it is
reported that they end its process; with ONNX Runtime 1.32 none that we made did."""
INTEGER_PRODUCTS = frozenset(("ConvInteger", "MatMulInteger"))
HALF = "tensor(float16)"
_FLOAT = "tensor(float)"
_MADE = re.compile(r"^graph_(in|out)put_cast_?\d+$|_cast_to_fp(16|32)(_node)?$")
"""Names of values and nodes that onnxruntime.transformers.float16 makes (1.20 to 1.32) without looking who has them."""


def convertible(model: ModelProto) -> ModelProto:
    """A copy where the converter finds everything: functions inlined, named nodes, constants and old initializers as plain ones,
    and no output that is itself a stored tensor.
    """
    copy = inliner.inline_local_functions(model) if model.functions else clone(model)
    as_constants(copy)
    lift_constants(copy)
    name_nodes(copy)
    _free_outputs(copy)
    names = Names(copy)
    for node in walk_nodes(copy):
        # What the converter adds is told from what was there by its name.
        if _MADE.search(node.name):
            node.name = names.fresh(f"{node.name}_")
    return copy


def _free_outputs(model: ModelProto) -> None:
    """Let an Identity make each output that is a stored tensor or an input, in place: the converter would define it twice."""
    held = {tensor.name for tensor in model.graph.initializer} | {value.name for value in model.graph.input}
    names = Names(model)
    for value in model.graph.output:
        if value.name not in held or value.name in {put.name for put in model.graph.input}:
            continue
        inner = names.fresh(f"{value.name}_stored")
        for tensor in model.graph.initializer:
            if tensor.name == value.name:
                tensor.name = inner
        for node in walk_nodes(model):
            for index, name in enumerate(node.input):
                if name == value.name:
                    node.input[index] = inner
        node = onnx.helper.make_node("Identity", [inner], [value.name], name=names.fresh(f"{value.name}_kept"))
        model.graph.node.append(node)


def made_names(model: ModelProto) -> dict[str, str]:
    """New names by those of values of `model` that the converter may give to values of its own."""
    names = Names(model)
    return {name: names.fresh(f"{name}_") for name in sorted(value_names(model)) if _MADE.search(name)}


def give_back_names(model: ModelProto, renamed: dict[str, str]) -> None:
    """Undo `made_names` in the converted model, in place; what the converter called so gets another name."""
    if not renamed:
        return
    taken, names = value_names(model), Names(model)
    rename_values(model, {old: names.fresh(f"{old}_") for old in renamed if old in taken})
    rename_values(model, {new: old for old, new in renamed.items()})


def only_float32(model: ModelProto) -> list[NodeProto]:
    """Nodes that stay float32 because of what they are: recurrent ones, those whose schema knows no float16 at the model's opset,
    and what turns the sums of integer products into floats.

    The sums reach millions, where float16 ends at 65,504, and their scales are products of two small ones.
    """
    versions = {"" if entry.domain == "ai.onnx" else entry.domain: entry.version for entry in model.opset_import}
    versions.setdefault("", opset_of(model))
    between = {node.name for node in _between_pairs(model)} if versions[""] < HALF_PAIRS_OPSET else set()
    products = {node.name for node in _around_products(model)}
    return [
        node
        for node in walk_nodes(model)
        if node.op_type in RECURRENT
        or _scatters_sums(node)
        or node.name in between | products
        or not _takes_half(node, versions)
    ]


def _scatters_sums(node: NodeProto) -> bool:
    """ONNX Runtime's CPU provider loads a float16 scatter with a reduction and fails when it runs it (1.32)."""
    return node.op_type in ("ScatterElements", "ScatterND") and any(
        item.name == "reduction" and item.s not in (b"", b"none") for item in node.attribute
    )


HALF_PAIRS_OPSET = 19
"""From here on QuantizeLinear and DequantizeLinear take float16."""


def _takes_half(node: NodeProto, versions: dict[str, int]) -> bool:
    domain = "" if node.domain == "ai.onnx" else node.domain
    try:
        schema = onnx.defs.get_schema(node.op_type, versions.get(domain, 1), domain)
    except onnx.defs.SchemaError:
        # Ops of a runtime: whether it has them is seen when it loads the file.
        return True
    allowed = {one.type_param_str: set(one.allowed_type_strs) for one in schema.type_constraints}
    for formal in (*schema.inputs, *schema.outputs):
        types = allowed.get(formal.type_str, {formal.type_str})
        # The scales of Resize and the sizes of Upsample are float32 in every version; the converter keeps them so.
        if _FLOAT in types and HALF not in types and (node.op_type, formal.name) not in _KEPT_BY_CONVERTER:
            return False
    return True


_KEPT_BY_CONVERTER = frozenset((("Resize", "scales"),))


def _around_products(model: ModelProto) -> list[NodeProto]:
    """The Cast behind each integer product, the Mul behind it, and who makes that Mul's other factor."""
    nodes = list(walk_nodes(model))
    sums = {name for node in nodes if node.op_type in INTEGER_PRODUCTS for name in node.output}
    casts = [node for node in nodes if node.op_type == "Cast" and sums & {*node.input}]
    floats = {name for node in casts for name in node.output}
    scaled = [node for node in nodes if node.op_type == "Mul" and floats & {*node.input}]
    factors = {name for node in scaled for name in node.input} - floats
    return [*casts, *scaled, *(node for node in nodes if factors & {*node.output})]


def _between_pairs(model: ModelProto) -> list[NodeProto]:
    """Nodes that read nothing but dequantized values and stored floats: with casts around them no runtime makes them integer."""
    nodes = list(walk_nodes(model))
    pairs = {name for node in nodes if node.op_type == "DequantizeLinear" for name in node.output}
    stored = {tensor.name for tensor in model.graph.initializer if tensor.data_type != TensorProto.FLOAT16}
    found = []
    for node in nodes:
        read = {name for name in node.input if name}
        if node.op_type != "DequantizeLinear" and read & pairs and read <= pairs | stored:
            found.append(node)
            # Relu and the like stand between a product and its QuantizeLinear.
            pairs |= {name for name in node.output if _one_reader_quantizes(nodes, name)}
    return found


def _one_reader_quantizes(nodes: list[NodeProto], name: str) -> bool:
    readers = [node for node in nodes if name in node.input]
    return len(readers) == 1 and readers[0].op_type in ("Clip", "Relu")
