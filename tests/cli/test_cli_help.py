"""Help is there for every command, at once, and mistakes are one message."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from profiler.cli.app import COMMANDS

ROOT = Path(__file__).parents[2]
HEAVY = {
    "numpy",
    "onnx",
    "onnxruntime",
    "openvino",
    "scipy",
    "pydantic",
    "sqlalchemy",
    "altair",
    "jinja2",
    "torch",
    "psutil",
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_command_explains_itself(edgeprof, command, flag):
    """Exit code 0, its own sentence, its options and the exit codes."""
    told = edgeprof(command, flag)

    assert (told.code, told.err) == (0, "")
    assert COMMANDS[command].split(":")[0].split(",")[0] in " ".join(told.out.split())
    assert "--help" in told.out
    assert "Exit codes" in told.out


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",), ("--debug",)])
def test_the_help_page_lists_every_command(edgeprof, arguments):
    """Also without any argument."""
    told = edgeprof(*arguments)

    assert told.code == 0
    assert all(name in told.out and text in told.out for name, text in COMMANDS.items())


def test_the_version_is_one_line(edgeprof):
    """For scripts."""
    from profiler import __version__

    assert f"edgeprof {__version__}\n" == edgeprof("--version").out


@pytest.mark.process
@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["nonsense"]])
def test_the_help_page_imports_nothing_heavy(arguments):
    """It answers at once: in a fresh interpreter, none of the heavy packages was imported."""
    code = (
        "import sys, atexit; atexit.register(lambda: print('MODULES', *sys.modules, file=sys.stderr)); "
        f"from profiler.cli import main; main({arguments!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    modules = {name.partition(".")[0] for name in done.stderr.rpartition("MODULES")[2].split()}

    assert "typer" in modules
    assert set() == modules & HEAVY


@pytest.mark.process
def test_it_runs_as_a_module():
    """`python -m profiler` is `edgeprof`."""
    done = subprocess.run(
        [sys.executable, "-m", "profiler", "--version"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0
    assert done.stdout.startswith("edgeprof ")


@pytest.mark.parametrize(
    ("typed", "near"), [("profil", "profile"), ("forntier", "frontier"), ("report.html", "report"), ("", "")]
)
def test_an_unknown_command_is_answered_with_its_near_match(edgeprof, typed, near):
    """One line on stderr, exit code 2."""
    told = edgeprof(typed)

    assert (told.code, told.out) == (2, "")
    assert f"unknown command '{typed}'" in told.err
    assert near in told.err
    assert len(told.err.strip().splitlines()) == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_option_is_a_usage_error(edgeprof, command):
    """Exit code 2 and no traceback."""
    told = edgeprof(command, "--no-such-option")

    assert told.code == 2
    assert "No such option" in told.err
    assert "Traceback" not in told.err


@pytest.mark.parametrize("command", ["profile", "variants", "export", "init"])
def test_a_missing_argument_is_a_usage_error(edgeprof, command):
    """It names the argument."""
    told = edgeprof(command)

    assert told.code == 2
    assert "MODEL" in told.err.upper()
