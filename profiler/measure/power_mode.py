"""Power modes of NVIDIA Jetson: which there are, which one is set, and setting another one for as long as this process lives.

`nvpmodel` is the vendor's tool, its catalogue `/etc/nvpmodel.conf` (`< POWER_MODEL ID=0 NAME=15W >`); numbers and names differ
between boards. It remembers its mode over reboots, so the mode that the machine had is written down before it is changed, and a
shell that survives this process sets it again (Jetson Linux Developer Guide, Platform Power and Performance).
"""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from backends.errors import BackendUnavailable
from profiler.measure.afterwards import run_afterwards

_MODEL = re.compile(r"^[ \t]*<[ \t]*POWER_MODEL[ \t]+ID=(\d{1,4})[ \t]+NAME=([^\s>]{1,64})", re.MULTILINE)
_CURRENT = re.compile(r"NV Power Mode:\s*(\S{1,64})\s+(\d{1,4})\b")
_STATUS = re.compile(r"pmode:\s*(\d{1,4})\b")
_MAX_BYTES = 1 << 20
_COMMAND_S = 60.0
_LOCK_S = 30.0
_MORE_PLACES = "/usr/sbin:/sbin:/usr/local/sbin"
"""Where nvpmodel is, and a shell without log-in does not look."""
# $1 is the marker, the rest the command up to the mode's number. A question about a reboot gets a no.
_RESTORE = (
    'marker=$1; shift; if [ -s "$marker" ]; then mode=$(cat "$marker"); printf "no\\n" | "$@" "$mode" && : > "$marker"; fi; '
    '[ -s "$marker" ] || rm -f "$marker"'
)

Run = Callable[[Sequence[str]], "tuple[int, str]"]
"""Runs a command with `no` as its input; its exit code and everything it printed. Raises OSError, SubprocessError."""


class NoPowerMode(BackendUnavailable):
    """A power mode cannot be set here, or is not the one that should be; the text says why and what to do."""


def run(command: Sequence[str]) -> tuple[int, str]:
    """Run the real command."""
    done = subprocess.run(
        list(command), input="no\n", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        timeout=_COMMAND_S, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout


def which(name: str) -> str | None:
    """The path of a command."""
    import shutil  # brings compression libraries along: not into every worker

    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", os.defpath), _MORE_PLACES]))


def catalogue(text: str) -> dict[int, str]:
    """Names of the modes in the text of an nvpmodel.conf, by number; empty for anything else."""
    return {int(number): name for number, name in _MODEL.findall(text)}


def find(asked: str, modes: Mapping[int, str]) -> int:
    """The number of the mode that is asked for by number, name, or the part of a name that only one has. Raises NoPowerMode.

    A bare number is nvpmodel's own, as in `nvpmodel -m 2`; watts are written `15W`.
    """
    listed = ", ".join(f"{number}={name}" for number, name in sorted(modes.items()))
    if asked.isdecimal() and int(asked) in modes:
        return int(asked)
    wanted = asked.casefold()
    for good in (
        lambda name: name == wanted,
        lambda name: name == f"mode_{wanted}",
        lambda name: wanted in name.split("_"),
    ):
        found = [number for number, name in modes.items() if good(name.casefold())]
        if len(found) == 1:
            return found[0]
        if found:
            break
    what = "fits several of" if found else "is none of"
    raise NoPowerMode(f"power mode '{asked}' {what} this machine's: {listed}. Give its number or whole name.")


@dataclass
class PowerModes:
    """The power modes of this machine."""

    root: Path = Path("/")
    run: Run = run
    which: Callable[[str], str | None] = which
    is_root: Callable[[], bool] = lambda: os.geteuid() == 0
    marker: Path = field(default_factory=lambda: Path(os.path.expanduser("~/.cache/edgeprof-power-mode")))  # noqa: PTH111 (raises nothing)
    """Holds the mode to go back to while another one is set; locked by whoever set it."""
    afterwards: Callable[..., object] = run_afterwards
    sleep: Callable[[float], None] = time.sleep
    _lock: int | None = None

    def modes(self) -> dict[int, str]:
        """Names by number. Raises NoPowerMode on a machine that has none."""
        path = self.root / "etc/nvpmodel.conf"
        try:
            with path.open("rb") as file:
                found = catalogue(file.read(_MAX_BYTES).decode(errors="replace"))
        except OSError:
            found = {}
        if not found:
            raise NoPowerMode(
                f"this machine has no power modes that edgeprof can set ({path} lists none): only NVIDIA Jetson has. "
                "Leave power= out."
            )
        return found

    def current(self) -> int | None:
        """The number of the mode that is set; None when it cannot be read."""
        tool = self.which("nvpmodel")
        if tool is not None:
            try:
                match = _CURRENT.search(self.run([tool, "-q"])[1])
            except (OSError, subprocess.SubprocessError):
                match = None
            if match is not None:
                return int(match[2])
        try:
            match = _STATUS.search((self.root / "var/lib/nvpmodel/status").read_text(errors="replace"))
        except OSError:
            return None
        return int(match[1]) if match is not None else None

    def check(self, asked: str) -> str:
        """Whether the mode could be set: it exists, and so does the tool. Nothing is changed. Raises NoPowerMode."""
        modes = self.modes()
        number = find(asked, modes)
        self._tool()
        return self._words(number, modes)

    def verify(self, asked: str) -> str:
        """Raises NoPowerMode unless the mode is set now."""
        modes = self.modes()
        number, now = find(asked, modes), self.current()
        if now != number:
            raise NoPowerMode(
                f"the power mode should be {self._words(number, modes)}, but it is {self._words(now, modes)}: did something else "
                "change it?"
            )
        return self._words(number, modes)

    def set(self, asked: str) -> str:
        """Set the mode until `restore`, or the end of this process, however it ends. Raises NoPowerMode; then nothing changed."""
        modes = self.modes()
        number = find(asked, modes)
        tool = self._tool()
        self._own(tool)
        before = self._remembered()
        now = self.current()
        if before is None and now is None:
            raise NoPowerMode(
                "the present power mode cannot be read (`nvpmodel -q`), so it could not be restored: not changed."
            )
        if now != number:
            self._remember(now if before is None else before)
            self._change(tool, number, modes)
        return self._words(number, modes)

    def restore(self) -> None:
        """Go back to the mode from before the first `set`. Raises NoPowerMode when that fails; it is tried again at the end."""
        before = self._remembered() if self._lock is not None else None
        if before is None:
            return
        if self.current() != before:
            self._change(self._tool(), before, self.modes())
        self._remember(None)

    def _change(self, tool: Sequence[str], number: int, modes: Mapping[int, str]) -> None:
        words = self._words(number, modes)
        try:
            code, said = self.run([*tool, str(number)])
        except subprocess.TimeoutExpired:
            raise NoPowerMode(
                f"nvpmodel did not set {words} within {_COMMAND_S:g} s: another program may hold it (nvpmodel_indicator of the "
                "desktop does)."
            ) from None
        except (OSError, subprocess.SubprocessError) as error:
            raise NoPowerMode(f"nvpmodel could not be run: {error}.") from None
        last = " / ".join(line.strip() for line in said.splitlines() if line.strip())[-300:]
        if "reboot" in said.casefold():
            raise NoPowerMode(
                f"the change to power mode {words} needs a reboot, which edgeprof does not do. Set it by hand "
                f"(`sudo nvpmodel -m {number}`), let the machine restart, and measure with that mode alone. It said: {last}"
            )
        if "password" in said.casefold() or "not allowed" in said.casefold() or "may not run" in said.casefold():
            raise NoPowerMode(
                f"setting power mode {words} needs root: allow it without a password (visudo: `USER ALL=(root) NOPASSWD: "
                f"{tool[-2]}`), or set it by hand. It said: {last}"
            )
        now = self.current()
        if code != 0 or now != number:
            raise NoPowerMode(
                f"power mode {words} was not taken (exit code {code}, the mode is {self._words(now, modes)}). It said: {last}"
            )

    def _tool(self) -> list[str]:
        """The command up to the mode's number."""
        tool = self.which("nvpmodel")
        if tool is None:
            raise NoPowerMode(f"nvpmodel is not on this machine (looked in PATH and {_MORE_PLACES}).")
        if self.is_root():
            return [tool, "-m"]
        sudo = self.which("sudo")
        if sudo is None:
            raise NoPowerMode(
                "setting a power mode needs root, and there is no sudo here: log in as root, or set it by hand."
            )
        return [sudo, "-n", tool, "-m"]

    def _own(self, tool: Sequence[str]) -> None:
        """Take the marker for this process, and have the mode restored after its end."""
        if self._lock is not None:
            return
        try:
            self._lock = self._locked()
            self.afterwards(_RESTORE, str(self.marker), *tool, pass_fds=(self._lock,))
        except OSError as error:
            self._lock = None
            raise NoPowerMode(
                f"the power mode is not changed, since it could not be restored: {self.marker}: {error.strerror or error}."
            ) from None

    def _locked(self) -> int:
        """The marker, locked. Waits for the shell of an earlier run, which restores and then lets go."""
        self.marker.parent.mkdir(parents=True, exist_ok=True)
        waited = 0.0
        while True:
            handle = os.open(self.marker, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Its last holder may have removed it meanwhile: then another file has its name.
                if self.marker.exists() and os.path.samestat(os.fstat(handle), self.marker.stat()):
                    return handle
                os.close(handle)
            except BlockingIOError:
                os.close(handle)
                if waited >= _LOCK_S:
                    raise NoPowerMode(
                        "another run holds the power mode of this machine: wait for it to end. "
                        "Two at once would change it under each other."
                    ) from None
                self.sleep(0.5)
                waited += 0.5

    def _remembered(self) -> int | None:
        assert self._lock is not None
        text = os.pread(self._lock, 20, 0).decode(errors="replace").strip()
        return int(text) if text.isdecimal() else None

    def _remember(self, number: int | None) -> None:
        assert self._lock is not None
        os.ftruncate(self._lock, 0)
        if number is not None:
            os.pwrite(self._lock, str(number).encode(), 0)
            # The mode outlives a reboot, so the way back must too.
            os.fsync(self._lock)

    @staticmethod
    def _words(number: int | None, modes: Mapping[int, str]) -> str:
        return "not known" if number is None else f"{modes.get(number, 'unnamed')} (mode {number})"
