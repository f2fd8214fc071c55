"""What an export is, and how its numbers are compared with the model it came from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from profiler.errors import ModelError

Arrays = Mapping[str, NDArray[np.generic]]
Run = Callable[[Arrays], Mapping[str, NDArray[np.generic]]]
"""Takes inputs by name, batch axis first, and gives outputs by name."""

DEFAULT_OPSET = 18
"""What torch's exporter writes natively, and every supported runtime loads."""
TOLERANCE = 1e-3
"""Largest accepted difference relative to the largest reference value of the same output. float32 kernels of two runtimes
differ by 1e-7 to 1e-5 here; a wrong op, weight or layout by more than 1e-2."""
BATCH_NAME = "N"


@dataclass(frozen=True)
class Parity:
    """How far the exported model's outputs are from the original's, on real sample rows."""

    max_abs_diff: float
    """Largest |exported − original| over all outputs, rows and elements; labels that are text count 1 when they differ."""
    max_rel_diff: float
    """The same, each output divided by its largest |original| first: elements near zero don't inflate it."""
    rows: int
    """Rows compared; the first of them once more alone, as a batch of one."""
    tolerance: float
    ok: bool
    """`max_rel_diff <= tolerance` at every batch size tried, and no batch size refused. `Exported.notes` say what failed."""


@dataclass(frozen=True)
class Exported:
    """An ONNX file with the story of how it was made."""

    path: Path
    exporter: str
    """What wrote it: `torch dynamo 2.13.0`, `skl2onnx 1.20.0`, `none (already ONNX)`."""
    notes: tuple[str, ...]
    """What a person should know, the gravest first: fall-backs, renamed inputs, failed parity."""
    parity: Parity | None
    """None where there is nothing to compare: the file is the source itself, and a note says so."""
    opset: int
    source_framework: str
    """`torch`, `sklearn` or `onnx`."""
    files: tuple[Path, ...]
    """The model file and, when the weights lie beside it, its data file. They move together."""

    @property
    def size_bytes(self) -> int:
        """Size of all files: the `.onnx` alone is not the model when weights lie beside it."""
        return sum(file.stat().st_size for file in self.files)


def check_sample(sample: Arrays) -> int:
    """Number of sample rows. Raises ModelError when there are none, or arrays disagree about their number."""
    rows = {name: array.shape[0] if array.ndim else 0 for name, array in sample.items()}
    if not rows or min(rows.values()) < 1 or len(set(rows.values())) > 1:
        raise ModelError(
            f"an export needs sample rows, batch axis first and equally many for each input; got rows {rows}."
        )
    return next(iter(rows.values()))


def head(sample: Arrays, rows: int) -> dict[str, NDArray[np.generic]]:
    """The first `rows` rows of each array."""
    return {name: array[:rows] for name, array in sample.items()}


def onnx_runner(path: Path, outputs: Sequence[str] | None = None) -> Run:
    """Run the file through onnxruntime on the CPU. Raises ModelError when onnxruntime refuses to load it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no public base
        raise ModelError(
            f"the exported model '{path}' does not load in onnxruntime {onnxruntime.__version__}: {brief(error)}. "
            "Export with another opset, or report the op it names to the exporter."
        ) from error
    names = list(outputs) if outputs is not None else [output.name for output in session.get_outputs()]
    return lambda feeds: dict(zip(names, session.run(names, dict(feeds)), strict=True))


def compare(
    original: Run, exported: Run, sample: Arrays, *, max_rows: int, what: str
) -> tuple[Parity, tuple[str, ...]]:
    """Compare both on the first `max_rows` sample rows at once and on the first row alone (a baked-in batch shows there).

    A difference, or a batch size that only the original takes, gives `ok=False` and a note. Raises ModelError when
    shapes differ, when the exported model gives non-finite values where the original's are finite, or when it runs at
    no batch size. `what` names the source in messages.
    """
    rows = min(check_sample(sample), max_rows)
    notes: list[str] = []
    worst_abs = worst_rel = 0.0
    compared = refused = 0
    reason = ""
    for batch in sorted({1, rows}, reverse=True):
        feeds = head(sample, batch)
        try:
            expected = original(feeds)
        except Exception as error:  # noqa: BLE001 (the user's own code may raise anything)
            notes.append(f"{what} itself does not take a batch of {batch} ({brief(error)}): not compared there.")
            continue
        try:
            actual = exported(feeds)
        except Exception as error:  # noqa: BLE001 (onnxruntime's exceptions share no public base)
            refused, reason = batch, brief(error)
            continue
        compared = max(compared, batch)
        for difference, scale in differences(expected, actual, what):
            worst_abs = max(worst_abs, difference)
            worst_rel = max(worst_rel, difference / scale)
    if not compared:
        raise ModelError(f"{what} and its export could not be compared at any batch size: {reason or ' '.join(notes)}")
    ok = worst_rel <= TOLERANCE and not refused
    if refused:
        notes.insert(
            0,
            f"PARITY FAILED: {what} takes a batch of {refused}, its export does not ({reason}): the batch is baked in.",
        )
    if worst_rel > TOLERANCE:
        notes.insert(
            0,
            f"PARITY FAILED: outputs of {what} and of its export differ by up to {worst_rel:.2g} relative "
            f"({worst_abs:.2g} absolute), tolerance {TOLERANCE:g}: accuracy measured on the export is not the model's.",
        )
    return Parity(worst_abs, worst_rel, compared, TOLERANCE, ok), tuple(notes)


def differences(expected: Arrays, actual: Arrays, what: str) -> Iterator[tuple[float, float]]:
    """`(largest difference, scale)` of each output. Raises ModelError on shapes and on values that are not finite."""
    for name, reference in expected.items():
        result = actual[name]
        if reference.shape != result.shape:
            raise ModelError(
                f"output '{name}' of {what} has shape {reference.shape}, its export gives {result.shape} for the same "
                "rows: the export is wrong. Shapes that depend on the batch must not pass through Python numbers."
            )
        if reference.dtype.kind in "OUS" or result.dtype.kind in "OUS":
            yield float(np.any(reference.astype(str) != result.astype(str))), 1.0
            continue
        before, after = reference.astype(np.float64), result.astype(np.float64)
        if not np.array_equal(np.isfinite(before), np.isfinite(after)):
            raise ModelError(
                f"output '{name}' of {what}: {int((~np.isfinite(before)).sum())} values are not finite, in its export "
                f"{int((~np.isfinite(after)).sum())} of {after.size}. Check the sample's range, or try another opset."
            )
        finite = np.isfinite(before)
        before, after = before[finite], after[finite]
        # Outputs that are zero everywhere have no scale of their own: then the difference counts as it is.
        scale = float(np.abs(before).max(initial=0.0)) or 1.0
        yield float(np.abs(before - after).max(initial=0.0)), scale


def brief(error: BaseException, limit: int = 240) -> str:
    """An exception's type and the start of its text, on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:limit]}{'…' if len(text) > limit else ''}".rstrip(". ")
