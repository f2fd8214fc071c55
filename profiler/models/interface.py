"""What callers see of a model: names, types and order of its inputs and outputs."""

from __future__ import annotations

from onnx import ModelProto, TypeProto, ValueInfoProto

from profiler.models.initializers import as_constants


def restore_interface(model: ModelProto, original: ModelProto) -> str | None:
    """Give `model` the inputs and outputs of `original` again, in place; None when it has them then, else what is wrong.

    Simplifiers drop an input that no node reads, reorder what is left, and list stored tensors as inputs. An input that is
    gone is declared again. An output of another name or type cannot be mended.
    """
    wanted = ModelProto()
    wanted.CopyFrom(_declarations(original))
    as_constants(wanted)
    as_constants(model)
    for field in ("input", "output"):
        have = {value.name: value for value in getattr(model.graph, field)}
        should = {value.name: value for value in getattr(wanted.graph, field)}
        if extra := sorted(have.keys() - should.keys()):
            return f"it has an {field} '{extra[0]}' that the model does not have"
        for name, value in should.items():
            if name not in have and field == "output":
                return f"it lost the output '{name}'"
            if name in have and not _same_type(have[name].type, value.type):
                return f"{field} '{name}' has another type or rank"
        # Declared as the original says: a simplifier may have inferred more than holds, or forgotten symbols.
        values = [ValueInfoProto.FromString(value.SerializeToString()) for value in should.values()]
        model.graph.ClearField(field)
        getattr(model.graph, field).extend(values)
    return None


def _declarations(model: ModelProto) -> ModelProto:
    """Inputs, outputs and the names of stored tensors, without what they hold."""
    bare = ModelProto(ir_version=model.ir_version)
    bare.graph.input.extend(model.graph.input)
    bare.graph.output.extend(model.graph.output)
    for tensor in model.graph.initializer:
        bare.graph.initializer.add().name = tensor.name
    for sparse in model.graph.sparse_initializer:
        bare.graph.sparse_initializer.add().values.name = sparse.values.name
    return bare


def _same_type(first: TypeProto, second: TypeProto) -> bool:
    kinds = first.WhichOneof("value"), second.WhichOneof("value")
    if kinds[0] != kinds[1] or None in kinds:
        return kinds[0] is None or kinds[1] is None
    if kinds[0] != "tensor_type":
        return True
    one, two = first.tensor_type, second.tensor_type
    ranks = [len(tensor.shape.dim) for tensor in (one, two) if tensor.HasField("shape")]
    return one.elem_type == two.elem_type and len({*ranks}) <= 1
