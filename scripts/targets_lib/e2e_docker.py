"""A container behind `--docker`, from `target add` to `target remove`, with clients killed and the container stopped between."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.targets_lib import kills
from scripts.targets_lib.container import MEMORY_BYTES, Container
from scripts.targets_lib.product import Checks, Edgeprof, write_data

NAME = "box"
_EFFORT = {"rounds": 3, "block_s": 0.05, "warmup_s": 0.1, "warmup_max_s": 0.3, "requeue_share": 0.0}


@dataclass(frozen=True)
class Size:
    """How much of it."""

    kills: int
    gap_s: float
    """Longest pause between two of them."""
    processes: int
    seed: int


QUICK = Size(kills=6, gap_s=5.0, processes=2, seed=0)
FULL = Size(kills=12, gap_s=6.0, processes=4, seed=0)


def run(folder: Path, size: Size, checks: Checks, image: str) -> dict[str, Any]:
    """Everything; what was found for the page. Raises Failed or Missing when it cannot go on."""
    edgeprof = Edgeprof(folder)
    with Container(image) as box:
        before = box.listing()
        said = edgeprof.must("target", "add", NAME, "--docker", box.name)
        checks.expect(f"target setup {NAME}" in said, "add says what comes next", said)
        said = edgeprof.must("target", "setup", NAME)
        checks.expect("a worker starts" in said, "a worker starts after setup, without a network", said)
        for line in edgeprof.must("target", "check", NAME).strip().splitlines():
            checks.fact(line.strip())
        found = _storm(edgeprof, box, folder, size, checks)
        _stopped(edgeprof, box, folder, checks)
        edgeprof.must("target", "remove", NAME)
        kills.await_empty(box, checks, "after remove")
        left = sorted(set(box.listing()) - set(before))
        checks.expect(not left, "remove leaves nothing in the container", str(left[:5]))
    return found


def _storm(edgeprof: Edgeprof, box: Container, folder: Path, size: Size, checks: Checks) -> dict[str, Any]:
    """The same study here and, through clients that are killed, there."""
    model, data, calibration = write_data(folder, 400)
    fields = {
        "model": str(model), "data": str(data), "calibration": str(calibration), "backends": ("ort", "ov"),
        "variants": ("fp32", "int8-static"),
    }  # fmt: skip
    storm = kills.Storm(box, size.kills, size.gap_s, size.seed)
    effort = {"processes": size.processes, **_EFFORT}
    found = kills.drive(edgeprof, box, NAME, storm, folder, effort, fields, checks, "in the container")
    place = found.last.plan["targets"][NAME]["environment"]
    checks.expect(
        place["usable_cores"] == 1, "the container's share of processors is known", str(place["usable_cores"])
    )
    checks.expect(place["memory_bytes"] == MEMORY_BYTES, "its memory limit is known", str(place["memory_bytes"]))
    counts = {"clients killed": storm.by_client, **found.counts}
    return {"tables": [kills.table("Clients killed at random moments", counts, checks, found.seconds)]}


def _stopped(edgeprof: Edgeprof, box: Container, folder: Path, checks: Checks) -> None:
    """A container that is not running is told, and one that runs again is what it was."""
    box.docker("stop")
    done = edgeprof.run("target", "check", NAME)
    told = done.returncode == 2 and "not running" in done.stderr and "Traceback" not in done.stderr
    checks.expect(told, "a stopped container is told in Docker's words", f"{done.returncode}: {done.stderr[-500:]}")
    done = edgeprof.run("run", str(folder / "there.toml"), "--out", str(folder / "stopped"))
    checks.expect(done.returncode == 2, "no run begins on it", f"{done.returncode}: {done.stderr[-500:]}")
    box.docker("start")
    said = edgeprof.must("target", "setup", NAME)
    checks.expect("there already" in said, "started again, it has what was put there", said)
