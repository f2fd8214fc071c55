"""Options that several commands share, and how their texts become a study."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backends.spec import split_list
from profiler import advice
from profiler.errors import StudyError
from profiler.units import parse_bytes, parse_drop, parse_seconds, parse_share

if TYPE_CHECKING:
    from profiler.study import Study

OUT_DEFAULT = Path("runs")

Model = Annotated[
    str, typer.Argument(help="An .onnx file, or package.module:factory giving a torch module or sklearn estimator.")
]
Run = Annotated[str, typer.Argument(help="A run's id, the beginning of one, or latest.")]


def _out(value: Path) -> Path:
    advice.runs_lie_in(value, advice.database())
    return value


def _database(value: str | None) -> str | None:
    advice.database_is(value)
    return value


Out = Annotated[Path, typer.Option("--out", help="Folder of the run database, caches and reports.", callback=_out)]
Database = Annotated[
    str | None,
    typer.Option("--database", help="SQLAlchemy URL, instead of SQLite in the --out folder.", callback=_database),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Any setting of a study file, e.g. --set energy.windows=20 --set effort.rounds=3; wins over options.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="JSON instead of a table.")]
Data = Annotated[
    str | None,
    typer.Option("--data", help="An .npz, a folder of images by class, or package.module:function. None: timing only."),
]
Calibration = Annotated[
    str | None, typer.Option("--calibration", help="Calibration data, like --data; else cut from --data.")
]
Variants = Annotated[
    str | None, typer.Option("--variants", help="e.g. fp16,int8-static{per_channel=true}; default: a usual set.")
]
Backends = Annotated[str, typer.Option("--backends", help="e.g. ort,ov,ort:cuda,ov:GPU,trt.")]
Batch = Annotated[str, typer.Option("--batch", help="Batch sizes, e.g. 1,8,32.")]
Threads = Annotated[str, typer.Option("--threads", help="Threads inside an inference, e.g. 1,4.")]
MetricOption = Annotated[
    str | None, typer.Option("--metric", help="top1, top5, f1, auc, rmse, mae, cosine, or package.module:function.")
]
Limit = Annotated[int | None, typer.Option("--limit", help="Use at most so many rows of --data.")]
Shapes = Annotated[
    list[str] | None,
    typer.Option("--shape", help="name=3,224,224 without the batch axis, for random inputs when there is no --data."),
]
MaxDrop = Annotated[
    str | None,
    typer.Option("--max-drop", help="Largest accepted accuracy loss, e.g. 1pt; 0.5 or 0.5dB in a metric's own unit."),
]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        help="An input that is not one row a sample: sr{value=16000}, h{batch_axis=1}, state{from=stateN} (docs/data.md).",
    ),
]
SloP99 = Annotated[str | None, typer.Option("--slo-p99", help="Largest accepted p99 latency, e.g. 5ms.")]
MaxMemory = Annotated[str | None, typer.Option("--max-memory", help="Largest accepted peak RSS, e.g. 512MB.")]
MaxCost = Annotated[float | None, typer.Option("--max-cost", help="Largest accepted USD per million inferences.")]
Machine = Annotated[
    str | None,
    typer.Option(
        "--as",
        help="What the machine is priced as: aws:c7i.large, device:raspberry-pi-5-8gb. Of several: NAME=TYPE,NAME=TYPE.",
    ),
]
Utilisation = Annotated[
    float, typer.Option("--utilisation", help="Share of the time that the machine is used, for costs.")
]
Prices = Annotated[str | None, typer.Option("--prices", help="A CSV of your own prices.")]
Quick = Annotated[bool, typer.Option("--quick", help="Fewer processes and rounds: wider intervals, the same method.")]
Thorough = Annotated[bool, typer.Option("--thorough", help="More processes: narrower intervals.")]
TimeBudget = Annotated[
    str | None,
    typer.Option(
        "--time-budget", help="Longest that the whole run may take, e.g. 10min; it ends earlier when precise enough."
    ),
]
Precision = Annotated[
    str | None,
    typer.Option("--precision", help="Go on with fresh processes until p50 is known to this share, e.g. 2%."),
]
Energy = Annotated[
    bool, typer.Option("--energy", help="Measure energy after the timing, with the meters that this machine has.")
]
EnergyCsv = Annotated[
    str | None,
    typer.Option("--energy-csv", help="An outside meter: the CSV that its logger appends to (docs/energy.md)."),
]
EnergyCommand = Annotated[
    str | None, typer.Option("--energy-command", help="An outside meter: a command that prints watts (docs/energy.md).")
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of every random choice.")]
TimeLimit = Annotated[
    str,
    typer.Option(
        "--time-limit",
        help="Longest that one step of a case may take, e.g. 300s; making a variant may take 3 times that.",
    ),
]
MemoryLimit = Annotated[
    str | None, typer.Option("--memory-limit", help="Memory a case may use before it counts as failed, e.g. 4GB.")
]
Target = Annotated[
    str,
    typer.Option(
        "--target",
        help="Machines to measure on: local, names from `edgeprof target list`; conditions in braces, e.g. pi{cores=big}.",
    ),
]
LimitMemory = Annotated[
    str | None,
    typer.Option("--limit-memory", help="Measure inside so much memory, e.g. 512MB: would it fit? (docs/envelopes.md)"),
]
LimitCpus = Annotated[
    str | None, typer.Option("--limit-cpus", help="Measure on so many processors, e.g. 1 or 0.5 (docs/envelopes.md).")
]
Cores = Annotated[
    str | None,
    typer.Option("--cores", help="Classes of cores, each measured: big,little, or processors such as 0-3."),
]
PowerMode = Annotated[
    str | None,
    typer.Option(
        "--power-mode",
        help="Power modes of a Jetson, each measured: 15W,30W. Changes the machine; restored afterwards.",
    ),
]
Yes = Annotated[bool, typer.Option("--yes", help="Change power modes without asking.")]
CalibrationSamples = Annotated[int, typer.Option("--calibration-samples", help="Rows cut from --data for calibration.")]


def numbers(text: str, what: str) -> tuple[int, ...]:
    """`1,8,32` as numbers. Raises StudyError."""
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise StudyError(f"cannot read {what} '{text}': expected whole numbers such as 1,8,32.") from None


def shapes(texts: list[str] | None) -> dict[str, tuple[int, ...]]:
    """`name=3,224,224` texts as shapes. Raises StudyError."""
    found = {}
    for text in texts or []:
        name, equals, sizes = text.partition("=")
        if not equals or not name:
            raise StudyError(f"cannot read --shape '{text}': expected name=3,224,224.")
        found[name] = numbers(sizes, f"--shape {name}")
    return found


def inputs(texts: list[str] | None) -> dict[str, dict[str, Any]]:
    """`name{option=value,…}` texts as a study's table of inputs. Raises StudyError for what is no such text."""
    from urllib.parse import unquote

    from backends import spec

    found: dict[str, dict[str, Any]] = {}
    for text in texts or []:
        name, brace, rest = text.partition("{")
        if not name or not brace or not rest.endswith("}"):
            raise StudyError(f"cannot read --input '{text}': expected name{{option=value}}, e.g. state{{from=stateN}}.")
        if name in found:
            raise StudyError(f"--input names '{name}' twice: put its options into one pair of braces.")
        options: dict[str, Any] = dict(spec.parse(f"input{{{rest}").options)
        if "value" in options:
            parts = [_value(part) for part in options["value"].split("|")]
            options["value"] = parts[0] if len(parts) == 1 else parts
        if "init" in options and options["init"] not in ("zeros", "ones", "data"):
            options["init"] = _value(options["init"])
        if "batch_axis" in options and options["batch_axis"] != "none":
            options["batch_axis"] = _value(options["batch_axis"])
        if "from" in options:
            options["from"] = unquote(options["from"])
        found[name] = options
    return found


def _value(text: str) -> Any:
    """A number, true or false where it is one; other words stay, for the study to refuse."""
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def targets(
    target: str, *, limit_memory: str | None, limit_cpus: str | None, cores: str | None, power_mode: str | None
) -> tuple[str, ...]:
    """Target texts of a study. Raises EdgeprofError for what cannot be."""
    from profiler.targets.conditions import combine

    names = split_list(target)
    if not names:
        raise StudyError("--target is empty: give local, or names from `edgeprof target list`.")
    return combine(names, memory=limit_memory, cpus=limit_cpus, cores=cores, power=power_mode)


def confirm_changes(texts: Sequence[str], *, yes: bool) -> None:
    """Ask before power modes of machines are changed. Raises StudyError when nobody can be asked, Abort for a no."""
    import sys

    from profiler.targets.conditions import parse

    asked: dict[str, list[str]] = {}
    for text in texts:
        name, conditions = parse(text)
        if conditions.power is not None:
            asked.setdefault(name, []).append(conditions.power)
    if not asked or yes:
        return
    what = "; ".join(f"{name}: {', '.join(dict.fromkeys(modes))}" for name, modes in asked.items())
    if not sys.stdin.isatty():
        raise StudyError(f"this sets power modes ({what}), for everything that runs there: agree with --yes.")
    typer.confirm(
        f"This sets power modes ({what}), for everything that runs there, and restores them afterwards. Go on?",
        abort=True,
        err=True,
    )


def asked_study(
    file: Path | None, resume: str | None, *, out: Path, database: str | None, yes: bool, allow_code: bool
) -> Study | None:
    """The study of a file, or None where a run is to be resumed; what it runs and changes on its targets was agreed to.

    Raises StudyError unless exactly one of the two is given.
    """
    from profiler.cli.permission import confirm_code
    from profiler.study import read_study

    if (file is None) == (resume is None):
        raise StudyError(f"give either a study file, or --resume RUN (`{advice.of_run('runs')}` lists them).")
    if file is not None:
        asked = read_study(file)
        confirm_code(asked, allowed=allow_code, whose=f"the study {file}")
        confirm_changes(asked.targets, yes=yes)
        return asked
    confirm_resumed(str(resume), out=out, database=database, search=False, yes=yes, allow_code=allow_code)
    return None


def confirm_resumed(run: str, *, out: Path, database: str | None, search: bool, yes: bool, allow_code: bool) -> None:
    """The same for a run that is to be resumed: a database may be somebody else's."""
    from profiler.cli.permission import confirm_code

    stored = stored_study(run, out=out, database=database, search=search)
    if stored is not None:
        confirm_code(stored, allowed=allow_code, whose=f"run {run} of {database or out}")
        confirm_changes(stored.targets, yes=yes)


def stored_study(run: str, *, out: Path, database: str | None, search: bool) -> Study | None:
    """The study of a run that is to be resumed; None where it cannot be read, which resuming tells."""
    from profiler.errors import StoreError
    from profiler.store import open_store

    try:
        store = open_store(database or out, create=False)
    except StoreError:
        return None
    try:
        return store.run(store.resolve(run, search=search, unfinished=True)).study
    except StoreError:
        return None
    finally:
        store.close()


def study_settings(
    *, variants: str | None, backends: str, batch: str, threads: str, max_drop: str | None, slo_p99: str | None,
    max_memory: str | None, max_cost: float | None, machine: str | None, utilisation: float, prices: str | None, quick: bool,
    thorough: bool, time_budget: str | None, precision: str | None, time_limit: str,
    memory_limit: str | None, shape: list[str] | None, energy: bool, energy_csv: str | None, energy_command: str | None,
    target: str, limit_memory: str | None, limit_cpus: str | None, cores: str | None, power_mode: str | None,
    **others: Any,
) -> dict[str, Any]:  # fmt: skip
    """The options of `profile` as the fields of a study. Raises EdgeprofError for texts that cannot be read."""
    if quick and thorough:
        raise StudyError("--quick and --thorough exclude each other.")
    drop = None if max_drop is None else parse_drop(max_drop)
    return {
        **others,
        "variants": tuple(split_list(variants or "")),
        "backends": tuple(split_list(backends)),
        "targets": targets(
            target, limit_memory=limit_memory, limit_cpus=limit_cpus, cores=cores, power_mode=power_mode
        ),
        "batches": numbers(batch, "--batch"),
        "threads": numbers(threads, "--threads"),
        "input_shapes": shapes(shape),
        "constraints": {
            "max_drop": None if drop is None else drop.value,
            "max_drop_unit": None if drop is None else drop.unit,
            "slo_p99_s": None if slo_p99 is None else parse_seconds(slo_p99),
            "max_memory_bytes": None if max_memory is None else parse_bytes(max_memory),
            "max_usd_per_million": max_cost,
        },
        "cost": {"machine": machine, "utilisation": utilisation, "prices": prices},
        "effort": _effort("quick" if quick else "thorough" if thorough else "default", precision),
        "time_limit_s": parse_seconds(time_limit),
        "energy": {"csv": energy_csv, "command": energy_command} if energy or energy_csv or energy_command else None,
        "time_budget_s": None if time_budget is None else parse_seconds(time_budget),
        "memory_limit_bytes": None if memory_limit is None else parse_bytes(memory_limit),
    }


def with_settings(fields: dict[str, Any], texts: list[str] | None) -> dict[str, Any]:
    """Fields of a study with those of `--set place=value` in them; a value is TOML, or a text as it stands. Raises StudyError."""
    from profiler.study import EFFORTS, toml_value

    for text in texts or []:
        place, equals, value = text.partition("=")
        parts = [part.strip() for part in place.split(".")]
        if not equals or not all(parts) or len(parts) > 2:
            raise StudyError(
                f"cannot read --set '{text}': expected a setting of a study file, such as energy.windows=20."
            )
        if len(parts) == 1:
            fields = {**fields, parts[0]: toml_value(value)}
            continue
        table, name = parts
        known = fields.get(table) or {}
        if isinstance(known, str):
            known = EFFORTS[known].model_dump() if table == "effort" and known in EFFORTS else {}
        fields = {**fields, table: {**known, name: toml_value(value)}}
    return fields


def _effort(name: str, precision: str | None) -> Any:
    if precision is None:
        return name
    from profiler.study import EFFORTS

    return {**EFFORTS[name].model_dump(), "precision": parse_share(precision)}
