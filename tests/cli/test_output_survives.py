"""What was measured is shown: whatever becomes of files, pictures, encodings and streams."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from profiler import api
from profiler.report import drawing

ROOT = Path(__file__).resolve().parents[2]


def _edgeprof(
    arguments: str, *, python: str = "", limits: str = "", **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """The command as a shell runs it, with limits and redirections."""
    line = f"{limits}exec {sys.executable} {python} -m profiler {arguments}"
    inherited = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(["bash", "-c", line], capture_output=True, check=False, env=inherited, timeout=300)


@pytest.mark.process
def test_a_limit_on_addresses_costs_the_pictures_only(finished, tmp_path):
    """`ulimit -v`, usual on clusters, ends the drawing engine; page, CSV and JSON are there, one line says what is not."""
    done = _edgeprof(f"report latest --out {finished} --to {tmp_path}/page.html", limits="ulimit -v 12000000; ")

    assert done.returncode == 0, done.stderr.decode()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cases.csv", "page.html", "run.json"]
    told = done.stderr.decode().splitlines()
    assert len(told) == 1, told
    assert "pictures could not be drawn" in told[0]
    assert "ulimit -v" in told[0]
    assert "There are no pictures" in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.process
def test_python_oo_shows_and_writes_everything_else(finished, tmp_path):
    """Optimised bytecode has no docstrings, which the plotting library reads."""
    done = _edgeprof(f"report latest --out {finished} --to {tmp_path}/page.html", python="-OO")

    assert done.returncode == 0, done.stderr.decode()
    assert {"cases.csv", "page.html", "run.json"} <= {path.name for path in tmp_path.iterdir()}
    assert "Traceback" not in done.stderr.decode()


@pytest.mark.process
@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
@pytest.mark.parametrize("command", ["report latest --json", "show latest"])
def test_any_encoding_will_do(finished, encoding, command):
    """The same facts in ASCII where a terminal or pipe is not of Unicode; JSON reads back the same."""
    done = _edgeprof(f"{command} --out {finished}", PYTHONIOENCODING=encoding)

    assert done.returncode == 0, done.stderr.decode("latin-1")
    if "--json" in command:
        assert json.loads(done.stdout.decode(encoding)) == json.loads(_edgeprof(f"{command} --out {finished}").stdout)


@pytest.mark.process
@pytest.mark.parametrize(("redirection", "code"), [(">&-", 0), ("2>&-", 0), (">&- 2>&- <&-", 0), (">/dev/full", 2)])
def test_closed_streams_and_full_disks_are_no_bugs(finished, redirection, code):
    """A closed stream is nobody who reads; a full one is told, once."""
    done = _edgeprof(f"show latest --out {finished} {redirection}")

    told = done.stderr.decode()
    assert done.returncode == code, told
    assert "Traceback" not in told
    assert "bug" not in told
    if code:
        (line,) = told.splitlines()
        assert line.startswith("edgeprof: No space left on device")


@pytest.mark.process
def test_a_user_without_a_home_is_shown_the_result(finished):
    """Containers run as numbers that no password file knows."""
    done = _edgeprof(f"show latest --out {finished}", limits="unset HOME; ")

    assert done.returncode == 0, done.stderr.decode()


def test_what_cannot_be_written_is_told_after_the_table(finished, tmp_path, capsys):
    """A folder that refuses files hides no result: the table is on stdout, one line on stderr."""
    from profiler.cli import console

    result = api.open_run("latest", out=finished)
    (tmp_path / "file").write_text("")
    object.__setattr__(result, "folder", tmp_path / "file")
    console.show_result(result)
    told = capsys.readouterr()

    assert "▸" in told.out or ">" in told.out
    assert "details: edgeprof show" in told.out
    assert "report:" not in told.out
    assert told.err.count("cannot write the report") == 1


@pytest.mark.process
@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGTRAP)", "SIGTRAP, as it does where addresses are limited"),
        ("import time; time.sleep(60)", "longer than 1 s"),
        ("raise ValueError('no such mark')", "no such mark"),
        ("import sys; sys.stdout.write('short')", "less than it announced"),
    ],
)
def test_a_drawing_process_that_fails_says_so_in_a_line(program, words):
    """Killed, hung, failed or silent."""
    with pytest.raises(drawing.DrawingError, match=words) as caught:
        drawing.draw(
            {}, vl_version="6.1", limit_s=1.0 if "sleep" in program else 60.0, program=[sys.executable, "-c", program]
        )
    assert "\n" not in str(caught.value)
