"""Mutant number n of a seed is the same every time."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import ModelProto

from scripts.fuzz_lib.bases import Base
from scripts.fuzz_lib.mutations import BYTES, STRUCTURAL, external


@dataclass(frozen=True)
class Mutant:
    """A damaged model in a folder, with data for the sound one."""

    number: int
    base: str
    damage: str
    """The mutations' names, in order."""


def make(number: int, seed: int, bases: Sequence[Base], folder: Path) -> Mutant:
    """Write `model.onnx` and `data.npz` (and perhaps `weights.bin`) into `folder`."""
    rng = random.Random(f"{seed}:{number}")
    # In turn, so that a short run meets every base.
    base = bases[number % len(bases)]
    model = ModelProto()
    model.CopyFrom(base.model)
    applied: list[str] = []
    kind = rng.randrange(8)
    content: bytes | None = None
    for _ in range(1 if rng.random() < 0.7 else 2):
        if kind < 6:
            mutation = rng.choice(STRUCTURAL)
            # What does not fit this model leaves it as it is.
            with contextlib.suppress(IndexError, ValueError, TypeError):
                mutation(rng, model)
            applied.append(mutation.__name__)
    if kind == 6:
        damage = rng.choice(BYTES)
        content = damage(rng, model.SerializeToString(deterministic=True))
        applied.append(damage.__name__)
    elif kind == 7:
        content = external(rng, model, folder)
        applied.append(external.__name__)
    (folder / "model.onnx").write_bytes(content if content is not None else model.SerializeToString(deterministic=True))
    np.savez(folder / "data.npz", **base.rows())  # type: ignore[arg-type]
    return Mutant(number, base.name, "+".join(applied))
