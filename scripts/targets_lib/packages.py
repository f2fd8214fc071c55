"""Debian packages unpacked into the cache, without installing anything: the ssh server, the emulator, a root of another kind."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from scripts.real_models_lib.fetch import ROOT

CACHE = ROOT / ".cache" / "targets"
_FETCH_S = 300.0


class Missing(Exception):  # noqa: N818 (a state of the machine, not a mistake)
    """Something this machine does not have; the text says what, and how to get it."""


def needs(*programs: str) -> None:
    """Raise Missing for the first of these that is not on the path."""
    for program in programs:
        if shutil.which(program) is None:
            raise Missing(
                f"'{program}' is not on this machine: these devices are made with Debian's or Ubuntu's tools."
            )


def unpacked(name: str, packages: Sequence[str]) -> Path:
    """The folder with the packages' files, from the cache when they were unpacked before. Raises Missing."""
    place = CACHE / name
    if (place / ".complete").is_file():
        return place
    needs("apt-get", "dpkg")
    fresh, debs = CACHE / f".{name}.{os.getpid()}", CACHE / f".debs.{os.getpid()}"
    try:
        debs.mkdir(parents=True)
        # As they are listed here, or else with fresh lists, for which one must be root.
        if run(["apt-get", "download", *packages], cwd=debs).returncode:
            run(["apt-get", "-qq", "update"], cwd=debs)
            done = run(["apt-get", "download", *packages], cwd=debs)
            if done.returncode:
                raise Missing(f"apt-get cannot download {', '.join(packages)}: {done.stderr.strip()[-300:]}")
        unpack(sorted(debs.glob("*.deb")), fresh)
        publish(fresh, place)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(debs, ignore_errors=True)
    return place


def publish(fresh: Path, place: Path) -> None:
    """Let a folder that was made whole appear at its place, marked so that it is not made again."""
    (fresh / ".complete").touch()
    shutil.rmtree(place, ignore_errors=True)
    fresh.rename(place)


def unpack(debs: Sequence[Path], place: Path) -> None:
    """The files of these packages; no script of theirs runs."""
    place.mkdir(parents=True, exist_ok=True)
    for deb in debs:
        done = run(["dpkg", "-x", str(deb), str(place)])
        if done.returncode:
            raise Missing(f"{deb.name} cannot be unpacked: {done.stderr.strip()[-300:]}")


def run(command: Sequence[str], **options: object) -> subprocess.CompletedProcess[str]:
    """A command with its words, at most five minutes."""
    return subprocess.run(command, capture_output=True, text=True, timeout=_FETCH_S, check=False, **options)  # type: ignore[call-overload, no-any-return]
