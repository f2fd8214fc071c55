"""The script for a GPU machine: what travels, and a run to its end where there is no GPU."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.gpu_lib import bundle, steps, table
from scripts.gpu_lib.fatbin import slimmed

ROOT = Path(__file__).resolve().parents[1]


def entry(capability: int, payload: bytes) -> bytes:
    head = struct.pack("<HHIQ", 2, 1, 64, len(payload)).ljust(28, b"\0") + struct.pack("<I", capability)
    return head.ljust(64, b"\0") + payload


def library(*entries: bytes) -> bytes:
    body = b"".join(entries)
    return b"\x7fELF before " + struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body + b" after"


def test_code_for_other_gpus_is_zeroed_in_place():
    whole = library(entry(80, b"a" * 40), entry(90, b"b" * 50), entry(120, b"c" * 60)) + library(entry(75, b"d" * 8))
    slim, seen = slimmed(whole, 90)

    assert len(slim) == len(whole)
    assert (slim.count(b"b"), slim.count(b"a" * 40), slim.count(b"c"), slim.count(b"d")) == (whole.count(b"b"), 0, 0, 0)
    assert seen == {80: 40, 90: 50, 120: 60, 75: 8}
    assert slim.startswith(b"\x7fELF before ")
    assert slim.endswith(b" after")


def test_a_library_without_code_for_the_gpu_is_refused():
    with pytest.raises(ValueError, match="no code for compute capability 90, only for \\[80\\]"):
        slimmed(library(entry(80, b"a")), 90)


def test_a_magic_number_by_chance_changes_nothing():
    data = b"x" * 10 + struct.pack("<I", 0xBA55ED50) + b"y" * 30 + library(entry(90, b"b" * 4))
    assert slimmed(data, 90)[0] == data


def test_what_is_too_large_for_an_archive_is_cut_and_joined(tmp_path):
    """Random bytes do not compress: 300 kB in archives of 100 kB."""
    import numpy as np

    content = np.random.default_rng(0).integers(0, 256, 300_000, np.uint8).tobytes()
    (tmp_path / "models/mini-resnet").mkdir(parents=True)
    (tmp_path / "models/mini-resnet/fp32.onnx").write_bytes(content)
    bundle.write(tmp_path / "out", tmp_path / "models", python="3.12", capability=90, piece_bytes=100_000, wheels=False)
    archives = list((tmp_path / "out").glob("piece-*"))
    there = bundle.unpacked(tmp_path / "out", tmp_path / "there")

    assert len(archives) >= 3
    assert max(archive.stat().st_size for archive in archives) <= 100_000
    assert [path.name for path in (there / "models/mini-resnet").iterdir()] == ["fp32.onnx"]
    assert (there / "models/mini-resnet/fp32.onnx").read_bytes() == content


def test_the_steps_fit_their_kinds_and_begin_with_what_is_worth_most():
    from scripts.gpu_lib.child import KINDS

    planned = steps.plan(["mini-resnet", "minilm-sentiment"])
    assert {step.kind for step in planned} <= set(KINDS)
    assert [step.kind for step in planned[:4]] == ["machine", "provider", "answers", "latency"]
    assert "minilm" in planned[-1].name


def test_a_page_tells_what_was_not_measured_and_why():
    text = table.page([
        {"step": "one", "found": {"skipped": "no GPU"}},
        {"step": "two", "found": {"fp32 @ ort": {"p50_s": 0.001}, "fp32 @ trt": {"skipped": "no binding"}}},
    ])  # fmt: skip
    assert "Not measured: no GPU." in text
    assert "| fp32 @ ort | 0.001 |" in text
    assert "- fp32 @ trt: not measured, no binding" in text


@pytest.mark.process
@pytest.mark.runtime
def test_it_runs_to_its_end_without_a_gpu(tmp_path):
    """Every step is there, done or with the reason why not; the CPU's own figures among them."""
    from scripts.gpu_lib import models

    models.write("mini-resnet", tmp_path / "models" / "mini-resnet")
    bundle.write(tmp_path / "in", tmp_path / "models", python="3.12", capability=90, piece_bytes=10**8, wheels=False)
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/gpu_check", "--run", tmp_path / "in", "--out", tmp_path / "out", "--minutes", "4"],
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert [item["step"] for item in results] == [step.name for step in steps.plan(["mini-resnet"])]
    by_name = {item["step"]: item["found"] for item in results}
    assert not [text for text in map(str, by_name.values()) if "exit code" in text]
    timed = by_name["latency of mini-resnet"]["batch 1"]
    assert timed["fp32 @ ort"]["provider"] == "CPUExecutionProvider"
    assert timed["fp32 @ ort"]["ratio"] == 1.0
    if "CUDAExecutionProvider" not in str(by_name["asked for CUDA, never the CPU"].get("provider")):
        assert "CUDA" in by_name["copies of mini-resnet"]["skipped"]
    assert "# On a GPU" in (tmp_path / "out/gpu.md").read_text()
