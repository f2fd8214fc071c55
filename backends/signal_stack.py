"""Keeps OpenVINO from leaving a trap behind for Ctrl-C.

When it compiles a model for a CPU (2026.4.1), it gives the calling thread an alternate stack for signal handlers; the compiled
model puts the one from before back when it goes. Of two models of which the first goes first, the second puts back memory that
is freed. Python runs its handlers on the alternate stack: the next Ctrl-C then ends the process with a segmentation fault, so
that nothing is told and nothing is marked as interrupted (sigaltstack(2)).
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class Stack(ctypes.Structure):
    """`stack_t` as Linux has it."""

    _fields_ = (("sp", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def current() -> Stack | None:
    """This thread's alternate stack, disabled where it has none; None where that cannot be asked."""
    if not sys.platform.startswith("linux"):
        return None
    found = Stack()
    return found if ctypes.CDLL(None).sigaltstack(None, ctypes.byref(found)) == 0 else None


@contextmanager
def kept() -> Iterator[None]:
    """This thread has the alternate stack afterwards that it had before."""
    before = current()
    try:
        yield
    finally:
        if before is not None:
            ctypes.CDLL(None).sigaltstack(ctypes.byref(before), None)
