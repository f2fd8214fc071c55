"""`edgeprof doctor`: the verdict, then what is wrong with its repair, then what is only to know, then what is fine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from profiler.cli import options as o

if TYPE_CHECKING:
    from rich.console import Console

    from profiler.doctor import Finding, Report
    from profiler.report.layout import Page


def command(json: o.Json = False, out: o.Out = o.OUT_DEFAULT) -> None:
    """What on this machine will spoil measurements, and the command that repairs it."""
    import json as json_module

    from profiler.cli import console
    from profiler.doctor import examine

    report = examine(out=out)
    if json:
        console.print_json(json_module.dumps(report.to_json(), indent=2))
    else:
        show(report, console.out)


_TITLES: dict[str, str] = {
    "problem": "problems: numbers taken now would be wrong",
    "warning": "warnings: numbers will scatter or drift",
    "note": "notes: to know when reading the numbers",
    "absent": "absent: this machine does not tell",
    "ok": "fine",
}
_STYLES: dict[str, str] = {"problem": "bold red", "warning": "yellow", "note": "", "absent": "dim", "ok": ""}


def show(report: Report, console: Console) -> None:
    """Print a report; the words say everything that colour says."""
    from profiler.report.layout import Page

    page = Page(console)
    page.line(report.verdict, style="bold")
    for severity, title in _TITLES.items():
        found = [finding for finding in report.findings if finding.severity == severity]
        if not found:
            continue
        page.heading(title)
        if severity == "ok":
            page.facts([(finding.name, finding.seen) for finding in found])
            continue
        for finding in found:
            _one(page, console, finding)


def _one(page: Page, console: Console, finding: Finding) -> None:
    page.line(f"{finding.name}: {finding.seen}", style=_STYLES[finding.severity], indent=2, hanging=2)
    if finding.why:
        page.line(finding.why, indent=4)
    if finding.fix:
        # In one piece however narrow the terminal is: this is to be copied.
        console.print(f"    fix: {page.plain(finding.fix)}", markup=False, highlight=False, soft_wrap=True)
