"""What has to be done when this process has ended, however it ends: killed, out of memory, forgotten by its host.

A shell sleeps in a read of a pipe whose other end only this process holds, so the kernel wakes it when the process is gone.
It has a session of its own and no terminal, pipe or file of ours, so that nothing waits for it.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Collection

_SHELL = "/bin/sh"
_START_S = 30.0
# The outer shell ends at once: what sleeps is no child of ours, so that its memory is not counted as ours.
_SLEEP = 'exec 3<&0; ( trap "" HUP INT TERM; read -r gone <&3; {script} ) & '


def run_afterwards(script: str, *words: str, pass_fds: Collection[int] = ()) -> int:
    """Have `sh` run `script`, with `words` as its `$1`, `$2`, …, after the end of this process.

    Returns the descriptor that keeps the shell asleep: close it, and the script runs now. `pass_fds` stay open in the shell, with
    their locks. Raises OSError when there is no shell to start.
    """
    reader, writer = os.pipe()
    try:
        subprocess.run(
            [_SHELL, "-c", _SLEEP.format(script=script), "edgeprof-afterwards", *words],
            stdin=reader, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
            pass_fds=tuple(pass_fds), check=True, timeout=_START_S,
        )  # fmt: skip
    except subprocess.SubprocessError as error:
        os.close(writer)
        raise OSError(f"{_SHELL} could not be started: {error}") from error
    except OSError:
        os.close(writer)
        raise
    finally:
        os.close(reader)
    return writer
