"""Structured pruning: whole channels leave the graph, and what read them is fitted again."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from profiler.data.feeding import rows_fed
from profiler.errors import VariantError
from profiler.models.initializers import as_constants
from profiler.onnx_io import clone, count_ops, opset_of, weights_count, write_model
from profiler.pruning import importance as judge
from profiler.pruning import plan, reconstruct
from profiler.pruning.axes import Axes
from profiler.pruning.cut import check, cut
from profiler.pruning.graph import GraphView
from profiler.pruning.groups import Group, find_groups
from profiler.pruning.observe import ChannelSums, Runner, channel_sums
from profiler.pruning.refit import Report, refit
from profiler.pruning.sensitivity import sensitivities
from profiler.variants.base import Calibration, Fact, Recipe, VariantResult, expect
from profiler.variants.preparing import judged, lift_constants
from profiler.variants.running import batches, ensure_loads, scratch, session

QUANTIZED = frozenset(
    ("QuantizeLinear", "DequantizeLinear", "ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul")
)


SENSITIVITY_ROWS = 16
"""Calibration rows on which every reader's weight is disturbed once: an order of magnitude is enough."""


@dataclass(frozen=True)
class PruneChannels(Recipe):
    """Remove channels, heads and hidden units that matter least, wherever the graph allows it.

    The result is a smaller dense model. What is tied (residual additions, depthwise convolutions, concatenations) goes
    together; what reaches an output or an op whose rule is not known stays.
    """

    name: ClassVar[str] = "prune-channels"
    needs_calibration: ClassVar[bool] = True

    ratio: float = 0.5
    """Share of each group's channels to remove (`allocation=uniform`), or of the multiply-adds (the other two)."""
    importance: Literal["reconstruction", "activation", "magnitude"] = "reconstruction"
    """`reconstruction` asks what the channels that stay cannot make up for; it goes with re-fitting."""
    refit: bool = True
    """Fit the weights that read the pruned channels on calibration rows; no training."""
    allocation: Literal["uniform", "cost", "sensitivity"] = "uniform"
    """`cost` takes blocks where the least importance is lost per multiply-add saved; `sensitivity` also weighs the loss with
    how much of an error there arrives at the outputs (needs importance=reconstruction)."""
    scope: Literal["all", "inner"] = "all"
    """`inner` leaves channels alone that a residual addition ties."""
    round_to: int = 8
    """Channel counts become multiples of this: vector instructions work on whole blocks."""
    samples: int = 256
    """Most calibration rows that are run."""

    def __post_init__(self) -> None:
        """Check the options; raises StudyError."""
        expect(self, "ratio", 0 <= self.ratio < 1, "a number from 0, below 1")
        expect(self, "round_to", self.round_to >= 1, "at least 1")
        expect(self, "samples", self.samples >= 1, "at least 1")
        fits = self.allocation != "sensitivity" or self.importance == "reconstruction"
        expect(self, "allocation", fits, "uniform or cost, or importance=reconstruction beside it")

    def apply(self, model: ModelProto, calibration: Calibration | None) -> VariantResult:
        """Prune; raises VariantError without the rows that the options need, or when the result cannot be loaded."""
        with one_blas_thread():
            return self._apply(model, calibration)

    def _apply(self, model: ModelProto, calibration: Calibration | None) -> VariantResult:
        if not calibration and (self.refit or self.importance != "magnitude") and self.ratio > 0:
            raise VariantError(
                f"{self.text} needs calibration data: give --data or --calibration, or use importance=magnitude,refit=false."
            )
        if found := sorted(QUANTIZED & set(count_ops(model))):
            raise VariantError(
                f"{self.text}: the model is quantized already ({', '.join(found)}): prune first, {self.text}+int8-static."
            )
        source = clone(model)
        as_constants(source)
        lift_constants(source)
        axes = Axes(GraphView(source))
        groups, left = find_groups(axes)
        chosen = [group for group in groups if self.scope == "all" or not group.tied]
        if self.scope == "inner" and len(chosen) < len(groups):
            left["is tied by a residual addition (scope=inner)"] += len(groups) - len(chosen)
        if not chosen:
            return _unchanged(model, f"no channels can be removed soundly: {_reasons(left) or 'no stored weights'}")
        sums = self._sums(axes, source, chosen, calibration)
        rankings = self._rank(axes, source, chosen, sums, calibration)
        cost = plan.cost_of(axes, chosen, _positions(axes, sums))
        if self.allocation == "uniform":
            kept = plan.uniform(chosen, self.ratio, self.round_to)
        else:
            kept = plan.by_cost(chosen, rankings, cost, self.ratio, self.round_to)
        facts = _facts(chosen, kept, cost, left)
        if all(count == group.size for group, count in zip(chosen, kept, strict=True)):
            return _unchanged(
                model, f"no group has channels to spare at ratio {self.ratio:g}, round_to {self.round_to}", facts
            )
        removed = plan.removed_units(chosen, rankings, kept)
        result = cut(axes, removed)
        check(result, source)
        notes = []
        if left:
            notes.append(f"left whole: {_reasons(left)}.")
        if self.refit and calibration:
            report = self._refit(axes, result, removed, source, calibration)
            facts.update(_refit_facts(report))
            notes.extend(_refit_notes(report))
        if (loading := ensure_loads(result, self.text)) is not None:
            notes.append(loading)
        facts |= {
            "weights_before": weights_count(model),
            "weights_after": weights_count(result),
            "opset": opset_of(result),
        }
        judged(model, result, calibration, facts, notes)
        return VariantResult(result, facts, tuple(notes), changed=True)

    def _sums(
        self, axes: Axes, source: ModelProto, groups: list[Group], calibration: Calibration | None
    ) -> Mapping[str, ChannelSums]:
        """Activation sums of what the uses read; empty when nothing asks for them."""
        if not calibration or (self.importance == "magnitude" and self.allocation == "uniform"):
            return {}
        wanted = {use.data: use.data_axis for use in axes.uses}
        wanted |= {
            axes.view.nodes[use.node].output[0]: 1 for use in axes.uses if axes.view.nodes[use.node].op_type == "Conv"
        }
        wanted = {name: axis for name, axis in wanted.items() if name in axes.view.maker}
        fed = {member.use.data for group in groups for member in group.consumers}
        assert fed <= set(wanted)
        return channel_sums(source, wanted, open_session, batches(source, calibration, self.samples))

    def _rank(
        self,
        axes: Axes,
        source: ModelProto,
        groups: list[Group],
        sums: Mapping[str, ChannelSums],
        calibration: Calibration | None,
    ) -> list[plan.Ranking]:
        if self.importance == "magnitude" or not calibration:
            return [plan.ranked(judge.magnitude(axes, group)) for group in groups]
        if self.importance == "activation":
            return [plan.ranked(judge.activation(axes, group, sums)) for group in groups]
        feeds, rows = self._feeds(source, calibration)
        readers = list(dict.fromkeys(member.use for group in groups for member in group.consumers))
        readers = [use for use in readers if axes.view.nodes[use.node].op_type != "ConvTranspose"]
        seen = reconstruct.moments(axes, readers, open_session, feeds, rows)
        most = [group.size for group in groups]
        if self.allocation == "uniform":
            most = [
                size - count for size, count in zip(most, plan.uniform(groups, self.ratio, self.round_to), strict=True)
            ]
        weights = None
        if self.allocation == "sensitivity":
            few = batches(source, calibration, min(SENSITIVITY_ROWS, self.samples))
            weights = sensitivities(axes, readers, open_session, few)
        return [reconstruct.rank(axes, group, seen, count, weights) for group, count in zip(groups, most, strict=True)]

    def _refit(
        self, axes: Axes, result: ModelProto, removed: set[int], source: ModelProto, calibration: Calibration
    ) -> Report:
        feeds, rows = self._feeds(source, calibration)
        return refit(axes, result, removed, open_session, feeds, rows)

    def _feeds(
        self, source: ModelProto, calibration: Calibration
    ) -> tuple[Callable[[], Iterator[Mapping[str, NDArray[Any]]]], int]:
        def feeds() -> Iterator[Mapping[str, NDArray[Any]]]:
            yield from batches(source, calibration, self.samples)

        return feeds, sum(rows_fed(calibration, row) for row in feeds())


def one_blas_thread() -> contextlib.AbstractContextManager[Any]:
    """Keep numpy's matrix products on one thread.

    Thousands of small products wait for each other's threads: on two busy cores they took fifteen times as long on two threads.
    One thread also adds in one order, so the result is the same again.
    """
    from threadpoolctl import threadpool_limits

    manager: contextlib.AbstractContextManager[Any] = threadpool_limits(limits=1, user_api="blas")
    return manager


class _Opened:
    """A model in ONNX Runtime that can be asked for some outputs."""

    def __init__(self, model: ModelProto) -> None:
        with scratch() as folder:
            self._session: Any = session(write_model(model, folder))
        self._inputs = {put.name for put in self._session.get_inputs()}

    def run(self, names: Sequence[str] | None, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        given = {name: array for name, array in feeds.items() if name in self._inputs}
        return list(self._session.run(names, given))


def open_session(model: ModelProto) -> Runner:
    """Load a model in ONNX Runtime on one thread, for the functions of `profiler.pruning`."""
    return _Opened(model)


def _positions(axes: Axes, sums: Mapping[str, ChannelSums]) -> dict[int, int]:
    """Output positions per row of each use's node: seen while running, else from static shapes."""
    positions: dict[int, int] = {}
    for use in axes.uses:
        node = axes.view.nodes[use.node]
        output = node.output[0] if node.op_type in ("Conv", "ConvTranspose") else use.data
        if output in sums:
            positions[use.node] = sums[output].positions
            continue
        shape = axes.shape(output) or ()
        beside = shape[2:] if node.op_type in ("Conv", "ConvTranspose") else shape[1:-1]
        positions[use.node] = int(np.prod([size or 1 for size in beside]))
    return positions


def _facts(groups: list[Group], kept: list[int], cost: plan.Cost, left: Counter[str]) -> dict[str, Fact]:
    before = cost.total([group.size for group in groups])
    after = cost.total(kept)
    pruned = [(group, count) for group, count in zip(groups, kept, strict=True) if count < group.size]
    return {
        "groups_pruned": len(pruned),
        "groups_left": sum(left.values()) + len(groups) - len(pruned),
        "channels_before": sum(group.size * group.width for group in groups),
        "channels_after": sum(count * group.width for group, count in zip(groups, kept, strict=True)),
        "multiply_adds_kept": round(after / before, 4) if before else None,
        "kept": ", ".join(f"{count}/{group.size}" for group, count in zip(groups, kept, strict=True)),
    }


def _refit_facts(report: Report) -> dict[str, Fact]:
    share = report.residual_after / report.residual_before if report.residual_before > 0 else None
    return {
        "nodes_refitted": report.fitted,
        "nodes_not_refitted": report.unhelped + len(report.too_large) + len(report.unfit),
        "refit_residual_share": None if share is None else round(share, 6),
    }


def _refit_notes(report: Report) -> list[str]:
    notes = []
    if report.too_large:
        notes.append(f"too many weights to fit at once, left as cut: {_some(report.too_large)}.")
    if report.unfit:
        notes.append(f"cannot be fitted (shared weights or an op without a rule), left as cut: {_some(report.unfit)}.")
    return notes


def _some(names: list[str], limit: int = 3) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _reasons(left: Counter[str], limit: int = 3) -> str:
    parts = [f"{count}× {reason}" for reason, count in sorted(left.items(), key=lambda item: (-item[1], item[0]))]
    return _some(parts, limit)


def _unchanged(model: ModelProto, why: str, facts: Mapping[str, Fact] | None = None) -> VariantResult:
    return VariantResult(
        clone(model), {"groups_pruned": 0, **(facts or {})}, (f"nothing was pruned: {why}.",), changed=False
    )
