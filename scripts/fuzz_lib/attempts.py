"""One command on one mutant, in a process group of its own with a time and a memory limit."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from scripts.fuzz_lib.bases import ROOT

COMMANDS: dict[str, tuple[str, ...]] = {
    "variants": (
        "variants", "model.onnx", "--data", "data.npz", "--calibration-samples", "4", "--variants",
        "fp32,graph,fp16,int8-dynamic,int8-static,int4-weight,prune-magnitude{sparsity=0.5}", "--out", "runs",
    ),
    "few": (
        "variants", "model.onnx", "--data", "data.npz", "--calibration-samples", "4", "--variants", "fp32,graph,fp16", "--out",
        "runs",
    ),
    "profile": (
        "profile", "model.onnx", "--data", "data.npz", "--calibration-samples", "4", "--limit", "8", "--variants", "fp32,fp16",
        "--backends", "ort", "--quick", "--time-budget", "12s", "--time-limit", "10s", "--out", "runs-profile",
    ),
}  # fmt: skip
READ_EVERY_S = 0.1
GRACE_S = 10.0
SHOWN = 400


class Ending(Enum):
    """How a command ended, worst first."""

    CRASH = "crash"
    """The controller died of a signal."""
    HANG = "hang"
    """It was still there at the limit."""
    BUG = "bug"
    """It said that this is a bug in edgeprof, or showed a traceback."""
    REFUSED = "refused"
    """A message, and an exit code that says so."""
    DONE = "done"


@dataclass(frozen=True)
class Attempt:
    """What came of it."""

    step: str
    ending: Ending
    exit_code: int
    """Negative: the signal."""
    seconds: float
    peak_bytes: int | None
    """The controller's own largest resident size, None where the system does not tell."""
    tail: str
    """The last words, on standard error and output together."""


def attempt(step: str, folder: Path, limit_s: float, memory_bytes: int) -> Attempt:
    """Run `COMMANDS[step]` in `folder`."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NO_COLOR": "1", "COLUMNS": "120", "HOME": str(folder)}
    start, peak, hung = time.monotonic(), None, False
    with (folder / f"{step}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "profiler", *COMMANDS[step]],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        _limit(process.pid, memory_bytes)
        while process.poll() is None:
            peak = _high_water(process.pid) or peak
            if time.monotonic() - start > limit_s:
                hung = True
                break
            time.sleep(READ_EVERY_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(GRACE_S)
    seconds = time.monotonic() - start
    text = (folder / f"{step}.log").read_text(errors="replace")
    tail = " ".join(text.split())[-SHOWN:]
    return Attempt(step, ending(process.returncode, text, hung=hung), process.returncode, seconds, peak, tail)


def ending(code: int, text: str, *, hung: bool) -> Ending:
    """What an exit code and the words before it mean."""
    if hung:
        return Ending.HANG
    if code < 0 or (code >= 128 and code != 130):
        return Ending.CRASH
    if "bug in edgeprof" in text or "Traceback (most recent call last)" in text:
        return Ending.BUG
    return Ending.DONE if code == 0 else Ending.REFUSED


def _limit(pid: int, memory_bytes: int) -> None:
    """Set at once after the start, before anything large is imported; only Linux can."""
    if hasattr(resource, "prlimit"):
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_AS, (memory_bytes, memory_bytes))
            resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))


def _high_water(pid: int) -> int | None:
    """VmHWM grows only, so the last look before the end tells nearly all."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)
