"""What was asked: the study and the cases it expands to. Frozen, and checked here, at the border."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote, unquote

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from backends import spec
from profiler import units
from profiler.errors import StudyError
from profiler.load.scenario import LoadPlan
from profiler.records import REFERENCE_VARIANT

MAX_STUDY_BYTES = 1 << 20
MAX_BATCH = 65_536
MAX_THREADS = 1024
MAX_CASES = 2000
MAX_ROW_ELEMENTS = 1 << 28
_MAX_QUOTED = 120
MAX_AXES = 64


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)

    @field_validator("*", mode="after")
    @classmethod
    def _no_nul(cls, value: Any) -> Any:
        """Of all signs NUL alone can be in no path, command or name: whoever gets it raises in words of its own."""
        texts = value if isinstance(value, tuple) else (value,)
        if any(isinstance(text, str) and "\0" in text for text in texts):
            raise ValueError("the text holds a NUL character, which no path, name or command can have")
        return value


UNCLEAR_DROP = 0.1
"""From here on a bare number is hardly meant as a proportion: nobody ships a model that loses every tenth answer."""


class Constraints(_Frozen):
    """What a deployment must keep to. None means no constraint."""

    max_drop: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Largest accepted loss of the metric against the reference: a proportion for proportions, else in its own unit. A text says
    which of both is meant: `"1pt"`, `"1%"`, `"0.5dB"`."""
    max_drop_unit: Literal["points", "own"] | None = None
    """What the text said; None for a bare number, which is of whatever the metric is."""
    slo_p99_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    max_memory_bytes: int | None = Field(default=None, gt=0)
    max_usd_per_million: float | None = Field(default=None, gt=0, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _texts(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        given = dict(value)
        if isinstance(given.get("max_drop"), str):
            drop = units.parse_drop(given["max_drop"])
            given |= {"max_drop": drop.value, "max_drop_unit": drop.unit}
        return given

    @model_validator(mode="after")
    def _at_most_all(self) -> Constraints:
        if self.max_drop is not None and self.max_drop_unit == "points" and self.max_drop > 1:
            raise ValueError(f"max_drop of {100 * self.max_drop:g} points is more than all there is: at most 100")
        return self

    def drop_misfit(self, metric: str | None, metric_unit: str | None) -> str | None:
        """Why `max_drop` cannot be a loss of this metric (`proportion` or `native` unit), with what to write; None when it can.

        None for the metric: it is not known yet, and chosen from labels and outputs.
        """
        drop, said = self.max_drop, self.max_drop_unit
        if drop is None:
            return None
        if metric_unit == "native" and said == "points":
            return (
                f"a drop of {100 * drop:g} points is of a proportion, but {metric} has a unit of its own: give the loss in that "
                "unit as a bare number (--max-drop 0.5)"
            )
        if metric_unit == "proportion" and said == "own":
            return (
                f"a drop of {drop:g} in the metric's own unit fits no proportion, which {metric} is: write points "
                "(--max-drop 1pt)"
            )
        if metric_unit != "native" and said is None and drop >= 1:
            of = f"{metric} is a proportion" if metric is not None else "no metric is named, so it may be a proportion"
            return (
                f"a drop of {drop:g} would be {100 * drop:g} percentage points, and {of}: write {drop:g}pt, or name a metric "
                "that has a unit of its own (--metric rmse)"
            )
        return None

    def drop_doubt(self, metric: str, metric_unit: str) -> str | None:
        """Why a bare `max_drop` is not to be read as a proportion without asking, with what to write; None where it is clear.

        For a study that begins: what is stored keeps the meaning that it was measured with.
        """
        drop = self.max_drop
        if drop is None or self.max_drop_unit is not None or metric_unit != "proportion" or drop < UNCLEAR_DROP:
            return None
        return (
            f"a drop of {drop:g} without a unit is {100 * drop:g} percentage points of {metric}, or was {drop:g} points meant? "
            f'Write --max-drop {drop:g}pt or --max-drop {100 * drop:g}pt (in a study file max_drop = "{drop:g}pt")'
        )


class CostOptions(_Frozen):
    """How a measured throughput becomes money."""

    machine: str | None = None
    """`aws:c7i.large` or `device:raspberry-pi-5-8gb`, or for several devices `local=aws:c7i.large,pi=device:raspberry-pi-5-8gb`.

    None means: detect it, and price nothing when that fails."""
    utilisation: float = Field(default=0.6, gt=0, le=1)
    lifetime_years: float = Field(default=3.0, gt=0, le=30)
    electricity_usd_per_kwh: float | None = Field(default=None, gt=0, le=10)
    prices: str | None = None
    """A CSV of your own prices, in the format of device_profiles/prices."""

    @field_validator("prices")
    @classmethod
    def _prices_path(cls, value: str | None) -> str | None:
        return _possible_path(value)

    @field_validator("machine")
    @classmethod
    def _one_type_each(cls, value: str | None) -> str | None:
        pairs = [part.rpartition("=") for part in (value or "").split(",")]
        if value is None or (len(pairs) == 1 and not pairs[0][1]):
            return value
        if not all(name.strip() and kind.strip() for name, _, kind in pairs):
            raise ValueError("of several machines each needs its name: NAME=TYPE,NAME=TYPE")
        if len({name.strip() for name, *_ in pairs}) < len(pairs):
            raise ValueError("a machine is named twice")
        return ",".join(f"{name.strip()}={kind.strip()}" for name, _, kind in pairs)

    @property
    def declared(self) -> Mapping[str, str]:
        """Types by the device's name; by the empty name that which was given for all there is."""
        pairs = [part.rpartition("=") for part in self.machine.split(",")] if self.machine else []
        return {name: kind for name, _, kind in pairs}

    def declared_for(self, device: str, devices: Sequence[str]) -> str | None:
        """What one of these devices was declared to be; a type without a name means the only one."""
        return self.declared.get(device, self.declared.get("") if len(devices) < 2 else None)


class Effort(_Frozen):
    """How much is measured. The method is the same at every effort."""

    processes: int = Field(default=5, ge=1, le=100)
    """Fresh processes per case: the unit of comparison."""
    rounds: int = Field(default=6, ge=1, le=1000)
    """Rounds per process; each holds one block of every case, in random order."""
    block_s: float = Field(default=0.1, gt=0, le=60)
    block_samples: int = Field(default=20, ge=1, le=1_000_000)
    warmup_s: float = Field(default=0.5, ge=0, le=600)
    warmup_max_s: float = Field(default=6.0, gt=0, le=3600)
    requeue_share: float = Field(default=0.5, ge=0, le=5)
    """Rounds that may be added to replace disturbed ones, as a share of `rounds`, per process."""
    precision: float | None = Field(default=None, gt=0, le=1)
    """Go on with fresh processes until p50 is known to this share (p90, p99 and ratios: see profiler/stopping.py).
    None: `processes` and no more, unless there is a time budget."""
    max_processes: int = Field(default=27, ge=1, le=200)
    """Where going on ends."""


EFFORTS: Mapping[str, Effort] = {
    "quick": Effort(processes=5, rounds=3, warmup_s=0.2, warmup_max_s=1.0),
    "default": Effort(),
    "thorough": Effort(processes=10, rounds=6, warmup_s=1.0, warmup_max_s=30.0),
}


class EnergyPlan(_Frozen):
    """How energy is measured, after everything else: windows of the same work, and windows in which nothing runs."""

    windows: int = Field(default=10, ge=3, le=1000)
    """Windows of each case, and of the idle machine."""
    window_s: float = Field(default=5.0, gt=0, le=60, allow_inf_nan=False)
    """At most a minute: counters of processors wrap after minutes."""
    meter: Literal["auto", "ina3221", "pmic", "nvml", "rapl", "external"] = "auto"
    """`auto`: `external` where one is named, else the first that sees the device a case runs on."""
    csv: str | None = None
    """A file that a logger appends to, columns `time` and `power_w` or `energy_j`; see docs/energy.md."""
    command: str | None = None
    """A command that prints watts, run on this computer without a shell; see docs/energy.md."""

    @model_validator(mode="after")
    def _one_meter(self) -> EnergyPlan:
        named = [name for name in ("csv", "command") if getattr(self, name) is not None]
        if len(named) == 2:
            raise ValueError("csv and command are two external meters, name one of them")
        if named and self.meter not in ("auto", "external"):
            raise ValueError(f"{named[0]} is an external meter, but meter is '{self.meter}': leave one of them out")
        if self.meter == "external" and not named:
            raise ValueError("meter 'external' needs csv or command, to know where it is read")
        return self


class SoakPlan(_Frozen):
    """A thermal soak in place of the usual rounds: burst from a cool start, the same load until steady, then sustained."""

    max_s: float = Field(default=1200.0, ge=1, le=86_400, allow_inf_nan=False)
    """Longest load before the sustained phase begins, steady or not."""
    cool_to_c: float = Field(default=5.0, gt=0, le=50, allow_inf_nan=False)
    """A start is cool at so many °C above idle, or less."""
    cool_max_s: float = Field(default=600.0, ge=0, le=86_400, allow_inf_nan=False)
    """Longest wait for a cool start; without a temperature sensor, the rest between two soaks."""
    burst_s: float = Field(default=10.0, gt=0, le=600, allow_inf_nan=False)
    """How long after a cool start counts as burst."""
    sustained_s: float = Field(default=30.0, gt=0, le=3600, allow_inf_nan=False)
    """How long is measured once steady."""
    each: bool = False
    """One soak per case, so that cases do not share their heat; otherwise all cases take turns in one."""


class InputOptions(_Frozen):
    """What an input is when it does not simply take one row a sample on its first axis (docs/data.md)."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True, populate_by_name=True)

    batch_axis: int | Literal["none"] | None = None
    """The axis that the rows lie on; `none`: one row is the whole input, so the batch is 1."""
    value: bool | int | float | tuple[bool | int | float, ...] | Literal["data"] | None = None
    """A constant: the same for all rows, filled with this number; a list for an input of one axis; `data`: the data's array."""
    source: str | None = Field(default=None, alias="from", min_length=1)
    """A state: this output is its value in the next step of a sequence, which is the rows that share an id, in order."""
    init: Annotated[float, Field(allow_inf_nan=False)] | Literal["zeros", "ones", "data"] = "zeros"
    """What a sequence begins with; `data`: the data's row of that input at the sequence's first step."""

    @field_validator("batch_axis")
    @classmethod
    def _sensible_axis(cls, value: int | str | None) -> int | str | None:
        if isinstance(value, int) and not 0 <= value < MAX_AXES:
            raise ValueError(f"an axis is a number from 0 to {MAX_AXES - 1}, or none")
        return value

    @model_validator(mode="after")
    def _one_role(self) -> InputOptions:
        if self.value is not None and (self.source is not None or self.batch_axis is not None):
            raise ValueError("value is for an input that is the same for all rows: leave from and batch_axis out")
        if self.source is None and self.init != "zeros":
            raise ValueError("init is what a carried state begins with: say with from which output it is carried from")
        if self.value is None and self.source is None and self.batch_axis is None:
            raise ValueError("say one of batch_axis, value and from")
        return self

    @property
    def beginning(self) -> float | Literal["data"]:
        """`init` as a number, or `data`."""
        words: Mapping[object, float] = {"zeros": 0.0, "ones": 1.0}
        return (
            self.init if self.init == "data" else words.get(self.init, 0.0) if isinstance(self.init, str) else self.init
        )

    def text(self, name: str) -> str:
        """As `--input` takes it: `name{batch_axis=1}`."""
        value = "|".join(map(_plain, self.value)) if isinstance(self.value, tuple) else _plain(self.value)
        options = (
            ("batch_axis", self.batch_axis),
            ("value", None if self.value is None else value),
            ("from", None if self.source is None else quote(self.source, safe="/:.+@$~")),
        )
        told = [f"{key}={option}" for key, option in options if option is not None]
        return f"{name}{{{','.join(told + ([] if self.init == 'zeros' else [f'init={self.init}']))}}}"


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


class Study(_Frozen):
    """Everything a run needs to know. Equal studies ask the same, whoever wrote them."""

    model: str
    """An `.onnx` file, or `package.module:factory` returning a torch module or a scikit-learn estimator."""
    data: str | None = None
    """An `.npz`, a folder of images with classes as subfolders, or `package.module:function`; None: timing only."""
    calibration: str | None = None
    calibration_samples: int = Field(default=256, ge=1, le=100_000)
    """Rows cut from `data` when a variant needs calibration and none is given; they are never evaluated on."""
    preprocessing: Mapping[str, Any] | None = None
    """How images become arrays; see docs/data.md."""
    limit: int | None = Field(default=None, ge=1)
    """At most so many rows of `data`."""
    input_shapes: Mapping[str, tuple[int, ...]] = Field(default_factory=dict)
    """Shapes without the batch axis for inputs that the model leaves dynamic, when there is no `data`."""
    inputs: Mapping[str, InputOptions] = Field(default_factory=dict)
    """Inputs that are not one row a sample on the first axis: another batch axis, a constant, a state (docs/data.md)."""
    variants: tuple[str, ...] = ()
    """Empty means the registry's default set."""
    backends: tuple[str, ...] = ("ort", "ov")
    targets: tuple[str, ...] = ("local",)
    """`NAME` or `NAME{option=value,…}`: machines, and under which conditions (docs/envelopes.md, docs/power-modes.md)."""
    batches: tuple[int, ...] = (1,)
    threads: tuple[int, ...] = (1,)
    metric: str | None = None
    """None means: chosen from labels and outputs, and said."""
    constraints: Constraints = Constraints()
    cost: CostOptions = CostOptions()
    effort: Effort = EFFORTS["default"]
    soak: SoakPlan | None = None
    """None: the usual rounds. Otherwise a thermal soak in their place (profiler/soak.py)."""
    load: LoadPlan | None = None
    """None: no requests are served."""
    energy: EnergyPlan | None = None
    """None: energy is not measured."""
    seed: int = Field(default=0, ge=0, le=2**32 - 1)
    time_limit_s: float = Field(default=300.0, gt=0, le=86_400)
    """Longest a single command to a worker may take before the case counts as hung."""
    memory_limit_bytes: int | None = Field(default=None, ge=1 << 20, le=1 << 50)
    time_budget_s: float | None = Field(default=None, gt=0, le=30 * 86_400)
    """Longest that the whole run may take. The measurement ends early when its precision is reached."""

    @field_validator("effort", mode="before")
    @classmethod
    def _named_effort(cls, value: Any) -> Any:
        if isinstance(value, str):
            if value not in EFFORTS:
                raise ValueError(f"unknown effort '{value}', known: {', '.join(EFFORTS)}")
            return EFFORTS[value]
        return value

    @field_validator("model", "data", "calibration")
    @classmethod
    def _paths(cls, value: str | None) -> str | None:
        return _possible_path(value)

    @field_validator("batches", "threads")
    @classmethod
    def _sensible_numbers(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value:
            raise ValueError("at least one number is needed")
        low = [number for number in value if number < 1]
        if low:
            raise ValueError(f"{low[0]} is not possible, the smallest is 1")
        return tuple(dict.fromkeys(value))

    @field_validator("batches")
    @classmethod
    def _batch_limit(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if max(value) > MAX_BATCH:
            raise ValueError(f"{max(value)} rows in a batch are more than {MAX_BATCH}")
        return value

    @field_validator("threads")
    @classmethod
    def _thread_limit(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if max(value) > MAX_THREADS:
            raise ValueError(f"{max(value)} threads are more than {MAX_THREADS}")
        return value

    @field_validator("input_shapes")
    @classmethod
    def _sensible_shapes(cls, value: Mapping[str, tuple[int, ...]]) -> Mapping[str, tuple[int, ...]]:
        for name, shape in value.items():
            if any(size < 1 for size in shape) or math.prod(shape) > MAX_ROW_ELEMENTS:
                raise ValueError(f"shape {shape} of '{name}' is not possible: sizes from 1, at most 2^28 numbers a row")
        return value

    @field_validator("variants", "backends", "targets")
    @classmethod
    def _canonical(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(map(spec.canonical, value)))

    @model_validator(mode="after")
    def _not_empty(self) -> Study:
        if not self.backends:
            raise ValueError("at least one backend is needed")
        if not self.targets:
            raise ValueError("at least one target is needed")
        devices = [target.partition("{")[0] for target in self.targets]
        unknown = [name for name in self.cost.declared if name and name not in devices]
        if unknown:
            raise ValueError(f"--as names '{unknown[0]}', which is no target of this run: {', '.join(devices)}")
        return self

    def absolute(self) -> Study:
        """The same with every path told from the root, so that it can be resumed and repeated from any folder.

        Functions (`package.module:function`) stay: they are imported from wherever the command runs.
        """
        here = Path.cwd()
        cost, energy, load = self.cost, self.energy, self.load
        if cost.prices is not None:
            cost = cost.model_copy(update={"prices": _beside(here, cost.prices)})
        if energy is not None and energy.csv is not None:
            energy = energy.model_copy(update={"csv": _beside(here, energy.csv)})
        if load is not None and load.trace is not None:
            load = load.model_copy(update={"trace": _beside(here, load.trace)})
        paths = {
            name: None if text is None else _beside(here, text)
            for name, text in (("model", self.model), ("data", self.data), ("calibration", self.calibration))
        }
        variants = tuple(_external_beside(here, text) for text in self.variants)
        return self.model_copy(update={**paths, "variants": variants, "cost": cost, "energy": energy, "load": load})

    def to_json(self) -> str:
        """Canonical JSON: equal studies give equal text."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True)


def make_study(**fields: Any) -> Study:
    """A checked study. Raises StudyError that names each wrong field, what came and what was expected."""
    try:
        return Study(**fields)
    except ValidationError as error:
        lines = []
        for item in error.errors():
            place = ".".join(str(part) for part in item["loc"]) or "study"
            text = item["msg"].removeprefix("Value error, ")
            if item["type"] == "extra_forbidden":
                text = _no_such_setting(item["loc"])
            came = f" (got {_short(item['input'])})" if item["loc"] and item["type"] != "extra_forbidden" else ""
            lines.append(f"{place}: {text}{came}"[:500])
        raise StudyError("the study is not possible: " + "; ".join(lines)) from None


def _short(value: object) -> str:
    """What came, as text of bearable length. Python refuses to write whole numbers of thousands of digits."""
    try:
        text = repr(value)
    except ValueError:
        return "a whole number of thousands of digits"
    return text if len(text) <= _MAX_QUOTED else f"{text[:_MAX_QUOTED]}…"


def _possible_path(text: str | None) -> str | None:
    """Raises ValueError for the home of a user whom this machine does not know."""
    if text is not None and text.startswith("~"):
        try:
            Path(text).expanduser()
        except RuntimeError:
            user = text[1:].partition("/")[0]
            who = f"there is no user '{user}' on this machine" if user else "no home folder is known here"
            raise ValueError(f"{who}: write the path from the root, or ./{text} for a file of that name") from None
    return text


def _no_such_setting(place: tuple[int | str, ...]) -> str:
    parts: Mapping[object, type[BaseModel]] = {
        "constraints": Constraints,
        "cost": CostOptions,
        "effort": Effort,
        "energy": EnergyPlan,
        "inputs": InputOptions,
        "load": LoadPlan,
        "soak": SoakPlan,
    }
    known = sorted(parts.get(place[0], Study).model_fields if len(place) > 1 else Study.model_fields)
    near = get_close_matches(str(place[-1]), known, n=3, cutoff=0.5)
    suggestion = f" Did you mean {' or '.join(near)}?" if near else ""
    return f"no such setting.{suggestion} The settings are: {', '.join(known)}"


def read_study(path: Path) -> Study:
    """A study file (TOML). Relative paths are taken from the file's own folder. Raises StudyError.

    Nothing that it names is run here; `profiler.named_code` tells what would be.
    """
    try:
        if path.stat().st_size > MAX_STUDY_BYTES:
            raise StudyError(f"{path} has {path.stat().st_size} bytes, a study file has at most {MAX_STUDY_BYTES}.")
        content = _toml(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise StudyError(f"cannot read the study {path}: {error.strerror}. `edgeprof init MODEL` writes one.") from None
    except RecursionError:
        raise StudyError(f"{path} cannot be read as a study: it is nested too deep.") from None
    except ValueError as error:
        # TOML's own errors, bytes that are no UTF-8, and whole numbers of thousands of digits.
        raise StudyError(f"{path} is not valid TOML: {str(error).partition(';')[0]}.") from None
    try:
        _from_its_folder(path, content)
    except RuntimeError as error:
        raise StudyError(f"{path}: {error}: write that path from the root.") from None
    except ValueError as error:
        raise StudyError(f"{path}: a path in it is not possible: {error}.") from None
    return make_study(**content)


def toml_value(text: str) -> Any:
    """A value as a study file would hold it, such as `20`, `true`, `["a", "b"]`; other texts are texts."""
    try:
        return _toml(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text.strip()


def _toml(text: str) -> dict[str, Any]:
    try:
        import tomllib
    except ImportError:  # Python 3.10
        import tomli as tomllib  # type: ignore[import-not-found,no-redef,unused-ignore]
    content: dict[str, Any] = tomllib.loads(text)
    return content


def _from_its_folder(path: Path, content: dict[str, Any]) -> None:
    """Take relative paths from the study file's own folder."""
    for key in ("model", "data", "calibration"):
        if isinstance(content.get(key), str):
            content[key] = _beside(path.parent, content[key])
    variants = content.get("variants")
    if isinstance(variants, list):
        content["variants"] = [
            _external_beside(path.parent, text) if isinstance(text, str) else text for text in variants
        ]
    energy = content.get("energy")
    if isinstance(energy, dict) and isinstance(energy.get("csv"), str):
        energy["csv"] = str(path.parent.resolve() / Path(energy["csv"]).expanduser())
    load = content.get("load")
    if isinstance(load, dict) and isinstance(load.get("trace"), str):
        load["trace"] = str(path.parent.resolve() / Path(load["trace"]).expanduser())
    cost = content.get("cost")
    if isinstance(cost, dict) and isinstance(cost.get("prices"), str):
        cost["prices"] = str(path.parent.resolve() / Path(cost["prices"]).expanduser())


def _beside(folder: Path, text: str) -> str:
    """A path relative to the study file; `package.module:name` stays what it is."""
    if ":" in text and not (folder / text).exists():
        return text
    try:
        path = Path(text).expanduser()
    except RuntimeError as error:
        raise StudyError(f"the path '{text}' cannot be found: {error}. Write it from the root.") from None
    return str((folder / path).resolve()) if not path.is_absolute() else str(path)


def _external_beside(folder: Path, text: str) -> str:
    """A variant's text with the path of a model made elsewhere taken from the study file's folder."""
    try:
        steps = [spec.parse(step) for step in spec.split_steps(text)]
        moved = [
            replace(
                step,
                options={**step.options, "path": quote(_beside(folder, unquote(step.options["path"])), safe="/:~+|")},
            )
            if step.name == "external" and "path" in step.options
            else step
            for step in steps
        ]
        return spec.canonical("+".join(map(str, moved)))
    except spec.SpecError:
        # Told by the study's own check, or a folder's name that a text cannot hold.
        return text


@dataclass(frozen=True, order=True)
class Case:
    """One thing to measure: a variant on a backend on a target, at a batch size and a number of threads."""

    variant: str
    backend: str
    target: str
    batch: int
    threads: int

    @property
    def key(self) -> str:
        """The case's name in records and on the command line: `int8-static@ort/b1/t1`."""
        place = "" if self.target == "local" else f"@{self.target}"
        return f"{self.variant}@{self.backend}/b{self.batch}/t{self.threads}{place}"

    @property
    def quality_key(self) -> str:
        """Cases that give the same outputs: everything but the number of threads."""
        place = "" if self.target == "local" else f"@{self.target}"
        return f"{self.variant}@{self.backend}/b{self.batch}{place}"

    @property
    def is_reference_variant(self) -> bool:
        """Whether this case runs the unmodified model."""
        return self.variant == REFERENCE_VARIANT


def expand(study: Study, variants: tuple[str, ...]) -> tuple[Case, ...]:
    """All cases of a study, the reference first. Raises StudyError when they are absurdly many."""
    named = tuple(dict.fromkeys((REFERENCE_VARIANT, *variants)))
    count = len(named) * len(study.backends) * len(study.targets) * len(study.batches) * len(study.threads)
    if count > MAX_CASES:
        raise StudyError(
            f"the study has {count} cases, at most {MAX_CASES} are accepted: ask for fewer variants or batches."
        )
    return tuple(
        Case(variant, backend, target, batch, threads)
        for target in study.targets
        for batch in study.batches
        for threads in study.threads
        for backend in study.backends
        for variant in named
    )


def reference_case(case: Case, study: Study) -> Case:
    """The case that `case` is compared with: the unmodified model on the study's first backend, all else equal."""
    return Case(REFERENCE_VARIANT, study.backends[0], case.target, case.batch, case.threads)


def own_reference(case: Case) -> Case:
    """The unmodified model on the case's own backend, all else equal."""
    return replace(case, variant=REFERENCE_VARIANT)
