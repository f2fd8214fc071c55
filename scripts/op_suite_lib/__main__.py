"""The command: `python -m scripts.op_suite_lib`."""

from __future__ import annotations

import argparse
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from scripts.op_suite_lib.chunks import run_chunk
from scripts.op_suite_lib.subjects import Subject, folder, subjects
from scripts.op_suite_lib.table import kinds, table
from scripts.real_models_lib.fetch import ROOT, FetchError

RECIPES = (
    "graph", "fp16", "int8-static", "int8-static{per_channel=true}",
    "int8-static{bias_correction=true,calibration=mse,equalise=true,per_channel=true,smooth=0.5}",
    "int8-static{float_outputs=Conv|Gemm|MatMul,per_channel=true,symmetric_activations=true}",
    "int8-dynamic", "int8-dynamic{per_channel=true}", "int8-weight", "int8-weight{block_size=32}",
    "int4-weight", "int4-weight{format=standard}", "fp8", "nncf", "prune-channels{importance=magnitude,refit=false}",
    "prune-magnitude{sparsity=0.5}", "int8-static+fp16", "int8-dynamic+fp16", "int8-weight+fp16", "graph+int8-static",
    "fp16+int8-static",
)  # fmt: skip
CHUNK = 30


def main() -> int:
    """Try what was asked and has no result yet, then print the table. Exit code 1 when anything went wrong."""
    parser = argparse.ArgumentParser(prog="scripts/op_suite", description=__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="share of the models to try, e.g. 0.3")
    parser.add_argument("--seed", type=int, default=0, help="which models a share takes")
    parser.add_argument("--models", default="*", help="only models of this name, e.g. 'test_conv*'")
    parser.add_argument("--recipes", nargs="+", default=[], help="variants to make; all of the suite by default")
    parser.add_argument("--limit-s", type=float, default=180.0, help="longest time for one attempt")
    parser.add_argument("--out", type=Path, default=ROOT / ".cache" / "op_suite.jsonl", help="results, one per line")
    parser.add_argument("--fresh", action="store_true", help="forget the results that are there")
    parser.add_argument("--table", action="store_true", help="only print the table of the results that are there")
    asked = parser.parse_args()
    if asked.fresh:
        asked.out.unlink(missing_ok=True)
    if not asked.table:
        try:
            root = folder()
        except FetchError as reason:
            print(f"scripts/op_suite: skipped, the models cannot be had: {reason}", file=sys.stderr)
            return 0
        recipes = asked.recipes or [text for text in RECIPES if text != "nncf" or find_spec("nncf")]
        _run(subjects(root, asked.share, asked.seed, asked.models), recipes, asked.limit_s, asked.out)
    results = _stored(asked.out)
    print(table(results))
    return int(any(kinds(result) for result in results))


def _run(wanted: list[Subject], recipes: list[str], limit_s: float, out: Path) -> None:
    done = {(result["subject"], result["recipe"]) for result in _stored(out)}
    tasks = [(subject, [recipe for recipe in recipes if (subject.key, recipe) not in done]) for subject in wanted]
    tasks = [task for task in tasks if task[1]]
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a", encoding="utf-8") as file:

        def keep(result: dict[str, Any]) -> None:
            file.write(json.dumps(result) + "\n")
            file.flush()

        for start in range(0, len(tasks), CHUNK):
            print(f"{start} of {len(tasks)} models and forms", file=sys.stderr, flush=True)
            run_chunk(tasks[start : start + CHUNK], limit_s, keep)


def _stored(out: Path) -> list[dict[str, Any]]:
    if not out.is_file():
        return []
    lines = out.read_text(encoding="utf-8").splitlines()
    # The last line may be cut where a run was killed.
    return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]


if __name__ == "__main__":
    sys.exit(main())
