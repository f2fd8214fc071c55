"""Pictures, each the answer to the question in its title. Drawn by Vega-Lite: in the page by its script, as PNG by vl-convert."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from profiler.analysis import AXES, CaseResult
from profiler.decide import view
from profiler.places import MONEY
from profiler.records import Estimate
from profiler.report import words
from profiler.report.words import Story

MAX_POINTS = 150
MAX_ROWS = 40
MAX_PANELS = 8
MAX_BLOCKS = 300
"""What is drawn at most of points, rows, small panels, and blocks a panel; a figure that leaves something out says so."""

_ROW_PX = 40
_MAX_SUBTITLE = 8
_LOG_FROM = 10.0
_FAR = 3.0

# Legible on white and on near-black alike (contrast 3:1 or more on both).
_LOOK = {
    "frontier": ("#2a9d55", "circle"), "undecided": ("#c77800", "diamond"), "reference": ("#3f86f5", "square"),
    "behind": ("#858585", "triangle-down"), "dominated": ("#858585", "cross"), "frontier, pruned": ("#2a9d55", "triangle-up"),
    "undecided, pruned": ("#c77800", "triangle-up"), "behind, pruned": ("#858585", "triangle-up"),
    "dominated, pruned": ("#858585", "triangle-up"),
}  # fmt: skip
_BELOW = ("behind", "dominated")
"""Kinds of points below the frontier."""
_WORDS = {
    "faster": ("#2a9d55", "circle"), "slower": ("#d4503e", "square"), "equivalent": ("#3f86f5", "diamond"),
    "undecided": ("#c77800", "cross"),
}  # fmt: skip
_PERCENTILES = {"p50": ("#3f86f5", "circle"), "p90": ("#c77800", "diamond"), "p99": ("#d4503e", "square")}
_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.33, 0.5, 0.67, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 2, 3, 5, 10, 20, 50, 100)


@dataclass(frozen=True)
class Figure:
    """A picture with the question it answers, how to read it, and what it leaves out."""

    name: str
    title: str
    caption: str
    spec: dict[str, Any]
    """Vega-Lite, as wide as what it stands in."""
    alt: str
    """What the picture shows, for those who don't see it."""


def page_figures(story: Story) -> list[Figure]:
    """All figures that the run has data for, in the order of the report; the stability panels come last."""
    drawn = [
        cost_figure(story),
        frontier_figure(story),
        forest_figure(story),
        latency_figure(story),
        *stability_figures(story),
    ]
    return [figure for figure in drawn if figure is not None]


def picture(story: Story) -> dict[str, Any]:
    """The frontier as Vega-Lite for a picture that stands alone; a run without points gives one that says so."""
    import altair as alt

    figure = frontier_figure(story)
    if figure is None:
        nothing = alt.Chart(alt.Data(values=[{"text": "Nothing to draw: no case has both figures."}]))
        spec = _spec(nothing.mark_text(size=16).encode(text="text:N").properties(height=120))
        title = "No frontier"
    else:
        spec, title = figure.spec, figure.title
    named = [
        f"#{case.number} {story.name(case)} ({', '.join(dict.fromkeys(filter(None, (story.standing(case), story.tags(case)))))})"
        for case in {
            case.key: case for case in (*story.view.members, *story.view.tied, *filter(None, (story.reference,)))
        }.values()
    ]
    below = f"{figure.caption} {'; '.join(named)}." if figure else ""
    wrapped = {
        "text": title,
        "subtitle": textwrap.wrap(below, 105, break_on_hyphens=False)[:_MAX_SUBTITLE],
        "anchor": "start",
        "fontSize": 16,
    }
    return {**spec, "width": 720, "title": wrapped, "background": "white", "padding": 16}


def vegalite_version() -> str:
    """The Vega-Lite that the specs are written for, in vl-convert's spelling."""
    import altair as alt

    return ".".join(str(alt.SCHEMA_VERSION).lstrip("v").split(".")[:2])


def _spec(chart: Any) -> dict[str, Any]:
    """What altair made, as JSON. The tests validate it; here that would take longer than drawing."""
    spec: dict[str, Any] = chart.to_dict(validate=False)
    return spec


def cost_figure(story: Story) -> Figure | None:
    """Money against accuracy of every priced case of several machines on one axis. None with fewer than two priced machines."""
    priced = {c.machine.group for c in story.analysis.measured if isinstance(c.usd_per_million, Estimate)}
    if len(priced) < 2 or story.view.x == MONEY:
        return None
    over = Story(story.analysis, view(story.analysis, MONEY, story.view.y), story.recommendation)
    found = frontier_figure(over)
    if found is None:
        return None
    use = f"{story.analysis.run.study.cost.utilisation:.0%}"
    return replace(
        found, name="cost", title="What does a million inferences cost on each machine, and how good are they?",
        caption=f"{found.caption} Each machine at its own price and {use} use; all machines are on one frontier here.",
    )  # fmt: skip


def frontier_figure(story: Story) -> Figure | None:
    """Both axes of the view with their intervals; members joined by steps. None without points."""
    import altair as alt

    every = [*story.view.members, *story.view.tied]
    every += [case for case, _ in (*story.view.behind, *story.view.dominated)]
    # An envelope's frontier stands in tables, with its name on it; between devices it would look like one.
    placed = [case for case in every if case.machine.real or not story.analysis.devices]
    if not placed:
        return None
    axis = story.view.x
    x_scale, x_title = _axis(story, axis)
    y_scale, y_title = _axis(story, story.view.y)
    points = [_point(story, case, x_scale, y_scale) for case in placed]
    points, left_out = _near(points)
    rest = max(0, len(points) - MAX_POINTS)
    points = points[:MAX_POINTS]
    members = [point for point in points if point["standing"] == "frontier"]
    labelled = _labelled(points)
    values = alt.Data(values=labelled)
    log = _log(points)
    x = alt.X("x:Q", title=x_title, scale=_x_scale(log, padding=24), axis=alt.Axis(tickCount=8))
    y = alt.Y("y:Q", title=y_title, scale=alt.Scale(zero=False, padding=18))
    kinds = [kind for kind in _LOOK if any(point["kind"] == kind for point in points)]
    colour = alt.Color("kind:N", title=None, scale=_colours(kinds, _LOOK), legend=alt.Legend(orient="top", columns=4))
    shape = alt.Shape("kind:N", title=None, scale=_shapes(kinds, _LOOK), legend=alt.Legend(orient="top", columns=4))
    base = alt.Chart(values)
    tooltip = _tooltip(AXES[axis].title, AXES[story.view.y].title)
    layers = [
        base.mark_rule(strokeWidth=1.5, opacity=0.6).encode(x=x, x2="xh:Q", y=y, color=colour).transform_calculate(x="datum.xl"),
        base.mark_rule(strokeWidth=1.5, opacity=0.6).encode(x=x, y=y, y2="yh:Q", color=colour).transform_calculate(y="datum.yl"),
        base.mark_point(size=110, filled=True, opacity=1).encode(x=x, y=y, color=colour, shape=shape, tooltip=tooltip),
    ]  # fmt: skip
    for part in dict.fromkeys(point["part"] for point in members):
        own = [{"x": point["x"], "y": point["y"]} for point in members if point["part"] == part]
        if len(own) > 1:
            steps = alt.Chart(alt.Data(values=own)).mark_line(
                interpolate="step-after", color="#2a9d55", strokeDash=[5, 3], opacity=0.8
            )
            layers.insert(0, steps.encode(x=x, y=y))
    for place in sorted({point["place"] for point in labelled if point["place"] >= 0}):
        dx, dy, align = _PLACES[place]
        text = base.transform_filter(f"datum.place == {place}").mark_text(
            dx=dx, dy=dy, align=align, text=alt.expr(_LABEL), fontSize=11
        )
        layers.append(text.encode(x=x, y=y, color=colour))
    caption = (
        "Bars are 95 % intervals; one that ends at its point is unbounded on that side. Numbers are those of the table."
    )
    if story.several and not story.view.pooled:
        caption += " Each machine has a frontier of its own; figures of different machines are absolute and not paired."
    left = len(every) - len(placed) + sum(not case.machine.real for case, _ in story.view.unplaced)
    if left:
        caption += f" Not drawn: {left} cases whose timings are an emulator's or an envelope's."
    if story.view.y == "accuracy":
        caption += (
            " All cases saw the same samples, so the table's accuracy changes tell them apart better than these bars."
        )
    if rest:
        caption += f" {rest} cases below the frontier are not drawn; the table has them."
    if left_out:
        caption += f" Not drawn, far below the others: {', '.join(left_out)}."
    chart = alt.layer(*layers).properties(width="container", height=360)
    question = f"Which variants are worth their {AXES[axis].title}?"
    named = ", ".join(story.name(case) for case in story.view.members if case in placed)
    return Figure("frontier", question, caption, _spec(chart), f"{y_title} over {x_title}. On the frontier: {named}.")


def forest_figure(story: Story) -> Figure | None:
    """The time of each case as a multiple of the reference's, with its interval and a line at 1."""
    import altair as alt

    rows: list[dict[str, Any]] = []
    for case in _drawn(story):
        ratio = case.time_ratio
        if isinstance(ratio, Estimate) and words.comparison(case) != "reference":
            row = {"value": ratio.value, "low": ratio.low or ratio.value, "high": ratio.high or ratio.value}
            rows.append({**row, **_row_words(story, case, str(words.versus(case))), "word": words.comparison(case)})
    if not rows:
        return None
    rows.sort(key=lambda row: float(row["value"]))
    rows, note = _thinned(rows)
    low = min(1.0, *(row["low"] for row in rows)) / 1.08
    high = max(1.0, *(row["high"] for row in rows)) * 1.08
    ticks = [tick for tick in _TICKS if low <= tick <= high]
    x = alt.X(
        "value:Q",
        title="time / reference time (left of 1 is faster)",
        scale=alt.Scale(type="log", domain=[low, high], nice=False),
        axis=alt.Axis(values=ticks, format="~g", labelOverlap="greedy", labelSeparation=8),
    )
    kinds = [kind for kind in _WORDS if any(row["word"] == kind for row in rows)]
    chart = _rows_chart(rows, x, "word", kinds, _WORDS)
    line = alt.Chart(alt.Data(values=[{"value": 1}])).mark_rule(strokeDash=[4, 3], color="#858585").encode(x=x)
    layered = alt.layer(line, *chart).properties(width="container", height=_ROW_PX * len({row["row"] for row in rows}))
    caption = (
        "Median over process pairs at p50, same batch and threads, with 95 % intervals; the words are corrected for "
        f"the number of comparisons (Holm). The line at 1 is the reference{' on the same machine' if story.several else ''}."
        f"{note}{_undrawn(story)}"
    )
    alt_text = "; ".join(f"{row['name']}: {row['figure']}" for row in rows)
    return Figure("forest", "Is each case faster than the unmodified model?", caption, _spec(layered), alt_text)


def latency_figure(story: Story) -> Figure | None:
    """p50, p90 and p99 of each case on one axis, with their intervals."""
    import altair as alt

    unit = words.time_unit(_drawn(story)) or (1e-3, "ms")
    rows: list[dict[str, Any]] = []
    for case in _drawn(story):
        found = {"p50": case.latency_p50_s, "p90": case.latency_p90_s, "p99": case.latency_p99_s}
        told = f"p50 {words.seconds(case.latency_p50_s, unit)}, p99 {words.seconds(case.latency_p99_s, unit)}"
        for name, figure in found.items():
            if isinstance(figure, Estimate):
                value, low, high = _ends(figure, 1 / unit[0])
                rows.append(
                    {"value": value, "low": low, "high": high, "percentile": name, **_row_words(story, case, told)}
                )
    if not rows:
        return None
    order = {row["row"]: row["value"] for row in reversed(rows) if row["percentile"] == "p50"}
    rows.sort(key=lambda row: float(order.get(row["row"], math.inf)))
    kept = list(dict.fromkeys(row["row"] for row in rows))
    note = f" Drawn: the {MAX_ROWS} fastest of {len(kept)} cases; the table has all." if len(kept) > MAX_ROWS else ""
    rows = [row for row in rows if row["row"] in kept[:MAX_ROWS]]
    log = max(row["value"] for row in rows) > _LOG_FROM * min(row["value"] for row in rows)
    x = alt.X("value:Q", title=f"latency of a batch, {unit[1]}", scale=_x_scale(log, padding=12))
    chart = _rows_chart(rows, x, "percentile", list(_PERCENTILES), _PERCENTILES)
    layered = alt.layer(*chart).properties(width="container", height=_ROW_PX * len({row["row"] for row in rows}))
    caption = "Service time, back to back, no queue; bars are 95 % intervals."
    caption += f"{' The axis is logarithmic.' if log else ''}{note}{_undrawn(story)}"
    alt_text = "; ".join(dict.fromkeys(f"{row['name']}: {row['figure']}" for row in rows))
    return Figure(
        "latency", "How long does an inference take, usually and at worst?", caption, _spec(layered), alt_text
    )


def stability_figures(story: Story) -> list[Figure]:
    """For each case of interest the p50 of each block in time order: whether processes and rounds agree."""
    import altair as alt

    shown = [case for case in (*story.view.members, *story.view.tied) if case.status == "measured"]
    reference = story.reference
    shown += [reference] if reference in _drawn(story) and reference not in shown else []
    shown += [case for case in _drawn(story) if case not in shown]
    unit = words.time_unit(story.analysis.measured) or (1e-3, "ms")
    figures = []
    for case in shown[:MAX_PANELS]:
        blocks = sorted(
            (block for block in story.analysis.run.blocks if block.case == case.key),
            key=lambda b: (b.replicate, b.group, b.round),
        )
        step = -(-len(blocks) // MAX_BLOCKS)
        values = [
            {
                "n": number, "process": f"process {block.replicate}", "round": block.round,
                "p50": float(np.median(block.samples_s[block.discarded :])) / unit[0],
            }
            for number, block in enumerate(blocks, start=1)
            if number % step == 0
        ]  # fmt: skip
        if not values:
            continue
        chart = (
            alt.Chart(alt.Data(values=values))
            .mark_line(point=True, strokeWidth=1, opacity=0.9)
            .encode(
                x=alt.X("n:Q", title="block, in time order", axis=alt.Axis(tickMinStep=1, format="d")),
                y=alt.Y("p50:Q", title=f"p50, {unit[1]}", scale=alt.Scale(zero=False, nice=True)),
                color=alt.Color("process:N", legend=None),
                tooltip=["process:N", "round:Q", alt.Tooltip("p50:Q", format=".4g", title=f"p50, {unit[1]}")],
            )
            .properties(width="container", height=110)
        )
        thinned = f"every {step}th block" if step > 1 else ""
        figures.append(
            Figure(
                f"stability-{case.number}",
                f"#{case.number} {story.name(case)}",
                thinned,
                _spec(chart),
                f"p50 of {len(blocks)} blocks of {story.name(case)} in time order.",
            )
        )
    return figures


def _drawn(story: Story) -> list[CaseResult]:
    """Measured cases but those of an emulator, whose timings stand in tables with the word beside them and in no picture."""
    return [case for case in story.analysis.measured if not case.machine.emulated]


def _undrawn(story: Story) -> str:
    left = len(story.analysis.measured) - len(_drawn(story))
    return f" Not drawn: {left} emulated case{'s' * (left > 1)}." if left else ""


_LABEL = "width >= 480 ? datum.label : test('^(behind|dominated)', datum.kind) ? '' : datum.tag"
"""On phones there is room for the numbers of the cases that matter, nothing else."""

_PLACES = (
    (9, -9, "left"),
    (9, 12, "left"),
    (-9, -9, "right"),
    (-9, 12, "right"),
    (0, -16, "center"),
    (0, 20, "center"),
)
"""Where a label may stand beside its point: dx, dy, alignment."""


def _axis(story: Story, axis: str) -> tuple[float, str]:
    """Factor from SI to what is drawn, and the title with its unit."""
    analysis = story.analysis
    title = AXES[axis].title
    if axis.startswith("latency"):
        unit = words.time_unit(analysis.measured) or (1e-3, "ms")
        return 1 / unit[0], f"{title} of a batch, {unit[1]}"
    if axis in ("peak_rss", "size"):
        return 1e-6, f"{title}, MB"
    if axis == "energy":
        return 1e3, f"{title}, mJ"
    if axis in ("accuracy", "agreement"):
        figures = [case.figure(axis) for case in analysis.measured]
        share = any(isinstance(figure, Estimate) and figure.unit == "proportion" for figure in figures)
        name = (
            f"accuracy ({words.metric_name(analysis)})" if axis == "accuracy" else f"{title}{words.of_output(analysis)}"
        )
        return (100.0, f"{name}, %") if share else (1.0, name)
    return 1.0, title


def _ends(figure: Estimate, factor: float) -> tuple[float, float, float]:
    value = figure.value * factor
    low, high = (value if end is None or not math.isfinite(end) else end * factor for end in (figure.low, figure.high))
    return value, low, high


def _point(story: Story, case: CaseResult, x_scale: float, y_scale: float) -> dict[str, Any]:
    x, y = case.figure(story.view.x), case.figure(story.view.y)
    assert isinstance(x, Estimate)
    assert isinstance(y, Estimate)
    standing = story.standing(case)
    pruned = case.case.variant.startswith("prune")
    kind = "reference" if story.is_reference(case) else f"{standing}, pruned" if pruned else standing
    value, low, high = _ends(x, x_scale)
    y_value, y_low, y_high = _ends(y, y_scale)
    source = "" if x.source == y.source == "measured here" else f" ({x.source}; {y.source})"
    return {
        "x": value, "xl": low, "xh": high, "y": y_value, "yl": y_low, "yh": y_high, "standing": standing, "kind": kind,
        "part": story.part(case),
        "name": f"#{case.number} {story.name(case)}{source}", "tag": f"#{case.number}",
        "x_told": str(words.figure_cell(case, story.view.x)), "y_told": str(words.figure_cell(case, story.view.y)),
    }  # fmt: skip


def _near(points: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """Leave out points below the frontier so far below the others that these would fall on one line."""
    core = [point for point in points if not point["kind"].startswith(_BELOW)]
    low, high = min(point["yl"] for point in core), max(point["yh"] for point in core)
    span = high - low
    far = [point for point in points if point not in core and span > 0 and point["yh"] < low - _FAR * span]
    return [point for point in points if point not in far], [f"{point['name']} ({point['y_told']})" for point in far]


def _log(points: Sequence[dict[str, Any]]) -> bool:
    low, high = min(point["x"] for point in points), max(point["x"] for point in points)
    return bool(min(point["xl"] for point in points) > 0 and high > _LOG_FROM * low)


def _labelled(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Names beside the points that matter, numbers beside the others, each where it covers nothing, or nowhere."""
    log = _log(points)

    def placed_on(name: str, size: float, *, logarithmic: bool) -> list[float]:
        def at(key: str) -> list[float]:
            return [math.log(point[key]) if logarithmic else point[key] for point in points]

        low, high = min(at(f"{name}l")), max(at(f"{name}h"))
        return [(value - low) / ((high - low) or 1) * size for value in at(name)]

    # As wide and as high as the drawing area is on a screen; the intervals span the axes.
    points = sorted(points, key=lambda point: point["kind"].startswith(_BELOW))
    xs = placed_on("x", 600.0, logarithmic=log)
    ys = [300.0 - y for y in placed_on("y", 300.0, logarithmic=False)]
    taken = [(x - 7, y - 7, x + 7, y + 7) for x, y in zip(xs, ys, strict=True)]
    placed = []
    for point, x, y in zip(points, xs, ys, strict=True):
        wordy = point["standing"] in ("frontier", "undecided") or point["kind"] == "reference"
        choices = [point["name"].partition(" (")[0], point["tag"]] if wordy else [point["tag"]]
        spot = _spot(choices, x, y, taken)
        label, place = spot if spot is not None else ("", -1)
        placed.append({**point, "label": label, "place": place})
    # Drawn in this order: what matters lies on top.
    return placed[::-1]


def _spot(
    choices: Sequence[str], x: float, y: float, taken: list[tuple[float, float, float, float]]
) -> tuple[str, int] | None:
    for label in choices:
        width = 6.2 * len(label)
        for place, (dx, dy, align) in enumerate(_PLACES):
            left = x + dx - {"left": 0.0, "right": width, "center": width / 2}[align]
            box = (left, y + dy - 7, left + width, y + dy + 7)
            free = all(
                box[2] < other[0] or box[0] > other[2] or box[3] < other[1] or box[1] > other[3] for other in taken
            )
            if free and box[0] > -30 and box[2] < 640:
                taken.append(box)
                return label, place
    return None


def _colours(kinds: Sequence[str], looks: dict[str, tuple[str, str]]) -> Any:
    import altair as alt

    return alt.Scale(domain=list(kinds), range=[looks[kind][0] for kind in kinds])


def _shapes(kinds: Sequence[str], looks: dict[str, tuple[str, str]]) -> Any:
    import altair as alt

    return alt.Scale(domain=list(kinds), range=[looks[kind][1] for kind in kinds])


def _x_scale(log: bool, *, padding: int) -> Any:
    import altair as alt

    return (
        alt.Scale(type="log", nice=False, padding=padding)
        if log
        else alt.Scale(zero=False, nice=False, padding=padding)
    )


def _tooltip(x_title: str, y_title: str) -> list[Any]:
    import altair as alt

    return [
        alt.Tooltip("name:N", title="case"),
        alt.Tooltip("kind:N", title="standing"),
        alt.Tooltip("x_told:N", title=x_title),
        alt.Tooltip("y_told:N", title=y_title),
    ]


def _row_words(story: Story, case: CaseResult, figure: str) -> dict[str, str]:
    name = f"#{case.number} {story.name(case)}{' (envelope)' if case.machine.envelope else ''}"
    return {"row": case.key, "name": name, "figure": figure, "long": f"{name}: {figure}"}


def _thinned(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    if len(rows) <= MAX_ROWS:
        return rows, ""
    return rows[:MAX_ROWS], f" Drawn: the {MAX_ROWS} fastest of {len(rows)} cases; the table has all."


def _rows_chart(
    rows: list[dict[str, Any]], x: Any, field: str, kinds: list[str], looks: dict[str, tuple[str, str]]
) -> list[Any]:
    """A row per case: its name above, below it points with interval bars. Names stand inside, so phones have room."""
    import altair as alt

    order = list(dict.fromkeys(row["row"] for row in rows))
    y = alt.Y("row:N", sort=order, title=None, axis=alt.Axis(labels=False, ticks=False, domain=False, grid=False))
    data = alt.Data(values=rows)
    legend = alt.Legend(orient="top", title=None)
    colour = alt.Color(f"{field}:N", scale=_colours(kinds, looks), legend=legend)
    shape = alt.Shape(f"{field}:N", scale=_shapes(kinds, looks), legend=legend)
    base = alt.Chart(data)
    names = alt.Chart(alt.Data(values=list({row["row"]: row for row in rows}.values())))
    tooltip = [alt.Tooltip("name:N", title="case"), alt.Tooltip("figure:N", title="figures"), alt.Tooltip(f"{field}:N")]
    bars = base.mark_rule(strokeWidth=2, opacity=0.6, yOffset=6).transform_calculate(value="datum.low")
    marks = base.mark_point(size=80, filled=True, opacity=1, yOffset=6)
    told = names.mark_text(align="left", dy=-8, fontSize=11, text=alt.expr("width < 560 ? datum.name : datum.long"))
    return [
        bars.encode(x=x, x2="high:Q", y=y, color=colour),
        marks.encode(x=x, y=y, color=colour, shape=shape, tooltip=tooltip),
        told.encode(x=alt.value(2), y=y),
    ]
