"""A run's plan as it is stored: what it will do and what is known of its machines, read back as untrusted input.

A plan of an older version lacks keys, one of a newer version has more: both are read. What is there has the form that its
readers rely on.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import NotRequired, TypedDict

from profiler import record_codec

MAX_PLAN_BYTES = 256 << 20
"""A plan holds a number for each row of the data where several rows come from one source."""
_MOST_CASES = 100_000
"""A search adds cases as it goes."""
_OPEN = ConfigDict(extra="allow", allow_inf_nan=False)


class _Case(TypedDict):
    """`profiler.study.Case`."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]
    variant: str
    backend: str
    target: str
    batch: Annotated[int, Field(ge=1, le=1 << 40)]
    threads: Annotated[int, Field(ge=1, le=1 << 40)]


class _Detected(TypedDict):
    __pydantic_config__ = _OPEN  # type: ignore[misc]
    target: str | None
    evidence: str


class _Selftest(TypedDict):
    __pydantic_config__ = _OPEN  # type: ignore[misc]
    passed: bool


class _Decision(TypedDict):
    __pydantic_config__ = _OPEN  # type: ignore[misc]
    subject: str
    stage: str
    outcome: str


class _Search(TypedDict):
    __pydantic_config__ = _OPEN  # type: ignore[misc]
    asked: dict[str, Any]
    decisions: list[_Decision]
    seed_spreads: NotRequired[list[dict[str, Any]]]


class _Plan(TypedDict, total=False):
    __pydantic_config__ = _OPEN  # type: ignore[misc]
    cases: Annotated[list[_Case], Field(max_length=_MOST_CASES)]
    source_sha256: str | None
    reference_artifact: str | None
    data_sha256: str | None
    data_name: str | None
    data_rows: Annotated[int, Field(ge=0)] | None
    calibration_rows: Annotated[int, Field(ge=0)] | None
    clusters: list[int] | None
    detected: _Detected | None
    conditions: dict[str, Any]
    targets: dict[str, Any]
    group_memory_bytes: dict[str, int]
    dedicated: bool | None
    fixed_clocks: bool | None
    selftest: _Selftest | None
    search: _Search


@cache
def _reader() -> TypeAdapter[Any]:
    return TypeAdapter(_Plan)


def read(text: Any) -> dict[str, Any]:
    """The plan of that JSON text, empty where there is none yet. Raises ValueError or TypeError for what is no plan."""
    plan: Any = record_codec.loads(text or "{}", most_bytes=MAX_PLAN_BYTES)
    try:
        _reader().validate_python(plan)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"])[:100] or "it"
        raise ValueError(f"in its plan {place} is {str(first.get('input'))[:60]!r}: {first['msg'][:120]}") from None
    return dict(plan)
