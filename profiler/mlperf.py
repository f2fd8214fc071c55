"""MLPerf LoadGen beside our own engine: the same worker process, the same session, the same rows, within the same minutes.

LoadGen is the field's reference for what the scenarios mean. Ours differs where it must (intervals, labels, time order), so it is
checked against LoadGen where the two can be compared, and LoadGen's log files are kept for people who need that form.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from profiler import prepare
from profiler.errors import DataError, StudyError, TargetError, unknown
from profiler.job import Job
from profiler.load import schedule
from profiler.making import MakerStore
from profiler.measure import loadgen
from profiler.progress import Progress
from profiler.stats.quantiles import quantile_interval, throughput_interval
from profiler.store import open_store
from profiler.study import Case, Study, expand
from profiler.targets.maker import limits_of
from profiler.targets.process import WorkerProcess

PERCENTILES = (0.5, 0.9, 0.99)
MAX_SUMMARY_CHARS = 1 << 20
MIN_QUERIES = 100
_SECTIONS = 15
"""Pieces of each of our two stretches; their disagreement gives our interval."""
_WARMUP_S = 0.5
_DRAIN_S = 30.0

_OURS = {"SingleStream": "single", "MultiStream": "multi", "Server": "server", "Offline": "offline"}


@dataclass(frozen=True)
class Asked:
    """One comparison. Which fields matter depends on the scenario."""

    scenario: str
    min_duration_s: float = 10.0
    qps: float | None = None
    """Server: the rate offered. Offline: the rate expected; None takes ours."""
    slo_s: float | None = None
    """Server: what p99 must not exceed."""
    samples: int = 8
    """MultiStream: samples in a query."""
    max_batch: int = 1
    """Samples put together into one inference."""

    def __post_init__(self) -> None:
        """Raise StudyError for what cannot be asked."""
        if self.scenario not in loadgen.SCENARIOS:
            raise unknown("LoadGen scenario", self.scenario, loadgen.SCENARIOS)
        if self.scenario == "Server" and (self.qps is None or self.slo_s is None):
            raise StudyError("the Server scenario needs a rate and a limit: add --qps 200 --slo-p99 10ms.")
        if self.scenario != "Server" and self.slo_s is not None:
            raise StudyError(
                f"--slo-p99 belongs to the Server scenario, not to {self.scenario}: leave it out, or add --scenario Server."
            )
        if self.scenario in ("SingleStream", "MultiStream") and self.qps is not None:
            raise StudyError(f"--qps belongs to Server and Offline; {self.scenario} is a closed loop without a rate.")
        if self.scenario == "SingleStream" and self.max_batch != 1:
            raise StudyError("SingleStream sends one sample at a time: leave --batch at 1.")
        if self.qps is not None and not 0 < self.qps <= 1e6:
            raise StudyError(f"--qps is {self.qps:g}, expected more than 0 and at most 1,000,000 per second.")
        if not 0.1 <= self.min_duration_s <= 3600:
            raise StudyError(f"--min-duration is {self.min_duration_s:g} s, expected 0.1s to 3600s.")
        if not (1 <= self.samples <= 4096 and 1 <= self.max_batch <= 4096):
            raise StudyError(f"--samples and --batch go from 1 to 4096, got {self.samples} and {self.max_batch}.")


@dataclass(frozen=True)
class Summary:
    """What `mlperf_log_summary.txt` says. None where that scenario's file does not say it."""

    scenario: str
    valid: bool
    latency_s: Mapping[float, float]
    """By percentile: 0.5, 0.9, 0.95, 0.97, 0.99, 0.999."""
    mean_s: float | None
    throughput_per_s: float | None
    early_stopping: bool | None
    """Whether LoadGen's own test had enough queries."""
    early_stopping_s: Mapping[float, float]
    """Its upper bounds of percentiles, where it gave any."""
    words: tuple[str, ...]
    """What LoadGen recommends when the result is not valid, and what its early stopping says."""


@dataclass(frozen=True)
class Figure:
    """One figure of both engines. Ours has an interval; LoadGen gives none."""

    name: str
    """`p50`, `p90`, `p99` in seconds, or `throughput` in samples per second."""
    loadgen: float | None
    ours: float
    low: float | None
    high: float | None

    @property
    def difference(self) -> float | None:
        """LoadGen's over ours, minus 1."""
        return None if self.loadgen is None or not self.ours else self.loadgen / self.ours - 1


@dataclass(frozen=True)
class Comparison:
    """LoadGen and our engine on one worker."""

    case: str
    asked: Asked
    summary: Summary
    figures: tuple[Figure, ...]
    our_samples: int
    """Samples served in both of our stretches."""
    loadgen_samples: int
    notes: tuple[str, ...]
    logs: Mapping[str, bytes]
    """LoadGen's files by name."""

    def to_json(self) -> dict[str, Any]:
        """Everything but the files."""
        figures = [asdict(figure) | {"difference": figure.difference} for figure in self.figures]
        plain = {key: getattr(self, key) for key in ("case", "our_samples", "loadgen_samples", "notes")}
        return plain | {"asked": asdict(self.asked), "summary": asdict(self.summary), "figures": figures}


def require_loadgen(find: Callable[[str], object | None] = importlib.util.find_spec) -> None:
    """Raise StudyError with the command that installs it when LoadGen is missing."""
    if find(loadgen.MODULE) is None:
        raise StudyError(loadgen.MISSING)


def parse_summary(text: str) -> Summary:
    """Read LoadGen's summary. Raises DataError when it is not one."""
    if len(text) > MAX_SUMMARY_CHARS:
        raise DataError(f"a LoadGen summary has a few kilobytes, this has {len(text):,} characters.")
    scenario, result = _field(text, r"Scenario"), _field(text, r"Result is")
    if scenario not in loadgen.SCENARIOS or result not in {"VALID", "INVALID"}:
        raise DataError(
            f"this is no summary of LoadGen: scenario '{scenario}', result '{result}'; expected one of "
            f"{', '.join(loadgen.SCENARIOS)} and VALID or INVALID."
        )
    latencies = re.findall(r"^([\d.]+) percentile latency \(ns\)\s*:\s*(\d+)\s*$", text, re.MULTILINE)
    bounds = re.findall(r"Early stopping ([\d.]+)(?:st|nd|rd|th) percentile estimate:\s*(\d+)", text)
    mean = _field(text, r"Mean latency \(ns\)")
    early = _field(text, r"Early stopping satisfied")
    rate = next(
        (
            value for name in ("Completed samples per second", "Samples per second", r"QPS w/o loadgen overhead")
            if (value := _field(text, name)) is not None
        ),
        None,
    )  # fmt: skip
    try:
        return Summary(
            scenario=scenario,
            valid=result == "VALID",
            latency_s={round(float(p) / 100, 6): int(ns) / 1e9 for p, ns in latencies},
            mean_s=None if mean is None else int(mean) / 1e9,
            throughput_per_s=None if rate is None else float(rate),
            early_stopping=None if early is None else early.lower() == "yes",
            early_stopping_s={round(float(p) / 100, 6): int(ns) / 1e9 for p, ns in bounds},
            words=_bullets(text, "Recommendations") + _bullets(text, "Early Stopping Result"),
        )
    except ValueError as error:
        raise DataError(f"a number in LoadGen's summary cannot be read: {error}.") from error


def _bullets(text: str, title: str) -> tuple[str, ...]:
    """The points under a title, ` * …`, each with the lines that continue it."""
    match = re.search(rf"^{title}:\n((?:[ ]\S.*\n?|[a-z].*\n?)*)", text, re.MULTILINE)
    points = re.split(r"^ \* ", match[1], flags=re.MULTILINE)[1:] if match else []
    return tuple(" ".join(point.split()) for point in points)


def _field(text: str, name: str) -> str | None:
    match = re.search(rf"^\s*{name}\s*:\s*(\S+)\s*$", text, re.MULTILINE)
    return None if match is None else match[1]


def compare(study: Study, asked: Asked, progress: Progress) -> Comparison:
    """Run LoadGen and, half before and half after it, our engine on one worker.

    `study` names one variant on one backend; its first case with that variant is taken. Raises EdgeprofError.
    """
    require_loadgen()
    recipes = prepare.check_names(study)
    limits = limits_of(study.time_limit_s, study.memory_limit_bytes)
    with prepare.working_folder() as folder:
        store = MakerStore(folder / "cache", lambda: limits)
        with store:
            prepared = prepare.prepare(study, recipes, folder, maker=store.maker)
            made, failures = prepare.make_artifacts(prepared, recipes, store, progress)
        wanted = recipes[-1].text
        if wanted not in {record.variant for record in made}:
            raise StudyError(
                f"{wanted} could not be made: {failures[0].message if failures else 'no reason was given'}"
            )
        case = next(case for case in expand(study, (wanted,)))
        database = open_store(folder)
        try:
            job = Job("mlperf", study, database, store, {r.variant: r for r in made}, prepared, folder, progress)
            progress.stage("comparing", 4)
            with job.modes, job.open(case) as worker:
                return _Comparing(job, case, worker, asked).result()
        finally:
            database.close()


class _Comparing:
    """One comparison in progress."""

    def __init__(self, job: Job, case: Case, worker: WorkerProcess, asked: Asked) -> None:
        self.job, self.case, self.worker, self.asked = job, case, worker, asked
        self.half_s = asked.min_duration_s / 2
        self.notes: list[str] = []
        self.ours: list[NDArray[np.float64]] = []
        self.rates: list[float] = []
        self.served = 0

    def result(self) -> Comparison:
        feeds = self.job.feeds(self.case)
        self.job.load(self.worker, self.case, varying_batch=self.asked.max_batch > 1)
        self.worker.request("feed", feeds, timeout_s=self.job.study.time_limit_s)
        expected_s = float(np.median(self._timed(_WARMUP_S)))
        self.job.progress.step("warm")
        # The same rows for both engines: what timing takes in turn, row by row.
        prepared = self.job.prepared
        index = np.concatenate(prepare.timing_index(prepared, self.case, self.job.study.seed))
        pool = {f"row/{name}": array for name, array in prepared.feeding.pool(prepared.rows, index).items()}

        self._ours(0, pool, expected_s)
        self.job.progress.step("ours")
        reply, logs = self._loadgen(pool, expected_s)
        self.job.progress.step("LoadGen")
        self._ours(1, pool, expected_s)
        self.job.progress.step("ours again")
        files = {name.partition("/")[2]: array.tobytes() for name, array in logs.items() if name.startswith("log/")}
        if set(files) != set(loadgen.LOGS):
            raise TargetError(f"the worker sent {sorted(files)} as LoadGen's logs, expected {', '.join(loadgen.LOGS)}.")
        summary = parse_summary(files["mlperf_log_summary.txt"].decode(errors="replace"))
        return Comparison(
            self.case.key, self.asked, summary, self._figures(summary), self.served, int(reply["samples"]),
            tuple(self.notes), files,
        )  # fmt: skip

    def _timed(self, seconds: float) -> NDArray[np.float64]:
        """Our closed loop of single inferences."""
        # Three times as long for models so slow that a hundred of them take longer.
        _, arrays = self.worker.request(
            "time", timeout_s=self.job.study.time_limit_s + 3 * seconds, min_s=seconds, min_samples=MIN_QUERIES,
            max_s=3 * seconds,
        )  # fmt: skip
        return arrays["durations_ns"].astype(np.float64) / 1e9

    def _loadgen(
        self, pool: dict[str, NDArray[np.generic]], expected_s: float
    ) -> tuple[dict[str, Any], dict[str, NDArray[np.generic]]]:
        asked, limit = self.asked, self.job.study.time_limit_s
        qps = asked.qps
        if asked.scenario == "Offline" and qps is None:
            qps = self.rates[0]
        return self.worker.request(
            "loadgen", pool, timeout_s=2 * asked.min_duration_s + limit, scenario=asked.scenario,
            min_duration_s=asked.min_duration_s, min_queries=MIN_QUERIES, qps=qps, slo_s=asked.slo_s, samples=asked.samples,
            max_batch=asked.max_batch, expected_s=expected_s, seed=self.job.study.seed, axes=self.job.prepared.feeding.axes,
        )  # fmt: skip

    def _ours(self, number: int, pool: dict[str, NDArray[np.generic]], expected_s: float) -> None:
        """Half of our measurement."""
        asked = self.asked
        if asked.scenario == "SingleStream":
            durations = self._timed(self.half_s)
            self.ours.append(durations)
            self.rates.append(len(durations) / float(durations.sum()))
            self.served += len(durations)
            return
        fields: dict[str, Any] = {}
        arrays = dict(pool)
        if asked.scenario == "Server":
            assert asked.qps is not None
            count = max(MIN_QUERIES, int(asked.qps * self.half_s))
            due = schedule.poisson(asked.qps, count, self.job.study.seed + number)
            arrays["schedule_s"] = due
            limit = float(due[-1]) + _DRAIN_S
        elif asked.scenario == "Offline":
            fields["count"] = max(MIN_QUERIES, int(self.half_s / expected_s))
            limit = 10 * self.half_s + _DRAIN_S
        else:
            fields |= {"samples": asked.samples, "duration_s": self.half_s}
            limit = self.half_s + _DRAIN_S
        reply, served = self.worker.request(
            "serve", arrays, timeout_s=limit + self.job.study.time_limit_s, scenario=_OURS[asked.scenario], workers=1,
            max_batch=asked.max_batch, time_limit_s=limit, axes=self.job.prepared.feeding.axes, **fields,
        )  # fmt: skip
        if reply["ended"] != "complete":
            raise TargetError(
                f"our engine did not finish {asked.scenario} ({reply['ended']}): the rate is more than this case can serve. "
                "Lower --qps."
            )
        sent, completed = (served[name].astype(np.float64) / 1e9 for name in ("sent_ns", "completed_ns"))
        self.rates.append(len(completed) / float(completed.max() - sent.min()))
        self.served += len(completed)
        if asked.scenario == "Server":
            late = float(np.quantile(sent - due, 0.99))
            if asked.slo_s is not None and late > max(100e-6, 0.01 * asked.slo_s):
                self.notes.append(f"our generator was late by {1e6 * late:.0f} µs in its p99: compare with care")
            self.ours.append(completed - due)
        elif asked.scenario == "MultiStream":
            whole = len(completed) // asked.samples * asked.samples
            queries = completed[:whole].reshape(-1, asked.samples).max(axis=1)
            self.ours.append(queries - sent[:whole].reshape(-1, asked.samples).min(axis=1))
        else:
            # Time between completions, whose mean is the throughput's inverse.
            self.ours.append(np.diff(np.sort(completed), prepend=sent.min()))

    def _figures(self, summary: Summary) -> tuple[Figure, ...]:
        sections = [part for half in self.ours for part in np.array_split(half, _SECTIONS) if len(part)]
        figures = []
        if summary.scenario != "Offline":
            # An offline latency is a place in the queue: it says nothing that the throughput does not.
            for p in PERCENTILES:
                found = quantile_interval(sections, p)
                name = f"p{100 * p:g}"
                figures.append(Figure(name, summary.latency_s.get(p), found.value, found.low, found.high))
                if not found.resolved:
                    self.notes.append(f"our {name} is not resolved: {found.reason}")
        if summary.scenario in ("SingleStream", "Offline"):
            value, low, high = throughput_interval(sections, batch=1)
            figures.append(Figure("throughput", summary.throughput_per_s, value, low, high))
        elif summary.scenario == "Server":
            figures.append(Figure("throughput", summary.throughput_per_s, float(np.mean(self.rates)), None, None))
        return tuple(figures)


def write_logs(comparison: Comparison, folder: Path) -> list[Path]:
    """LoadGen's files in `folder`, made if need be. Raises StudyError when it cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for name in loadgen.LOGS:
            path = folder / name
            path.write_bytes(comparison.logs[name])
            paths.append(path)
    except OSError as error:
        raise StudyError(f"cannot write LoadGen's logs to '{folder}': {error.strerror or error}.") from error
    return paths
