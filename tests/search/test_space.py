"""The ladder: what is tried, in which order, and the same recipe with other calibration seeds."""

from __future__ import annotations

import pytest

from profiler import demo
from profiler.errors import StudyError
from profiler.onnx_io import read_model
from profiler.search.space import ladder, rung, seeds_of, suggestions
from profiler.study import make_study
from profiler.variants import registry


def test_everything_on_the_ladder_can_be_made_named_and_read_back():
    texts = ladder()
    assert texts[0] == "fp32"
    assert len(texts) == len(set(texts)) > 8
    for text in texts:
        assert registry.make(text).text == text, "canonical"
    assert make_study(model="m", variants=texts).variants == texts


def test_cheap_rungs_come_first():
    assert [rung(text) for text in ladder()] == sorted(rung(text) for text in ladder())
    assert ladder(("int8-static", "int8-dynamic", "graph")) == ("fp32", "graph", "int8-dynamic", "int8-static")
    assert rung("int8-static{symmetric_activations=true}") == rung("int8-static")
    assert rung("graph+int8-dynamic") > rung("int8-static{per_channel=true,smooth=0.5}")


def test_recipes_for_the_model_and_the_machine_come_before_general_ones():
    texts = suggestions(read_model(demo.model_path()), ("ort", "ov"), ("avx512_vnni",))
    tried = ladder(suggested=texts)
    assert texts
    assert set(texts) <= set(tried)
    assert [text for text in tried if text in texts] == list(texts)
    assert tried.index(texts[0]) < tried.index("int8-static")


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
