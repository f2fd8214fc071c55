"""What a search tries: texts of variants in the order of the compression ladder, cheap rungs first."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Iterable

from onnx import ModelProto

from backends.spec import split_steps
from profiler.errors import EdgeprofError
from profiler.records import REFERENCE_VARIANT
from profiler.study import make_study
from profiler.variants import registry
from profiler.variants.recipes import recipes

RUNGS: tuple[tuple[str, ...], ...] = (
    # Nothing is computed: the file as it is, its graph tidied up, or a precision that the runtime takes at load.
    (REFERENCE_VARIANT, "graph", "bf16"),
    # From the weights alone.
    ("fp16", "int8-dynamic", "int8-weight", "int4-weight"),
    # With ranges from calibration rows.
    (
        "int8-static{per_channel=true}",
        "int8-static",
        "int8-static{calibration=mse,per_channel=true}",
        "int8-static{calibration=percentile,per_channel=true}",
    ),
    # The same with repairs, each for one way in which quantization fails.
    (
        "int8-static{bias_correction=true,per_channel=true}",
        "int8-static{per_channel=true,smooth=0.5}",
        "nncf",
    ),
    # Fewer weights, then fewer and shorter ones.
    (
        "prune-channels{allocation=cost,ratio=0.3,round_to=16}",
        "prune-channels{scope=inner}",
        "prune-channels{allocation=sensitivity,ratio=0.1}",
    ),
    (
        "prune-channels{allocation=cost,ratio=0.3,round_to=16}+int8-static{bias_correction=true,per_channel=true}",
        "prune-channels{scope=inner}+int8-static{bias_correction=true,per_channel=true}",
    ),
)
_SUGGESTED_RUNG = 2
_EXTRAS = {"nncf": "nncf"}
"""Recipes of optional packages; where one is missing it is not tried unasked."""


def ladder(asked: Iterable[str] = (), suggested: Iterable[str] = ()) -> tuple[str, ...]:
    """The texts to try, the reference first: those `asked`, else all that this edgeprof can make.

    Each family of recipes is seen once before one is refined, so that a short budget has met them all: first the likeliest of
    what was `suggested` for the model and the machine, then the first of each family, then the rest, in the ladder's order.
    Raises StudyError for what is asked and nobody knows. A rung whose recipe this edgeprof lacks is left out.
    """
    given = [registry.make(text).text for text in asked]
    if given:
        return _families_first((REFERENCE_VARIANT, *sorted(given, key=rung)))
    rungs = [list(texts) for texts in RUNGS]
    for text in reversed(tuple(suggested)):
        rungs[rung(text) if len(split_steps(text)) > 1 else _SUGGESTED_RUNG].insert(0, text)
    known = [text for texts in rungs for text in texts if _known(text)]
    return _families_first((REFERENCE_VARIANT, *[text for text in suggested if text in known][:1], *known))


def _families_first(texts: Iterable[str]) -> tuple[str, ...]:
    """The same texts, once each: the first of every family before the second of any."""
    ordered = list(dict.fromkeys(texts))
    firsts: dict[str, str] = {}
    for text in ordered:
        # Of files that come out equal the first one stands for all: joined recipes come when their parts were seen.
        if len(split_steps(text)) == 1:
            firsts.setdefault(family(text), text)
    return tuple(dict.fromkeys((*firsts.values(), *ordered)))


def family(text: str) -> str:
    """The recipes of a variant without their options: `prune-channels+int8-static`."""
    return "+".join(part.partition("{")[0] for part in split_steps(text))


def suggestions(model: ModelProto, backends: Iterable[str], isa: Collection[str], machine: str) -> tuple[str, ...]:
    """Eight-bit recipes that suit the model, the backends and the processor; the likeliest of each backend first.

    `machine` is what `platform.machine()` says where it will run.
    """
    by_backend = [[one.text for one in recipes(model, backend, isa, machine)] for backend in backends]
    longest = max(map(len, by_backend), default=0)
    return tuple(dict.fromkeys(texts[place] for place in range(longest) for texts in by_backend if place < len(texts)))


def rung(text: str) -> int:
    """How far down the ladder a variant stands: 0 is free. Unknown names stand with those that need calibration."""
    parts = split_steps(text)
    if len(parts) > 1:
        return len(RUNGS) - 1
    exact = [number for number, texts in enumerate(RUNGS) if text in texts]
    name = text.partition("{")[0]
    alike = [number for number, texts in enumerate(RUNGS) if any(name == other.partition("{")[0] for other in texts)]
    return (exact or alike or [2])[0]


def _known(text: str) -> bool:
    if any(name in text and importlib.util.find_spec(module) is None for name, module in _EXTRAS.items()):
        return False
    try:
        registry.make(text)
        # A study must be able to name it too: a run that cannot be read back would be lost.
        make_study(model="-", variants=(text,))
    except EdgeprofError:
        return False
    return True


def seeds_of(text: str) -> tuple[str, ...]:
    """The same recipe with two more calibration seeds; empty where it takes no calibration seed or has one."""
    parts = split_steps(text)
    found = []
    for seed in (1, 2):
        varied = [_with_seed(part, seed) for part in parts]
        joined = "+".join(varied)
        if joined != text and _known(joined):
            found.append(registry.make(joined).text)
    return tuple(found)


def _with_seed(text: str, seed: int) -> str:
    name, brace, options = text.partition("{")
    if name not in SEEDED or "seed=" in options:
        return text
    return f"{name}{{seed={seed},{options}" if brace else f"{name}{{seed={seed}}}"


SEEDED = frozenset({"fp8", "int8-static"})
"""Recipes whose result depends on which calibration rows were drawn."""
