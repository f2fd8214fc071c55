"""`edgeprof init`."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from profiler import advice
from profiler.cli import options as o
from profiler.errors import StudyError


def command(
    model: o.Model,
    data: o.Data = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="The study file to write.")] = Path("study.toml"),
    force: Annotated[bool, typer.Option("--force", help="Write over an existing file.")] = False,
) -> None:
    """Write a commented study file for a model."""
    from backends.base import format_shape
    from profiler.cli import console
    from profiler.targets.maker import describe
    from profiler.variants.registry import default_variants

    if output.exists() and not force:
        raise StudyError(f"{output} exists: choose another name with -o, or write over it with --force.")
    if not output.parent.is_dir():
        raise StudyError(f"the folder {output.parent} does not exist: make it, or choose another file with -o.")
    path = Path(model)
    inputs = []
    if path.suffix == ".onnx" or path.exists():
        inputs = [f"{i.name}: {i.dtype} {format_shape(i.shape)}" for i in describe(path).inputs]
        model = _from(output.parent, path)
    if data is not None and Path(data).exists():
        data = _from(output.parent, Path(data))
    output.write_text(_text(output, model, data, inputs, default_variants("default")), encoding="utf-8")
    console.line(f"{output} written; next: {advice.command('run', output)}")


def _quoted(text: str) -> str:
    """A TOML string: JSON's, but with signs beyond the basic plane as they are, since TOML has no surrogate pairs."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _from(folder: Path, path: Path) -> str:
    """`path` as the study file will read it: relative to its own folder where possible."""
    try:
        return str(path.resolve().relative_to(folder.resolve()))
    except ValueError:
        return str(path.resolve())


def _text(file: Path, model: str, data: str | None, inputs: list[str], variants: tuple[str, ...]) -> str:
    listed = "".join(f"#   {line}\n" for line in inputs)
    quoted = ",\n".join(f"  {_quoted(variant)}" for variant in variants)
    limit = "" if data else "# "  # without data no accuracy is measured, and nothing could keep to the limit
    data_line = f"data = {_quoted(data)}" if data else '# data = "test.npz"'
    return f"""# A study for edgeprof: which variant of this model to deploy, on what, at what cost.
# Run it with: edgeprof run {shlex.quote(str(file))}     Lines that start with # are off.

model = {_quoted(model)}
{"# Its inputs are:" + chr(10) + listed if inputs else ""}
# An .npz with one array per input (batch axis first) and `labels`, optionally `groups` and `ids`;
# or a folder of images with one subfolder per class; or "package.module:function" yielding batches.
{data_line}
# Rows for calibration. Without it, calibration_samples rows are cut from data and not evaluated on.
# calibration = "calibration.npz"
# calibration_samples = 256
# limit = 1000                  # use at most so many rows of data, drawn at random

variants = [
{quoted},
]
backends = ["ort", "ov"]        # also ort:cuda, ort:tensorrt, ov:GPU, ov:NPU, trt; `edgeprof backends` tells what works here
# targets = ["local", "jetson"] # machines that `edgeprof target list` shows, beside each other: edgeprof fleet run
batches = [1]
threads = [1]
# metric = "top1"               # top1, top5, f1, auc, rmse, mae, cosine, or "package.module:function"
effort = "default"              # quick, default or thorough: the same method with fewer or more repetitions
seed = 0
# time_limit_s = 300            # longest that one step of a case may take before it counts as hung
# memory_limit_bytes = 4_000_000_000
# time_budget_s = 600           # the whole run ends in time, and earlier when it is precise enough

# What a deployment must keep to. The recommendation is the fastest case that is shown to keep to all of it.
[constraints]
{limit}max_drop = 0.01                 # one percentage point of accuracy, against the unmodified model on the same rows
# slo_p99_s = 0.005
# max_memory_bytes = 512_000_000
# max_usd_per_million = 0.05

# What this machine is priced as. Costs are given only for the machine that was measured, never for another one.
[cost]
# machine = "aws:c7i.large"     # or "device:raspberry-pi-5-8gb"; `edgeprof devices [--prices]` lists them
#                               # with several targets: "local=aws:c7i.large,jetson=device:jetson-orin-nano-8gb"
utilisation = 0.6

# Shapes of one row where the model leaves them open and there is no data:
# [input_shapes]
# tokens = [128]

# Inputs that are not one row a sample on the first axis (docs/data.md):
# [inputs.sr]                   # the same for all rows
# value = 16000
# [inputs.state]                # carried over the rows that share an id
# from = "stateN"
# batch_axis = 1

# Energy, after the timing: with the machine's own meters, or csv = / command = of an external one (docs/energy.md).
# [energy]
# windows = 10

# Serving, after everything else (docs/load.md):
# [load]
# settings = ["server", "server{{max_batch=8,max_delay_s=0.002}}"]
# find_max_rate = true
# slo_s = 0.005

# Burst against sustained in place of the usual rounds (docs/soak.md):
# [soak]
# max_s = 1200

# Only for a folder of images: how they become arrays.
# [preprocessing]
# resize = 256
# crop = 224
# scale = 0.00392156862745098
# mean = [0.485, 0.456, 0.406]
# std = [0.229, 0.224, 0.225]
"""
