"""What each op costs in accuracy when it alone runs in int8: the order in which ops are best left in float."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from profiler.errors import DataError
from profiler.onnx_io import model_outputs, write_model
from profiler.variants.base import Calibration
from profiler.variants.calibration import drawn
from profiler.variants.int8_static import Int8Static
from profiler.variants.running import batches, scratch, session
from profiler.variants.selection import node_texts

MOST_GROUPS = 100
"""Most quantized models that are made and run; a model with more ops is looked at in groups of neighbours."""

Outputs = list[NDArray[np.float64]]


@dataclass(frozen=True)
class Sensitivity:
    """One op, or one group of neighbours, quantized alone."""

    nodes: tuple[str, ...]
    """As `skip` and `only` name them."""
    op_types: tuple[str, ...]
    error: float
    """Mean squared error of the first float output over the variance of that output; 1 is as bad as a constant."""
    divergence: float | None
    """Mean Kullback-Leibler divergence in nats from float's class probabilities; None unless the output is [N, classes]."""


def sensitivities(
    model: ModelProto, calibration: Calibration, recipe: Int8Static, rows: Calibration | None = None, limit: int = 64
) -> list[Sensitivity]:
    """Each op of `recipe` quantized alone, the one that costs most first; empty when the recipe finds nothing to quantize.

    All use the ranges of one calibration on `calibration`; outputs are compared on at most `limit` of `rows` (without rows:
    the last calibration rows). It takes (groups + 1) × limit inferences beside the calibration, with groups = ops up to
    `MOST_GROUPS`. Bias correction is left out: it repairs what is to be seen. Equal input gives an equal result.
    """
    plan = recipe.plan(model, calibration)
    if isinstance(plan, str):
        return []
    texts = {name: text for text, name in node_texts(plan.prepared).items()}
    types = {node.name: node.op_type for node in plan.prepared.graph.node}
    ops = [name for name in plan.nodes if types[name] in recipe.op_types]
    feeds = list(batches(model, rows if rows is not None else _last(calibration, limit), limit))
    place = _float_output(model)
    before = _answers(model, feeds, place)
    found = []
    for group in grouped(ops, MOST_GROUPS):
        after = _answers(recipe.realise(plan, [], group), feeds, place)
        found.append(
            Sensitivity(
                tuple(texts[name] for name in group),
                tuple(sorted({types[name] for name in group})),
                relative_error(before, after),
                kl_divergence(before, after),
            )
        )
    return sorted(found, key=lambda one: (-one.error, one.nodes))


def sensitivity_of(fields: Mapping[str, Any]) -> Sensitivity:
    """The record that `dataclasses.asdict` gave, after it travelled as JSON."""
    return Sensitivity(**{**fields, "nodes": tuple(fields["nodes"]), "op_types": tuple(fields["op_types"])})


def grouped(names: Sequence[str], most: int) -> list[tuple[str, ...]]:
    """At most `most` groups of neighbours, as even as they get."""
    count = min(most, len(names))
    edges = [len(names) * place // count for place in range(count + 1)] if count else [0]
    return [tuple(names[start:stop]) for start, stop in pairwise(edges)]


def relative_error(before: Outputs, after: Outputs) -> float:
    """Mean squared error over the variance of `before`; infinite when `after` is not finite."""
    wanted, got = (np.concatenate([array.ravel() for array in arrays]) for arrays in (before, after))
    known = np.isfinite(wanted)
    wanted, got = wanted[known], got[known]
    if not np.isfinite(got).all():
        return float("inf")
    error, variance = float(np.mean((wanted - got) ** 2)), float(np.var(wanted))
    if error == 0:
        return 0.0
    return error / variance if variance > 0 else float("inf")


def kl_divergence(before: Outputs, after: Outputs) -> float | None:
    """Mean divergence of class probabilities, from logits or from probabilities that add up to 1; [N, classes] only."""
    if any(array.ndim != 2 or array.shape[1] < 2 for array in before):
        return None
    wanted, got = np.concatenate(before), np.concatenate(after)
    if wanted.shape != got.shape or not (np.isfinite(wanted).all() and np.isfinite(got).all()):
        return None
    sums = wanted.sum(axis=1)
    if (wanted >= 0).all() and np.allclose(sums, 1, atol=1e-3):
        p = np.log(np.maximum(wanted, 1e-12))
        q = np.log(np.maximum(got, 1e-12))
    else:
        p, q = wanted, got
    p, q = _log_softmax(p), _log_softmax(q)
    return float(max(0.0, np.mean((np.exp(p) * (p - q)).sum(axis=1))))


def _log_softmax(values: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = values - values.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def _last(calibration: Calibration, limit: int) -> Calibration:
    """The last calibration rows: those that ranges were least likely taken from."""
    return {name: array[-limit:] if array.ndim else array for name, array in drawn(calibration, 0).items()}


def _float_output(model: ModelProto) -> int:
    """Place of the first output that is compared."""
    for place, info in enumerate(model_outputs(model)):
        if info.dtype.startswith("float"):
            return place
    raise DataError("the model has no float output: there is nothing to compare int8 with.")


def _answers(model: ModelProto, feeds: list[dict[str, NDArray[Any]]], place: int) -> Outputs:
    with scratch() as folder:
        runner = session(write_model(model, folder))
        return [np.asarray(runner.run(None, row)[place], np.float64) for row in feeds]
