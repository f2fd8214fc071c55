"""Targets are commands that start a worker."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from profiler.errors import StudyError
from profiler.targets import base


def test_this_machine_is_a_target():
    """It runs our interpreter and shares our files."""
    target = base.get("local")

    assert (sys.executable, True) == (target.command[0], target.shares_files)


def test_an_unknown_target_is_answered_with_the_known_ones():
    """With the near match, like every name."""
    with pytest.raises(StudyError, match="Did you mean local"):
        base.get("lokal")


@pytest.mark.process
def test_a_worker_does_not_import_the_users_folders(tmp_path):
    """A `backends` or `numpy.py` in the working directory is not ours."""
    (tmp_path / "backends").mkdir()
    (tmp_path / "backends" / "__init__.py").write_text("raise SystemExit('the wrong one')")
    (tmp_path / "numpy.py").write_text("raise SystemExit('the wrong numpy')")
    target = base.local()
    done = subprocess.run(
        target.command, cwd=tmp_path, env={**os.environ, **target.environment}, stdin=subprocess.DEVNULL,
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip

    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
