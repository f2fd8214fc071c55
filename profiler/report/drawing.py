"""Drawing in a process of its own, with a limit on time and memory: what ends there costs the picture and nothing else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIMIT_S = 120.0
MEMORY_BYTES = 4 << 30
_PROGRAM = Path(__file__).with_name("picture_process.py")
_SNIPPET = "window.vegaEmbed=vegaEmbed;"


class DrawingError(Exception):
    """Nothing could be drawn; the text is one line that says why."""


@dataclass(frozen=True)
class Drawn:
    """What the process gave."""

    png: bytes
    """Empty when none was asked for."""
    script: str
    """Vega, Vega-Lite and vega-embed as one script that needs no network; empty when not asked for."""


def draw(
    spec: Mapping[str, Any] | None,
    *,
    scale: float = 2.0,
    script: bool = False,
    vl_version: str,
    limit_s: float = LIMIT_S,
    program: Sequence[str] = (),
) -> Drawn:
    """Draw `spec` (Vega-Lite) as a PNG, and give the page's script where asked. Raises DrawingError.

    `program` stands for the command of the drawing process, for tests.
    """
    asked = {
        "spec": spec, "scale": scale, "vl_version": vl_version, "snippet": _SNIPPET if script else None,
        "memory_bytes": MEMORY_BYTES,
    }  # fmt: skip
    command = [*program] or [sys.executable, str(_PROGRAM)]
    # vl-convert reads its own docstrings nowhere, but what it imports may: optimisation is for the caller's code.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONOPTIMIZE"}
    try:
        # Its chatter is a C++ engine's: dozens of addresses that help nobody.
        done = subprocess.run(
            command, input=json.dumps(asked).encode(), capture_output=True, timeout=limit_s,
            check=False, env=environment, start_new_session=True,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise DrawingError(f"drawing took longer than {limit_s:g} s") from None
    except (OSError, ValueError) as error:
        raise DrawingError(f"the drawing process could not be started: {error}") from None
    if done.returncode < 0:
        why = ""
        if done.returncode in (-signal.SIGTRAP, -signal.SIGABRT, -signal.SIGILL):
            why = ", as it does where addresses are limited (`ulimit -v`)"
        raise DrawingError(f"the drawing process ended with {signal.Signals(-done.returncode).name}{why}")
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()
        raise DrawingError(f"the drawing process failed: {last[-1][:300] if last else f'exit code {done.returncode}'}")
    parts, rest = [], done.stdout
    for _ in range(2):
        size = int.from_bytes(rest[:8], "big")
        if len(rest) < 8 + size:
            raise DrawingError("the drawing process answered with less than it announced")
        parts.append(rest[8 : 8 + size])
        rest = rest[8 + size :]
    return Drawn(parts[0], parts[1].decode())
