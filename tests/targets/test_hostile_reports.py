"""One target that lies beside one that does not: whatever it told, everything that reads the run shows the honest figures."""

from __future__ import annotations

import json
import struct

import pytest

from profiler import run
from profiler.cli.app import _run
from profiler.errors import EdgeprofError
from profiler.store import open_store

pytestmark = pytest.mark.process

HOSTILE = "<script>alert(1)</script>\x1b[31m\x07"
FORMULA = "=cmd|'/C calc'!A0"
ENVIRONMENT = "environment.environment"


def packed(code: str, *values: float) -> str:
    return struct.pack(f"<{len(values)}{code}", *values).hex()


def timed(durations: list[int], window_ns: int = 1_000_000) -> dict:
    """Samples of 1 ms each with these in front, in one window each."""
    samples = [*durations, *[1_000_000] * (12 - len(durations))]
    return {
        "at": "time",
        "arrays": [
            ["durations_ns", "<u8", [12], packed("Q", *samples)],
            ["window_ns", "<i8", [12], packed("q", *[window_ns] * 12)],
        ],
    }


MANY = {f"k{number}": "v" for number in range(6000)}
LIES = {
    "a greeting without a process": {"at": "hello", "set": {"pid": "GONE"}},
    "a process that is a mapping": {"at": "hello", "set": {"pid": {"a": [1]}}},
    "the process of another": {"at": "hello", "set": {"pid": 1}},
    "a machine of nothing": {
        "at": "environment",
        "set": {"environment.logical_cores": 0, "environment.usable_cores": 0, "environment.memory_bytes": 0},
    },
    "a machine with markup": {
        "at": "environment",
        "set": {
            "environment.hostname": HOSTILE, "environment.cpu_model": FORMULA, "environment.gpus": [HOSTILE, FORMULA],
            "environment.versions": {HOSTILE: FORMULA, FORMULA: HOSTILE}, "environment.notes": [HOSTILE] * 50,
        },
    },
    "a flood of facts": {"at": "environment", "set": {"environment.versions": MANY}},
    "a flood of details": {"at": "facts", "set": {"facts.details": MANY}},
    "facts with markup": {"at": "facts", "set": {"facts.provider": FORMULA, "facts.details": {HOSTILE: FORMULA}}},
    "windows of no time": timed([], window_ns=0),
    "windows that run backwards": timed([], window_ns=-5),
    "a century": timed([2**62, 1, 1]),
    "beyond counting": timed([2**64 - 1]),
    "a nanosecond": timed([1] * 12, window_ns=1),
    "processor time from the past": {"at": "time", "set": {"cpu_s": -1e18, "started_s": -1e18}},
    "labels beyond measure": {"at": "time", "set": {"labels": {"steal_share": -1e18, "run_delay_s": 1e18, "throttled_s": 1e18}}},
    "a harness beyond measure": {"at": "time", "set": {"harness": {"in_sample_s": -1e18, "labelled_s": 1e18}}},
    "no memory": {"at": "memory", "set": {"rss_bytes": 0, "peak_rss_bytes": 0}},
    "a flood of notes": {"at": "memory", "set": {"memory_notes": ["n"] * 9000}},
    "outputs of no columns": {"at": "infer", "arrays": [["y", "<f8", [1, 0], ""]]},
    "outputs that are no numbers": {"at": "infer", "arrays": [["y", "<f4", [1, 2], "ff" * 8]]},
    "outputs with names of files": {
        "at": "infer", "without": ["y"],
        "arrays": [["../../../X", "<f4", [1, 2], "00" * 8], [HOSTILE, "<i8", [1], "00" * 8]],
    },
    "tensors that cannot be": {
        "at": "load",
        "set": {
            "inputs": [{"name": "\0", "dtype": "object", "shape": [-1, 2**62, "'; DROP TABLE runs;--", None]}] * 200,
            "outputs": [],
        },
    },
    "a message without an end": {
        "at": "first",
        "set": {"ok": False, "kind": "skipped", "message": HOSTILE + "\n" * 5000 + "x" * 100_000, "needs": 1e308},
    },
}  # fmt: skip


def shown(capsys, *arguments: str) -> str:
    """What a command prints; it must end well."""
    code = _run(list(arguments), debug=True)
    printed = capsys.readouterr()
    assert code == 0, printed.err
    return printed.out


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_the_honest_figures_are_shown_beside_a_liar(study_of, tmp_path, listener, capsys, monkeypatch, lie):
    """`show`, `frontier` and `report` print them, nothing of the lie moves a cursor or runs in a browser, and nothing bursts."""
    monkeypatch.setattr(run, "LINK_PAUSES_S", (0.01,))
    out = str(tmp_path / "runs")
    try:
        run.execute(study_of(lie), out=tmp_path / "runs", progress=listener(), machines=lambda _: None)
    except EdgeprofError as error:
        assert "evil" in str(error)  # noqa: PT017 (whether the device is left or its case failed, is for other tests)
    store = open_store(out)
    data = store.run(store.resolve("latest"))
    store.close()
    (block,) = [block for block in data.blocks if "@evil" not in block.case]
    assert data.damaged == ()

    cases = json.loads(shown(capsys, "show", "--json", "--out", out))["cases"]
    (local,) = [case for case in cases if case["target"] == "local"]
    assert local["status"] == "measured"
    samples = block.samples_s[block.discarded :]
    assert samples.min() <= local["figures"]["latency_p50"]["value"] <= samples.max()
    for arguments in (("show",), ("frontier",), ("show", "latest", str(local["number"]))):
        text = shown(capsys, *arguments, "--out", out)
        assert "\x1b" not in text
        assert "fp32" in text
        assert len(text) < 50_000
    shown(capsys, "report", "--out", out)
    page = (tmp_path / "runs" / data.id / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert len(page) < 3_000_000
    assert {path.name for path in tmp_path.iterdir()} == {".targets.lock", "runs", "targets.toml"}
