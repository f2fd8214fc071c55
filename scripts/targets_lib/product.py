"""edgeprof as its user runs it, with a configuration of its own; and what is asked of its answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from scripts.real_models_lib.fetch import ROOT
from scripts.targets_lib import packages


class Failed(Exception):  # noqa: N818 (a finding)
    """The run cannot go on: what it needs did not work."""


@dataclass
class Checks:
    """What was looked at, told as it happens."""

    good: list[str] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)

    def expect(self, holds: bool, what: str, otherwise: str = "") -> bool:
        """One thing that must hold; returns whether it does."""
        (self.good if holds else self.bad).append(what if holds or not otherwise else f"{what}: {otherwise}")
        print(
            f"  {'ok  ' if holds else 'FAIL'} {what}{f': {otherwise}' if otherwise and not holds else ''}", flush=True
        )
        return holds

    def fact(self, text: str) -> None:
        """Something found that is no matter of right or wrong."""
        self.facts.append(text)
        print(f"       {text}", flush=True)


@dataclass(frozen=True)
class Edgeprof:
    """The command line, in an environment in which nothing of the user's is seen or changed."""

    folder: Path

    @contextmanager
    def configured(self) -> Iterator[None]:
        """The same targets for what is called here and not through the command line."""
        before = os.environ.get("EDGEPROF_TARGETS")
        os.environ["EDGEPROF_TARGETS"] = str(self.folder / "targets.toml")
        try:
            yield
        finally:
            if before is None:
                del os.environ["EDGEPROF_TARGETS"]
            else:
                os.environ["EDGEPROF_TARGETS"] = before

    def start(self, *arguments: str, log: Path | None = None) -> subprocess.Popen[str]:
        """Begin a command; its words go to `log`, or to pipes."""
        environment = {
            **os.environ, "PYTHONPATH": str(ROOT), "EDGEPROF_TARGETS": str(self.folder / "targets.toml"),
            # Bundles of wheels are kept between runs: they are named by their contents.
            "XDG_CACHE_HOME": str(packages.CACHE / "host"), "NO_COLOR": "1", "COLUMNS": "200",
        }  # fmt: skip
        command = [sys.executable, "-P" if sys.version_info >= (3, 11) else "-s", "-m", "profiler", *arguments]
        if log is None:
            return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        with log.open("a") as file:
            return subprocess.Popen(command, env=environment, text=True, stdout=file, stderr=file)

    def run(self, *arguments: str, timeout_s: float = 600.0) -> subprocess.CompletedProcess[str]:
        """A whole command."""
        with self.start(*arguments) as process:
            try:
                out, err = process.communicate(timeout=timeout_s)
            except subprocess.TimeoutExpired:
                process.kill()
                out, err = process.communicate()
                err += f"\n(ended after {timeout_s:g} s)"
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def must(self, *arguments: str, timeout_s: float = 600.0) -> str:
        """Output of a command that has to work. Raises Failed with its words."""
        done = self.run(*arguments, timeout_s=timeout_s)
        if done.returncode not in (0, 1):
            raise Failed(
                f"`edgeprof {' '.join(arguments)}` ended with {done.returncode}: {done.stderr.strip()[-1500:]}"
            )
        return done.stdout

    def has(self, *command: str) -> bool:
        """Whether this edgeprof knows the command."""
        return self.run(*command, "--help").returncode == 0


def write_data(folder: Path, rows: int) -> tuple[Path, Path, Path]:
    """The built-in model, so many of its evaluation rows, and its calibration rows, as files."""
    from profiler import demo

    data, calibration = demo.evaluation(), demo.calibration()
    # Rows lie class by class in no particular order; every n-th keeps all classes.
    step = max(1, len(data["labels"]) // rows)
    parts: dict[str, dict[str, Any]] = {
        "data": {name: array[::step][:rows] for name, array in data.items()},
        "calibration": {name: array[:128] for name, array in calibration.items()},
    }
    for part, arrays in parts.items():
        np.savez(folder / f"{part}.npz", **arrays)
    return demo.model_path(), folder / "data.npz", folder / "calibration.npz"


def write_study(path: Path, effort: dict[str, Any], **fields: Any) -> Path:
    """A study file. JSON's strings, numbers and lists are TOML's."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in fields.items()]
    lines += ["[effort]", *(f"{key} = {json.dumps(value)}" for key, value in effort.items())]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
