"""Breaks connections at random moments while a run is in progress, from either side, one of them or all at once."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from profiler import api
from profiler.store import DATABASE_NAME, RunData, open_store
from scripts.targets_lib import compare
from scripts.targets_lib.container import Container
from scripts.targets_lib.product import Checks, Edgeprof, Failed, write_study
from scripts.targets_lib.sshd import Server, kill_session

_RUN_S = 900.0


class Storm:
    """So many broken connections, drawn from one seed."""

    def __init__(self, server: Server | Container, kills: int, longest_gap_s: float, seed: int) -> None:
        """`kills` over all runs that are driven through it, with pauses between them up to `longest_gap_s`."""
        self._server, self.left, self._gap_s = server, kills, longest_gap_s
        self._random = random.Random(seed)
        self.by_client = self.by_server = self.controllers = 0
        self.gave_up: list[str] = []
        """Last words of runs that ended by themselves and were resumed."""

    def through(self, edgeprof: Edgeprof, study: Path, out: Path, *, kill_controller: bool) -> int:
        """Do the study while connections break, resuming whenever it ends; how often it was begun. Raises Failed."""
        log, starts, end = out.parent / f"{out.name}.log", 0, time.monotonic() + _RUN_S
        # The run itself is killed once, half-way, so that what resumes is not only the run's own retry.
        controller_at = self.left // 2 if kill_controller else -1
        while time.monotonic() < end:
            again = ("--resume", "latest") if _begun(out) else (str(study),)
            process = edgeprof.start("run", *again, "--out", str(out), log=log)
            starts += 1
            due = time.monotonic() + self._random.uniform(0.2, self._gap_s)
            while process.poll() is None and time.monotonic() < end:
                time.sleep(0.02)
                if self.left and time.monotonic() >= due and self._strike(process):
                    due = time.monotonic() + self._random.uniform(0.2, self._gap_s)
                    if self.left == controller_at:
                        controller_at = -1
                        self.controllers += 1
                        process.kill()
            if process.poll() is None:
                process.kill()
                process.wait()
                break
            if process.returncode in (0, 1):
                return starts
            if process.returncode not in (2, -9):
                raise Failed(f"the run ended with {process.returncode}: {log.read_text()[-1500:]}")
            if process.returncode == 2:
                last = log.read_text(errors="replace").strip().splitlines()[-1]
                if "connection" not in last and "answer" not in last:
                    raise Failed(f"the run did not end for a broken connection: {log.read_text()[-1500:]}")
                self.gave_up.append(last)
        raise Failed(f"the run was not done after {_RUN_S:g} s: {log.read_text()[-1500:]}")

    def _strike(self, process: subprocess.Popen[str]) -> bool:
        """Break one connection or all, at either end; False when there is none."""
        try:
            below = psutil.Process(process.pid).children(recursive=True)
            clients = [child for child in below if child.name() == self._server.client]
        except psutil.NoSuchProcess:
            return False
        sessions = [session for session in self._server.sessions() if session]
        client_side, all_of_them = self._random.random() < 0.5, self._random.random() < 0.5
        found = [[client] for client in clients] if client_side else sessions
        if not found or not clients:
            return False
        chosen = found if all_of_them else [self._random.choice(found)]
        if not sum(kill_session(each) for each in chosen):
            return False
        self.left -= 1
        self.by_client += client_side
        self.by_server += not client_side
        return True


@dataclass(frozen=True)
class Stormed:
    """What a study came to while connections broke, beside the same study on this machine."""

    last: RunData
    """The last of the runs there."""
    counts: Mapping[str, int]
    seconds: float


def drive(
    edgeprof: Edgeprof, place: Server | Container, target: str, storm: Storm, folder: Path, effort: Mapping[str, Any],
    fields: Mapping[str, Any], checks: Checks, where: str,
) -> Stormed:  # fmt: skip
    """The same study here and, until the storm is over, there; each run there must hold what the local one does."""
    here = write_study(folder / "here.toml", dict(effort), **fields)
    there = write_study(folder / "there.toml", dict(effort), **fields, targets=(target,))
    edgeprof.must("run", str(here), "--out", str(folder / "here"))
    local, began = api.open_run(out=folder / "here").run, time.monotonic()
    runs = starts = retries = 0
    while storm.left or not runs:
        out = folder / f"there{runs}"
        starts += storm.through(edgeprof, there, out, kill_controller=not storm.controllers)
        retries += notes(folder / f"{out.name}.log")
        last = api.open_run(out=out).run
        different = compare.differences(last, local, target)
        checks.expect(not different, f"run {runs} {where} holds what the local run holds", "; ".join(different))
        await_empty(place, checks, f"after run {runs}")
        runs += 1
    checks.expect(retries > 0, "connections that broke were tried again by the run itself")
    checks.expect(starts > runs, "a killed run was resumed")
    counts = {
        "runs killed": storm.controllers, "runs": runs, "resumed": starts - runs, "tried again": retries,
        "blocks": len(local.blocks), "cases": len(local.plan["cases"]),
    }  # fmt: skip
    return Stormed(last, counts, time.monotonic() - began)


def table(
    title: str, counts: Mapping[str, int], checks: Checks, seconds: float
) -> tuple[str, list[str], list[list[str]]]:
    """The counts as a fact and as a table: title, head and rows."""
    checks.fact(f"{', '.join(f'{key} {value}' for key, value in counts.items())}; {seconds:.0f} s")
    return title, list(counts), [[str(value) for value in counts.values()]]


def notes(log: Path) -> int:
    """How often the run said that it tries again."""
    return log.read_text(errors="replace").count("Trying again")


def await_empty(server: Server | Container, checks: Checks, when: str, seconds: float = 20.0) -> None:
    """Nothing may go on running in the account once nobody is connected."""
    end = time.monotonic() + seconds
    while server.processes() and time.monotonic() < end:
        time.sleep(0.1)
    left = [" ".join(process.cmdline())[:100] for process in server.processes()]
    checks.expect(not left, f"no process is left there {when}", "; ".join(left))


def _begun(out: Path) -> bool:
    if not (out / DATABASE_NAME).is_file():
        return False
    store = open_store(out)
    try:
        return bool(store.runs())
    finally:
        store.close()
