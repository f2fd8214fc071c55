"""Which op costs most, and that the answer is what quantizing that op alone does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from profiler.variants import registry
from profiler.variants.int8_static import Int8Static
from profiler.variants.running import outputs
from profiler.variants.sensitivity import grouped, kl_divergence, relative_error, sensitivities

PER_TENSOR = Int8Static()


def spoiled(model, name):
    """One weight value far larger than all others: that op's steps get coarse."""
    tensor = next(t for t in model.graph.initializer if t.name == name)
    array = numpy_helper.to_array(tensor).copy()
    array.flat[0] *= 200
    tensor.CopyFrom(numpy_helper.from_array(array, name))
    return model


@pytest.mark.runtime
@pytest.mark.parametrize(("weight", "place"), [("w2", "Conv"), ("w3", "Gemm")])
def test_the_op_with_spoiled_weights_comes_first(weight, place, cnn, images):
    """A convolution or the Gemm can be the one; every op is in the list once."""
    found = sensitivities(spoiled(cnn, weight), images, PER_TENSOR)

    assert [len(one.nodes) for one in found] == [1, 1, 1]
    assert found[0].op_types == (place,)
    assert found[0].error > 3 * found[1].error
    assert found[0].divergence > found[1].divergence
    assert [one.error for one in found] == sorted((one.error for one in found), reverse=True)


@pytest.mark.runtime
def test_the_error_is_that_of_the_variant_with_only_this_op(cnn, images, builders):
    """`only=` with the node's text gives the same model, run here on the same rows."""
    rows = builders["image_rows"](8, seed=4)

    for one in sensitivities(cnn, images, PER_TENSOR, rows):
        variant = registry.make(f"int8-static{{only={one.nodes[0]}}}").apply(cnn, images).model
        wanted, got = (outputs(model, rows)[0].astype(np.float64) for model in (cnn, variant))
        assert one.error == pytest.approx(((wanted - got) ** 2).mean() / wanted.var(), rel=1e-3)


@pytest.mark.runtime
def test_equal_input_gives_equal_sensitivities(cnn, images):
    """A pure function of model and rows."""
    assert sensitivities(cnn, images, PER_TENSOR) == sensitivities(cnn, images, PER_TENSOR)


@pytest.mark.runtime
def test_nothing_to_quantize_is_an_empty_list(elementwise):
    """Not an error: the search goes on with other variants."""
    assert sensitivities(elementwise, {"x": np.ones((4, 8), np.float32)}, PER_TENSOR) == []


@given(st.integers(0, 400), st.integers(1, 100))
def test_groups_are_neighbours_even_and_complete(count, most):
    """No op is lost or doubled, none of the groups is empty, sizes differ by one at most."""
    names = [f"n{i}" for i in range(count)]

    groups = grouped(names, most)

    assert [name for group in groups for name in group] == names
    assert len(groups) == min(count, most)
    sizes = {len(group) for group in groups}
    assert not sizes or max(sizes) - min(sizes) <= 1


def test_divergence_is_that_of_class_probabilities():
    """Logits and probabilities give the same answer, worked out by hand for two classes."""
    p, q = np.array([[0.8, 0.2]]), np.array([[0.5, 0.5]])
    by_hand = 0.8 * np.log(0.8 / 0.5) + 0.2 * np.log(0.2 / 0.5)

    assert kl_divergence([p], [q]) == pytest.approx(by_hand)
    assert kl_divergence([np.log(p) + 3], [np.log(q) - 1]) == pytest.approx(by_hand)
    assert kl_divergence([p], [p]) == 0
    assert kl_divergence([np.ones((1, 2, 2))], [np.ones((1, 2, 2))]) is None
    assert kl_divergence([np.ones((3, 1))], [np.ones((3, 1))]) is None


def test_relative_error_knows_its_limits():
    """1 is a constant at the mean; a NaN is infinitely wrong; NaN in float's own answer is left out."""
    values = np.array([[1.0, -1.0, np.nan]])

    assert relative_error([values], [np.zeros((1, 3))]) == pytest.approx(1)
    assert relative_error([values], [values]) == 0
    assert relative_error([np.ones((1, 2))], [np.array([[1.0, np.nan]])]) == float("inf")
