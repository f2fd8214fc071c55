"""Patches, ridge, elimination: against ONNX Runtime, numpy's least squares and exhaustive search."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from profiler.pruning.axes import Axes
from profiler.pruning.graph import GraphView
from profiler.pruning.groups import find_groups
from profiler.pruning.patches import conv_patches, sampled
from profiler.pruning.reconstruct import Moments, rank, shrinkage
from profiler.pruning.ridge import Sums, fit
from profiler.variants.running import outputs


@pytest.mark.runtime
@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"pads": [1, 0, 2, 1]},
        {"strides": [2, 3], "pads": [1, 1, 1, 1]},
        {"dilations": [2, 1], "pads": [2, 1, 0, 1]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
        {"auto_pad": "VALID", "strides": [1, 2]},
    ],
)
def test_patches_times_weights_is_the_convolution(attributes):
    """Every output position of ONNX Runtime's Conv, kernel 3 × 2 on 8 × 9."""
    rng = np.random.default_rng(0)
    data = rng.standard_normal((2, 3, 8, 9)).astype(np.float32)
    weight = rng.standard_normal((4, 3, 3, 2)).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], **attributes)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node],
        "g",
        [value("x", TensorProto.FLOAT, [2, 3, 8, 9])],
        [value("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    (wanted,) = outputs(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), {"x": data}
    )
    spatial = wanted.shape[2:]

    patches = conv_patches(node, data, (3, 2), spatial, np.arange(np.prod(spatial)))

    made = patches.reshape(2, -1, 18) @ weight.reshape(4, 18).T
    assert np.allclose(made.transpose(0, 2, 1).reshape(wanted.shape), wanted, atol=1e-5)


def test_sampled_positions_are_distinct_repeatable_and_enough():
    """More of each row when there are few rows; all of them when there are few positions."""
    assert np.array_equal(sampled(5, 100, 10, (0, 1)), np.arange(5))
    few, many = sampled(4000, 144, 16, (0, 1)), sampled(4000, 144, 1000, (0, 1))
    assert len(few) * 16 >= 12 * 144
    assert len(many) == 8
    assert len(set(few.tolist())) == len(few)
    assert np.array_equal(few, sampled(4000, 144, 16, (0, 1)))
    assert not np.array_equal(few, sampled(4000, 144, 16, (1, 1)))


def sums_of(x, r):
    halves = []
    for half in range(2):
        sums = Sums.empty(1, x.shape[1], r.shape[1])
        sums.add(x[half::2][None], r[half::2][None])
        halves.append(sums)
    return halves


def test_a_noiseless_correction_is_found():
    """With more rows than unknowns and no noise, ridge at its weakest is numpy's least squares."""
    rng = np.random.default_rng(1)
    x, truth = rng.standard_normal((400, 12)), rng.standard_normal((12, 5))

    found = fit(*sums_of(x, x @ truth))

    assert np.allclose(found.delta[0], truth, atol=1e-4)
    assert found.after < 1e-6 * found.before


def test_noise_is_left_alone():
    """Residuals that the inputs do not explain: with as many unknowns as rows nothing generalises, so nothing moves much."""
    rng = np.random.default_rng(2)
    x, noise = rng.standard_normal((60, 40)), rng.standard_normal((60, 3))

    found = fit(*sums_of(x, noise))

    loose = np.linalg.lstsq(x, noise, rcond=None)[0]
    assert found is None or np.linalg.norm(found.delta) < 0.5 * np.linalg.norm(loose)


def test_nothing_to_correct_is_no_fit():
    """A residual of zero, and one whose square is not finite."""
    x = np.random.default_rng(3).standard_normal((20, 4))

    assert fit(*sums_of(x, np.zeros((20, 2)))) is None
    assert fit(*sums_of(x, np.full((20, 2), 1e200))) is None


def network(first, second):
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("MatMul", ["x", "a"], ["h"]), helper.make_node("MatMul", ["h", "b"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, ["N", first.shape[0]])],
        [value("y", TensorProto.FLOAT, ["N", second.shape[1]])],
        [
            numpy_helper.from_array(first.astype(np.float32), "a"),
            numpy_helper.from_array(second.astype(np.float32), "b"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    axes = Axes(GraphView(model))
    (group,), _ = find_groups(axes)
    return axes, group


def residual(x, weight, gone):
    """Share of the output's variance that the columns that stay cannot give."""
    y = (x - x.mean(axis=0)) @ weight
    kept = np.delete(x - x.mean(axis=0), list(gone), axis=1)
    return np.square(y - kept @ np.linalg.lstsq(kept, y, rcond=None)[0]).sum() / np.square(y).sum()


def ranking_of(x, weight):
    axes, group = network(np.ones((3, x.shape[1])), weight)
    seen = Moments(np.zeros((x.shape[1],) * 2), np.zeros(x.shape[1]))
    seen.add(x)
    return rank(axes, group, {group.consumers[0].use: seen})


def test_a_copy_goes_first_however_large_it_is():
    """Channel 2 is three times channel 0: one of the two costs nothing, while magnitude would keep both."""
    rng = np.random.default_rng(4)
    x = rng.standard_normal((5000, 6))
    x[:, 2] = 3 * x[:, 0]

    found = ranking_of(x, rng.standard_normal((6, 4)))

    assert found.order[0] in (0, 2)
    assert found.loss[0] < 0.05 * found.loss[1]


def test_losses_are_what_least_squares_loses():
    """Added up along the order, against refitting outright; and the first pair is near the best of all pairs."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal((2000, 4)) @ rng.standard_normal((4, 7)) + 0.3 * rng.standard_normal((2000, 7)) + 2.0
    weight = rng.standard_normal((7, 3))

    found = ranking_of(x, weight)

    for count in (1, 2, 4):
        assert sum(found.loss[:count]) == pytest.approx(residual(x, weight, found.order[:count]), rel=0.05, abs=2e-3)
    best = min(residual(x, weight, pair) for pair in combinations(range(7), 2))
    assert sum(found.loss[:2]) <= 1.5 * best + 2e-3


def test_few_rows_do_not_make_channels_imitable():
    """Ten rows of forty independent channels: in the sample ten channels give everything, in truth none can be replaced."""
    x = np.random.default_rng(6).standard_normal((10, 40))

    found = ranking_of(x, np.eye(40))

    assert sum(found.loss[:20]) > 0.25


def test_shrinkage_falls_with_rows_and_stays_where_there_is_nothing_to_see():
    """1 for a multiple of the identity, near 0 for strong structure seen often."""
    rng = np.random.default_rng(7)
    mixed = rng.standard_normal((8, 8)) @ np.diag([10, 5, 1, 1, 0.1, 0.1, 0.1, 0.1])
    seen = [np.cov(rng.standard_normal((count, 8)) @ mixed.T, rowvar=False) for count in (10, 10_000)]

    assert shrinkage(np.eye(5), 100) == 1.0
    assert shrinkage(seen[1], 10_000) < 0.001 < shrinkage(seen[0], 10)
