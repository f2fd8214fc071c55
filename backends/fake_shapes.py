"""Latencies of known course: what a session of the fake backend lasts, inference by inference, as factors of `latency_us`.

The course depends on the shape and the seed alone, so whoever knows these knows the truth that a measurement should find.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator

SHAPES = ("constant", "bimodal", "drift", "ar1", "warmup", "never_steady")

_SLOW_SHARE, _SLOW = 0.4, 1.3
_DRIFT_PER_INFERENCE, _DRIFT_LIMIT = 1e-4, 2.0
_AR1_SD, _AR1_LAG = 0.03, 0.9
_WARMUP_EXCESS, _WARMUP_INFERENCES = 0.5, 80.0
_LEVELS, _LEVEL_INFERENCES = (1.0, 1.2), 150


def factors(shape: str, seed: int) -> Iterator[float]:
    """Endless factors of a shape in `SHAPES`.

    `bimodal`: 1 or, for 40 % at random, 1.3. `drift`: +10 % per 1,000 inferences, up to 2. `ar1`: log-normal, sd 3 %,
    correlation 0.9 with the one before. `warmup`: from 1.5 down to 1, exponential over 80 inferences. `never_steady`: 1 and 1.2
    in turn, 150 inferences each.
    """
    draw = random.Random(f"{shape} {seed}")
    if shape == "bimodal":
        while True:
            yield _SLOW if draw.random() < _SLOW_SHARE else 1.0
    if shape == "ar1":
        state = draw.gauss(0, _AR1_SD)
        while True:
            yield math.exp(state)
            state = _AR1_LAG * state + draw.gauss(0, _AR1_SD * math.sqrt(1 - _AR1_LAG**2))
    for index in itertools.count():
        yield _at(shape, index)


def _at(shape: str, index: int) -> float:
    if shape == "drift":
        return min(_DRIFT_LIMIT, 1 + _DRIFT_PER_INFERENCE * index)
    if shape == "warmup":
        return 1 + _WARMUP_EXCESS * math.exp(-index / _WARMUP_INFERENCES)
    if shape == "never_steady":
        return _LEVELS[index // _LEVEL_INFERENCES % len(_LEVELS)]
    return 1.0
