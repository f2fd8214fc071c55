"""Other people's stopwatches on the same model: OpenVINO's benchmark_app, and bare loops around both runtimes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

_UNITS = {"ms": 1e-3, "us": 1e-6, "ns": 1e-9, "s": 1.0}
_MEDIAN = re.compile(r"Median:\s+([0-9.]+)\s+(ms|us|ns|s)\b")
_TIMEOUT_S = 300

_BARE = """
import json, sys, time
import numpy as np
path, seconds, shapes = sys.argv[1], float(sys.argv[2]), json.loads(sys.argv[3])
random = np.random.default_rng(0)
feeds = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
"""
_LOOP = """
for limit in (0.3, seconds):
    end = time.perf_counter() + limit
    times = []
    while time.perf_counter() < end:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
print(float(np.median(times)))
"""
"""Nothing but a clock around one call; a third of a second of warm-up."""

_RUNTIMES = {
    "ort": """
import onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
run = lambda: session.run(None, feeds)
""",
    "ov": """
import openvino
core = openvino.Core()
model = core.read_model(path)
model.reshape(shapes)
settings = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
request = core.compile_model(model, "CPU", settings).create_infer_request()
run = lambda: request.infer(feeds, share_inputs=True, share_outputs=True)
""",
}


class Missing(Exception):  # noqa: N818
    """This stopwatch is not on this machine."""


def benchmark_app(model: Path, shapes: dict[str, list[int]], seconds: float) -> float:
    """Median latency in seconds of one stream with one thread, synchronous, in float32 as our adapter runs it.

    `-hint none` is its condition for streams and threads by number; OpenVINO then takes its latency hint, as our adapter does.
    """
    command = shutil.which("benchmark_app", path=f"{Path(sys.executable).parent}") or shutil.which("benchmark_app")
    if command is None:
        raise Missing("benchmark_app is not installed; it comes with: pip install openvino")
    shape = ",".join(f"{name}[{','.join(map(str, sizes))}]" for name, sizes in shapes.items())
    done = subprocess.run(
        [
            command, "-m", str(model), "-d", "CPU", "-api", "sync", "-hint", "none", "-nstreams", "1", "-nthreads", "1",
            "-t", str(max(1, round(seconds))), "-infer_precision", "f32", "-shape", shape,
        ],
        check=False, capture_output=True, text=True, timeout=_TIMEOUT_S,
    )  # fmt: skip
    return read_median(done.stdout, done.stderr)


def read_median(out: str, err: str = "") -> float:
    """The median latency in what benchmark_app prints, seconds. Raises ValueError with its last words when there is none."""
    match = _MEDIAN.search(out)
    if match is None:
        raise ValueError(f"benchmark_app printed no median: {(err or out).strip()[-300:]}")
    return float(match[1]) * _UNITS[match[2]]


def bare_loop(runtime: str, model: Path, shapes: dict[str, list[int]], seconds: float) -> float:
    """Median latency in seconds of a bare loop around `ort` or `ov` from Python, one thread, in a fresh process."""
    code = _BARE + _RUNTIMES[runtime] + _LOOP
    command = [sys.executable, "-c", code, str(model), str(seconds), json.dumps(shapes)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=_TIMEOUT_S)
    if done.returncode:
        raise Missing(f"the bare loop did not run: {(done.stderr.strip().splitlines() or ['no word'])[-1]}")
    return float(done.stdout)
