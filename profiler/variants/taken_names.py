"""Values that are called what a quantizer would call its own make room for it, also where the name is the user's."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from onnx import ModelProto

from profiler.models.naming import Names, rename_values, value_names
from profiler.onnx_io import clone, walk_nodes

_DERIVED = re.compile(
    r"_(scales?|zero_points?|quantized|quant|QuantizeLinear|DequantizeLinear|convert|Cast|Reduce(Min|Max)|Abs_Max|Transposed?|"
    r"MatMul|Add|output_quantized|output_scale_mul|scales_mul|pre_reshape|DQ|Q[248])(\W|_|$)"
)
"""What ONNX Runtime's quantizers append to the name of a value or node, once or several times (onnxruntime.quantization 1.20 to
1.32); they do not look whether a value has such a name."""
_FIXED = frozenset(("fixed_quantization_range_uint8", "fixed_quantization_range_int8", "fixed_zero", "fixed_zero_zp"))
"""Names that they use as they are."""


def with_free_names(model: ModelProto, quantize: Callable[[ModelProto, Mapping[str, str]], ModelProto]) -> ModelProto:
    """What `quantize` makes of `model`, without any of its names meeting one that is there.

    Values named like something derived from another value or node get other names while `quantize` works; it is given a copy and
    the new names by the old ones. All have theirs again afterwards, and then a quantizer's own value of that name is called
    otherwise.
    """
    renamed = free_names(model)
    if not renamed:
        return quantize(clone(model), {})
    work = clone(model)
    rename_values(work, renamed)
    result = quantize(work, renamed)
    made, left = Names(result), value_names(result)
    rename_values(result, {old: made.fresh(f"{old}_") for old in renamed if old in left})
    rename_values(result, {new: old for old, new in renamed.items()})
    return result


def free_names(model: ModelProto) -> dict[str, str]:
    """Names that no quantizer makes, by those of `model` that one may: the same for equal models."""
    known = value_names(model)
    bases = known | {node.name for node in walk_nodes(model)}
    clashing = sorted(name for name in known if name in _FIXED or _is_derived(name, bases))
    names = Names(model)
    return {name: names.fresh(f"{name}_") for name in clashing}


def _is_derived(name: str, bases: set[str]) -> bool:
    return any(name[: match.start()] in bases for match in _DERIVED.finditer(name))
