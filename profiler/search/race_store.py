"""The run database as one look of the race sees it: its own blocks, in groups of their own and with a label."""

from __future__ import annotations

from dataclasses import replace

from profiler.records import RACE, BlockRecord, ProcessRecord
from profiler.search.shared import FIRST_RACE_GROUP, LOOK_GROUPS
from profiler.store import Record, Store


class RaceStore(Store):
    """A store for `profiler.campaign.measure` that keeps the blocks of a look apart from those of other looks and the final."""

    def __init__(self, store: Store, look: int) -> None:
        """`store` stays open and is written to; `look` counts from 0."""
        super().__init__(store._engine, store.place, lease=store.lease, clock=store._clock)  # noqa: SLF001 (the same connections, another view)
        self.first = FIRST_RACE_GROUP + look * LOOK_GROUPS

    def add(self, run_id: str, record: Record) -> bool:
        """Store a record; blocks and processes move to the groups of this look."""
        if isinstance(record, BlockRecord):
            moved: Record = replace(record, group=record.group + self.first, labels={**record.labels, RACE: 1.0})
        elif isinstance(record, ProcessRecord):
            moved = replace(record, group=record.group + self.first)
        else:
            moved = record
        return super().add(run_id, moved)

    def done_blocks(self, run_id: str) -> set[tuple[str, int, int, int]]:
        """The blocks of this look, by the groups that the campaign knows."""
        return {
            (case, replicate, group - self.first, index)
            for case, replicate, group, index in super().done_blocks(run_id)
            if self.owns(group)
        }

    def last_attempt(self, run_id: str, replicate: int, group: int) -> int:
        """The highest attempt of a replicate of this look."""
        return super().last_attempt(run_id, replicate, group + self.first)

    def owns(self, group: int) -> bool:
        """Whether a stored group belongs to this look."""
        return self.first <= group < self.first + LOOK_GROUPS
