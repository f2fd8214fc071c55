"""Runs made of synthetic records, analysed by the real analysis: what the renderers are tested with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import date
from typing import Any

import numpy as np
import pytest

from backends.base import SessionFacts
from profiler.analysis import Analysis, analyse
from profiler.records import (
    ArtifactRecord,
    BlockRecord,
    Environment,
    FailureRecord,
    ProcessRecord,
    QualityRecord,
    WarmupRecord,
)
from profiler.store import RunData
from profiler.study import Case, make_study
from tests.machines import PI, TRUTH, fleet

HOSTILE = "<script>alert(1)</script>"
FORMULA = "=cmd()"
STEERING = "\x1b[31mred\x1b]0;title\x07 \u202egnol"

# name, backend, batch: seconds of an inference, answers that turn wrong of 1000
_SPEED = {
    ("fp32", "ort", 1): (1.0e-3, 0), ("int8-static", "ort", 1): (0.5e-3, 4), ("int8-static", "ov", 1): (0.5002e-3, 4),
    ("prune-magnitude{sparsity=0.5}", "ort", 1): (1.5e-3, 300), ("fp32", "ort", 8): (6.0e-3, 0),
    ("int8-static", "ort", 8): (3.0e-3, 4),
}  # fmt: skip


def _environment() -> Environment:
    return Environment(
        hostname=f"host{HOSTILE}", machine="x86_64", system="Linux 6.1", python="3.11.2", cpu_model="Example 9000",
        cpu_isa=("avx2", "avx512_vnni"), logical_cores=4, usable_cores=2, memory_bytes=8_000_000_000, hypervisor="KVM",
        gpus=(), versions={"onnxruntime": "1.20.0"}, load_1min=0.2, notes=(f"note {HOSTILE}",),
    )  # fmt: skip


def _blocks(case: Case, seconds: float, processes: int, rounds: int, rng: np.random.Generator) -> list[BlockRecord]:
    made = []
    for replicate in range(processes):
        offset = 1 + 0.002 * rng.standard_normal()
        for index in range(rounds):
            samples = seconds * offset * (1 + 0.01 * np.abs(rng.standard_normal(200)))
            made.append(
                BlockRecord(
                    case=case.key, replicate=replicate, attempt=0, group=0, round=index, position=0,
                    started_s=float(index), samples_s=samples, discarded=3, inferences_per_sample=1, batch=case.batch,
                    cpu_s=0.1, wall_s=0.1,
                )
            )  # fmt: skip
    return made


def _process(case: Case, replicate: int) -> ProcessRecord:
    facts = SessionFacts(
        "onnxruntime", "1.20.0", "CPUExecutionProvider", 1, {"f32": 12, "i8": 30}, details={"opt": HOSTILE}
    )
    warmup = WarmupRecord(np.full(50, 1e-3), 5, "warmup", 0.005)
    return ProcessRecord(
        case=case.key, replicate=replicate, attempt=0, group=0, pid=100 + replicate, import_s=0.05, load_s=0.01,
        first_inference_s=0.002, rss_before_load_bytes=40_000_000, peak_rss_bytes=61_000_000 + replicate * 100_000,
        facts=facts, warmup=warmup,
    )  # fmt: skip


def _quality(case: Case, wrong: int, *, labels: bool) -> QualityRecord:
    right = np.ones(1000)
    right[:80] = 0.0
    agreement = np.ones(1000)
    right[500 : 500 + wrong] = 0.0
    agreement[500 : 500 + wrong] = 0.0
    return QualityRecord(
        case=case.quality_key, metric="top1" if labels else "agreement", per_sample=right if labels else agreement,
        predictions=None, agreement=agreement, data_sha256="d" * 64, seconds=1.0,
    )  # fmt: skip


def _artifact(variant: str) -> ArtifactRecord:
    facts: dict[str, Any] = {"opset": 18, "ops_quantized": 12, "calibration_cosine": float("nan"), "method": HOSTILE}
    return ArtifactRecord(
        variant=variant, sha256="a" * 64, size_bytes=470_000 if variant == "fp32" else 134_000, compressed_bytes=120_000,
        changed=variant != "fp32", facts=facts, notes=(f"{HOSTILE} {FORMULA}",), seconds=1.5,
    )  # fmt: skip


def make_run(
    *, processes: int = 5, rounds: int = 6, labels: bool = True, status: str = "finished", limits: bool = True,
    cases: bool = True, measured: bool = True,
) -> RunData:  # fmt: skip
    """A run with frontier, tied, dominated, failed, skipped and unplanned cases, two batch sizes and hostile names."""
    rng = np.random.default_rng(7)
    study = make_study(
        model=f"models/{HOSTILE}.onnx", data="data/test.npz", variants=("int8-static",), batches=(1, 8),
        constraints={"max_drop": 0.02, "slo_p99_s": 0.02} if limits else {},
        effort={"processes": processes, "rounds": rounds},
    )  # fmt: skip
    planned = [Case(name, backend, "local", batch, 1) for name, backend, batch in _SPEED] if cases else []
    broken = Case("int4-weight", "ov", "local", 1, 1)
    failures = [
        FailureRecord(
            broken.key, "load", "unsupported", f"unsupported op MatMulNBits {HOSTILE}\nsecond line", log_tail=STEERING
        ),
        FailureRecord("bf16@ort/b1/t1", "plan", "skipped", "bf16 is made for ov, not for ort."),
        FailureRecord(FORMULA, "variant", "error", f"{FORMULA} {HOSTILE}"),
    ]
    blocks, qualities, records = [], [], []
    for case in planned if measured else []:
        seconds, wrong = _SPEED[case.variant, case.backend, case.batch]
        blocks += _blocks(case, seconds, processes, rounds if status == "finished" else rounds - 1, rng)
        records += [_process(case, replicate) for replicate in range(processes)]
        qualities.append(_quality(case, wrong, labels=labels))
    if not measured:
        failures += [FailureRecord(case.key, "load", "crash", "the worker died with signal 11") for case in planned]
    return RunData(
        id="20260101-120000-abcd", created_at="2026-01-01T12:00:00+00:00", status=status,  # type: ignore[arg-type]
        edgeprof_version="0.1.0", study=study, environment=_environment(), notes=(f"run note {HOSTILE}",),
        plan={"cases": [asdict(case) for case in (*planned, broken)], "data_rows": 1000} if cases else {},
        artifacts=tuple(_artifact(name) for name in dict.fromkeys(case.variant for case in planned)),
        processes=tuple(records), blocks=tuple(blocks), qualities=tuple(qualities),
        failures=tuple(failures) if cases else (),
    )  # fmt: skip


SITUATIONS: dict[str, Callable[[], RunData]] = {
    "full": make_run,
    "no limits": lambda: make_run(limits=False),
    "unlabelled": lambda: make_run(labels=False),
    "single process": lambda: make_run(processes=1),
    "one round": lambda: make_run(processes=1, rounds=1),
    "interrupted": lambda: make_run(status="interrupted"),
    "timing only": lambda: replace(make_run(), qualities=()),
    "only failures": lambda: make_run(measured=False),
    "empty": lambda: make_run(cases=False),
    "fleet": lambda: fleet(TRUTH, constraints={"max_drop": 0.02}, plan={"data_rows": 2000}),
    "hostile fleet": lambda: fleet(
        {("fp32", "local"): (1e-3, 0), ("fp32", "pi"): (5e-3, 0)},
        known={
            "pi": {
                "environment": {**asdict(PI), "cpu_model": f"{HOSTILE} {STEERING}", "notes": [STEERING]},
                "emulated": False,
                "device": FORMULA,
            }
        },
    ),
}

_analysed: dict[str, Analysis] = {}


def analysed(situation: str) -> Analysis:
    """The analysis of a situation, made once."""
    if situation not in _analysed:
        _analysed[situation] = analyse(SITUATIONS[situation](), today=date(2026, 1, 2))
    return _analysed[situation]


@pytest.fixture(params=list(SITUATIONS))
def situation(request: pytest.FixtureRequest) -> str:
    """Each situation in turn."""
    return str(request.param)


@pytest.fixture
def analysis(situation: str) -> Analysis:
    """Its analysis."""
    return analysed(situation)


_pages: dict[str, str] = {}


def page_of(situation: str) -> str:
    """The HTML page of a situation, drawn once."""
    from profiler.report import drawing, figures, page
    from profiler.report.words import Story

    if situation not in _pages:
        story = Story.of(analysed(situation))
        pictures = figures.page_figures(story)
        script = drawing.draw(None, script=True, vl_version=figures.vegalite_version()).script if pictures else ""
        _pages[situation] = page.html(story, pictures=pictures, script=script)
    return _pages[situation]


@pytest.fixture(params=["full", "unlabelled", "one round", "only failures", "empty", "hostile fleet"])
def drawn(request: pytest.FixtureRequest) -> str:
    """Situations whose pictures differ; drawing takes a while."""
    return str(request.param)


@pytest.fixture
def content(drawn: str) -> str:
    """The page of each of them."""
    return page_of(drawn)


@pytest.fixture
def full_page() -> str:
    """The page of the run that has everything."""
    return page_of("full")


@pytest.fixture
def full() -> Analysis:
    """The run that has everything."""
    return analysed("full")


@pytest.fixture
def analysis_of() -> Callable[[str], Analysis]:
    """The analysis of a named situation."""
    return analysed


@pytest.fixture
def hostile() -> dict[str, str]:
    """Texts that attack a page, a spreadsheet and a terminal."""
    return {"html": HOSTILE, "csv": FORMULA, "terminal": STEERING}
