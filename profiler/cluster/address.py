"""Where the cluster is and with which keys we come: checked before anything is connected."""

from __future__ import annotations

import ipaddress
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from profiler.errors import StudyError

DEFAULT_PORT = 8786
KEYS_VARIABLE = "EDGEPROF_CLUSTER_KEYS"
AUTHORITY, CLIENT_CERTIFICATE, CLIENT_KEY = "ca.pem", "client.pem", "client.key"
_ADDRESS = re.compile(r"(?P<scheme>[a-z]+)://(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s:/@\[\]]+)(:(?P<port>\d{1,5}))?/?")
_MAX_PORT = 65_535


@dataclass(frozen=True)
class Settings:
    """A scheduler's address, and the folder with our certificate for it; no folder without encryption."""

    address: str
    keys: Path | None

    @property
    def encrypted(self) -> bool:
        """Whether it is TLS with certificates on both sides."""
        return self.keys is not None


def settings(address: str, keys: Path | None = None, *, insecure: bool = False) -> Settings:
    """Check an address such as `tls://scheduler.example:8786`, and the files that go with it.

    `keys` is a folder as `edgeprof cluster keys` makes it (of it only ca.pem, client.pem and client.key are read); default: the
    folder that the environment variable EDGEPROF_CLUSTER_KEYS names. Plain `tcp://` is accepted only on this machine's own
    loopback and with `insecure`: whoever can speak to a scheduler can run code on its workers. Raises StudyError.
    """
    found = _ADDRESS.fullmatch(address.strip())
    if found is None or found["scheme"] not in ("tls", "tcp") or int(found["port"] or DEFAULT_PORT) > _MAX_PORT:
        raise StudyError(
            f"cannot read --cluster '{address}': expected tls://HOST:{DEFAULT_PORT}, the scheduler's address."
        )
    text = f"{found['scheme']}://{found['host']}:{found['port'] or DEFAULT_PORT}"
    if found["scheme"] == "tcp":
        if not is_loopback(found["host"].strip("[]")):
            raise StudyError(
                f"--cluster {address} is not encrypted, and who can speak to a scheduler can run code on its workers: "
                "make certificates with `edgeprof cluster keys FOLDER`, start the cluster with them (docs/cluster.md), and "
                "give tls://."
            )
        if not insecure:
            raise StudyError(
                f"--cluster {address} has no encryption and no keys: every user of this machine can run code on its workers. "
                "Add --cluster-insecure if that is fine, or use certificates (`edgeprof cluster keys FOLDER`)."
            )
        return Settings(text, None)
    named = os.environ.get(KEYS_VARIABLE)
    folder = keys or (Path(named) if named else None)
    if folder is None:
        raise StudyError(
            f"--cluster {address} needs a client's certificate: name its folder with --cluster-keys or {KEYS_VARIABLE}; "
            "`edgeprof cluster keys FOLDER` makes one for a new cluster."
        )
    folder = folder.expanduser()
    for name in (AUTHORITY, CLIENT_CERTIFICATE, CLIENT_KEY):
        if not (folder / name).is_file():
            raise StudyError(
                f"'{folder}' has no {name}: expected {AUTHORITY}, {CLIENT_CERTIFICATE} and {CLIENT_KEY} as "
                "`edgeprof cluster keys` makes them."
            )
    if stat.S_IMODE((folder / CLIENT_KEY).stat().st_mode) & (stat.S_IRWXG | stat.S_IRWXO):
        raise StudyError(
            f"'{folder / CLIENT_KEY}' can be read by others than you, and it is the right to run code on the cluster: "
            f"`chmod 600 {folder / CLIENT_KEY}`."
        )
    return Settings(text, folder)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine by its number, or by the name `localhost`; other names are not looked up."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
