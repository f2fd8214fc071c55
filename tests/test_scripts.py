"""The scripts find the repository's environment themselves, whatever interpreter a person starts them with."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted(
    path
    for path in (ROOT / "scripts").iterdir()
    if (path.is_file() and "\nenter(__name__" in path.read_text(encoding="utf-8"))
    or (
        path.is_file()
        and os.access(path, os.X_OK)
        and path.read_text(encoding="utf-8").startswith("#!/usr/bin/env python")
    )
)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_nothing_but_the_standard_library_is_imported_before_the_environment_is_entered(script):
    before = []
    for node in ast.parse(script.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.Expr, ast.If)) and any(
            "enter(__name__" in line for line in ast.unparse(node).splitlines()
        ):
            break
        if isinstance(node, ast.Import):
            before += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            before.append(str(node.module))
    else:
        pytest.fail("it never calls scripts.environment.enter")
    strange = [name for name in before if name.partition(".")[0] not in sys.stdlib_module_names]
    assert strange == ["scripts.environment"]


@pytest.mark.process
def test_a_script_that_the_systems_python_starts_goes_on_in_the_environment(tmp_path):
    """Elsewhere, without the environment's variables: what it needs is imported all the same."""
    base = Path(sys.base_prefix) / "bin" / "python3"
    if not base.exists() or not (ROOT / ".venv" / "bin" / "python").exists():
        pytest.skip("there is no other interpreter, or no .venv, to try it with")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL"))}
    done = subprocess.run(
        [base, ROOT / "scripts" / "study_warmup", "--help"],
        cwd=tmp_path,
        env=clean,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "usage: study_warmup" in done.stdout
