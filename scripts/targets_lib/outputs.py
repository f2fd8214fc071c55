"""What a model answers on a target, as the product's own workers tell it: one machine's arithmetic beside another's."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from backends import spec
from profiler.artifacts import MODEL_NAME
from profiler.targets.base import get
from profiler.targets.process import WorkerProcess
from scripts.targets_lib.product import Edgeprof

_STEP_S = 300.0


def outputs(
    edgeprof: Edgeprof, target: str, backend: str, model: Path, rows: np.ndarray
) -> tuple[np.ndarray, dict[str, Any]]:
    """The model's first output for `rows` [n, …], one row at a time, and what the session says of itself.

    `backend` as on the command line. The model travels to the target as any artifact does.
    """
    asked, digest = spec.parse(backend), hashlib.sha256(model.read_bytes()).hexdigest()
    with edgeprof.configured(), WorkerProcess(get(target)) as worker:
        if target != "local":
            worker.greet()
            worker.send_artifact(digest, {MODEL_NAME: model}, {MODEL_NAME: digest}, timeout_s=_STEP_S)
        loaded, _ = worker.request(
            "load", timeout_s=_STEP_S, backend=asked.name, device=asked.device, options=dict(asked.options), threads=1, batch=1,
            streams=1, varying_batch=False, sample_shapes={"image": [1, *rows.shape[1:]]},
            path=str(model) if target == "local" else None, sha256=digest, name=MODEL_NAME, cache_dir=None,
        )  # fmt: skip
        facts, _ = worker.request("facts", timeout_s=_STEP_S)
        answers = []
        for row in rows:
            _, arrays = worker.request("infer", {"image": np.ascontiguousarray(row[None])}, timeout_s=_STEP_S)
            answers.append(next(iter(arrays.values())))
    return np.concatenate(answers), {**facts.get("facts", {}), "load_s": loaded.get("load_s")}
