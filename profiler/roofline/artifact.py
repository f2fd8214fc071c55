"""Counts and profile of a stored case: from its artifact, where it is still here, and from what is known of its machine."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from pydantic import TypeAdapter

from profiler.analysis import Analysis, CaseResult
from profiler.artifacts import ArtifactStore
from profiler.cost.devices import DeviceProfile
from profiler.errors import EdgeprofError
from profiler.records import Figure, NotMeasured
from profiler.roofline.counting import ModelCounts
from profiler.roofline.graph import Shape
from profiler.roofline.share import declared_profile, limit_share
from profiler.targets import maker as makers
from profiler.targets.maker import Maker, model_errors

_COUNTING_S = 120.0
"""Longest that a report waits for the operations of one file."""


class Limits:
    """The share of the limit of any case of a run; each artifact is read and counted once for each batch."""

    def __init__(self, analysis: Analysis, store: ArtifactStore | None) -> None:
        """`store` holds the run's artifacts; None where its folder is gone."""
        self._store = store
        self._shapes: Mapping[str, Shape] = analysis.run.study.input_shapes
        self._artifacts = {record.variant: record.sha256 for record in analysis.run.artifacts}
        # Ends with this object: a report asks for one case after the other.
        self._maker = Maker(_limits)
        self._counts: dict[tuple[str, int], ModelCounts | NotMeasured] = {}

    @classmethod
    def of(cls, analysis: Analysis, folder: Path) -> Limits:
        """With the artifacts below `folder`, the cache beside the run's database, if it is there: nothing is made."""
        return cls(analysis, ArtifactStore(folder) if (folder / "objects").is_dir() else None)

    def share(self, case: CaseResult) -> Figure:
        """The part of what the case's device allows that it reached, or why that is not known. Reads a file only when it must."""
        profile = case_profile(case)
        if isinstance(case.latency_p50_s, NotMeasured) or profile is None or not case.machine.real:
            return limit_share(case, NotMeasured("not counted"), profile)
        return limit_share(case, self.counts(case), profile)

    def counts(self, case: CaseResult) -> ModelCounts | NotMeasured:
        """Operations and bytes of the file that the case ran, at its batch."""
        sha256 = self._artifacts.get(case.case.variant)
        if sha256 is None or self._store is None:
            return NotMeasured("its model file is not here any more, to count operations in")
        key = sha256, case.case.batch
        if key not in self._counts:
            self._counts[key] = _counted(self._store, *key, self._shapes, self._maker)
        return self._counts[key]


def case_profile(case: CaseResult) -> DeviceProfile | None:
    """The profile of the case's machine: of its target, else what it is declared or detected as."""
    return declared_profile(case.machine.profile) or declared_profile(case.machine.priced_as)


def _counted(
    store: ArtifactStore, sha256: str, batch: int, shapes: Mapping[str, Shape], maker: Maker
) -> ModelCounts | NotMeasured:
    try:
        return count_file(store.path(sha256), batch, shapes, maker=maker)
    except EdgeprofError as error:
        return NotMeasured(str(error))


def count_file(
    path: Path, batch: int, shapes: Mapping[str, Shape], *, checked: bool = False, maker: Maker | None = None
) -> ModelCounts:
    """`count_model` of a file in a maker process; `checked` reads it as a model of a user. Raises ModelError."""
    with model_errors(), ExitStack() as stack:
        maker = maker or stack.enter_context(Maker(_limits))
        sizes = {name: list(shape) for name, shape in shapes.items()}
        what = f"counting the operations of '{path}'"
        found = maker.do("count", what, path=path, batch=batch, shapes=sizes, checked=checked)
    return TypeAdapter(ModelCounts).validate_python(found)


def _limits() -> makers.Limits:
    return makers.limits_of(_COUNTING_S / makers.STEPS)
