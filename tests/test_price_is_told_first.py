"""A machine that was declared and cannot be this one is told before anything is made, not by the report."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from profiler import run
from profiler.environment import describe
from profiler.search import run as search
from profiler.search.run import execute_search
from profiler.study import make_study

EFFORT = {"processes": 1, "rounds": 1, "block_s": 0.002, "block_samples": 5, "warmup_s": 0.002, "warmup_max_s": 0.02}


@pytest.mark.process
@pytest.mark.runtime
@pytest.mark.parametrize("begin", [run.execute, execute_search], ids=["run", "search"])
@pytest.mark.parametrize(("model", "told"), [("AMD EPYC 9R14", True), ("Intel(R) Xeon(R) Platinum 8488C", False)])
def test_a_processor_of_another_maker(begin, model, told, small_model, tmp_path, monkeypatch):
    """An instance with an Intel processor, declared on a machine of AMD's."""
    here = replace(describe(), cpu_model=model, machine="x86_64", gpus=())
    for module in (run, search):
        monkeypatch.setattr(module, "describe", lambda: here)
    heard: list[str] = []
    progress = SimpleNamespace(stage=lambda title, _: heard.append(title), step=lambda *_: None, note=heard.append)
    study = make_study(
        model=str(small_model), backends=("fake{read=false}",), variants=("bf16",), effort=EFFORT, time_budget_s=30.0,
        cost={"machine": "aws:c7i.large"},
    )  # fmt: skip
    begin(study, out=tmp_path / "runs", progress=progress)
    said = [text for text in heard if "there will be no costs" in text]

    assert len(said) == told
    if told:
        assert "intel CPU" in said[0]
        assert model in said[0]
        begun = next(place for place, text in enumerate(heard) if text in ("making variants", "searching"))
        assert heard.index(said[0]) < begun
