"""Whole runs on real models with several outputs: the figure is over the output that is meant, or it is not measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import profiler
from profiler.cli import main
from profiler.errors import DataError, StudyError
from profiler.records import Estimate, NotMeasured
from profiler.store import open_store

EFFORT = {"processes": 1, "rounds": 1, "block_s": 0.002, "warmup_s": 0.002, "warmup_max_s": 0.02, "requeue_share": 0.0}
ROWS = 300

pytestmark = [pytest.mark.process, pytest.mark.runtime]


def model(
    path: Path, nodes: list[Any], outputs: dict[str, tuple[int, list[Any]]], width: int, **weights: np.ndarray
) -> str:
    """`x` of [N, width] through these nodes."""
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [info("x", TensorProto.FLOAT, ["N", width])], [info(name, *kind) for name, kind in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(made)
    onnx.save(made, path)
    return str(path)


def heads(path: Path, weights: np.ndarray, *, first: int) -> str:
    """Features of `first` columns whose third is always the largest, before the logits x · weights."""
    offsets = np.zeros(first, np.float32)
    offsets[-1] = 300
    return model(
        path,
        [helper.make_node("Gemm", ["x", "Z", "B"], ["boxes"]), helper.make_node("MatMul", ["x", "W"], ["scores"])],
        {"boxes": (TensorProto.FLOAT, ["N", first]), "scores": (TensorProto.FLOAT, ["N", weights.shape[1]])},
        len(weights), W=weights, Z=np.zeros((len(weights), first), np.float32), B=offsets,
    )  # fmt: skip


def linear(path: Path, weights: np.ndarray) -> str:
    return model(
        path,
        [helper.make_node("MatMul", ["x", "W"], ["y"])],
        {"y": (TensorProto.FLOAT, ["N", weights.shape[1]])},
        len(weights),
        W=weights,
    )


def run(
    tmp_path: Path,
    source: str,
    other: str | None = None,
    *,
    metric: str | None = None,
    max_drop: float | str | None = 0.01,
    **data: Any,
):
    np.savez(tmp_path / "data.npz", **data)
    return profiler.profile(
        source, str(tmp_path / "data.npz"), out=tmp_path / "runs", backends=("ort",), effort=EFFORT, metric=metric,
        variants=("fp32",) if other is None else (f"external{{path={other}}}",),
        constraints={} if max_drop is None else {"max_drop": max_drop},
    )  # fmt: skip


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def test_without_labels_and_with_two_outputs_that_might_be_meant_nothing_is_claimed(tmp_path, rng):
    """Boxes first: no "0.0 % of answers differ", no PASS; times are there, and the way to ask. Asked, the share is the truth."""
    x = rng.standard_normal((ROWS, 8)).astype(np.float32)
    mine, theirs = (rng.standard_normal((8, 10)).astype(np.float32) for _ in range(2))
    source, other = heads(tmp_path / "a.onnx", mine, first=4), heads(tmp_path / "b.onnx", theirs, first=4)
    result = run(tmp_path, source, other, x=x)

    assert all(isinstance(case.latency_p50_s, Estimate) for case in result.cases)
    assert {"NOT_MEASURED"} == {case.verdict for case in result.cases}
    assert result.recommendation.case is None
    assert "--metric 'agreement{output=" in result.analysis.question
    for word in ("'boxes'", "'scores'"):
        assert word in result.analysis.question
        assert word in str(result)
    assert isinstance(result.cases[1].agreement, NotMeasured)

    same = float(((x @ mine).argmax(axis=1) == (x @ theirs).argmax(axis=1)).mean())
    named = run(tmp_path, source, other, metric="agreement{output=scores}", x=x)
    variant = named.cases[1]
    assert same < 0.5
    assert same == pytest.approx(variant.agreement.value)
    assert variant.verdict != "PASS"
    assert named.analysis.output == "scores"
    assert "scores" in str(named)


def test_accuracy_is_over_the_head_that_the_labels_mean(tmp_path, rng, capsys):
    """Features first, narrower and wider than there are classes: 75 % right, told with the output's name everywhere."""
    x = rng.standard_normal((ROWS, 8)).astype(np.float32)
    weights = np.eye(8, 3, dtype=np.float32)
    labels = (x @ weights).argmax(axis=1)
    labels[::4] = (labels[::4] + 1) % 3
    for first in (2, 6):
        result = run(tmp_path, heads(tmp_path / f"{first}.onnx", weights, first=first), x=x, labels=labels)
        (case,) = result.cases

        assert pytest.approx(case.accuracy.value) == 0.75
        assert (result.analysis.metric.name, result.analysis.output) == ("top1", "scores")
        assert "top1 of output 'scores'" in str(result)
        for words in (["show", "latest", "1"], ["show", "latest"]):
            with pytest.raises(SystemExit):
                main([*words, "--json", "--out", str(tmp_path / "runs")])
            assert json.loads(capsys.readouterr().out)["metric"]["output"] == "scores"
        with pytest.raises(SystemExit):
            main(["show", "latest", "1", "--out", str(tmp_path / "runs")])
        assert "top1 of output 'scores'" in capsys.readouterr().out
        assert "top1 of output &#39;scores&#39;" in result.report().read_text()


@pytest.mark.parametrize("kind", ["tags", "one-hot"])
def test_flags_are_right_or_wrong_and_no_distances(tmp_path, rng, kind):
    """All outputs near a half: a shift that turns every answer moves the error by less than a hundredth."""
    tags = rng.integers(0, 2, (ROWS, 5)) if kind == "tags" else np.eye(5, dtype=np.int64)[rng.integers(0, 5, ROWS)]
    x = (2.0 * tags - 1).astype(np.float32)

    def sigmoid(name: str, scale: float, shift: float) -> str:
        nodes = [("Mul", ["x", "s"], "a"), ("Add", ["a", "b"], "l"), ("Sigmoid", ["l"], "y")]
        return model(
            tmp_path / name, [helper.make_node(op, names, [out]) for op, names, out in nodes],
            {"y": (TensorProto.FLOAT, ["N", 5])}, 5, s=np.float32([scale]), b=np.float32([shift]),
        )  # fmt: skip

    result = run(
        tmp_path,
        sigmoid("m.onnx", 0.01, 0.0),
        sigmoid("v.onnx", -0.01 if kind == "one-hot" else 0.01, -0.02),
        x=x,
        labels=tags,
    )
    reference, variant = result.cases

    assert ({"tags": "micro-f1", "one-hot": "top1"}[kind], "proportion") == (
        result.analysis.metric.name,
        result.analysis.metric.unit,
    )
    assert (reference.accuracy.value, variant.accuracy.value) == (1.0, 0.0)
    assert variant.verdict == "FAIL"
    assert reference.key == result.recommendation.case.key


def test_a_reference_that_knows_nothing_recommends_nothing(tmp_path, rng):
    """Labels numbered from 1, for a model with columns to spare: wrong everywhere, so a wrecked variant is no worse."""
    weights = np.zeros((10, 12), np.float32)
    weights[:, :10] = np.eye(10)
    x = np.abs(rng.standard_normal((ROWS, 10))).astype(np.float32)
    classes = x.argmax(axis=1)
    source, other = (
        linear(tmp_path / "m.onnx", weights),
        linear(tmp_path / "v.onnx", np.roll(weights, 3, axis=1).copy()),
    )
    for max_drop in (0.01, None):
        result = run(tmp_path, source, other, max_drop=max_drop, x=x, labels=classes + 1)

        assert result.analysis.doubtful
        assert result.analysis.chance.value == 0.0
        assert result.recommendation.case is None
        assert "no better than chance" in result.recommendation.headline
        assert "numbered from 0" in result.recommendation.headline
        assert result.cases[1].verdict != "PASS" or max_drop is None

    right = run(tmp_path, source, other, x=x, labels=classes)
    assert not right.analysis.doubtful
    assert right.cases[1].verdict == "FAIL"
    assert right.recommendation.case.key == right.cases[0].key


def test_a_drop_that_is_none_of_the_metric_found_is_refused_before_variants_are_made(tmp_path, rng):
    """Points of labels that are values; in their own unit it is a drop."""
    x = rng.standard_normal((ROWS, 8)).astype(np.float32)
    weights = rng.standard_normal((8, 5)).astype(np.float32)
    source, other = linear(tmp_path / "m.onnx", weights), linear(tmp_path / "v.onnx", weights + 1)

    with pytest.raises(StudyError, match="rmse has a unit of its own"):
        run(tmp_path, source, other, max_drop="1pt", x=x, labels=x @ weights)
    made = [json.loads(entry.read_text())["record"]["variant"] for entry in (tmp_path / "runs").rglob("entries/*.json")]
    assert made == ["fp32"]

    told = run(tmp_path, source, other, max_drop="0.5", x=x, labels=x @ weights)
    assert [case.verdict for case in told.cases] == ["PASS", "FAIL"]


@pytest.mark.parametrize("beside", ["scalar", "constant", "sequence", "found"])
def test_what_has_no_row_for_a_sample_is_no_obstacle(tmp_path, rng, beside):
    """The largest score of a batch, anchors, parts of a split, positions found: the scores beside them are evaluated."""
    x = rng.standard_normal((ROWS, 8)).astype(np.float32)
    weights = rng.standard_normal((8, 5)).astype(np.float32)
    more, kind = {
        "scalar": (helper.make_node("ReduceMax", ["y"], ["more"], keepdims=0), (TensorProto.FLOAT, [])),
        "constant": (helper.make_node("Identity", ["anchors"], ["more"]), (TensorProto.FLOAT, [7, 2])),
        "found": (helper.make_node("NonZero", ["y"], ["more"]), (TensorProto.INT64, [2, "K"])),
        "sequence": (helper.make_node("SplitToSequence", ["y"], ["more"], axis=1), None),
    }[beside]
    weights_of = {"W": weights, **({"anchors": np.zeros((7, 2), np.float32)} if beside == "constant" else {})}
    source = tmp_path / "m.onnx"
    nodes = [helper.make_node("MatMul", ["x", "W"], ["y"])]
    model(source, nodes, {"y": (TensorProto.FLOAT, ["N", 5])}, 8, W=weights)
    made = onnx.load(source)
    made.graph.node.append(more)
    made.graph.output.append(
        helper.make_tensor_sequence_value_info("more", TensorProto.FLOAT, None)
        if kind is None
        else helper.make_tensor_value_info("more", *kind)
    )
    for name in weights_of.keys() - {"W"}:
        made.graph.initializer.append(numpy_helper.from_array(weights_of[name], name))
    onnx.save(made, source)
    labels = (x @ weights).argmax(axis=1)
    labels[::3] = (labels[::3] + 1) % 5
    result = run(tmp_path, str(source), x=x, labels=labels)
    (case,) = result.cases

    assert isinstance(case.latency_p50_s, Estimate)
    assert pytest.approx(case.accuracy.value) == 2 / 3
    assert result.analysis.output == "y"


@pytest.mark.parametrize("named", [True, False])
def test_classes_that_are_texts_are_right_by_name_or_by_number(tmp_path, rng, named):
    """A model that says names beside scores: labels that are names are compared with names, numbers with the scores."""
    x = rng.standard_normal((ROWS, 8)).astype(np.float32)
    weights = rng.standard_normal((8, 3)).astype(np.float32)
    names = np.array(["owl", "cat", "dog"])
    source = model(
        tmp_path / "m.onnx",
        [
            helper.make_node("MatMul", ["x", "W"], ["scores"]), helper.make_node("ArgMax", ["scores"], ["i"], axis=1, keepdims=0),
            helper.make_node("Gather", ["names", "i"], ["label"]),
        ],
        {"label": (TensorProto.STRING, ["N"]), "scores": (TensorProto.FLOAT, ["N", 3])}, 8, W=weights, names=names.astype(object),
    )  # fmt: skip
    classes = (x @ weights).argmax(axis=1)
    classes[::4] = (classes[::4] + 1) % 3
    result = run(tmp_path, source, x=x, labels=names[classes] if named else classes)

    assert result.cases[0].accuracy.value == pytest.approx(0.75)
    assert result.analysis.output == ("label" if named else "scores")


def test_what_does_not_fit_is_told_before_any_variant_is_made(tmp_path, rng):
    """A label that no first row has, an own metric that fails, an output that isn't there: no artifact is made but the model."""
    (tmp_path / "own_failing.py").write_text("def metric(outputs, labels):\n    raise KeyError('boxes')\n")
    x = rng.standard_normal((ROWS, 4)).astype(np.float32)
    source = linear(tmp_path / "m.onnx", np.eye(4, 3, dtype=np.float32))
    labels = (x[:, :3]).argmax(axis=1)
    outside = labels.copy()
    outside[1] = 3
    np.savez(tmp_path / "fine.npz", x=x, labels=labels)
    np.savez(tmp_path / "outside.npz", x=x, labels=outside)
    for data, metric, message in (
        ("outside.npz", None, "label 3 in row"),
        ("fine.npz", "top1{output=z}", "no output 'z', it has: y"),
        ("fine.npz", "top5", "more than 5 classes"),
        ("fine.npz", "own_failing:metric", "KeyError: 'boxes'"),
    ):
        out = tmp_path / f"{metric}".replace(":", "-")
        with pytest.MonkeyPatch.context() as patched:
            patched.chdir(tmp_path)
            with pytest.raises(DataError, match=message):
                profiler.profile(
                    source,
                    str(tmp_path / data),
                    out=out,
                    backends=("ort",),
                    variants=("fp16", "int8-dynamic"),
                    effort=EFFORT,
                    metric=metric,
                )
        assert len(list(out.rglob("entries/*.json"))) == 1


def test_a_run_of_before_outputs_were_named_still_reads(tmp_path, rng):
    """The fields that came later are left out of its records: it has no output, no chance, and the same figures."""
    x = rng.standard_normal((40, 4)).astype(np.float32)
    source = linear(tmp_path / "m.onnx", np.eye(4, 3, dtype=np.float32))
    result = run(tmp_path, source, x=x, labels=x[:, :3].argmax(axis=1))
    store = open_store(tmp_path / "runs", create=False)
    try:
        stored = store.run(store.resolve("latest"))
    finally:
        store.close()
    from dataclasses import replace
    from datetime import date

    from profiler.analysis import analyse

    before = replace(stored, qualities=tuple(replace(q, output=None, chance=None) for q in stored.qualities))
    read = analyse(before, today=date(2026, 1, 1))
    assert (read.output, read.chance, read.doubtful) == (None, None, False)
    assert result.cases[0].accuracy == read.cases[0].accuracy
