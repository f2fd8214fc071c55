"""ONNX's own reference evaluator: what the standard says that a file computes, in numpy, slowly.

It settles which of two runtimes is right when they answer differently. Times of it tell nothing about a deployment.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata, util
from pathlib import Path
from typing import Any

import numpy as np

from backends.base import (
    Availability,
    BackendError,
    BackendUnavailable,
    Feeds,
    LoadOptions,
    Outputs,
    SessionFacts,
    TensorInfo,
)
from backends.options import require_known

_INSTALL = "pip install onnx"
_PAIRS_FROM = 19
"""The opset from which onnx.reference has QuantizeLinear and DequantizeLinear; most quantized files are older."""


class ReferenceBackend:
    """Adapter for `onnx.reference`."""

    name = "onnx-reference"
    modules = ("onnx.reference",)
    """What the worker imports before it loads."""

    def devices(self) -> Sequence[str]:
        """`cpu`."""
        return ("cpu",)

    def availability(self, device: str | None = None) -> Availability:
        """Told from the installed package."""
        if device is not None and device.lower() != "cpu":
            return Availability(False, reason=f"onnx-reference has no device '{device}', only cpu")
        if util.find_spec("onnx") is None:
            return Availability(False, reason="onnx is not installed", install=_INSTALL)
        return Availability(True, metadata.version("onnx"))

    def load(self, artifact: Path, options: LoadOptions) -> ReferenceSession:
        """Read the model. See `Backend.load` for the errors."""
        require_known(self.name, options.options, ())
        if not artifact.is_file():
            raise BackendError(f"onnx-reference: model file '{artifact}' is not there; make the artifact first.")
        there = self.availability(options.device)
        if not there.available:
            raise BackendUnavailable(f"onnx-reference cannot run here: {there.reason}. Install: {there.install}.")
        import onnx
        from onnx.reference import ReferenceEvaluator

        try:
            model = onnx.load(str(artifact))
            evaluator = ReferenceEvaluator(
                model, new_ops=_older_pairs() if _default_opset(model) < _PAIRS_FROM else None
            )
        except Exception as error:  # its own errors have no common class
            raise BackendError(f"onnx-reference could not load '{artifact.name}': {_words(error)}") from error
        supplied = {tensor.name for tensor in model.graph.initializer}
        inputs = tuple(_info(value) for value in model.graph.input if value.name not in supplied)
        return ReferenceSession(artifact.name, evaluator, inputs, tuple(_info(value) for value in model.graph.output))


class ReferenceSession:
    """One evaluator."""

    def __init__(
        self, artifact: str, evaluator: Any, inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo]
    ) -> None:
        """Made by `ReferenceBackend.load`."""
        self._artifact, self._evaluator = artifact, evaluator
        self.inputs, self.outputs = inputs, outputs
        self._facts = SessionFacts(
            runtime="onnx.reference", runtime_version=metadata.version("onnx"), provider="numpy", threads=None, precision=None,
            precision_reason="the reference evaluator computes each op in its own type and counts none",
        )  # fmt: skip

    @property
    def facts(self) -> SessionFacts:
        """What runs."""
        return self._facts

    def infer(self, feeds: Feeds) -> Outputs:
        """Run once."""
        if self._evaluator is None:
            raise BackendError(f"onnx-reference: the session of '{self._artifact}' is closed; load it again.")
        try:
            results = self._evaluator.run(None, dict(feeds))
        except Exception as error:  # an op that it lacks, a shape that does not fit
            raise BackendError(f"onnx-reference could not run '{self._artifact}': {_words(error)}") from error
        return {info.name: np.asarray(array) for info, array in zip(self.outputs, results, strict=True)}

    def close(self) -> None:
        """Forget the model."""
        self._evaluator = None


def _default_opset(model: Any) -> int:
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def _older_pairs() -> list[Any]:
    """QuantizeLinear and DequantizeLinear as opsets 10 and 13 define them: 8 bits, one scale for all or along an axis."""
    from onnx.reference.op_run import OpRun

    def along(values: Any, rank: int, axis: int) -> Any:
        shape = [1] * rank
        if np.size(values) > 1:
            shape[axis] = -1
        return np.reshape(values, shape if rank else ())

    class QuantizeLinear(OpRun):
        op_domain = ""

        def _run(self, x: Any, scale: Any, zero: Any = None, axis: int = 1, **newer: Any) -> tuple[Any]:
            del newer
            zero = np.uint8(0) if zero is None else zero
            limits = np.iinfo(zero.dtype)
            steps = np.rint(x / along(scale, x.ndim, axis)) + along(zero, x.ndim, axis).astype(np.float32)
            return (np.clip(steps, limits.min, limits.max).astype(zero.dtype),)

    class DequantizeLinear(OpRun):
        op_domain = ""

        def _run(self, x: Any, scale: Any, zero: Any = None, axis: int = 1, **newer: Any) -> tuple[Any]:
            del newer
            steps = x.astype(np.int32) - (0 if zero is None else along(zero, x.ndim, axis).astype(np.int32))
            return (steps.astype(np.float32) * along(scale, x.ndim, axis),)

    return [QuantizeLinear, DequantizeLinear]


def _info(value: Any) -> TensorInfo:
    import onnx

    tensor = value.type.tensor_type
    shape = tuple(
        dim.dim_value if dim.WhichOneof("value") == "dim_value" else dim.dim_param or None for dim in tensor.shape.dim
    )
    return TensorInfo(value.name, onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name, shape)


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
