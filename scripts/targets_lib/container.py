"""A container of the user's Docker, without a network: what `--docker` leads to."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Sequence
from types import TracebackType

import psutil

from scripts.targets_lib import packages

_KEEPS_RUNNING = ("sleep", "86400")
MEMORY_BYTES = 2 << 30


class Container:
    """One that does nothing until something is started in it. Use it in a `with` block."""

    client = "docker"
    """Name of the processes here that lead to it."""

    def __init__(self, image: str) -> None:
        """Raises Missing where there is no Docker, or the image cannot be had."""
        packages.needs("docker")
        self.name, self._image = f"edgeprof-e2e-{os.getpid()}-{secrets.token_hex(2)}", image

    def __enter__(self) -> Container:  # noqa: PYI034 (typing.Self is 3.11)
        """Start it, with one processor and two GiB."""
        limits = ("--network", "none", "--cpus", "1", "--memory", str(MEMORY_BYTES))
        done = packages.run(["docker", "run", "-d", "--name", self.name, *limits, self._image, *_KEEPS_RUNNING])
        if done.returncode:
            self._remove()
            raise packages.Missing(f"no container of '{self._image}': {done.stderr.strip()[-300:]}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take it away."""
        self._remove()

    def docker(self, command: str) -> None:
        """`stop` it or `start` it again. Raises Missing when Docker refuses."""
        words = ["docker", command, *(("-t", "0") if command == "stop" else ()), self.name]
        done = packages.run(words)
        if done.returncode:
            raise packages.Missing(f"`docker {command}` failed: {done.stderr.strip()[-300:]}")

    def processes(self) -> list[psutil.Process]:
        """What runs in it now beside what keeps it running."""
        lines = packages.run(["docker", "top", self.name, "-o", "pid,args"]).stdout.splitlines()[1:]
        found = []
        for line in lines:
            pid, _, words = line.strip().partition(" ")
            if words.split() != list(_KEEPS_RUNNING):
                try:
                    found.append(psutil.Process(int(pid)))
                except psutil.NoSuchProcess:
                    continue
        return found

    def sessions(self) -> Sequence[list[psutil.Process]]:
        """None: nothing stands between the client and what runs in the container that could be killed alone."""
        return ()

    def listing(self) -> list[str]:
        """Files and folders that were added to the image's."""
        # A moment in which Docker has not seen the last of them.
        time.sleep(1.0)
        lines = packages.run(["docker", "diff", self.name]).stdout.splitlines()
        return sorted(line.partition(" ")[2] for line in lines if line.startswith("A "))

    def _remove(self) -> None:
        packages.run(["docker", "rm", "-f", self.name])
