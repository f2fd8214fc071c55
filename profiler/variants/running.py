"""Running a model while a variant is made: does it load, and does it still answer like before?

Nothing here is timed; the sessions use one thread and are gone when the recipe is done.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from backends.base import TensorInfo, check_feeds
from profiler.data.feeding import feeds_of
from profiler.errors import DataError, VariantError
from profiler.onnx_io import model_inputs, walk_tensors, write_model
from profiler.quality.similarity import Difference, Precision, compare
from profiler.variants.base import Calibration

Arrays = dict[str, NDArray[Any]]

SIMILARITY_WARNING = 0.95
"""Below this similarity to fp32 on calibration rows an answer is hardly the model's any more; real int8 variants
of the models we tried kept above 0.97."""
COLUMN_WARNING = 0.9
"""A column that is off by this much of its size is hardly the model's any more: zero instead of a value is 1."""
REDUCED = {
    value
    for name, value in onnx.TensorProto.DataType.items()
    if name.startswith(("FLOAT8", "FLOAT4", "BFLOAT", "FLOAT16"))
} | {onnx.TensorProto.INT8, onnx.TensorProto.UINT8, onnx.TensorProto.INT4, onnx.TensorProto.UINT4}
"""Stored types by which a model computes in less than float32: the order of additions shows earlier there."""
SYNTHETIC_SIZE = 64
"""Size given to a dynamic axis without data; a multiple of 32, as the strides of convolutional models need."""
SYNTHETIC_BYTES = 1 << 30
"""Most that made-up inputs may take."""


@contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder for the files that runtimes and converters insist on."""
    with tempfile.TemporaryDirectory(prefix="edgeprof.variant.") as folder:
        yield Path(folder)


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Make `folder` the working directory of the whole process for a while (contextlib.chdir is Python 3.11)."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def session(path: Path, *, as_users_do: bool = False) -> Any:
    """An ONNX Runtime CPU session that computes what the file says, without optimisations: some change answers (float biases are
    rounded to whole multiples of two scales in 1.32), some break valid models. `as_users_do` leaves onnxruntime all of them.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if not as_users_do:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@contextmanager
def runtime_errors(what: str) -> Iterator[None]:
    """Turn what ONNX Runtime raises inside into a VariantError that begins with `what`."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.startswith("onnxruntime"):
            raise VariantError(f"{what}: {short(error)}.") from error
        raise


ONLY_UNOPTIMISED = "ONNX Runtime loads this file only with its optimiser off, ort{opt=off}, or run it on ov"


def ensure_loads(model: onnx.ModelProto, what: str) -> str | None:
    """Write `model`, load it in ONNX Runtime, and raise VariantError with the runtime's words when it refuses.

    Converters write files that no runtime loads (opset below 13 with per-channel scales, for one); better seen here. Returns a
    sentence to tell when only the optimiser fails at it, which is no reason to refuse the file; else None.
    """
    with scratch() as folder:
        path = write_model(model, folder)
        try:
            session(path, as_users_do=True)
        except Exception as first:  # noqa: BLE001 (ONNX Runtime raises many unrelated types)
            try:
                session(path)
            except Exception as error:
                raise VariantError(f"{what} was written, but ONNX Runtime cannot load it: {short(error)}.") from error
            return f"{ONLY_UNOPTIMISED} ({short(first, 120)})."
    return None


def ensure_runs(
    original: onnx.ModelProto, result: onnx.ModelProto, calibration: Calibration | None, what: str
) -> list[str]:
    """Raise VariantError when ONNX Runtime loads `result` and cannot run it on rows that `original` takes.

    Kernels refuse while they run what no loading sees. Returns sentences to tell: that only the optimised form fails.
    """
    feeds = probe(original, calibration, 1)
    if not feeds or answers(original, feeds) is None:
        return []
    with scratch() as folder:
        path = write_model(result, folder)
        try:
            session(path).run(None, feeds[0])
        except Exception as error:
            raise VariantError(f"{what} was written, but ONNX Runtime cannot run it: {short(error)}.") from error
        try:
            session(path, as_users_do=True).run(None, feeds[0])
        except Exception as error:  # noqa: BLE001 (ONNX Runtime raises many unrelated types)
            return [f"{ONLY_UNOPTIMISED} ({short(error, 120)})."]
    return []


def outputs(model: onnx.ModelProto, feeds: Arrays) -> list[NDArray[Any]]:
    """Outputs of one inference, in the model's order. Raises what the runtime raises."""
    with scratch() as folder:
        result: list[NDArray[Any]] = session(write_model(model, folder)).run(None, feeds)
    return result


def batches(model: onnx.ModelProto, calibration: Calibration, limit: int) -> Iterator[Arrays]:
    """About `limit` calibration rows, at least one batch, in the model's own batch size (1 when it is dynamic).

    Raises DataError when there are no rows or fewer than a fixed batch needs, FeedError when they do not fit the model.
    """
    inputs = model_inputs(model)
    make, rows, size = feeds_of(inputs, calibration)
    count = min(max(1, limit // size), rows // size)
    if count == 0:
        raise DataError(f"the calibration data has {rows} rows, the model needs at least {size}: give more rows.")
    for start in range(0, count * size, size):
        feeds = make(start, start + size)
        if start == 0:
            check_feeds(inputs, feeds)
        yield feeds


def probe(model: onnx.ModelProto, calibration: Calibration | None, limit: int = 4) -> list[Arrays]:
    """A few feeds to compare outputs on: calibration rows, else random ones with a guessed size on dynamic axes."""
    if calibration:
        return list(batches(model, calibration, limit))
    inputs = model_inputs(model)
    sizes = _guessed_sizes(inputs)
    shapes = {info.name: _synthetic_shape(info, sizes) for info in inputs}
    if sum(8 * math.prod(shape) for shape in shapes.values()) > SYNTHETIC_BYTES:
        # Shapes larger than any data: nothing is learnt that would be worth so much memory.
        return []
    rng = np.random.default_rng(0)
    return [{info.name: _synthetic(info, shapes[info.name], rng) for info in inputs}] if inputs else []


def _guessed_sizes(inputs: Sequence[TensorInfo]) -> dict[str, int]:
    """One size for each symbol, in all inputs: 1 for those that are a first axis somewhere."""
    symbols = {size for info in inputs for size in info.shape if isinstance(size, str)}
    batches = {info.shape[0] for info in inputs if info.shape}
    return {symbol: 1 if symbol in batches else SYNTHETIC_SIZE for symbol in symbols}


def _synthetic_shape(info: TensorInfo, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(
        size if isinstance(size, int) else sizes[size] if size is not None else 1 if axis == 0 else SYNTHETIC_SIZE
        for axis, size in enumerate(info.shape)
    )


def _synthetic(info: TensorInfo, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[Any]:
    dtype = np.dtype(info.dtype)
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    return np.ones(shape, dtype)


def answers(
    model: onnx.ModelProto, feeds: list[Arrays], *, as_users_do: bool = False
) -> list[list[NDArray[Any]]] | None:
    """Outputs for each of `feeds`; None when the model could not be run on them. See `session` for `as_users_do`."""
    try:
        return outputs_for(model, feeds, as_users_do=as_users_do)
    except Exception:  # noqa: BLE001 (a guessed shape the model cannot take is no finding about the variant)
        return None


def outputs_for(model: onnx.ModelProto, feeds: list[Arrays], *, as_users_do: bool = False) -> list[list[NDArray[Any]]]:
    """Outputs for each of `feeds`, in the model's order. Raises what the runtime raises."""
    with scratch() as folder:
        runner = session(write_model(model, folder), as_users_do=as_users_do)
        return [runner.run(None, row) for row in feeds]


def compared(
    model: onnx.ModelProto | None, before: list[list[NDArray[Any]]] | None, after: list[list[NDArray[Any]]] | None
) -> list[Difference] | None:
    """Each output that is a tensor, over all feeds, `after` beside `before`; None where either could not be run.

    Rows of several feeds count together where they have one shape, else the feed that differs most does. An output that is
    nothing but NaN or infinity in `before` is left out. Names are those of the outputs of `model`, or numbers without it.
    """
    if before is None or after is None or [*map(len, before)] != [*map(len, after)] or not before:
        return None
    names = [value.name for value in model.graph.output] if model is not None else [*map(str, range(len(before[0])))]
    found: list[Difference] = []
    for index, name in enumerate(names):
        if not all(isinstance(row[index], np.ndarray) for row in (*before, *after)):
            continue
        firsts, seconds = ([row[index] for row in rows] for rows in (before, after))
        pairs = list(zip(firsts, seconds, strict=True))
        if all(a.shape == b.shape and a.ndim and a.shape[1:] == firsts[0].shape[1:] for a, b in pairs):
            pairs = [(np.concatenate(firsts), np.concatenate(seconds))]
        each = [compare(name, b, a) for a, b in pairs if a.size and (a.dtype.kind != "f" or np.isfinite(a).any())]
        found += [min(each, key=lambda item: item.similarity)] if each else []
    return found


def similarity(before: list[list[NDArray[Any]]] | None, after: list[list[NDArray[Any]]] | None) -> float | None:
    """Lowest similarity between float outputs over all feeds (`profiler.quality.similarity`: in the columns' own sizes); None
    where there is nothing to compare. An output that became NaN counts as -1, one of another shape too.
    """
    values = [item.similarity for item in compared(None, before, after) or [] if item.floats]
    return min(values, default=None)


def cosine(before: onnx.ModelProto, after: onnx.ModelProto, feeds: list[Arrays]) -> float | None:
    """`direction` of what two models answer to `feeds`; None when they could not be run."""
    return direction(answers(before, feeds), answers(after, feeds))


def direction(before: list[list[NDArray[Any]]] | None, after: list[list[NDArray[Any]]] | None) -> float | None:
    """Lowest cosine similarity between float outputs, feed by feed; None where there is nothing to compare.

    It sees direction only: which values are large decides it, and no gain does. An output that became NaN counts as -1,
    one of another shape too.
    """
    if before is None or after is None or [*map(len, before)] != [*map(len, after)]:
        return None
    pairs = [pair for first, second in zip(before, after, strict=True) for pair in zip(first, second, strict=True)]
    # Where the original itself answers with nothing but NaN or infinity there is nothing to compare.
    values = [_cosine(np.asarray(a), np.asarray(b)) for a, b in pairs if _is_float(a) and np.isfinite(a).any()]
    return min(values, default=None)


def different_outputs(
    model: onnx.ModelProto, before: list[list[NDArray[Any]]] | None, after: list[list[NDArray[Any]]] | None
) -> tuple[Difference, ...] | None:
    """The outputs among `compared` that differ by more than the precision of `model` explains."""
    found = compared(model, before, after)
    if found is None:
        return None
    exact = not REDUCED & {tensor.data_type for tensor in walk_tensors(model)}
    return tuple(item for item in found if item.beyond(Precision.FULL if exact else Precision.REDUCED))


def _is_float(array: Any) -> bool:
    return isinstance(array, np.ndarray) and array.dtype.kind == "f" and array.size > 0


def _cosine(a: NDArray[Any], b: NDArray[Any]) -> float:
    if a.shape != b.shape:
        return -1.0
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    both = np.isfinite(x)
    x, y = x[both], y[both]
    if not np.isfinite(y).all():
        return -1.0
    if np.array_equal(x, y):
        return 1.0
    norm = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y / norm) if norm > 0 else 0.0


def short(error: BaseException, limit: int = 300) -> str:
    """An error of a library in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return (text[:limit] + "…" if len(text) > limit else text).rstrip(".")
