"""What a worker's answers may be, checked once, before anybody computes with them: a worker is untrusted input.

`tame` is for every answer: numbers are finite and of a size that the run database holds, text holds nothing that moves a
cursor or colours a screen, and there is not too much of it. `check` knows what each command answers; commands that it does
not know pass. Imported where answers come in, because pydantic takes a while.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import NotRequired, TypedDict

from profiler.record_checks import LONGEST_S
from profiler.targets.log import clean

Arrays = Mapping[str, NDArray[np.generic]]

MAX_TEXT = 20_000
_MAX_DEPTH = 20
_LARGEST_WHOLE = 2**63 - 1
_LONGEST_S = LONGEST_S
_LONGEST_NS = LONGEST_S * 1e9
_MIB = 1 << 20
_HEADER_BYTES: Mapping[str, int] = {"ops": 16 * _MIB, "load": 4 * _MIB}
_PAYLOAD_BYTES: Mapping[str, int] = {
    "do": 512 * _MIB,
    "infer": 2048 * _MIB,
    "time": 256 * _MIB,
    "serve": 256 * _MIB,
    "loadgen": 256 * _MIB,
}
_VALUES: Mapping[str, int] = {"ops": 500_000, "load": 100_000}
"""Numbers, texts and containers in one answer: times of every op, and the tensors of a model with thousands of them."""
_MOST_VALUES = 5_000


class Nonsense(ValueError):  # noqa: N818 (what it is)
    """An answer that no worker of ours gives; the text says what is wrong with it."""


def limits(command: str) -> dict[str, int]:
    """How large the answer to a command may be, as `wire.read_frame` takes it: little, but for those that carry samples."""
    return {
        "max_header_bytes": _HEADER_BYTES.get(command, _MIB),
        "max_payload_bytes": _PAYLOAD_BYTES.get(command, 64 * _MIB),
    }


def tame(answer: Mapping[str, Any], command: str = "ops") -> dict[str, Any]:
    """The same with clean text. Raises Nonsense for numbers without an end, and for what is too deep, too long or too much."""
    most = left = _VALUES.get(command, _MOST_VALUES)

    def one(value: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or depth > _MAX_DEPTH:
            raise Nonsense(f"it is nested deeper than {_MAX_DEPTH}, or holds more than {most} values")
        if isinstance(value, str):
            return clean(value[:MAX_TEXT])
        if isinstance(value, dict):
            return {clean(key[:MAX_TEXT]): one(inner, depth + 1) for key, inner in value.items()}
        if isinstance(value, list):
            return [one(inner, depth + 1) for inner in value]
        if isinstance(value, (int, float)) and not (math.isfinite(value) and abs(value) <= _LARGEST_WHOLE):
            raise Nonsense(f"it holds the number {str(value)[:40]}")
        return value

    tamed: dict[str, Any] = one(answer, 0)
    if isinstance(answer.get("message"), str):
        # A runtime's own words have many lines.
        tamed["message"] = clean(answer["message"][:MAX_TEXT], lines=True)
    return tamed


def tame_names(arrays: Arrays) -> dict[str, NDArray[np.generic]]:
    """Arrays under clean names. Raises Nonsense when two become one."""
    found = {clean(name[:MAX_TEXT]): array for name, array in arrays.items()}
    if len(found) != len(arrays):
        raise Nonsense("two of its arrays have the same name")
    return found


def check(command: str, asked: Mapping[str, Any], sent: Arrays, answer: Mapping[str, Any], arrays: Arrays) -> None:
    """Raise Nonsense unless the answer has what is read of it. `asked` and `sent` are the command's own fields and arrays."""
    adapter = _adapters().get(_form(command, asked, answer))
    if adapter is not None:
        try:
            adapter.validate_python(answer)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=True)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise Nonsense(f"{place[:100]} is {str(first.get('input'))[:60]!r}: {first['msg'][:120]}") from None
    if command == "time":
        _check_time(asked, arrays)
    elif command == "serve":
        _check_serve(sent, arrays)
    elif command == "loadgen":
        for name, array in arrays.items():
            _column(name, array, "u")
    for asks, key in (("weigh", "harness"), ("machine", "machine")):
        if asked.get(asks) and command in ("time", "ops") and answer.get(key) is None:
            raise Nonsense(f"{key} is missing")


def _check_time(asked: Mapping[str, Any], arrays: Arrays) -> None:
    durations = _column("durations_ns", arrays.get("durations_ns"), "iu")
    most = int(asked.get("max_samples", 1_000_000))
    if not 1 <= len(durations) <= most:
        raise Nonsense(f"{len(durations)} durations came, 1 to {most} were asked for")
    _spans("durations_ns", durations)
    songs, places = arrays.get("canary_ns"), arrays.get("canary_at")
    if songs is not None or places is not None:
        at = _column("canary_at", places, "iu")
        if len(_column("canary_ns", songs, "iuf")) != len(at) or (at < 0).any() or (at > len(durations)).any():
            raise Nonsense(f"the canary sang at other places than among {len(durations)} samples")
    if songs is not None:
        _sized("canary_ns", songs)
    windows = -(-len(durations) // max(1, int(asked.get("label_every", 1))))
    for name, array in arrays.items():
        if name not in ("durations_ns", "canary_ns", "canary_at") and len(_column(name, array, "iuf")) not in (
            0,
            windows,
        ):
            raise Nonsense(f"{name} has {len(array)} values, {len(durations)} samples make {windows} windows")
        if name not in ("durations_ns", "canary_ns", "canary_at"):
            _sized(name, array)
    if len(arrays.get("window_ns", ())):
        _spans("window_ns", arrays["window_ns"])


def _spans(name: str, times_ns: NDArray[Any]) -> None:
    if not (times_ns > 0).all():
        raise Nonsense(
            f"the worker's clock jumped: {name} holds {times_ns.min() / 1e9:g} s, which cannot be. Measure again"
        )
    _sized(name, times_ns)


def _sized(name: str, values: NDArray[Any]) -> None:
    """No number that does not fit a record, in seconds as in nanoseconds."""
    if len(values) and not (values.max() <= _LONGEST_NS and values.min() >= -_LONGEST_NS):
        raise Nonsense(f"{name} goes from {float(values.min()):g} to {float(values.max()):g}, which cannot be")


def _check_serve(sent: Arrays, arrays: Arrays) -> None:
    names = ("sent_ns", "started_ns", "completed_ns", "batch_size")
    columns = [_column(name, arrays.get(name), "iu") for name in names]
    due = sent.get("schedule_s")
    counts = {len(column) for column in columns}
    if len(counts) != 1 or 0 in counts or (due is not None and len(columns[0]) > len(due)):
        raise Nonsense(f"{', '.join(names)} have {', '.join(str(len(column)) for column in columns)} requests")
    for name, column in zip(names, columns, strict=True):
        _sized(name, column)
    if (columns[-1] < 0).any():
        raise Nonsense(f"batch_size holds {columns[-1].min()}, which cannot be")


def _column(name: str, array: NDArray[np.generic] | None, kinds: str) -> NDArray[Any]:
    if array is None:
        raise Nonsense(f"the array {name} is missing")
    if array.ndim != 1 or array.dtype.kind not in kinds or not np.isfinite(array).all():
        raise Nonsense(f"the array {name[:100]} has {array.dtype} {array.shape}, or values that are no number")
    return array


def _form(command: str, asked: Mapping[str, Any], answer: Mapping[str, Any]) -> str:
    """Which form an answer takes; `energy` has one for each of its questions."""
    if command != "energy":
        return command
    if asked.get("clock"):
        return "energy clock"
    if asked.get("window_s") is None:
        return "energy meters"
    return "energy lost" if "lost" in answer else "energy window"


_Number = Annotated[float, Field(ge=-1e18, le=1e18)]
_Seconds = Annotated[float, Field(ge=0, le=_LONGEST_S)]
_Count = Annotated[int, Field(ge=0, le=_LARGEST_WHOLE)]
_Texts = Annotated[list[str], Field(max_length=10_000)]
_OPEN = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)
_CLOSED = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
_Phases = dict[str, dict[str, _Count | None]]


class _Facts(TypedDict):
    """`SessionFacts`."""

    __pydantic_config__ = _CLOSED  # type: ignore[misc]
    runtime: str
    runtime_version: str
    provider: str
    threads: _Count | None
    precision: dict[str, _Count] | None
    precision_reason: str | None
    details: dict[str, str]


class _Tensor(TypedDict):
    """`TensorInfo`."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    name: str
    dtype: str
    shape: list[int | str | None]


class _Harness(TypedDict):
    """`HarnessCost`, of what is read."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    in_sample_s: _Number
    labelled_s: _Number


class _Op(TypedDict):
    """`OpTime`."""

    __pydantic_config__ = _CLOSED  # type: ignore[misc]
    name: str
    op_type: str
    precision: str
    provider: str
    duration_s: _Seconds
    calls: _Seconds
    kernel: str | None
    origins: _Texts


class _Cores(TypedDict):
    """`realised.Cores`."""

    __pydantic_config__ = _CLOSED  # type: ignore[misc]
    isa: _Texts
    usable_cores: Annotated[int, Field(ge=1, le=1 << 20)]
    switches: dict[str, str]
    cache_bytes: _Count | None
    bandwidth_bytes_per_s: Annotated[float, Field(gt=0, le=1e18)] | None


class _Meter(TypedDict):
    """`MeterInfo`. A meter that brings a value once a minute is none: windows are shorter."""

    __pydantic_config__ = _CLOSED  # type: ignore[misc]
    name: str
    kind: Literal["counter", "power"]
    rails: _Texts
    total_rails: _Texts
    coverage: str
    update_s: Annotated[float, Field(ge=0, le=60)]
    powers: _Texts
    settle_s: Annotated[float, Field(ge=0, le=60)]
    notes: _Texts


class _Absent(TypedDict):
    """`Absent`."""

    __pydantic_config__ = _CLOSED  # type: ignore[misc]
    meter: str
    reason: str


class _Window(TypedDict):
    """`window.Window`, of what is read."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    energy_j: dict[str, _Number]
    inferences: _Count
    wall_s: _Seconds
    started_unix_s: _Number
    readings: _Count


class _Hello(TypedDict):
    __pydantic_config__ = _OPEN  # type: ignore[misc]
    protocol: int
    pid: _Count
    """Of the worker there."""


class _Availability(TypedDict):
    __pydantic_config__ = _OPEN  # type: ignore[misc]
    available: bool
    version: str | None
    reason: str | None
    install: str | None


class _Environment(TypedDict):
    __pydantic_config__ = _OPEN  # type: ignore[misc]
    environment: dict[str, Any]


class _Have(TypedDict):
    __pydantic_config__ = _OPEN  # type: ignore[misc]
    have: bool
    offset: _Count


class _Load(TypedDict):
    __pydantic_config__ = _OPEN  # type: ignore[misc]
    import_s: _Seconds
    load_s: _Seconds
    rss_before_load_bytes: _Count | None
    phases: _Phases
    inputs: list[_Tensor]
    outputs: list[_Tensor]


class _First(TypedDict):
    __pydantic_config__ = _OPEN  # type: ignore[misc]
    first_inference_s: _Seconds
    phases: _Phases


class _Time(TypedDict):
    __pydantic_config__ = _OPEN  # type: ignore[misc]
    started_s: _Number
    cpu_s: _Seconds
    wall_s: _Seconds
    labels: dict[str, _Number]
    parked_cpu_s: _Seconds
    harness: _Harness | None


class _Memory(TypedDict):
    __pydantic_config__ = _OPEN  # type: ignore[misc]
    rss_bytes: _Count | None
    peak_rss_bytes: _Count | None
    phases: _Phases
    memory_notes: _Texts


class _FactsAnswer(TypedDict):
    __pydantic_config__ = _OPEN  # type: ignore[misc]
    facts: _Facts


class _Ops(TypedDict):
    __pydantic_config__ = _OPEN  # type: ignore[misc]
    wall_s: _Seconds
    facts: _Facts
    ops: list[_Op] | None
    reason: str | None
    machine: NotRequired[_Cores]


class _Serve(TypedDict):
    __pydantic_config__ = _OPEN  # type: ignore[misc]
    ended: Literal["complete", "diverged", "timeout"]
    started_s: _Number
    cpu_s: _Seconds
    wall_s: _Seconds
    labels: dict[str, _Number]
    generator_cpu_s: _Number | None
    padded_to: _Count | None


class _Loadgen(TypedDict):
    __pydantic_config__ = _OPEN  # type: ignore[misc]
    samples: _Count


class _Clock(TypedDict):
    __pydantic_config__ = _OPEN  # type: ignore[misc]
    unix_s: _Number


class _Meters(TypedDict):
    __pydantic_config__ = _OPEN  # type: ignore[misc]
    meters: list[_Meter]
    absent: list[_Absent]


class _Lost(TypedDict):
    __pydantic_config__ = _OPEN  # type: ignore[misc]
    lost: str


class _Taken(TypedDict):
    __pydantic_config__ = _OPEN  # type: ignore[misc]
    window: _Window
    meter: _Meter | None


_FORMS: Mapping[str, Any] = {
    "hello": _Hello, "availability": _Availability, "environment": _Environment, "have": _Have, "load": _Load, "first": _First,
    "time": _Time, "memory": _Memory, "facts": _FactsAnswer, "ops": _Ops, "serve": _Serve, "loadgen": _Loadgen,
    "energy clock": _Clock, "energy meters": _Meters, "energy lost": _Lost, "energy window": _Taken,
}  # fmt: skip


@functools.cache
def _adapters() -> Mapping[str, TypeAdapter[Any]]:
    return {name: TypeAdapter(form) for name, form in _FORMS.items()}
