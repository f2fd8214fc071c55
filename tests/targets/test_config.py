"""Targets are remembered as they were given, and what would be an option or a second command is refused."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from datetime import date, datetime, time, timezone

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from profiler.errors import StudyError, TargetError
from profiler.targets import config
from profiler.targets.config import TargetSpec

PRINTABLE = st.text(
    st.characters(min_codepoint=32, max_codepoint=0x2FFF).filter(str.isprintable), min_size=1, max_size=20
)
VALUES = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=8)
    | st.dates(date(1, 1, 1)) | st.datetimes(datetime(1, 1, 1)) | st.times()
    | st.datetimes(datetime(1, 1, 1), timezones=st.just(timezone.utc)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    path = tmp_path / "config" / "targets.toml"
    monkeypatch.setenv("EDGEPROF_TARGETS", str(path))
    return path


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(
    st.builds(
        TargetSpec,
        st.from_regex(r"[a-z0-9][a-z0-9-]{0,39}", fullmatch=True).filter(lambda name: name != "local"),
        st.lists(PRINTABLE, min_size=1, max_size=4).map(tuple),
        shell=st.booleans(),
        link_codes=st.lists(st.integers(0, 255), max_size=2).map(tuple),
        python=PRINTABLE.filter(lambda text: not text.startswith("-")),
        folder=PRINTABLE,
        emulated=st.booleans(),
        device=st.none() | PRINTABLE,
        bundles=st.lists(PRINTABLE, max_size=2).map(tuple),
        extra=st.dictionaries(
            st.text(max_size=8).filter(lambda key: key not in TargetSpec.__dataclass_fields__), VALUES, max_size=3
        ),
    )
)
def test_a_target_comes_back_as_it_was_saved(place, spec):
    """Quotes, backslashes, DEL, dates, nested settings of a later edgeprof: whatever TOML reads is written again."""
    place.unlink(missing_ok=True)
    config.save(spec)

    assert config.load() == {spec.name: spec}
    config.save(spec)
    assert config.get(spec.name) == spec


def test_what_a_later_edgeprof_keeps_survives_an_older_one(place):
    """Saving another target rewrites the file, with everything that was in it."""
    place.parent.mkdir()
    place.write_text(
        '[jetson]\nprefix = ["ssh", "j"]\nlease = {until = 2027-01-02T03:04:05Z, at = [07:32:00, 1979-05-27]}\n"odd key" = inf\n'
    )
    config.save(TargetSpec("other", ("true",)))

    assert config.get("jetson").extra == {
        "lease": {
            "until": datetime(2027, 1, 2, 3, 4, 5, tzinfo=timezone.utc),
            "at": [time(7, 32), date(1979, 5, 27)],
        },
        "odd key": float("inf"),
    }


def test_a_forgotten_target_is_gone_and_the_others_stay():
    """Only its own lines go."""
    for name in ("one", "two"):
        config.save(TargetSpec(name, ("true",)))
    config.forget("one")

    assert list(config.load()) == ["two"]
    with pytest.raises(StudyError, match="unknown target 'one'"):
        config.get("one")


@pytest.mark.parametrize(
    "name", ["", "local", "Jetson", "-x", "a b", "a" * 41, "a{cpus=1}", "a/b", "a.b", "a\n", "ä", "a=b"]
)
def test_names_that_would_be_something_else_are_refused(name):
    """Local, a target with conditions, a path, an option, a second table of the file."""
    with pytest.raises(TargetError, match="cannot name a target"):
        config.save(TargetSpec(name, ("true",)))


@pytest.mark.parametrize(
    "changed",
    [
        {"prefix": ()}, {"prefix": ("ssh", "")}, {"python": "-c"}, {"python": ""}, {"python": "python3\nrm"},
        {"folder": "/x\x1b[2J"}, {"prefix": ("ssh", "host\0")}, {"folder": "/x\nProxyCommand=y"},
    ],
)  # fmt: skip
def test_words_that_no_command_has_are_refused(place, changed):
    """Empty ones, control characters, and an interpreter that is an option."""
    with pytest.raises(TargetError):
        config.save(replace(TargetSpec("x", ("ssh", "host")), **changed))

    assert not place.exists()


@pytest.mark.parametrize(
    "content",
    [
        "x = 1", "[x]\nprefix = 'ssh'", "[x]\nprefix = [1]", "[x]\nprefix = ['a']\nshell = 'yes'", "[x]\n", "not toml",
        "[x]\nprefix = ['a']\nlink_codes = ['255']", "[x]\nprefix = ['a']\nbundles = [1]", "[x]\nprefix = ['a']\ndevice = 5",
        "[Local]\nprefix = ['a']", "[x]\nprefix = ['a']\npython = '-c'", "\xff",
    ],
)  # fmt: skip
def test_a_file_that_somebody_broke_is_told(place, content):
    """With its name, and nothing else than an error for people."""
    place.parent.mkdir()
    place.write_bytes(content.encode("latin-1"))

    with pytest.raises(TargetError):
        config.load()


def test_a_huge_file_is_not_read(place):
    """It is not what edgeprof writes."""
    place.parent.mkdir()
    with place.open("wb") as file:
        file.truncate(2 << 20)

    with pytest.raises(TargetError, match="more than 1048576 bytes"):
        config.load()


@pytest.mark.parametrize(
    "host",
    [
        "-oProxyCommand=touch /tmp/x",
        "-F",
        "",
        "a b",
        "host\nProxyCommand x",
        "user@-oProxyCommand=x",
        "\x1b[2J",
        "a\tb",
    ],
)
def test_a_host_that_ssh_would_take_for_an_option_is_refused(host):
    """Also behind a user's name, and with spaces that a config file would split."""
    with pytest.raises(TargetError, match="is no host"):
        config.ssh(host)


@pytest.mark.parametrize("make", [config.docker, config.kubectl, config.adb])
@pytest.mark.parametrize("name", ["", "--privileged", "-it", "a b", "x\n"])
def test_names_of_containers_and_devices_are_no_options(make, name):
    """The same for docker, kubectl and adb."""
    with pytest.raises(TargetError):
        make(name)


def test_a_namespace_is_no_option():
    """Nor is an empty one a namespace."""
    for pod in ("-n/x", "/x", "a/-x"):
        with pytest.raises(TargetError):
            config.kubectl(pod)
    assert config.kubectl("team/pod") == ("kubectl", "exec", "-i", "-n", "team", "pod", "--")


def test_ssh_asks_nobody_and_believes_no_unknown_key():
    """Whatever the user's own configuration says: these options come first, and the host last, after the end of options."""
    words = config.ssh("user@host", config="/my/config")
    options = {words[place + 1] for place, word in enumerate(words) if word == "-o"}

    assert words[:2] == ("ssh", "-T")
    assert words[-2:] == ("--", "user@host")
    assert {"BatchMode=yes", "StrictHostKeyChecking=yes", "ClearAllForwardings=yes", "ForwardAgent=no"} <= options
    assert words[2:4] == ("-F", "/my/config")


HOSTILE = [
    "/plain", "/with space", "/quote'", '/quote"', "/$(touch x)", "/`id`", "/a;b", "/a&&b", "/a|b", "/*", "/!!", "/\\", "/\\'",
    "/~", "~/x", "/a>b", "/#", "/%s", "/{a,b}", "/$HOME", "/ü€", "/-rf", "/'\"'\"'", "/[a-z]", "/a\\nb", "/(x)", "/=cmd",
]  # fmt: skip
PRINT = "import json,sys;print(json.dumps(sys.argv[1:]))"


@pytest.mark.process
@pytest.mark.parametrize("shell", [("sh", "-c"), ("bash", "-c"), ("sh", "-ec")], ids=" ".join)
def test_a_shell_on_the_other_side_sees_the_same_words(tmp_path, shell):
    """Folders with every character that a shell knows arrive as they are, through two real shells; nothing else is run."""
    import json

    spec = TargetSpec("x", shell, shell=True, python=sys.executable)
    done = subprocess.run(
        config.words(spec, "-c", PRINT, *HOSTILE), cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )

    assert json.loads(done.stdout) == HOSTILE
    assert list(tmp_path.iterdir()) == []


@pytest.mark.process
@pytest.mark.parametrize(("code", "expected"), [("exit(7)", 7), ("import os; os.kill(os.getpid(), 9)", 137)])
def test_the_shell_passes_on_how_the_worker_ended(code, expected):
    """A worker that was killed is 137 and not the end of the shell, which ssh would report as a lost connection."""
    spec = TargetSpec("x", ("sh", "-c"), shell=True, python=sys.executable)

    assert subprocess.run(config.words(spec, "-c", code), timeout=60, check=False).returncode == expected


def test_without_a_shell_the_words_stay_apart():
    """Docker, nsenter and emulators get an argument list."""
    spec = TargetSpec("x", ("docker", "exec", "-i", "box"), python="python3.11")

    assert config.words(spec, "-c", "a b") == ("docker", "exec", "-i", "box", "python3.11", "-c", "a b")


def test_targets_that_are_saved_at_the_same_time_are_all_kept(place):
    """Reading and writing is one step: nobody writes back what he read before another's target was there."""
    code = (
        "import sys; from profiler.targets import config\n"
        "for i in range(8): config.save(config.TargetSpec(f'{sys.argv[1]}{i}', ('true',)))"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, name]) for name in "ab"]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    assert sorted(config.load()) == sorted(f"{name}{i}" for name in "ab" for i in range(8))


def test_whoever_comes_second_to_a_lock_is_told_so(place):
    """The first one is not disturbed, and afterwards it is free again."""
    with config.lock("setup-pi", "busy"), pytest.raises(TargetError, match="busy"), config.lock("setup-pi", "busy"):
        pass
    with config.lock("setup-pi", "busy"):
        pass


def test_one_setting_is_changed_and_those_that_others_changed_stay(place):
    """Setting up takes minutes, in which a target may be described, or forgotten."""
    config.save(TargetSpec("pi", ("true",)))
    config.update("pi", device="raspberry-pi-5-8gb")
    assert config.update("pi", bundles=("a",)) == TargetSpec(
        "pi", ("true",), device="raspberry-pi-5-8gb", bundles=("a",)
    )
    config.forget("pi")
    with pytest.raises(StudyError):
        config.update("pi", bundles=())
    assert config.load() == {}
