"""The ladder: what is tried, in which order, and the same recipe with other calibration seeds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from profiler import demo
from profiler.environment import describe
from profiler.errors import StudyError
from profiler.onnx_io import read_model
from profiler.progress import Silent
from profiler.search import run
from profiler.search.space import family, ladder, rung, seeds_of, suggestions
from profiler.study import make_study
from profiler.targets import setup
from profiler.targets.remote import LinkLost
from profiler.variants import registry


def test_everything_on_the_ladder_can_be_made_named_and_read_back():
    texts = ladder()
    assert texts[0] == "fp32"
    assert len(texts) == len(set(texts)) > 8
    for text in texts:
        assert registry.make(text).text == text, "canonical"
    assert make_study(model="m", variants=texts).variants == texts


def test_each_family_is_seen_once_before_one_is_refined():
    """A short budget makes what stands first: not four kinds of static int8 before the first pruned model."""
    tried = ladder()
    firsts = list(dict.fromkeys(family(text) for text in tried if "+" not in text))
    assert [family(text) for text in tried[: len(firsts)]] == firsts
    rest = [rung(text) for text in tried[len(firsts) :]]
    assert rest == sorted(rest), "the rest in the order of the ladder"
    assert [rung(text) for text in tried[: len(firsts)]] == sorted(rung(text) for text in tried[: len(firsts)])


def test_the_likeliest_recipe_of_the_model_and_the_machine_comes_first():
    tried = ladder(suggested=("int8-static{bias_correction=true}", "int8-static{calibration=mse}"))
    assert tried[:2] == ("fp32", "int8-static{bias_correction=true}")
    assert tried.index("int8-static{calibration=mse}") >= len({family(text) for text in tried if "+" not in text})


def test_cheap_rungs_come_first():
    assert ladder(("int8-static", "int8-dynamic", "graph")) == ("fp32", "graph", "int8-dynamic", "int8-static")
    assert rung("int8-static{symmetric_activations=true}") == rung("int8-static")
    assert rung("graph+int8-dynamic") > rung("int8-static{per_channel=true,smooth=0.5}")


def test_recipes_for_the_model_and_the_machine_come_before_general_ones():
    texts = suggestions(read_model(demo.model_path()), ("ort", "ov"), ("avx512_vnni",), "x86_64")
    tried = ladder(suggested=texts)
    assert texts
    assert set(texts) <= set(tried)
    assert [text for text in tried if text in texts] == list(texts)
    assert tried.index(texts[0]) < tried.index("int8-static")


def test_a_recipe_of_several_steps_stands_on_their_rung():
    """The ladder stays in order, also where TensorRT's float8 is suggested."""
    texts = suggestions(read_model(demo.model_path()), ("trt",), (), "x86_64")
    tried = ladder(suggested=texts)
    (float8,) = (text for text in texts if text.startswith("fp8"))
    assert float8 == "fp8{bias_correction=true}+fp16"
    assert set(texts) <= set(tried)
    assert rung(float8) == max(map(rung, tried))
    assert tried.index(float8) > tried.index("nncf" if "nncf" in tried else "int8-static")


def test_what_is_suggested_suits_the_processor_that_it_will_run_on(monkeypatch):
    """Not the one that the search was started on: seven bits are for old x86, signed activations for Arm."""
    far = replace(describe(), machine="aarch64", cpu_isa=("asimddp",))
    monkeypatch.setattr(run.setup, "place", lambda name: setup.Place(far, emulated=False, device=None))
    here = make_study(model=str(demo.model_path()), backends=("ort",))
    there = here.model_copy(update={"targets": ("pi",)})
    assert all("symmetric_activations=true" in text for text in run.suggested(there, Silent()))
    assert not any("symmetric_activations=true" in text for text in run.suggested(here, Silent()))
    assert run.suggested(there.model_copy(update={"variants": ("graph",)}), Silent()) == ()

    def lost(name):
        raise LinkLost(f"the connection to '{name}' was lost.")

    monkeypatch.setattr(run.setup, "place", lost)
    assert run.suggested(there, Silent()) == ()


def test_what_nobody_knows_is_refused():
    with pytest.raises(StudyError, match="unknown variant 'nope'"):
        ladder(("nope",))


def test_calibrated_recipes_have_siblings_with_other_seeds():
    assert seeds_of("int8-static{per_channel=true}") == (
        "int8-static{per_channel=true,seed=1}",
        "int8-static{per_channel=true,seed=2}",
    )
    assert seeds_of("int8-static") == ("int8-static{seed=1}", "int8-static{seed=2}")
    assert seeds_of("int8-static{seed=5}") == ()
    assert seeds_of("fp16") == ()
