"""A study file or a database is somebody's text: what it names as code runs after the user's word only."""

from __future__ import annotations

import pytest

from profiler.named_code import named_code
from profiler.study import make_study

WITNESS = """
from pathlib import Path
Path("ran").write_text("")
def make():
    return {}
def metric(outputs, labels):
    return labels
"""


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ('data = "witness:make"', 'data = "witness:make"'),
        ('calibration = "witness:make"', 'calibration = "witness:make"'),
        ('metric = "witness:metric"', 'metric = "witness:metric"'),
        ('[energy]\ncommand = "touch ran"', 'energy.command = "touch ran"'),
    ],
)
@pytest.mark.parametrize("command", [("run",), ("fleet", "run")])
def test_a_study_file_runs_nothing_without_a_word(edgeprof, tmp_path, monkeypatch, small_model, command, line, name):
    """Refused with the names of what would run, exit code 2, before anything is imported or started."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "witness.py").write_text(WITNESS)
    (tmp_path / "study.toml").write_text(f'model = "{small_model}"\nbackends = ["fake"]\nvariants = ["fp32"]\n{line}\n')

    told = edgeprof(*command, "study.toml")

    assert told.code == 2
    assert name in told.err
    assert "--allow-code" in told.err
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "runs").exists()


def test_a_model_factory_in_a_study_is_code_too():
    """Everything that is imported or started is named, and files are not."""
    study = make_study(model="package.module:factory", data="package:rows", metric="top1", energy={"command": "meter"})

    assert named_code(study) == (
        'model = "package.module:factory"',
        'data = "package:rows"',
        'energy.command = "meter"',
    )
    assert named_code(make_study(model="m.onnx", data="rows.npz", metric="top1", energy={})) == ()


def test_the_user_s_word_lets_it_run(edgeprof, tmp_path, monkeypatch, small_model):
    """With --allow-code the function is called (it gives no rows here, which is told)."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "witness2.py").write_text(WITNESS)
    (tmp_path / "study.toml").write_text(
        f'model = "{small_model}"\nbackends = ["fake"]\nvariants = ["fp32"]\ndata = "witness2:make"\n'
    )

    edgeprof("run", "study.toml", "--allow-code")

    assert (tmp_path / "ran").exists()


def test_a_stored_run_is_asked_for_as_well(edgeprof, tmp_path, monkeypatch, small_model):
    """A database may be somebody else's: resuming it runs its study's code only after the same word."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "witness3.py").write_text(WITNESS)
    from profiler.environment import describe
    from profiler.store import open_store

    store = open_store(tmp_path / "theirs")
    study = make_study(model=str(small_model), data="witness3:make", backends=("fake",), variants=("fp32",))
    run_id = store.create_run(study, describe(), version="0")
    store.close()

    told = edgeprof("run", "--resume", run_id, "--out", "theirs")

    assert told.code == 2
    assert 'data = "witness3:make"' in told.err
    assert not (tmp_path / "ran").exists()
