"""Why a variant is not faster, ranked: a pure function of what was recorded. Nothing is measured or loaded here.

A cause holds by counts (which ops ran, in which precision, with which kernels, what the file and the environment say), and is
ranked by the time it explains: seconds of an inference that the variant loses against what it would take without the cause. How
that is estimated stands beside the number. Timing noise can move a cause up or down, but not make one, nor hide one that
was looked for by measuring again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import median

from profiler import advice
from profiler.explain.cause import (
    WEIGHTED,
    Cause,
    is_int8,
    kinds_of,
    ops_of,
    reference_seconds,
    seconds_of,
    shown,
    wall_of,
)
from profiler.explain.evidence import Evidence, Side
from profiler.explain.machine_causes import (
    badly_filled,
    isa_limited,
    memory_bound,
    provider_fallback,
    reference_kernels,
    small_shapes,
    thread_contention,
    tiny_model,
    weight_only,
)
from profiler.explain.model_causes import (
    QUANTIZERS,
    dynamic_conv,
    left_float,
    never_ran,
    nothing_quantized,
    per_tensor,
    precision_not_realised,
    unfused_qdq,
)

__all__ = ["Cause", "causes", "ratio"]

NOTABLE_SHARE = 0.05
"""Of the variant's time: what explains less comes last, however certain it is."""
NEGLIGIBLE_SHARE = 0.005
"""What explains less than this is not told."""


def causes(evidence: Evidence) -> tuple[Cause, ...]:
    """Every cause that the evidence supports, the one to look at first in front. Empty when none of the known ones holds."""
    if evidence.failure is not None:
        return (never_ran(evidence),)
    wall = wall_of(evidence.variant)
    found = [cause for rule in _RULES for cause in rule(evidence) if _matters(cause, wall)]

    def rank(cause: Cause) -> tuple[int, float]:
        lost = cause.lost_s if cause.lost_s is not None else 0.0
        small = cause.lost_s is not None and wall is not None and lost < NOTABLE_SHARE * wall
        tier = 0 if cause.decisive else 3 if small else 1 if cause.certainty == "fact" else 2
        return tier, -lost

    return tuple(sorted(found, key=rank))


def _matters(cause: Cause, wall_s: float | None) -> bool:
    """Whether it explains more than clocks and profilers get wrong, or was measured to explain nothing."""
    if cause.decisive or cause.measured or cause.lost_s is None or wall_s is None:
        return True
    return cause.lost_s >= NEGLIGIBLE_SHARE * wall_s


def ratio(evidence: Evidence) -> float | None:
    """Time of the variant / of the reference: the median over goes of the ratio within one go; None unless both ran."""
    pairs = list(zip(evidence.variant.wall_s, evidence.reference.wall_s, strict=False))
    return median(mine / other for mine, other in pairs) if pairs else None


def _conversions(evidence: Evidence) -> Iterator[Cause]:
    """Casts, reorders and transposes that none of the causes above claims."""
    if (
        next(unfused_qdq(evidence), None)
        or next(dynamic_conv(evidence), None)
        or next(precision_not_realised(evidence), None)
    ):
        return
    mine = [
        op for op in ops_of(evidence.variant) if op.time.precision == "conversion" or op.time.op_type == "Transpose"
    ]
    before = seconds_of(
        op for op in ops_of(evidence.reference) if op.time.precision == "conversion" or op.time.op_type == "Transpose"
    )
    lost = seconds_of(mine) - before
    if not mine or lost <= 0:
        return
    yield Cause(
        "conversions", "changing the representation between ops takes time that the reference does not need", "speed", "estimate",
        lost, "time in casts, Q/DQ, reorders and transposes beyond the reference's",
        (f"{kinds_of(mine)}: {shown(seconds_of(mine))}, in the reference {shown(before)}",),
        (f"{advice.of_run('explain', evidence.run, evidence.variant.case, '--show-ops')}    (which ops they stand between)",),
    )  # fmt: skip


def _slower_kernels(evidence: Evidence) -> Iterator[Cause]:
    """int8 layers that take longer than the same layers of the reference, though their channels fill the lanes."""
    slower: list[tuple[str, float]] = []
    narrow = badly_filled(evidence)
    for layer in evidence.reference.file.layers:
        mine = seconds_of(op for op in ops_of(evidence.variant) if op.layer == layer.name and is_int8(op))
        before = reference_seconds(evidence, {layer.name})
        if layer.name not in narrow and mine and before and mine > before:
            slower.append((layer.name, mine - before))
    if not slower or next(dynamic_conv(evidence), None):
        return
    slower.sort(key=lambda item: -item[1])
    yield Cause(
        "slower-kernels", f"layers that are slower in int8 than in the reference: {len(slower)}", "speed", "estimate",
        sum(lost for _, lost in slower), "their time less the reference's",
        tuple(f"{name}: {shown(lost)} more" for name, lost in slower[:4]),
        (
            "keep these layers in float: the option skip=NAME|NAME of int8-static (Conv:0 is the first convolution)",
            "try the other backend: --backends ort,ov",
        ),
    )  # fmt: skip


def _slower_others(evidence: Evidence) -> Iterator[Cause]:
    """Ops without weights that take longer than those of the same type in the reference: pooling that has no fast int8 kernel."""

    def seconds(side: Side) -> dict[str, float]:
        found: dict[str, float] = {}
        for op in ops_of(side):
            kind = op.time.op_type
            if (
                not WEIGHTED.search(kind)
                and op.time.precision != "conversion"
                and kind not in QUANTIZERS | {"Transpose"}
            ):
                found[kind] = found.get(kind, 0.0) + op.duration_s
        return found

    mine, before = seconds(evidence.variant), seconds(evidence.reference)
    # What the reference has none of was added, or split from something fused, which other rules tell.
    slower = {
        kind: mine[kind] - before[kind] for kind in mine if before.get(kind, 0.0) and mine[kind] > 1.5 * before[kind]
    }
    for kind, lost in sorted(slower.items(), key=lambda item: -item[1]):
        precisions = {op.time.precision for op in ops_of(evidence.variant) if op.time.op_type == kind}
        yield Cause(
            "slower-ops", f"{kind} takes {mine[kind] / before[kind]:.3g} times as long as in the reference", "speed", "estimate",
            lost, "their time less the reference's",
            (f"{kind} in {', '.join(sorted(precisions))}: {shown(mine[kind])}, in the reference {shown(before[kind])}",),
            (
                f"keep what stands around {kind} in float, and it runs in float too: the option skip=NAME|NAME of int8-static",
                "try the other backend: --backends ort,ov",
            ),
        )  # fmt: skip


_RULES: tuple[Callable[[Evidence], Iterator[Cause]], ...] = (
    nothing_quantized, per_tensor, dynamic_conv, unfused_qdq, isa_limited, provider_fallback, thread_contention,
    precision_not_realised, tiny_model, weight_only, memory_bound, reference_kernels, left_float, small_shapes, _conversions,
    _slower_kernels, _slower_others,
)  # fmt: skip
