"""The programmed courses are what their description says, and the fake backend follows them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from backends.base import BackendError, LoadOptions
from backends.fake import FakeBackend
from backends.fake_shapes import SHAPES, factors


def course(shape: str, count: int, seed: int = 0) -> np.ndarray:
    return np.array(list(itertools.islice(factors(shape, seed), count)))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_course_depends_on_shape_and_seed_alone(shape):
    """Whoever knows the seed knows the truth; only the random shapes change with it."""
    np.testing.assert_array_equal(course(shape, 500, 3), course(shape, 500, 3))

    assert (shape in {"bimodal", "ar1"}) == (not np.array_equal(course(shape, 500, 3), course(shape, 500, 4)))


def test_the_courses_are_what_they_are_called():
    """Levels, shares, trends and correlations as documented."""
    assert set(course("constant", 100)) == {1.0}

    bimodal = course("bimodal", 20_000)
    assert set(bimodal) == {1.0, 1.3}
    assert np.mean(bimodal > 1) == pytest.approx(0.4, abs=0.02)

    drift = course("drift", 12_000)
    assert (drift[0], drift[1000], drift[-1]) == (1.0, pytest.approx(1.1), 2.0)

    logs = np.log(course("ar1", 20_000))
    assert logs.std() == pytest.approx(0.03, rel=0.1)
    assert np.corrcoef(logs[1:], logs[:-1])[0, 1] == pytest.approx(0.9, abs=0.03)

    warmup = course("warmup", 1000)
    assert (warmup[0], warmup[-1]) == (1.5, pytest.approx(1.0, abs=1e-4))
    assert (np.diff(warmup) < 0).all()

    restless = course("never_steady", 600)
    assert [restless[at] for at in (0, 149, 150, 299, 300, 599)] == [1.0, 1.0, 1.2, 1.2, 1.0, 1.2]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_fake_backend_follows_its_course(tmp_path, shape):
    """By its own clock each inference lasts what the course says, and at most a look more."""

    class Clock:
        now_ns = 0

        def __call__(self) -> int:
            self.now_ns += 100
            return self.now_ns

    clock = Clock()
    path = tmp_path / "any"
    path.write_bytes(b"-")
    options = {"latency_us": "50", "shape": shape, "seed": "5", "read": "false"}
    session = FakeBackend(clock).load(path, LoadOptions(options=options))
    seen = []
    for _ in range(200):
        before = clock.now_ns
        session.infer({"x": np.zeros((1, 4), np.float32)})
        seen.append(clock.now_ns - before)

    np.testing.assert_allclose(seen, 50_000 * course(shape, 200, 5), atol=300)


def test_an_unknown_shape_is_refused(tmp_path):
    """With the known ones."""
    path = tmp_path / "any"
    path.write_bytes(b"-")

    with pytest.raises(BackendError, match=r"got shape=round, expected one of: constant, bimodal"):
        FakeBackend().load(path, LoadOptions(options={"shape": "round"}))
