"""An artifact store whose variants are made in a maker process: what a model does to the tools is not done to this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from profiler.artifacts import TEMPORARY, ArtifactStore, full_disk, record_of
from profiler.errors import VariantError
from profiler.records import ArtifactRecord
from profiler.targets.log import clean
from profiler.targets.maker import Limits, Maker, usual_limits

if TYPE_CHECKING:
    from profiler.variants.base import Calibration, Variant


class MakerStore(ArtifactStore):
    """As ArtifactStore, but for `make`. `maker` is kept from variant to variant; leaving the `with` block ends it."""

    def __init__(self, folder: Path, limits: Callable[[], Limits] = usual_limits) -> None:
        """`limits` is asked before each variant. Raises StoreError when the folder cannot be prepared."""
        super().__init__(folder)
        self.maker = Maker(limits, (folder / TEMPORARY).absolute())

    def __enter__(self) -> MakerStore:  # noqa: PYI034 (typing.Self is 3.11)
        """Itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """End the maker."""
        self.maker.close()

    def make(
        self, source: Path, variant: Variant, calibration: Calibration | None, calibration_sha: str | None
    ) -> ArtifactRecord:
        """As ArtifactStore; the recipe has to be one that `registry.make` makes of its text.

        Raises WorkerFailure when its process died, did not end in time or ran out of memory. Nothing of it is left then.
        """
        # Rows are offered only where the cache key holds their hash.
        wanted = calibration if variant.looks_at_calibration else None
        with full_disk(self.folder):
            rows = self.maker.lay_out(wanted, str(calibration_sha))
        made = self._do("make", f"making {variant.text}", source, variant, calibration_sha, rows=rows)
        return self._told(variant, made)

    def cached(self, source: Path, variant: Variant, calibration_sha: str | None) -> ArtifactRecord | None:
        """As ArtifactStore. Raises WorkerFailure too."""
        found = self._do("cached", f"looking for {variant.text}", source, variant, calibration_sha)
        return None if found is None else self._told(variant, found)

    def keep_made(
        self, source: Path, variant: Variant, calibration_sha: str | None, made: Path, *, facts: Mapping[str, Any],
        notes: Sequence[str], changed: bool,
    ) -> ArtifactRecord:  # fmt: skip
        """Put the model file `made`, which is untrusted, into the cache as what `variant` made of `source`.

        Raises ModelError for a file that is no sound model, WorkerFailure for one that ends the process that reads it.
        """
        what = f"reading what {variant.text} is to be"
        told = self._do(
            "keep",
            what,
            source,
            variant,
            calibration_sha,
            made=made,
            facts=dict(facts),
            notes=[*notes],
            changed=changed,
        )
        return self._told(variant, told)

    def _do(
        self, task: str, what: str, source: Path, variant: Variant, calibration_sha: str | None, **more: object
    ) -> Any:
        return self.maker.do(
            task,
            what,
            source=source,
            store=self.folder,
            variant=variant.text,
            calibration_sha256=calibration_sha,
            **more,
        )

    def _told(self, variant: Variant, made: Any) -> ArtifactRecord:
        try:
            record = record_of(made)
            self.path(record.sha256)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise VariantError(f"{variant.text} could not be made: its process told no record ({error}).") from error
        return _clean(record)

    def remake(
        self, source: Path, variant: Variant, calibration: Calibration | None, calibration_sha: str | None, sha256: str
    ) -> str:
        """As ArtifactStore. The maker does not stay: what follows is timed."""
        try:
            return super().remake(source, variant, calibration, calibration_sha, sha256)
        finally:
            self.maker.close()


def _clean(record: ArtifactRecord) -> ArtifactRecord:
    """Texts that came from a model, as they may be shown."""
    facts = {key: clean(value) if isinstance(value, str) else value for key, value in record.facts.items()}
    return replace(record, facts=facts, notes=tuple(map(clean, record.notes)))
