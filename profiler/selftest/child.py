"""What disturbs: small programs in processes of their own, started by file name, so only the standard library is imported here.

Each writes a line `start end` (seconds of CLOCK_MONOTONIC) for every stretch in which it disturbed. They end on SIGTERM, and by
themselves when their parent is gone: an injected disturbance must not outlive the experiment.
"""

import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence

LOOK_S = 0.02
"""How often a child looks whether its parent still lives."""

Emit = Callable[[str], object]


def spin(
    on_s: float, off_s: float, seed: int, alive: Callable[[], bool], emit: Emit,
    clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep,
) -> None:  # fmt: skip
    """Keep a processor busy: always when `off_s` is 0, else for `on_s` at a time with random pauses, `off_s` on average."""
    draw = random.Random(seed)
    while alive():
        begin = clock()
        try:
            while (now := clock()) < begin + on_s:
                if off_s == 0 and now - begin > LOOK_S:
                    break
        finally:
            emit(f"{begin:.9f} {clock():.9f}")
        if off_s:
            _nap(draw.expovariate(1 / off_s), alive, clock, sleep)


def pulse(
    pids: Sequence[int], stop_s: float, gap_s: float, seed: int, alive: Callable[[], bool], emit: Emit,
    clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep,
    kill: Callable[[int, int], None] = os.kill,
) -> None:  # fmt: skip
    """Stop the processes for `stop_s`, again and again with random gaps of `gap_s` on average, until none of them is left."""
    draw = random.Random(seed)
    left = list(pids)
    while True:
        # At least half a gap: pulses that merge would count as one.
        _nap(gap_s * (0.5 + draw.random()), alive, clock, sleep)
        left = [pid for pid in left if _signal(kill, pid, 0)]
        if not left or not alive():
            return
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            stopped = [pid for pid in left if _signal(kill, pid, signal.SIGSTOP)]
            begin = clock()
            sleep(stop_s)
            end = clock()
            for pid in stopped:
                _signal(kill, pid, signal.SIGCONT)
            emit(f"{begin:.9f} {end:.9f}")
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def hog(size_bytes: int, alive: Callable[[], bool], emit: Emit, clock: Callable[[], float] = time.monotonic) -> None:
    """Hold `size_bytes` of memory and copy it about, which fills the caches and the memory bus that all cores share."""
    half = max(1, size_bytes // 2)
    memory = bytearray(b"\x01") * half
    other = bytearray(half)
    while alive():
        begin = clock()
        other[:] = memory
        memory, other = other, memory
        emit(f"{begin:.9f} {clock():.9f}")


def _nap(seconds: float, alive: Callable[[], bool], clock: Callable[[], float], sleep: Callable[[float], None]) -> None:
    until = clock() + seconds
    while (left := until - clock()) > 0 and alive():
        sleep(min(left, LOOK_S))


def _signal(kill: Callable[[int, int], None], pid: int, number: int) -> bool:
    try:
        kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def main(arguments: Sequence[str]) -> None:
    """`child.py PARENT spin ON OFF SEED | pulse STOP GAP SEED PID… | hog BYTES`, the log on stdout."""
    parent, kind, *rest = arguments

    def alive() -> bool:
        return os.getppid() == int(parent)

    def emit(line: str) -> None:
        # Unbuffered, so that a kill loses nothing.
        os.write(1, f"{line}\n".encode())

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    emit("ready")
    if kind == "spin":
        spin(float(rest[0]), float(rest[1]), int(rest[2]), alive, emit)
    elif kind == "pulse":
        pulse([int(pid) for pid in rest[3:]], float(rest[0]), float(rest[1]), int(rest[2]), alive, emit)
    elif kind == "hog":
        hog(int(rest[0]), alive, emit)
    else:
        raise SystemExit(f"unknown disturbance '{kind}'")


if __name__ == "__main__":
    main(sys.argv[1:])
