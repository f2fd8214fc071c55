"""Which ops stay in float: the price of each, the sets along the trade-off, and their texts."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper

from backends import spec
from backends.base import OpTime
from profiler.explain.layers import Names, file_facts
from profiler.search.mixed import NodeGain, gains, mixes, text
from profiler.search.mixing import layer_times
from profiler.variants.sensitivity import Sensitivity

NODES = [
    NodeGain(("stem",), ("Conv",), error=8.0, gain_s=1e-3),
    NodeGain(("body",), ("Conv",), error=0.5, gain_s=5e-3),
    NodeGain(("wide",), ("Conv",), error=1.0, gain_s=4e-3),
    NodeGain(("head",), ("Gemm",), error=0.5, gain_s=-1e-4),
]


def test_the_op_with_the_most_error_per_second_goes_first_and_what_gains_nothing_is_free():
    found = mixes(NODES)
    assert found[0].keep_float == ("head",), "not faster in int8: float for nothing"
    assert found[0].gain_left == pytest.approx(1.0)
    assert found[0].error_left == pytest.approx(0.95)
    assert found[1].keep_float == ("head", "stem")
    assert found[1].gain_left == pytest.approx(0.9)
    assert found[1].error_left == pytest.approx(0.15)
    assert found[2].keep_float == ("head", "stem", "wide")
    assert len(found) == 3, "all four would be the unmodified model"


nodes = st.lists(
    st.builds(
        NodeGain,
        st.integers(0, 10**6).map(lambda number: (f"n{number}",)),
        st.sampled_from([("Conv",), ("Gemm",)]),
        st.floats(0, 10).map(lambda x: round(x, 3)),
        st.one_of(st.none(), st.floats(-1e-3, 1e-2).map(lambda x: round(x, 6))),
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda node: node.nodes,
)


@given(nodes)
def test_sets_grow_differ_and_lie_along_a_trade_off(given_nodes):
    found = mixes(given_nodes)
    assert len(found) <= 6
    for mix in found:
        assert 0 < len(mix.keep_float) < len(given_nodes)
        assert 0 <= mix.error_left <= 1
    for earlier, later in itertools.pairwise(found):
        assert set(earlier.keep_float) < set(later.keep_float)
        assert later.error_left <= earlier.error_left + 1e-12
    assert found == mixes(given_nodes[::-1]), "the order of the nodes decides nothing"


@given(nodes.map(lambda found: [replace(node, gain_s=abs(node.gain_s or 0.0) + 1e-4) for node in found]))
def test_no_other_set_that_gives_up_less_time_takes_back_more_error(given_nodes):
    by_name = {node.nodes[0]: node for node in given_nodes}
    for mix in mixes(given_nodes):
        time = sum(by_name[name].gain_s for name in mix.keep_float)
        error = sum(by_name[name].error for name in mix.keep_float)
        for size in range(1, len(given_nodes)):
            for other in itertools.combinations(given_nodes, size):
                if sum(node.gain_s for node in other) <= time + 1e-15:
                    assert sum(node.error for node in other) <= error + 1e-9


def test_unknown_gains_count_as_those_of_their_kind_and_none_as_equal():
    guessed = mixes(
        [
            NodeGain(("a",), ("Conv",), 1.0, 2e-3),
            NodeGain(("b",), ("Conv",), 3.0, None),
            NodeGain(("c",), ("Conv",), 0.1, 2e-3),
        ]
    )
    assert guessed[0].keep_float == ("b",)
    blind = mixes([NodeGain(("a",), ("Conv",), 1.0, None), NodeGain(("b",), ("Conv",), 3.0, None)])
    assert blind[0].keep_float == ("b",)
    assert blind[0].gain_left is None, "nothing was measured, so nothing is said"


def test_names_that_no_text_can_hold_are_quantized():
    found = mixes(
        [
            NodeGain(("a,b",), ("Conv",), 9.0, 1e-3),
            NodeGain(("c",), ("Conv",), 1.0, 1e-3),
            NodeGain(("d",), ("Conv",), 0.5, 1e-3),
        ]
    )
    assert found
    assert all("a,b" not in mix.keep_float for mix in found)


def test_nothing_to_choose_from():
    assert mixes([]) == []
    assert mixes([NodeGain(("only",), ("Conv",), 1.0, 1e-3)]) == []
    assert mixes([NodeGain(("a",), ("Conv",), 0.0, 1e-3), NodeGain(("b",), ("Conv",), 0.0, 1e-3)]) == []


def op(name, seconds, origins=()):
    return OpTime(name, "Conv", "f32", "CPU", seconds, 1.0, origins=origins)


def chain() -> ModelProto:
    """conv1 → relu1 → conv2, with weights."""
    weights = [numpy_helper.from_array(np.ones((2, 2, 1, 1), np.float32), name) for name in ("w1", "w2")]
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], "conv1"), helper.make_node("Relu", ["a"], ["b"], "relu1"),
        helper.make_node("Conv", ["b", "w2"], ["y"], "conv2"),
    ]  # fmt: skip
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2, 4, 4]) for name in ("x", "y")]
    return helper.make_model(helper.make_graph(nodes, "chain", values[:1], values[1:], weights))


def test_times_are_joined_through_fusions_and_what_runtimes_add_to_names():
    model = chain()
    names = Names(model, file_facts(model, 1).layers)
    before = layer_times([op("conv1", 2e-3), op("relu1", 1e-3), op("conv2_nchwc", 4e-3), op("gone", 1e-3)], 8e-3, names)
    after = layer_times(
        [op("conv1_quant", 1e-3), op("a_QuantizeLinear", 5e-4), op("fused", 2e-3, ("conv2",))], 4e-3, names
    )
    assert before == {"conv1": pytest.approx(3e-3), "conv2": pytest.approx(4e-3)}
    assert after == {"conv1": pytest.approx(1.5e-3), "conv2": pytest.approx(2e-3)}


def test_the_profilers_share_is_no_time_of_the_layers():
    model = chain()
    found = layer_times([op("conv1", 2e-3), op("conv2", 4e-3)], 5e-3, Names(model, file_facts(model, 1).layers))
    assert found == {"conv1": pytest.approx(1.5e-3), "conv2": pytest.approx(3.5e-3)}


def test_gains_need_both_times_and_sane_errors():
    errors = [Sensitivity((name,), ("Conv",), 0.1, None) for name in ("conv1", "conv2", "gone")]
    errors.append(Sensitivity(("conv1", "conv2"), ("Conv",), 0.1, None))
    found = gains(errors, {"conv1": 3e-3, "conv2": 2e-3, "gone": 1e-3}, {"conv1": 1e-3, "conv2": 2.5e-3})
    assert [node.gain_s for node in found] == [
        pytest.approx(2e-3), pytest.approx(-5e-4), None, pytest.approx(1.5e-3)
    ]  # fmt: skip
    with pytest.raises(ValueError, match="the error of 'x' is nan"):
        gains([Sensitivity(("x",), ("Conv",), float("nan"), None)], {}, {})


def test_texts_parse_back_and_keep_what_was_skipped_before():
    mix = mixes(NODES)[1]
    made = text("int8-static{per_channel=true,skip=zed}", mix)
    assert made == "int8-static{per_channel=true,skip=head|stem|zed}"
    assert spec.parse(made).options["skip"].split("|") == ["head", "stem", "zed"]
