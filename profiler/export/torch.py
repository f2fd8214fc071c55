"""torch.nn.Module → ONNX: the dynamo exporter first, the TorchScript exporter where that fails, and the reason in a note."""

from __future__ import annotations

import inspect
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from profiler.errors import ModelError
from profiler.export.base import (
    BATCH_NAME,
    DEFAULT_OPSET,
    Arrays,
    Exported,
    brief,
    check_sample,
    compare,
    head,
    onnx_runner,
)

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

PARITY_ROWS = 64
TRACE_ROWS = 2
"""torch.export treats sizes 0 and 1 as constants, so a batch is traced with two rows."""
WRAPPED = "wrapped"


def export(
    module: Module, sample: Arrays, out: Path, *, opset: int | None = None, outputs: Sequence[str] | None = None
) -> Exported:
    """Export `module` in evaluation mode with a dynamic batch axis, and compare it with the module on the sample rows.

    Inputs are matched by name with `forward`'s parameters and keep their dtypes. Output names: `outputs`, else the keys
    of the dict (or fields of the named tuple) that forward returns, else `output` or `output_0`, `output_1`, … Raises
    ModelError when names don't fit, when both exporters fail, or on what `compare` raises. The module's mode is restored.
    """
    import torch

    from profiler import onnx_io
    from profiler.export.naming import forget_origin, name_batch, name_interface

    check_sample(sample)
    what = f"torch module {type(module).__name__}"
    parameters, notes = _match(module, sample, what)
    with _evaluating(module), torch.inference_mode(False), torch.no_grad():
        # Real rows, repeated where there is only one.
        trace = {
            name: np.resize(array, (TRACE_ROWS, *array.shape[1:])) for name, array in head(sample, TRACE_ROWS).items()
        }
        try:
            names = _output_names(_flatten(_call(module, parameters, trace)), outputs, what)
        except ModelError:
            raise
        except Exception as error:  # the user's own forward may raise anything
            raise ModelError(f"{what} cannot run on the sample's first {TRACE_ROWS} rows: {brief(error)}.") from error
        with tempfile.TemporaryDirectory() as scratch:
            raw = Path(scratch) / "raw.onnx"
            exporter, more = _write(module, parameters, trace, raw, opset or DEFAULT_OPSET, what)
            model = onnx_io.read_model(raw)
        if len(model.graph.input) != len(sample):
            kept = [value.name for value in model.graph.input]
            raise ModelError(
                f"{what}: the exporter kept inputs {kept} of {list(sample)}. Leave unused inputs out of the data."
            )
        name_interface(model, list(sample), names, strip=f"{WRAPPED}.")
        name_batch(model)
        forget_origin(model)
        path = onnx_io.write_model(model, out.parent, out.name)
        run = onnx_runner(path, names)

        def original(feeds: Arrays) -> dict[str, NDArray[np.generic]]:
            tensors = [tensor for _, tensor in _flatten(_call(module, parameters, feeds))]
            return dict(zip(names, (tensor.cpu().numpy() for tensor in tensors), strict=True))

        parity, failures = compare(original, run, sample, max_rows=PARITY_ROWS, what=what)
    files = (path, *onnx_io.external_files(path))
    if len(files) > 1:
        more = (*more, f"the weights lie in {', '.join(file.name for file in files[1:])}: keep the files together.")
    return Exported(path, exporter, (*failures, *more, *notes), parity, onnx_io.opset_of(model), "torch", files)


def _match(module: Module, sample: Arrays, what: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """Sample name → forward parameter, in the sample's order.

    One array and one parameter belong together whatever their names; else names have to agree.
    """
    parameters = inspect.signature(module.forward).parameters.values()
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    required = [p.name for p in parameters if p.name in named and p.default is p.empty]
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        named += [name for name in sample if name not in named]
    if set(sample) <= set(named) and set(required) <= set(sample):
        return {name: name for name in sample}, ()
    if len(sample) == 1 and named and len(required) <= 1:
        name, parameter = next(iter(sample)), (required or named)[0]
        return {name: parameter}, (f"input '{name}' was given to forward's parameter '{parameter}'.",)
    raise ModelError(
        f"{what}: forward takes {named} (required: {required}), the sample has arrays {list(sample)}. "
        "Name the arrays as forward's parameters."
    )


def _call(module: Module, parameters: Mapping[str, str], feeds: Arrays) -> Any:
    import torch

    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    tensors = {parameters[name]: torch.from_numpy(np.ascontiguousarray(feeds[name])).to(device) for name in parameters}
    return module(**tensors)


def _flatten(value: Any, name: str = "") -> list[tuple[str, Tensor]]:
    """Tensors in a nest of dicts, tuples, lists and named tuples, each with its name there ('' where it has none)."""
    import torch

    if isinstance(value, torch.Tensor):
        return [(name, value)]
    if value is None:
        return []
    if isinstance(value, Mapping):
        children = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, tuple | list):
        fields = getattr(value, "_fields", None) or [""] * len(value)
        children = list(zip(fields, value, strict=True))
    else:
        raise ModelError(
            f"forward returned {type(value).__name__}; an export needs tensors, or dicts and tuples of them."
        )
    return [pair for key, item in children for pair in _flatten(item, f"{name}_{key}" if name and key else name or key)]


def _output_names(flat: Sequence[tuple[str, Tensor]], wanted: Sequence[str] | None, what: str) -> list[str]:
    if not flat:
        raise ModelError(f"{what}: forward returned no tensor.")
    if wanted is not None:
        if len(wanted) != len(flat) or len(set(wanted)) != len(wanted):
            raise ModelError(f"{what} has {len(flat)} outputs, expected as many different names, got {list(wanted)}.")
        return list(wanted)
    names = [name for name, _ in flat]
    if all(names) and len(set(names)) == len(names):
        return names
    return ["output"] if len(flat) == 1 else [f"output_{index}" for index in range(len(flat))]


def _write(
    module: Module, parameters: Mapping[str, str], trace: Arrays, raw: Path, opset: int, what: str
) -> tuple[str, tuple[str, ...]]:
    """Write `raw` with the first exporter that manages: `(exporter, notes)`."""
    import torch

    wrapper = _wrap(module, parameters)
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    arrays = tuple(torch.from_numpy(np.ascontiguousarray(trace[name])).to(device) for name in parameters)
    try:
        with _quiet():
            _dynamo(wrapper, arrays, raw, opset)
    except Exception as error:  # noqa: BLE001 (each of the exporter's many parts raises its own type)
        first = error
    else:
        return f"torch dynamo {torch.__version__}", ()
    try:
        with _quiet() as caught:
            _torchscript(wrapper, arrays, raw, opset, tuple(parameters))
    except Exception as error:  # the same
        raise ModelError(
            f"{what} cannot be exported. torch's dynamo exporter: {_root(first)}. TorchScript exporter: {brief(error)}. "
            "Rewrite the op or the branch they name, or pass a finished .onnx file."
        ) from error
    notes = [f"torch's dynamo exporter failed ({_root(first)}); the TorchScript exporter wrote the file."]
    traced = sorted({str(item.message).split(".")[0] for item in caught if "TracerWarning" in item.category.__name__})
    if traced:
        notes.insert(
            0,
            "forward branches on or computes with values in Python, and the file keeps only the path that the sample's first "
            f"rows took ({'; '.join(traced)}): parity on {PARITY_ROWS} rows does not prove the other paths.",
        )
    return f"torch TorchScript {torch.__version__}", tuple(notes)


def _wrap(module: Module, parameters: Mapping[str, str]) -> Module:
    """Positional tensors in, a flat tuple of tensors out: what both exporters handle best."""
    import torch

    class Wrapper(torch.nn.Module):  # type: ignore[misc]  # torch is not followed by the type checker
        def __init__(self) -> None:
            super().__init__()
            setattr(self, WRAPPED, module)

        def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
            result = getattr(self, WRAPPED)(**dict(zip(parameters.values(), tensors, strict=True)))
            return tuple(tensor for _, tensor in _flatten(result))

    wrapper = Wrapper()
    wrapper.training = False
    return wrapper


def _dynamo(wrapper: Module, arrays: tuple[Tensor, ...], raw: Path, opset: int) -> None:
    import torch

    from profiler import onnx_io

    dynamic = ({0: torch.export.Dim.DYNAMIC},) * len(arrays)
    program = torch.onnx.export(
        wrapper, arrays, dynamo=True, dynamic_shapes=(dynamic,), opset_version=opset, verbose=False, external_data=False
    )
    if program is None:
        raise ModelError("the exporter returned nothing")
    weights = sum(tensor.numel() * tensor.element_size() for tensor in wrapper.state_dict().values())
    program.save(str(raw), external_data=weights >= onnx_io.SINGLE_FILE_BYTES)


def _torchscript(wrapper: Module, arrays: tuple[Tensor, ...], raw: Path, opset: int, names: tuple[str, ...]) -> None:
    import torch

    # Its symbolic functions end at 20; a newer opset is reached by conversion later if somebody needs it.
    torch.onnx.export(
        wrapper, arrays, str(raw), dynamo=False, input_names=list(names), opset_version=min(opset, 20),
        dynamic_axes={name: {0: BATCH_NAME} for name in names}, verbose=False,
    )  # fmt: skip


def _root(error: BaseException) -> str:
    """The exporter wraps the reason in pages of advice: the innermost cause is what helps."""
    while error.__cause__ is not None:
        error = error.__cause__
    return brief(error)


@contextmanager
def _evaluating(module: Module) -> Iterator[None]:
    """Dropout off and batch statistics frozen inside; every submodule's own mode afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@contextmanager
def _quiet() -> Iterator[list[warnings.WarningMessage]]:
    """Collect warnings instead of printing them, and keep the exporters' progress out of the log."""
    loggers = [
        logging.getLogger(name) for name in ("torch.onnx", "torch.fx", "torch.export", "torch._dynamo", "onnxscript")
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield caught
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
