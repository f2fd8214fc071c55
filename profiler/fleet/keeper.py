"""Keeping leases: a thread that says "still there" where no result did, and stops a queue whose device is not ours any more."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from threading import Event, Lock, Thread

from profiler.errors import StoreError
from profiler.leases import Lease, LeaseLost
from profiler.store import Store

_RENEWED_SHARE = 1 / 3
"""Of a lease's time after which it is renewed, when no result has done it."""
_GIVEN_UP_SHARE = 0.8
"""After so much without an answer from the database we stop, so that whoever takes the device over finds it idle."""


class Keeper:
    """The leases of one run. Results renew them by themselves: while a device answers often, this thread only sleeps."""

    def __init__(self, store: Store, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`store` is one without a lease of its own; `clock` that of `Lease.renewed_s`."""
        self._store, self._clock = store, clock
        self._held: dict[str, tuple[Lease, Callable[[], None]]] = {}
        self._lock, self._wake = Lock(), Event()
        self._thread: Thread | None = None
        self._closed = False

    def add(self, lease: Lease, lost: Callable[[], None]) -> None:
        """Keep a lease; `lost` is called, in the thread, when it does not hold any more."""
        with self._lock:
            self._held[lease.id] = lease, lost
            if self._thread is None:
                self._thread = Thread(target=self._run, name="edgeprof leases", daemon=True)
                self._thread.start()
        self._wake.set()

    def drop(self, lease: Lease) -> None:
        """Stop keeping it."""
        with self._lock:
            self._held.pop(lease.id, None)

    def close(self) -> None:
        """End the thread."""
        self._closed = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()

    def look(self) -> float:
        """Renew what is due; returns the seconds until the next is."""
        with self._lock:
            held = list(self._held.values())
        waits = []
        for lease, lost in held:
            due = lease.renewed_s + _RENEWED_SHARE * lease.ttl_s
            if due <= self._clock() and not self._renewed(lease):
                lease.gone.set()
                self.drop(lease)
                lost()
                continue
            # One that could not be renewed is tried again soon.
            waits.append(max(due, self._clock() + 0.05 * lease.ttl_s) - self._clock())
        return min(waits, default=3600.0)

    def _renewed(self, lease: Lease) -> bool:
        try:
            self._store.renew(lease)
        except LeaseLost:
            return False
        except StoreError:
            return self._clock() - lease.renewed_s < _GIVEN_UP_SHARE * lease.ttl_s
        return True

    def _run(self) -> None:
        while not self._closed:
            self._wake.clear()
            wait_s = 1.0
            with suppress(OSError):
                wait_s = self.look()
            self._wake.wait(wait_s)
