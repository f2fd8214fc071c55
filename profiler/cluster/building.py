"""An artifact store that has missing variants made on a cluster: what it holds and tells afterwards is the same."""

from __future__ import annotations

import dataclasses
import math
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from profiler import wire
from profiler.artifacts import MODEL_NAME, content_sha256
from profiler.cluster import tasks
from profiler.cluster.client import (
    Answer,
    Cluster,
    ClusterLost,
    File,
    LetGo,
    TookTooLong,
    WorkerDied,
    file_of,
    file_of_arrays,
)
from profiler.errors import EdgeprofError, VariantError
from profiler.held import held_folder
from profiler.making import MakerStore
from profiler.records import REFERENCE_VARIANT, ArtifactRecord
from profiler.targets.log import clean
from profiler.targets.maker import PREFIX, Limits, usual_limits

if TYPE_CHECKING:
    from profiler.variants.base import Calibration, Variant

BUILD_LIMIT_S = 3600.0
"""Longest that one variant may take on the cluster."""
_MAX_NOTES, _MAX_TEXT = 1000, 2000


class ClusterArtifacts(MakerStore):
    """An artifact store whose `make` asks the cluster. Whatever a cluster cannot do is made here, and told by `note`.

    A variant whose worker died, or that took too long, is not tried again by this store: it may be what killed the worker.
    """

    def __init__(
        self, folder: Path, cluster: Cluster, note: Callable[[str], None], *, limit_s: float = BUILD_LIMIT_S,
        limits: Callable[[], Limits] = usual_limits,
    ) -> None:  # fmt: skip
        """As MakerStore. The cluster is not closed here."""
        super().__init__(folder, limits)
        self._cluster, self._note, self._limit_s = cluster, note, limit_s
        self._failed: dict[tuple[str, str | None], EdgeprofError] = {}
        self._lost: str | None = None
        self._told_lost = False
        self._lock = threading.Lock()
        self._files: dict[tuple[Path, int, int, str | None], _Files] = {}

    def ahead(
        self, source: Path, variants: Sequence[Variant], calibration: Calibration | None, calibration_sha: str | None,
        *, limit_s: float = math.inf, clock: Callable[[], float] = time.monotonic,
    ) -> Iterator[str]:  # fmt: skip
        """Make all variants at once, as far as the cluster goes; yields the text of each that is settled.

        They are in the cache afterwards, so that `make` finds them there; failures come from `make`. Nothing is made here. What
        is not there after `limit_s` is let go, so that nothing arrives while something is timed; `make` asks for it again.
        """
        until, gone = clock() + limit_s, threading.Event()
        pool = ThreadPoolExecutor(self._cluster.slots, thread_name_prefix="edgeprof-cluster")
        try:
            running = {
                variant.text: pool.submit(self._settle, variant, source, calibration, calibration_sha, gone.is_set)
                for variant in variants
                if _may_travel(variant)
            }
            for text, future in running.items():
                if not wait([future], None if limit_s == math.inf else max(0.0, until - clock())).done:
                    return
                future.result()
                yield text
        finally:
            gone.set()
            pool.shutdown(wait=True, cancel_futures=True)

    def make(
        self, source: Path, variant: Variant, calibration: Calibration | None, calibration_sha: str | None
    ) -> ArtifactRecord:
        """As ArtifactStore. Raises VariantError also for a variant that ended its worker on the cluster."""
        known = self._failed.get((variant.text, calibration_sha))
        if known is not None:
            raise known
        if _may_travel(variant) and self._lost is None:
            try:
                return self._made(variant, source, calibration, calibration_sha)
            except _Here as reason:
                if self._lost is None:
                    self._note(f"{variant.text} is made here, not on the cluster: {reason}")
        if self._lost is not None and not self._told_lost:
            self._told_lost = True
            self._note(f"what is missing is made here, not on the cluster: {self._lost}")
        return super().make(source, variant, calibration, calibration_sha)

    def _settle(
        self,
        variant: Variant,
        source: Path,
        calibration: Any,
        calibration_sha: str | None,
        unwanted: Callable[[], bool],
    ) -> None:
        try:
            self._made(variant, source, calibration, calibration_sha, unwanted)
        except _Here:
            # Comes up again, and is told, when the variant is asked for.
            return
        except EdgeprofError as error:
            self._failed[variant.text, calibration_sha] = error

    def _made(
        self, variant: Variant, source: Path, calibration: Calibration | None, calibration_sha: str | None,
        unwanted: Callable[[], bool] = lambda: False,
    ) -> ArtifactRecord:  # fmt: skip
        cached = self.cached(source, variant, calibration_sha)
        if cached is not None:
            return cached
        answer = self._answer(variant, source, calibration, calibration_sha, unwanted)
        with _received(answer, variant) as (record, made):
            facts, notes, changed = _told(record)
            try:
                kept = self.keep_made(
                    source,
                    variant,
                    calibration_sha,
                    made,
                    facts=facts,
                    notes=(*notes, *self._notes(answer)),
                    changed=changed,
                )
            except EdgeprofError as error:
                raise _Here(f"what {answer.machine.named} made is not accepted: {error}") from None
        if kept.sha256 != record["sha256"]:
            raise VariantError(
                f"{variant.text} came from the cluster as {record['sha256'][:12]} and was stored as {kept.sha256[:12]}: leave it "
                "out, or run without --cluster."
            )
        return kept

    def _answer(
        self, variant: Variant, source: Path, calibration: Calibration | None, calibration_sha: str | None,
        unwanted: Callable[[], bool],
    ) -> Answer:  # fmt: skip
        """Have the variant made there. Raises VariantError as it would be raised here, and _Here when it has to be made here."""
        if self._lost is not None:
            raise _Here(self._lost)
        files = self._files_of(source, calibration, calibration_sha)
        rows = files.calibration if variant.looks_at_calibration else None
        fields = {
            "variant": variant.text,
            "content": variant.content_key(),
            "source": {name: file.sha256 for name, file in files.source.items()},
            "calibration": None if rows is None else rows.sha256,
            "calibration_sha256": calibration_sha,
        }
        wanted = [*files.source.values(), *([rows] if rows is not None else [])]
        try:
            answer = self._cluster.do("build", fields, wanted, limit_s=self._limit_s, unwanted=unwanted)
        except (WorkerDied, TookTooLong) as error:
            # Once is enough: what kills a worker kills the next one, or this process.
            self._failed[variant.text, calibration_sha] = VariantError(
                f"{variant.text} could not be made: {error}. It is not tried again in this run, which it might end too; resume "
                "the run to try it again, without --cluster to see what it does."
            )
            raise self._failed[variant.text, calibration_sha] from None
        except LetGo as error:
            raise _Here(str(error)) from None
        except ClusterLost as error:
            self._lost = str(error)
            raise _Here(str(error)) from None
        if answer.failed is not None:
            raise _failure(variant, answer.failed)
        if answer.not_here is not None:
            raise _Here(f"{answer.machine.named}: {answer.not_here}")
        return answer

    def _notes(self, answer: Answer) -> tuple[str, ...]:
        notes = [f"made on the cluster machine {answer.machine.named}"]
        if not answer.machine.runs_like(self._cluster.here):
            notes.append(
                "that machine has other instruction sets than this one: what is found on calibration rows can differ in its "
                "last digits"
            )
        if answer.begun > 1:
            notes.append(f"made {answer.begun} times there, because a worker died with the result; counted once")
        return tuple(notes)

    def _files_of(self, source: Path, calibration: Calibration | None, calibration_sha: str | None) -> _Files:
        """Hashed once, for as long as the file stays what it is."""
        state = source.stat()
        key = (source, state.st_size, state.st_mtime_ns, calibration_sha)
        with self._lock:
            if key not in self._files:
                found = self.maker.do("files", f"reading the model '{source}'", path=source)
                names = {str(name): source.parent / str(name) for name in found}
                rows = None if calibration is None else file_of_arrays(lambda: dict(calibration))
                files = {name: file_of(path) for name, path in {MODEL_NAME: source, **names}.items()}
                self._files[key] = _Files(files, rows)
            return self._files[key]


@dataclasses.dataclass(frozen=True)
class _Files:
    source: dict[str, File]
    calibration: File | None


class _Here(EdgeprofError):  # noqa: N818 (an answer, no mistake)
    """The variant has to be made on this machine; the text says why."""


def _may_travel(variant: Variant) -> bool:
    """The reference is a copy, and everything rests on it: it is always made here."""
    return variant.text != REFERENCE_VARIANT


def _failure(variant: Variant, failed: Any) -> VariantError:
    """A failure that the worker tells, in the words of this machine."""
    text = " ".join(clean(str(failed.get("text"))).split())[:_MAX_TEXT] or "no reason was given"
    if failed.get("for_people") is True:
        return VariantError(text)
    return VariantError(f"{variant.text} could not be made: {clean(str(failed.get('type')))[:80]}: {text}.")


@contextmanager
def _received(answer: Answer, variant: Variant) -> Iterator[tuple[dict[str, Any], Path]]:
    """The record and the model file that came, checked against each other: bytes are what the record's hash says, or refused."""
    record = (answer.done or {}).get("record")
    if not isinstance(record, dict) or record.get("variant") != variant.text or MODEL_NAME not in answer.arrays:
        raise _Here(f"{answer.machine.named} answered with something else than {variant.text}")
    with held_folder(Path(tempfile.gettempdir()), PREFIX) as held:
        folder = held / "artifact"
        try:
            for name, array in answer.arrays.items():
                path = folder / tasks.plain_name(name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(array.tobytes())
            if content_sha256(folder) != record.get("sha256"):
                raise wire.WireError("its bytes do not have the hash that it tells")
        except (wire.WireError, EdgeprofError, OSError) as error:
            raise _Here(f"what {answer.machine.named} made is not accepted: {error}") from None
        yield record, folder / MODEL_NAME


def _told(record: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...], bool]:
    """Facts, notes and whether anything changed. Raises _Here for what is none of that."""
    facts, told, changed = record.get("facts"), record.get("notes"), record.get("changed")
    plain = (str, int, float, bool, type(None))
    if (
        not isinstance(facts, dict) or not all(isinstance(value, plain) for value in facts.values())
        or not isinstance(told, list) or len(told) > _MAX_NOTES or not isinstance(changed, bool)
    ):  # fmt: skip
        raise _Here("a worker of the cluster tells facts that are none")
    return facts, tuple(str(note)[:_MAX_TEXT] for note in told), changed
