"""Where TensorRT's Python binding is: full TensorRT or TensorRT-RTX, in this environment or outside it.

JetPack puts its binding in the system's dist-packages, which a virtual environment doesn't see;
`EDGEPROF_TENSORRT_PATH` names the folder that holds it.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from backends.base import BackendUnavailable

PATH_VARIABLE = "EDGEPROF_TENSORRT_PATH"
FLAVOURS = ("auto", "trt", "rtx")
MODULES = {"trt": ("tensorrt", "tensorrt_bindings"), "rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings")}
TITLES = {"trt": "TensorRT", "rtx": "TensorRT-RTX"}
INSTALL = {
    "trt": "pip install tensorrt",
    "rtx": "pip install tensorrt-rtx-cu13",
    "auto": "pip install tensorrt (or tensorrt-rtx-cu13 for RTX cards); on Jetson it comes with JetPack",
}
OLDEST_MAJOR = 10  # named tensors, strongly typed networks and execute_async_v3 all together
SYSTEM_FOLDERS = "usr/lib/python3*/dist-packages"

_VERSION = re.compile(r"""^__version__\s*=\s*["']([^"']+)""", re.MULTILINE)


@dataclass(frozen=True)
class Found:
    """A binding that is installed; nothing of it is imported yet."""

    module: str
    flavour: str
    version: str | None
    folder: str | None
    """Put first on sys.path for the import; None when sys.path has it anyway."""

    @property
    def title(self) -> str:
        """`TensorRT 10.13.2`, for messages."""
        return f"{TITLES[self.flavour]} {self.version or '(unknown version)'}"


def find(flavour: str = "auto", environ: Mapping[str, str] = os.environ, search: Sequence[str] | None = None) -> Found:
    """The binding of `flavour`; `auto` takes full TensorRT first, then TensorRT-RTX. `search` stands for sys.path.

    Raises BackendUnavailable that says where it looked and what to do.
    """
    folder = environ.get(PATH_VARIABLE)
    places = [folder] if folder else list(sys.path if search is None else search)
    for kind in MODULES if flavour == "auto" else (flavour,):
        for name in MODULES[kind]:
            spec = PathFinder.find_spec(name, places)
            if spec is not None and spec.origin is not None:
                return Found(name, kind, _version(kind, places), folder)
    names = ", ".join(name for kind, names in MODULES.items() if flavour in ("auto", kind) for name in names)
    where = f" in {PATH_VARIABLE}={folder}" if folder else ""
    hint = "" if folder else system_hint()
    raise BackendUnavailable(f"no TensorRT binding{where}: none of {names} is there.{hint}")


def system_hint(root: Path = Path("/")) -> str:
    """One sentence about a binding outside the virtual environment, or nothing."""
    for package in sorted(root.glob(f"{SYSTEM_FOLDERS}/tensorrt/__init__.py")):
        folder = package.parent.parent
        return f" The system has one outside this environment: set {PATH_VARIABLE}={folder}{_python_note(str(folder))}."
    return ""


def _python_note(folder: str) -> str:
    match = re.search(r"python(3\.\d+)", folder)
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if match is None or match[1] == here:
        return ""
    return f" and make the environment with Python {match[1]}, for which it was compiled (this is {here})"


def _version(kind: str, places: Sequence[str]) -> str | None:
    for name in reversed(MODULES[kind]):  # the bindings hold the literal, the thin package imports it
        spec = PathFinder.find_spec(name, places)
        if spec is not None and spec.origin is not None and spec.origin.endswith(".py"):
            match = _VERSION.search(Path(spec.origin).read_text("utf-8", errors="replace"))
            if match:
                return match[1]
    return None


def load(found: Found) -> Any:
    """Import the binding. Raises BackendUnavailable when its libraries are missing or it is too old."""
    try:
        if found.folder:
            sys.path.insert(0, found.folder)
        module = import_module(found.module)
    except (ImportError, OSError) as error:
        note = _python_note(found.folder) if found.folder else ""
        raise BackendUnavailable(
            f"{found.title} is installed as '{found.module}' but cannot be imported: {error}. Its libraries are missing or "
            f"for another Python or CUDA{note}. Install it whole: {INSTALL[found.flavour]}."
        ) from error
    finally:
        # Only for the import: the folder may hold other packages, which must not hide this environment's.
        if found.folder and found.folder in sys.path:
            sys.path.remove(found.folder)
    major = int(str(module.__version__).partition(".")[0])
    if found.flavour == "trt" and major < OLDEST_MAJOR:
        raise BackendUnavailable(
            f"TensorRT {module.__version__} is too old: expected {OLDEST_MAJOR}.0 or newer (JetPack 6). "
            f"Install it: {INSTALL['trt']}."
        )
    return module
