"""The parent's side of a worker: start it, ask it, notice when it hangs or dies, and say why in words."""

from __future__ import annotations

import io
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, cast, get_args

import numpy as np
from numpy.typing import NDArray

from profiler import wire
from profiler.errors import TargetError
from profiler.records import FailureKind
from profiler.targets.base import Target
from profiler.targets.out_of_memory import Finding, Witness, peak_of, speaks_of_memory

_CHUNK_BYTES = 4 << 20
_GRACE_S = 5.0
_LOG_TAIL_LINES = 15
_LOG_BYTES = 64_000
_KILLED_EXIT_CODE = 128 + signal.SIGKILL
"""What shells, containers and ssh make of a SIGKILL on the other side."""


class WorkerFailure(TargetError):  # noqa: N818 (becomes a FailureRecord, it is not a mistake of ours)
    """A worker answered that it failed, died, or did not answer in time."""

    def __init__(
        self, kind: FailureKind, message: str, log_tail: str | None = None, *, needs_more_than_bytes: int | None = None
    ) -> None:
        """`kind` as in FailureRecord; `log_tail` is what the process wrote last.

        `needs_more_than_bytes` is a lower bound of the host memory the case needs, where a lack of it is what failed.
        """
        super().__init__(message)
        self.kind: FailureKind = kind
        self.log_tail = log_tail
        self.needs_more_than_bytes = needs_more_than_bytes


class WorkerProcess:
    """A running worker. Use it in a `with` block; leaving the block ends the process."""

    def __init__(
        self,
        target: Target,
        *,
        cache: Path | None = None,
        memory_limit_bytes: int | None = None,
        root: Path = Path("/"),
    ) -> None:
        """Start the worker; returns before it is ready. Raises TargetError when the command cannot be started.

        Below `root` lie the `/proc` and `/sys` that tell, should it die, whether that was for its memory.
        """
        self._target = target
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the process, closed with it)
        environment = {**os.environ, **target.environment}
        if cache is not None:
            environment["EDGEPROF_WORKER_CACHE"] = str(cache)
        if memory_limit_bytes is not None:
            environment["EDGEPROF_WORKER_MEMORY_BYTES"] = str(memory_limit_bytes)
        # Only where the worker is a process of this machine do its kernel's counts mean anything.
        self._witness = Witness(target.shares_files, memory_limit_bytes, root)
        self._peak_bytes: int | None = None
        try:
            # A process group of its own: Ctrl-C in the terminal reaches us, and we end the workers in order.
            self._process = subprocess.Popen(
                target.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
                bufsize=0, env=environment, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            self._log.close()
            raise TargetError(
                f"cannot start a worker on '{target.name}': {target.command[0]}: {error.strerror or error}."
            ) from error
        self._witness.pid = self._process.pid
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._pipe = _Pipe(self._process.stdout.fileno(), self._process.stdin.fileno())
        self._reader = io.BufferedReader(self._pipe, 1 << 16)
        self._writer = io.BufferedWriter(self._pipe, 1 << 16)

    def __enter__(self) -> WorkerProcess:  # noqa: PYI034 (typing.Self is 3.11)
        """The worker itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process."""
        self.close()

    @property
    def pid(self) -> int:
        """Process id on this machine (of the ssh client, for a remote target)."""
        return self._process.pid

    def request(
        self, command: str, arrays: Mapping[str, NDArray[np.generic]] | None = None, *, timeout_s: float, **fields: Any
    ) -> tuple[dict[str, Any], wire.Arrays]:
        """Send one command and wait for its answer, at most `timeout_s`. Raises WorkerFailure."""
        self._witness.look()
        self._pipe.until = time.monotonic() + timeout_s + _GRACE_S
        try:
            header = {"command": command, "deadline_s": timeout_s, **fields}
            wire.write_frame(self._writer, header, arrays)
            frame = wire.read_frame(self._reader)
        except TimeoutError:
            self.kill()
            raise WorkerFailure("timeout", _timeout_text(command, timeout_s), self.log_tail()) from None
        except (OSError, wire.WireError) as error:
            raise self._death(command, timeout_s, error) from error
        if frame is None:
            raise self._death(command, timeout_s, None)
        reply, reply_arrays = frame
        if not reply.get("ok"):
            kind = str(reply.get("kind", "error"))
            known = cast("FailureKind", kind) if kind in get_args(FailureKind) else "error"
            message = str(reply.get("message", "the worker gave no reason."))
            if known == "out_of_memory":
                found = self._witness.of_allocation(message, alive=True)
                raise _failure(known, found, self.log_tail())
            raise WorkerFailure(known, message, self.log_tail())
        self._witness.heard(reply)
        return reply, reply_arrays

    def send_artifact(
        self, sha256: str, files: Mapping[str, Path], file_sha256: Mapping[str, str], *, timeout_s: float
    ) -> None:
        """Bring an artifact's files into the worker's cache, leaving out those it has."""
        for name, path in files.items():
            size = path.stat().st_size
            reply, _ = self.request(
                "have", sha256=sha256, name=name, size=size, file_sha256=file_sha256[name], timeout_s=timeout_s
            )
            if reply["have"]:
                continue
            with path.open("rb") as file:
                offset = 0
                while (chunk := file.read(_CHUNK_BYTES)) or offset == 0:
                    array = np.frombuffer(chunk, dtype=np.uint8)
                    self.request("put", {"chunk": array}, sha256=sha256, name=name, offset=offset, timeout_s=timeout_s)
                    offset += max(len(chunk), 1)

    def close(self) -> None:
        """End the process: its stdin ends, and after a moment of grace it is killed."""
        # The writer first, and whether or not the process lives: bytes that it could not send stay in its buffer, and
        # flushed later they would land in whatever file has got the pipe's number by then.
        for stream in (self._writer, self._process.stdin):
            try:
                stream.close()  # type: ignore[union-attr]
            except (OSError, ValueError):
                continue
        try:
            self._process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            self.kill()
        for stream in (self._process.stdout, self._log):
            try:
                stream.close()  # type: ignore[union-attr]
            except (OSError, ValueError):
                continue

    def kill(self) -> None:
        """End the process and its children at once."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            self._process.kill()
        self._process.wait()

    def log_tail(self) -> str | None:
        """The last lines that the process and its native libraries wrote, or None."""
        text = self._log_text()
        return None if text is None else "\n".join(text.splitlines()[-_LOG_TAIL_LINES:]) or None

    def _log_text(self) -> str | None:
        try:
            end = os.lseek(self._log.fileno(), 0, os.SEEK_END)
            return os.pread(self._log.fileno(), _LOG_BYTES, max(0, end - _LOG_BYTES)).decode(errors="replace")
        except (OSError, ValueError):
            return None

    def _death(self, command: str, timeout_s: float, error: Exception | None) -> WorkerFailure:
        """What the end of the process says about its cause."""
        try:
            code = self._reap(_GRACE_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return WorkerFailure("error", f"the worker closed its pipe during '{command}': {error}.", self.log_tail())
        tail = self.log_tail()
        # faulthandler's first line; the stack below it may be longer than the tail.
        if code == 1 and "Timeout (" in (self._log_text() or ""):
            return WorkerFailure("timeout", _timeout_text(command, timeout_s), tail)
        if code in (-signal.SIGKILL, _KILLED_EXIT_CODE):
            found = self._witness.of_kill(command, self._peak_bytes)
            return _failure("out_of_memory" if found.is_memory else "crash", found, tail)
        if code < 0:
            name = signal.Signals(-code).name if -code in signal.Signals._value2member_map_ else f"signal {-code}"
            text = f"the worker crashed ({name}) during '{command}'."
        else:
            text = f"the worker ended with exit code {code} during '{command}'."
        if code in (-signal.SIGABRT, 1) and speaks_of_memory(tail):
            # What C++ does with an exception that nobody caught, and Python outside of a command.
            found = self._witness.of_allocation(f"out of memory: {text}", alive=False)
            return _failure("out_of_memory", found, tail)
        return WorkerFailure("crash", text, tail)

    def _reap(self, timeout_s: float) -> int:
        """Wait for the end of the process; keeps its highest resident set, which `Popen.wait` throws away."""
        until = time.monotonic() + timeout_s
        pause_s = 0.0005
        while self._process.returncode is None:
            try:
                pid, status, usage = os.wait4(self._process.pid, os.WNOHANG)
            except ChildProcessError:  # somebody else has reaped it: the status is lost
                return self._process.wait(timeout_s)
            if pid:
                self._peak_bytes = peak_of(usage)
                self._process.returncode = os.waitstatus_to_exitcode(status)
            elif time.monotonic() >= until:
                raise subprocess.TimeoutExpired(self._target.name, timeout_s)
            else:
                time.sleep(pause_s)
                pause_s = min(pause_s * 2, 0.05)
        return self._process.returncode


def _failure(kind: FailureKind, found: Finding, log_tail: str | None) -> WorkerFailure:
    return WorkerFailure(kind, found.message, log_tail, needs_more_than_bytes=found.needs_more_than_bytes)


def _timeout_text(command: str, timeout_s: float) -> str:
    return f"no answer to '{command}' within {timeout_s:g} s (--time-limit): the worker was ended."


class _Pipe(io.RawIOBase):
    """Both ends of the worker's pipes, blocking in `poll` up to a deadline instead of for ever."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        super().__init__()
        self._read_fd, self._write_fd = read_fd, write_fd
        os.set_blocking(write_fd, False)
        self.until = 0.0

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._wait(self._read_fd, select.POLLIN)
        data = os.read(self._read_fd, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def write(self, data: Any) -> int:
        self._wait(self._write_fd, select.POLLOUT)
        try:
            return os.write(self._write_fd, data[: 1 << 16])
        except BlockingIOError:
            return 0

    def _wait(self, descriptor: int, event: int) -> None:
        # Not select.select, which refuses descriptors from 1024 on: a notebook may have that many open.
        poll = select.poll()
        poll.register(descriptor, event)
        if not poll.poll(max(0.0, self.until - time.monotonic()) * 1000):
            raise TimeoutError
