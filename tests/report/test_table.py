"""What stands on the terminal."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace

import pytest
from rich.cells import cell_len
from rich.console import Console

from profiler.analysis import Analysis
from profiler.decide import recommend, view
from profiler.records import Estimate, NotMeasured
from profiler.report import table, words


def test_the_decision_comes_first(full: Analysis) -> None:
    """The first line that a person reads is the decision, the next ones are its reasons."""
    told = recommend(full, view(full))
    lines = table.text(full, width=300).splitlines()
    assert f"▸ {told.headline}" == lines[0]
    assert [f"  {sentence}" for sentence in told.sentences] == lines[1 : 1 + len(told.sentences)]


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
def test_no_line_is_wider_than_the_terminal(width: int, analysis: Analysis) -> None:
    """Every line fits into the width that was asked for."""
    assert [line for line in table.text(analysis, width=width).splitlines() if cell_len(line) > width] == []


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_every_width_tells_the_same_facts_of_the_frontier(width: int, full: Analysis) -> None:
    """Values, intervals, words and verdicts of the frontier's members stand on narrow and wide terminals alike."""
    flat = " ".join(table.text(full, width=width).split())
    unit = words.time_unit(full.measured)
    for case in view(full).members:
        for cell in (
            words.seconds(case.latency_p50_s, unit), words.seconds(case.latency_p99_s, unit), words.versus(case),
            words.size(case.peak_rss_bytes),
        ):  # fmt: skip
            assert cell.value in flat
            assert cell.interval in flat
    assert "PASS" in flat
    assert "reference" in flat
    assert "faster" in flat


def test_ties_dominated_failed_and_skipped_are_words(full: Analysis) -> None:
    """Nothing is told by colour or a sign alone, and whatever did not happen stands there with its reason."""
    told = " ".join(table.text(full).split())
    found = view(full)
    assert found.dominated
    for case, by in found.dominated:
        assert f"{case.case.variant} · " in told
        assert words.one_line(found.why[case.key]).startswith(words.one_line(by))
        assert words.one_line(found.why[case.key]) in told
    assert "failed 2 · skipped 1" in told
    assert "failed: unsupported in stage load: unsupported op MatMulNBits" in told
    assert "skipped: bf16 is made for ov, not for ort." in told


def test_ascii_terminals_get_ascii(analysis: Analysis) -> None:
    """Without Unicode all characters are ASCII, and the words stay."""
    told = table.text(analysis, unicode=False)
    assert told.isascii()
    assert told.startswith("> ")


def test_plain_and_coloured_output_have_the_same_words(full: Analysis) -> None:
    """Colour adds nothing but colour."""
    import re

    stream = io.StringIO()
    table.render(
        full, Console(file=stream, width=120, force_terminal=True, color_system="truecolor", legacy_windows=False)
    )
    bare = re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue())
    assert table.text(full, width=120).split() == bare.split()


def test_an_interrupted_run_says_so(analysis_of: Callable[[str], Analysis]) -> None:
    """A part of a run is called one, with the command that finishes it."""
    told = " ".join(table.text(analysis_of("interrupted")).split())
    assert "This run is interrupted" in told
    assert "edgeprof run --resume 20260101-120000-abcd" in told


def test_without_labels_agreement_stands_in(analysis_of: Callable[[str], Analysis]) -> None:
    """Unlabelled data give agreement, and the reason why there is no accuracy."""
    told = " ".join(table.text(analysis_of("unlabelled")).split())
    assert "agreement with fp32" in told
    assert "— accuracy not measured: the data has no labels" in told


def test_without_limits_there_are_no_verdicts(analysis_of: Callable[[str], Analysis]) -> None:
    """A PASS without a limit would be a claim about nothing."""
    told = table.text(analysis_of("no limits"))
    assert "PASS" not in told
    assert "no limits were set" in told


def test_one_process_leaves_bounds_open_and_says_so(analysis_of: Callable[[str], Analysis]) -> None:
    """A single round bounds nothing: the interval's sides are question marks with their meaning."""
    told = table.text(analysis_of("one round"))
    assert "[?, ?]" in told
    flat = " ".join(told.split())
    assert (
        "? = no bound on that side (the other end holds, as “at least” or “at most”): of p50, p99 because one" in flat
    )
    assert "because one round of 197 samples" in flat
    assert "of vs reference because one process pair" in flat


def test_a_sign_is_explained_where_it_stands(full: Analysis) -> None:
    """A p90 of a typical process is no column: without a sign in the table there is nothing to explain."""

    def told(field: str) -> str:
        cases = tuple(replace(case, typical=frozenset({field})) for case in full.cases)
        return " ".join(table.text(replace(full, cases=cases), width=150).split())

    assert "~ is of a typical process" in told("latency_p99_s")
    assert "~" in told("latency_p99_s").replace("~ is of", "")
    assert "~" not in told("latency_p90_s")


def test_details_hold_everything_known(full: Analysis) -> None:
    """One case: figures, provider, precision, artifact, limits, processes."""
    stream = io.StringIO()
    case = full.case("int8-static@ort/b1/t1")
    table.case_details(full, case, Console(file=stream, width=110))
    told = " ".join(stream.getvalue().split())
    for part in (
        "p90", "CPUExecutionProvider", "12 ops in f32, 30 ops in i8", "a" * 64, "limits: PASS", "processes (5)",
        "not measured: no energy meter", "onnxruntime 1.20.0", str(words.seconds(case.latency_p99_s)),
    ):  # fmt: skip
        assert part in told


def test_details_of_a_failure_hold_its_log(full: Analysis) -> None:
    """A failed case shows the whole message and the worker's last lines, made harmless."""
    stream = io.StringIO()
    table.case_details(full, full.case("int4-weight@ov/b1/t1"), Console(file=stream, width=110))
    told = stream.getvalue()
    assert "second line" in told
    assert "red" in told
    assert "\x1b" not in told


@pytest.mark.parametrize(
    ("estimate", "expected"),
    [
        (Estimate(0.0000803, 0.0000791, 0.0000812, "s"), "80.3 µs [79.1, 81.2]"),
        (Estimate(0.00123456, 0.00123449, 0.0012349, "s"), "1.235 ms [1.234, 1.235]"),
        (Estimate(0.25, None, 0.5, "s"), "250 ms [?, 500]"),
        (Estimate(0.25, 0.2, float("inf"), "s", source="predicted"), "250 ms (predicted) [200, ?]"),
        (Estimate(0.0, 0.0, 0.0, "s"), "0.00 ns"),
    ],
)
def test_durations_show_value_unit_and_interval(estimate: Estimate, expected: str) -> None:
    """Three digits, one unit, the interval with the same decimals, a question mark where it is open, and the source."""
    assert expected == str(words.seconds(estimate))


@pytest.mark.parametrize(
    ("figure", "expected"),
    [
        (Estimate(-0.0012, -0.004, 0.002, "proportion"), "−0.12 points [−0.40, +0.20]"),
        (Estimate(0.0, 0.0, 0.0, "proportion"), "0.00 points"),
        (Estimate(-0.25, -0.5, 0.125, "native"), "−0.250 [−0.500, +0.125]"),
        (NotMeasured("no data was given"), "—"),
    ],
)
def test_changes_show_their_sign(figure: Estimate | NotMeasured, expected: str) -> None:
    """Percentage points for proportions, the metric's own number otherwise; never a signed zero."""
    assert expected == str(words.change(figure))


def test_a_figure_that_is_nothing_has_the_unit_of_its_bounds():
    """Zero to 28.8 ms, and not 28,785,882 ns."""
    cell = words.seconds(Estimate(0.0, 0.0, 0.028785882, "s"))

    assert cell.value == "0.00 ms"
    assert "28.79" in str(cell)
