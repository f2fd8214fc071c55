"""The HTML report: one file with style, script and data inside, that opens from an e-mail without network.

What comes from models, runtimes and users passes jinja2's escaping or JSON with `<` as `\\u003c`; a content security policy
names the two scripts by their hashes, so that nothing else could run even if something got through.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from typing import Any

from rich.console import Console

from profiler.analysis import AXES, CaseResult
from profiler.machines import EMULATED, Machine
from profiler.records import Environment, Figure, NotMeasured
from profiler.repeat import study_command
from profiler.report import details, figures, load, searched, trust, words
from profiler.report.words import Story
from profiler.store import RunData


def html(
    story: Story,
    share: Callable[[CaseResult], Figure] | None = None,
    *,
    pictures: Sequence[figures.Figure] = (),
    script: str = "",
    undrawn: str | None = None,
) -> str:
    """The page; `share` as in `write_report`.

    `pictures` are drawn by `script` (`profiler.report.drawing`); where there is none, `undrawn` says why.
    """
    from jinja2 import Environment as Jinja
    from jinja2 import FunctionLoader, StrictUndefined

    library = _scoped(script) if pictures and script else ""
    pictures = pictures if library else ()
    boot = _source("boot.js")
    template = Jinja(
        loader=FunctionLoader(_source), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).get_template("report.html.j2")
    return template.render(
        **_content(story),
        shares=[] if share is None else _shares(story, share),
        lead=[picture for picture in pictures if picture.name in ("cost", "frontier")],
        charts=[picture for picture in pictures if picture.name in ("forest", "latency")],
        panels=[picture for picture in pictures if picture.name.startswith("stability")],
        specs=script_json({picture.name: picture.spec for picture in pictures}),
        undrawn=None if undrawn is None else words.one_line(undrawn),
        style=_source("report.css"), library=library, boot=boot,
        hashes=" ".join(_hash(script) for script in (library, boot)) if library else "'none'",
    )  # fmt: skip


def script_json(value: Any) -> str:
    """JSON that may stand in a script element: nothing in it can end the element or begin a comment."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    replaced = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
    return "".join(replaced.get(char, char) for char in text)


def _scoped(script: str) -> str:
    """The drawing script, in a scope of its own."""
    return "(()=>{" + script.replace("</script", "<\\/script").replace("<!--", "<\\!--") + "})();"


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode('utf-8')).digest()).decode('ascii')}'"


def _source(name: str) -> str:
    return (files("profiler.report") / "templates" / name).read_text(encoding="utf-8")


def _content(story: Story) -> dict[str, Any]:
    analysis, run = story.analysis, story.analysis.run
    return {
        "run": run,
        "model": words.one_line(run.study.model.rsplit("/", maxsplit=1)[-1]),
        "headline": words.one_line(story.recommendation.headline),
        "decided": story.recommendation.case is not None,
        "sentences": [words.one_line(sentence) for sentence in story.recommendation.sentences],
        "unfinished": words.unfinished(analysis),
        "counts": words.counts_line(story),
        "quality_title": words.quality_title(story),
        "rows": [_row(story, case) for case in analysis.cases],
        "has_verdicts": any(case.checks for case in analysis.cases),
        "has_cost": any(not isinstance(case.usd_per_million, NotMeasured) for case in analysis.measured),
        "unbounded": words.unbounded(analysis.measured),
        "places": _places(story),
        "place_titles": words.PLACE_TITLES,
        "places_note": words.places_note(story) if _places(story) else "",
        "chosen_place": _chosen_place(story),
        "pooling": words.pooling(story) if story.several else "",
        "tied": words.TIED_MEANING if story.view.tied else None,
        "corrected": words.CORRECTED_MEANING if any(words.corrected(case) for case in analysis.measured) else None,
        "priced_as": analysis.machine or "each machine by itself",
        "utilisation": f"{run.study.cost.utilisation:.0%}",
        "ruled_out": [_out(story, case, why) for case, why in story.recommendation.ruled_out],
        "dominated": [_out(story, case, words.one_line(story.view.why[case.key])) for case, _ in story.view.dominated],
        "behind": [_out(story, case, words.one_line(story.view.why[case.key])) for case, _ in story.view.behind],
        "unplaced": [_out(story, case, words.one_line(why)) for case, why in story.view.unplaced],
        "x_title": AXES[story.view.x].title,
        "y_title": AXES[story.view.y].title,
        "failures": [_failure(story, case) for case in analysis.cases if case.status != "measured"],
        "variants": _variants(story),
        "search": searched.lines(run),
        "decisions": searched.rows(run),
        "warmups": trust.page_rows(story),
        "load": load_text(run),
        "soaked": run.study.soak is not None,
        "trust": [line for line in (trust.stopping(analysis), *trust.lines(analysis)) if line],
        "observed_title": trust.OBSERVED_TITLE,
        "machines": [_machine(story, group) for group in dict.fromkeys(item.group for item in analysis.machines)],
        "effort": run.study.effort,
        "effort_line": words.effort_line(analysis),
        "metric": words.metric_name(analysis),
        "labelled": story.labelled,
        "not_measured": [*words.not_measured(analysis), *words.not_in_this_run(run)],
        "notes": [words.one_line(note) for note in analysis.notes],
        "limits": words.limits(analysis),
        "command": words.clean(_command(run)),
        "data_sha256": run.plan.get("data_sha256"),
        "source_sha256": run.plan.get("source_sha256"),
    }


def load_text(run: RunData) -> str:
    """What the load stage found, as the terminal shows it; empty without one."""
    if run.study.load is None:
        return ""
    console = Console(
        file=io.StringIO(),
        width=110,
        color_system=None,
        force_terminal=False,
        legacy_windows=False,
        force_jupyter=False,
    )
    load.render(load.read_result(run), console)
    file = console.file
    assert isinstance(file, io.StringIO)
    return words.clean(file.getvalue())


def _shares(story: Story, share: Callable[[CaseResult], Figure]) -> list[dict[str, str]]:
    """Of each measured case: the part of its device's limit that it reached; empty where that is known of none."""
    found = [(case, share(case)) for case in story.analysis.measured]
    if all(isinstance(figure, NotMeasured) for _, figure in found):
        return []
    told = [(case, words.quality(figure)) for case, figure in found]
    return [
        _out(
            story,
            case,
            f"not known: {cell.title}" if cell.missing else f"{cell}{f' ({cell.title})' if cell.title else ''}",
        )
        for case, cell in told
    ]


def _out(story: Story, case: CaseResult, why: str) -> dict[str, str]:
    return {"name": f"#{case.number} {story.name(case)}", "why": words.one_line(why)}


def _row(story: Story, case: CaseResult) -> dict[str, Any]:
    unit = words.time_unit(story.analysis.measured)
    cells = [
        words.seconds(case.latency_p50_s, unit), words.seconds(case.latency_p99_s, unit),
        trust.observed_p99(case, unit), words.versus(case),
        words.quality_cell(story, case), words.size(case.peak_rss_bytes), words.size(case.size_bytes),
        words.quality(case.agreement), words.rate(case.throughput_per_s), words.usd(case.usd_per_million),
    ]  # fmt: skip
    return {
        "number": case.number, "variant": words.one_line(case.case.variant), "place": story.place(case), "cells": cells,
        "tags": [tag for tag in story.tags(case).split(", ") if tag and tag != story.standing(case)],
        "standing": story.standing(case), "verdict": case.verdict.replace("_", " ") if case.checks else "",
        "checks": "; ".join(f"{check.name} {check.verdict}: {words.one_line(check.text)}" for check in case.checks),
        "measured": case.status == "measured", "comparison": words.comparison(case),
        "reason": "" if case.status == "measured" else words.one_line(words.reason(case)),
    }  # fmt: skip


def _failure(story: Story, case: CaseResult) -> dict[str, str]:
    failure = case.failure
    name = story.name(case) if case.case.backend != "—" else words.one_line(case.case.variant)
    return {
        "name": f"#{case.number} {name}",
        "status": case.status,
        "reason": words.one_line(words.reason(case)),
        "message": "" if failure is None or "\n" not in failure.message.strip() else words.clean(failure.message),
        "log": "" if failure is None or not failure.log_tail else words.clean(failure.log_tail),
    }


def _variants(story: Story) -> list[dict[str, Any]]:
    ran = {case.case.variant: case.process for case in story.analysis.measured if case.process is not None}
    rows = []
    for record in story.analysis.run.artifacts:
        process = ran.get(record.variant)
        rows.append(
            {
                "name": words.one_line(record.variant),
                "changed": details.changed(record),
                "ran": [] if process is None else details.ran(process)[:4],
            }
        )
    return rows


def _places(story: Story) -> list[dict[str, words.Cell]]:
    """The best case of each machine; empty where no machine has one."""
    offered = story.recommendation.places
    return [words.place_cells(story, item) for item in offered] if any(item.case for item in offered) else []


def _chosen_place(story: Story) -> str | None:
    """The target of the machine to take."""
    chosen = story.recommendation.case
    return None if chosen is None else words.one_line(chosen.machine.target)


def _machine(story: Story, group: str) -> dict[str, Any]:
    """One machine: its heading, what must be known of its figures, and its facts."""
    same = [item for item in story.analysis.machines if item.group == group]
    found = same[0].environment
    remarks = [
        words.one_line(same[0].envelope) if same[0].envelope else "",
        f"emulated: {EMULATED}; accuracy, size and failures count" if same[0].emulated else "",
        story.analysis.grades[group].told if story.several else "",
        "" if found is not None else "The run does not tell what machine this is.",
    ]
    return {
        "name": words.one_line(", ".join(item.target for item in same)) if story.several or not same[0].here else "",
        "remarks": [text for text in remarks if text],
        "facts": [] if found is None else _facts(found, same[0]),
    }


def _facts(found: Environment, machine: Machine) -> list[tuple[str, str]]:
    unknown = "not told by this system"
    rows = [
        ("host", found.hostname),
        ("system", f"{found.system}, {found.machine}, Python {found.python}"),
        ("processor", found.cpu_model or unknown),
        ("instruction sets", " ".join(found.cpu_isa) or unknown),
        ("cores", f"{found.usable_cores} usable of {found.logical_cores} logical"),
        ("memory", f"{found.memory_bytes / 1e9:.1f} GB"),
        ("hypervisor", found.hypervisor or "none seen"),
        ("GPUs", ", ".join(found.gpus) or "none seen"),
        ("frequency governor", found.governor or unknown),
        ("load before the run", unknown if found.load_1min is None else f"{found.load_1min:.2f} over a minute"),
        *([("device profile", machine.profile)] if machine.profile else []),
        *([("priced as", machine.priced_as)] if machine.priced_as else []),
        *found.versions.items(),
        *(("note", note) for note in found.notes),
    ]
    return [(words.one_line(name), words.one_line(value)) for name, value in rows]


def _command(run: RunData) -> str:
    search = run.plan.get("search")
    asked = search.get("asked") if isinstance(search, Mapping) else None
    return study_command(
        run.study, search=(asked if isinstance(asked, Mapping) else {}) if search is not None else None
    )
