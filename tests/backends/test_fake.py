"""The fake backend does what it is told, so tests above the adapters can trust it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from backends import fake
from backends.base import BackendError, LoadOptions, TensorInfo
from backends.fake import FakeBackend


class Clock:
    """Each look advances it by a fixed step; sleeping advances it at once."""

    def __init__(self, step_ns: int = 1000) -> None:
        self.now_ns, self.step_ns, self.slept_s = 0, step_ns, []

    def __call__(self) -> int:
        self.now_ns += self.step_ns
        return self.now_ns

    def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        self.now_ns += round(seconds * 1e9)


@pytest.fixture
def anything(tmp_path) -> Path:
    path = tmp_path / "model.bin"
    path.write_bytes(b"no model at all")
    return path


def load(path: Path, clock: Clock | None = None, die=lambda kind: None, **options: str):
    clock = clock or Clock()
    return FakeBackend(clock, clock.sleep, die).load(path, LoadOptions(options=options))


X = {"x": np.arange(8, dtype=np.float32).reshape(2, 4)}


def test_inference_takes_the_programmed_latency(anything):
    """By its clock, an inference takes the latency and at most one look more."""
    clock = Clock(step_ns=1000)
    session = load(anything, clock, latency_us="250")
    before = clock.now_ns
    session.infer(X)

    assert 250_000 <= clock.now_ns - before <= 252_000


def test_jitter_is_reproducible_and_bounded(anything):
    """The same seed gives the same latencies, another seed others, all within the spread."""

    def latencies(seed: str) -> list[int]:
        clock = Clock(step_ns=100)
        session = load(anything, clock, latency_us="100", jitter="0.5", seed=seed)
        seen = []
        for _ in range(50):
            before = clock.now_ns
            session.infer(X)
            seen.append(clock.now_ns - before)
        return seen

    first = latencies("1")

    assert first == latencies("1")
    assert first != latencies("2")
    assert min(first) >= 50_000
    assert max(first) <= 150_200
    assert max(first) - min(first) > 50_000


def test_loading_takes_the_programmed_time(anything):
    """`load_ms` is slept, not spun: a load waits for disks."""
    clock = Clock()
    load(anything, clock, load_ms="1500")

    assert clock.slept_s == [1.5]


def test_memory_is_really_resident_and_freed(anything):
    """`memory_mb` shows in the resident set while the session lives."""
    process = psutil.Process()
    before = process.memory_info().rss
    session = load(anything, memory_mb="200")
    during = process.memory_info().rss
    session.close()
    after = process.memory_info().rss

    assert during - before > 150e6
    assert during - after > 150e6


@pytest.mark.parametrize(
    ("fail", "error", "match"),
    [
        ("raise", BackendError, "fail=raise"),
        ("unsupported", BackendError, "unsupported op"),
        ("alloc", MemoryError, "short"),
    ],
)
def test_failures_come_at_load_by_default(anything, fail, error, match):
    """A programmed failure is raised while loading."""
    with pytest.raises(error, match=match):
        load(anything, fail=fail)


@pytest.mark.parametrize(("fail_at", "succeed"), [("infer", 0), ("1", 0), ("3", 2)])
def test_failures_come_at_the_asked_inference(anything, fail_at, succeed):
    """Inferences before the asked one succeed."""
    session = load(anything, fail="raise", fail_at=fail_at)
    for _ in range(succeed):
        session.infer(X)

    with pytest.raises(BackendError, match="fake could not run"):
        session.infer(X)


def test_hanging_never_returns(anything):
    """A hang sleeps for ever: it ends only by force."""

    class EnoughError(Exception):
        pass

    naps = []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 5:
            raise EnoughError

    with pytest.raises(EnoughError):
        FakeBackend(sleep=sleep).load(anything, LoadOptions(options={"fail": "hang"}))


@pytest.mark.parametrize("fail", ["oom", "segv", "exit"])
def test_deaths_go_through_the_injected_way_out(anything, fail):
    """The process dies by one function, which a test may replace."""
    died = []
    load(anything, die=died.append, fail=fail)

    assert [fail] == died


@pytest.mark.process
@pytest.mark.parametrize(("fail", "code"), [("segv", -signal.SIGSEGV), ("oom", -signal.SIGKILL), ("exit", 3)])
def test_deaths_are_real(anything, fail, code):
    """In a process of its own, it ends as a crash, an OOM kill and an exit end."""
    script = (
        "import sys; from pathlib import Path; from backends.base import LoadOptions; from backends.fake import FakeBackend\n"
        "FakeBackend().load(Path(sys.argv[1]), LoadOptions(options={'fail': sys.argv[2]}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(anything), fail], check=False, cwd=Path(fake.__file__).parents[1]
    )

    assert code == done.returncode


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("latency_us", "fast"),
        ("latency_us", "-1"),
        ("memory_mb", "nan"),
        ("fail", "maybe"),
        ("fail_at", "0"),
        ("fail_at", "soon"),
    ],
)
def test_values_that_mean_nothing_are_refused(anything, option, value):
    """Each option says what it got and what it expected."""
    with pytest.raises(BackendError, match=f"got {option}={value}, expected"):
        load(anything, **{option: value})


def test_any_file_has_x_and_y(anything):
    """A file that is no ONNX model is taken as x [batch, 4] -> y [batch, 2]."""
    session = load(anything)

    assert ([TensorInfo("x", "float32", ("batch", 4))], [TensorInfo("y", "float32", ("batch", 2))]) == (
        list(session.inputs),
        list(session.outputs),
    )
    assert session.infer(X)["y"].shape == (2, 2)


def test_onnx_inputs_and_outputs_are_the_model_s(examples):
    """From an ONNX file come its own names, types and shapes."""
    session = load(examples["embedding"].path)

    assert [TensorInfo("token", "int64", ("N", 3)), TensorInfo("features", "float32", ("N", 6))] == list(session.inputs)
    assert [TensorInfo("y", "float32", ("N", 6))] == list(session.outputs)


def test_a_row_s_answer_does_not_depend_on_its_batch(anything):
    """A row gets the same numbers alone and in company, other rows get others, all in [0, 1)."""
    session = load(anything)
    together = session.infer(X)["y"]
    alone = np.concatenate([session.infer({"x": row[None]})["y"] for row in X["x"]])

    np.testing.assert_array_equal(together, alone)
    assert not np.array_equal(together[0], together[1])
    assert together.min() >= 0
    assert together.max() < 1


def test_a_stall_hits_one_inference_of_all_lanes(anything):
    """The N-th, whichever lane it is on, and no other."""
    clock = Clock(step_ns=0)
    session = load(anything, clock, stall_at="3", stall_s="0.5")
    lanes = [session, session.lane()]
    for number in range(6):
        lanes[number % 2].infer(X)

    assert [seconds for seconds in clock.slept_s if seconds] == [0.5]


def test_latency_may_pass_asleep_and_grow_with_rows(anything):
    """`wait=sleep` takes the latency as a sleep; `row_us` counts the rows."""
    clock = Clock(step_ns=0)
    load(anything, clock, wait="sleep", latency_us="100", row_us="50").infer(X)

    assert clock.slept_s == [pytest.approx(200e-6)]
