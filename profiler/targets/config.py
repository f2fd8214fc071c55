"""The user's targets, as they are remembered: one TOML file, `~/.config/edgeprof/targets.toml`. No secrets are in it.

`EDGEPROF_TARGETS` names another file.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import date, datetime
from datetime import time as clock
from pathlib import Path
from typing import Any

from profiler.errors import TargetError, unknown

LOCAL = "local"
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
_MAX_BYTES = 1 << 20
DEFAULT_FOLDER = "~/.cache/edgeprof-target"
SSH_OPTIONS = (
    # Never a prompt, never an unknown host, whatever the user's config allows; nothing but our pipe is forwarded.
    "BatchMode=yes", "StrictHostKeyChecking=yes", "ForwardAgent=no", "ForwardX11=no", "ClearAllForwardings=yes",
    "PermitLocalCommand=no", "ConnectTimeout=15", "ServerAliveInterval=5", "ServerAliveCountMax=3",
)  # fmt: skip
"""A link that is down for 15 s ends the client, so that nothing waits for ever."""


@dataclass(frozen=True)
class TargetSpec:
    """One machine, and what was put on it."""

    name: str
    prefix: tuple[str, ...]
    """Words before the interpreter: `ssh … host`, `docker exec -i box`."""
    shell: bool = False
    """Whether the other side hands the words to a shell (ssh, adb): they are quoted then."""
    link_codes: tuple[int, ...] = ()
    """Exit codes of the prefix that mean a lost link and not the worker's end."""
    python: str = "python3"
    folder: str = DEFAULT_FOLDER
    emulated: bool = False
    """Its timings are of an emulator: labelled, and kept off every frontier."""
    device: str | None = None
    """Device profile, as probed or declared."""
    bundles: tuple[str, ...] = ()
    """What `setup` put there, in the order of the import path."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Settings of a later edgeprof, kept as they are."""


def same_place(one: TargetSpec, other: TargetSpec) -> bool:
    """Whether what was put there for one is there for the other, too."""
    return (one.prefix, one.folder, one.python) == (other.prefix, other.folder, other.python)


def ssh(host: str, *, config: str | None = None) -> tuple[str, ...]:
    """The system's ssh with the user's own configuration. Raises TargetError for what ssh would take for an option."""
    if not _is_name(host) or host.rpartition("@")[2].startswith("-"):
        raise TargetError(f"{host!r} is no host: give user@host, or a name from ~/.ssh/config.")
    options = [word for option in SSH_OPTIONS for word in ("-o", option)]
    return ("ssh", "-T", *(("-F", config) if config else ()), *options, "--", host)


def docker(container: str) -> tuple[str, ...]:
    """A running container. Raises TargetError for what docker would take for an option."""
    if not _is_name(container):
        raise TargetError(f"{container!r} is no container: give a name or id that `docker ps` shows.")
    return ("docker", "exec", "-i", container)


def kubectl(pod: str) -> tuple[str, ...]:
    """A running pod, as POD or NAMESPACE/POD. Raises TargetError for what kubectl would take for an option."""
    namespace, slash, name = pod.rpartition("/")
    if not _is_name(name) or (slash and not _is_name(namespace)):
        raise TargetError(f"{pod!r} is no pod: give POD or NAMESPACE/POD, as `kubectl get pods -A` shows them.")
    return ("kubectl", "exec", "-i", *(("-n", namespace) if slash else ()), name, "--")


def adb(serial: str) -> tuple[str, ...]:
    """An Android device. Raises TargetError for what adb would take for an option."""
    if not _is_name(serial):
        raise TargetError(f"{serial!r} is no serial number: `adb devices` shows them.")
    return ("adb", "-s", serial, "shell", "-T")


def _is_name(text: str) -> bool:
    return bool(text) and text[0] != "-" and not any(char.isspace() or not char.isprintable() for char in text)


def path() -> Path:
    """The file that holds the targets. Raises TargetError where the user has no home, as in containers with a bare user id."""
    named = os.environ.get("EDGEPROF_TARGETS")
    if named:
        return Path(named).expanduser()
    home = os.environ.get("XDG_CONFIG_HOME")
    try:
        return (Path(home) if home else Path.home() / ".config") / "edgeprof" / "targets.toml"
    except RuntimeError:
        raise TargetError(
            "this user has no home, where the list of targets would lie: name a file with EDGEPROF_TARGETS, or set HOME."
        ) from None


def load() -> dict[str, TargetSpec]:
    """All targets by name; none when there is no file. Raises TargetError for a file that cannot be read."""
    try:
        import tomllib
    except ImportError:  # Python 3.10
        import tomli as tomllib  # type: ignore[import-not-found,no-redef,unused-ignore]

    place = path()
    try:
        if place.stat().st_size > _MAX_BYTES:
            raise TargetError(f"{place} has more than {_MAX_BYTES} bytes: it is not what edgeprof writes.")
        content = tomllib.loads(place.read_text(encoding="utf-8"))
        return {name: _read(name, settings) for name, settings in content.items()}
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise TargetError(f"cannot read the targets in {place}: {error.strerror}.") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise TargetError(f"{place} is not a valid list of targets: {error}. Mend it, or move it away.") from None


def get(name: str) -> TargetSpec:
    """The target of that name. Raises StudyError with the known ones."""
    known = load()
    if name not in known:
        raise unknown("target", name, [LOCAL, *known], hint="`edgeprof target add NAME --ssh user@host` adds one.")
    return known[name]


def save(spec: TargetSpec) -> None:
    """Add or replace a target."""
    with lock("targets"):
        _write({**load(), check(spec).name: spec})


def update(name: str, **changes: Any) -> TargetSpec:
    """Change some settings of a target, and none that others change meanwhile. Raises StudyError when it was forgotten."""
    with lock("targets"):
        spec = check(replace(get(name), **changes))
        _write({**load(), name: spec})
    return spec


def forget(name: str) -> None:
    """Take a target off the list; what is on the machine stays."""
    with lock("targets"):
        known = load()
        known.pop(get(name).name)
        _write(known)


@contextmanager
def lock(name: str, busy: str | None = None) -> Iterator[None]:
    """Keep other processes of this user out meanwhile: by waiting, or with `busy`, what to say to them. Raises TargetError.

    The lock vanishes with the process, however that ends; its empty file stays beside the targets.
    """
    place = path().with_name(f".{name}.lock")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(place, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise TargetError(f"cannot lock the targets: {place}: {error.strerror}.") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy is not None else 0))
        except BlockingIOError:
            raise TargetError(str(busy)) from None
        yield
    finally:
        os.close(handle)


def check(spec: TargetSpec) -> TargetSpec:
    """The same, when it is possible. Raises TargetError."""
    if spec.name == LOCAL or not _NAME.fullmatch(spec.name):
        raise TargetError(
            f"'{spec.name}' cannot name a target: lower-case letters, digits and hyphens, at most 40, and not 'local'."
        )
    if not spec.prefix or not all(spec.prefix):
        raise TargetError(f"target '{spec.name}' has no command: give --ssh, --docker, --kubectl, --adb or --command.")
    for word in (*spec.prefix, spec.python, spec.folder):
        if not word.isprintable():
            raise TargetError(f"target '{spec.name}': {word!r} holds characters that no command has.")
    if spec.python.startswith("-") or not spec.python:
        raise TargetError(f"target '{spec.name}': '{spec.python}' is no interpreter.")
    return spec


def words(spec: TargetSpec, *rest: str) -> tuple[str, ...]:
    """The whole command that runs `python` with `rest` on the target. The only text that a shell there may see is quoted here."""
    inner = (spec.python, *rest)
    if not spec.shell:
        return (*spec.prefix, *inner)
    return (*spec.prefix, quoted(inner))


def quoted(inner: Sequence[str]) -> str:
    """A command as text for whatever shell stands on the other side: sh, zsh, fish and csh read it alike."""
    # Without the last command the shell would become the worker, and its death by a signal would look like a lost link.
    return shlex.join(("sh", "-c", f"{shlex.join(inner)}; exit $?"))


def _read(name: str, settings: Mapping[str, Any]) -> TargetSpec:
    known = {item.name for item in fields(TargetSpec)} - {"extra", "name"}
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in settings.items() if key in known
    }
    spec = TargetSpec(name, **values, extra={key: value for key, value in settings.items() if key not in known})
    kinds = {
        "prefix": tuple,
        "shell": bool,
        "link_codes": tuple,
        "python": str,
        "folder": str,
        "emulated": bool,
        "device": (str, type(None)),
        "bundles": tuple,
    }
    for key, kind in kinds.items():
        if not isinstance(getattr(spec, key), kind):  # type: ignore[arg-type]
            raise TypeError(f"{name}.{key} is {getattr(spec, key)!r}")
    for key, part in (("prefix", str), ("bundles", str), ("link_codes", int)):
        if not all(isinstance(one, part) for one in getattr(spec, key)):
            raise TypeError(f"{name}.{key} is {list(getattr(spec, key))!r}")
    return check(spec)


def _write(targets: Mapping[str, TargetSpec]) -> None:
    lines = ["# The targets of edgeprof (`edgeprof target --help`).\n"]
    for name, spec in sorted(targets.items()):
        lines.append(f"[{name}]")  # the names of targets need no quotes
        content = asdict(spec)
        for key, value in {**content.pop("extra"), **content}.items():
            if key != "name" and value is not None:
                lines.append(f"{_toml_key(key)} = {_toml(value)}")
        lines.append("")
    place = path()
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        fresh = place.with_suffix(f".{os.getpid()}.tmp")
        fresh.write_text("\n".join(lines), encoding="utf-8")
        fresh.replace(place)
    except OSError as error:
        raise TargetError(f"cannot write the targets to {place}: {error.strerror}.") from None


def _toml(value: Any) -> str:
    """A value as TOML writes it (toml.io, v1.0.0): whatever `tomllib` reads can be written again."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _toml_string(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_toml_key(key)} = {_toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, (datetime, date, clock)):
        return value.isoformat()
    return repr(value)  # int, and float with its inf and nan


def _toml_key(text: str) -> str:
    return text if re.fullmatch(r"[A-Za-z0-9_-]+", text) else _toml_string(text)


def _toml_string(text: str) -> str:
    # JSON's escapes are TOML's; only DEL may stand raw in the one and not in the other.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
