"""Calibration rows of a model that is not fed row by row: with the states that the unmodified model passes through."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from profiler.data.dataset import Array, Dataset
from profiler.data.feeding import Feeding, sequences
from profiler.errors import TargetError
from profiler.study import Study
from profiler.targets import launch
from profiler.targets.base import local
from profiler.targets.process import WorkerFailure

_SIDE_BY_SIDE = 16


def recorded(
    study: Study, source: Path, feeding: Feeding, calibration: Dataset
) -> tuple[Dataset | None, tuple[str, ...]]:
    """The calibration rows as `profiler.data.feeding.feeds_of` understands them, and notes.

    States are those that the model at `source` passes through on the rows' sequences, in a worker on this machine with
    onnxruntime. None, with a note, where it does not run. Raises DataError when the rows do not say what a sequence is.
    """
    states: dict[str, Array] = {}
    notes: tuple[str, ...] = ()
    if feeding.states:
        try:
            states = _states(study, source, feeding, calibration)
        except (WorkerFailure, TargetError) as error:
            note = f"nothing can be calibrated: the model's states could not be recorded with onnxruntime ({error})"
            return None, (note,)
        named = ", ".join(f"'{rule.name}'" for rule in feeding.states)
        notes = (f"calibration feeds {named} with what the unmodified model passes through on {len(calibration)} rows",)
    rows = feeding.travelling(calibration.inputs, states)
    digest = hashlib.sha256(calibration.sha256.encode() + json.dumps(feeding.axes, sort_keys=True).encode())
    for name in sorted(rows.keys() - calibration.inputs.keys()):
        digest.update(f"{name} {rows[name].dtype} {rows[name].shape}".encode())
        digest.update(np.ascontiguousarray(rows[name]).tobytes())
    return replace(calibration, inputs=rows, sha256=digest.hexdigest()), notes


def _states(study: Study, source: Path, feeding: Feeding, data: Dataset) -> dict[str, Array]:
    batch = feeding.fixed_batch or min(_SIDE_BY_SIDE, len(sequences(data)))
    found: dict[str, Array] = {}
    fed: dict[str, Array] = {}
    with launch.start(local(), memory_limit_bytes=study.memory_limit_bytes) as worker:

        def infer(feeds: dict[str, Array]) -> dict[str, Array]:
            fed.update(feeds)
            return worker.request("infer", feeds, timeout_s=study.time_limit_s)[1]

        worker.request(
            "load", timeout_s=study.time_limit_s, backend="ort", device=None, options={}, threads=1, batch=batch, streams=1,
            varying_batch=False, sample_shapes=feeding.shapes(data.inputs, batch), path=str(source.resolve()), sha256="",
            name=source.name, cache_dir=None,
        )  # fmt: skip
        for index, _ in feeding.answers(data, batch, infer):
            for rule in feeding.states:
                state = fed[rule.name][np.newaxis] if rule.axis is None else np.moveaxis(fed[rule.name], rule.axis, 0)
                if rule.name not in found:
                    found[rule.name] = np.zeros((len(data), *state.shape[1:]), state.dtype)
                found[rule.name][index] = state[: len(index)]
    return found
