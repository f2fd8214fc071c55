"""The host's side of the agent: what a device answers, and how a connection can end, become words that say what to do."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from profiler import run
from profiler.errors import TargetError
from profiler.progress import Silent
from profiler.records import Environment
from profiler.study import make_study
from profiler.targets import bundle, config, setup
from profiler.targets.config import TargetSpec
from profiler.targets.remote import Agent, LinkLost

pytestmark = pytest.mark.process

ANSWERING = str(Path(__file__).with_name("answering.py"))
LOOK = {
    "ok": True, "protocol": 1, "python": [3, 11, 2], "implementation": "cpython", "machine": "x86_64", "system": "Linux",
    "libc": ["glibc", "2.35"], "folder": "/x", "writable": True, "free_bytes": 10**12, "modules": {}, "bundles": [], "files": {},
}  # fmt: skip


def answering(*answers: object) -> TargetSpec:
    return TargetSpec("dev", (sys.executable, "-I", "-S", ANSWERING, json.dumps(answers)), link_codes=(255,))


def running(code: str) -> TargetSpec:
    """A target whose command is this code."""
    return TargetSpec("dev", (sys.executable, "-I", "-S", "-c", code), link_codes=(255,))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("Welcome to Ubuntu 22.04\n", r"Welcome to Ubuntu 22\.04\): does its shell print something at log-in\?"),
        ("[]\n", "a list"), ("5\n", "a int"), ("null\n", "a NoneType"), ("[" * 100_000 + "\n", "what no agent writes"),
        ("\xff\xfe\n", "what no agent writes"), ("\x1b[2J\x07\n", r"\?\[2J\?"), (["x", 3 << 20], "a line without an end"),
        ('{"ok": true, "x": ' + "9" * 100_000 + "}\n", "what no agent writes"), ("\n", "what no agent writes"),
        ({"ok": False, "message": "no \x1b[31mspace"}, r"'dev': no \?\[31mspace\."), ({"ok": False}, "it gave no reason"),
        ({}, "no reason"), ({"ok": False, "message": {"a": ["\x1b"]}}, "'dev'"),
        ({"ok": False, "message": "x" * 100_000}, "x{500}"),
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_answers_that_no_agent_gives_are_told(answer, words):
    """Banners, other JSON, lines without an end, escapes: short, clean words."""
    with pytest.raises(TargetError, match=words) as caught, Agent(answering(answer)) as agent:
        agent.ask("look")

    assert len(str(caught.value)) < 1000
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        ("print('Host key verification failed.', file=sys.stderr); sys.exit(255)", TargetError, "compare the key"),
        ("print('user@h: Permission denied (publickey).', file=sys.stderr); sys.exit(255)", TargetError, "set up a key"),
        ("print('sh: 1: python3: not found', file=sys.stderr); sys.exit(127)", TargetError, "has no python3: install Python"),
        ("sys.exit(126)", TargetError, "--python PATH"),
        ("print('ssh: connect to h port 22: No route to host', file=sys.stderr); sys.exit(255)", LinkLost, "No route to host"),
        ("os.kill(os.getpid(), 9)", LinkLost, "exit code -9"),
        ("print('\\x1b[2JTraceback', file=sys.stderr); sys.exit(1)", TargetError, r"exit code 1\. It said: \?\[2JTraceback"),
        ("pass", TargetError, "exit code 0"),
    ],
    ids=["host key", "key", "no python", "not executable", "no route", "killed client", "error", "end"],
)  # fmt: skip
def test_every_end_of_the_client_says_what_to_do(code, kind, words):
    """ssh's own words, a missing interpreter, a killed client: a lost link only where trying again may help."""
    # A client may end before the first word is written to it.
    with pytest.raises(kind, match=words) as caught, Agent(running(f"import os, sys; {code}")) as agent:
        agent.ask("look")

    assert isinstance(caught.value, LinkLost) == (kind is LinkLost)


@pytest.mark.parametrize(
    "code",
    [
        "import time; time.sleep(600)", "import os, time; os.close(0); time.sleep(600)",
        "import sys, time\nwhile True: sys.stdout.write('x'); sys.stdout.flush(); time.sleep(0.05)",
        "import os\nwhile True: os.write(2, b'y' * 65536)",
    ],
    ids=["frozen", "deaf", "one byte at a time", "a log without an end"],
)  # fmt: skip
def test_a_device_that_does_not_answer_is_a_lost_link(code):
    """At its time, and without a process that stays."""
    agent = Agent(running(code), timeout_s=0.4)
    with pytest.raises(LinkLost), agent:
        agent.ask("look")

    assert agent._process.poll() is not None


def test_a_command_that_is_not_there_is_told():
    """With its name."""
    with pytest.raises(TargetError, match=r"cannot reach 'dev': /no/such/ssh: No such file"):
        Agent(TargetSpec("dev", ("/no/such/ssh",)))


@pytest.mark.parametrize(
    "answers",
    [
        [{"ok": True, "offset": "5"}], [{"ok": True, "offset": -1}], [{"ok": True, "offset": True}], [{"ok": True}],
        [{"ok": True, "offset": 0}, {"ok": True, "offset": 3}], [{"ok": True, "offset": 0}, {"ok": True, "offset": 10**9}],
        [{"ok": True, "offset": 1e3}], [{"ok": True, "installed": "yes", "offset": None}],
    ],
    ids=str,
)  # fmt: skip
def test_a_transfer_believes_no_offset_that_cannot_be(tmp_path, answers):
    """Neither does it loop for ever nor send what is not there."""
    archive = tmp_path / "archive"
    archive.write_bytes(b"x" * 100)
    with Agent(answering(*answers)) as agent, pytest.raises(TargetError):
        agent.send_bundle("b", archive, "0" * 64, lambda *_: None)


def test_a_device_that_never_installs_is_left_after_two_transfers(tmp_path):
    """It says that it got everything, and that it has not."""
    archive = tmp_path / "archive"
    archive.write_bytes(b"x" * 100)
    once = [{"ok": True, "offset": 0}, {"ok": True, "offset": 100}, {"ok": True, "installed": False}]
    with Agent(answering(*once * 3)) as agent, pytest.raises(TargetError, match="twice"):
        agent.send_bundle("b", archive, "0" * 64, lambda *_: None)


@pytest.fixture
def no_wheels(tmp_path, monkeypatch):
    """Bundles without the package index, and a list of targets of its own."""
    monkeypatch.setenv("EDGEPROF_TARGETS", str(tmp_path / "targets.toml"))
    monkeypatch.setattr(setup, "_made", lambda *_: None)
    return tmp_path / "cache"


def set_up(spec: TargetSpec, cache) -> setup.SetUp:
    config.save(spec)
    return setup.set_up(spec, ("ort",), cache, lambda *_: None)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"writable": False, "folder": "/ro\x1b[2J"}, r"/ro\?\[2J cannot be written: choose another place with --folder"),
        ({"free_bytes": 5}, "0 MB free where .* are needed"), ({"python": [3, 8, 1]}, r"Python 3\.8 .* --python python3\.11"),
        ({"python": "3.11"}, "does not tell its Python"), ({"python": []}, "does not tell"),
        ({"python": ["3", "11"]}, "does not tell"),
        ({"libc": ["", ""]}, "need glibc"), ({"libc": ["musl", "1.2"]}, "Alpine"), ({"libc": 5}, "need glibc"),
        ({"machine": "armv7l"}, "32-bit system on a 64-bit board"), ({"machine": ["x"]}, "bundles exist for"),
        ({"system": "Darwin\x1b"}, r"is Darwin\? on"), ({"implementation": "pypy"}, "with pypy"),
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_what_is_missing_on_a_device_is_told_before_anything_is_sent(no_wheels, changed, words):
    """Room, rights, interpreter, C library, architecture; nothing is remembered of the attempt."""
    with pytest.raises(TargetError, match=words) as caught:
        set_up(answering({**LOOK, **changed}), no_wheels)

    assert str(caught.value).isprintable()
    assert not any(known.bundles for known in config.load().values())


@pytest.mark.parametrize("bundles", [5, "edgeprof-1", {"a": 1}, [5, ["x"], None], None])
def test_a_list_of_bundles_that_is_none_means_that_none_are_there(no_wheels, bundles):
    """The bundle is offered then, and that answer decides."""
    done = set_up(
        answering({**LOOK, "bundles": bundles, "free_bytes": "many"}, {"ok": True, "installed": True}, {"ok": True}),
        no_wheels,
    )

    assert done.spec.bundles == (bundle.modules_name(),)
    assert done.sent == (bundle.modules_name(),)


def test_versions_of_a_device_hold_no_escapes(no_wheels):
    """They are shown to people; packages that nobody asked for are not kept."""
    looked = {**LOOK, "modules": {"numpy": "\x1b[2J1.26", "evil\x1b": "1", "tensorrt": ["10"]}}
    there = bundle.device("dev", looked)

    assert dict(there.modules) == {"numpy": "?[2J1.26", "tensorrt": "['10']"}


def test_runtimes_that_cannot_be_put_anywhere_are_refused_first(no_wheels):
    """Without a connection."""
    with pytest.raises(TargetError, match=r"no runtime 'tensorrt'.*there are: ort, ov"):
        setup.set_up(running("raise SystemExit(9)"), ("tensorrt",), no_wheels, lambda *_: None)


def test_a_target_is_set_up_checked_and_removed_for_real(tmp_path, monkeypatch):
    """On this machine behind a shell, as ssh would: our modules travel, a worker starts from them alone, nothing stays."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("EDGEPROF_TARGETS", str(tmp_path / "targets.toml"))
    monkeypatch.setattr(setup, "_made", lambda *_: None)
    spec = TargetSpec(
        "here", ("env", f"HOME={home}", "sh", "-c"), shell=True, python=sys.executable, folder="~/a b/'c'"
    )
    done = set_up(spec, tmp_path / "cache")
    again = set_up(done.spec, tmp_path / "cache")
    found = setup.check(config.get("here"))
    place = setup.place("here")
    removed = setup.remove(config.get("here"))

    assert (done.sent, again.sent) == ((bundle.modules_name(),), ())
    assert found.worker["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found.backends["trt"][0] is False
    assert place.environment.logical_cores >= 1
    assert removed
    assert list(home.iterdir()) == []
    assert config.get("here").bundles == ()


# Lost links during a run ----------------------------------------------------------------------------------------------


class Links:
    """A job that counts, whose link is lost so many times."""

    def __init__(self, losses: int, stored: list[int] | None = None) -> None:
        self.losses, self.counts, self.naps, self.notes = losses, list(stored or []), [], []
        self.run_id, self.resume = "r", "edgeprof run --resume latest"
        self.store = SimpleNamespace(count=lambda _: self.counts.pop(0) if self.counts else 0)
        self.progress = SimpleNamespace(note=self.notes.append)

    def measure(self) -> None:
        self.losses -= 1
        if self.losses >= 0:
            raise LinkLost("the connection to 'dev' was lost.")


def test_a_lost_link_is_tried_again_with_growing_pauses():
    """Nothing is asked of the clock but the pauses; what it waits for is told."""
    job = Links(losses=3)
    run.through_links(job, job.measure, job.naps.append)

    assert job.naps == list(run.LINK_PAUSES_S[:3])
    assert job.notes[0] == "the connection to 'dev' was lost. Trying again in 1 s."


def test_a_link_that_stays_away_ends_with_the_command_that_goes_on():
    """After the last pause."""
    job = Links(losses=100)
    with pytest.raises(LinkLost, match=r"It did not come back; `edgeprof run --resume latest` goes on when it does"):
        run.through_links(job, job.measure, job.naps.append)

    assert job.naps == list(run.LINK_PAUSES_S)


def test_a_flapping_link_that_gets_somewhere_is_followed_for_as_long_as_it_does():
    """Every new record begins the pauses anew."""
    job = Links(losses=20, stored=list(range(20)))
    run.through_links(job, job.measure, job.naps.append)

    assert job.naps == [run.LINK_PAUSES_S[0]] * 20


@pytest.mark.parametrize(("stumbles", "known"), [(0, True), (2, True), (3, False)])
def test_a_stumble_at_the_very_beginning_ends_no_run(monkeypatch, stumbles, known):
    """Two further tries; then the host is more likely mistyped than busy."""
    left = [LinkLost("the connection to 'dev' was lost.")] * stumbles
    here = Environment("h", "x86_64", "Linux", "3.11", "cpu", (), 1, 1, 1, None, (), {})

    def place(name: str) -> setup.Place:
        if left:
            raise left.pop()
        return setup.Place(here, emulated=False, device=None)

    monkeypatch.setattr(run.setup, "place", place)
    monkeypatch.setattr(run, "LINK_PAUSES_S", (0.0, 0.0, 0.0))
    study = make_study(model="m.onnx", targets=("dev",))
    if known:
        assert list(run._places(study, here, Silent())["targets"]) == ["dev"]
    else:
        with pytest.raises(LinkLost):
            run._places(study, here, Silent())


def test_other_errors_are_no_lost_link():
    """They pass at once."""
    job = Links(losses=0)

    def fail() -> None:
        raise TargetError("it is not set up")

    with pytest.raises(TargetError, match="not set up"):
        run.through_links(job, fail, job.naps.append)
    assert job.naps == []


def test_a_target_keeps_its_settings_when_it_is_set_up(no_wheels):
    """Only its bundles change."""
    spec = replace(
        answering(LOOK, {"ok": True, "installed": True}, {"ok": True}),
        device="jetson",
        emulated=True,
        extra={"later": [1]},
    )
    done = set_up(spec, no_wheels)

    assert replace(done.spec, bundles=()) == spec
    assert config.get("dev") == done.spec
