"""The HTML report: one safe file that needs no network."""

from __future__ import annotations

import base64
import hashlib
import html as html_module
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from profiler.analysis import Analysis
from profiler.decide import recommend, view
from profiler.errors import StoreError
from profiler.report import page, write_report
from profiler.report.words import Story


class _Elements(HTMLParser):
    """What a browser would see: elements with their attributes, scripts and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        assert tag == self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif not self.open or self.open[-1] != "style":
            self.text.append(data)


def test_the_page_loads_nothing(content: str) -> None:
    """No element refers to another file, and every element that was opened is closed."""
    found = _Elements(content)
    assert found.open == []
    for tag, attributes in found.elements:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base", "form")
        assert not {"src", "href", "srcset", "action", "data"} & set(attributes)
        assert not any(name.startswith("on") for name in attributes)
    assert "@import" not in content.split("<script", maxsplit=1)[0]
    assert "url(" not in content.split("<script", maxsplit=1)[0]


def test_only_the_page_s_own_scripts_may_run(content: str, hostile: dict[str, str]) -> None:
    """The policy names exactly the scripts by hash, and hostile names are text."""
    found = _Elements(content)
    policy = next(attributes["content"] for tag, attributes in found.elements if attributes.get("http-equiv"))
    executable = [text for attributes, text in found.scripts if attributes.get("type") != "application/json"]
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in executable]
    assert re.findall(r"sha256-([^']+)'", str(policy)) == hashes
    assert "default-src 'none'" in str(policy)
    assert "unsafe-eval" not in str(policy)
    assert hostile["html"] not in content
    assert hostile["html"] in "".join(found.text)


def test_specs_are_json_that_cannot_end_its_script(content: str) -> None:
    """The charts' data parse, and hold no `<`."""
    found = _Elements(content)
    data = next(text for attributes, text in found.scripts if attributes.get("type") == "application/json")
    assert "<" not in data
    specs = json.loads(data)
    shown = {attributes["id"] for _, attributes in found.elements if str(attributes.get("id")).startswith("figure-")}
    assert {f"figure-{name}" for name in specs} == shown
    assert "http" not in re.sub(r'"\$schema":"[^"]+"', "", data)


def test_the_page_follows_the_terminal_s_order(full: Analysis, full_page: str) -> None:
    """Decision, frontier, numbers, what was ruled out, failures, variants, machine, method, what is missing, how to repeat."""
    text = " ".join("".join(_Elements(full_page).text).split())
    titles = [
        recommend(full, view(full)).headline, "Which variants are worth their latency p50?", "What does each case cost and give?",
        "Is each case faster than the unmodified model?", "What was ruled out, and why?", "What failed or was skipped?",
        "What did each variant change?", "Where was it measured?", "How was it measured?", "What was not measured?",
        "How can this be repeated?",
    ]  # fmt: skip
    places = [text.find(title, 200 if number else 0) for number, title in enumerate(titles)]
    assert -1 not in places
    assert sorted(places) == places
    for case in full.cases:
        assert case.case.variant in html_module.unescape(text)


def test_a_run_without_figures_has_no_script(analysis_of: Callable[[str], Analysis]) -> None:
    """Where nothing can be drawn the library is left out, and the page says what happened."""
    content = page.html(Story.of(analysis_of("only failures")))
    assert "vegaEmbed" not in content
    assert "the worker died with signal 11" in content
    assert "Nothing was measured" in content


def test_write_report_writes_four_whole_files(full: Analysis, tmp_path: Path) -> None:
    """The page and its companions are there, and no temporary file is left."""
    path = write_report(full, tmp_path / "deep" / "report.html")
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "cases.csv",
        "frontier.png",
        "report.html",
        "run.json",
    ]
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert json.loads((path.parent / "run.json").read_text(encoding="utf-8"))["format"] == 2


def test_a_report_that_cannot_be_written_says_where_and_what_next(
    analysis_of: Callable[[str], Analysis], tmp_path: Path
) -> None:
    """A file in the way of the folder gives one StoreError with the place and the next command, and leaves nothing behind."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot write the report to .*file.*--to FILE\.html"):
        write_report(analysis_of("empty"), tmp_path / "file" / "report.html")
    (tmp_path / "report.html").mkdir()
    with pytest.raises(StoreError, match="cannot write the report"):
        write_report(analysis_of("empty"), tmp_path / "report.html")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    with pytest.raises(StoreError, match="another name"):
        write_report(analysis_of("empty"), tmp_path / "run.json")
