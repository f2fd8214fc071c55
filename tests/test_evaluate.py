"""The quality stage sends every row once, in order, and keeps one row of result for each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from profiler import evaluate
from profiler.data import Dataset
from profiler.errors import DataError
from profiler.records import QualityRecord
from profiler.study import Case, make_study
from profiler.targets.process import WorkerFailure


class Worker:
    """Answers x → one column per class, from a function; or fails."""

    def __init__(self, answer, seen) -> None:
        self.answer, self.seen = answer, seen

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def request(self, command, arrays, *, timeout_s):
        assert command == "infer"
        self.seen.append(arrays["x"].copy())
        return {}, self.answer(arrays["x"])


@dataclass
class Stored:
    found: list[Any] = field(default_factory=list)

    def records(self, _, kind):
        return tuple(record for record in self.found if isinstance(record, kind))

    def add(self, _, record):
        self.found.append(record)


@dataclass
class FakeJob:
    """The part of a job that this stage uses, with answers by case key."""

    folder: Any
    prepared: Any
    answers: dict[str, Any]
    progress: Any
    study: Any = field(default_factory=lambda: make_study(model="m"))
    run_id: str = "r"
    store: Stored = field(default_factory=Stored)
    seen: dict[str, list[Any]] = field(default_factory=dict)
    failures: list[tuple[str, str]] = field(default_factory=list)

    limit_s = 30.0

    def open(self, case):
        return Worker(self.answers[case.quality_key], self.seen.setdefault(case.quality_key, []))

    def load(self, worker, case):
        return {}

    def fail(self, key, stage, failure, replicate=None):
        self.failures.append((key, failure.kind))


@dataclass
class Rows:
    evaluation: Any


def logits(shift: int = 0):
    """The class is the row's number modulo 3, plus a shift."""
    return lambda x: {"y": np.eye(3, dtype=np.float32)[(x[:, 0].astype(int) + shift) % 3]}


def case(variant: str, backend: str = "ort", batch: int = 1, threads: int = 1) -> Case:
    return Case(variant, backend, "local", batch, threads)


@pytest.fixture
def job(tmp_path, listener):
    """`job(answers, rows=10)`: labels are the row's number modulo 3."""

    def make(answers, rows: int = 10, **settings):
        x = np.arange(rows, dtype=np.float32)[:, None]
        data = Dataset.of("d", {"x": x}, np.arange(rows) % 3)
        return FakeJob(tmp_path, Rows(data), answers, listener(), make_study(model="m", **settings))

    return make


@pytest.mark.parametrize("batch", [1, 3, 4, 10, 16])
def test_every_row_is_answered_once_in_order(job, batch):
    """In batches of exactly the case's size; what fills up the last one is thrown away."""
    one = case("fp32", batch=batch)
    made = job({one.quality_key: logits()})
    assert set() == evaluate.evaluate(made, [one])
    (record,) = made.store.found

    assert {batch} == {len(sent) for sent in made.seen[one.quality_key]}
    assert list(range(10)) == np.concatenate(made.seen[one.quality_key])[:10, 0].tolist()
    assert (np.arange(10) % 3).tolist() == record.predictions.tolist()
    assert (record.per_sample.mean(), len(record.per_sample), record.metric) == (1.0, 10, "top1")


def test_threads_share_one_evaluation(job):
    """They change no answer."""
    cases = [case("fp32", threads=n) for n in (1, 2, 4)]
    made = job({cases[0].quality_key: logits()})
    evaluate.evaluate(made, cases)

    assert len(made.store.found) == 1


def test_the_reference_goes_first_and_the_others_are_paired_with_it(job):
    """Wherever it stands in the plan."""
    cases = [case("graph"), case("int8"), case("fp32")]
    made = job({"graph@ort/b1": logits(), "int8@ort/b1": logits(1), "fp32@ort/b1": logits()})
    evaluate.evaluate(made, cases)
    agreement = {record.case: record.agreement.mean() for record in made.store.found}

    assert made.store.found[0].case == "fp32@ort/b1"
    assert agreement == {"fp32@ort/b1": 1.0, "graph@ort/b1": 1.0, "int8@ort/b1": 0.0}


def test_a_case_that_fails_leaves_the_others(job):
    """And it is not timed afterwards."""

    def crash(x):
        raise WorkerFailure("crash", "SIGSEGV")

    made = job({"fp32@ort/b1": crash, "fp32@ov/b1": logits(), "graph@ort/b1": logits(1)})
    failed = evaluate.evaluate(made, [case("fp32"), case("fp32", "ov"), case("graph")])

    assert {"fp32@ort/b1"} == failed
    assert made.failures == [("fp32@ort/b1", "crash")]
    assert next(r for r in made.store.found if r.case.startswith("graph")).agreement.mean() == 0.0


def test_a_model_without_a_row_for_each_sample_is_timed_and_not_evaluated(job):
    """Not a broadcast, not a guess, and no failure either: its time is worth knowing."""
    one = case("fp32", batch=5)
    made = job({one.quality_key: lambda x: {"y": np.zeros((1, 3), np.float32)}})
    failed = evaluate.evaluate(made, [one])
    (record,) = made.store.found

    assert (set(), []) == (failed, made.failures)
    assert (len(record.per_sample), len(record.agreement), record.predictions) == (0, 0, None)
    assert "no output of the model has one row for each sample" in record.question
    assert any("'y' is not evaluated: its shape is (1, 3) for a batch of 5" in note for note in record.notes)


def test_outputs_beside_the_answer_need_no_rows(job):
    """Detections, a scalar, a constant and one whose width changes stand beside logits: the logits are evaluated."""

    def answer(x):
        rows = len(x)
        return {
            **logits()(x), "top": np.float32(3).reshape(()), "grid": np.zeros((7, 2), np.float32),
            "found": np.zeros((rows + 1, 3), np.int64), "width": np.zeros((rows, 2 + int(x[0, 0])), np.float32),
        }  # fmt: skip

    one = case("fp32", batch=2)
    made = job({one.quality_key: answer})
    evaluate.evaluate(made, [one])
    (record,) = made.store.found

    assert (record.metric, record.output, record.per_sample.mean()) == ("top1", "y", 1.0)
    assert {"top", "grid", "found", "width"} == {
        note.split("'")[1] for note in record.notes if "is not evaluated" in note
    }


def test_two_outputs_that_fit_are_a_question_and_nothing_is_evaluated_over_a_guess(job):
    """No variant is run for it: its answers could not be read either. What is stored asks the same on resume."""

    def heads(x):
        return {"day": logits()(x)["y"], "night": logits()(x)["y"] if x[0, 0] < 26 else logits(1)(x)["y"]}

    cases = [case("fp32"), case("graph")]
    made = job({"fp32@ort/b1": heads, "graph@ort/b1": heads}, rows=30)
    failed = evaluate.evaluate(made, cases)

    assert set() == failed
    assert "graph@ort/b1" not in made.seen
    assert [record.case for record in made.store.found] == ["fp32@ort/b1", "graph@ort/b1"]
    for record in made.store.found:
        assert "'day'" in record.question
        assert "'night'" in record.question
        assert "top1{output=" in record.question
        assert len(record.agreement) == 0

    named = job({"fp32@ort/b1": heads}, rows=30, metric="top1{output=night}")
    evaluate.evaluate(named, cases[:1])
    assert (named.store.found[0].output, pytest.approx(named.store.found[0].per_sample.mean())) == ("night", 26 / 30)


def test_labels_that_do_not_fit_the_reference_stop_the_run(job):
    """Nothing that follows could mean anything."""
    made = job({"fp32@ort/b1": lambda x: {"y": np.zeros((len(x), 2), np.float32)}})

    with pytest.raises(DataError, match="0 … 1"):
        evaluate.evaluate(made, [case("fp32")])


def test_outputs_of_another_shape_fail_that_case_alone(job):
    """A variant that lost a class."""
    made = job({"fp32@ort/b1": logits(), "bad@ort/b1": lambda x: {"z": np.zeros((len(x), 7, 2), np.float32)}})
    failed = evaluate.evaluate(made, [case("fp32"), case("bad")])

    assert {"bad@ort/b1"} == failed
    assert len(made.store.found) == 1


def test_nan_answers_are_wrong_and_not_lost(job):
    """A quantized model that overflows: every row counts against it, none agrees."""
    made = job({"fp32@ort/b1": logits(), "nan@ort/b1": lambda x: {"y": np.full((len(x), 3), np.nan, np.float32)}})
    evaluate.evaluate(made, [case("fp32"), case("nan")])
    broken = next(r for r in made.store.found if r.case.startswith("nan"))

    assert (broken.per_sample.mean(), broken.agreement.mean()) == (0.0, 0.0)


def test_what_is_stored_is_not_evaluated_again(job):
    """On resume only the missing ones are, paired with the reference that was stored in a file."""
    answers = {"fp32@ort/b1": logits(), "graph@ort/b1": logits(1)}
    first = job(answers)
    evaluate.evaluate(first, [case("fp32")])
    second = job(answers)
    second.store = first.store
    evaluate.evaluate(second, [case("fp32"), case("graph")])

    assert list(second.seen) == ["graph@ort/b1"]
    assert [r.case for r in second.store.found if isinstance(r, QualityRecord)] == ["fp32@ort/b1", "graph@ort/b1"]
    assert second.store.found[1].agreement.mean() == 0.0


def test_without_data_there_is_nothing_to_evaluate(job):
    """Timing only."""
    made = job({})
    made.prepared = Rows(None)

    assert set() == evaluate.evaluate(made, [case("fp32")])
