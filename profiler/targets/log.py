"""What a worker and its native libraries write beside the protocol, and how such text may be shown."""

from __future__ import annotations

import os
import select
import tempfile
import threading
import time
from typing import Protocol

KEPT_BYTES = 64_000
_SETTLE_S, _NAP_S = 0.5, 0.002


class Log(Protocol):
    """The standard error of a child."""

    @property
    def handle(self) -> int:
        """The descriptor that the child gets."""
        ...

    def started(self) -> None:
        """The child has it now."""
        ...

    def text(self) -> str | None:
        """The end of what was written, `KEPT_BYTES` at most; None when it cannot be read any more."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


class FileLog:
    """A file without a name: for processes of this machine, whose parent sleeps while they are measured."""

    def __init__(self) -> None:
        """Raises OSError where no temporary file can be made."""
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the process, closed with it)

    @property
    def handle(self) -> int:
        """See `Log`."""
        return self._file.fileno()

    def started(self) -> None:
        """See `Log`."""

    def text(self) -> str | None:
        """See `Log`."""
        try:
            end = os.lseek(self._file.fileno(), 0, os.SEEK_END)
            return os.pread(self._file.fileno(), KEPT_BYTES, max(0, end - KEPT_BYTES)).decode(errors="replace")
        except (OSError, ValueError):
            return None

    def close(self) -> None:
        """See `Log`."""
        self._file.close()


class TailLog:
    """A pipe whose end is kept, for what comes from elsewhere: a device that never stops writing fills no disk here."""

    def __init__(self) -> None:
        """Raises OSError where no pipe can be made."""
        self._from_child, self._to_parent = os.pipe()
        self._woken, self._wake = os.pipe()
        self._kept = bytearray()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._read, name="edgeprof-log", daemon=True)

    @property
    def handle(self) -> int:
        """See `Log`."""
        return self._to_parent

    def started(self) -> None:
        """See `Log`."""
        os.close(self._to_parent)
        self._to_parent = -1
        self._thread.start()

    def text(self) -> str | None:
        """See `Log`. What has come by now, also what is still in the pipe, unless that never ends."""
        poll = select.poll()
        poll.register(self._from_child, select.POLLIN)
        until = time.monotonic() + _SETTLE_S
        while self._thread.is_alive() and poll.poll(0) and time.monotonic() < until:
            self._thread.join(_NAP_S)
        with self._lock:
            return bytes(self._kept[-KEPT_BYTES:]).decode(errors="replace")

    def close(self) -> None:
        """See `Log`. Grandchildren may hold the other end open for ever: the reader is not waited for them."""
        if self._wake < 0:
            return
        os.close(self._wake)
        self._wake = -1
        if self._thread.ident is not None:
            self._thread.join()
        for handle in (self._from_child, self._woken, self._to_parent):
            if handle >= 0:
                os.close(handle)

    def _read(self) -> None:
        poll = select.poll()
        poll.register(self._from_child, select.POLLIN)
        poll.register(self._woken, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            if self._woken in ready:
                return
            # One step with `_kept`: what is no longer in the pipe is there.
            with self._lock:
                part = os.read(self._from_child, 1 << 16)
                self._kept += part
                del self._kept[:-KEPT_BYTES]
            if not part:
                return


def clean(text: str, *, lines: bool = False) -> str:
    """Text of a device for a terminal: whatever moves cursors, colours screens or turns the writing round becomes a question
    mark, line ends and tabs a space; with `lines` these stay.
    """
    return "".join(char if char.isprintable() else (char if lines else " ") if char in "\n\t" else "?" for char in text)
