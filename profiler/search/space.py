"""What a search tries: texts of variants in the order of the compression ladder, cheap rungs first."""

from __future__ import annotations

from collections.abc import Iterable

from profiler.errors import EdgeprofError
from profiler.records import REFERENCE_VARIANT
from profiler.study import make_study
from profiler.variants import registry
from profiler.variants.pipeline import make_pipeline, split_steps

RUNGS: tuple[tuple[str, ...], ...] = (
    # Nothing is computed: the file as it is, its graph tidied up, or a precision that the runtime takes at load.
    (REFERENCE_VARIANT, "graph", "bf16"),
    # From the weights alone.
    ("fp16", "int8-dynamic", "int8-weight", "int4-weight"),
    # With ranges from calibration rows.
    (
        "int8-static{per_channel=true}",
        "int8-static",
        "int8-static{calibration=entropy,per_channel=true}",
        "int8-static{calibration=percentile,per_channel=true}",
        "int8-static{calibration=mse,per_channel=true}",
    ),
    # The same with repairs, each for one way in which quantization fails.
    (
        "int8-static{bias_correction=true,per_channel=true}",
        "int8-static{per_channel=true,smooth=0.5}",
        "int8-static{bias_correction=true,calibration=mse,per_channel=true}",
        "nncf",
    ),
    # Fewer weights, then fewer and shorter ones.
    ("prune-channels{ratio=0.25}", "prune-channels{ratio=0.5}"),
    (
        "prune-channels{ratio=0.25}+int8-static{per_channel=true}",
        "prune-channels{ratio=0.5}+int8-static{per_channel=true}",
    ),
)


def ladder(asked: Iterable[str] = ()) -> tuple[str, ...]:
    """The texts to try, the reference first: those `asked` in the ladder's order, else all that this edgeprof can make.

    Raises StudyError for what is asked and nobody knows. A rung whose recipe this edgeprof lacks is left out.
    """
    given = [make_pipeline(text, registry.make).text for text in asked]
    if given:
        return tuple(dict.fromkeys((REFERENCE_VARIANT, *sorted(given, key=rung))))
    return tuple(dict.fromkeys(text for texts in RUNGS for text in texts if _known(text)))


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
    try:
        make_pipeline(text, registry.make)
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
            found.append(make_pipeline(joined, registry.make).text)
    return tuple(found)


def _with_seed(text: str, seed: int) -> str:
    name, brace, options = text.partition("{")
    if name not in SEEDED or "seed=" in options:
        return text
    return f"{name}{{seed={seed},{options}" if brace else f"{name}{{seed={seed}}}"


SEEDED = frozenset({"int8-static", "nncf"})
"""Recipes whose result depends on which calibration rows were drawn."""
