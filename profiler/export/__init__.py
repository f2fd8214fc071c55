"""From a model as people have it to an ONNX file: `.onnx`, a torch module, a scikit-learn estimator, or a factory of either.

    export_model("package.module:factory", {"image": rows}, Path("model.onnx"))

A factory is the user's own code and is run; an `.onnx` file is untrusted data and is only read. torch and scikit-learn are
imported when the source is theirs.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from profiler.errors import ModelError
from profiler.export.base import Arrays, Exported, Parity, brief, check_sample
from profiler.targets.maker import Maker, model_errors

__all__ = ["Exported", "Parity", "export_model", "framework_of", "resolve"]

_BASES = {("torch", "Module"): "torch", ("sklearn", "BaseEstimator"): "sklearn"}
_NEEDS = {"torch": ("torch", "onnxscript"), "sklearn": ("sklearn", "skl2onnx")}


def export_model(
    source: str | Path | object,
    sample: Arrays,
    out: Path,
    *,
    opset: int | None = None,
    outputs: Sequence[str] | None = None,
) -> Exported:
    """Write `source` as ONNX to `out` and compare both on `sample` (arrays by input name, batch axis first).

    `source`: path of an `.onnx` file, `package.module:factory`, or the module or estimator itself. `opset` defaults to 18
    for exports, and to the file's own for `.onnx`. `outputs` names a torch module's outputs. A difference above the tolerance is
    recorded in `parity` and `notes`; raises ModelError when the source cannot be found, made or exported, or when the export is
    plainly wrong (shapes, non-finite values).
    """
    model = resolve(source)
    if isinstance(model, Path):
        return _exported_elsewhere(model, sample, out, opset)
    framework = framework_of(model)
    if framework is None:
        raise ModelError(
            f"{_described(source)} is a {type(model).__module__}.{type(model).__qualname__}, expected a torch.nn.Module or a "
            "scikit-learn estimator. Export it to .onnx with its own tool and pass that file."
        )
    _require(framework)
    if framework == "torch":
        from profiler.export import torch as from_torch

        return from_torch.export(model, sample, out, opset=opset, outputs=outputs)
    from profiler.export import sklearn as from_sklearn

    return from_sklearn.export(model, sample, out, opset=opset)


def _exported_elsewhere(source: Path, sample: Arrays, out: Path, opset: int | None) -> Exported:
    """An `.onnx` file is untrusted: it is converted and compared in a maker process. Raises ModelError."""
    check_sample(sample)
    with model_errors(), Maker() as maker:
        rows, what = maker.lay_out(sample, "sample"), f"exporting '{source}'"
        found = maker.do("export", what, source=source, rows=rows, out=out, opset=opset)
    files = tuple(out.parent / Path(file).name for file in found["files"])
    exported = TypeAdapter(Exported).validate_python(found)
    return replace(exported, path=out, files=files)


def framework_of(model: object) -> str | None:
    """`torch`, `sklearn` or None, told from the names of the object's classes: nothing is imported."""
    for base in type(model).__mro__:
        framework = _BASES.get((base.__module__.partition(".")[0], base.__name__))
        if framework is not None:
            return framework
    return None


def resolve(source: str | Path | object) -> Any:
    """The path of an `.onnx` file, or the object that a factory makes, or `source` itself when it is an object.

    Raises ModelError for a text of neither form, a module or name that doesn't exist, and a factory that raises.
    """
    if isinstance(source, Path) or (isinstance(source, str) and source.lower().endswith(".onnx")):
        return Path(source)
    if not isinstance(source, str):
        return source
    module_name, colon, attribute = source.partition(":")
    if not colon or not all(part.isidentifier() for part in (*module_name.split("."), *attribute.split("."))):
        raise ModelError(
            f"cannot read the model '{source}': expected the path of an .onnx file, or package.module:factory "
            "naming a function that returns a torch.nn.Module or a scikit-learn estimator."
        )
    with _working_directory_importable():
        found: Any = _import(module_name, source)
        for part in attribute.split("."):
            if not hasattr(found, part):
                public = sorted(name for name in vars(found) if not name.startswith("_"))
                raise ModelError(
                    f"model '{source}': '{module_name}' has no '{part}'. It has: {', '.join(public) or 'nothing'}."
                )
            found = getattr(found, part)
        return found if framework_of(found) else _made(found, source)


def _made(factory: Callable[[], object], source: str) -> object:
    if not callable(factory):
        raise ModelError(f"model '{source}' is a {type(factory).__name__}, expected a function without arguments.")
    try:
        return factory()
    except Exception as error:  # the user's own code may raise anything
        raise ModelError(
            f"model '{source}': the factory raised {brief(error)}. Call it in Python to see where."
        ) from error


def _import(name: str, source: str) -> object:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise ModelError(
                f"model '{source}': there is no module '{error.name}' in '{Path.cwd()}' or in this environment. "
                "Run edgeprof where the module lies, or install it."
            ) from error
        raise ModelError(
            f"model '{source}': importing '{name}' needs '{error.name}', which is not installed: "
            f"pip install {error.name}, or edgeprof with the extra that brings it ([torch], [sklearn])."
        ) from error
    except Exception as error:  # the user's own code may raise anything
        raise ModelError(f"model '{source}': importing '{name}' raised {brief(error)}.") from error


@contextmanager
def _working_directory_importable() -> Iterator[None]:
    """Like `python -m`: the command's own folder is not where the user's modules are."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)


def _require(framework: str) -> None:
    missing = [name for name in _NEEDS[framework] if find_spec(name) is None]
    if missing:
        raise ModelError(
            f"exporting this model needs {' and '.join(missing)}, not installed here: pip install 'edgeprof[{framework}]'."
        )


def _described(source: object) -> str:
    return f"model '{source}'" if isinstance(source, str) else "the model"
