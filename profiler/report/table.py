"""The terminal: the decision, why, the frontier, and what was not done. The same words with and without colour."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

from rich.console import Console

from profiler import advice
from profiler.analysis import AXES, DROP_CHECK, Analysis, CaseResult
from profiler.decide import FrontierView
from profiler.records import LEFT_OUT_BY_SEARCH, NotMeasured
from profiler.report import searched, trust, words
from profiler.report.details import case_details
from profiler.report.layout import Column, Page
from profiler.report.words import Cell, Story

__all__ = ["case_details", "cases_table", "frontier_table", "render", "text"]

DEFAULT_WIDTH = 120
MAX_DOMINATED = 8

_VERDICT_STYLE = {"PASS": "green", "FAIL": "red", "INCONCLUSIVE": "yellow", "NOT_MEASURED": "yellow"}
_MARKS = {"frontier": "●", "undecided": "◐", "behind": "○", "dominated": "○", "not placed": "○"}


def text(analysis: Analysis, *, width: int | None = None, unicode: bool = True) -> str:
    """The terminal's output as plain text, `width` columns wide (120 when None)."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="utf-8" if unicode else "ascii", newline="\n")
    console = Console(
        file=stream,
        width=width or DEFAULT_WIDTH,
        color_system=None,
        force_terminal=False,
        legacy_windows=False,
        force_jupyter=False,
    )
    render(analysis, console)
    stream.flush()
    lines = raw.getvalue().decode("utf-8").splitlines()
    return "\n".join(line.rstrip() for line in lines) + "\n"


def render(analysis: Analysis, console: Console, *, x: str = "latency_p50", y: str = "accuracy") -> None:
    """Everything about a run that a person needs to decide. Raises StudyError for unknown axes."""
    story = Story.of(analysis, x, y)
    page = Page(console)
    _decision(page, story)
    _places(page, story)
    _frontier(page, story)
    _not_done(page, story)
    _how(page, story)


def frontier_table(analysis: Analysis, view: FrontierView, console: Console) -> None:
    """The frontier over the axes of `view`, without the decision."""
    story = Story.over(analysis, view)
    page = Page(console)
    page.line(f"Which cases are worth their {AXES[view.x].title}? By {AXES[view.y].title}:", style="bold")
    if story.several:
        page.line(words.pooling(story), hanging=2)
    _frontier(page, story)
    _not_done(page, story)
    page.blank()
    _machines(page, story)
    _damage(page, analysis)


def cases_table(analysis: Analysis, console: Console) -> None:
    """A line for each case of the plan, failed ones too."""
    story = Story.of(analysis)
    page = Page(console)
    if not analysis.cases:
        page.line("This run has no cases: it ended before they were planned.")
        return
    columns = [Column("#", [(str(case.number), "") for case in analysis.cases], right=True)]
    columns += _columns(story, analysis.cases)[1:]
    columns.insert(2, Column("standing", [(story.standing(case), "") for case in analysis.cases]))
    _grid_or_cards(page, story, analysis.cases, columns, numbered=True)
    _not_done(page, story)
    page.blank()
    _machines(page, story)
    _damage(page, analysis)


def _damage(page: Page, analysis: Analysis) -> None:
    """Which stored records could not be read: whatever is shown lacks them."""
    for note in analysis.run.damage_notes:
        page.line(f"note: {words.one_line(note)}", style="yellow", hanging=2)


def _decision(page: Page, story: Story) -> None:
    chosen = story.recommendation
    page.line(f"▸ {words.clean(chosen.headline)}", style="bold green" if chosen.case else "bold yellow", hanging=2)
    for sentence in chosen.sentences:
        page.line(words.one_line(sentence), indent=2, hanging=2)
    if chosen.case is None:
        for case, why in chosen.ruled_out[:MAX_DOMINATED]:
            page.line(f"{story.name(case)}: {words.one_line(why)}", indent=2, hanging=2)
    warning = words.unfinished(story.analysis)
    if warning is not None:
        page.line(warning, style="yellow", indent=2, hanging=2)


def _places(page: Page, story: Story) -> None:
    """The best case of each machine, edge and cloud side by side."""
    offered = story.recommendation.places
    if not any(item.case is not None for item in offered):
        return
    page.blank()
    page.line("What to deploy where, at what cost:", style="bold")
    chosen = story.recommendation.case
    rows = [words.place_cells(story, item) for item in offered]
    columns = [Column("", [("●" if item.case is not None and item.case is chosen else "○", "") for item in offered])]
    columns += [
        Column(title, [(row[title].value, row[title].interval) for row in rows])
        for title in words.PLACE_TITLES
        if any(not row[title].missing for row in rows)
    ]
    lines = next((lines for lines in (1, 2) if page.fits(columns, lines=lines)), 0)
    if lines:
        page.grid(columns, lines=lines)
    else:
        for row in rows:
            told = [f"{title} {row[title].glued}" for title in words.PLACE_TITLES[1:] if not row[title].missing]
            page.line(f"{row['machine'].value}: {'; '.join(told) or 'nothing to deploy'}", hanging=4)
    page.line(words.places_note(story), style="dim", hanging=2)


def _frontier(page: Page, story: Story) -> None:
    view = story.view
    parts = [("", list(story.analysis.cases))]
    if story.several and not view.pooled:
        parts = [(group, list(story.analysis.on(group).cases)) for group in story.analysis.groups]
    page.blank()
    for group, cases in parts:
        _one_frontier(page, story, group, cases)
    shown = [case for _, cases in parts for case in _shown(story, cases)]
    if shown:
        _footnotes(page, story, shown, [case for case, _ in (*view.behind, *view.dominated)])
    hidden = [case for case, _ in (*view.behind, *view.dominated) if case not in shown]
    for case in hidden[:MAX_DOMINATED]:
        page.line(f"○ {_short(story, case)}; {words.one_line(view.why.get(case.key, ''))}", hanging=4, style="dim")
    if len(hidden) > MAX_DOMINATED:
        rest = len(hidden) - MAX_DOMINATED
        page.line(
            f"… and {rest} more behind or dominated: {advice.of_run('show', story.analysis.run.id)}",
            style="dim",
            hanging=4,
        )
    for case, why in view.unplaced:
        page.line(f"○ {_short(story, case)}; not placed: {words.one_line(why)}", hanging=4, style="dim")


def _shown(story: Story, cases: Sequence[CaseResult]) -> list[CaseResult]:
    """Of one machine's cases those on its frontier, tied with it, or compared with."""
    view = story.view
    shown = [case for case in (*view.members, *view.tied) if case in cases]
    references = {*([story.analysis.reference] if not story.several else story.analysis.references.values())}
    compared = [case for case in cases if case.key in references and case.status == "measured" and case not in shown]
    return [*shown, *(case for case in compared if case.machine.real or not view.pooled)]


def _one_frontier(page: Page, story: Story, group: str, cases: Sequence[CaseResult]) -> None:
    shown = _shown(story, cases)
    if group:
        machine = next(item for item in story.analysis.machines if item.group == group)
        page.line(f"on {words.one_line(machine.told if machine.envelope else group)}:", style="bold")
    if not shown:
        unplaced = [why for case, why in story.view.unplaced if case in cases]
        page.line(f"no frontier: {words.one_line(unplaced[0] if unplaced else 'nothing was measured')}")
        return
    _grid_or_cards(page, story, shown, _columns(story, shown, under=group))
    if group:
        page.blank()


def _short(story: Story, case: CaseResult) -> str:
    """A dominated case in a line: its figures on both axes, and its verdict."""
    unit = words.time_unit(story.analysis.measured)
    cells = [words.figure_cell(case, story.view.x, unit)]
    cells += (
        [words.quality_cell(story, case)] if story.view.y == "accuracy" else [words.figure_cell(case, story.view.y)]
    )
    if case.key != story.analysis.reference:
        cells.append(words.versus(case))
    remark = words.pruned_remark(case, story.analysis.run.artifacts)
    figures = ", ".join([*(cell.glued for cell in cells if not cell.missing), *([remark] if remark else [])])
    verdict = f", {_verdict(case)}" if case.checks else ""
    standing = story.standing(case)
    return (
        f"{story.name(case)}: {standing}, {figures}{verdict}"
        if standing in ("behind", "dominated")
        else f"{story.name(case)}: {figures or 'no figures'}{verdict}"
    )


def _verdict(case: CaseResult) -> str:
    """The verdict, and with several limits which of them decided it."""
    if not case.checks:
        return ""
    word = case.verdict.replace("_", " ")
    deciding = [check.name for check in case.checks if check.verdict == case.verdict]
    return word if case.verdict == "PASS" or len(case.checks) == 1 else f"{word} ({', '.join(deciding)})"


def _columns(story: Story, cases: Sequence[CaseResult], *, under: str = "") -> list[Column]:
    """`under`: the machine that the heading above names, so that rows need not."""

    def column(title: str, cell: Callable[[CaseResult], Cell]) -> Column:
        cells = [cell(case) for case in cases]
        return Column(title, [(item.value, item.interval) for item in cells])

    unit = words.time_unit(story.analysis.measured)
    marks = [
        "■"
        if story.is_reference(case) and story.standing(case) not in ("frontier", "undecided")
        else _MARKS.get(story.standing(case), "·")
        for case in cases
    ]
    columns = [
        Column("", [(mark, "") for mark in marks]),
        Column(
            "case", [(words.one_line(case.case.variant), _below(story, case, under)) for case in cases],
            styles=["bold" if story.standing(case) == "frontier" else "" for case in cases],
        ),
        *[column(title, cell) for title, cell in _extra_axes(story)],
        column(words.latency_title("p50", cases), lambda case: words.latency(case, "latency_p50_s", unit)),
        column(words.latency_title("p99", cases), lambda case: words.latency(case, "latency_p99_s", unit)),
        *(
            [column(trust.OBSERVED_TITLE, lambda case: trust.observed_p99(case, unit))]
            if any(case.excluded_share is not None and case.view == "undisturbed" for case in cases)
            else []
        ),
        column("vs reference", words.versus),
        column(words.quality_title(story), lambda case: words.quality_cell(story, case)),
        column("peak RSS", lambda case: words.size(case.peak_rss_bytes)),
        column("size", lambda case: words.size(case.size_bytes)),
    ]  # fmt: skip
    if not all(isinstance(case.usd_per_million, NotMeasured) for case in cases):
        columns.append(column("$/1M", lambda case: words.usd(case.usd_per_million)))
    if any(case.checks for case in cases):
        styles = [_VERDICT_STYLE[case.verdict] for case in cases]
        columns.append(Column("verdict", [(_verdict(case), "") for case in cases], styles=styles))
    return columns


def _below(story: Story, case: CaseResult, under: str) -> str:
    # That it is the reference stands in its row: no width for it here.
    tags = [tag for tag in story.tag_words(case) if tag != "reference"]
    return " · ".join([story.place(case, under=under), *([", ".join(tags)] if tags else [])])


def _extra_axes(story: Story) -> list[tuple[str, Callable[[CaseResult], Cell]]]:
    """Axes of the view that no usual column shows."""
    usual = {"latency_p50", "latency_p99", "peak_rss", "size", "usd_per_million", "accuracy"}
    usual |= set() if story.labelled else {"agreement"}
    extra = [axis for axis in (story.view.x, story.view.y) if axis not in usual]
    return [(axis, _axis_cell(axis)) for axis in extra]


def _axis_cell(axis: str) -> Callable[[CaseResult], Cell]:
    return lambda case: words.figure_cell(case, axis)


def _grid_or_cards(
    page: Page, story: Story, cases: Sequence[CaseResult], columns: Sequence[Column], *, numbered: bool = False
) -> None:
    """The widest form that fits: one line a case, two lines a case, or a few sentences a case."""
    smaller = [column for column in columns if column.title != "size"]
    # The observed tail stays: the footer speaks of it, and it may be twenty times the other.
    smallest = [column for column in smaller if column.title != "peak RSS"]
    for chosen, lines in ((columns, 1), (columns, 2), (smaller, 2), (smallest, 2)):
        if page.fits(chosen, lines=lines):
            page.grid(chosen, lines=lines)
            return
    for index, case in enumerate(cases):
        mark = f"{case.number:>2}" if numbered else columns[0].cells[index][0]
        tags = [
            item
            for item in (story.standing(case), story.tags(case).replace("undecided", "").strip(", "), _verdict(case))
            if item
        ]
        page.line(f"{mark} {story.name(case)}: {', '.join(tags)}", style="bold", hanging=4)
        figures = [
            f"{column.title} {Cell(*column.cells[index]).glued}"
            for column in columns
            if column.title not in ("", "#", "case", "standing", "verdict") and column.cells[index][0] != "reference"
        ]
        page.line("; ".join(figures), indent=4)


def _footnotes(page: Page, story: Story, shown: Sequence[CaseResult], below: Sequence[CaseResult] = ()) -> None:
    """What the columns mean, and once for all why a column is empty."""
    notes = ["[ ] are 95 % intervals (memory: range over processes)"]
    open_sides = words.unbounded(shown)
    if open_sides is not None:
        notes.append(open_sides)
    if any(story.standing(case) == "undecided" for case in shown):
        notes.append(words.TIED_MEANING)
    if any(story.equal_to(case) for case in shown):
        notes.append(words.EQUAL_MEANING)
    if any({"latency_p50_s", "latency_p99_s"} & case.typical for case in shown):
        notes.append(words.TYPICAL_MEANING)
    if any(check.name == DROP_CHECK for case in shown for check in case.checks):
        notes.append(words.BOUNDS_MEANING)
    if any(words.corrected(case) for case in (*shown, *below)):
        notes.append(words.CORRECTED_MEANING)
    notes += _of_the_metric(story, shown)
    if not story.labelled and story.analysis.output is not None:
        notes.append(f"agreement is that{words.of_output(story.analysis)}")
    if not any(case.checks for case in shown):
        notes.append("no limits were set, so there are no verdicts (--max-drop, --slo-p99, --max-memory, --max-cost)")
    page.line("; ".join(notes), style="dim", hanging=2)
    # Where nothing is recommended, each case's reason stands above.
    for why in words.undecided(shown) if story.recommendation.case is not None else ():
        page.line(why, style="dim", hanging=2)
    for title, why in words.not_measured(story.analysis):
        label = "$/1M" if title.startswith("USD") else title
        page.line(f"— {label} not measured: {why}", style="dim", hanging=2)


def _of_the_metric(story: Story, shown: Sequence[CaseResult]) -> list[str]:
    """What the column of accuracy holds, where its title does not say it."""
    name, metric, notes = words.metric_name(story.analysis), story.analysis.metric, list[str]()
    if any(story.is_reference(case) for case in shown) and story.labelled:
        notes.append(f"the reference shows its own {name}")
    if story.labelled and metric is not None and not metric.higher_is_better:
        notes.append(f"a change of {name}, which is an error, is negative where it is worse")
    return notes


def _not_done(page: Page, story: Story) -> None:
    page.blank()
    page.line(words.counts_line(story))
    searching = "search" in story.analysis.run.plan
    for why, cases in words.by_reason(story):
        if searching and f"{LEFT_OUT_BY_SEARCH}: " in why:
            # Dozens of them: counted below, each with its reason in the report.
            continue
        names = ", ".join(
            story.name(case) if case.case.backend != "—" else words.one_line(case.case.variant) for case in cases
        )
        page.line(f"{names}: {words.one_line(why)}", indent=2, hanging=2)


def _how(page: Page, story: Story) -> None:
    analysis = story.analysis
    page.blank()
    _machines(page, story)
    page.line(f"measured here: {words.effort_line(analysis)}", style="dim", hanging=2)
    if asked := words.limits(analysis):
        page.line(f"limits: {'; '.join(asked)}", style="dim", hanging=2)
    ended = trust.stopping(analysis)
    for line in [*([ended] if ended else []), *searched.lines(analysis.run), *trust.lines(analysis)]:
        page.line(line, style="dim", hanging=2)
    for note in analysis.notes:
        page.line(f"note: {words.one_line(note)}", style="dim", hanging=2)


def _machines(page: Page, story: Story) -> None:
    for line in words.machine_lines(story.analysis.machines):
        page.line(line, style="dim", hanging=2)
