"""`edgeprof target add|list`: what is remembered of a machine, before anything is done on it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from profiler.targets import config


@pytest.fixture(autouse=True)
def targets(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEPROF_TARGETS", str(tmp_path / "targets.toml"))


def test_two_names_of_one_machine_have_a_folder_each(edgeprof):
    """So that taking one away leaves the other."""
    for name in ("one", "two"):
        assert edgeprof("target", "add", name, "--command", "nsenter -t 71 -m").code == 0

    assert config.get("one").folder != config.get("two").folder
    assert config.get("one").prefix == ("nsenter", "-t", "71", "-m")


@pytest.mark.parametrize(
    ("way", "shell", "codes"),
    [
        (("--ssh", "pi@pi"), True, (255,)),
        (("--command", "/usr/bin/ssh -p 22 pi@pi"), True, (255,)),
        (("--command", "sudo -u pi"), False, (255,)),
        (("--docker", "box"), False, ()),
        (("--adb", "123"), True, ()),
    ],
)
def test_what_a_command_does_with_words_and_lost_connections_is_known_of_ssh(edgeprof, way, shell, codes):
    """However it was given."""
    assert edgeprof("target", "add", "pi", *way).code == 0
    assert (config.get("pi").shell, config.get("pi").link_codes) == (shell, codes)


def test_what_was_put_there_is_still_known_when_a_target_is_described_anew(edgeprof):
    """The same command and folder: only what is said about it changes."""
    edgeprof("target", "add", "pi", "--command", "env")
    config.save(replace(config.get("pi"), bundles=("edgeprof-1", "wheels-1")))
    told = edgeprof("target", "add", "pi", "--command", "env", "--device", "raspberry-pi-5-8gb")

    assert (told.code, "Replaced" in told.out, "target setup" in told.out) == (0, True, False)
    assert (config.get("pi").bundles, config.get("pi").device) == (("edgeprof-1", "wheels-1"), "raspberry-pi-5-8gb")
    told = edgeprof("target", "add", "pi", "--command", "nice")
    assert (told.code, "has a worker in" in told.err) == (2, True)


def test_targets_are_listed_with_what_is_known_of_them(edgeprof):
    """A machine that was probed and has no profile is not said to be unknown."""
    edgeprof("target", "add", "pi", "--command", "env")
    printed = " ".join(edgeprof("target", "list").out.split())

    assert "no profile known" in printed
    assert "not set up" in printed
