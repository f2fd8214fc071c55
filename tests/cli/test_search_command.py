"""`edgeprof search` on the command line."""

from __future__ import annotations

import json

import pytest


def test_it_needs_a_model_or_a_run(edgeprof):
    for arguments in ((), ("model.onnx", "--resume", "latest")):
        told = edgeprof("search", *arguments)
        assert told.code == 2
        assert "give either a model, or --resume RUN" in told.err


def test_mistakes_are_told_before_anything_is_measured(edgeprof, small_model, tmp_path):
    for option, value, says in (
        ("--objective", "speed", "unknown objective 'speed'"),
        ("--alpha", "2", "a share up to 0.5, got 2"),
        ("--variants", "nope", "unknown variant 'nope'"),
        ("--time-budget", "soon", "soon"),
        ("--batches", "two", "cannot read --batch"),
    ):
        told = edgeprof("search", small_model, option, value, "--out", tmp_path)
        assert told.code == 2, option
        assert says in told.err, option
    assert not list(tmp_path.glob("2*"))


@pytest.mark.process
@pytest.mark.runtime
def test_search_show_and_resume(edgeprof, small_model, tmp_path):
    fast, slow = "fake{latency_us=200,read=false}", "fake{latency_us=5000,read=false}"
    told = edgeprof(
        "search", small_model, "--variants", "fp32", "--backends", f"{fast},{slow}", "--quick", "--no-seeds", "--out",
        tmp_path, "--time-budget", "25s", "--json",
    )  # fmt: skip
    assert told.code in (0, 1), told.err
    found = json.loads(told.out)
    assert {case["case"]: case["status"] for case in found["cases"]}[f"fp32@{slow}/b1/t1"] == "skipped"
    assert edgeprof("frontier", "latest", "--out", tmp_path, "--y", "peak_rss").code == 0
    again = edgeprof("search", "--resume", "latest", "--out", tmp_path, "--json")
    assert again.code in (0, 1), again.err
