"""Lines and grids on a terminal of any width, with or without colour and Unicode. What fits is decided here, once."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from profiler.plain import ascii_only

_GLUE = "\u00a0"
"""A space at which no line is broken; it leaves as an ordinary space."""

_GAP = "  "


@dataclass(frozen=True)
class Column:
    """A column of a grid. Each cell has one or two parts: the value, and under or beside it the interval."""

    title: str
    cells: Sequence[tuple[str, str]]
    right: bool = False
    styles: Sequence[str] = field(default=())


class Page:
    """Writes to a console; every text passes here, so that control characters and markup never reach the terminal."""

    def __init__(self, console: Console) -> None:
        """`console` decides width, colour and encoding."""
        self._console = console
        self._ascii = not console.encoding.lower().startswith("utf")
        self.width = max(console.width, 20)

    def plain(self, text: str) -> str:
        """The text in the characters that the console has."""
        return ascii_only(text) if self._ascii else text

    def blank(self) -> None:
        """An empty line."""
        self._console.print()

    def line(self, text: str, *, style: str = "", indent: int = 0, hanging: int = 0) -> None:
        """A paragraph, wrapped; lines after the first are indented by `hanging` more."""
        if self._ascii:
            text = self.plain(text.replace(_GLUE, "\0")).replace("\0", _GLUE)
        wrapped = textwrap.wrap(
            text.replace(" %", f"{_GLUE}%"),
            self.width - 1,
            initial_indent=" " * indent,
            subsequent_indent=" " * (indent + hanging),
            break_on_hyphens=False,
        )
        for part in wrapped or [""]:
            self._put(Text(part.replace(_GLUE, " "), style=style))

    def heading(self, text: str) -> None:
        """A title with space above."""
        self.blank()
        self.line(text, style="bold")

    def verbatim(self, text: str, *, indent: int = 0) -> None:
        """Lines as they are, long ones folded."""
        room = max(self.width - 1 - indent, 10)
        for row in text.splitlines():
            for start in range(0, max(len(row), 1), room):
                self._put(Text(" " * indent + self.plain(row[start : start + room])))

    def facts(self, rows: Sequence[tuple[str, str]], *, indent: int = 2) -> None:
        """Names and values; on narrow terminals the value goes below its name."""
        if not rows:
            return
        left = min(max(cell_len(self.plain(name)) for name, _ in rows), 30)
        for name, value in rows:
            if self.width < 70:
                self.line(f"{name}: {value}", indent=indent, hanging=2)
            else:
                padded = (
                    set_cell_size(self.plain(name), left) if cell_len(self.plain(name)) <= left else self.plain(name)
                )
                # Filled with a sign that is no space, which the wrapping would swallow.
                head = padded.replace(" ", "\0")
                wrapped = textwrap.wrap(
                    f"{head}\0\0{self.plain(value)}", self.width - 1, initial_indent=" " * indent,
                    subsequent_indent=" " * (indent + left + 2), break_on_hyphens=False,
                )  # fmt: skip
                for part in wrapped:
                    self._put(Text(part.replace("\0", " ")))

    def grid(self, columns: Sequence[Column], *, lines: int) -> None:
        """Columns side by side, with one or two lines a row."""
        widths = [self._width(column, lines) for column in columns]
        self._row([(self.plain(column.title), "bold") for column in columns], columns, widths)
        for index in range(len(columns[0].cells) if columns else 0):
            for part in range(lines):
                texts = []
                for column in columns:
                    value, interval = column.cells[index]
                    style = column.styles[index] if column.styles else ""
                    shown = f"{value} {interval}".strip() if lines == 1 else (value, interval)[part]
                    texts.append((self.plain(shown), style if part == 0 else "dim"))
                if any(text for text, _ in texts):
                    self._row(texts, columns, widths)

    def fits(self, columns: Sequence[Column], *, lines: int) -> bool:
        """Whether a grid has room."""
        return sum(self._width(column, lines) + len(_GAP) for column in columns) - len(_GAP) < self.width

    def _width(self, column: Column, lines: int) -> int:
        texts = [column.title]
        for value, interval in column.cells:
            texts += [f"{value} {interval}".strip()] if lines == 1 else [value, interval]
        return max(cell_len(self.plain(text)) for text in texts)

    def _row(self, texts: Sequence[tuple[str, str]], columns: Sequence[Column], widths: Sequence[int]) -> None:
        row = Text()
        for (text, style), column, width in zip(texts, columns, widths, strict=True):
            fill = " " * (width - cell_len(text))
            row.append(fill if column.right else "")
            row.append(text, style=style or None)
            row.append(("" if column.right else fill) + _GAP)
        row.rstrip()
        self._put(row)

    def _put(self, text: Text) -> None:
        self._console.print(text, soft_wrap=True, highlight=False)
