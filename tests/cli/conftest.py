"""Run the command line inside the test's process, and keep one finished run for the commands that read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Told:
    """What a command left behind."""

    code: int
    out: str
    err: str


def _run(capsys: pytest.CaptureFixture[str], arguments: tuple[object, ...]) -> Told:
    from profiler.cli import main

    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return Told(int(caught.value.code or 0), said.out, said.err)


@pytest.fixture
def edgeprof(capsys: pytest.CaptureFixture[str]) -> Callable[..., Told]:
    """`edgeprof("runs", "--json")`: exit code, stdout and stderr."""
    return lambda *arguments: _run(capsys, arguments)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, small_model: Path, small_data: Path) -> Path:
    """A folder with one small run: two cases that were measured, one that crashed, one variant merged or skipped."""
    from profiler.run import execute
    from profiler.study import make_study

    out = tmp_path_factory.mktemp("finished")
    effort = {
        "processes": 2,
        "rounds": 2,
        "block_s": 0.002,
        "block_samples": 5,
        "warmup_s": 0.002,
        "warmup_max_s": 0.02,
    }
    backends = ("fake{read=false}", "fake{latency_us=300,read=false}", "fake{fail=segv,read=false}")
    study = make_study(
        model=str(small_model), data=str(small_data), backends=backends, variants=("fp32", "bf16"), effort=effort,
        constraints={"max_drop": 0.05, "slo_p99_s": 1.0},
    )  # fmt: skip
    execute(study, out=out)
    return out
