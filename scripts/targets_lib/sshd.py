"""A real ssh server on loopback with one account: own keys, own configuration, an empty home, no network.

The server's settings are those that were found to work without PAM and without a service. What runs in the account gets a
clean environment with a mark of ours in it, so that whatever is left over can be found, and a network namespace of its own
where this machine lets us make one: then nothing there reaches a registry, not even by mistake.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

from scripts.targets_lib import packages
from scripts.targets_lib.packages import Missing, run

MARK = "EDGEPROF_E2E"
HOST = "e2e-device"
_START_S = 20.0
_SETTINGS = """\
ListenAddress 127.0.0.1
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
UseDNS no
PrintMotd no
MaxSessions 100
MaxStartups 100:30:200
"""


class Server:
    """The server and what is needed to reach it, below one folder. Use it in a `with` block."""

    client = "ssh"
    """Name of the processes here that lead to it."""

    def __init__(self, folder: Path) -> None:
        """Raises Missing for what cannot be had here."""
        packages.needs("ssh", "ssh-keygen", "unshare")
        self.folder = folder
        self.home, self.link = folder / "home", folder / "link"
        self.config, self.known_hosts = folder / "ssh_config", folder / "known_hosts"
        self.mark = secrets.token_hex(8)
        for place in (self.home, self.link, folder / "empty"):
            place.mkdir(parents=True)
        self.port = _free_port()
        self.isolation = _isolation()
        self._process: subprocess.Popen[bytes] | None = None
        for key in ("host", "other_host", "user"):
            _made(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "e2e", "-f", str(folder / f"{key}_key")])
        shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
        self._write_device()
        self.trust("host")
        self.connect_by()

    def __enter__(self) -> Server:  # noqa: PYI034 (typing.Self is 3.11)
        """Start it; returns when it takes connections."""
        program, environment = _program()
        settings = [
            _SETTINGS, f"Port {self.port}", f"HostKey {self.folder}/host_key",
            f"AuthorizedKeysFile {self.folder}/authorized_keys", f"ForceCommand {self.folder}/login",
        ]  # fmt: skip
        libexec = program.parents[1] / "lib" / "openssh"
        # From OpenSSH 9.8 on the server is several programs, which are looked for where they would be installed.
        settings += [f"SshdSessionPath {libexec}/sshd-session"] if (libexec / "sshd-session").is_file() else []
        settings += [f"SshdAuthPath {libexec}/sshd-auth"] if (libexec / "sshd-auth").is_file() else []
        (self.folder / "sshd_config").write_text("\n".join(settings) + "\n")
        command = [str(program), "-D", "-e", "-f", str(self.folder / "sshd_config")]
        with (self.folder / "sshd.log").open("wb") as log:
            self._process = subprocess.Popen(
                self._as_root(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **environment},
            )
        end = time.monotonic() + _START_S
        while time.monotonic() < end and self._process.poll() is None:
            try:
                with socket.create_connection(("127.0.0.1", self.port), 1.0):
                    return self
            except OSError:
                time.sleep(0.05)
        words = (self.folder / "sshd.log").read_text(errors="replace")[-500:]
        self._end()
        raise Missing(f"the ssh server does not start here: {words}")

    def __exit__(self, *error: object) -> None:
        """End it and every session."""
        self._end()

    def ended(self) -> int | None:
        """Exit code of the server itself when somebody ended it, None while it runs."""
        return None if self._process is None else self._process.poll()

    def trust(self, key: str | None) -> None:
        """Make the client know the server by that key (`host` is the right one), or by none."""
        text = "" if key is None else (self.folder / f"{key}_key.pub").read_text()
        words = text.split()
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {words[0]} {words[1]}\n" if words else "")

    def connect_by(self, *, relay: bool = False) -> None:
        """Write the client's configuration: straight, or over the link that counts and breaks."""
        lines = [
            f"Host {HOST}", "HostName 127.0.0.1", f"Port {self.port}", f"User {pwd.getpwuid(os.getuid()).pw_name}",
            f"IdentityFile {self.folder}/user_key", "IdentitiesOnly yes", f"UserKnownHostsFile {self.known_hosts}",
            "GlobalKnownHostsFile /dev/null", "LogLevel ERROR",
        ]  # fmt: skip
        if relay:
            script = Path(__file__).with_name("relay.py")
            lines.append(f"ProxyCommand {shlex.join([sys.executable, str(script), '%h', '%p', str(self.link)])}")
        self.config.write_text("\n    ".join(lines) + "\n")

    def processes(self) -> list[psutil.Process]:
        """What runs in the account now, without the server's own sessions."""
        found = []
        wanted = f"{MARK}={self.mark}".encode()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    if wanted in (entry / "environ").read_bytes().split(b"\0"):
                        found.append(psutil.Process(int(entry.name)))
                except (OSError, psutil.NoSuchProcess):
                    continue
        return found

    def sessions(self) -> list[list[psutil.Process]]:
        """The server's processes, one list for each connection, without what runs in the account."""
        if self._process is None:
            return []
        try:
            connections = psutil.Process(self._process.pid).children()
        except psutil.NoSuchProcess:
            return []
        found = []
        for connection in connections:
            try:
                below = connection.children(recursive=True)
                found.append([connection, *(each for each in below if each.name().startswith("sshd"))])
            except psutil.NoSuchProcess:
                continue
        return found

    def listing(self) -> list[str]:
        """Everything in the account's home."""
        return sorted(path.relative_to(self.home).as_posix() for path in self.home.rglob("*"))

    def _write_device(self) -> None:
        # An interpreter without pip and without packages, and a shell: all that a device needs to bring.
        _made([sys.executable, "-m", "venv", "--without-pip", "--symlinks", str(self.folder / "usr")])
        (self.folder / "usr" / "bin" / "sh").symlink_to("/bin/sh")
        environment = {"HOME": self.home, "PATH": self.folder / "usr" / "bin", "LANG": "C.UTF-8", MARK: self.mark}
        words = [shutil.which("env") or "env", "-i", *(f"{key}={value}" for key, value in environment.items())]
        login = self.folder / "login"
        login.write_text(
            f"#!/bin/sh\ncd {shlex.quote(str(self.home))} || exit 1\n"
            f'exec {shlex.join([*words, *self.isolation])} /bin/sh -c "$SSH_ORIGINAL_COMMAND"\n'
        )
        login.chmod(0o755)

    def _as_root(self, command: list[str]) -> list[str]:
        """Root's server wants an account and a folder that its package would make: it gets them in a mount namespace."""
        if os.getuid() != 0:
            return command
        users = Path("/etc/passwd").read_text()
        if "\nsshd:" not in users:
            users += f"sshd:x:65533:65534::{self.folder}/empty:/usr/sbin/nologin\n"
        (self.folder / "passwd").write_text(users)
        script = (
            f"mount --bind {shlex.quote(str(self.folder / 'passwd'))} /etc/passwd && mount -t tmpfs -o mode=755 none /run && "
            f"mkdir -m 755 /run/sshd && exec {shlex.join(command)}"
        )
        return ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]

    def _end(self) -> None:
        if self._process is None:
            return
        for process in [each for session in self.sessions() for each in session]:
            _kill(process)
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def kill_session(session: list[psutil.Process]) -> bool:
    """End one connection at the server's side at once; False when it had ended already."""
    return sum(_kill(process) for process in session) > 0


def _kill(process: psutil.Process) -> bool:
    try:
        process.send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        return False
    return True


def _program() -> tuple[Path, dict[str, str]]:
    """The server, the machine's own or the package's, with what it needs to find its libraries."""
    own = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if own is not None:
        return Path(own), {}
    place = packages.unpacked("sshd", ["openssh-server", "libwrap0"])
    libraries = [str(path) for path in (place / "usr" / "lib").glob("*-linux-gnu*")]
    return place / "usr" / "sbin" / "sshd", {"LD_LIBRARY_PATH": ":".join(libraries)}


def _isolation() -> tuple[str, ...]:
    """Words that take the network away, or none where that is not possible."""
    program = shutil.which("unshare") or "unshare"
    for words in ((program, "--net"), (program, "--map-root-user", "--net")):
        if run([*words, "true"]).returncode == 0:
            return (*words, "--")
    return ()


def _made(command: list[str]) -> None:
    done = run(command)
    if done.returncode:
        raise Missing(f"{command[0]} failed: {done.stderr.strip()[-300:]}")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
