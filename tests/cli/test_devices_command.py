"""`edgeprof devices` lists, `edgeprof devices show` tells all of one device and what it leaves a model."""

from __future__ import annotations

import json

import pytest

from profiler import demo
from profiler.cost.devices import load_profiles

PI = "raspberry-pi-5-8gb"
MODEL = demo.model_path()


@pytest.mark.parametrize("profile", load_profiles().values(), ids=load_profiles())
def test_everything_that_a_profile_knows_is_shown(edgeprof, profile):
    """Each figure, with its source; what nobody could source is marked where it stands."""
    told = edgeprof("devices", "show", profile.id)
    text = " ".join(told.out.split())

    assert (told.code, told.err) == (0, "")
    assert profile.name in text
    # The sources are long words and wrap: compared without spaces.
    assert profile.source.spec.replace(" ", "") in text.replace(" ", "")
    for value in (
        profile.peak.fp32_tflops,
        profile.peak.int8_dense_tops,
        profile.memory.bandwidth_gbs,
        profile.power.tdp_w,
    ):
        assert value is None or f"{value:,g} " in text
    for path in profile.source.unverified:
        assert path in text
    price = profile.price is not None and not profile.price.verified
    assert text.count(", unverified") == len(profile.source.unverified) + price
    if profile.price is not None:
        assert profile.price.date in text
        assert profile.price.covers in text


def test_an_unknown_figure_is_not_shown_as_a_number(edgeprof):
    """A laptop without a paper peak has none, and says what follows from that."""
    told = edgeprof("devices", "show", "intel-i7-1360p")

    assert "no floor can be told" in told.out
    assert "not known" in told.out
    assert "None" not in told.out


def test_a_model_gets_its_floor(edgeprof):
    """Operations, bytes, a floor per precision, what dominates; a precision without a peak says so."""
    told = edgeprof("devices", "show", f"device:{PI}", "--model", MODEL, "--batch", 4, "--threads", 2)
    text = " ".join(told.out.split())

    assert told.code == 0
    for words in (
        "36.58 M",
        "2 of 4 cores",
        "node_Conv_111",
        "unverified: peak.fp32_tflops",
        "bf16: not known",
        "docs/roofline.md",
    ):
        assert words in text


def test_the_same_as_json(edgeprof):
    """Floors in seconds, `reason` where there is none; a batch scales, precisions order."""
    one, eight = (
        json.loads(edgeprof("devices", "show", PI, "--model", MODEL, "--batch", batch, "--json").out)["model"]
        for batch in (1, 8)
    )
    floors = one["floors"]

    assert (one["batch"], eight["batch"]) == (1, 8)
    assert eight["operations"] == 8 * one["operations"] == 8 * sum(op["operations"] for op in one["ops"])
    assert floors["as stored"] == floors["fp32"]
    assert floors["fp32"]["seconds"] > floors["fp16"]["seconds"] > floors["int8"]["seconds"] > 0
    assert set(floors["bf16"]) == {"reason"}
    assert json.loads(edgeprof("devices", "show", PI, "--json").out)["model"] is None


def test_narrow_terminals_get_the_same_facts(edgeprof, monkeypatch):
    """A row that does not fit becomes a line of its own."""
    from rich.console import Console

    from profiler.cli import console

    wide = edgeprof("devices", "show", PI, "--model", MODEL).out
    monkeypatch.setattr(console, "out", Console(width=50, highlight=False))
    narrow = edgeprof("devices", "show", PI, "--model", MODEL).out

    assert max(map(len, narrow.splitlines())) <= 50
    for word in ("node_Conv_111", "3.619", "119 µs", "arithmetic"):
        assert word in wide
        assert word in narrow


def test_names_in_a_model_cannot_steer_the_terminal(edgeprof, tmp_path):
    """A node's name is untrusted: escapes are shown as a sign, markup as it is."""
    import onnx
    from onnx import TensorProto, helper

    node = helper.make_node("Relu", ["x"], ["y"], name="\x1b[2J[bold]evil\r\nrow")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "xy"]
    model = helper.make_model(helper.make_graph([node], "g", values[:1], values[1:]), ir_version=10)
    onnx.save(model, str(tmp_path / "m.onnx"))
    told = edgeprof("devices", "show", PI, "--model", tmp_path / "m.onnx")

    assert told.code == 0
    assert "\x1b" not in told.out
    assert "[bold]evil" in told.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["show"], "needs a NAME"),
        (["show", "raspbery-pi-5-8gb"], "Did you mean raspberry-pi-5-8gb"),
        (["show", PI, "--prices"], "lists cloud machines"),
        (["show", PI, "--batch", 2], "--batch belongs to a model"),
        (["show", PI, "--sparse"], "--sparse belongs to a model"),
        (["--threads", 2], "--threads belongs to a model"),
        (["show", PI, "--model", "nosuch.onnx"], "no model file 'nosuch.onnx'"),
        (["show", PI, "--model", MODEL, "--threads", 0], "smallest is 1"),
        (["show", PI, "--model", MODEL, "--batch", 0], "smallest is 1"),
        (["show", PI, "--model", MODEL, "--shape", "image=3,3,3"], "fixed axis 1 of 1, not 3"),
        (["raspberry", PI], f"'{PI}' is for one device"),
        (["--model", MODEL], "--model is for one device"),
    ],
    ids=str,
)
def test_what_does_not_fit_together_is_one_message(edgeprof, arguments, words):
    """With the next command."""
    told = edgeprof("devices", *arguments)

    assert (told.code, told.out) == (2, "")
    assert words in told.err
    assert told.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["raspberry"], ["--prices", "c7i"]], ids=str)
def test_listing_goes_on_as_before(edgeprof, arguments):
    """No word, a word, prices."""
    told = edgeprof("devices", *arguments)

    assert told.code == 0
    assert "this machine:" in told.out
    assert ("device:raspberry-pi-5-8gb" in told.out) == ("--prices" not in arguments)
