"""What a search screens is read as a run reads it: the output that is meant, or a question before anything is raced."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from profiler.data import Dataset
from profiler.quality.choice import Unclear
from profiler.search.screening import Screening
from profiler.study import Case, make_study

ROWS = 300
CASES = [Case(variant, "ort", "local", 4, 1) for variant in ("fp32", "int8")]


class Worker:
    """Answers from a function."""

    def __init__(self, answer) -> None:
        self.answer = answer

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def request(self, command, arrays, *, timeout_s):
        return {}, self.answer(arrays["x"])


def screening(folder, answers, labels, **settings):
    stored: list = []
    data = Dataset.of("d", {"x": np.arange(ROWS, dtype=np.float32)[:, None]}, labels)
    job = SimpleNamespace(
        folder=folder, run_id="r", study=make_study(model="m", **settings), limit_s=30.0,
        store=SimpleNamespace(records=lambda *_: tuple(stored), add=lambda _, record: stored.append(record)),
        open=lambda case: Worker(answers[case.variant]), load=lambda *_: {},
    )  # fmt: skip
    return Screening(job, data), stored


def head(shift: int, wrong: int):
    """Logits of the row's number modulo 3, another class in every `wrong`th row."""

    def answer(x):
        rows = x[:, 0].astype(int)
        return np.eye(3, dtype=np.float32)[(rows + shift + (rows % wrong == 0)) % 3]

    return answer


def test_a_search_screens_the_head_that_the_labels_mean(tmp_path):
    """Beside detections of no fixed number and another head, which says nothing of these labels."""
    main, other = head(0, 4), np.random.default_rng(0).standard_normal((ROWS + 4, 5)).astype(np.float32)

    def answer(x):
        return {"other": other[x[:, 0].astype(int)], "found": np.zeros((7, 2), np.int64), "main": main(x)}

    made, stored = screening(tmp_path, {"fp32": answer}, np.arange(ROWS) % 3)
    rows = made.quality(CASES[0], lambda _: None)

    assert rows.mean() == pytest.approx(0.75)
    assert (stored[0].metric, stored[0].output) == ("top1", "main")


def test_a_search_with_a_question_is_not_begun(tmp_path):
    """Two heads say the labels: nothing that is raced could be told from anything else."""
    answers = {"fp32": lambda x: {"a": head(0, 4)(x), "b": head(0, 5)(x)}}
    made, stored = screening(tmp_path, answers, np.arange(ROWS) % 3)
    with pytest.raises(Unclear, match=r"'a'.*75.0% right.*'b'.*80.0% right"):
        made.quality(CASES[0], lambda _: None)

    assert stored == []
    named, stored = screening(tmp_path, answers, np.arange(ROWS) % 3, metric="top1{output=b}")
    assert named.quality(CASES[0], lambda _: None).mean() == pytest.approx(0.8)
    assert stored[0].output == "b"
