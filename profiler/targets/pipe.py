"""Both ends of a child's pipes with a deadline: whoever does not answer in time is noticed."""

from __future__ import annotations

import io
import os
import select
import time
from contextlib import suppress
from typing import IO, Any


class Pipe(io.RawIOBase):
    """Both ends of the worker's pipes, blocking in `poll` up to a deadline instead of for ever."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        """`until` is the deadline, in seconds of the monotonic clock."""
        super().__init__()
        self._read_fd, self._write_fd = read_fd, write_fd
        os.set_blocking(write_fd, False)
        self.until = 0.0

    def readable(self) -> bool:
        """Always."""
        return True

    def writable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """What is there, once something is. Raises TimeoutError at the deadline."""
        self._wait(self._read_fd, select.POLLIN)
        data = os.read(self._read_fd, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def write(self, data: Any) -> int:
        """As much as the pipe takes. Raises TimeoutError at the deadline."""
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


def close_quietly(*streams: IO[bytes] | io.BufferedIOBase | None) -> None:
    """Close what is there; what can no longer be written to a process that is gone is let go."""
    for stream in streams:
        with suppress(OSError, ValueError):
            if stream is not None:
                stream.close()
