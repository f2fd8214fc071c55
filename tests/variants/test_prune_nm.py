"""2:4 sparsity: where the zeros are, and what is said about them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from profiler.errors import StudyError
from profiler.pruning.sparse import nm_mask
from profiler.variants.prune_nm import PruneNM


def arrays(model):
    return {tensor.name: np.array(numpy_helper.to_array(tensor)) for tensor in model.graph.initializer}


@given(seed=st.integers(0, 999), n=st.integers(1, 3), blocks=st.integers(1, 4), axis=st.integers(0, 2))
def test_the_mask_keeps_the_largest_of_each_block(seed, n, blocks, axis):
    """Exactly n of 4, and none that was dropped is larger than one that stayed."""
    shape = [3, 2, 5]
    shape[axis] = 4 * blocks
    weight = np.random.default_rng(seed).integers(-3, 4, shape).astype(np.float32)

    mask = np.moveaxis(nm_mask(weight, axis, n, 4), axis, -1).reshape(-1, 4)

    sizes = np.abs(np.moveaxis(weight, axis, -1)).reshape(-1, 4)
    assert (mask.sum(axis=1) == n).all()
    assert (np.where(mask, -np.inf, sizes).max(axis=1) <= np.where(mask, sizes, np.inf).min(axis=1)).all()


@pytest.mark.runtime
def test_convolutions_count_along_inputs_and_products_along_the_summed_axis(cnn, mlp, images):
    """Conv [O, I, …] along I, Gemm transB along its last axis, MatMul along its first; an axis of 3 stays dense."""
    result = PruneNM().apply(cnn, images)

    before, after = arrays(cnn), arrays(result.model)
    assert np.array_equal(after["w1"], before["w1"])
    assert ((after["w2"].transpose(0, 2, 3, 1).reshape(-1, 4) != 0).sum(axis=1) == 2).all()
    assert ((after["w3"].reshape(-1, 4) != 0).sum(axis=1) == 2).all()
    assert result.facts["tensors_left"] == 1
    assert result.facts["weights_zeroed"] == (before["w2"].size + before["w3"].size) // 2
    assert 0.5 < result.facts["calibration_cosine"] < 1

    dense = arrays(PruneNM().apply(mlp, None).model)
    assert ((dense["w1"].T.reshape(-1, 4) != 0).sum(axis=1) == 2).all()


@pytest.mark.runtime
def test_it_says_what_it_does_not_gain(cnn):
    """Nothing on a CPU, for 2:4 the one place where it may help, for other patterns none."""
    assert "no faster" in PruneNM().apply(cnn, None).notes[0]
    assert "sparse tensor cores" in PruneNM().apply(cnn, None).notes[0]
    assert "2:4 has it" in PruneNM(n=1).apply(cnn, None).notes[0]


def test_a_second_time_nothing_happens(cnn, elementwise):
    """Already sparse, or no weights at all: unchanged, with the reason."""
    once = PruneNM().apply(cnn, None).model

    again, none = PruneNM().apply(once, None), PruneNM().apply(elementwise, None)

    assert not again.changed
    assert "already" in again.notes[0]
    assert not none.changed
    assert "no Conv, Gemm or MatMul" in none.notes[0]


def test_a_weight_that_two_products_read_along_different_axes_stays(builders):
    """No pattern would suit both."""
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["a"], transB=1),
        helper.make_node("Gemm", ["a", "w"], ["y"]),
    ]
    value = helper.make_tensor_value_info
    weight = numpy_helper.from_array(np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32), "w")
    model = builders["model_of"](nodes, [value("x", 1, ["N", 8])], [value("y", 1, ["N", 8])], [weight])

    assert not PruneNM().apply(model, None).changed


@pytest.mark.parametrize("options", [{"n": 4}, {"n": 0}, {"m": 1}])
def test_wrong_patterns_are_refused(options):
    """n lies between 1 and m."""
    with pytest.raises(StudyError, match="prune-nm"):
        PruneNM(**options)
