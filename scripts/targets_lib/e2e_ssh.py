"""A device behind a real ssh server, from `target add` to `target remove`, with everything in between going wrong."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from profiler import api
from profiler.store import RunData
from scripts.targets_lib import compare, kills, packages
from scripts.targets_lib.product import Checks, Edgeprof, Failed, write_data, write_study
from scripts.targets_lib.sshd import HOST, Server

NAME = "device"
# Disturbed rounds are not measured again: what disturbs a machine must not change how many blocks there are.
_STORM = {"rounds": 3, "block_s": 0.05, "warmup_s": 0.1, "warmup_max_s": 0.3, "requeue_share": 0.0}
_RATIOS = {"processes": 3, "rounds": 5, "block_s": 0.1, "warmup_s": 0.2, "warmup_max_s": 0.5, "requeue_share": 0.0}
_CUT_BYTES = 24_000_000
"""Into the middle of the wheels: numpy and the two runtimes are some 80 MB."""
_AROUND_BYTES = 300_000
"""The agent's own text, its questions, and what ssh adds to a connection."""
_SURE = 0.999
"""Ratios are said to differ where this interval of their quotient leaves 1 out: once in a thousand runs by chance."""


@dataclass(frozen=True)
class Size:
    """How much of it."""

    kills: int
    gap_s: float
    """Longest pause between two of them."""
    processes: int
    backends: tuple[str, ...]
    ratio_backends: tuple[str, ...]
    pairs: int
    """Of runs, here and there in turn."""
    seed: int


QUICK = Size(kills=5, gap_s=5.0, processes=2, backends=("ort", "ov"), ratio_backends=("ort",), pairs=2, seed=0)
FULL = Size(kills=20, gap_s=8.0, processes=4, backends=("ort", "ov"), ratio_backends=("ort", "ov"), pairs=5, seed=0)

Table = tuple[str, list[str], list[list[str]]]
"""Title, head and rows."""


def run(folder: Path, size: Size, checks: Checks) -> dict[str, Any]:
    """Everything; what was found for the page. Raises Failed or Missing when it cannot go on."""
    edgeprof = Edgeprof(folder)
    with Server(folder / "server") as server:
        try:
            return _run(edgeprof, server, folder, size, checks)
        except Failed as failed:
            if server.ended() is None:
                raise
            raise Failed(
                f"the ssh server itself was ended ({server.ended()}), by whom is not known. {failed}"
            ) from None


def _run(edgeprof: Edgeprof, server: Server, folder: Path, size: Size, checks: Checks) -> dict[str, Any]:
    before = server.listing()
    print(f"sshd on 127.0.0.1:{server.port}, home empty: {not before}", flush=True)
    offline = bool(server.isolation)
    checks.expect(offline, "the account has no network", "this machine gives no network namespace")
    _add(edgeprof, server, checks)
    _host_keys(edgeprof, server, checks)
    _set_up(edgeprof, server, checks)
    _look(edgeprof, checks)
    inputs = write_data(folder, 400)
    found = {"tables": [
        _storm(edgeprof, server, inputs, folder, size, checks), _ratios(edgeprof, inputs, folder, size, checks),
    ]}  # fmt: skip
    edgeprof.must("target", "remove", NAME)
    kills.await_empty(server, checks, "after remove")
    after = server.listing()
    checks.expect(after == before, "remove leaves the home as it was", f"{after[:5]} are there")
    listed = edgeprof.must("target", "list", "--json")
    checks.expect(NAME not in listed, "the target is forgotten", listed)
    return found


def _add(edgeprof: Edgeprof, server: Server, checks: Checks) -> None:
    said = edgeprof.must("target", "add", NAME, "--ssh", HOST, "--ssh-config", str(server.config))
    checks.expect(f"target setup {NAME}" in said, "add says what comes next", said)
    checks.expect(not server.listing(), "add touches nothing on the device")


def _host_keys(edgeprof: Edgeprof, server: Server, checks: Checks) -> None:
    for key, what in ((None, "unknown"), ("other_host", "changed")):
        server.trust(key)
        done = edgeprof.run("target", "setup", NAME)
        refused = done.returncode == 2 and "host key" in done.stderr and "Traceback" not in done.stderr
        checks.expect(
            refused, f"a host key that is {what} is refused with a message", f"{done.returncode}: {done.stderr}"
        )
        checks.expect(not server.listing(), f"nothing was put on the device whose key is {what}")
    server.trust("host")


def _set_up(edgeprof: Edgeprof, server: Server, checks: Checks) -> None:
    """Breaks in the middle of the bundle's transfer, then goes on; the bytes of the second transfer tell from where."""
    server.connect_by(relay=True)
    (server.link / "cut").write_text(str(_CUT_BYTES))
    done = edgeprof.run("target", "setup", NAME)
    lost = done.returncode == 2 and "connection" in done.stderr and "Traceback" not in done.stderr
    checks.expect(lost, "setup says that the connection was lost", f"{done.returncode}: {done.stderr[-500:]}")
    kills.await_empty(server, checks, "after the broken transfer")
    parts = list(server.home.rglob("incoming/*.tar"))
    if len(parts) != 1:
        raise Failed(f"one part of a bundle should be on the device, not {[part.name for part in parts]}")
    reached = parts[0].stat().st_size
    size = next(packages.CACHE.rglob(f"{parts[0].stem}.tar.gz")).stat().st_size
    checks.expect(0 < reached < size, f"{reached:,} of {size:,} bytes of the bundle are on the device")
    (server.link / "cut").unlink()
    for count in server.link.glob("*.sent"):
        count.unlink()
    said = edgeprof.must("target", "setup", NAME)
    server.connect_by()
    # Of its connections one looks, one brings the rest, one checks.
    sent = max(int(count.read_text() or 0) for count in server.link.glob("*.sent"))
    rest = size - reached
    text = f"the second setup goes on at an offset: {sent:,} bytes crossed the link for the missing {rest:,}"
    checks.expect(rest <= sent <= 1.02 * rest + _AROUND_BYTES, text)
    checks.expect("a worker starts" in said, "a worker starts after setup", said)
    left = [path.name for path in server.home.rglob("incoming/*")]
    checks.expect(not left, "no archive is left beside what was unpacked", str(left))
    pips = [path for place in (server.folder / "usr", server.home) for path in place.rglob("pip") if path.exists()]
    checks.expect(not pips, "no pip is on the device, before or after", str(pips[:3]))
    again = edgeprof.must("target", "setup", NAME)
    checks.expect("there already" in again, "a third setup sends nothing", again)


def _look(edgeprof: Edgeprof, checks: Checks) -> None:
    said = edgeprof.must("target", "check", NAME)
    for line in said.strip().splitlines():
        checks.fact(line.strip())
    checks.expect("ort  runs" in said, "check finds ONNX Runtime on the device", said)
    if edgeprof.has("target", "probe"):
        probed = edgeprof.must("target", "probe", NAME)
        checks.expect(bool(probed.strip()), "probe says what the device is")
        for line in probed.strip().splitlines()[:12]:
            checks.fact(line.strip())


def _storm(
    edgeprof: Edgeprof, server: Server, inputs: tuple[Path, Path, Path], folder: Path, size: Size, checks: Checks
) -> Table:
    """The same study here and, through breaking connections, there."""
    model, data, calibration = inputs
    fields = {
        "model": str(model), "data": str(data), "calibration": str(calibration), "backends": size.backends,
        "variants": ("fp32", "int8-static"),
    }  # fmt: skip
    storm = kills.Storm(server, size.kills, size.gap_s, size.seed)
    effort = {"processes": size.processes, **_STORM}
    found = kills.drive(edgeprof, server, NAME, storm, folder, effort, fields, checks, "on the device")
    counts = {
        "connections killed": size.kills, "at the client": storm.by_client, "at the server": storm.by_server, **found.counts,
    }  # fmt: skip
    told = kills.table("Connections broken at random moments", counts, checks, found.seconds)
    for words in sorted(set(storm.gave_up)):
        checks.fact(f"a run that gave up said: {words}")
    return told


def _ratios(edgeprof: Edgeprof, inputs: tuple[Path, Path, Path], folder: Path, size: Size, checks: Checks) -> Table:
    """The transport must not be in the measurement: the same ratios through ssh as here, measured in turn."""
    model, data, calibration = inputs
    fields = {
        "model": str(model), "data": str(data), "calibration": str(calibration), "limit": 20, "backends": size.ratio_backends,
        "variants": ("fp32", "int8-static"),
    }  # fmt: skip
    studies = {
        "here": write_study(folder / "ratio-here.toml", _RATIOS, **fields),
        "there": write_study(folder / "ratio-there.toml", _RATIOS, **fields, targets=(NAME,)),
    }
    runs: dict[str, list[RunData]] = {"here": [], "there": []}
    for pair in range(size.pairs):
        # Who begins changes, so that a drift of the machine hits both alike.
        for side in ("here", "there") if pair % 2 == 0 else ("there", "here"):
            edgeprof.must("run", str(studies[side]), "--out", str(folder / "ratios"))
            runs[side].append(api.open_run(out=folder / "ratios").run)
    rows = []
    for backend in size.ratio_backends:
        names = [f"{variant}@{backend}/b1/t1" for variant in ("int8-static", "fp32")]
        logs = {side: [each for run in runs[side] for each in compare.log_ratios(run, NAME, *names)] for side in runs}
        there, here, quotient = compare.agreement(logs["there"], logs["here"], _SURE)
        low = {side: min(compare.p50_s(run, NAME)[names[1]] for run in runs[side]) for side in runs}
        texts = [_three((each.value, each.low, each.high)) for each in (there, here)]
        together = "overlap" if compare.overlap(there, here) else "do not overlap"
        checks.expect(
            quotient[1] <= 1 <= quotient[2],
            f"int8-static / fp32 on {backend}: {texts[0]} through ssh, {texts[1]} here; their quotient {_three(quotient)} at "
            f"{_SURE:.1%} holds 1",
        )
        lows = [f"{1e6 * low[side]:.1f} µs" for side in ("there", "here")]
        rows.append([backend, *texts, together, _three(quotient), *lows, str(there.pairs)])
    head = [
        "backend", "int8-static / fp32 through ssh", "here", "95 % intervals", f"quotient, {_SURE:.1%}",
        "lowest p50 of fp32 through ssh", "here", "process pairs each",
    ]  # fmt: skip
    return "The transport is not in the measurement: runs here and through ssh in turn", head, rows


def _three(values: tuple[float | None, ...]) -> str:
    value, low, high = ("?" if each is None else f"{each:.3f}" for each in values)
    return f"{value} [{low}, {high}]"
