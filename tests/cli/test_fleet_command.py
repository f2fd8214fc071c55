"""`edgeprof fleet`: what devices do, told from the database, and a study measured on all of its targets."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from profiler.cli import app
from profiler.environment import describe
from profiler.leases import Owner
from profiler.store import open_store
from profiler.targets import bundle, config

STRANGER = Owner("elsewhere", "someone", 7, 0.0, "another boot")


@pytest.fixture
def edgeprof(tmp_path, monkeypatch, capsys):
    """`edgeprof(*words)`: exit code, what was printed and what was told, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGEPROF_TARGETS", str(tmp_path / "targets.toml"))
    monkeypatch.setitem(app.COMMANDS, "fleet", "Many devices at once.")

    def call(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            app.main(list(words))
        seen = capsys.readouterr()
        return int(caught.value.code or 0), seen.out, seen.err

    return call


def add_target(name: str, folder: Path, prefix: tuple[str, ...] = ("env",), **settings) -> None:
    (folder / name / "bundles").mkdir(parents=True)
    (folder / name / "bundles" / bundle.modules_name()).symlink_to(Path(__file__).parents[2])
    config.save(
        config.TargetSpec(
            name, prefix, python=sys.executable, folder=str(folder / name), bundles=(bundle.modules_name(),), **settings
        )
    )


def test_devices_are_listed_with_who_has_them(edgeprof, tmp_path):
    """Those that were added but never measured on, too."""
    add_target("pi", tmp_path)
    store = open_store(tmp_path / "runs")
    store.acquire("jetson", run_id="20261124-100000-abcd", owner=STRANGER)
    store.close()
    code, printed, _ = edgeprof("fleet", "status")

    assert code == 0
    assert "measuring run 20261124-100000-abcd for someone@elsewhere, process 7" in " ".join(printed.split())
    assert "pi" in printed
    code, printed, _ = edgeprof("fleet", "status", "--json")
    (state,) = json.loads(printed)
    assert (code, state["device"], state["owner"], state["refused"]) == (0, "jetson", str(STRANGER), 0)


def test_a_run_is_shown_device_by_device(edgeprof, tmp_path, fake_study):
    """With the reason of what is missing as it is, whatever brackets are in it, and the command that goes on."""
    store = open_store(tmp_path / "runs")
    run_id = store.create_run(fake_study(targets=("a", "b")), describe(), version="0")
    cases = [{"variant": "fp32", "backend": "ort", "target": name, "batch": 1, "threads": 1} for name in "ab"]
    store.set_plan(run_id, {"cases": cases}, ())
    store.set_queue(run_id, "a", "lost", "the link [red]broke")
    store.close()
    code, printed, _ = edgeprof("fleet", "status", "latest")

    assert code == 0
    assert "lost: the link [red]broke" in printed
    assert f"edgeprof fleet run --resume {run_id}" in printed
    code, printed, _ = edgeprof("fleet", "status", "latest", "--json")
    assert [(one["device"], one["state"], one["cases"]) for one in json.loads(printed)] == [
        ("a", "lost", 1),
        ("b", "idle", 1),
    ]


def study_file(folder: Path, model: Path, targets: str) -> str:
    path = folder / "study.toml"
    path.write_text(
        f'model = "{model}"\nbackends = ["fake{{read=false}}"]\nvariants = ["fp32"]\ntargets = [{targets}]\n'
        "[effort]\nprocesses = 1\nrounds = 2\nblock_s = 0.002\nwarmup_s = 0.002\nwarmup_max_s = 0.01\nrequeue_share = 0.0\n"
    )
    return str(path)


@pytest.mark.process
def test_what_some_devices_gave_is_shown_although_another_was_lost(edgeprof, tmp_path, small_model, monkeypatch):
    """The table of devices, the result, the reason, and an exit code that is not that of a whole run."""
    monkeypatch.setattr("profiler.run.LINK_PAUSES_S", ())
    add_target("there", tmp_path)
    add_target("away", tmp_path, ("sh", "-c", "exit 255"), link_codes=(255,))
    code, printed, told = edgeprof("fleet", "run", study_file(tmp_path, small_model, '"there", "away"'))

    assert code == 2
    assert "1 of 1" in printed
    assert "0 of 1" in printed
    assert "fp32" in printed
    assert "1 of 2 devices are measured, not away" in " ".join(told.split())
    code, printed, _ = edgeprof("fleet", "status", "latest")
    assert "lost" in printed
    assert edgeprof("runs")[1].count("interrupted") == 1


def test_power_modes_are_set_only_when_agreed_to(edgeprof, tmp_path, small_model):
    """As by the other commands: they hold for everything that runs on the machine."""
    code, _, told = edgeprof("fleet", "run", study_file(tmp_path, small_model, '"jetson{power=15W}"'))

    assert code == 2
    assert "agree with --yes" in told


def test_a_study_or_a_run_to_resume_is_needed(edgeprof):
    """One of them."""
    code, _, told = edgeprof("fleet", "run")

    assert code == 2
    assert "--resume" in told
