"""Whatever people type and hand over: one message that names the thing, exit code 2, no traceback, and nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from profiler.cli import app


def assert_refused(told, *words: str) -> None:
    """One message on stderr that holds the words."""
    assert told.code == 2, told.err
    text = told.err
    assert "Traceback" not in text
    assert "unexpected" not in text, text
    message = [line for line in text.splitlines() if line.startswith("edgeprof: ") and "steps)" not in line]
    assert len(message) == 1, text
    for word in words:
        assert word in message[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--variants", "int8-statik"], ["int8-statik", "Did you mean int8-static"]),
        (["--variants", "int8-static{per_chanel=true}"], ["per_chanel", "per_channel"]),
        (["--variants", "int8-static{per_channel=perhaps}"], ["per_channel", "perhaps"]),
        (["--variants", "int8-static{"], ["cannot read"]),
        (["--backends", "onnxruntime"], ["onnxruntime", "Known: fake, injected, ort"]),
        (["--backends", "otr"], ["Did you mean", "ort"]),
        (["--backends", "ov:GPUU"], ["GPUU", "Did you mean GPU"]),
        (["--backends", ""], ["backend"]),
        (["--metric", "top2"], ["top2", "Did you mean top"]),
        (["--metric", "no.such.module:function"], ["no.such"]),
        (["--as", "aws:c7i.larg"], ["c7i.large"]),
        (["--as", "device:rasberry-pi-5-8gb"], ["raspberry-pi-5"]),
        (["--as", "c7i.large"], ["--as", "aws:"]),
        (["--prices", "/no/such/prices.csv"], ["/no/such/prices.csv"]),
        (["--batch", "0"], ["0 is not possible"]),
        (["--batch", "-1"], ["-1 is not possible"]),
        (["--batch", "many"], ["many", "whole numbers"]),
        (["--batch", "1.5"], ["1.5", "whole numbers"]),
        (["--batch", ""], ["batches"]),
        (["--batch", "99999999999999999999"], ["65536"]),
        (["--threads", "0"], ["0 is not possible"]),
        (["--threads", "100000"], ["1024"]),
        (["--limit", "0"], ["limit"]),
        (["--calibration-samples", "0"], ["calibration_samples"]),
        (["--seed", "-1"], ["seed"]),
        (["--max-drop", "lots"], ["lots", "1pt"]),
        (["--max-drop", "200pt"], ["max_drop"]),
        (["--slo-p99", "5"], ["'5'", "5ms"]),
        (["--slo-p99", "0ms"], ["slo_p99_s"]),
        (["--max-memory", "1e308GB"], ["1e308GB"]),
        (["--max-memory", "0B"], ["max_memory_bytes"]),
        (["--max-memory", "512"], ["512", "512MB"]),
        (["--max-drop", "3"], ["300 percentage points", "3pt", "--metric"]),
        (["--max-drop", "3", "--metric", "top1"], ["300 percentage points", "top1 is a proportion"]),
        (["--max-drop", "1pt", "--metric", "rmse"], ["unit of its own", "bare number"]),
        (["--max-drop", "1dB", "--metric", "top1"], ["no proportion", "1pt"]),
        (["--set", "energy"], ["--set", "energy.windows=20"]),
        (["--set", "effort.round=3"], ["Did you mean round"]),
        (["--max-cost", "nan"], ["max_usd_per_million"]),
        (["--utilisation", "0"], ["utilisation"]),
        (["--utilisation", "nan"], ["utilisation"]),
        (["--time-limit", "0s"], ["time_limit_s"]),
        (["--time-limit", "soon"], ["soon"]),
        (["--memory-limit", "1B"], ["memory_limit_bytes"]),
        (["--shape", "x"], ["--shape 'x'"]),
        (["--shape", "x=-3"], ["shape"]),
        (["--shape", "x=a"], ["whole numbers"]),
        (["--quick", "--thorough"], ["exclude"]),
        (["--database", "nosuch://x"], ["nosuch"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_impossible_options_are_refused(edgeprof, tmp_path, small_model, small_data, options, words):
    """Before anything is measured."""
    told = edgeprof("profile", small_model, "--data", small_data, "--out", tmp_path / "out", *options)

    assert_refused(told, *words)


def broken_models(folder, small_model):
    """Files that are no models, by what is wrong with them."""
    content = small_model.read_bytes()
    files = {
        "empty.onnx": b"", "truncated.onnx": content[: len(content) // 2], "text.onnx": b"this is a poem\n" * 10,
        "random.onnx": np.random.default_rng(0).bytes(5000), "zeros.onnx": b"\0" * 1000,
    }  # fmt: skip
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / "folder.onnx").mkdir()
    with (folder / "huge.onnx").open("wb") as file:
        file.truncate(2 << 30)
    return [*files, "folder.onnx", "huge.onnx", "missing.onnx", "missing", "model.pt"]


@pytest.mark.parametrize("command", ["profile", "variants", "export"])
def test_files_that_are_no_models_are_refused_by_name(edgeprof, tmp_path, small_model, command):
    """Empty, cut, text, noise, zeros, a folder, two sparse gigabytes, missing: the message names the file."""
    for name in broken_models(tmp_path, small_model):
        extra = ["-o", tmp_path / "x.onnx"] if command == "export" else ["--out", tmp_path / "out"]
        assert_refused(edgeprof(command, tmp_path / name, *extra), name)


X = np.zeros((8, 4), np.float32)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"y": X, "z": X}, ["'x'"]),
        ({"x": X.astype(np.int32)}, ["int32", "float32"]),
        ({"x": X.astype("U5")}, ["x"]),
        ({"x": X[:, :3]}, ["size 3", "4"]),
        ({"x": X[0]}, ["rank 1"]),
        ({"x": np.zeros((8, 4, 1), np.float32)}, ["rank 3"]),
        ({"x": X, "labels": np.zeros(7, int)}, ["labels", "8 rows"]),
        ({"x": X, "labels": np.full(8, 9)}, ["9", "0 … 1"]),
        ({"x": X, "labels": np.full(8, -1)}, ["-1"]),
        ({"x": X, "labels": np.array(["cat"] * 8)}, ["labels"]),
        ({"x": X * np.nan}, ["NaN"]),
        ({"x": X + np.inf}, ["infinite"]),
        ({"x": X, "labels": np.full(8, np.nan)}, ["NaN"]),
        ({"x": X[:0]}, ["0 rows"]),
        ({}, ["no arrays"]),
        ({"x": np.float32(3)}, ["x"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
@pytest.mark.process
def test_data_that_does_not_fit_is_refused(edgeprof, tmp_path, small_model, arrays, words):
    """Names, types, shapes, labels, NaN and nothing at all."""
    np.savez(tmp_path / "d.npz", **arrays)
    told = edgeprof(
        "profile",
        small_model,
        "--data",
        tmp_path / "d.npz",
        "--out",
        tmp_path / "out",
        "--backends",
        "fake{read=false}",
        "--variants",
        "fp32",
        "--quick",
    )

    if "no arrays" in words:
        words = ["d.npz"]
    assert_refused(told, *words)


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"PK\x03\x04 no zip"),
        lambda path: path.write_text("1,2,3"),
        lambda path: path.mkdir(),
        lambda path: None,
        lambda path: np.save(path.with_suffix(".npy"), X) or path.with_suffix(".npy").rename(path),
        lambda path: np.savez(path, x=np.array([{"a": 1}] * 3, object)),
    ],
    ids=["empty", "half a zip", "csv", "folder", "missing", "npy", "pickled"],
)
def test_files_that_are_no_data_are_refused_by_name(edgeprof, tmp_path, small_model, make):
    """And nothing in them is executed."""
    make(tmp_path / "d.npz")

    assert_refused(edgeprof("profile", small_model, "--data", tmp_path / "d.npz", "--out", tmp_path / "out"), "d.npz")


@pytest.mark.parametrize("command", ["frontier", "report", "show", "runs"])
def test_a_folder_without_runs_is_told(edgeprof, tmp_path, command):
    """With the option that names another; nothing is made there."""
    assert_refused(edgeprof(command, "--out", tmp_path), "--out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["frontier", "report", "show"])
def test_a_damaged_database_is_told(edgeprof, tmp_path, command):
    """By its path."""
    (tmp_path / "edgeprof.sqlite").write_bytes(b"not a database at all" * 100)

    assert_refused(edgeprof(command, "--out", tmp_path), "edgeprof.sqlite")


def test_an_out_folder_that_cannot_be_written_is_told(edgeprof, tmp_path, small_model, small_data):
    """The way is blocked by a file; the kernel refuses."""
    (tmp_path / "file").write_text("")
    assert_refused(edgeprof("profile", small_model, "--data", small_data, "--out", tmp_path / "file"), "file", "--out")
    assert_refused(
        edgeprof("profile", small_model, "--data", small_data, "--out", "/proc/nowhere"), "/proc/nowhere", "--out"
    )
    assert_refused(edgeprof("variants", small_model, "--variants", "fp32", "--out", "/proc/nowhere"), "/proc/nowhere")


def test_a_study_file_or_a_run_to_resume_is_needed(edgeprof, tmp_path):
    """One of the two."""
    assert_refused(edgeprof("run"), "--resume")
    assert_refused(edgeprof("run", tmp_path / "s.toml", "--resume", "latest"), "--resume")
    assert_refused(edgeprof("run", tmp_path / "s.toml"), "s.toml", "edgeprof init")
    assert_refused(edgeprof("run", "--resume", "latest", "--out", tmp_path / "o"), "no runs")


@pytest.mark.process
def test_unknown_names_in_a_run_are_answered(edgeprof, finished):
    """Runs, cases and axes."""
    assert_refused(edgeprof("show", "nosuchrun", "--out", finished), "nosuchrun", "edgeprof runs")
    assert_refused(
        edgeprof("show", "latest", "fp32@fake{read=fals}/b1/t1", "--out", finished),
        "Did you mean fp32@fake{read=false}",
    )
    assert_refused(edgeprof("frontier", "--x", "latency_p55", "--out", finished), "Did you mean latency_p50")
    assert_refused(edgeprof("frontier", "--json", "--csv", "--out", finished), "exclude")


def test_debug_shows_the_traceback(tmp_path):
    """For the report of a bug; wherever the option stands."""
    for arguments in (["--debug", "runs", "--out", str(tmp_path)], ["runs", "--out", str(tmp_path), "--debug"]):
        with pytest.raises(Exception, match=r"edgeprof\.sqlite"):
            app.main(arguments)


def test_a_bug_is_told_as_one(edgeprof, monkeypatch):
    """Not as the user's mistake, and without a traceback."""
    from profiler import store

    def broken(*args, **kwargs):
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(store, "open_store", broken)
    told = edgeprof("runs")

    assert told.code == 2
    assert "bug in edgeprof" in told.err
    assert "--debug" in told.err
    assert "Traceback" not in told.err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_told(edgeprof, tmp_path, small_model):
    """With the option that helps."""
    tmp_path.chmod(0o500)

    assert_refused(edgeprof("profile", small_model, "--out", tmp_path / "out"), "--out")


@pytest.mark.process
@pytest.mark.parametrize("options", [["--json"], []])
def test_a_reader_that_has_seen_enough_is_no_failure(options):
    """`edgeprof devices | head -1`: no message, exit code 0."""
    command = f"set -o pipefail; {sys.executable} -m profiler devices --prices {' '.join(options)} | head -1"

    done = subprocess.run(["bash", "-c", command], check=False, capture_output=True, text=True, timeout=60)

    assert done.stderr == ""
    assert done.returncode == 0


def test_code_of_the_study_that_exits_is_told(monkeypatch, capsys):
    """A data function calling sys.exit must not look like edgeprof's own exit code."""
    monkeypatch.setattr(app, "_command", lambda name: pytest.fail("unreachable") if name != "runs" else _Exits())

    assert app._run(["runs"], debug=False) == 2
    assert "ended the program (exit code 7)" in capsys.readouterr().err


class _Exits:
    def main(self, **_):
        sys.exit(7)
