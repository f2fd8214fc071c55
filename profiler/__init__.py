"""edgeprof: which variant of a model, on which runtime and device, to deploy, what it costs, and how sure that is.

    import profiler

    result = profiler.profile("model.onnx", data="test.npz")
    print(result)            # the frontier as a table, the recommendation first
    result.report("report.html")

Importing this package is cheap: everything heavy is imported when it is first used.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

from profiler._selfcheck import check

check(Path(__file__).resolve().parent)

if TYPE_CHECKING:
    from types import ModuleType

    from profiler.api import Result, open_run, profile
    from profiler.errors import EdgeprofError
    from profiler.study import Study

# Runtimes look at these when they are imported. ONNX Runtime 1.32 reports its use from Linux too: it writes a device id into
# the user's home and keeps a thread in every process that is timed. `import openvino` does so with `openvino_telemetry`.
for _switch in ("ORT_DISABLE_TELEMETRY", "ORT_TELEMETRY_DISABLED"):
    os.environ.setdefault(_switch, "1")
sys.modules.setdefault("openvino_telemetry", cast("ModuleType", None))

__version__ = "0.1.0"
__all__ = ["EdgeprofError", "Result", "Study", "__version__", "open_run", "profile"]

_HOMES = {
    "EdgeprofError": "profiler.errors",
    "Result": "profiler.api",
    "Study": "profiler.study",
    "open_run": "profiler.api",
    "profile": "profiler.api",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first asked for (PEP 562): the worker must not pay for the controller."""
    if name not in _HOMES:
        raise AttributeError(f"module 'profiler' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """Public names, for completion."""
    return sorted(__all__)
