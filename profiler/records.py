"""What was seen: frozen records, SI units in the names, `None` with a reason where there is nothing to tell, never 0.0 or NaN.

Records are written once and never changed. Estimates, frontiers, costs and reports are recomputed from them by pure
functions, so an old run profits from a better method. Only the standard library and numpy are imported here: the worker
makes some of these records on devices where little else is installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from backends.base import SessionFacts
from backends.errors import MAX_MESSAGE, shortened

# Read by the store, which checks records with pydantic; the worker, which lacks pydantic, never looks at it.
_ARRAYS = {"arbitrary_types_allowed": True}

Source = Literal["measured here", "emulated", "envelope", "published", "predicted", "declared"]
"""Where a figure comes from; it travels with the figure into every table and picture. `emulated` and `envelope` were measured
too, but on no device that one can have: an emulator, and a machine held to less than it has."""

REFERENCE_VARIANT = "fp32"
"""The unmodified model that every variant is paired against."""
LEFT_OUT_BY_SEARCH = "by the search"
"""In the message of a case that a search dropped or did not try."""
SCREENING = "screening/"
"""Before the key of a quality record: an evaluation on rows that a search chose its contenders by (docs/search.md)."""
RACE = "race"
"""Label of a block that a search measured to choose, not to show (docs/search.md)."""


@dataclass(frozen=True)
class Estimate:
    """A number that may be shown: with its interval, its unit and where it comes from.

    `low` and `high` bound the `level` interval; either is None when the data do not bound it, and `note` says why.
    """

    value: float
    low: float | None
    high: float | None
    unit: str
    level: float = 0.95
    source: Source = "measured here"
    note: str | None = None


@dataclass(frozen=True)
class NotMeasured:
    """The honest absence of a number, with the reason a person reads."""

    reason: str


Figure = Estimate | NotMeasured
"""What a table cell holds."""


@dataclass(frozen=True)
class Environment:
    """The machine and software of a run. Absent facts are None; `notes` says what would have told them."""

    hostname: str
    machine: str
    system: str
    python: str
    cpu_model: str | None
    cpu_isa: tuple[str, ...]
    """Instruction sets that decide integer and bf16 speed: avx2, avx512f, avx512_vnni, amx_int8, asimddp, i8mm, …"""
    logical_cores: int
    usable_cores: int
    """Cores this process may run on (affinity mask, container quota)."""
    memory_bytes: int
    """What this process may use of it (container limit)."""
    hypervisor: str | None
    gpus: tuple[str, ...]
    versions: Mapping[str, str]
    governor: str | None = None
    load_1min: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ArtifactRecord:
    """The file a variant produced from the model, or why it is the same as another one."""

    variant: str
    sha256: str
    """Hash of the model file and its external data, in the store's canonical order."""
    size_bytes: int
    """Model file plus external data."""
    compressed_bytes: int | None
    """zlib level 6 over the same bytes: the only size that unstructured pruning changes."""
    changed: bool
    facts: Mapping[str, str | int | float | bool | None]
    """What the transformation did, counted recursively through subgraphs: ops quantized, weights zeroed, opset, …"""
    notes: tuple[str, ...] = ()
    equal_to: str | None = None
    """The earlier variant whose artifact is byte-identical; such a variant is merged with it and not measured."""
    seconds: float = 0.0


@dataclass(frozen=True)
class WarmupRecord:
    """The warm-up of one process, and where its steady state begins."""

    __pydantic_config__: ClassVar[dict[str, bool]] = _ARRAYS

    samples_s: NDArray[np.float64]
    """Duration of each inference in time order, shape (n,)."""
    cut: int
    """Index of the first sample of the steady state."""
    label: Literal["flat", "warmup", "slowdown", "no_steady_state"]
    time_to_steady_s: float | None


@dataclass(frozen=True)
class ProcessRecord:
    """One worker process that served one case in one replicate: what it cost to get it ready."""

    case: str
    replicate: int
    attempt: int
    group: int
    pid: int
    import_s: float
    load_s: float
    first_inference_s: float
    rss_before_load_bytes: int | None
    peak_rss_bytes: int | None
    """Highest resident set of the process (`VmHWM`) after the warm-up."""
    facts: SessionFacts
    warmup: WarmupRecord | None = None
    parked_cpu_s: float | None = None
    notes: tuple[str, ...] = ()
    harness_in_sample_s: float | None = None
    """What the clock adds to every recorded sample, weighed in this process."""
    harness_labels_s: float | None = None
    """What reading the interference counters adds between two inferences, per inference of this case."""
    memory: Mapping[str, Mapping[str, int | None]] = field(default_factory=dict)
    """By phase (import, load, first, running): peak and kinds of memory, bytes."""


@dataclass(frozen=True)
class BlockRecord:
    """One block: consecutive inferences of one case inside one round. Samples are in time order, none is left out."""

    __pydantic_config__: ClassVar[dict[str, bool]] = _ARRAYS

    case: str
    replicate: int
    attempt: int
    """Counts restarts of an interrupted replicate; blocks of different attempts are never paired."""
    group: int
    """Cases resident together; only blocks of one group are paired."""
    round: int
    position: int
    """Place of this case in the round's random order."""
    started_s: float
    """`CLOCK_MONOTONIC` of the worker at the first sample; comparable inside one machine and boot only."""
    samples_s: NDArray[np.float64]
    """Duration of each sample divided by `inferences_per_sample`, shape (n,)."""
    discarded: int
    """Leading samples that re-entered caches and clocks: kept here, left out of estimates."""
    inferences_per_sample: int
    batch: int
    cpu_s: float
    """Processor time of the worker over the block, all threads."""
    wall_s: float
    labels: Mapping[str, float] = field(default_factory=dict)
    """Host facts over the block: steal_share, other_cpu_share, run_delay_s, throttled_s, involuntary_switches, …"""
    window_s: NDArray[np.float64] | None = None
    """Wall time of consecutive windows of `label_every` samples each, from the first sample on and without gaps, shape (w,)."""
    window_cpu_s: NDArray[np.float64] | None = None
    """Processor time of all threads of the process in each window."""
    window_waited_s: NDArray[np.float64] | None = None
    """Run-queue delay of its busy threads in each window; None where one thread's CPU time says more, or nothing tells."""
    label_every: int = 1
    canary_s: NDArray[np.float64] | None = None
    """Time of a fixed loop per 1000 turns: before the first sample, about every millisecond, after the last; shape (c,)."""
    canary_at: NDArray[np.int64] | None = None
    """How many samples had been taken then, same shape."""


@dataclass(frozen=True)
class Chance:
    """How far answers are better than such that have nothing to do with the labels."""

    value: float
    """Share of right answers; of rankings the area under the ROC curve, of tags the share of right ones among those given."""
    level: float
    """What that would be by chance, with labels and answers as frequent as they are."""
    p_value: float
    """Probability of being as good by chance: exact binomial for shares, rank correlation for rankings."""


@dataclass(frozen=True)
class QualityRecord:
    """Outputs of one (variant, backend, target, batch) on the evaluation data, reduced to one row per sample."""

    __pydantic_config__: ClassVar[dict[str, bool]] = _ARRAYS

    case: str
    metric: str
    per_sample: NDArray[np.float64]
    """What the metric keeps of each sample, shape (n,) or (n, k)."""
    predictions: NDArray[np.int64] | None
    """Predicted class of each sample where the model classifies, shape (n,)."""
    agreement: NDArray[np.float64]
    """Agreement with the reference per sample: 1/0 for classes, similarity otherwise, shape (n,)."""
    data_sha256: str
    seconds: float
    notes: tuple[str, ...] = ()
    metric_unit: Literal["proportion", "native"] = "native"
    higher_is_better: bool = True
    """With the unit, what a later reading needs to know of a metric that is the user's own code, without running it."""
    output: str | None = None
    """The output that metric, predictions and agreement are over; None where they are over all of them, and in older runs."""
    chance: Chance | None = None
    """Whether the answers have anything to do with the labels; None for metrics of values and where there are no labels."""
    question: str | None = None
    """Why nothing could be evaluated, with what to say to edgeprof: `per_sample` and `agreement` are empty then, `metric` too."""


@dataclass(frozen=True)
class RuntimeRecord:
    """One artifact's answers on several backends, compared on the same rows: whether they compute the same function."""

    case: str
    """The quality keys' common part, `any` for the backend: `fp32@any/b1`."""
    variant: str
    target: str
    batch: int
    rows: int
    reduced: bool
    """Whether something is computed in less than float32, which allows more difference."""
    backends: tuple[str, ...]
    """Those compared, as the study names them."""
    agreeing: tuple[str, ...]
    """The side that is taken as right, with cautious options and the reference evaluator where they were asked."""
    wrong: tuple[str, ...] = ()
    """Backends that are not on that side."""
    undecided: bool = False
    """Whether they differ and no side has more votes: all are in `wrong`."""
    doubted: tuple[str, ...] = ()
    """Quality keys of the wrong ones."""
    cautious: Mapping[str, str] = field(default_factory=dict)
    """By wrong backend, its text with an option that makes it right."""
    difference: str = ""
    """What is off, and by how much; a phrase."""
    relative_error: float | None = None

    @property
    def text(self) -> str:
        """The finding as a sentence; empty where all agree."""
        if not self.wrong:
            return ""
        names = " and ".join(self.backends)
        seen = f"seen on {self.rows} rows: {self.difference}"
        what = f"{self.variant}: {names} compute different functions from the same file ({seen})"
        if self.undecided:
            return f"{what}; which is right could not be told, so neither is to be trusted"
        others = ", ".join(name for name in self.agreeing)
        advice = "".join(f"; {text} is right: --backends '{text}'" for text in self.cautious.values())
        return f"{what}; wrong: {', '.join(self.wrong)}, by the word of {others}{advice}"


@dataclass(frozen=True)
class EnergyRecord:
    """One window on one meter: a case repeating the same work, or (`case` is `IDLE`) nothing running."""

    case: str
    meter: str
    """`rapl`, `nvml`, `ina3221`, `pmic`, `external`."""
    window: int
    """Counts over the whole energy stage, so that windows of different cases can be put in order."""
    energy_j: Mapping[str, float]
    """Joules by rail over the window, as the meter counts or as its power integrates to."""
    total_rails: tuple[str, ...]
    """The rails that add up to what `coverage` names; the others lie inside them or beside them."""
    coverage: str
    """What these rails power, for people: `CPU packages and DRAM`, `whole module, carrier board excluded`, …"""
    method: Literal["counter", "integrated"]
    inferences: int
    batch: int
    wall_s: float
    started_unix_s: float
    readings: int
    """Readings of the meter that fell into the window."""
    notes: tuple[str, ...] = ()


IDLE = "idle"
"""Stands for a case in energy windows in which nothing runs."""


@dataclass(frozen=True)
class LoadRecord:
    """One run of one load scenario on one case: every request, with what happened to it when."""

    __pydantic_config__: ClassVar[dict[str, bool]] = _ARRAYS

    case: str
    setting: str
    """Scenario and its options as text that parses back: `server{max_batch=8,max_delay_s=0.002,workers=2}`."""
    run: int
    """Counts over the whole load stage, in the order in which they ran."""
    purpose: Literal["scenario", "search", "confirm"]
    rate_per_s: float | None
    """Offered rate of an open loop; None for closed ones, whose rate is what comes out."""
    seed: int
    scheduled_s: NDArray[np.float64] | None
    """When each request was due, seconds from the beginning, shape (n,). None in closed loops."""
    sent_s: NDArray[np.float64]
    """When the generator put it into the queue: later than scheduled by the generator's own lateness."""
    started_s: NDArray[np.float64]
    """When the inference that carried it began."""
    completed_s: NDArray[np.float64]
    """When that inference had returned; NaN where the run ended first."""
    batch_size: NDArray[np.int64]
    """Requests in the inference that carried it."""
    ended: Literal["complete", "diverged", "timeout"]
    """`diverged`: the queue only grew, so the run was stopped."""
    cpu_s: float
    wall_s: float
    labels: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class SelftestRecord:
    """One validation of the profiler on one machine: what it found of what was there to find."""

    machine: str
    """Fingerprint of the machine and software it holds for."""
    created_at: str
    passed: bool
    """Whether A/A and injected differences came out as they should."""
    figures: Mapping[str, float | None]
    """By name, SI units in the names; None where it could not be measured, with a note."""
    notes: tuple[str, ...] = ()


BESIDE_TIMING = frozenset({"energy", "serve"})
"""Stages after the timing: what fails there leaves the case's latency and accuracy as they are."""

FailureKind = Literal["unavailable", "unsupported", "crash", "timeout", "out_of_memory", "mismatch", "error", "skipped"]


@dataclass(frozen=True)
class FailureRecord:
    """Something that was asked and did not happen. A failure is a result: it is stored, shown and counted."""

    case: str
    stage: Literal["variant", "load", "warmup", "measure", "quality", "plan", "energy", "serve"]
    kind: FailureKind
    message: str
    replicate: int | None = None
    log_tail: str | None = None
    """Last lines that the worker and its native libraries wrote."""
    needs_more_than_bytes: int | None = None
    """Of a case that ran out of memory: what it had when it did, or what it was allowed."""

    def __post_init__(self) -> None:
        """Texts are of a length that somebody reads, whoever made them."""
        for name, text in (("message", self.message), ("log_tail", self.log_tail)):
            if isinstance(text, str) and len(text) > MAX_MESSAGE:
                object.__setattr__(self, name, shortened(text))
