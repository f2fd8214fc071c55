"""A link that counts and breaks: `ProxyCommand relay.py HOST PORT FOLDER`.

Between ssh and its server it keeps in FOLDER/PID.sent how many bytes this connection carried there, and ends without a word
before it carries more than FOLDER/cut says.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from pathlib import Path


def main(host: str, port: str, folder: str) -> None:
    """Until one side ends."""
    place = Path(folder)
    limit = int((place / "cut").read_text()) if (place / "cut").is_file() else None
    link = socket.create_connection((host, int(port)))
    threading.Thread(target=_back, args=(link,), daemon=True).start()
    # Overwritten in place: ssh may end us at any moment, and a number that is there must be whole.
    count, sent = os.open(place / f"{os.getpid()}.sent", os.O_WRONLY | os.O_CREAT, 0o600), 0
    os.pwrite(count, b"%020d" % sent, 0)
    while data := os.read(0, 1 << 16):
        if limit is not None and sent + len(data) > limit:
            # As when a cable is pulled: neither side is told.
            os._exit(1)
        link.sendall(data)
        sent += len(data)
        os.pwrite(count, b"%020d" % sent, 0)
    link.shutdown(socket.SHUT_WR)


def _back(link: socket.socket) -> None:
    while data := link.recv(1 << 16):
        os.write(1, data)
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
