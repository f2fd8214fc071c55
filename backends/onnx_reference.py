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
            evaluator = ReferenceEvaluator(model)
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


def _info(value: Any) -> TensorInfo:
    import onnx

    tensor = value.type.tensor_type
    shape = tuple(
        dim.dim_value if dim.WhichOneof("value") == "dim_value" else dim.dim_param or None for dim in tensor.shape.dim
    )
    return TensorInfo(value.name, onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name, shape)


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
