"""Runtimes that compute different functions from one file: who is wrong, what would be right, and that it decides."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from backends import registry
from backends.base import LoadOptions
from profiler.analysis import analyse
from profiler.api import profile
from profiler.crosscheck import UMPIRE, cautious_text, group_key, judge
from profiler.decide import recommend, view
from profiler.records import RuntimeRecord
from profiler.store import open_store
from profiler.study import Case

RIGHT = {"y": np.random.default_rng(0).standard_normal((32, 4)).astype(np.float32)}
WRONG = {"y": RIGHT["y"][:, ::-1].copy()}
ROUNDED = {"y": RIGHT["y"] * np.float32(1 + 1e-6)}
COARSE = {"y": RIGHT["y"] + 0.03 * np.random.default_rng(1).standard_normal((32, 4)).astype(np.float32)}
ORT, OV = Case("fp32", "ort", "local", 1, 1), Case("fp32", "ov", "local", 1, 1)


def judged(ort, ov, again=None, *, reduced=False, more=()):
    answers, asked = again or {}, []

    def ask(case, backend):
        asked.append(backend)
        return answers.get(backend)

    record = judge(group_key(ORT), [(ORT, ort), (OV, ov), *more], reduced=reduced, again=ask)
    return record, asked


def test_what_few_bits_cost_makes_nobody_doubtful():
    """Two runtimes round int8 each in its way, as far from the model as from each other; one that is wrong is still found."""
    random = np.random.default_rng(5)
    noisy, other = ({"y": RIGHT["y"] + 0.4 * random.standard_normal((32, 4)).astype(np.float32)} for _ in range(2))

    def judgement(ov, unmodified):
        found = [(replace(ORT, variant="int8"), noisy), (replace(OV, variant="int8"), ov)]
        return judge("int8/any", found, reduced=True, again=lambda *_: None, unmodified=unmodified)

    assert judgement(other, RIGHT).doubted == ()
    assert judgement(other, None).undecided
    assert judgement({"y": -20 * RIGHT["y"]}, RIGHT).undecided
    assert judgement({"y": other["y"][:20]}, {"y": np.tile(RIGHT["y"], (2, 1))}).doubted == (), "the rows that all have"


def test_runtimes_that_agree_are_asked_once():
    """Rounding in another order is no difference."""
    record, asked = judged(RIGHT, ROUNDED)

    assert (record.wrong, record.doubted, record.undecided, record.text, asked) == ((), (), False, "", [])
    assert record.agreeing == ("ort", "ov")


def test_the_odd_one_out_is_found_with_the_option_that_makes_it_right():
    """Three of four say the same; nobody else has to be asked."""
    record, asked = judged(RIGHT, WRONG, {"ort{opt=off}": RIGHT, "ov{shape=dynamic}": ROUNDED})

    assert asked == ["ort{opt=off}", "ov{shape=dynamic}"]
    assert (record.wrong, record.doubted, record.undecided) == (("ov",), ("fp32@ov/b1",), False)
    assert record.cautious == {"ov": "ov{shape=dynamic}"}
    assert "ov{shape=dynamic}" in record.text
    assert record.relative_error > 0.1


def test_the_first_backend_is_wrong_as_easily_as_another():
    """Order is no vote."""
    record, _ = judged(WRONG, RIGHT, {"ort{opt=off}": RIGHT, "ov{shape=dynamic}": RIGHT})
    assert (record.wrong, record.cautious) == (("ort",), {"ort": "ort{opt=off}"})


def test_a_draw_is_settled_by_the_reference_evaluator():
    """Each runtime sticks to its answer."""
    answers = {"ort{opt=off}": RIGHT, "ov{shape=dynamic}": WRONG, UMPIRE: RIGHT}
    record, asked = judged(RIGHT, WRONG, answers)

    assert asked[-1] == UMPIRE
    assert (record.wrong, record.undecided, record.cautious) == (("ov",), False, {})


@pytest.mark.parametrize(
    "answers",
    [{}, {"ort{opt=off}": RIGHT, "ov{shape=dynamic}": WRONG}, {UMPIRE: {"y": RIGHT["y"] * 7}}],
)
def test_without_a_majority_nobody_is_trusted(answers):
    """Nobody could be asked; two against two; everybody says something else."""
    record, _ = judged(RIGHT, WRONG, answers)

    assert record.undecided
    assert record.wrong == ("ort", "ov")
    assert record.doubted == ("fp32@ort/b1", "fp32@ov/b1")
    assert "could not be told" in record.text


def test_fewer_bits_may_differ_more():
    """Three per cent is a fault in float32 and nothing between int8 kernels."""
    assert judged(RIGHT, COARSE)[0].wrong
    assert not judged(RIGHT, COARSE, reduced=True)[0].wrong


def test_of_three_runtimes_two_decide():
    """Without anybody's cautious option."""
    third = (replace(ORT, backend="other"), ROUNDED)
    record, _ = judged(RIGHT, WRONG, more=[third])

    assert (record.wrong, record.agreeing) == (("ov",), ("ort", "other"))


@pytest.mark.parametrize(
    ("backend", "text"),
    [("ov", "ov{shape=dynamic}"), ("ov{precision=bf16}", "ov{precision=bf16,shape=dynamic}"), ("ort:cuda", "ort:cuda{opt=off}"),
     ("trt", None), (UMPIRE, None)],
)  # fmt: skip
def test_the_cautious_option_is_added_to_what_was_asked(backend, text):
    """Nothing else of the backend changes."""
    assert cautious_text(backend) == text


def test_a_finding_is_stored_and_read_back(tmp_path, made_run):
    """Also in a database that was made without such findings."""
    from profiler.study import make_study

    data = made_run().data()
    store = open_store(tmp_path)
    run = store.create_run(make_study(model="m"), data.environment, version="0")
    record = judged(RIGHT, WRONG, {"ort{opt=off}": RIGHT, "ov{shape=dynamic}": RIGHT})[0]
    store.add(run, record)

    assert store.run(run).runtimes == (record,)
    assert store.records(run, RuntimeRecord) == (record,)
    store.close()


def made(made_run, record):
    """fp32 on ort and ov, and int8 on both; ov is twice as fast."""
    run = made_run()
    rows = (np.arange(500) % 10 > 0).astype(float)
    for variant, seconds in (("fp32", 2e-3), ("int8-static", 1e-3)):
        for backend, factor in (("ov", 0.5), ("ort", 1.0)):
            case = run.case(variant, backend=backend)
            run.made(variant)
            run.timed(case, seconds * factor)
            run.answered(case, rows)
    return analyse(replace(run.data(), runtimes=(record,)), today=date(2026, 1, 2))


def test_a_case_whose_runtime_is_wrong_is_never_recommended(made_run):
    """However fast it is, and whatever its accuracy happens to be on these labels."""
    record = RuntimeRecord(
        "int8-static@any/b1", "int8-static", "local", 1, 32, True, ("ov", "ort"), ("ort", "ov{shape=dynamic}"), ("ov",), False,
        ("int8-static@ov/b1",), {"ov": "ov{shape=dynamic}"}, "output 'y' is off by 2.9 times its size", 2.9,
    )  # fmt: skip
    analysis = made(made_run, record)
    advice = recommend(analysis, view(analysis))

    assert advice.case.key != "int8-static@ov/b1/t1"
    out = {case.key: why for case, why in advice.ruled_out}
    assert "ov{shape=dynamic} is right" in out["int8-static@ov/b1/t1"]
    assert not analysis.doubtful_reference
    assert any("wrong: ov" in note for note in analysis.notes)


def test_a_reference_in_doubt_recommends_nothing(made_run):
    """Every accuracy is paired with it."""
    record = RuntimeRecord(
        "fp32@any/b1", "fp32", "local", 1, 32, False, ("ov", "ort"), (), ("ov", "ort"), True, ("fp32@ov/b1", "fp32@ort/b1"), {},
        "output 'y' is off by 0.8 times its size", 0.8,
    )  # fmt: skip
    analysis = made(made_run, record)
    advice = recommend(analysis, view(analysis))

    assert analysis.doubtful_reference
    assert advice.case is None
    assert "disagree" in advice.headline


def test_accuracy_is_paired_with_the_runtime_that_is_right(made_run):
    """Also where the wrong one stands first in the study."""
    record = RuntimeRecord(
        "fp32@any/b1", "fp32", "local", 1, 32, False, ("ov", "ort"), ("ort", "ort{opt=off}"), ("ov",), False, ("fp32@ov/b1",), {},
        "output 'y' is off by 0.8 times its size", 0.8,
    )  # fmt: skip
    analysis = made(made_run, record)

    assert {case.reference_quality for case in analysis.measured} == {"fp32@ort/b1"}
    assert next(case for case in analysis.cases if case.key == "fp32@ov/b1/t1").runtime_doubt is not None


def tied(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """An autoencoder whose one stored weight is read along both axes; rows, and the truth in float64."""
    rng = np.random.default_rng(2)
    w = (rng.standard_normal((12, 12)) * np.exp(rng.uniform(-4, 0, (12, 1)))).astype(np.float32)
    b, c = (rng.standard_normal(12).astype(np.float32) for _ in "bc")
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["e"], transB=1),
        helper.make_node("Relu", ["e"], ["z"]),
        helper.make_node("Gemm", ["z", "w", "c"], ["y"]),
    ]
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 12]) for name in "xy"]
    graph = helper.make_graph(
        nodes, "tied", infos[:1], infos[1:], [numpy_helper.from_array(a, n) for n, a in (("w", w), ("b", b), ("c", c))]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    x = rng.standard_normal((40, 12)).astype(np.float32)
    truth = np.maximum(x.astype(np.float64) @ w.T + b, 0) @ w + c
    return x, truth


@pytest.mark.runtime
@pytest.mark.process
def test_a_real_runtime_that_is_wrong_is_neither_reference_nor_recommended(tmp_path):
    """OpenVINO with fixed shapes reads a tied weight along one axis only, as far as the version here does."""
    x, truth = tied(tmp_path / "m.onnx")
    session = registry.get("ov").load(tmp_path / "m.onnx", LoadOptions(sample_shapes={"x": (1, 12)}))
    answers = np.concatenate([np.array(session.infer({"x": row[None].copy()})["y"]) for row in x])
    session.close()
    if np.allclose(answers, truth, atol=1e-3):
        pytest.skip("this OpenVINO computes the model right")
    np.savez(tmp_path / "d.npz", x=x, labels=truth)
    result = profile(
        tmp_path / "m.onnx", tmp_path / "d.npz", out=tmp_path / "runs", variants=("fp32",), backends=("ov", "ort"), metric="mae",
        effort={"processes": 2, "rounds": 2, "block_s": 0.002, "block_samples": 5, "warmup_s": 0.002, "warmup_max_s": 0.02},
    )  # fmt: skip

    (finding,) = result.run.runtimes
    assert (finding.wrong, finding.undecided) == (("ov",), False)
    assert finding.cautious == {"ov": "ov{shape=dynamic}"}
    assert {case.reference_quality for case in result.cases} == {"fp32@ort/b1"}
    agreement = {record.case: record.agreement.mean() for record in result.run.qualities}
    assert agreement["fp32@ort/b1"] == 1.0
    assert agreement["fp32@ov/b1"] < 0.9
    chosen = result.recommendation.case
    assert chosen is None or chosen.case.backend == "ort"
