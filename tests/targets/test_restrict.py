"""The line for authorized_keys: what sshd makes of it is the worker's command, for hostile folders too, and nothing else."""

from __future__ import annotations

import re
import sys
from dataclasses import replace

import pytest

from profiler.errors import TargetError
from profiler.targets import bundle, config, setup
from profiler.targets.base import Target
from profiler.targets.config import TargetSpec
from profiler.targets.process import WorkerProcess
from profiler.targets.remote import Agent
from profiler.targets.restrict import authorized_key

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMJKf3KQHcLTk7Bg7AVAG9WGWveiqE+HsWstJreOEJon me@laptop"
SPEC = TargetSpec("dev", config.ssh("host"), shell=True, bundles=(bundle.modules_name(), "wheels-1"))


def forced(line: str) -> str:
    """The command, as sshd reads it out of the line: a backslash counts only before a quote (auth2-pubkeyfile.c)."""
    match = re.match(r'restrict,command="((?:\\"|[^"])*)" (.*)', line)
    assert match
    assert match[2] == KEY
    return match[1].replace('\\"', '"')


def test_the_line_holds_the_key_to_the_command_that_a_run_uses():
    """The same words as ssh would be given, restricted in everything else."""
    line = authorized_key(SPEC, KEY + "\n")

    assert line.startswith('restrict,command="')
    assert "\n" not in line
    assert forced(line) == setup.base.remote(SPEC).command[-1]


@pytest.mark.process
@pytest.mark.parametrize("folder", ["a b", 'quote"', "o'clock", 'back\\"slash', "$(touch pwned)", "\\"])
def test_the_forced_command_starts_a_worker_and_no_agent(tmp_path, monkeypatch, folder):
    """Whatever the folder is called and whatever the host asks for, which arrives in a variable that nobody reads."""
    monkeypatch.setenv("EDGEPROF_TARGETS", str(tmp_path / "targets.toml"))
    monkeypatch.setattr(setup, "_made", lambda *_: None)
    monkeypatch.setenv("SSH_ORIGINAL_COMMAND", f"touch {tmp_path}/pwned")
    monkeypatch.chdir(tmp_path)
    place = tmp_path / folder
    there = TargetSpec("dev", ("sh", "-c"), shell=True, python=sys.executable, folder=str(place))
    config.save(there)
    done = setup.set_up(there, ("ort",), tmp_path / "cache", lambda *_: None)
    command = forced(authorized_key(replace(done.spec, prefix=config.ssh("host")), KEY))
    with WorkerProcess(Target("dev", ("sh", "-c", command), shares_files=False)) as worker:
        hello = worker.greet()
    # An agent's text is no frame: sshd would start the worker all the same.
    held = TargetSpec("dev", ("sh", "-c", command))
    with Agent(held) as agent, pytest.raises(TargetError, match="take a key that is not restricted"):
        agent.ask("look")

    assert hello["ok"]
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    "key",
    [
        "", "ssh-ed25519", "-----BEGIN OPENSSH PRIVATE KEY-----", KEY + "\n" + KEY, 'command="sh" ' + KEY, "ssh-rsa AAAA x\ny",
        "ssh-ed25519 AAAA \x1b[2J", "/home/me/.ssh/id_ed25519.pub",
    ],
)  # fmt: skip
def test_what_is_no_public_key_is_refused(key):
    """A private key least of all; no second line, no second option."""
    with pytest.raises(TargetError, match="no public key"):
        authorized_key(SPEC, key)


@pytest.mark.parametrize(
    "key", ["ecdsa-sha2-nistp256 AAAA=", "sk-ssh-ed25519@openssh.com AAAA== me", "ssh-rsa AAAAB3 "]
)
def test_every_kind_of_public_key_is_taken(key):
    """With and without a name."""
    assert authorized_key(SPEC, key).endswith(key.strip())


def test_only_ssh_can_hold_a_key_to_a_command():
    """And only for a worker that is there."""
    with pytest.raises(TargetError, match="not reached by ssh"):
        authorized_key(replace(SPEC, prefix=("docker", "exec", "-i", "box"), shell=False), KEY)
    with pytest.raises(TargetError, match="edgeprof target setup dev"):
        authorized_key(replace(SPEC, bundles=()), KEY)
