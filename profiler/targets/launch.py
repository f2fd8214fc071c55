"""Starting a worker under its target's conditions, and telling its failures apart by them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from profiler import wire
from profiler.errors import StudyError
from profiler.targets.base import Target, get
from profiler.targets.process import WorkerFailure, WorkerProcess
from profiler.targets.remote import LinkLost, clean
from profiler.units import size

_APPLY_S = 60.0
"""Power modes take a second or two, a waiting lock up to half a minute."""
_MAX_WORDS = 300


class ConditionedWorker(WorkerProcess):
    """A worker under conditions; `told` says by its name what each was done with, `notes` the same as sentences."""

    def __init__(self, target: Target, **options: Any) -> None:
        """As WorkerProcess; `apply` puts the conditions on it."""
        super().__init__(target, **options)
        self._conditions = target.conditions
        self._text = target.text
        self.notes: tuple[str, ...] = ()
        self.told: Mapping[str, str] = {}

    def __enter__(self) -> ConditionedWorker:  # noqa: PYI034 (typing.Self is 3.11)
        """The worker itself."""
        return self

    def becomes(self, target: Target) -> None:
        """From now on `apply` takes the conditions of this target, which is the same machine."""
        self._conditions, self._text = target.conditions, target.text

    def apply(self, step: str = "verify") -> Mapping[str, str]:
        """Put the conditions on the worker, with `step` for its power mode (see `profiler.measure.conditions.apply`).

        Returns what each was done with. Raises WorkerFailure of the kind `unavailable` when the machine cannot do it.
        """
        fields = self._conditions.fields()
        if "power" in fields:
            fields["power_step"] = step
        if not fields:
            return {}
        try:
            reply, _ = self.request("hello", timeout_s=_APPLY_S, conditions=fields)
        except WorkerFailure as failure:
            raise WorkerFailure(failure.kind, f"{self._text}: {failure}", failure.log_tail) from failure
        told = reply.get("conditions")
        if not isinstance(told, dict) or set(self._conditions.options()) - set(told):
            raise WorkerFailure("error", f"{self._text}: the worker does not say that it took the conditions.")
        self.told = {key: clean(str(told[key]))[:_MAX_WORDS] for key in self._conditions.options()}
        self.notes = tuple(f"{key}: {words}" for key, words in self.told.items())
        return self.told

    def request(self, command: str, *arguments: Any, **fields: Any) -> tuple[dict[str, Any], wire.Arrays]:
        """As WorkerProcess; a lack of memory in an envelope names its limit."""
        try:
            return super().request(command, *arguments, **fields)
        except WorkerFailure as failure:
            limit = self._conditions.memory_bytes
            if failure.kind != "out_of_memory" or limit is None or "GPU" in str(failure):
                raise
            means = self.told.get("memory", "it did not say how")
            # What to do about it is another thing in an envelope than on a machine.
            what = str(failure).partition(" Try a smaller")[0]
            raise WorkerFailure(
                "out_of_memory",
                f"does not fit into the {size(limit)} of the envelope {self._text} ({means}): {what} Try a smaller batch "
                "(--batch), a smaller variant such as int8-dynamic, or a larger envelope.",
                failure.log_tail,
                needs_more_than_bytes=limit,
            ) from failure


def start(
    target: Target, *, cache: Path | None = None, memory_limit_bytes: int | None = None, step: str = "verify"
) -> ConditionedWorker:
    """A worker of the target that greeted where it has to, and is under the target's conditions.

    Raises TargetError, and WorkerFailure for conditions that cannot be had.
    """
    worker = ConditionedWorker(target, cache=cache, memory_limit_bytes=memory_limit_bytes)
    try:
        if not target.shares_files:
            worker.greet()
        worker.apply(step)
    except BaseException:
        worker.close()
        raise
    return worker


def probe(target: Target) -> ConditionedWorker:
    """A worker that tells of a target before a run: under its conditions, with its power mode looked for and not set.

    Raises StudyError when a condition cannot be had there, and TargetError.
    """
    try:
        return start(target, step="check")
    except WorkerFailure as failure:
        raise StudyError(str(failure)) from failure


def conditions_of(texts: Iterable[str]) -> dict[str, dict[str, str]]:
    """For a run's plan: what the conditions of each target's text are done with, by the text; those without any are left out.

    A device that cannot be reached now is left out too. Raises StudyError for a condition that its machine cannot give.
    """
    found: dict[str, dict[str, str]] = {}
    for text in texts:
        target = get(text)
        if not target.conditions.fields():
            continue
        with suppress(LinkLost), probe(target) as worker:
            found[text] = dict(worker.told)
    return found
