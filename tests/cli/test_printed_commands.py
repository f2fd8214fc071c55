"""Every kind of command that edgeprof prints works as it is printed: with --out, --database and spaces in paths."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from profiler import advice, api
from profiler.report.words import unfinished
from profiler.store import open_store


@pytest.fixture
def place(finished, tmp_path, monkeypatch) -> Path:
    """The finished run in a folder with a space in its name, beside a usual folder that holds nothing."""
    shutil.copytree(finished, tmp_path / "my runs")
    monkeypatch.chdir(tmp_path)
    return Path("my runs")


def commands(text: str) -> list[str]:
    """The commands in what was printed: to the end of the line, of the backticks, or of a bracket."""
    found = re.findall(r"`(edgeprof [^`]+)`", text)
    found += re.findall(r"(?:details|again with|sustained|Go on|next): (edgeprof .+)", text)
    return [command.rstrip(". ") for command in found]


def run(edgeprof, command: str):
    words = shlex.split(command)
    assert words[0] == "edgeprof"
    return edgeprof(*words[1:])


def test_details_of_a_case(edgeprof, place):
    """The last line of a run names a case that is there."""
    from profiler.cli import console

    edgeprof("runs", "--out", place)  # says where runs lie, as any command does
    result = api.open_run("latest", out=place)
    told = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(console, "line", told.append)
        console.show_result(result, report=False)
    (command,) = commands("\n".join(told))
    said = run(edgeprof, command)

    assert shlex.split(command)[-2:] == ["--out", "my runs"]
    assert said.code == 0, said.err
    assert "figures" in said.out


@pytest.mark.parametrize("arguments", [("show", "nosuchrun"), ("report", "nosuchrun"), ("run",), ("load",), ("soak",)])
def test_a_message_s_list_of_runs(edgeprof, place, arguments):
    """`edgeprof runs` in a message lists the runs of the folder that was asked about."""
    told = edgeprof(*arguments, "--out", place)
    (command,) = commands(told.err)
    said = run(edgeprof, command)

    assert told.code == 2
    assert said.code == 0
    assert api.open_run("latest", out=place).run.id in said.out


def test_going_on_with_an_interrupted_run(edgeprof, place):
    """The sentence under an interrupted run's result resumes that run, though another folder has runs too."""
    run_id = api.open_run("latest", out=place).run.id
    store = open_store(place)
    store.set_status(run_id, "interrupted")
    store.close()
    edgeprof("runs", "--out", place)
    told = unfinished(api.open_run(run_id, out=place).analysis)
    (command,) = commands(str(told))
    said = run(edgeprof, command)

    assert shlex.split(command) == ["edgeprof", "run", "--resume", run_id, "--out", "my runs"]
    # Whether a case meets the limits depends on how busy this machine is.
    assert said.code in (0, 1), said.err
    assert api.open_run(run_id, out=place).run.status == "finished"


def test_ctrl_c_names_the_run_that_was_interrupted(edgeprof, place, small_model, monkeypatch):
    """Not `latest`, which may be another one by then, and with its folder."""
    from profiler import campaign

    def interrupted(*_args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(campaign, "measure", interrupted)
    told = edgeprof("profile", small_model, "--backends", "fake", "--variants", "fp32", "--out", place)
    newest = api.open_run("latest", out=place).run

    assert told.code == 130
    assert f"edgeprof run --resume {newest.id} --out 'my runs'" in told.err
    assert newest.status == "interrupted"


def test_an_interruption_before_a_run_says_so(edgeprof, place, monkeypatch):
    """There is nothing to go on with."""
    from profiler.cli import runs_command

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runs_command, "command", interrupted)
    told = edgeprof("runs")

    assert told.code == 130
    assert "--resume" not in told.err


def test_a_run_is_resumed_from_another_folder(edgeprof, place, small_model, small_data, tmp_path, monkeypatch):
    """Relative paths are stored from the root."""
    shutil.copy(small_model, "m.onnx")
    shutil.copy(small_data, "d.npz")
    from profiler import campaign

    def interrupted(*_args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(campaign, "measure", interrupted)
        edgeprof(
            "profile",
            "m.onnx",
            "--data",
            "d.npz",
            "--backends",
            "fake",
            "--variants",
            "fp32",
            "--quick",
            "--out",
            place,
        )
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    told = edgeprof("run", "--resume", "latest", "--out", tmp_path / "my runs")

    assert told.code in (0, 1), told.err
    assert api.open_run("latest", out=tmp_path / "my runs").run.study.model == str(tmp_path / "m.onnx")


def test_an_init_file_with_a_space_in_its_name(edgeprof, place, small_model):
    """The next command is quoted."""
    told = edgeprof("init", small_model, "-o", "my study.toml")

    assert shlex.split(commands(told.out)[0]) == ["edgeprof", "run", "my study.toml"]


@pytest.fixture(autouse=True)
def usual_place():
    """Where runs lie is known to one program at a time."""
    yield
    advice.forget()
