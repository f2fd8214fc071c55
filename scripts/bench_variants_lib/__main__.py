"""Measures our variants beside other tools' on five real models, each model in one run so that the same weather hits all."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from profiler import profile
from profiler.cli.console import Bars
from profiler.environment import describe
from profiler.errors import EdgeprofError
from profiler.variants import registry
from scripts.bench_variants_lib import candidates, compare, page, peers, subjects
from scripts.real_models_lib.fetch import CACHE, ROOT, FetchError

PAGE = ROOT / "docs" / "results" / "variants.md"
EFFORT = {"processes": 4, "rounds": 4, "warmup_max_s": 1.0}
"""Some forty cases a model: about ten minutes each."""
QUICK = {"processes": 3, "rounds": 3, "warmup_s": 0.1, "warmup_max_s": 0.5}
"""Enough to see that everything works, not to tell neighbours apart."""
KEPT = ROOT / "docs" / "results" / "variants.json"


def main() -> int:
    """0 when every model was measured; a model that failed does not stop the others."""
    asked = _options()
    # Paths in variants' texts and functions named as modules count from here.
    os.chdir(ROOT)
    results: dict[str, Any] = {}
    failed = False
    for name in asked.models:
        start = time.perf_counter()
        try:
            results[name] = _measure(name, asked)
        except (EdgeprofError, FetchError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            failed = True
            continue
        print(f"\n{page.section(results[name])}\n\n{name}: {time.perf_counter() - start:.0f} s", flush=True)
    if results:
        print(f"\n{page.summary(results)}")
    if asked.json:
        asked.json.write_text(json.dumps(results, indent=1), encoding="utf-8")
    if asked.write and results:
        _write(results)
    return 1 if failed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench_variants", description=__doc__)
    parser.add_argument(
        "--models",
        nargs="+",
        choices=subjects.MODELS,
        default=subjects.MODELS,
        metavar="NAME",
        help=f"{', '.join(subjects.MODELS)} (default: all)",
    )
    parser.add_argument("--quick", action="store_true", help="fewer rows, little effort: to see that it works")
    parser.add_argument(
        "--add", nargs="+", default=[], metavar="VARIANT", help="more variants of ours, e.g. those a search found"
    )
    parser.add_argument(
        "--keep-peers", action="store_true", help="take the peers' files of the last run where they are"
    )
    parser.add_argument(
        "--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)} and the figures beside it"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to FILE as well")
    asked = parser.parse_args()
    if asked.json:
        asked.json = asked.json.resolve()
    return asked


def _measure(name: str, asked: argparse.Namespace) -> dict[str, Any]:
    subject = subjects.prepare(name, quick=asked.quick)
    ours = tuple(dict.fromkeys((*candidates.PLAIN, *candidates.CANDIDATES[name], *asked.add)))
    made = _peers(subject, keep=asked.keep_peers)
    labels = {
        registry.make(f"external{{label={peer.label},path={subjects.short_path(peer.path)}}}").text: peer.label
        for peer in made
        if peer.path is not None
    }
    result = profile(
        subjects.short_path(subject.model),
        subjects.short_path(subject.evaluation),
        out=CACHE / "runs" / f"bench-{name}",
        progress=Bars(None),
        calibration=subjects.short_path(subject.calibration),
        variants=(*ours, *labels),
        backends=candidates.BACKENDS,
        metric=subject.metric,
        effort=dict(QUICK if asked.quick else EFFORT),
        constraints={"max_drop": compare.LIMIT},
    )
    analysis = result.analysis
    table = compare.rows(analysis, labels)
    unmade = {record.case: record.message for record in result.run.failures if record.stage == "variant"}
    here = describe()
    isa = ", ".join(here.cpu_isa) or "instruction sets unknown"
    effort = result.run.study.effort
    return {
        "name": name,
        "title": subject.title,
        "facts": list(subject.facts),
        "command": f"scripts/bench_variants --models {name}{' --quick' if asked.quick else ''}",
        "date": f"{datetime.now(timezone.utc):%Y-%m-%d}",
        "machine": f"{here.cpu_model} ({isa}), {here.usable_cores} cores{', virtual' if here.hypervisor else ''}, "
        f"grade {analysis.grade.letter}",
        "versions": dict(here.versions),
        "effort": f"{effort.processes} processes of {effort.rounds} rounds for each case, one thread, batch 1",
        "peers": [{**asdict(peer), "path": None if peer.path is None else peer.path.name} for peer in made],
        "not_made": {labels.get(text, text): " ".join(why.split()) for text, why in unmade.items()},
        "notes": _notes(result.run.artifacts, labels),
        "rows": [asdict(row) for row in table if row.variant not in {labels.get(text, text) for text in unmade}],
        "outcome": asdict(compare.outcome(analysis, table)),
    }


def _peers(subject: subjects.Subject, *, keep: bool) -> tuple[peers.Peer, ...]:
    folder = CACHE / "bench" / subject.name / "peers"
    found = []
    for tool in peers.tools(subject):
        kept = next((path for path in sorted(folder.glob(f"{tool.label}.*")) if path.suffix in (".onnx", ".xml")), None)
        peer = peers.Peer(tool.label, tool.about, kept, 0.0) if keep and kept else peers.make(tool, subject, folder)
        print(f"{subject.name}: {tool.label}: {peer.why or f'{peer.seconds:.0f} s'}", file=sys.stderr, flush=True)
        found.append(peer)
    return tuple(found)


def _notes(artifacts: Any, labels: Mapping[str, str]) -> dict[str, list[str]]:
    return {labels.get(record.variant, record.variant): list(record.notes) for record in artifacts if record.notes}


def _write(results: Mapping[str, Any]) -> None:
    """Models that were not measured now keep their last figures."""
    kept = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.is_file() else {}
    merged = {**kept, **results}
    ordered = {name: merged[name] for name in subjects.MODELS if name in merged}
    KEPT.write_text(json.dumps(ordered, indent=1), encoding="utf-8")
    PAGE.write_text(page.between(PAGE.read_text(encoding="utf-8"), page.document(ordered)), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
