"""Which runtimes load a file that an engine outside this package wrote."""

from __future__ import annotations

from onnx import ModelProto

from backends import signal_stack
from profiler.errors import VariantError
from profiler.onnx_io import write_model
from profiler.variants.base import Fact
from profiler.variants.running import ensure_loads, scratch, short


def loading_facts(model: ModelProto, what: str, notes: list[str]) -> dict[str, Fact]:
    """Nothing when ONNX Runtime and OpenVINO both load `model`; else the fact `refused_by` and a note with the runtime's words.

    Raises VariantError, in the words of both, when neither does: no artifact is worth measuring that nobody here loads.
    """
    refused: dict[str, str] = {}
    try:
        loading = ensure_loads(model, what)
    except VariantError as error:
        refused["ort"] = str(error)
    else:
        notes += [loading] if loading is not None else []
    reason = _openvino_refuses(model)
    if reason:
        refused["ov"] = reason
    if len(refused) == 2:
        raise VariantError(f"{what} was written, but no runtime here loads it: {refused['ort']} OpenVINO: {reason}.")
    for backend, why in refused.items():
        notes.append(f"{backend} cannot load the result: {why.rstrip('.')}.")
    return {"refused_by": "|".join(refused)} if refused else {}


def _openvino_refuses(model: ModelProto) -> str | None:
    """Why OpenVINO's CPU plugin does not compile the model; None when it does."""
    import openvino

    # Neither threads nor precision decide whether an op is known: nothing is run here.
    with scratch() as folder:
        path = write_model(model, folder)
        try:
            core = openvino.Core()
            with signal_stack.kept():
                core.compile_model(core.read_model(str(path)), "CPU", {"INFERENCE_NUM_THREADS": 1})
        except RuntimeError as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            return short(RuntimeError(lines[-1] if lines else "no reason was given"))
    return None
