"""What many tests share: a small model, data that fits it, studies that take a second, and runs made up from known truths."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

# pytest-xdist hands a width of its own down; on a pipe edgeprof writes for a wide page.
os.environ.pop("COLUMNS", None)
# The same examples everywhere and no wall-clock deadline: a busy machine is no failure.
settings.register_profile("edgeprof", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("edgeprof")

TINY_EFFORT = {
    "processes": 2,
    "rounds": 2,
    "block_s": 0.002,
    "block_samples": 5,
    "warmup_s": 0.002,
    "warmup_max_s": 0.02,
    "requeue_share": 0.0,  # what disturbs a test machine must not change how many blocks there are
}


def _weights(width: int, classes: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "w1": rng.standard_normal((width, 32)).astype(np.float32),
        "b1": rng.standard_normal(32).astype(np.float32),
        "w2": rng.standard_normal((32, classes)).astype(np.float32),
    }


def _build_model(path: Path, width: int = 4, classes: int = 2, seed: int = 0) -> Path:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = _weights(width, classes, seed)
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"]),
        helper.make_node("Add", ["a", "b1"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("MatMul", ["c", "w2"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", classes])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(path))
    return path


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX file: two matrix products, float32 `x` [N, 4] to `y` [N, 2], what `fake{read=false}` takes any file for."""
    return _build_model(tmp_path_factory.mktemp("model") / "small.onnx")


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An .npz with 64 rows for `small_model`: `x` and `labels`, of which the model and what `fake` answers know nine in ten."""
    from backends.base import LoadOptions
    from backends.fake import FakeBackend

    rng = np.random.default_rng(1)
    x = rng.standard_normal((512, 4)).astype(np.float32)
    weights = _weights(4, 2, 0)
    classes = (np.maximum(x @ weights["w1"] + weights["b1"], 0) @ weights["w2"]).argmax(axis=1)
    folder = tmp_path_factory.mktemp("data")
    (folder / "any").write_bytes(b"")
    session = FakeBackend().load(folder / "any", LoadOptions(options={"read": "false"}))
    alike = np.flatnonzero(session.infer({"x": x})["y"].argmax(axis=1) == classes)[:64]
    session.close()
    labels = classes[alike]
    labels[::10] = 1 - labels[::10]
    np.savez(folder / "small.npz", x=x[alike], labels=labels)
    return folder / "small.npz"


@pytest.fixture
def build_model() -> Callable[..., Path]:
    """`build_model(path, width=4, classes=2, seed=0)` writes an ONNX file."""
    return _build_model


@pytest.fixture
def fake_study(small_model: Path, small_data: Path) -> Callable[..., Any]:
    """`fake_study(**settings)`: a study of the small model on the fake backend, with an effort of milliseconds."""

    def make(**settings: Any) -> Any:
        from profiler.study import make_study

        fields = {
            "model": str(small_model), "data": str(small_data), "backends": ("fake{read=false}",), "variants": ("fp32",),
            "effort": dict(TINY_EFFORT), "time_limit_s": 30.0,
        }  # fmt: skip
        return make_study(**{**fields, **settings})

    return make


class Listener:
    """A Progress that remembers, and can be told to do something at the n-th step."""

    def __init__(self, at: int | None = None, act: Callable[[], None] = lambda: None) -> None:
        self.stages: list[tuple[str, int]] = []
        self.steps: list[str] = []
        self.notes: list[str] = []
        self._at, self._act = at, act

    def stage(self, title: str, steps: int) -> None:
        self.stages.append((title, steps))

    def step(self, text: str = "") -> None:
        self.steps.append(text)
        if len(self.steps) == self._at:
            self._act()

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def listener() -> type[Listener]:
    """The class of a Progress that remembers what it hears."""
    return Listener


class MadeRun:
    """Makes RunData from known truths: latencies in seconds by case, answers by quality key."""

    def __init__(
        self, *, processes: int = 5, rounds: int = 6, samples: int = 60, seed: int = 0, weather: float = 0.2
    ) -> None:
        self.processes, self.rounds, self.samples = processes, rounds, samples
        self.random = np.random.default_rng(seed)
        self.cases: list[Any] = []
        self.blocks: list[Any] = []
        self.process_records: list[Any] = []
        self.qualities: list[Any] = []
        self.artifacts: list[Any] = []
        self.failures: list[Any] = []
        # Everything that disturbs a moment disturbs all cases of that round alike.
        self._weather = np.exp(self.random.normal(0, weather, (processes, rounds)))

    def case(self, variant: str, backend: str = "ort", batch: int = 1, threads: int = 1) -> Any:
        from profiler.study import Case

        case = Case(variant, backend, "local", batch, threads)
        if case not in self.cases:
            self.cases.append(case)
        return case

    def timed(self, case: Any, latency_s: float, *, noise: float = 0.01, offsets: float | None = None,
              attempt: int = 0, peak_rss: int = 60_000_000,
              replicates: Sequence[int] | None = None, group: int = 0) -> MadeRun:  # fmt: skip
        from backends.base import SessionFacts
        from profiler.records import BlockRecord, ProcessRecord

        for replicate in range(self.processes) if replicates is None else replicates:
            offset = np.exp(self.random.normal(0, noise if offsets is None else offsets))
            facts = SessionFacts("made", "1", "cpu", case.threads, None, "made up")
            self.process_records.append(
                ProcessRecord(
                    case.key, replicate, attempt, group, 100 + replicate, 0.1, 0.02, 0.001, 40_000_000, peak_rss, facts
                )
            )
            for index in range(self.rounds):
                base = latency_s * offset * self._weather[replicate, index]
                samples = base * np.exp(self.random.normal(0, noise, self.samples))
                self.blocks.append(
                    BlockRecord(
                        case=case.key, replicate=replicate, attempt=attempt, group=group, round=index, position=0,
                        started_s=float(index), samples_s=samples, discarded=3, inferences_per_sample=1,
                        batch=case.batch, cpu_s=float(samples.sum()), wall_s=float(samples.sum()),
                    )
                )  # fmt: skip
        return self

    def answered(self, case: Any, right: Any, *, metric: str = "top1", agreement: Any = None) -> MadeRun:
        from profiler.records import QualityRecord

        rows = np.asarray(right, np.float64)
        agreement = np.ones(len(rows)) if agreement is None else np.asarray(agreement, np.float64)
        self.qualities.append(QualityRecord(case.quality_key, metric, rows, None, agreement, "d" * 64, 0.1))
        return self

    def made(self, variant: str, size_bytes: int = 1000) -> MadeRun:
        from profiler.records import ArtifactRecord

        self.artifacts.append(
            ArtifactRecord(variant, variant.encode().hex().ljust(64, "0")[:64], size_bytes, size_bytes // 2, True, {})
        )
        return self

    def failed(self, key: str, *, stage: str = "load", kind: str = "crash", message: str = "it crashed") -> MadeRun:
        from profiler.records import FailureRecord

        self.failures.append(FailureRecord(key, stage, kind, message, 0, "last words"))
        return self

    def data(self, *, status: str = "finished", environment: Any = None, **settings: Any) -> Any:
        from dataclasses import asdict

        from profiler.records import Environment
        from profiler.store import RunData
        from profiler.study import make_study

        fields = {
            "model": "m.onnx", "data": "d.npz" if self.qualities else None,
            "backends": tuple(dict.fromkeys(case.backend for case in self.cases)) or ("ort",),
            "effort": {"processes": self.processes, "rounds": self.rounds},
        }  # fmt: skip
        environment = environment or Environment(
            "host", "x86_64", "Linux 6", "3.11.7", None, (), 2, 2, 8 << 30, None, (), {}
        )
        for case in self.cases:
            if case.variant not in {record.variant for record in self.artifacts}:
                self.made(case.variant)
        return RunData(
            id="20260101-000000-abcd", created_at="2026-01-01T00:00:00+00:00", status=status, edgeprof_version="0",
            study=make_study(**{**fields, **settings}), environment=environment, notes=(),
            plan={"cases": [asdict(case) for case in self.cases]}, artifacts=tuple(self.artifacts),
            processes=tuple(self.process_records), blocks=tuple(self.blocks), qualities=tuple(self.qualities),
            failures=tuple(self.failures),
        )  # fmt: skip


@pytest.fixture
def made_run() -> type[MadeRun]:
    """The class that makes RunData from known truths."""
    return MadeRun
