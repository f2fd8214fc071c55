"""The worker's answer: op times beside plain inferences, facts, and what the processor offers."""

from __future__ import annotations

import numpy as np
import pytest

from profiler import worker
from profiler.measure import realised


@pytest.fixture
def state(tmp_path):
    return worker.State(tmp_path / "cache")


def ask(state, command, arrays=None, **fields):
    reply, _ = worker._answer(state, {"command": command, **fields}, arrays or {})
    return reply


def load(state, tmp_path, **options):
    path = tmp_path / "model.bin"
    path.write_bytes(b"anything")
    ask(state, "load", backend="fake", path=str(path), threads=1, batch=1, options={"read": "false", **options})
    ask(state, "feed", {"0/x": np.zeros((1, 4), np.float32)})


def test_ops_come_with_a_latency_the_facts_and_the_processor(state, tmp_path):
    """One answer holds what a comparison needs."""
    load(state, tmp_path, ops="a:Conv:f32:30|b:Conv:f32:5|c:Cast:conversion:1", latency_us="200")
    reply = ask(state, "ops", runs=4, wall_runs=5, machine=True)
    assert reply["ok"], reply
    assert [(op["name"], op["duration_s"]) for op in reply["ops"]] == [("a", 30e-6), ("b", 5e-6), ("c", 1e-6)]
    assert reply["op_counts"] == {"Cast": 1, "Conv": 2}
    assert reply["wall_s"] >= 200e-6
    assert reply["facts"]["runtime"] == "fake"
    assert set(reply["machine"]) == {"isa", "usable_cores", "switches", "cache_bytes", "bandwidth_bytes_per_s"}


def test_without_op_times_there_is_a_reason(state, tmp_path):
    """And the latency all the same."""
    load(state, tmp_path)
    reply = ask(state, "ops", runs=2, wall_runs=2)
    assert reply["ops"] is None
    assert "fake" in reply["reason"]
    assert reply["wall_s"] > 0
    assert "machine" not in reply


def test_ops_need_inputs(state, tmp_path):
    """Said in words, with the command that brings them."""
    path = tmp_path / "model.bin"
    path.write_bytes(b"anything")
    ask(state, "load", backend="fake", path=str(path), threads=1, batch=1, options={})
    assert "send 'feed' first" in ask(state, "ops", runs=1, wall_runs=1)["message"]


def test_switches_and_caches_are_read_from_what_is_given(tmp_path):
    """Only variables that change kernels or threads; the largest cache; absent facts are None."""
    for index, size in enumerate(("32K", "1024K", "36M", "odd")):
        place = tmp_path / f"sys/devices/system/cpu/cpu0/cache/index{index}"
        place.mkdir(parents=True)
        (place / "size").write_text(size + "\n")
    found = realised.machine(tmp_path, {"ONEDNN_MAX_CPU_ISA": "AVX2", "HOME": "/home/me", "OMP_NUM_THREADS": "1"})
    assert found.switches == {"ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": "1"}
    assert found.cache_bytes == 36 << 20
    assert found.bandwidth_bytes_per_s is not None
    assert realised.machine(tmp_path / "nothing", {}).cache_bytes is None
