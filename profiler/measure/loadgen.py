"""MLPerf LoadGen as the one that asks: the session of this worker behind mlcommons-loadgen, its log files as the answer.

LoadGen owns the loop and the clock here; nothing of ours is timed. Runs inside the worker, standard library and numpy only.
"""

from __future__ import annotations

import importlib
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends.base import BackendError, BackendUnavailable, Feeds, Session
from profiler.measure import loop, serving

Arrays = dict[str, NDArray[np.generic]]

SCENARIOS = ("SingleStream", "MultiStream", "Server", "Offline")
LOGS = ("mlperf_log_summary.txt", "mlperf_log_detail.txt")
MODULE = "mlperf_loadgen"
MISSING = (
    "LoadGen is not installed here: python -m pip install 'edgeprof[mlperf]' (or mlcommons-loadgen). "
    "There is no ready-made package for Linux on aarch64: there, pip builds it and needs g++."
)
_FAILED_PAUSE_S = 1e-3


class Server:
    """What LoadGen calls the system under test: queries in, completions out.

    A query of a stream is answered before `issue` returns, as the next one waits for it anyway. Server and Offline must not
    be held up, so a thread takes their queries, up to `max_batch` that are already waiting at a time.
    """

    def __init__(
        self, infer: Callable[[Feeds], object], batch: Callable[[Sequence[int]], Feeds], max_batch: int,
        complete: Callable[[Sequence[Any]], None], *, at_once: bool,
    ) -> None:  # fmt: skip
        """`complete` tells LoadGen that these samples are done; `at_once` is for the streams."""
        self._infer, self._batch, self._max, self._complete = infer, batch, max_batch, complete
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread = None if at_once else threading.Thread(target=self._work, daemon=True, name="edgeprof-loadgen")
        self.samples = 0
        self.error: Exception | None = None
        if self._thread is not None:
            self._thread.start()

    def issue(self, samples: Sequence[Any]) -> None:
        """LoadGen's callback. An exception would end the process inside its C++, so none leaves."""
        if self._thread is not None:
            for sample in samples:
                self._queue.put(sample)
            return
        for start in range(0, len(samples), self._max):
            self._serve(samples[start : start + self._max])

    def close(self) -> None:
        """End the thread."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()

    def _work(self) -> None:
        while (sample := self._queue.get()) is not None:
            samples = [sample]
            while len(samples) < self._max:
                try:
                    following = self._queue.get_nowait()
                except queue.Empty:
                    break
                if following is None:
                    self._queue.put(None)
                    break
                samples.append(following)
            self._serve(samples)

    def _serve(self, samples: Sequence[Any]) -> None:
        if self.error is None:
            try:
                self._infer(self._batch([sample.index for sample in samples]))
                self.samples += len(samples)
            except Exception as error:  # noqa: BLE001 (raised again when LoadGen has returned)
                self.error = error
        else:
            # LoadGen cannot be told to stop: it gets its answers, but slowly, so that it does not count millions.
            time.sleep(_FAILED_PAUSE_S)
        self._complete(samples)


def drive(
    session: Session, pool: Mapping[str, NDArray[np.generic]], header: Mapping[str, Any],
    load: Callable[[], Any] = lambda: importlib.import_module(MODULE),
) -> tuple[dict[str, Any], Arrays]:  # fmt: skip
    """One LoadGen run over a loaded session; `pool` has the model's inputs, shape (rows, …), taken in LoadGen's random order.

    `header`: scenario, min_duration_s, min_queries, max_batch, seed, and what the scenario needs of qps, slo_s, p, samples,
    expected_s, `axes` as in `serving.Rows`. Answers LoadGen's files as bytes, `log/<name>`. Raises BackendUnavailable without
    the package, BackendError, and what the session raises.
    """
    try:
        lg = load()
    except ImportError as error:
        raise BackendUnavailable(MISSING) from error
    scenario = str(header["scenario"])
    if scenario not in SCENARIOS:
        raise BackendError(f"LoadGen has no scenario '{scenario}', expected one of: {', '.join(SCENARIOS)}.")
    max_batch = int(header.get("max_batch", 1))
    rows = serving.Rows(pool, session.inputs, max_batch, header.get("axes"))
    count = len(next(iter(pool.values())))

    def complete(samples: Sequence[Any]) -> None:
        lg.QuerySamplesComplete([lg.QuerySampleResponse(sample.id, 0, 0) for sample in samples])

    serving.warm([session.infer], rows.batch, max_batch)
    server = Server(session.infer, rows.batch, max_batch, complete, at_once=scenario in ("SingleStream", "MultiStream"))
    with tempfile.TemporaryDirectory(prefix="edgeprof-loadgen-") as folder:
        sut = lg.ConstructSUT(server.issue, _nothing)
        library = lg.ConstructQSL(count, count, _nothing, _nothing)
        try:
            with loop.quiet_collector():
                # No audit file: LoadGen would look for one in whatever folder the worker was started in.
                lg.StartTestWithLogSettings(sut, library, _settings(lg, header), _log_settings(lg, folder), "")
        finally:
            server.close()
            lg.DestroyQSL(library)
            lg.DestroySUT(sut)
        if server.error is not None:
            raise server.error
        logs = {f"log/{name}": np.frombuffer(Path(folder, name).read_bytes(), np.uint8) for name in LOGS}
    return {"samples": server.samples, "padded_to": rows.padded_to}, dict(logs)


def _nothing(*_: object) -> None:
    """LoadGen asks to flush, and to load and unload samples; rows are in memory from the start."""


def _settings(lg: Any, header: Mapping[str, Any]) -> Any:
    settings = lg.TestSettings()
    settings.scenario = getattr(lg.TestScenario, str(header["scenario"]))
    settings.mode = lg.TestMode.PerformanceOnly
    settings.min_duration_ms = max(1, int(float(header["min_duration_s"]) * 1e3))
    settings.min_query_count = int(header.get("min_queries", 100))
    # LoadGen's default seeds are all 0: every run of it has the same schedule.
    seed = int(header.get("seed", 0))
    settings.qsl_rng_seed, settings.sample_index_rng_seed, settings.schedule_rng_seed = seed, seed + 1, seed + 2
    expected_ns = max(1, int(float(header.get("expected_s", 1e-3)) * 1e9))
    settings.single_stream_expected_latency_ns = expected_ns
    samples = int(header.get("samples", 8))
    settings.multi_stream_samples_per_query = samples
    settings.multi_stream_expected_latency_ns = expected_ns * samples
    if header.get("qps") is not None:
        settings.server_target_qps = settings.offline_expected_qps = float(header["qps"])
    if header.get("slo_s") is not None:
        settings.server_target_latency_ns = int(float(header["slo_s"]) * 1e9)
    settings.server_target_latency_percentile = float(header.get("p", 0.99))
    return settings


def _log_settings(lg: Any, folder: str) -> Any:
    output = lg.LogOutputSettings()
    output.outdir = folder
    output.copy_summary_to_stdout = False
    logs = lg.LogSettings()
    logs.log_output = output
    # A trace costs 0.5 to 3.7 µs in every query.
    logs.enable_trace = False
    return logs
