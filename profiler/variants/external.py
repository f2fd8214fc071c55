"""A model that was made elsewhere: retrained with quantization in the loop, distilled, of another width."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from urllib.parse import unquote

from onnx import ModelProto

from backends.base import TensorInfo, format_shape
from profiler.errors import ModelError, VariantError
from profiler.onnx_io import (
    count_ops,
    external_files,
    model_inputs,
    model_outputs,
    opset_of,
    read_model,
    weights_count,
)
from profiler.variants.base import Calibration, Fact, Recipe, VariantResult, expect, required
from profiler.variants.loading import loading_facts
from profiler.variants.openvino_ir import SUFFIX, ir_files, read_ir
from profiler.variants.preparing import judged

_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
_CHUNK = 1 << 20
_counted_from = Path()


def count_from(folder: Path) -> None:
    """Let relative paths count from `folder` from now on: for a process that works in another one than the user."""
    global _counted_from  # noqa: PLW0603 (a property of the process, as its working directory is)
    _counted_from = folder


@dataclass(frozen=True)
class External(Recipe):
    """The model at `path` beside the variants that are made here, measured and compared like any of them.

    It has to answer to the same inputs with the same outputs. What it cost to make is not measured here but stated by the
    user: it is carried as the fact `training_cost_usd`.
    """

    name: ClassVar[str] = "external"

    path: str = required("retrained.onnx")
    """An ONNX file, or an OpenVINO IR's `.xml` with its `.bin` beside it. A relative path counts from the working directory;
    what a text cannot hold is percent-encoded (`%20` for a space)."""
    cost_usd: float = 0.0
    """What it cost once to train or distil it, in US dollars; 0: not stated."""
    label: str = ""
    """A short name of the method, e.g. `qat` or `distilled`, which tells several of them apart in tables."""

    def __post_init__(self) -> None:
        """Check the options; raises StudyError."""
        expect(self, "cost_usd", self.cost_usd >= 0, "0 or more US dollars")
        short_name = not self.label or _LABEL.fullmatch(self.label) is not None
        expect(self, "label", short_name, "letters, digits, '.', '_', '+' and '-', e.g. qat")

    def content_key(self) -> str:
        """Sha256 of the file and of its external data, for cache keys: the text names only the path.

        Raises VariantError when the file cannot be read.
        """
        digest = hashlib.sha256()
        for index, file in enumerate(self._files()):
            # The model may be renamed; names of external data stand in it.
            digest.update(f"{file.name if index else ''}\0{file.stat().st_size}\0".encode())
            with file.open("rb") as stream:
                while chunk := stream.read(_CHUNK):
                    digest.update(chunk)
        return digest.hexdigest()

    def apply(self, model: ModelProto, calibration: Calibration | None) -> VariantResult:
        """Read the other model; raises VariantError when it is not there, does not fit `model`, or no runtime loads it."""
        notes: list[str] = []
        other, facts = self._read(model, notes)
        differences = _differences(model, other)
        if differences:
            raise VariantError(
                f"{self.text} does not fit the model: {'; '.join(differences)}. "
                "Export it with the inputs and outputs of the model that it replaces."
            )
        facts["content_sha256"] = self.content_key()
        facts["training_cost_usd"] = self.cost_usd if self.cost_usd > 0 else None
        facts["label"] = self.label or None
        notes.insert(0, "made outside edgeprof: how, and on which data, is not known here.")
        if self.cost_usd > 0:
            notes.append(f"its stated training cost of {self.cost_usd:,.2f} USD is paid once, whatever is deployed.")
        else:
            notes.append("no training cost was stated (cost_usd=…): costs shown here leave it out.")
        if not self._is_ir:
            judged(model, other, calibration, facts, notes)
        return VariantResult(other, facts, tuple(notes), changed=True)

    @property
    def _is_ir(self) -> bool:
        return self.path.endswith(SUFFIX)

    def _read(self, model: ModelProto, notes: list[str]) -> tuple[ModelProto, dict[str, Fact]]:
        """The other model as ONNX, loaded once to see that it can be, and facts on it."""
        path = self._files()[0]
        try:
            if self._is_ir:
                notes.append("an OpenVINO model: only the ov backend loads it.")
                wanted = [info.name for info in (*model_inputs(model), *model_outputs(model))]
                return read_ir(path, wanted), {"form": "OpenVINO IR", "only_backends": "ov"}
            other = read_model(path)
        except (ModelError, VariantError) as error:
            raise VariantError(f"{self.text}: {error}") from error
        facts: dict[str, Fact] = {
            "weights": weights_count(other),
            "ops": sum(count_ops(other).values()),
            "opset": opset_of(other),
            **loading_facts(other, self.text, notes),
        }
        return other, facts

    def _files(self) -> tuple[Path, ...]:
        """The model file first, then its external data."""
        path = _counted_from / Path(unquote(self.path)).expanduser()
        try:
            return ir_files(path) if self._is_ir else (path, *external_files(path))
        except (ModelError, VariantError) as error:
            raise VariantError(f"{self.text}: {error}") from error


def _differences(model: ModelProto, other: ModelProto) -> list[str]:
    """What keeps `other` from standing in for `model`, in sentences' parts; empty when nothing does."""
    found: list[str] = []
    for side, of in (("input", model_inputs), ("output", model_outputs)):
        wanted, came = of(model), of(other)
        # Inputs are fed by name; of outputs the order counts too, because metrics read the first.
        names = [[info.name for info in infos] for infos in (wanted, came)]
        if side == "input":
            names = [sorted(part) for part in names]
        if names[0] != names[1]:
            expected, has = (", ".join(f"'{name}'" for name in part) or "none" for part in names)
            found.append(f"its {side}s are {has}, expected {expected}")
            continue
        by_name = {info.name: info for info in came}
        found += [text for info in wanted if (text := _unlike(side, info, by_name[info.name]))]
    return found


def _unlike(side: str, wanted: TensorInfo, came: TensorInfo) -> str | None:
    """How one input or output differs; None when `came` takes or gives everything that `wanted` does."""
    name = f"{side} '{wanted.name}'"
    if came.dtype != wanted.dtype:
        return f"{name} is {came.dtype}, expected {wanted.dtype}"
    shapes = f"{name} is {format_shape(came.shape)}, expected {format_shape(wanted.shape)}"
    if len(came.shape) != len(wanted.shape):
        # Some exporters leave the shapes of outputs out.
        return None if side == "output" and () in (came.shape, wanted.shape) else shapes
    for axis, (theirs, ours) in enumerate(zip(came.shape, wanted.shape, strict=True)):
        if theirs == ours or not isinstance(theirs, int):
            continue
        # A size fixed there and open here would take less than the model does; only a batch axis may be fixed so.
        if isinstance(ours, int) or (axis > 0 and side == "input"):
            return shapes
    return None
