"""The agent, run as devices run it: as text, in a process of its own, with its loader. It touches nothing but its folder."""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import subprocess
import sys
import tarfile
from importlib.resources import files
from pathlib import Path

import pytest

from profiler.errors import TargetError
from profiler.targets import remote
from profiler.targets.config import TargetSpec
from profiler.targets.remote import Agent

pytestmark = pytest.mark.process


@pytest.fixture
def device(tmp_path):
    """A target that is this machine, behind `env` as the prefix; its home is an empty account."""
    home = tmp_path / "home"
    home.mkdir()
    return TargetSpec("dev", ("env", f"HOME={home}"), python=sys.executable, folder="~/.cache/deep/edgeprof")


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


def archive_of(tmp_path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> tuple[Path, str]:
    path = tmp_path / f"archive-{len(list(tmp_path.iterdir()))}.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for info, data in members:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def member(name: str, mode: int = 0o644, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.mode, info.type, info.linkname = mode, kind, link
    return info


def untold(*_: object) -> None:
    """Progress that nobody looks at."""


def test_a_look_changes_nothing(device, home):
    """It tells what decides which bundle fits; no folder is made for it."""
    with Agent(device) as agent:
        found = agent.ask("look")

    assert found["python"] == list(sys.version_info[:3])
    assert found["folder"] == str(home / ".cache/deep/edgeprof")
    assert found["writable"] is True
    assert found["free_bytes"] > 0
    assert found["bundles"] == []
    assert "numpy" in found["modules"]
    assert found["files"]["proc/cpuinfo"]
    assert list(home.iterdir()) == []


def test_a_bundle_comes_once_and_leaves_without_a_trace(device, home, tmp_path):
    """Sent, unpacked, not sent again, taken away with the folders above that were made for it."""
    path, sha256 = archive_of(
        tmp_path,
        (member("pkg/__init__.py"), b"x = 5"),
        (member("pkg/tool.sh", 0o755), b"#!"),
        (member("other.py"), b""),
    )
    told: list[tuple[int, int]] = []
    with Agent(device) as agent:
        first = agent.send_bundle("edgeprof-1", path, sha256, lambda *sizes: told.append(sizes))
        second = agent.send_bundle("edgeprof-1", path, sha256, untold)
        found = agent.ask("look")["bundles"]
    place = home / ".cache/deep/edgeprof"
    unpacked = (place / "bundles/edgeprof-1/pkg/__init__.py").read_bytes()
    left = sorted(str(one.relative_to(place)) for one in place.rglob("*") if one.is_file())
    mode = stat.S_IMODE(place.stat().st_mode)
    with Agent(device) as agent:
        removed, again = agent.ask("remove")["removed"], agent.ask("remove")["removed"]

    assert (first, second, found, unpacked) == (True, False, ["edgeprof-1"], b"x = 5")
    assert told[-1] == (path.stat().st_size, path.stat().st_size)
    assert left == [f"bundles/edgeprof-1/{name}" for name in ("other.py", "pkg/__init__.py", "pkg/tool.sh")] + [
        "edgeprof-target.json"
    ]
    assert mode == 0o700
    assert (removed, again) == (True, False)
    assert list(home.iterdir()) == []


def test_folders_above_that_hold_other_things_stay(device, home, tmp_path):
    """What was there before, and what came meanwhile."""
    (home / ".cache").mkdir()
    path, sha256 = archive_of(tmp_path, (member("a"), b""))
    with Agent(device) as agent:
        agent.send_bundle("b", path, sha256, untold)
        (home / ".cache/deep/mine").write_text("x")
        agent.ask("remove")

    assert [str(one.relative_to(home)) for one in sorted(home.rglob("*"))] == [
        ".cache",
        ".cache/deep",
        ".cache/deep/mine",
    ]


def test_a_broken_transfer_goes_on_where_it_stopped(device, tmp_path, monkeypatch):
    """Another connection sends only the rest."""
    path, sha256 = archive_of(tmp_path, (member("a"), os.urandom(5000)))
    size = path.stat().st_size
    with Agent(device) as agent:
        agent.ask("put", path.read_bytes()[:1500], name="b", offset=0)
    monkeypatch.setattr(remote, "_CHUNK_BYTES", 1000)
    told: list[int] = []
    with Agent(device) as agent:
        assert agent.send_bundle("b", path, sha256, lambda sent, _: told.append(sent))

    assert told[0] == 2500
    assert told[-1] == size


@pytest.mark.parametrize("rubbish", [b"x" * 700, b"y" * 9000], ids=["shorter", "longer"])
def test_what_another_archive_left_is_replaced(device, home, tmp_path, rubbish):
    """Damage is found by the hash and sent again from the beginning; more than there can be is begun anew."""
    path, sha256 = archive_of(tmp_path, (member("a"), os.urandom(3000)))
    with Agent(device) as agent:
        agent.ask("put", rubbish, name="b", offset=0)
        assert agent.send_bundle("b", path, sha256, untold)

    assert len((home / ".cache/deep/edgeprof/bundles/b/a").read_bytes()) == 3000


def test_an_archive_that_never_arrives_whole_is_told(device, home, tmp_path):
    """Twice wrong is not a broken link. Nothing of it stays."""
    path, _ = archive_of(tmp_path, (member("a"), b"x"))
    with Agent(device) as agent, pytest.raises(TargetError, match="arrived damaged on 'dev', twice"):
        agent.send_bundle("b", path, "0" * 64, untold)

    assert [one.name for one in (home / ".cache/deep/edgeprof").rglob("*") if one.is_file()] == ["edgeprof-target.json"]


def test_a_gap_in_a_transfer_is_refused(device):
    """Bytes that do not follow what is here would never fit the hash."""
    with Agent(device) as agent:
        agent.ask("put", b"abc", name="b", offset=0)
        with pytest.raises(TargetError, match="3 bytes are here, the host goes on at 10"):
            agent.ask("put", b"abc", name="b", offset=10)
        assert agent.ask("offer", name="b")["offset"] == 3


@pytest.mark.parametrize(
    "bad",
    [
        member("../escape"), member("a/../../escape"), member("/escape"), member("a/../../../../../../../escape"),
        member("link", kind=tarfile.SYMTYPE, link="../../../../escape"), member("link", kind=tarfile.SYMTYPE, link="a"),
        member("hard", kind=tarfile.LNKTYPE, link="../escape"), member("hard", kind=tarfile.LNKTYPE, link="first"),
        member("device", kind=tarfile.CHRTYPE), member("block", kind=tarfile.BLKTYPE), member("fifo", kind=tarfile.FIFOTYPE),
    ],
    ids=lambda info: f"{info.type.decode()} {info.name}",
)  # fmt: skip
def test_an_archive_that_would_leave_its_folder_is_refused(device, home, tmp_path, bad):
    """Parents, roots, links of both kinds, devices, pipes: nothing of the archive appears, not even what is harmless."""
    path, sha256 = archive_of(tmp_path, (member("first"), b"ok"), (bad, b""))
    before = set(tmp_path.rglob("*"))
    with Agent(device) as agent, pytest.raises(TargetError, match="no plain file below it"):
        agent.send_bundle("b", path, sha256, untold)

    new = {
        str(one.relative_to(home / ".cache/deep/edgeprof"))
        for one in set(tmp_path.rglob("*")) - before
        if one.is_file()
    }
    assert new == {"edgeprof-target.json", "incoming/b.tar"}


def test_files_of_an_archive_get_no_rights_of_others(device, home, tmp_path):
    """No setuid, no setgid, nothing that others may write."""
    path, sha256 = archive_of(
        tmp_path,
        (member("setuid", 0o6777), b""),
        (member("open", 0o666), b""),
        (member("dir", 0o2777, tarfile.DIRTYPE), b""),
    )
    with Agent(device) as agent:
        agent.send_bundle("b", path, sha256, untold)
    modes = {one.name: stat.S_IMODE(one.stat().st_mode) for one in (home / ".cache/deep/edgeprof/bundles/b").iterdir()}

    assert all(mode & 0o7022 == 0 for mode in modes.values()), modes


@pytest.mark.parametrize("content", [b"no tar at all", b"", b"\x1f\x8b\x08 half a gzip"])
def test_what_is_no_archive_is_refused(device, home, tmp_path, content):
    """With the right hash, too; no half-unpacked folder stays."""
    path = tmp_path / "bad"
    path.write_bytes(content)
    with Agent(device) as agent:
        if not content:
            agent.ask("put", b"", name="b", offset=0)
        with pytest.raises(TargetError):
            agent.send_bundle("b", path, hashlib.sha256(content).hexdigest(), untold)

    assert list((home / ".cache/deep/edgeprof/bundles").iterdir()) == []


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".", "a" * 101, "x\0", "\u0661", "a b", ".hidden"])
@pytest.mark.parametrize("command", ["offer", "put", "install"])
def test_names_that_are_paths_are_refused(device, home, command, name):
    """Before anything is looked at."""
    with Agent(device) as agent, pytest.raises(TargetError, match="no name of a bundle"):
        agent.ask(command, name=name, offset=0, sha256="0" * 64)

    assert list(home.iterdir()) == []


def test_a_folder_with_other_things_is_never_ours(device, home):
    """Neither filled nor removed, empty of our mark or not."""
    mine = home / ".cache/deep/edgeprof"
    mine.mkdir(parents=True)
    (mine / "thesis.tex").write_text("x")
    with Agent(device) as agent:
        with pytest.raises(TargetError, match="holds other things: choose a folder of its own with --folder"):
            agent.ask("put", b"x", name="b", offset=0)
        with pytest.raises(TargetError, match="not made by edgeprof: not removed"):
            agent.ask("remove")

    assert (mine / "thesis.tex").read_text() == "x"


@pytest.mark.parametrize("folder", ["~", "/", "~/", "~/x/.."])
def test_a_home_is_no_folder_of_ours(device, home, folder):
    """Not even an empty one: removing the target would remove it."""
    from dataclasses import replace

    with (
        Agent(replace(device, folder=folder)) as agent,
        pytest.raises(TargetError, match="would be removed with everything"),
    ):
        agent.ask("put", b"x", name="b", offset=0)

    assert list(home.iterdir()) == []


def test_a_link_to_a_folder_of_ours_is_not_followed_when_removing(device, home, tmp_path):
    """What stands behind it stays."""
    real = tmp_path / "real"
    real.mkdir()
    (real / "edgeprof-target.json").write_text('{"made": []}')
    (home / ".cache/deep").mkdir(parents=True)
    (home / ".cache/deep/edgeprof").symlink_to(real)
    with Agent(device) as agent, pytest.raises(TargetError, match="symbolic link"):
        agent.ask("remove")

    assert real.is_dir()


@pytest.mark.parametrize("mark", ["", "{", "[]", '{"made": 5}', '{"made": ["/", "/etc", "/home"]}'])
def test_a_damaged_mark_still_lets_itself_be_removed(device, home, mark):
    """A full disk may have cut it short; folders that are not above ours, or not empty, stay whatever it says."""
    mine = home / ".cache/deep/edgeprof"
    mine.mkdir(parents=True)
    (mine / "edgeprof-target.json").write_text(mark)
    with Agent(device) as agent:
        assert agent.ask("remove")["removed"] is True

    assert not mine.exists()
    assert Path("/etc").is_dir()


def test_keep_takes_the_others_away(device, home, tmp_path):
    """Old bundles, half-unpacked ones, and what broken transfers left; artifacts stay."""
    path, sha256 = archive_of(tmp_path, (member("a"), b""))
    place = home / ".cache/deep/edgeprof"
    with Agent(device) as agent:
        for name in ("old", "new"):
            agent.send_bundle(name, path, sha256, untold)
        agent.ask("put", b"half", name="half", offset=0)
        (place / "bundles/.new.77").mkdir()
        (place / "artifacts/model").write_bytes(b"x")
        gone = agent.ask("keep", names=["new"])["removed"]
    left = sorted(str(one.relative_to(place)) for one in place.rglob("*") if one.is_file())

    assert sorted(gone) == [".new.77", "old"]
    assert left == ["artifacts/model", "bundles/new/a", "edgeprof-target.json"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_told(device, home):
    """By look, and in words by whatever tries."""
    home.chmod(0o500)
    try:
        with Agent(device) as agent:
            assert agent.ask("look")["writable"] is False
            with pytest.raises(TargetError, match="Permission denied"):
                agent.ask("put", b"x", name="b", offset=0)
    finally:
        home.chmod(0o700)


def test_a_full_disk_is_told_and_the_transfer_goes_on_later(device, home, tmp_path):
    """A limit on the size of files stands for the disk: what fitted stays, and another connection brings the rest."""
    from dataclasses import replace

    path, sha256 = archive_of(tmp_path, (member("a"), os.urandom(50_000)))
    small = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); sys.argv = sys.argv[2:]; exec(sys.argv[0])"
    )
    wrapper = tmp_path / "wrapper"
    wrapper.write_text(f"#!/bin/sh\nHOME={home} exec {sys.executable} -c '{small}' \"$@\"\n")
    wrapper.chmod(0o755)
    with (
        Agent(replace(device, prefix=("env",), python=str(wrapper))) as agent,
        pytest.raises(TargetError, match="File too large"),
    ):
        agent.send_bundle("b", path, sha256, untold)
    told: list[int] = []
    with Agent(device) as agent:
        offset = agent.ask("offer", name="b")["offset"]
        agent.send_bundle("b", path, sha256, lambda sent, _: told.append(sent))

    assert 0 < offset <= 20_000
    assert len((home / ".cache/deep/edgeprof/bundles/b/a").read_bytes()) == 50_000


def conversation(folder: Path, sent: bytes) -> list[dict]:
    """What the agent answers to raw bytes, until it ends by itself."""
    text = files("profiler.targets").joinpath("agent.py").read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", remote._LOADER, str(folder)], input=b"%d\n" % len(text) + text + sent,
        capture_output=True, timeout=60, check=True,
    )  # fmt: skip
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    "line",
    [
        b"not json", b"[]", b"5", b'{"command": "dance"}', b"{}", b'{"command": ["look"]}', b'{"command": "keep"}',
        b'{"command": "keep", "names": 5}', b'{"command": "put", "name": "b"}', b'{"command": "put", "name": "b", "offset": "x"}',
        b'{"command": "look", "bytes": -1}', b'{"command": "look", "bytes": 99999999999}',
        b'{"command": "look", "bytes": "many"}',
        b"[" * 100_000, b"\xff\xfe", b'{"command": "keep", "names": ["../.."]}',
        b'{"command": "install", "name": "nothing", "sha256": ""}',
    ],
    ids=lambda line: line[:40].decode(errors="replace"),
)  # fmt: skip
def test_every_line_gets_an_answer_and_the_next_one_too(tmp_path, line):
    """Whatever comes, the agent says no in words and lives on; it makes nothing but its own folder."""
    answers = conversation(tmp_path / "f", line + b"\n" + b'{"command": "offer", "name": "b"}\n')

    assert [answer["ok"] for answer in answers] == [False, True]
    assert answers[0]["message"]
    assert {one.name for one in tmp_path.iterdir()} <= {"f"}


def test_a_pipe_that_ends_in_the_middle_ends_the_agent(tmp_path):
    """In a line, and in the bytes after one."""
    assert conversation(tmp_path / "f", b'{"command": "lo') == []
    (answer,) = conversation(tmp_path / "f", b'{"command": "put", "name": "b", "offset": 0, "bytes": 10}\n1234')

    assert (answer["ok"], "after 4 of 10 bytes" in answer["message"]) == (False, True)


def test_the_agent_is_text_that_an_old_python_reads():
    """Python 3.7's grammar, so that a device whose Python is too old can say so."""
    import ast

    text = files("profiler.targets").joinpath("agent.py").read_text(encoding="utf-8")

    ast.parse(text, feature_version=(3, 7))
