"""Each command does its job from end to end, and its JSON is JSON."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest

ROOT = Path(__file__).parents[2]
FAKE = "fake{read=false}"
pytestmark = pytest.mark.process


@pytest.fixture
def quick(monkeypatch):
    """--quick in milliseconds: the same path, less of it."""
    from profiler import study

    effort = study.Effort(processes=1, rounds=1, block_s=0.002, block_samples=5, warmup_s=0.002, warmup_max_s=0.02)
    monkeypatch.setattr(study, "EFFORTS", {**study.EFFORTS, "quick": effort})


def test_profile_ends_with_a_decision_a_table_and_a_report(edgeprof, tmp_path, small_model, small_data, quick):
    """Exit code 0; what is not a result stands on stderr; the report lies where the last line says."""
    told = edgeprof(
        "profile", small_model, "--data", small_data, "--backends", f"{FAKE},fake{{fail=segv,read=false}}", "--variants", "fp32",
        "--quick", "--out", tmp_path, "--max-drop", "5pt",
    )  # fmt: skip

    assert told.code == 0, told.err
    assert "Ship fp32" in told.out
    (report,) = tmp_path.glob("*/report.html")
    assert "report.html" in told.out
    assert report.stat().st_size > 10_000
    assert "crash" in told.out + told.err


def test_profile_json_is_only_json(edgeprof, tmp_path, small_model, small_data, quick):
    """Stdout can be piped into a parser, numbers are finite."""
    told = edgeprof(
        "profile",
        small_model,
        "--data",
        small_data,
        "--backends",
        FAKE,
        "--variants",
        "fp32",
        "--quick",
        "--out",
        tmp_path,
        "--json",
    )

    assert json.loads(told.out, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    assert told.code == 0


def test_no_case_that_fits_is_exit_code_1(edgeprof, tmp_path, small_model, small_data, quick):
    """Done, but nothing meets the constraints: for scripts that deploy."""
    told = edgeprof(
        "profile", small_model, "--data", small_data, "--backends", "fake{latency_us=2000,read=false}", "--variants", "fp32",
        "--quick", "--out", tmp_path, "--slo-p99", "1us",
    )  # fmt: skip

    assert told.code == 1
    assert "No case" in told.out


def test_a_study_file_is_done_and_resumed(edgeprof, tmp_path, small_model, small_data):
    """`run` with the file, then `run --resume` of the finished run measures nothing more."""
    (tmp_path / "study.toml").write_text(
        f'model = "{small_model}"\ndata = "{small_data}"\nvariants = ["fp32"]\nbackends = ["{FAKE}"]\n'
        "[effort]\nprocesses = 1\nrounds = 1\nblock_s = 0.002\nwarmup_s = 0.002\nwarmup_max_s = 0.02\n"
    )
    first = edgeprof("run", tmp_path / "study.toml", "--out", tmp_path / "o", "--json")
    again = edgeprof("run", "--resume", "latest", "--out", tmp_path / "o", "--json")
    runs = json.loads(edgeprof("runs", "--out", tmp_path / "o", "--json").out)

    assert (first.code, again.code) == (0, 0), first.err + again.err
    assert json.loads(first.out) == json.loads(again.out)
    assert [run["status"] for run in runs] == ["finished"]


def test_ctrl_c_keeps_what_was_measured(tmp_path, small_model, small_data):
    """Exit code 130, one sentence that says how to go on, no traceback, no worker left, and the run is marked."""
    process = subprocess.Popen(
        [sys.executable, "-m", "profiler", "profile", str(small_model), "--data", str(small_data), "--variants", "fp32",
         "--backends", "fake{latency_us=500,read=false}", "--out", str(tmp_path)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        # A test run in the background of a shell inherits "ignore Ctrl-C", and Python then leaves it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 (no threads here)
    )  # fmt: skip
    while "measuring" not in process.stderr.readline():
        assert process.poll() is None
    time.sleep(0.7)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    runs = subprocess.run(
        [sys.executable, "-m", "profiler", "runs", "--out", str(tmp_path), "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )

    assert process.returncode == 130
    assert "edgeprof run --resume" in err
    assert "Traceback" not in err
    assert [run["status"] for run in json.loads(runs.stdout)] == ["interrupted"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["runs"], ["show"], ["show", "latest", "1"], ["show", "latest", "3"], ["frontier"], ["frontier", "--x", "peak_rss"],
        ["frontier", "--x", "usd_per_million", "--y", "agreement"], ["report"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_what_a_run_holds_can_be_read_as_text_and_json(edgeprof, finished, tmp_path, arguments):
    """Failed cases too; JSON has no NaN."""
    text = edgeprof(*arguments, "--out", finished, *(["--to", tmp_path / "r.html"] if arguments == ["report"] else []))
    data = edgeprof(*arguments, "--out", finished, "--json")

    assert (text.code, data.code) == (0, 0), text.err + data.err
    assert text.out.strip()
    assert json.loads(data.out, parse_constant=lambda name: pytest.fail(f"{name} in JSON")) is not None


def test_the_frontier_is_also_csv(edgeprof, finished):
    """A header, and a row for each measured case."""
    rows = list(csv.DictReader(io.StringIO(edgeprof("frontier", "--csv", "--out", finished).out)))

    assert len(rows) >= 2


def test_the_report_is_written_where_it_is_asked_for(edgeprof, finished, tmp_path):
    """One HTML file that fetches nothing."""
    told = edgeprof("report", "--to", tmp_path / "r.html", "--out", finished)
    page = (tmp_path / "r.html").read_text(encoding="utf-8")

    assert (0, str(tmp_path / "r.html")) == (told.code, told.out.strip())
    assert "<html" in page
    assert not any(f'{attribute}="http' in page for attribute in ("src", 'rel="stylesheet" href'))


def test_backends_are_listed_with_what_is_missing(edgeprof):
    """Every device of every backend: usable, or why not and what to install."""
    rows = json.loads(edgeprof("backends", "--json").out)
    told = edgeprof("backends")

    assert {"ort", "ov", "trt", "fake"} <= {row["backend"] for row in rows}
    assert all(row["available"] or row["reason"] for row in rows)
    assert told.code == 0
    assert "fake" in told.out


@pytest.mark.parametrize("arguments", [[], ["raspberry"], ["--prices", "c7i"], ["nosuchdevice"]], ids=str)
def test_devices_and_prices_are_listed(edgeprof, arguments):
    """As text and JSON, filtered by what stands in their names."""
    told, data = edgeprof("devices", *arguments), edgeprof("devices", *arguments, "--json")

    assert (told.code, data.code) == (0, 0)
    assert ("nosuchdevice" in arguments) == (json.loads(data.out)["entries"] == [])


@pytest.mark.runtime
def test_variants_are_made_and_told(edgeprof, tmp_path, small_model, small_data):
    """With their files; one that cannot be made says why and the others are made."""
    told = edgeprof(
        "variants",
        small_model,
        "--data",
        small_data,
        "--variants",
        "fp32,prune-magnitude{sparsity=0.5}",
        "--out",
        tmp_path,
        "--json",
    )
    content = json.loads(told.out)

    assert told.code == 0, told.err
    assert [row["variant"] for row in content["artifacts"]] == ["fp32", "prune-magnitude{sparsity=0.5}"]
    assert all(Path(row["path"]).is_file() for row in content["artifacts"])
    assert edgeprof("variants", small_model, "--variants", "fp32", "--out", tmp_path).code == 0


@pytest.mark.runtime
def test_variants_of_a_model_with_a_fixed_batch_are_made_without_a_word_about_batches(
    edgeprof, tmp_path, small_model, small_data
):
    """Nothing is run at a batch that could be asked for; calibration takes the model's own."""
    model = onnx.load(small_model)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(model, tmp_path / "four.onnx")
    told = edgeprof(
        "variants", tmp_path / "four.onnx", "--data", small_data, "--variants", "int8-static", "--out", tmp_path, "--json"
    )  # fmt: skip

    assert told.code == 0, told.err
    made = {row["variant"]: row for row in json.loads(told.out)["artifacts"]}
    assert made["int8-static"]["facts"]["ops_quantized"] == 2
    assert made["int8-static"]["facts"]["calibration_rows"] % 4 == 0


def test_an_onnx_model_is_exported_to_itself(edgeprof, tmp_path, small_model, small_data):
    """With its opset, as text and JSON."""
    told = edgeprof("export", small_model, "-o", tmp_path / "a.onnx", "--data", small_data)
    data = edgeprof("export", small_model, "-o", tmp_path / "b.onnx", "--json")

    assert (told.code, data.code) == (0, 0), told.err + data.err
    assert "opset" in told.out
    assert str(tmp_path / "b.onnx") == json.loads(data.out)["path"]
    assert (tmp_path / "a.onnx").is_file()


def test_a_study_file_is_written_that_can_be_done(edgeprof, tmp_path, small_model, small_data):
    """It parses, it names the model, and it is not written over by accident."""
    from profiler.study import read_study

    first = edgeprof("init", small_model, "--data", small_data, "-o", tmp_path / "s.toml")
    again = edgeprof("init", small_model, "-o", tmp_path / "s.toml")

    assert first.code == 0, first.err
    assert (str(small_model), str(small_data)) == (
        read_study(tmp_path / "s.toml").model,
        read_study(tmp_path / "s.toml").data,
    )
    assert again.code == 2
    assert "exists" in again.err


def test_a_study_file_holds_any_name(edgeprof, tmp_path, build_model):
    """Quotes, spaces and signs beyond the basic plane in a path."""
    from profiler.study import read_study

    model = build_model(tmp_path / 'a "b" c\\d µ 😀' / "m.onnx")
    told = edgeprof("init", model, "-o", tmp_path / "s.toml")

    assert told.code == 0, told.err
    assert str(model) == read_study(tmp_path / "s.toml").model


@pytest.mark.runtime
def test_real_runtimes_from_model_to_report(edgeprof, tmp_path, small_model, small_data, quick):
    """onnxruntime and OpenVINO on the small model."""
    told = edgeprof(
        "profile", small_model, "--data", small_data, "--variants", "fp32", "--quick", "--out", tmp_path, "--json"
    )
    content = told.out

    assert told.code in (0, 1), told.err
    assert "CPUExecutionProvider" in content
    assert '"ov"' in content
    assert list(tmp_path.glob("*/report.html"))


def test_a_reader_that_leaves_is_no_error(finished):
    """`edgeprof show | head -0`."""
    command = f"{sys.executable} -m profiler show --json --out {finished} | head -c 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)

    assert "Traceback" not in done.stderr
    assert done.returncode == 0


def test_a_runtime_that_is_broken_hides_no_other(edgeprof, monkeypatch):
    """Installed, but its library is missing: its line says so, the table is there."""
    from backends.base import BackendUnavailable
    from backends.ov import OvBackend

    def broken(*_):
        raise BackendUnavailable("openvino cannot be imported: libtbb.so.12 is not there")

    monkeypatch.setattr(OvBackend, "availability", broken)
    result = edgeprof("backends")

    assert result.code == 0
    assert "libtbb.so.12" in result.out
    assert "ort" in result.out
