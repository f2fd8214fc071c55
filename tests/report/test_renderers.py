"""One test for all renderers: each tells every kind of run without crashing, and none lets hostile text act."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from profiler.analysis import Analysis
from profiler.decide import view
from profiler.report import drawing, export, figures, table
from profiler.report.words import Story


def _console(draw: Callable[[Console], None], width: int = 100, *, colour: bool = False) -> str:
    stream = io.StringIO()
    draw(Console(file=stream, width=width, force_terminal=colour, color_system="truecolor" if colour else None))
    return stream.getvalue()


def _all_details(analysis: Analysis) -> str:
    return "".join(
        _console(lambda console, case=case: table.case_details(analysis, case, console)) for case in analysis.cases
    )


RENDERERS: dict[str, Callable[[Analysis], str]] = {
    "text": table.text,
    "narrow": lambda analysis: table.text(analysis, width=60),
    "ascii": lambda analysis: table.text(analysis, unicode=False),
    "colour": lambda analysis: _console(lambda console: table.render(analysis, console), colour=True),
    "frontier": lambda analysis: _console(lambda console: table.frontier_table(analysis, view(analysis), console)),
    "other axes": lambda analysis: _console(lambda c: table.frontier_table(analysis, view(analysis, "size", "agreement"), c)),
    "energy axis": lambda analysis: _console(lambda c: table.frontier_table(analysis, view(analysis, "energy", "accuracy"), c)),
    "cases": lambda analysis: _console(lambda console: table.cases_table(analysis, console)),
    "details": _all_details,
    "json": export.to_json,
    "case json": lambda analysis: "".join(export.case_json(analysis, case) for case in analysis.cases),
    "csv": export.to_csv,
    "frontier json": lambda analysis: export.frontier_json(analysis, view(analysis)),
    "frontier csv": lambda analysis: export.frontier_csv(analysis, view(analysis)),
}  # fmt: skip


@pytest.mark.parametrize("renderer", list(RENDERERS))
def test_every_renderer_tells_every_kind_of_run(renderer: str, analysis: Analysis) -> None:
    """Each renderer gives text for each kind of run, twice the same, without a NaN."""
    told = RENDERERS[renderer](analysis)
    assert told == RENDERERS[renderer](analysis)
    assert told.strip() or not analysis.cases
    assert "NaN" not in told
    assert "nan" not in told.split()


def test_the_page_tells_every_kind_of_run(content: str, drawn: str, analysis_of: Callable[[str], Analysis]) -> None:
    """The page is drawn for each kind of run, with the decision as its title."""
    from profiler.decide import recommend

    analysis = analysis_of(drawn)
    headline = recommend(analysis, view(analysis)).headline
    assert f"<h1>{headline}</h1>" in content
    assert "NaN" not in content.split("<script", maxsplit=1)[0]


@pytest.mark.parametrize("renderer", [name for name in RENDERERS if name != "colour"])
def test_no_renderer_passes_on_terminal_control(renderer: str, full: Analysis) -> None:
    """Escape sequences and direction overrides of a worker's log never reach a terminal."""
    told = RENDERERS[renderer](full)
    assert not any(char in told for char in "\x1b\x07\u202e") or renderer in ("json", "case json")
    assert "\x1b" not in told


def test_a_picture_is_drawn_of_every_kind_of_run(drawn: str, analysis_of: Callable[[str], Analysis]) -> None:
    """The frontier's PNG has PNG's signature and a readable size, also when there is nothing to draw."""
    spec = figures.picture(Story.of(analysis_of(drawn)))
    png = drawing.draw(spec, vl_version=figures.vegalite_version()).png
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")
    assert width >= 1200
    assert height >= 200
