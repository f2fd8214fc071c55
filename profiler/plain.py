"""The one place that cleans text before a person sees it: what steers a terminal, and signs that its encoding lacks."""

from __future__ import annotations

import re

_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff]"
)

_ASCII = str.maketrans({
    "▸": ">", "●": "*", "◐": "o", "○": ".", "■": "#", "×": "x", "−": "-", "–": "-", "—": "-", "·": "|", "µ": "u", "…": "...",
    "→": "->", "≥": ">=", "≤": "<=", "±": "+-", "’": "'", "“": '"', "”": '"', "✓": "v", "✗": "x", "⌊": "", "⌋": "",
    "°": "", "²": "2", "³": "3", "\N{REPLACEMENT CHARACTER}": "?", "\u00a0": " ",
})  # fmt: skip


def clean(text: str) -> str:
    """Text from models, runtimes and logs without what could steer a terminal or reorder a line; tabs become spaces."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text.expandtabs(4).replace("\r\n", "\n"))


def one_line(text: str) -> str:
    """The same on one line."""
    return " ".join(clean(text).split())


def ascii_only(text: str) -> str:
    """The text in ASCII: signs of ours by what looks like them, others as `?`."""
    return text.translate(_ASCII).encode("ascii", "replace").decode("ascii")


def json_text(text: str, *, narrow: bool = False) -> str:
    """A JSON document in which nothing steers a terminal; in ASCII where `narrow`. The same values are read from it.

    Outside of strings JSON has neither kind of sign, so each may be written as an escape wherever it stands.
    """
    pattern = _NOT_ASCII if narrow else _CONTROL
    return pattern.sub(lambda match: _escaped(match[0]), text)


_NOT_ASCII = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\U0010ffff]")


def _escaped(char: str) -> str:
    units = char.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at] << 8 | units[at + 1]:04x}" for at in range(0, len(units), 2))
