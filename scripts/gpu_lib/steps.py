"""The steps of a check on a GPU, the most valuable first. Pure: what is asked, not how it is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

BATCHES = (1, 8, 64)
BUILDS = 10


@dataclass(frozen=True)
class Step:
    """One thing to find out, in a process of its own."""

    name: str
    kind: str
    """A function of `scripts.gpu_lib.child`."""
    fields: dict[str, Any] = field(default_factory=dict)
    limit_s: float = 60.0
    """Longest that it may take; the rest of the steps goes on without it."""

    def as_json(self) -> dict[str, Any]:
        """For the process that does it."""
        return asdict(self)


def plan(models: Sequence[str]) -> list[Step]:
    """All steps, in order, for the models that are there (the first is the smallest)."""
    small, *larger = models
    steps = [
        Step("machine", "machine", limit_s=30),
        Step("asked for CUDA, never the CPU", "provider", {"model": small}, 60),
        Step(f"answers of {small} on ort:cuda", "answers", {"model": small, "backends": ["ort:cuda"]}, 90),
        Step(f"latency of {small}", "latency", {"model": small, "batches": list(BATCHES)}, 90),
        Step(f"energy of {small}", "energy", {"model": small, "batch": 64}, 45),
        Step(f"copies of {small}", "copies", {"model": small, "batches": list(BATCHES)}, 45),
        Step("TensorRT: what is there", "tensorrt", {"model": small}, 45),
        Step(f"answers of {small} on trt", "answers", {"model": small, "backends": ["trt"]}, 90),
        Step(f"CUDA graphs of {small}", "options", {"model": small, "backend": "trt", "options": [{}, {"graph": "true"}]}, 60),
        Step(
            f"sparse kernels of {small}", "options", {"model": small, "backend": "trt", "options": [{}, {"sparse": "true"}]}, 60
        ),
        Step(
            f"ten builds of {small}", "options",
            {"model": small, "backend": "trt", "options": [{"build": str(number)} for number in range(1, BUILDS + 1)]}, 90,
        ),
    ]  # fmt: skip
    for name in larger:
        steps += [
            Step(f"answers of {name} on ort:cuda", "answers", {"model": name, "backends": ["ort:cuda"]}, 90),
            Step(f"latency of {name}", "latency", {"model": name, "batches": list(BATCHES)}, 150),
            Step(f"energy of {name}", "energy", {"model": name, "batch": 64}, 45),
            Step(f"copies of {name}", "copies", {"model": name, "batches": list(BATCHES)}, 45),
        ]
    return steps
