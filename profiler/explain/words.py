"""An explanation as text for people and as JSON: the verdict, the causes in order, and the ops side by side."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from profiler.explain.cause import WEIGHTED, Cause, counted, ops_of, seconds_of, shown, wall_of
from profiler.explain.causes import causes, ratio
from profiler.explain.evidence import Evidence, Op, Side

SHOWN_CAUSES = 6


@dataclass(frozen=True)
class Row:
    """One line of the comparison by op: a layer of the unmodified model, or what belongs to none."""

    name: str
    variant: str
    """What ran for it: `QLinearConv i8`, with the kernel where the runtime names it."""
    variant_s: float | None
    reference: str
    reference_s: float | None


def rows(evidence: Evidence) -> tuple[Row, ...]:
    """Layers in the model's order, then all other ops together by type."""
    found = []
    for layer in evidence.reference.file.layers:
        mine, other = ([op for op in ops_of(side) if op.layer == layer.name] for side in _sides(evidence))
        if mine or other:
            found.append(_row(layer.name, mine, other))
    rest = [[op for op in ops_of(side) if op.layer is None] for side in _sides(evidence)]
    types = dict.fromkeys(op.time.op_type for ops in rest for op in ops)
    others = [_row(f"({kind})", *([op for op in ops if op.time.op_type == kind] for ops in rest)) for kind in types]
    others.sort(key=lambda row: -max(row.variant_s or 0.0, row.reference_s or 0.0))
    return (*found, *others)


def _sides(evidence: Evidence) -> tuple[Side, Side]:
    return evidence.variant, evidence.reference


def _row(name: str, mine: Sequence[Op], other: Sequence[Op]) -> Row:
    return Row(name, _ran(mine), _sum(mine), _ran(other), _sum(other))


def _sum(ops: Sequence[Op]) -> float | None:
    return seconds_of(ops) if ops else None


def _ran(ops: Sequence[Op]) -> str:
    if not ops:
        return ""
    main = next((op for op in ops if WEIGHTED.search(op.time.op_type)), ops[0]).time
    count = f"{len(ops)} × " if len(ops) > 1 else ""
    return f"{count}{main.op_type} {main.precision}" + (f" {main.kernel}" if main.kernel else "")


def text(evidence: Evidence, *, show_ops: bool = False) -> str:
    """For a terminal: what happened first, then why, then how sure."""
    return "\n".join(_lines(evidence, show_ops=show_ops))


def _lines(evidence: Evidence, *, show_ops: bool) -> Iterator[str]:
    found = causes(evidence)
    yield headline(evidence)
    yield ""
    if not found:
        yield "  None of the known causes holds: nothing here costs time that the reference does not spend."
        yield "  --show-ops shows where both spend theirs."
    for place, cause in enumerate(found[:SHOWN_CAUSES], start=1):
        yield from _cause(place, cause, wall_of(evidence.variant))
    told = _explained(evidence, found)
    if told:
        yield told
        yield ""
    if len(found) > SHOWN_CAUSES:
        yield f"  and {len(found) - SHOWN_CAUSES} smaller ones: --json shows all."
        yield ""
    if evidence.failure is None:
        yield from _ran_lines(evidence)
    if show_ops:
        yield ""
        yield from _table(evidence)
    for note in evidence.notes:
        yield f"  note: {note}"


def _explained(evidence: Evidence, found: Sequence[Cause]) -> str:
    """What the variant takes longer beside what the causes stand for; empty where it is not slower, or not measured."""
    walls = [wall_of(side) for side in _sides(evidence)]
    losses = [cause.lost_s for cause in found if cause.lost_s is not None and cause.kind == "speed"]
    if None in walls or not losses or (walls[0] or 0.0) <= (walls[1] or 0.0):
        return ""
    slower = (walls[0] or 0.0) - (walls[1] or 0.0)
    return f"  It takes {shown(slower)} longer than the reference; the causes stand for {shown(sum(losses))}, and may overlap."


def headline(evidence: Evidence) -> str:
    """One sentence: how the two cases compare."""
    mine, other, times = evidence.variant, evidence.reference, ratio(evidence)
    if times is None:
        return f"{mine.case} did not run."
    walls = [wall_of(side) or 0.0 for side in _sides(evidence)]
    pairs = sorted(a / b for a, b in zip(mine.wall_s, other.wall_s, strict=True))
    word = f"{1 / times:.2f}× faster than" if times < 1 else f"{times:.2f}× slower than"
    if 0.98 <= times <= 1.02 or (len(pairs) > 1 and pairs[0] <= 1 <= pairs[-1]):
        word = "about as fast as"
    spread = f"; ratios of the {len(pairs)} goes {pairs[0]:.2f} to {pairs[-1]:.2f}" if len(pairs) > 1 else ""
    return f"{mine.case} is {word} {other.case}: {shown(walls[0])} against {shown(walls[1])}{spread}."


def _cause(place: int, cause: Cause, wall_s: float | None) -> Iterator[str]:
    share = f", {100 * cause.lost_s / wall_s:.0f} % of its time" if cause.lost_s is not None and wall_s else ""
    lost = "" if cause.lost_s is None else f": explains {shown(cause.lost_s)}{share}"
    yield f"  {place}. {cause.title}{lost}   [{cause.kind}, {cause.certainty}: {cause.key}]"
    for line in cause.evidence:
        yield f"       · {line}"
    yield f"       ({cause.lost_how})"
    for line in cause.advice:
        yield f"     → {line}"
    yield ""


def _ran_lines(evidence: Evidence) -> Iterator[str]:
    yield "  what ran"
    for title, side in zip(("variant", "reference"), _sides(evidence), strict=True):
        facts, wall = side.facts, wall_of(side)
        precision = "not told" if facts is None or not facts.precision else counted(facts.precision)
        provider = "nothing" if facts is None else facts.provider
        yield f"    {title:<10} {provider}, {side.threads} threads, ops by precision: {precision}"
        if side.ops is None:
            yield f"    {'':<10} times per op: not measured: {side.ops_reason}"
        elif wall is not None:
            inside = seconds_of(side.ops)
            changing = seconds_of(op for op in side.ops if op.time.precision == "conversion")
            yield (
                f"    {'':<10} {len(side.ops)} ops take {shown(inside)}; {shown(max(0.0, wall - inside))} pass outside of them; "
                f"{100 * changing / wall:.0f} % in casts, Q/DQ and reorders"
            )
    if evidence.machine is not None:
        yield f"    processor  {', '.join(evidence.machine.isa) or 'not told'}; {evidence.machine.usable_cores} cores"


def _table(evidence: Evidence) -> Iterator[str]:
    found = rows(evidence)
    if not found:
        yield "  op by op: not measured"
        return
    name, ran = min(40, max(len(row.name) for row in found)), min(44, max(len(row.variant) for row in found))
    yield f"  {'layer of the model':<{name}}  {'variant':<{ran}} {'':>9}  {'ratio':>6}  {'':>9} reference"
    for row in found:
        times = f"{row.variant_s / row.reference_s:.2f}" if row.variant_s and row.reference_s else ""
        yield (
            f"  {row.name[:name]:<{name}}  {row.variant[:ran]:<{ran}} {_cell(row.variant_s):>9}  {times:>6}  "
            f"{_cell(row.reference_s):>9} {row.reference[:44]}"
        ).rstrip()


def _cell(seconds: float | None) -> str:
    return "" if seconds is None else shown(seconds)


def to_json(evidence: Evidence) -> str:
    """Everything: the causes in order, the ops by layer, and the evidence as it was recorded."""
    content: dict[str, Any] = {
        "case": evidence.variant.case, "against": evidence.reference.case, "time_ratio": ratio(evidence),
        "headline": headline(evidence), "causes": [asdict(cause) for cause in causes(evidence)],
        "layers": [asdict(row) for row in rows(evidence)],
        "outside_ops_s": {side.case: _outside(side) for side in _sides(evidence)},
        "evidence": asdict(evidence),
    }  # fmt: skip
    return json.dumps(content, indent=1, default=sorted)


def _outside(side: Side) -> float | None:
    return None if side.ops is None or not side.wall_s else max(0.0, median(side.wall_s) - seconds_of(side.ops))
