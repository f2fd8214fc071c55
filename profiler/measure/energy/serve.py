"""The worker's side of the energy stage: which meters are here, and one window, as plain values that travel."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from backends.base import Feeds
from profiler.measure import energy
from profiler.measure.energy import window
from profiler.measure.loop import quiet_collector


def meters(gpu: int, *, find: Callable[..., energy.Found] = energy.find) -> dict[str, Any]:
    """The meters of this machine and the reasons for the others."""
    found = find(gpu=gpu)
    return {
        "meters": [asdict(meter.info) for meter in found.meters],
        "absent": [asdict(item) for item in found.absent],
    }


def measure(
    infer: Callable[[Feeds], object] | None,
    feeds: Sequence[Feeds],
    header: Mapping[str, Any],
    *,
    find: Callable[..., energy.Found] = energy.find,
) -> dict[str, Any]:
    """One window of `window_s` after `lead_s`, on the meter named (None: it is read elsewhere). `infer` None: idle.

    A meter that is lost is an answer, `{"lost": why}`: the window is worth nothing, the worker and its model are well.
    """
    name = header.get("meter")
    meter = None
    if name is not None:
        found = find(gpu=int(header.get("gpu", 0)), names=[str(name)])
        if not found.meters:
            reason = found.absent[0].reason if found.absent else "this worker does not know it"
            return {"lost": f"the meter {name} is gone: {reason}"}
        meter = found.meters[0]
    turn = itertools.cycle(feeds)
    work = None if infer is None else lambda: infer(next(turn))
    try:
        with quiet_collector():
            taken = window.take(meter, work, window_s=float(header["window_s"]), lead_s=float(header["lead_s"]))
    except energy.MeterLost as error:
        return {"lost": str(error)}
    return {"window": asdict(taken), "meter": None if meter is None else asdict(meter.info)}
