"""A key that can do nothing on a device but start the worker that was put there: a line for its `~/.ssh/authorized_keys`.

With such a line a host that was taken over can have models measured there, and no more: no shell, no files, no forwarding. The
command stands in the line, so what a host asks for is not looked at (sshd(8), "AUTHORIZED_KEYS FILE FORMAT").
"""

from __future__ import annotations

import re

from profiler.errors import TargetError
from profiler.targets import base, config

_KEY = re.compile(r"(?:ssh-|ecdsa-sha2-|sk-)[a-z0-9@.-]+ [A-Za-z0-9+/]+={0,3}(?: [\x21-\x7e ]*)?")


def authorized_key(spec: config.TargetSpec, public_key: str) -> str:
    """The line with which `public_key` (the text of a `.pub` file) may start this target's worker and nothing else.

    It names the bundles that are there now: after the next `edgeprof target setup`, which takes another key, it is a new line.
    Raises TargetError for what is no public key, for a target that was not set up, and for one that is not reached by ssh.
    """
    key = public_key.strip()
    if not _KEY.fullmatch(key):
        raise TargetError(
            "that is no public key: one line is expected, `ssh-ed25519 AAAA… name`, as ssh-keygen writes it to a file "
            "whose name ends in .pub."
        )
    if not spec.shell or spec.prefix[0] != "ssh":
        raise TargetError(f"target '{spec.name}' is not reached by ssh: only sshd can hold a key to one command.")
    command = base.remote(spec).command[-1]
    # sshd takes away a backslash before a quote, and no other.
    return 'restrict,command="{}" {}'.format(command.replace('"', '\\"'), key)
