"""The text says what was found, and what was not measured."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from profiler.explain import words

sys.path.append(str(Path(__file__).parent))
from made import REFERENCE_OPS, US, evidence, layer, op, side

MINE = side(
    "int8-dynamic",
    (op("a", "ConvInteger", "i8", 150, "a"), op("q", "DynamicQuantizeLinear", "conversion", 10), op("b", "Conv", "f32", 40, "b")),
    [layer("a", "dynamic"), layer("b")], 210,
)  # fmt: skip


def test_the_first_line_compares_and_the_first_cause_follows():
    """With its share of the variant's time."""
    text = words.text(evidence(MINE))
    assert text.startswith("int8-dynamic@ort/b1/t1 is 2.47× slower than fp32@ort/b1/t1: 210 µs against 85 µs")
    assert "1. dynamic int8 on 1 convolutions" in text
    assert "explains 120 µs, 57 % of its time" in text
    assert "It takes 125 µs longer than the reference; the causes stand for 150 µs" in text
    assert "10 µs pass outside of them" in text
    assert "layer of the model" not in text


def test_goes_that_disagree_about_the_direction_are_no_difference():
    """0.9 to 1.1 is about as fast."""
    reference = replace(side("fp32", REFERENCE_OPS, [layer("a"), layer("b")], 85), wall_s=(100 * US,) * 2)
    assert "about as fast as" in words.headline(evidence(replace(MINE, wall_s=(90 * US, 110 * US)), reference))


def test_ops_side_by_side_have_a_row_per_layer_and_one_per_other_type():
    """Quantized ops stand beside the float op that they replace."""
    rows = {row.name: row for row in words.rows(evidence(MINE))}
    assert list(rows) == ["a", "b", "(DynamicQuantizeLinear)", "(Reshape)"]
    assert (rows["a"].variant, rows["a"].reference) == ("ConvInteger i8", "Conv f32")
    assert rows["(Reshape)"].variant_s is None
    assert "3.75" in words.text(evidence(MINE), show_ops=True)


def test_what_is_not_measured_says_why():
    """No empty table."""
    silent = replace(MINE, ops=None, ops_reason="no profiler here")
    assert "not measured: no profiler here" in words.text(evidence(silent))


def test_without_a_cause_it_says_so():
    """An honest end."""
    good = side("int8-static", (op("a", "QLinearConv", "i8", 10, "a"), op("b", "QLinearConv", "i8", 10, "b")),
                [layer("a", "qdq"), layer("b", "qdq")], 25)  # fmt: skip
    assert "None of the known causes holds" in words.text(evidence(good))
