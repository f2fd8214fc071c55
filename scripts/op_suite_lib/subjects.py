"""The models: ONNX's own tests of single ops, as they are and with all inputs but the first stored as weights."""

from __future__ import annotations

import fnmatch
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from scripts.real_models_lib.fetch import debian

PACKAGE, LICENSE = "libonnx-testdata", "Apache-2.0"
FORMS = ("fed", "stored")
"""`fed`: all inputs are fed. `stored`: only the first is, as in a layer whose weights are in the file."""


@dataclass(frozen=True)
class Subject:
    """One model in one form; `key` names it in results."""

    folder: Path
    form: str

    @property
    def key(self) -> str:
        """`test_conv_with_strides/stored`."""
        return f"{self.folder.name}/{self.form}"

    def load(self) -> tuple[ModelProto, dict[str, NDArray[Any]]]:
        """The model and its inputs. Raises Unfit when it has no stored form or feeds what is no array."""
        model = onnx.load(str(self.folder / "model.onnx"))
        stored = {tensor.name for tensor in model.graph.initializer}
        fed = [value for value in model.graph.input if value.name not in stored]
        feeds: dict[str, NDArray[Any]] = {}
        for number, value in enumerate(fed):
            path = self.folder / "test_data_set_0" / f"input_{number}.pb"
            if value.type.WhichOneof("value") != "tensor_type" or not path.is_file():
                raise Unfit(f"input '{value.name}' is no tensor")
            tensor = onnx.TensorProto.FromString(path.read_bytes())
            feeds[value.name] = numpy_helper.to_array(tensor)
        if self.form == "stored":
            if len(fed) < 2:
                raise Unfit("it has one input only")
            for value in fed[1:]:
                model.graph.initializer.append(numpy_helper.from_array(feeds.pop(value.name), value.name))
            del model.graph.input[:]
            model.graph.input.append(fed[0])
            model.ir_version = max(model.ir_version, 4)
            onnx.checker.check_model(model)
        return model, feeds


class Unfit(Exception):  # noqa: N818 (no error: there is nothing to try)
    """The model has no such form."""


def folder() -> Path:
    """Where the package's models lie, fetched once. Raises FetchError where Debian's packages cannot be had."""
    return debian(PACKAGE, LICENSE).folder / "usr" / "share" / PACKAGE / "data" / "node"


def subjects(root: Path, share: float, seed: int, pattern: str) -> list[Subject]:
    """A share of the models, drawn by `seed`; a larger share of the same seed holds the smaller one."""
    names = sorted(path.parent.name for path in root.glob("*/model.onnx"))
    random.Random(seed).shuffle(names)
    kept = names[: round(len(names) * share)] if share < 1 else names
    return [Subject(root / name, form) for name in kept if fnmatch.fnmatch(name, pattern) for form in FORMS]
