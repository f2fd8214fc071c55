"""The injected backend adds exactly what it was told to and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from backends import registry, spec
from backends.base import BackendError, LoadOptions
from backends.fake import FakeBackend
from backends.injected import InjectedBackend


class Clock:
    """Each look advances it."""

    def __init__(self, step_ns: int = 50) -> None:
        self.now_ns, self.step_ns = 0, step_ns

    def __call__(self) -> int:
        self.now_ns += self.step_ns
        return self.now_ns


@pytest.fixture
def anything(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(b"no model at all")
    return path


def load(path, text: str, clock: Clock | None = None):
    """The session of a backend's text, with an inner fake on the same clock."""
    clock = clock or Clock()
    asked = spec.parse(text)
    assert asked.name == "injected"
    backend = InjectedBackend(clock, lambda name: FakeBackend(clock) if name == "fake" else registry.get(name))
    return backend.load(path, LoadOptions(device=asked.device, options=asked.options))


X = {"x": np.arange(8, dtype=np.float32).reshape(2, 4)}


@pytest.mark.parametrize("slow", [0.02, 0.05, 1.0])
def test_an_inference_lasts_that_much_longer(anything, slow):
    """(1 + slow) times the inner latency, by its clock; at most a few looks more."""
    clock = Clock()
    session = load(anything, f"injected:fake{{latency_us=500,read=false,slow={slow}}}", clock)
    before = clock.now_ns
    session.infer(X)

    assert 500_000 * (1 + slow) <= clock.now_ns - before <= 500_000 * (1 + slow) + 600


def test_copies_and_slowed_ones_go_through_the_same_call(anything):
    """What the wrapper itself costs is in all of them, so that it is in no ratio: three looks at the clock."""

    def looks(slow: float) -> float:
        clock = Clock(step_ns=1000)
        session = load(anything, f"injected:fake{{latency_us=0,read=false,slow={slow}}}", clock)
        inner = FakeBackend(Clock(1000)).load(anything, LoadOptions(options={"read": "false"}))
        before = clock.now_ns
        session.infer(X)
        outer = clock.now_ns - before
        before = inner._backend.clock_ns.now_ns
        inner.infer(X)
        return (outer - (inner._backend.clock_ns.now_ns - before)) / 1000

    assert looks(0) == looks(0.02) == 3


def test_answers_inputs_and_facts_are_the_inner_ones(anything):
    """Only the facts' details tell what was added."""
    inner = FakeBackend().load(anything, LoadOptions(options={"read": "false"}))
    session = load(anything, "injected:fake{read=false,slow=0.05}")

    np.testing.assert_array_equal(inner.infer(X)["y"], session.infer(X)["y"])
    assert (inner.inputs, inner.outputs) == (session.inputs, session.outputs)
    assert (session.facts.runtime, session.facts.details["injected_slow"]) == ("fake", "0.05")
    assert session.facts is session.facts


def test_the_inner_device_is_an_option(anything):
    """`device=` goes to the inner backend, which refuses one that it lacks."""
    assert load(anything, "injected:fake{device=cpu,read=false}").facts.provider == "cpu"
    with pytest.raises(BackendError, match="backend 'fake' has no device 'gpu'"):
        load(anything, "injected:fake{device=gpu,read=false}")


def test_closing_closes_the_inner_session(anything):
    """And its error passes through."""
    session = load(anything, "injected:fake{read=false,slow=0.5}")
    session.close()
    session.close()

    with pytest.raises(BackendError, match="closed"):
        session.infer(X)


@pytest.mark.parametrize("text", ["injected:abacus", "injected:injected"])
def test_a_backend_that_cannot_be_slowed_is_refused(anything, text):
    """Unknown ones, and itself."""
    with pytest.raises(BackendError, match="expected one of: ort, ov, trt, fake"):
        load(anything, text)


def test_availability_is_the_inner_backend_s():
    """With a reason for a name that nobody knows."""
    backend = InjectedBackend()

    assert backend.availability("fake").available
    assert "abacus" in str(backend.availability("abacus").reason)


def test_slowness_is_a_number(anything):
    """That is not negative."""
    with pytest.raises(BackendError, match="got slow=-1, expected a number of at least 0"):
        load(anything, "injected:fake{slow=-1,read=false}")
