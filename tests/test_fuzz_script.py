"""scripts/fuzz_models in small: mutants are the same each time, endings are told apart, and a few of them end no controller."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.fuzz_lib.__main__ import table
from scripts.fuzz_lib.attempts import Ending, ending
from scripts.fuzz_lib.bases import Base, convolutions, loop, mlp
from scripts.fuzz_lib.mutants import make
from scripts.fuzz_lib.mutations import BYTES, STRUCTURAL

ROOT = Path(__file__).parents[1]
BASES = [Base("mlp", mlp()), Base("convolutions", convolutions()), Base("loop", loop())]


def test_a_seed_and_a_number_make_the_same_mutant(tmp_path):
    kinds = set()
    for number in range(60):
        files = []
        for run in ("one", "two"):
            folder = tmp_path / f"{run}-{number}"
            folder.mkdir()
            mutant = make(number, 7, BASES, folder)
            files.append((mutant, (folder / "model.onnx").read_bytes()))
        assert files[0] == files[1]
        kinds |= {*mutant.damage.split("+")}
        assert (folder / "data.npz").is_file()
    assert len(kinds & {one.__name__ for one in (*STRUCTURAL, *BYTES)}) > 8
    assert "external" in kinds
    other = tmp_path / "other"
    other.mkdir()
    assert make(3, 8, BASES, other).base == "mlp"


@pytest.mark.parametrize(
    ("code", "text", "hung", "expected"),
    [
        (0, "done", False, Ending.DONE),
        (2, "edgeprof: model 'm' is not valid ONNX", False, Ending.REFUSED),
        (2, "unexpected KeyError: 'x'. This is a bug in edgeprof; please", False, Ending.BUG),
        (1, "Traceback (most recent call last)", False, Ending.BUG),
        (-11, "", False, Ending.CRASH),
        (139, "", False, Ending.CRASH),
        (130, "interrupted", False, Ending.REFUSED),
        (-9, "", True, Ending.HANG),
    ],
)
def test_endings_are_told_apart(code, text, hung, expected):
    assert ending(code, text, hung=hung) is expected


def test_the_table_counts_and_names_the_bad_ones():
    row = {
        "number": 4,
        "base": "mlp",
        "damage": "cut",
        "step": "variants",
        "exit_code": -11,
        "tail": "words",
        "peak_bytes": 3e8,
    }
    text = table([{**row, "ending": "crash"}, {**row, "ending": "done", "peak_bytes": None}])
    header, counts, bad = text.splitlines()
    assert header.split() == ["command", "crash", "hang", "bug", "refused", "done", "peak", "MB"]
    assert counts.split() == ["variants", "1", "0", "0", "0", "1", "300"]
    assert bad == "crash: mutant 4 (mlp, cut), variants, exit -11: words"


@pytest.mark.process
@pytest.mark.runtime
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_few_mutants_end_no_controller(tmp_path):
    """Exit code 0: nothing died of a signal, hung, or was called a bug; `scripts/fuzz_models` is the long form."""
    command = [
        sys.executable, "-m", "scripts.fuzz_lib", "--count", "8", "--only", "mlp", "quantized", "branches",
        "--steps", "few", "--limit-s", "200", "--out", str(tmp_path),
    ]  # fmt: skip
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=850,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    attempts = json.loads((tmp_path / "fuzz.json").read_text())["attempts"]
    assert len(attempts) == 8
    assert {attempt["ending"] for attempt in attempts} >= {"refused", "done"}
