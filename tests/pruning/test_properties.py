"""What holds for every graph: pruned models are valid, ratio 0 changes nothing, dead channels do not count."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from profiler.onnx_io import clone, model_inputs, model_outputs
from profiler.pruning import plan
from profiler.pruning.axes import Axes
from profiler.pruning.cut import check, cut
from profiler.pruning.graph import GraphView
from profiler.pruning.groups import find_groups
from profiler.pruning.importance import magnitude
from profiler.pruning.refit import refit
from profiler.variants.prune_structured import PruneChannels, open_session
from profiler.variants.running import batches, outputs

pytestmark = pytest.mark.runtime

STEPS = (
    "conv",
    "plain",
    "norm",
    "depthwise",
    "doubled",
    "grouped",
    "residual",
    "joined",
    "gated",
    "scaled",
    "pool",
    "parted",
)
models = {
    "seed": st.integers(0, 2**16),
    "steps": st.lists(st.sampled_from(STEPS), min_size=1, max_size=5),
    "head": st.sampled_from(("flatten", "reshape", "squeeze", "mean")),
}
check_all = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def analysed(model):
    axes = Axes(GraphView(model))
    groups, left = find_groups(axes)
    return axes, groups, left


@check_all
@given(**models, ratio=st.sampled_from((0.25, 0.5, 0.9)), round_to=st.sampled_from((1, 4)))
def test_a_pruned_graph_is_valid_and_keeps_its_shapes(graphs, seed, steps, head, ratio, round_to):
    """The checker takes it, ONNX Runtime runs it at two batch sizes, inputs and outputs are the same; something went."""
    model = graphs.random_model(seed, steps, head)

    result = PruneChannels(ratio=ratio, importance="magnitude", refit=False, round_to=round_to).apply(model, None)

    onnx.checker.check_model(result.model, full_check=True)
    assert model_inputs(result.model) == model_inputs(model)
    assert model_outputs(result.model) == model_outputs(model)
    for count in (1, 3):
        answers = outputs(result.model, graphs.rows(count))[0]
        assert answers.shape == (count, 5)
        assert np.isfinite(answers).all()
    assert result.changed == (result.facts["channels_after"] < result.facts["channels_before"])
    assert result.changed or ratio == 0.25


@check_all
@given(**models)
def test_ratio_0_is_the_original_bit_for_bit(graphs, seed, steps, head):
    """Not only the recipe, which returns the model: cutting nothing gives the analysed model too."""
    model = graphs.random_model(seed, steps, head)
    axes, _, _ = analysed(model)

    result = PruneChannels(ratio=0.0).apply(model, graphs.rows(4))

    assert not result.changed
    assert result.model.SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)
    assert cut(axes, set()).SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)


@check_all
@given(**models)
def test_channels_that_nothing_reads_change_nothing_when_they_go(graphs, seed, steps, head):
    """Half of the units of each group get zero weights on the way out; without them the outputs are the same."""
    model = graphs.random_model(seed, steps, head)
    _, groups, _ = analysed(model)
    arrays = {tensor.name: np.array(numpy_helper.to_array(tensor)) for tensor in model.graph.initializer}
    removed = set()
    for group in groups:
        for unit in range(0, group.size, 2):
            removed.add(group.roots[unit])
            for member in group.consumers:
                places = [slice(None)] * arrays[member.use.weight].ndim
                places[member.axis] = member.places[unit]
                arrays[member.use.weight][tuple(places)] = 0
    silenced = clone(model)
    for tensor in silenced.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(arrays[tensor.name], tensor.name))

    pruned = cut(Axes(GraphView(silenced)), removed)

    check(pruned, silenced)
    before, after = outputs(silenced, graphs.rows(3))[0], outputs(pruned, graphs.rows(3))[0]
    assert removed
    assert np.abs(before - after).max() < 1e-5 * max(1.0, np.abs(before).max())


@check_all
@given(**models)
def test_refitting_an_uncut_model_leaves_it_alone(graphs, seed, steps, head):
    """Every node is offered for fitting; residuals are zero, so nothing may move."""
    model = graphs.random_model(seed, steps, head)
    axes, _, _ = analysed(model)
    data = graphs.rows(6)
    same = cut(axes, set())

    report = refit(axes, same, set(), open_session, lambda: batches(model, data, 6), 6, everything=True)

    assert report.fitted + report.unhelped == len(
        [use for use in axes.uses if use.groups in (1, axes.size((use.data, 1)))]
    )
    assert np.abs(outputs(model, data)[0] - outputs(same, data)[0]).max() < 1e-3


@settings(
    check_all, max_examples=15, derandomize=True
)  # likely, not certain: fitted on sampled positions, layer by layer
@given(**models)
def test_refitting_brings_outputs_closer_on_the_rows_it_saw(graphs, seed, steps, head):
    """Mean squared error of the outputs against the original's, with re-fitting and without it."""
    model = graphs.random_model(seed, steps, head)
    data = graphs.rows(48)
    wanted = outputs(model, data)[0]
    errors = [
        np.square(outputs(recipe.apply(model, data).model, data)[0] - wanted).mean()
        for recipe in (PruneChannels(refit=False, round_to=1), PruneChannels(round_to=1))
    ]

    assert errors[1] <= errors[0] * 1.05


@given(
    sizes=st.lists(st.integers(2, 64), min_size=1, max_size=4), ratio=st.floats(0, 0.95), round_to=st.integers(1, 16)
)
def test_kept_counts_are_whole_blocks_or_everything(sizes, ratio, round_to):
    """Never below one block, never above what is there, at ratio 0 all."""
    from types import SimpleNamespace

    groups = [SimpleNamespace(size=size, width=1) for size in sizes]

    for group, count in zip(groups, plan.uniform(groups, ratio, round_to), strict=True):
        assert min(group.size, round_to) <= count <= group.size
        assert count == group.size or count % round_to == 0
        if ratio == 0:
            assert count == group.size


def test_least_important_units_go_first(graphs):
    """By magnitude: units whose weights are zero everywhere are the ones removed."""
    model = graphs.random_model(3, ["conv"], "mean")
    axes, groups, _ = analysed(model)
    group = groups[0]
    dead = {1, 4}
    arrays = {tensor.name: np.array(numpy_helper.to_array(tensor)) for tensor in model.graph.initializer}
    for member in (*group.producers, *group.consumers):
        for unit in dead:
            places = [slice(None)] * arrays[member.use.weight].ndim
            places[member.axis] = member.places[unit]
            arrays[member.use.weight][tuple(places)] = 0
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(arrays[tensor.name], tensor.name))
    axes, groups, _ = analysed(model)
    rankings = [plan.ranked(magnitude(axes, group)) for group in groups]

    removed = plan.removed_units(
        groups, rankings, [group.size - (2 if place == 0 else 0) for place, group in enumerate(groups)]
    )

    assert removed == {groups[0].roots[unit] for unit in dead}
