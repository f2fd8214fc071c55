"""ONNX → ONNX: checked, copied, and where asked brought to a newer opset and compared with what it was."""

from __future__ import annotations

from pathlib import Path

from backends.base import FeedError, check_feeds
from profiler.errors import ModelError
from profiler.export.base import Arrays, Exported, check_sample, compare, onnx_runner

PARITY_ROWS = 64


def export(source: Path, sample: Arrays, out: Path, *, opset: int | None = None) -> Exported:
    """Check the file and write it to `out`; an `opset` above the file's own converts it and compares the outputs.

    Raises ModelError for a file that is not a sound model, a sample that doesn't fit its inputs, and what `compare` raises.
    """
    from profiler import onnx_io

    check_sample(sample)
    model = onnx_io.read_model(source)
    try:
        check_feeds(onnx_io.model_inputs(model), sample)
    except FeedError as error:
        # A fixed batch axis is no error of the model: the rows of a sample need not be one batch.
        if not _only_batch_differs(model, sample):
            raise ModelError(f"model '{source}': {error}") from error
    notes: tuple[str, ...] = ()
    parity = None
    have = onnx_io.opset_of(model)
    exporter = "none (already ONNX)"
    if opset is not None and have < opset:
        model, _, text = onnx_io.upgrade_opset(model, opset)
        exporter = "onnx version_converter"
        path = onnx_io.write_model(model, out.parent, out.name)
        parity, failures = compare(
            onnx_runner(source), onnx_runner(path), sample, max_rows=PARITY_ROWS, what=f"model '{source}'"
        )
        notes = (*failures, f"{text}.")
    elif source.resolve() == out.resolve():
        path, notes = out, ("no parity check: the file is the source itself.",)
    else:
        path = onnx_io.write_model(model, out.parent, out.name)
        notes = ("no parity check: the file holds the source's graph and weights, unchanged.",)
    if opset is not None and have > opset:
        notes = (*notes, f"opset {have} is newer than the {opset} asked for; models are never taken to an older one.")
    files = (path, *onnx_io.external_files(path))
    return Exported(path, exporter, notes, parity, onnx_io.opset_of(model), "onnx", files)


def _only_batch_differs(model: object, sample: Arrays) -> bool:
    from onnx import ModelProto

    from profiler import onnx_io

    assert isinstance(model, ModelProto)
    inputs = onnx_io.model_inputs(model)
    if {info.name for info in inputs} != set(sample):
        return False
    return all(
        sample[info.name].dtype.name == info.dtype
        and sample[info.name].ndim == len(info.shape)
        and all(
            not isinstance(want, int) or got == want
            for got, want in list(zip(sample[info.name].shape, info.shape, strict=True))[1:]
        )
        for info in inputs
    )
