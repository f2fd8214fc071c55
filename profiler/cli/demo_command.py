"""`edgeprof demo`."""

from __future__ import annotations

from pathlib import Path

import typer

from profiler.cli import options as o
from profiler.errors import StoreError

VARIANTS = (
    "fp32", "int8-dynamic", "int8-static", "int8-static{per_channel=true}", "bf16", "prune-magnitude{sparsity=0.5}",
)  # fmt: skip


def command(out: o.Out = Path("runs"), json: o.Json = False, machine: o.Machine = None) -> None:
    """Profile the built-in model, a small image classifier, on its own labelled data."""
    import numpy as np

    from profiler import api, demo
    from profiler.cli.console import bars, show_result
    from profiler.run import execute
    from profiler.study import EFFORTS, make_study

    # As a user would hand them over: two .npz files beside a model. They stay, for `explain` and what goes on from here.
    folder = out / "demo"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        data, calibration = folder / "evaluation.npz", folder / "calibration.npz"
        np.savez(data, allow_pickle=False, **demo.evaluation())
        np.savez(calibration, allow_pickle=False, **demo.calibration())
    except OSError as error:
        raise StoreError(f"cannot write to {out}: {error.strerror}. Choose another folder with --out.") from None
    study = make_study(
        model=str(demo.model_path()), data=str(data), calibration=str(calibration), variants=VARIANTS, effort=EFFORTS["quick"],
        constraints={"max_drop": 0.01}, cost={"machine": machine},
    )  # fmt: skip
    with bars() as progress:
        run_id = execute(study, out=out, progress=progress)
    raise typer.Exit(show_result(api.open_run(run_id, out=out), json=json))
