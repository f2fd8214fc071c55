"""The host's side of the agent: a short conversation with a device that needs nothing but Python.

What comes back is untrusted: lines have a longest length, answers are JSON objects, texts are cleaned before they are shown.
"""

from __future__ import annotations

import io
import json
import subprocess
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from types import TracebackType
from typing import Any

from profiler.errors import TargetError
from profiler.targets import config
from profiler.targets.log import TailLog, clean
from profiler.targets.pipe import Pipe, close_quietly

__all__ = ["Agent", "LinkLost", "clean"]

_MAX_REPLY_BYTES = 2 << 20
_CHUNK_BYTES = 4 << 20
# Reads the agent's own text from the pipe. The argument is the folder; there is no quote in it but ".
_LOADER = (
    'import sys;i=sys.stdin.buffer;t=i.read(int(i.readline()));n={};exec(compile(t,"edgeprof-agent","exec"),n);'
    'n["main"](sys.argv[1],i,sys.stdout.buffer)'
)


class LinkLost(TargetError):  # noqa: N818 (named for what happened)
    """The connection to a target broke, or could not be made. Nothing is known of the case: measuring it again is right."""


class Agent:
    """The agent on one target, as a context manager."""

    def __init__(self, spec: config.TargetSpec, *, timeout_s: float = 60.0) -> None:
        """Start it. Raises TargetError when the command cannot be started."""
        self._spec, self._timeout_s = spec, timeout_s
        self._log = TailLog()
        command = config.words(spec, "-c", _LOADER, spec.folder)
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log.handle,
                bufsize=0,
                start_new_session=True,
            )
        except OSError as error:
            self._log.close()
            raise TargetError(f"cannot reach '{spec.name}': {command[0]}: {error.strerror or error}.") from error
        self._log.started()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._pipe = Pipe(self._process.stdout.fileno(), self._process.stdin.fileno())
        self._reader, self._writer = io.BufferedReader(self._pipe, 1 << 16), io.BufferedWriter(self._pipe, 1 << 16)

    def __enter__(self) -> Agent:  # noqa: PYI034 (typing.Self is 3.11)
        """Send the agent its own text."""
        text = files("profiler.targets").joinpath("agent.py").read_bytes()
        self._within(self._timeout_s, lambda: self._send(b"%d\n" % len(text), text))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it."""
        self._end()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            stream.close()  # type: ignore[union-attr]

    def ask(self, command: str, body: bytes = b"", *, timeout_s: float | None = None, **fields: Any) -> dict[str, Any]:
        """One question and its answer. Raises TargetError with the device's words, LinkLost when the connection is gone."""
        line = json.dumps({"command": command, "bytes": len(body), **fields}).encode() + b"\n"

        def talk() -> bytes:
            self._send(line, body)
            return self._reader.readline(_MAX_REPLY_BYTES)

        answer = self._within(timeout_s or self._timeout_s, talk)
        if not answer.endswith(b"\n"):
            raise self._lost(None) if len(answer) < _MAX_REPLY_BYTES else self._nonsense("a line without an end")
        try:
            reply = json.loads(answer)
        except (ValueError, RecursionError):
            raise self._nonsense(clean(answer[:120].decode(errors="replace")).strip()) from None
        if not isinstance(reply, dict):
            raise self._nonsense(f"a {type(reply).__name__}")
        if not reply.get("ok"):
            raise TargetError(f"'{self._spec.name}': {clean(str(reply.get('message', 'it gave no reason')))[:500]}.")
        return reply

    def send_bundle(self, name: str, archive: Path, sha256: str, told: Callable[[int, int], None]) -> bool:
        """Bring a bundle there, going on where a broken transfer stopped; False when it was there. `told(sent, all)`."""
        size = archive.stat().st_size
        for _ in range(2):
            offer = self.ask("offer", name=name)
            if offer.get("installed") is True:
                return False
            self._send_rest(name, archive, offer, size, told)
            # Unpacking a hundred megabytes onto an SD card takes its time.
            if self.ask("install", timeout_s=900.0, name=name, sha256=sha256).get("installed") is True:
                return True
        raise TargetError(
            f"the archive of {name} arrived damaged on '{self._spec.name}', twice: is its disk or its memory sound?"
        )

    def _send_rest(
        self, name: str, archive: Path, offer: dict[str, Any], size: int, told: Callable[[int, int], None]
    ) -> None:
        offset = _whole(offer, "offset", 1 << 62)
        if offset > size:  # of another archive with the same content: another compressor made it
            offset = 0
        with archive.open("rb") as file:
            file.seek(offset)
            while chunk := file.read(_CHUNK_BYTES):
                reached = _whole(self.ask("put", chunk, timeout_s=300.0, name=name, offset=offset), "offset", size)
                if reached != offset + len(chunk):
                    raise self._nonsense(f"offset {reached} after {offset} and {len(chunk)} bytes")
                offset = reached
                told(offset, size)

    def _send(self, *parts: bytes) -> None:
        for part in parts:
            self._writer.write(part)
        self._writer.flush()

    def _within(self, seconds: float, talk: Callable[[], Any]) -> Any:
        self._pipe.until = time.monotonic() + seconds
        try:
            return talk()
        except TimeoutError:
            self._end()
            raise LinkLost(f"'{self._spec.name}' did not answer within {seconds:g} s.{self._words()}") from None
        except OSError as error:
            raise self._lost(error) from None

    def _nonsense(self, what: str) -> TargetError:
        return TargetError(
            f"'{self._spec.name}' answered what no agent writes ({what}): does its shell print something at log-in?"
            f"{self._words()}"
        )

    def _lost(self, error: OSError | None) -> TargetError:
        try:
            code = self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            self._end()
            return LinkLost(
                f"'{self._spec.name}' closed its pipe{f' ({error.strerror})' if error else ''}.{self._words()}"
            )
        said = self._words()
        if "Host key verification failed" in said:
            return TargetError(
                f"the host key of '{self._spec.name}' is unknown or has changed: connect once with ssh by hand, compare the "
                f"key, and try again.{said}"
            )
        if "Permission denied" in said:
            return TargetError(
                f"'{self._spec.name}' refused the log-in: set up a key (ssh-copy-id), since nobody is asked for a password.{said}"
            )
        if code in (126, 127) or "not found" in said:
            return TargetError(
                f"'{self._spec.name}' has no {self._spec.python}: install Python 3.10 or later there, or name another "
                f"interpreter (`edgeprof target add … --python PATH`).{said}"
            )
        if "profiler.wire.WireError" in said:
            return TargetError(
                f"'{self._spec.name}' starts a worker whatever it is asked (`edgeprof target restrict`): setting it up, "
                "probing and removing take a key that is not restricted."
            )
        if code in self._spec.link_codes or code < 0:
            return LinkLost(f"the connection to '{self._spec.name}' is lost (exit code {code}).{said}")
        return TargetError(f"the agent on '{self._spec.name}' ended with exit code {code}.{said}")

    def _words(self) -> str:
        """What ssh or the device's Python said last."""
        lines = [clean(line) for line in (self._log.text() or "").splitlines() if line.strip()]
        return f" It said: {' / '.join(lines[-3:])[:600]}" if lines else ""

    def _end(self) -> None:
        close_quietly(self._writer, self._process.stdin)
        try:
            self._process.wait(2.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _whole(reply: dict[str, Any], key: str, largest: int) -> int:
    value = reply.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= largest:
        raise TargetError(f"the device says {key} {clean(repr(value))[:60]}, which cannot be.")
    return value
