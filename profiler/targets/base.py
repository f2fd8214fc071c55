"""What a target is to whoever starts workers: this machine, or one that was set up before."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from profiler.errors import TargetError
from profiler.targets import bundle, config
from profiler.targets.conditions import Conditions, canonical, parse

# Not `-m profiler.worker`: that puts the working directory first on the path, where a user's own `backends/` would
# shadow ours. `python -P` does the same from 3.11 on; this also holds on 3.10 (JetPack 6).
START = "import sys; sys.path[:] = [p for p in sys.path if p]; from {module} import main; main()"
# On a device: its bundles stand before what is installed there, and what runtimes and drivers keep lies where `target remove`
# takes it away. No quote in it but ".
_START_THERE = (
    "import os,sys;r=os.path.expanduser(sys.argv[1]);"
    'b=[os.path.join(r,"bundles",n) for n in sys.argv[2:]];'
    'all(map(os.path.isdir,b)) or sys.exit("nothing is in "+r+" any more");'
    "sys.path[:]=b+[p for p in sys.path if p];"
    'os.environ.update(EDGEPROF_WORKER_CACHE=os.path.join(r,"artifacts"),XDG_CACHE_HOME=os.path.join(r,"cache"),'
    'CUDA_CACHE_PATH=os.path.join(r,"cache","cuda"));'
    "from profiler.worker import main;main(remote=True)"
)


@dataclass(frozen=True)
class Target:
    """A machine, as the command that starts a worker on it."""

    name: str
    command: tuple[str, ...]
    """Everything up to and including the interpreter and its arguments."""
    shares_files: bool
    """Whether the worker can open the parent's paths; otherwise artifacts travel through the pipe."""
    environment: Mapping[str, str] = field(default_factory=dict)
    link_codes: frozenset[int] = frozenset()
    """Exit codes of the command that mean a lost connection, and nothing about the worker."""
    emulated: bool = False
    """Timings on it are of an emulator."""
    device: str | None = None
    """Its device profile, where it is known."""
    conditions: Conditions = field(default_factory=Conditions)
    """How much of it is used, and in which power mode."""
    text: str = ""
    """Its whole text in a study: the name with its conditions."""

    def __post_init__(self) -> None:
        """A target without conditions is called by its name."""
        if not self.text:
            object.__setattr__(self, "text", self.name)


def local(python: str = sys.executable) -> Target:
    """This machine, with the interpreter that runs us."""
    here = str(Path(__file__).resolve().parents[2])
    paths = [here, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return Target(
        "local", (python, "-c", START.format(module="profiler.worker")), shares_files=True,
        environment={"PYTHONPATH": os.pathsep.join(paths)},
    )  # fmt: skip


def get(text: str) -> Target:
    """The target of that text, `NAME` or `NAME{option=value,…}`.

    Raises StudyError with the known names and options, TargetError for a target that was not set up.
    """
    name, conditions = parse(text)
    target = local() if name == config.LOCAL else remote(config.get(name))
    return replace(target, conditions=conditions, text=canonical(text))


def remote(spec: config.TargetSpec) -> Target:
    """A machine behind a command prefix. Raises TargetError when no worker was put there."""
    if not spec.bundles:
        raise TargetError(f"nothing is installed on target '{spec.name}' yet: `edgeprof target setup {spec.name}`.")
    if spec.bundles[0] != bundle.modules_name():
        raise TargetError(
            f"target '{spec.name}' has another edgeprof than this one: `edgeprof target setup {spec.name}` puts the same there."
        )
    return Target(
        spec.name, config.words(spec, "-c", _START_THERE, spec.folder, *spec.bundles), shares_files=False,
        link_codes=frozenset(spec.link_codes), emulated=spec.emulated, device=spec.device,
    )  # fmt: skip
