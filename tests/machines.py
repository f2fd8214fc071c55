"""A run on several machines, made of known truths: what analysis, decision and renderers of fleets are tested with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from profiler.records import Environment
from profiler.store import RunData
from profiler.study import Case
from tests.conftest import MadeRun

ENVELOPE = "local{cpus=1,memory=512MB}"
CLOUD = {"target": "aws:c7i.large", "evidence": "firmware says Amazon EC2 c7i.large"}
PI = Environment(
    "pi.lan",
    "aarch64",
    "Linux 6.6",
    "3.11.2",
    "Cortex-A76",
    ("asimddp",),
    4,
    4,
    8 << 30,
    None,
    (),
    {"onnxruntime": "1.20.0"},
)
HOST = Environment(
    "host", "x86_64", "Linux 6", "3.11.7", "Xeon", ("avx2",), 2, 2, 8 << 30, "KVM", (), {"numpy": "2.0.0"}
)
KNOWN: Mapping[str, Any] = {
    "pi": {"environment": asdict(PI), "emulated": False, "device": "raspberry-pi-5-8gb"},
    "board": {"environment": asdict(replace(PI, hostname="qemu")), "emulated": True, "device": "raspberry-pi-5-8gb"},
}
RIGHT = np.arange(2000) % 10 > 0


def rows(flips: int) -> np.ndarray:
    """90 % right answers, of which `flips` became wrong."""
    found = RIGHT.astype(float)
    found[np.flatnonzero(RIGHT)[:flips]] = 0
    return found


def fleet(
    truth: Mapping[tuple[str, str], tuple[float, int]], *, known: Mapping[str, Any] = KNOWN,
    detected: Mapping[str, str] | None = CLOUD, plan: Mapping[str, Any] | None = None, unanswered: Sequence[str] = (),
    processes: int = 5, **settings: Any,
) -> RunData:  # fmt: skip
    """The run of `{(variant, target): (seconds, answers that turn wrong)}`, all on one backend at batch 1."""
    run = MadeRun(processes=processes)
    for (variant, target), (seconds, flips) in truth.items():
        case = Case(variant, "ort", target, 1, 1)
        run.cases.append(case)
        # A block of another target may have the same place: every target counts from 0 here.
        run.timed(case, seconds)
        if target not in unanswered:
            run.answered(case, rows(flips), agreement=rows(flips) == RIGHT)
    targets = tuple(dict.fromkeys(target for _, target in truth)) or ("local",)
    data = run.data(environment=HOST, targets=targets, **settings)
    more = {"targets": dict(known), **({"detected": dict(detected)} if detected else {}), **(plan or {})}
    return replace(data, plan={**data.plan, **more})


TRUTH = {
    ("fp32", "local"): (1.5e-3, 0), ("int8-static", "local"): (1.0e-3, 2),
    ("fp32", "pi"): (12e-3, 0), ("int8-static", "pi"): (5e-3, 3),
    ("fp32", "board"): (0.2e-3, 0), ("int8-static", "board"): (0.1e-3, 4),
    ("fp32", ENVELOPE): (1.6e-3, 0), ("int8-static", ENVELOPE): (0.9e-3, 2),
}  # fmt: skip
"""A cloud machine, a board, an emulator and an envelope that look faster than both."""
