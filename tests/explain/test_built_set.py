"""The causes of scripts/bench_explain, made for real: what shows in counts is found whatever the machine is doing."""

from __future__ import annotations

import json

import pytest

from profiler.explain import words
from profiler.explain.causes import causes
from scripts.explain_lib.built import built, explain

CASES = {case.name: case for case in built()}
TIMED = {"ISA limited, OpenVINO", "thread contention"}
"""How much they cost is measured, so their place hangs on it; that they are there does not."""

pytestmark = [pytest.mark.runtime, pytest.mark.process]


@pytest.fixture(scope="module")
def explained(tmp_path_factory):
    pytest.importorskip("onnxruntime")
    done = {}

    def get(name):
        if name not in done:
            done[name] = explain(CASES[name], tmp_path_factory.mktemp("case"), goes=1)
        return done[name]

    return get


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.cause and name not in TIMED])
def test_the_cause_that_was_put_there_is_first(explained, name):
    """A fact, by counts."""
    found = causes(explained(name))
    assert found, words.text(explained(name), show_ops=True)
    facts = [cause.key for cause in found if cause.certainty == "fact"]
    assert facts[0] == CASES[name].cause, words.text(explained(name), show_ops=True)


def test_a_limited_instruction_set_is_found_by_its_kernels(explained):
    """Where the processor has more than the switch allows, else there is nothing to find."""
    pytest.importorskip("openvino")
    evidence = explained("ISA limited, OpenVINO")
    assert evidence.machine is not None
    limited = [cause for cause in causes(evidence) if cause.key == "isa-limited"]
    assert bool(limited) == ("avx512f" in evidence.machine.isa)
    if limited:
        assert limited[0].advice == ("unset ONEDNN_MAX_CPU_ISA",)
        assert limited[0].lost_s is not None


def test_more_threads_than_cores_are_found(explained):
    """And measured again with fewer."""
    found = {cause.key: cause for cause in causes(explained("thread contention"))}
    assert found["thread-contention"].lost_s is not None


def test_nothing_certain_is_said_of_a_good_variant(explained):
    """The control."""
    assert [cause.key for cause in causes(explained("control")) if cause.certainty == "fact"] == []


def test_every_layer_of_the_control_is_found_on_both_sides(explained):
    """Fused and quantized ops are mapped back to the model's own names."""
    rows = {row.name: row for row in words.rows(explained("control"))}
    layers = [layer.name for layer in explained("control").reference.file.layers]
    assert len(layers) == 8
    assert all(rows[name].variant_s is not None and rows[name].reference_s is not None for name in layers)


def test_json_holds_the_causes_in_their_order(explained):
    """What another program reads is what people see."""
    evidence = explained("all-ops QDQ")
    content = json.loads(words.to_json(evidence))
    assert [cause["key"] for cause in content["causes"]] == [cause.key for cause in causes(evidence)]
    assert content["evidence"]["variant"]["ops"]
