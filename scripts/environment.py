"""The repository's own environment for the Python scripts beside this file, whatever interpreter they were started with."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHON = ROOT / ".venv" / "bin" / "python"


def enter(name: str, *extras: str) -> None:
    """Go on inside the environment: made or completed with `extras`, then this script is started again by its Python.

    `name` is the script's `__name__`: one that a test imports stays where it is. Returns only inside; ends with the exit code of
    `scripts/setup_env` where that fails.
    """
    if name != "__main__" or Path(sys.prefix).resolve() == PYTHON.parents[1].resolve():
        return
    done = subprocess.run([ROOT / "scripts" / "setup_env", *(extras or ("dev",))], check=False)
    if done.returncode:
        sys.exit(done.returncode)
    os.execv(PYTHON, [str(PYTHON), *sys.argv])
