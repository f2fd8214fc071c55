"""`edgeprof export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from profiler.cli import options as o
from profiler.errors import ModelError


def command(
    model: o.Model,
    output: Annotated[Path, typer.Option("-o", "--output", help="The .onnx file to write.")],
    data: o.Data = None,
    opset: Annotated[
        int | None, typer.Option("--opset", help="ONNX opset; default: what the exporter writes best.")
    ] = None,
    json: o.Json = False,
) -> None:
    """Export a model to ONNX and compare its outputs with its source on rows of --data."""
    import json as json_module
    from dataclasses import asdict

    from profiler.cli import console
    from profiler.export import export_model
    from profiler.prepare import export_sample
    from profiler.study import make_study

    exported = export_model(model, export_sample(make_study(model=model, data=data)), output, opset=opset)
    if json:
        content = asdict(exported) | {"path": str(exported.path), "files": [str(file) for file in exported.files]}
        console.print_json(json_module.dumps(content, indent=2))
        return
    console.out.print(f"{exported.path}: opset {exported.opset}, by {exported.exporter}", markup=False)
    if exported.parity is not None:
        parity = exported.parity
        console.out.print(
            f"outputs differ from {exported.source_framework} by at most {parity.max_abs_diff:.3g} "
            f"(relative {parity.max_rel_diff:.3g}, accepted {parity.tolerance:g}) on {parity.rows} rows",
            markup=False,
        )
    for note in exported.notes:
        console.out.print(f"note: {note}", markup=False)
    if exported.parity is not None and not exported.parity.ok:
        raise ModelError(f"{exported.path} does not compute what {model} computes: see the notes above.")
