"""An arm64 board from `target add` to `target remove`: emulated, so it is about functions and arithmetic, never about time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from profiler import api
from scripts.targets_lib import compare
from scripts.targets_lib.board import MODEL, Board
from scripts.targets_lib.outputs import outputs
from scripts.targets_lib.product import Checks, Edgeprof, write_data, write_study

NAME, OTHER = "rpi", "newest"
CPUS = {NAME: "cortex-a72", OTHER: "max,sve=off"}
"""What qemu calls a Raspberry Pi 4's cores, and all that it can emulate up to Armv8.2, half-precision arithmetic among it."""
VECTORS = "max"
"""The same with SVE. OpenVINO's f32 answers are wrong there, with this emulator: whose fault that is is not known, so it is
told and not judged."""
_CLOSE = 1e-4
"""Largest difference of fp32 logits, relative to the largest logit, that other orders of summation explain."""
_HALF = 0.05
"""No half-precision arithmetic of a small network loses more."""
OWN = "ov{precision=runtime}"
_EFFORT = {"processes": 2, "rounds": 2, "block_s": 0.02, "block_samples": 5, "warmup_s": 0.05, "warmup_max_s": 0.2,
           "requeue_share": 0.0}  # fmt: skip


@dataclass(frozen=True)
class Size:
    """How much of it."""

    rows: int
    """Labelled rows of the runs."""
    compared: int
    """Rows whose logits are compared."""


QUICK, FULL = Size(rows=40, compared=10), Size(rows=200, compared=40)


def run(folder: Path, size: Size, checks: Checks) -> dict[str, Any]:
    """Everything; what was found for the page. Raises Failed or Missing when it cannot go on."""
    edgeprof, board = Edgeprof(folder), Board(folder / "board")
    before = board.listing()
    checks.fact(f"board: {MODEL}, {', '.join(f'{name} is {cpu}' for name, cpu in CPUS.items())}")
    for name, cpu in CPUS.items():
        edgeprof.must("target", "add", name, "--command", board.prefix(cpu), "--emulated")
    runtimes = _set_up(edgeprof, checks)
    inputs = write_data(folder, size.rows)
    tables = [_profiled(edgeprof, inputs, folder, checks)]
    tables.append(_arithmetic(edgeprof, board, inputs, runtimes, size, checks))
    edgeprof.must("target", "remove", NAME)
    after = board.listing()
    checks.expect(after == before, "remove leaves the home as it was", f"{after[:6]} are there")
    return {"tables": tables}


def _set_up(edgeprof: Edgeprof, checks: Checks) -> list[str]:
    """Both processors are one board with one folder; the second setup finds everything there."""
    said = edgeprof.must("target", "setup", NAME)
    for line in said.strip().splitlines():
        checks.fact(line.strip())
    runtimes = [name for name in ("ort", "ov") if f"{name:<4} runs" in said]
    checks.expect("ort" in runtimes, "setup brings aarch64 wheels, and ONNX Runtime runs on the board", said)
    checks.expect("ov" in runtimes, "OpenVINO runs on the board", said)
    again = edgeprof.must("target", "setup", OTHER)
    checks.expect("there already" in again, "what is there is not sent again", again)
    if edgeprof.has("target", "probe"):
        probed = edgeprof.must("target", "probe", NAME)
        checks.expect("Raspberry Pi 4" in probed, "probe recognises the board", probed[:300])
        for line in probed.strip().splitlines()[:12]:
            checks.fact(line.strip())
    return runtimes


def _profiled(
    edgeprof: Edgeprof, inputs: tuple[Path, Path, Path], folder: Path, checks: Checks
) -> tuple[str, list[str], list[list[str]]]:
    """A run here and one on the board: the same cases, accuracies that fit, times that decide nothing."""
    model, data, calibration = inputs
    # OpenVINO is left to the comparison of answers: a process of it takes half a minute to begin under the emulator.
    fields = {
        "model": str(model), "data": str(data), "calibration": str(calibration), "backends": ("ort",),
        "variants": ("fp32", "int8-static"),
    }  # fmt: skip
    runs = {}
    for side, targets in (("here", ("local",)), ("there", (NAME,))):
        study = write_study(folder / f"{side}.toml", _EFFORT, **fields, targets=targets)
        edgeprof.must("run", str(study), "--out", str(folder / side), timeout_s=900)
        runs[side] = api.open_run(out=folder / side)
    there, here = runs["there"].run, runs["here"].run
    different = compare.differences(there, here, NAME, same_arithmetic=False)
    checks.expect(not different, "the run on the board has the local run's cases and records", "; ".join(different))
    place = there.plan["targets"][NAME]
    checks.expect(place["emulated"] is True, "the run says that the target is emulated", str(place)[:200])
    view = runs["there"].frontier()
    placed = [item.case.key for item in (*view.members, *view.tied, *(item for item, _ in view.dominated))]
    checks.expect(
        not placed and len(view.unplaced) == len(there.plan["cases"]),
        "emulated timings are on no frontier",
        str(placed),
    )
    shown = edgeprof.must("show", "--out", str(folder / "there"), "latest", f"fp32@ort/b1/t1@{NAME}")
    checks.expect("emulated" in shown, "show labels the timings as emulated", shown[:400])
    rows = []
    mine = {compare.local_key(q.case, NAME): q for q in here.qualities}
    for record in there.qualities:
        key = compare.local_key(record.case, NAME)
        other = mine[key]
        assert record.predictions is not None
        assert other.predictions is not None
        changed = int((record.predictions != other.predictions).sum())
        rows.append(
            [f"`{key}`", f"{other.per_sample.mean():.4f}", f"{record.per_sample.mean():.4f}",
             f"{changed} of {len(record.predictions)}"]
        )  # fmt: skip
        if key.startswith("fp32"):
            checks.expect(not changed, f"{key}: every answer on arm64 is that of x86", f"{changed} differ")
        else:
            # int8 kernels of the two processors may round and saturate in other places: a few rows near a boundary may change.
            checks.expect(
                changed <= 0.05 * len(record.predictions), f"{key}: {changed} answers changed, at most 5 % may"
            )
    return "Accuracy on the board and here", ["case", "x86", "arm64", "answers changed"], rows


def _arithmetic(
    edgeprof: Edgeprof, board: Board, inputs: tuple[Path, Path, Path], runtimes: list[str], size: Size, checks: Checks
) -> tuple[str, list[str], list[list[str]]]:
    """fp32 logits of the board beside those of this machine, and what a processor with half precision makes of them."""
    model, data, _ = inputs
    with np.load(data) as archive:
        rows = archive["image"][: size.compared]
    # Left alone, OpenVINO takes the precision that it holds best on a processor; otherwise this product asks for f32.
    backends = [*runtimes, *([OWN] if "ov" in runtimes else [])]
    found: dict[tuple[str, str], np.ndarray] = {}
    lines = []
    for backend in backends:
        found["local", backend], _ = outputs(edgeprof, "local", "ov" if backend == OWN else backend, model, rows)
        largest = float(np.abs(found["local", backend]).max())
        for name, cpu in CPUS.items():
            found[name, backend], facts = outputs(edgeprof, name, backend, model, rows)
            error = float(np.abs(found[name, backend] - found["local", backend]).max()) / largest
            precision = facts.get("precision") or {}
            lines.append(
                [
                    f"`{backend}`",
                    cpu,
                    f"{error:.1e}",
                    ", ".join(f"{n} × {kind}" for kind, n in precision.items()) or "not told",
                ]
            )
            if backend != OWN:
                text = f"{backend} on {cpu}: fp32 logits are x86's to {error:.1e} of the largest, at most {_CLOSE:g}"
                checks.expect(error <= _CLOSE, text)
    if OWN in backends:
        edgeprof.must("target", "add", "vectors", "--command", board.prefix(VECTORS), "--emulated")
        edgeprof.must("target", "setup", "vectors")
        wrong, _ = outputs(edgeprof, "vectors", "ov", model, rows)
        error = float(np.abs(wrong - found["local", "ov"]).max() / np.abs(found["local", "ov"]).max())
        checks.fact(
            f"ov on {VECTORS} (with SVE, not judged): fp32 logits differ from x86's by {error:.1e} of the largest"
        )
        # OpenVINO keeps what it compiled under a key that holds no precision: asked for float32 after half, it gave half.
        again, _ = outputs(edgeprof, OTHER, "ov", model, rows)
        error = float(np.abs(again - found["local", "ov"]).max() / np.abs(found["local", "ov"]).max())
        checks.expect(error <= _CLOSE, f"what was compiled in half precision is not taken for float32: {error:.1e}")
        largest = float(np.abs(found[NAME, OWN]).max())
        shift = float(np.abs(found[OTHER, OWN] - found[NAME, OWN]).max()) / largest
        checks.expect(
            _CLOSE < shift < _HALF,
            f"OpenVINO left alone computes in half precision on {CPUS[OTHER]} and not on {CPUS[NAME]}: the same model, the same "
            f"wheel, logits that differ by {shift:.1e} of the largest",
        )
    return (
        "fp32 logits beside this machine's",
        ["backend", "processor", "largest difference / largest logit", "ops by precision"],
        lines,
    )
