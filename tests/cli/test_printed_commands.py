"""Every kind of command that edgeprof prints works as it is printed: with --out, --database and spaces in paths."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from profiler import advice, api
from profiler.errors import StoreError
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


def test_an_input_that_has_to_be_declared(edgeprof, tmp_path, monkeypatch):
    """The suggestion keeps every setting of the study, goes into the same folder, and is accepted."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper

    monkeypatch.chdir(tmp_path)
    (tmp_path / "my models").mkdir()
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "sr"], ["y"])],
        "scaled",
        [value("x", TensorProto.FLOAT, ["N", 2]), value("sr", TensorProto.FLOAT, [])],
        [value("y", TensorProto.FLOAT, ["N", 2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, "my models/scaled.onnx")
    x = np.random.default_rng(0).standard_normal((40, 2)).astype(np.float32)
    np.savez("d.npz", x=x, labels=x.argmax(axis=1))
    told = edgeprof(
        "profile", "my models/scaled.onnx", "--data", "d.npz", "--backends", "fake", "--variants", "fp32", "--quick",
        "--batch", "2", "--limit", "30", "--seed", "7", "--slo-p99", "5s", "--utilisation", "0.4", "--out", "my runs",
    )  # fmt: skip
    command = told.err[told.err.rindex("edgeprof profile") :].strip()
    words = shlex.split(command)

    assert told.code == 2
    assert "--input" in words
    from tests.test_repeat import read_back

    study = read_back(command)
    assert (study.limit, study.seed, study.cost.utilisation, study.batches) == (30, 7, 0.4, (2,))
    assert study.constraints.slo_p99_s == 5.0
    assert words[-2:] == ["--out", "my runs"]
    assert study.inputs["sr"].value == 16000


@pytest.mark.parametrize("stage", ["load", "soak"])
def test_a_stage_that_the_run_lacks(edgeprof, place, stage):
    """The command adds it to what the run was asked."""
    from tests.test_repeat import read_back

    told = edgeprof(stage, "--show", "latest", "--out", place)
    (command,) = commands(told.err)
    before = api.open_run("latest", out=place).run.study
    study = read_back(command)

    assert told.code == 2
    assert getattr(study, stage) is not None
    assert study.model_copy(update={stage: None}) == before
    assert shlex.split(command)[-2:] == ["--out", "my runs"]


def test_an_id_that_is_none(edgeprof, place):
    """A name that cannot be a folder's is refused with the list of this folder."""
    edgeprof("runs", "--out", place)
    store = open_store(place)
    with pytest.raises(StoreError) as caught:
        store.run("../elsewhere")
    store.close()
    (command,) = commands(str(caught.value))

    assert run(edgeprof, command).code == 0


@pytest.mark.process
@pytest.mark.runtime
def test_load_again_and_interrupted(edgeprof, place, small_model):
    """What stands under a load run shows it again; one that was interrupted says how to go on."""
    said = edgeprof(
        "load", small_model, "--backends", "fake{latency_us=200,read=false,wait=sleep}", "--variants", "fp32", "--rate",
        "20", "--duration", "200ms", "--repeats", "1", "--out", place,
    )  # fmt: skip
    assert said.code in (0, 1), said.err
    (again,) = commands(flat(said.out))
    run_id = shlex.split(again)[3]

    assert shlex.split(again) == ["edgeprof", "load", "--show", run_id, "--out", "my runs"]
    store = open_store(place)
    store.set_status(run_id, "interrupted")
    store.close()
    told = run(edgeprof, again)
    resume = re.search(r"Go on: (edgeprof run --resume \S+ --out 'my runs')", flat(told.out))
    assert resume is not None, told.out
    assert run(edgeprof, resume[1]).code in (0, 1)
    assert api.open_run(run_id, out=place).run.status == "finished"


def test_a_time_budget_that_ended_while_variants_were_made(edgeprof, place, small_model, monkeypatch):
    """The run that is told is this one, with its folder; not `latest` of the usual one."""
    from profiler import prepare

    real = prepare.make_artifacts

    def late(*arguments, **named):
        *rest, require = arguments
        monkeypatch.setattr("profiler.budget.Budget.left_s", property(lambda _: 0.0))
        return real(*rest, require, **named)

    monkeypatch.setattr(prepare, "make_artifacts", late)
    told = edgeprof(
        "profile", small_model, "--backends", "fake{read=false}", "--variants", "bf16", "--time-budget", "60s", "--out",
        place,
    )  # fmt: skip
    (command,) = commands(told.err)

    assert told.code == 2
    assert shlex.split(command)[:3] == ["edgeprof", "run", "--resume"]
    assert shlex.split(command)[4:] == ["--out", "my runs"]


@pytest.mark.process
@pytest.mark.runtime
def test_a_search_that_was_interrupted(edgeprof, place, small_model, monkeypatch):
    """Ctrl-C, and `run` for a search, name the same command: of this search, in its folder."""
    from profiler.search.run import Search

    def interrupted(_self: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Search, "run", interrupted)
    told = edgeprof(
        "search", small_model, "--variants", "bf16", "--backends", "fake{read=false}", "--time-budget", "60s", "--quick", "--out",
        place,
    )  # fmt: skip
    newest = api.open_run("latest", out=place).run
    wanted = ["edgeprof", "search", "--resume", newest.id, "--out", "my runs"]
    again = edgeprof("run", "--resume", newest.id, "--out", place)

    assert told.code == 130
    assert shlex.split(told.err[told.err.rindex("edgeprof search") :].strip()) == wanted
    assert [shlex.split(command) for command in commands(again.err)] == [wanted]
    assert run(edgeprof, shlex.join(wanted)).code == 130


def test_a_page_that_cannot_be_written(edgeprof, place, tmp_path):
    """The command beside the problem writes it elsewhere."""
    run_id = api.open_run("latest", out=place).run.id
    (place / run_id / "report.html").mkdir(parents=True)
    told = edgeprof("report", run_id, "--out", place)
    found = re.search(r"edgeprof report .*FILE\.html.*?(?=[`).]*$)", told.err, re.MULTILINE)

    assert found is not None, told.err
    assert run(edgeprof, found[0]).code in (0, 1)
    assert (tmp_path / "FILE.html").is_file()


def flat(text: str) -> str:
    """Lines that were folded, in one."""
    return re.sub(r"\s*\n\s+", " ", text)


@pytest.fixture(autouse=True)
def usual_place():
    """Where runs lie is known to one program at a time."""
    yield
    advice.forget()
