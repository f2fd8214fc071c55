"""What a target is, and the one that is this machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from profiler.errors import unknown

# Not `-m profiler.worker`: that puts the working directory first on the path, where a user's own `backends/` would
# shadow ours. `python -P` does the same from 3.11 on; this also holds on 3.10 (JetPack 6).
_START = "import sys; sys.path[:] = [p for p in sys.path if p]; from profiler.worker import main; main()"


@dataclass(frozen=True)
class Target:
    """A machine, as the command that starts a worker on it."""

    name: str
    command: tuple[str, ...]
    """Everything up to and including the interpreter and its arguments."""
    shares_files: bool
    """Whether the worker can open the parent's paths; otherwise artifacts travel through the pipe."""
    environment: Mapping[str, str] = field(default_factory=dict)


def local(python: str = sys.executable) -> Target:
    """This machine, with the interpreter that runs us."""
    here = str(Path(__file__).resolve().parents[2])
    paths = [here, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return Target(
        "local", (python, "-c", _START), shares_files=True, environment={"PYTHONPATH": os.pathsep.join(paths)}
    )


def get(name: str) -> Target:
    """The target of that name. Raises StudyError with the known ones."""
    if name == "local":
        return local()
    raise unknown("target", name, ["local"])
