"""The parent's side of a worker: start it, ask it, notice when it hangs or dies, and say why in words."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
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
from profiler.targets import answers
from profiler.targets.base import Target
from profiler.targets.log import FileLog, Log, TailLog, clean
from profiler.targets.out_of_memory import Finding, Witness, peak_of, speaks_of_memory
from profiler.targets.pipe import Pipe, close_quietly
from profiler.targets.remote import LinkLost
from profiler.units import size

_CHUNK_BYTES = 4 << 20
_GRACE_S = 5.0
_GREETING_S = 60.0
_IDLE_S = 3600.0
"""Parked workers wait while others are measured; one that hears nothing for so long has lost us."""
_LOG_TAIL_LINES = 15
_STARTED_CODES = (1, 2, 126, 127)
"""Of an interpreter that ended by itself, or is not there: any other is of the prefix that leads to it."""
_KILLED_EXIT_CODE = 128 + signal.SIGKILL
"""What shells, containers and ssh make of a SIGKILL on the other side."""


class WorkerFailure(TargetError):  # noqa: N818 (becomes a FailureRecord, it is not a mistake of ours)
    """A worker answered that it failed, died, or did not answer in time."""

    def __init__(
        self,
        kind: FailureKind,
        message: str,
        log_tail: str | None = None,
        *,
        needs_more_than_bytes: int | None = None,
        from_outside: bool = False,
    ) -> None:
        """`kind` as in FailureRecord; `log_tail` is what the process wrote last.

        `needs_more_than_bytes` is a lower bound of the host memory the case needs, where a lack of it is what failed.
        `from_outside` says that somebody killed the worker: that tells nothing about the case.
        """
        super().__init__(message)
        self.kind: FailureKind = kind
        self.log_tail = log_tail
        self.needs_more_than_bytes = needs_more_than_bytes
        self.from_outside = from_outside


class WorkerProcess:
    """A running worker. Use it in a `with` block; leaving the block ends the process."""

    def __init__(
        self,
        target: Target,
        *,
        cache: Path | None = None,
        memory_limit_bytes: int | None = None,
        root: Path = Path("/"),
        folder: Path | None = None,
    ) -> None:
        """Start the worker; returns before it is ready. Raises TargetError when the command cannot be started.

        `folder` is its working directory; None: this process's own.
        Below `root` lie the `/proc` and `/sys` that tell, should it die, whether that was for its memory.
        """
        self._target = target
        self._memory_limit_bytes = memory_limit_bytes
        self._idle_limit_s: float | None = None
        self._worker_pid: int | None = None
        self._outputs: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] | None = None
        self._log: Log = FileLog() if target.shares_files else TailLog()
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
                target.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log.handle,
                bufsize=0, env=environment, cwd=folder, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            self._log.close()
            raise TargetError(
                f"cannot start a worker on '{target.name}': {target.command[0]}: {error.strerror or error}."
            ) from error
        self._log.started()
        self._witness.pid = self._process.pid
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._pipe = Pipe(self._process.stdout.fileno(), self._process.stdin.fileno())
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

    def greet(self, *, idle_s: float = _IDLE_S) -> dict[str, Any]:
        """Agree with a worker elsewhere on protocol and version, and how long it may wait for a command without us.

        Raises TargetError when it is not of the edgeprof that was put there, or that runs here.
        """
        reply, _ = self.request("hello", timeout_s=_GREETING_S, memory_limit_bytes=self._memory_limit_bytes)
        if reply["protocol"] != wire.PROTOCOL:
            raise TargetError(
                f"the worker on '{self._target.name}' speaks protocol {reply['protocol']}, this edgeprof {wire.PROTOCOL}: "
                f"`edgeprof target setup {self._target.name}` puts the same there."
            )
        self._idle_limit_s = idle_s
        self._worker_pid = reply["pid"]
        return reply

    @property
    def alive(self) -> bool:
        """Whether its process, or the client that leads to it, still runs."""
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        """Process id on this machine (of the ssh client, for a remote target)."""
        return self._process.pid

    def request(
        self, command: str, arrays: Mapping[str, NDArray[np.generic]] | None = None, *, timeout_s: float, **fields: Any
    ) -> tuple[dict[str, Any], wire.Arrays]:
        """Send one command and wait for its answer, at most `timeout_s`. Raises WorkerFailure, LinkLost.

        The answer was checked: what is read of this command's answers is there, of its type, finite, and clean to print.
        """
        if self._idle_limit_s is not None:
            fields = {"idle_s": self._idle_limit_s, **fields}
        reply, reply_arrays = self._exchange(command, arrays or {}, timeout_s, fields)
        try:
            reply = answers.tame(reply, command)
            if reply.get("ok") is True:
                reply_arrays = answers.tame_names(reply_arrays)
                answers.check(command, fields, arrays or {}, reply, reply_arrays)
                self._check_outputs(command, reply_arrays)
        except answers.Nonsense as error:
            text = f"the worker on '{self._target.name}' answered '{command}' with what cannot be: {error}."
            raise WorkerFailure("error", text, self.log_tail()) from None
        if reply.get("ok") is not True:
            kind = str(reply.get("kind", "error"))
            known = cast("FailureKind", kind) if kind in get_args(FailureKind) else "error"
            message = str(reply.get("message", "the worker gave no reason."))
            if known == "out_of_memory":
                found = self._witness.of_allocation(message, alive=True)
                raise _failure(known, found, self.log_tail())
            if os.strerror(errno.ENOSPC) in message and not self._target.shares_files:
                # Of the device and not of the case, which can be measured when there is room.
                raise TargetError(
                    f"'{self._target.name}' has no room left on its disk: free some there, or give it another --folder "
                    f"(`edgeprof target remove` and `add`). It said: {message}"
                )
            raise WorkerFailure(known, message, self.log_tail())
        self._witness.heard(reply)
        return reply, reply_arrays

    def _exchange(
        self, command: str, arrays: Mapping[str, NDArray[np.generic]], timeout_s: float, fields: Mapping[str, Any]
    ) -> tuple[dict[str, Any], wire.Arrays]:
        self._witness.look()
        self._pipe.until = time.monotonic() + timeout_s + _GRACE_S
        try:
            header = {"command": command, "deadline_s": timeout_s, **fields}
            wire.write_frame(self._writer, header, arrays)
            frame = wire.read_frame(self._reader, **answers.limits(command))
        except TimeoutError:
            self.kill()
            if self._target.link_codes:
                # The worker ends itself at its deadline and tells; silence beyond it is the connection's.
                raise LinkLost(
                    f"no word from '{self._target.name}' for {timeout_s + _GRACE_S:g} s: the link is dead."
                ) from None
            raise WorkerFailure("timeout", _timeout_text(command, timeout_s), self.log_tail()) from None
        except (OSError, wire.WireError) as error:
            raise self._death(command, timeout_s, error) from error
        if frame is None:
            raise self._death(command, timeout_s, None)
        return frame

    def _check_outputs(self, command: str, arrays: wire.Arrays) -> None:
        """All batches of one loaded model have the same outputs. Raises Nonsense, because they are put together later."""
        if command == "load":
            self._outputs = None
        if command != "infer":
            return
        # Text is as wide as its longest word, of which each batch has others.
        found = {
            name: (np.dtype(np.str_) if array.dtype.kind == "U" else array.dtype, array.shape[1:])
            for name, array in arrays.items()
        }
        if not found:
            raise answers.Nonsense("there are no outputs")
        before, self._outputs = self._outputs or found, found
        if found != before:
            name = next(name for name in (*found, *before) if found.get(name) != before.get(name))
            raise answers.Nonsense(
                f"output '{name[:100]}' was {_kind(before.get(name))} in the batch before and is {_kind(found.get(name))} now"
            )

    def send_artifact(
        self, sha256: str, files: Mapping[str, Path], file_sha256: Mapping[str, str], *, timeout_s: float
    ) -> None:
        """Bring an artifact's files into the worker's cache: not those it has, and of one that broke off only the rest."""
        for name, path in files.items():
            size = path.stat().st_size
            about: dict[str, Any] = {"sha256": sha256, "name": name, "size": size, "file_sha256": file_sha256[name]}
            reply, _ = self.request("have", timeout_s=timeout_s, **about)
            if reply["have"]:
                continue
            offset = min(reply["offset"], size)
            with path.open("rb") as file:
                file.seek(offset)
                while True:
                    chunk = np.frombuffer(file.read(_CHUNK_BYTES), dtype=np.uint8)
                    self.request("put", {"chunk": chunk}, offset=offset, timeout_s=timeout_s, **about)
                    offset += len(chunk)
                    if offset >= size or not len(chunk):
                        break

    def close(self) -> None:
        """End the process: its stdin ends, and after a moment of grace it is killed."""
        # The writer first, and whether or not the process lives: bytes that it could not send stay in its buffer, and
        # flushed later they would land in whatever file has got the pipe's number by then.
        close_quietly(self._writer, self._process.stdin)
        try:
            self._process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            self.kill()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close()

    def kill(self) -> None:
        """End the process and its children at once."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            self._process.kill()
        self._process.wait()

    def log_tail(self) -> str | None:
        """The last lines that the process and its native libraries wrote, or None."""
        text = self._log.text()
        return None if text is None else clean("\n".join(text.splitlines()[-_LOG_TAIL_LINES:]), lines=True) or None

    def _death(self, command: str, timeout_s: float, error: Exception | None) -> TargetError:
        """What the end of the process says about its cause."""
        try:
            code = self._reap(_GRACE_S)
        except subprocess.TimeoutExpired:
            self.kill()
            why = str(error).rstrip(".")
            return WorkerFailure("error", f"the pipe to the worker broke during '{command}': {why}.", self.log_tail())
        tail = self.log_tail()
        # A prefix that became the worker (`env`) has its number; of any other, a signal ended the client and not the worker,
        # which ends when its pipe does.
        client_died = code < 0 and not self._target.shares_files and self._worker_pid != self._process.pid
        if code in self._target.link_codes or client_died:
            said = (tail or "").strip().splitlines()
            return LinkLost(
                f"the connection to '{self._target.name}' was lost during '{command}'{f' ({said[-1][:200]})' if said else ''}."
            )
        # faulthandler's first line; the stack below it may be longer than the tail.
        if code == 1 and "Timeout (" in (self._log.text() or ""):
            return WorkerFailure("timeout", _timeout_text(command, timeout_s), tail)
        if code in (-signal.SIGKILL, _KILLED_EXIT_CODE):
            # Of a remote worker, what was reaped here is its client.
            found = self._witness.of_kill(command, self._peak_bytes if self._target.shares_files else None)
            if found.is_memory:
                return _failure("out_of_memory", found, tail)
            return WorkerFailure("crash", found.message, tail, from_outside=True)
        if code < 0:
            name = signal.Signals(-code).name if -code in signal.Signals._value2member_map_ else f"signal {-code}"
            text = f"the worker crashed ({name}) during '{command}'."
        else:
            text = f"the worker ended with exit code {code} during '{command}'."
            if command == "hello" and not self._target.shares_files:
                return self._no_worker(code, tail)
        if code in (-signal.SIGABRT, 1) and speaks_of_memory(tail):
            # What C++ does with an exception that nobody caught, and Python outside of a command.
            found = self._witness.of_allocation(f"out of memory: {text}", alive=False)
            return _failure("out_of_memory", found, tail)
        if self._memory_limit_bytes is not None and command in ("hello", "load"):
            # Where an allocation fails inside of a runtime's own start, it says anything, or nothing.
            text += (
                f" It may allocate {size(self._memory_limit_bytes)} (--memory-limit), and Python with a runtime needs some "
                "150 MB before it has read a model: that may be all. Try again with more, or without --memory-limit."
            )
        return WorkerFailure("crash", text, tail)

    def _no_worker(self, code: int, tail: str | None) -> TargetError:
        """None came to answer: that says nothing about a case, which stays unmeasured."""
        lines = (tail or "").strip().splitlines()
        name, said = self._target.name, f" It said: {lines[-1][:300].rstrip('.')}." if lines else ""
        if code not in _STARTED_CODES:
            return LinkLost(f"'{name}' cannot be reached: its command ended with exit code {code}.{said}")
        return TargetError(
            f"no worker starts on '{name}' (exit code {code}).{said} If what was put there is gone or damaged, "
            f"`edgeprof target setup {name} --fresh` puts it there again."
        )

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


def _kind(output: tuple[np.dtype[Any], tuple[int, ...]] | None) -> str:
    if output is None:
        return "missing"
    return f"{'text' if output[0].kind == 'U' else output[0]} [batch, {', '.join(map(str, output[1]))}]"


def _timeout_text(command: str, timeout_s: float) -> str:
    return f"no answer to '{command}' within {timeout_s:g} s (--time-limit): the worker was ended."
