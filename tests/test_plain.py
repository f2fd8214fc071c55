"""One place cleans text; whatever writes goes through it."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from profiler import plain
from profiler.cli import console

STEERING = ("\x1b[31mred", "\x9b2J", "\x07", "\u202egnol", "\x1b]0;title\x07", "a\rb", "\u2066x\u2069")


@pytest.mark.parametrize("text", STEERING)
def test_nothing_steers_through_the_console(text):
    """Printed, in a table's cell or title, or as a line of stderr: no sign of it is left, and markup is text."""
    shown = console.CleanConsole(file=io.StringIO(), width=100, markup=False, highlight=False)
    table = Table(title=text)
    table.add_column(text)
    table.add_row(f"{text} [bold]")
    shown.print(text, soft_wrap=True)
    shown.print(table)

    told = shown.file.getvalue()
    assert not set(told) & set("\x1b\x9b\x07\u202e\r\u2066\u2069")
    assert "[bold]" in told


def test_colour_still_reaches_a_terminal():
    """rich's own codes are not text."""
    shown = console.CleanConsole(
        file=io.StringIO(), force_terminal=True, color_system="standard", width=40, highlight=False, markup=False
    )
    shown.print("good\x1b[2J", style="green")

    assert shown.file.getvalue().startswith("\x1b[32mgood\N{REPLACEMENT CHARACTER}[2J")


@given(st.text(st.characters(blacklist_categories=("Cs",)), max_size=40), st.booleans())
def test_json_reads_back_the_same(text, narrow):
    """Escaped or not, the values are those that were written, and nothing steers."""
    told = plain.json_text(json.dumps({"a": text}, ensure_ascii=False), narrow=narrow)

    assert json.loads(told) == {"a": text}
    assert plain.clean(told.replace("\t", " ")) == told.replace("\t", " ")
    assert not narrow or told.isascii()


def test_an_error_s_text_is_cleaned(edgeprof_errors):
    """Messages quote models, data, studies and databases."""
    told = edgeprof_errors("doctor\x1b[31m\x9b2J")

    assert "unknown command 'doctor\N{REPLACEMENT CHARACTER}[31m" in told
    assert "\x1b" not in told
    assert "\x9b" not in told


@pytest.fixture
def edgeprof_errors(capsys, tmp_path):
    """What a command says on stderr."""
    from profiler.cli import main

    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit):
            main([*arguments, "--out", str(tmp_path)])
        return capsys.readouterr().err

    return run
