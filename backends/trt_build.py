"""From an ONNX file to a serialized TensorRT engine, the same way for TensorRT 10, 11 and TensorRT-RTX.

The network is strongly typed: precision comes from the model's own types (float16 casts, Q/DQ), the one way that all of
them know. Precision flags exist in 10.x alone and are used only when asked for. TensorRT answers None where others raise, so
its log is captured and quoted.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backends.base import BackendError, BackendUnavailable, LoadOptions, format_shape
from backends.options import choice, flag, number, require_known
from backends.trt_cache import external_files
from backends.trt_find import FLAVOURS, Found, find, load

OPTION_NAMES = ("flavour", "precision", "workspace_mib", "level", "tf32", "sparse", "build", "graph")
PRECISION_FLAGS = {"fp16": "FP16", "bf16": "BF16", "int8": "INT8"}
NODES_SHOWN = 20
MAX_BUILDS = 101
LOG_LINES = 200
SPARSITY = "(Sparsity)"
"""How TensorRT begins its lines about sparse weights, by its documentation ("Structured sparsity")."""

FREE_ROWS = 64
"""Rows an engine takes at most (or the batch, if that is more) when nobody said what will be fed."""


@dataclass(frozen=True)
class Settings:
    """The backend's options, checked."""

    flavour: str = "auto"
    precision: str = "model"
    """`model` (the model's own types) or a flag of 10.x that lets TensorRT lower float32."""
    workspace_bytes: int | None = None
    """Scratch memory limit; None leaves TensorRT's own (all of the device)."""
    level: int | None = None
    """Builder optimisation level, 0 to 5; None leaves TensorRT's own."""
    tf32: bool = False
    """Off, unlike TensorRT's default: a float32 reference must not change its arithmetic with the GPU."""
    sparse: bool = False
    """Whether kernels may be chosen that skip the zeros of weights with two zeros in each four."""
    build: int = 0
    """Above 0 an engine of its own, built without the timings of others: how much builds differ is seen by having several."""
    graph: bool = False
    """Whether inferences launch a captured CUDA graph instead of each kernel by itself."""

    @classmethod
    def read(cls, options: Mapping[str, str]) -> Settings:
        """From option texts. Raises BackendError for an unknown name or value."""
        require_known("trt", options, OPTION_NAMES)
        workspace = number("trt", options, "workspace_mib", 0.0)
        level = choice("trt", options, "level", ("auto", *"012345"), "auto")
        return cls(
            flavour=choice("trt", options, "flavour", FLAVOURS, "auto"),
            precision=choice("trt", options, "precision", ("model", *PRECISION_FLAGS), "model"),
            workspace_bytes=int(workspace * 2**20) or None,
            level=None if level == "auto" else int(level),
            tf32=flag("trt", options, "tf32", default=False),
            sparse=flag("trt", options, "sparse", default=False),
            graph=flag("trt", options, "graph", default=False),
            build=int(choice("trt", options, "build", tuple(map(str, range(MAX_BUILDS))), "0")),
        )


@dataclass(frozen=True)
class NodeProblem:
    """One node that the parser refused."""

    index: int
    name: str
    op: str
    code: str
    """`UNSUPPORTED_NODE`, `INVALID_NODE`, … as the parser's ErrorCode says."""
    reason: str


class ModelRefused(BackendError):  # noqa: N818 (reads as the event it reports)
    """The ONNX parser does not take the model. `nodes` says why, node by node; empty when it named none."""

    def __init__(self, message: str, nodes: Sequence[NodeProblem] = ()) -> None:
        """`nodes` in the model's order."""
        super().__init__(message)
        self.nodes = tuple(nodes)


@dataclass
class Log:
    """What TensorRT logged, newest last. Verbose lines are dropped as they come."""

    lines: deque[tuple[str, str]] = field(default_factory=lambda: deque(maxlen=LOG_LINES))

    sparsity: list[str] = field(default_factory=list)
    """What it told of layers whose weights are 2:4 sparse, and of those that run so."""

    def add(self, severity: str, message: str) -> None:
        """Keep one line, unless it is chatter."""
        if message.startswith(SPARSITY):
            self.sparsity.append(message.removeprefix(SPARSITY).strip())
        if severity not in ("VERBOSE", "INFO"):
            self.lines.append((severity, message.strip()))

    def quote(self) -> str:
        """The errors, or else the warnings, for an error text."""
        errors = [text for severity, text in self.lines if severity in ("ERROR", "INTERNAL_ERROR")]
        chosen = errors or [text for _, text in self.lines]
        return " | ".join(dict.fromkeys(chosen[-6:])) or "it logged no reason"


def make_logger(trt: Any, log: Log) -> Any:
    """An ILogger that writes into `log`. The caller keeps it alive as long as the objects made with it."""

    class Captured(trt.ILogger):  # type: ignore[misc]  # the base class is known only at run time
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            log.add(severity.name, msg)

    return Captured()


@dataclass(frozen=True)
class Built:
    """A serialized engine, and the timing cache after its build where there is one."""

    plan: bytes
    timing_cache: bytes | None
    warnings: tuple[str, ...]
    sparsity: tuple[str, ...] = ()
    """TensorRT's own lines on sparse weights; none when it was not asked, or said nothing."""


def build_engine(
    model: Path,
    *,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    options: Mapping[str, str] | None = None,
    compute_capabilities: Sequence[str] = (),
) -> bytes:
    """Build an engine ahead of time. With TensorRT-RTX no GPU is needed and `compute_capabilities` (`SM86`, …) are its targets.

    `shapes` fixes dynamic inputs (batch included). Full TensorRT builds for the GPU that is present only.
    Raises BackendUnavailable, ModelRefused (per-node reasons) or BackendError (TensorRT's own words).
    """
    settings = Settings.read(options or {})
    found = find(settings.flavour)
    load_options = LoadOptions(sample_shapes=dict(shapes or {}))
    return build(load(found), found, model, settings, load_options, compute_capabilities).plan


def build(
    trt: Any,
    found: Found,
    model: Path,
    settings: Settings,
    options: LoadOptions,
    compute_capabilities: Sequence[str] = (),
    timing_cache: bytes = b"",
) -> Built:
    """Parse and build with an imported binding. See `build_engine`; `timing_cache` is what an earlier build returned."""
    log = Log()
    logger = make_logger(trt, log)
    builder = _builder(trt, logger, found, log)
    network = builder.create_network(_network_flags(trt, settings))
    parse(trt, found, network, logger, log, model)
    config = builder.create_builder_config()
    _apply(trt, found, config, settings)
    _set_targets(trt, found, config, compute_capabilities)
    _set_profile(builder, network, config, model.name, options)
    cache = None
    if found.flavour == "trt":  # in TensorRT-RTX timing caches are there but do nothing
        cache = config.create_timing_cache(timing_cache) or config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BackendError(f"{found.title} could not build '{model.name}': {log.quote()}")
    saved = bytes(memoryview(cache.serialize())) if cache is not None else None
    warnings = tuple(dict.fromkeys(text for severity, text in log.lines if severity == "WARNING"))
    return Built(bytes(memoryview(plan)), saved, warnings, tuple(dict.fromkeys(log.sparsity)))


def _builder(trt: Any, logger: Any, found: Found, log: Log) -> Any:
    if not hasattr(trt, "Builder"):
        raise BackendUnavailable(
            f"{found.title} has no builder (lean and dispatch runtimes only run); install the full one."
        )
    try:
        return trt.Builder(logger)
    except TypeError as error:  # what the binding raises when the library's factory gives nothing, as without a driver
        raise BackendUnavailable(
            f"{found.title} could not start its builder: {log.quote()} ({error}). It needs an NVIDIA GPU and a driver that "
            "fits its CUDA version: check nvidia-smi."
        ) from error


def _network_flags(trt: Any, settings: Settings) -> int:
    strong = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if strong is None or settings.precision != "model" else 1 << int(strong)


def parse(trt: Any, found: Found, network: Any, logger: Any, log: Log, model: Path) -> None:
    """Parse an ONNX file into `network`. Raises ModelRefused with each node's reason."""
    external_files(model)  # refuses names that leave the folder, which the parser would follow
    parser = trt.OnnxParser(network, logger)
    if parser.parse_from_file(str(model)):
        return
    nodes = [_problem(parser.get_error(index)) for index in range(parser.num_errors)]
    if not nodes:
        raise ModelRefused(f"{found.title} could not load '{model.name}': {log.quote()}")
    lines = [f"  node {n.index} '{n.name}' ({n.op}): {n.code}, {n.reason}" for n in nodes[:NODES_SHOWN]]
    if len(nodes) > NODES_SHOWN:
        lines.append(f"  and {len(nodes) - NODES_SHOWN} more")
    raise ModelRefused(
        f"{found.title} refuses '{model.name}', {len(nodes)} node(s) not supported:\n" + "\n".join(lines) + "\n"
        "Replace these ops in the model, or use a backend that runs them (ort, ov).",
        nodes,
    )


def _problem(error: Any) -> NodeProblem:
    text = str(error.desc()).strip()
    # Checks that have nothing to say say "false"; then the function that refused tells more (`checkDet`).
    reason = f"refused by {error.func()}" if text in ("", "false") else text
    return NodeProblem(error.node(), error.node_name(), error.node_operator(), error.code().name, reason)


def _apply(trt: Any, found: Found, config: Any, settings: Settings) -> None:
    if settings.precision != "model":
        flag = getattr(trt.BuilderFlag, PRECISION_FLAGS[settings.precision], None)
        if flag is None:
            raise BackendError(
                f"{found.title} has no precision={settings.precision}: it takes precision from the model's own types. "
                "Leave the option out and profile an fp16 or int8 variant of the model."
            )
        config.set_flag(flag)
    if settings.tf32:
        config.set_flag(trt.BuilderFlag.TF32)
    else:
        config.clear_flag(trt.BuilderFlag.TF32)
    if settings.sparse:
        config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    if settings.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_bytes)
    if settings.level is not None:
        config.builder_optimization_level = settings.level
    # Layer types and precisions stay in the engine, for `facts.precision`; kernels are the same.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED


def target_names(trt: Any, major: int, minor: int) -> tuple[str, ...]:
    """The build target for a GPU where the binding takes one. A GPU it doesn't list is left to its own judgement."""
    if not hasattr(trt, "ComputeCapability"):
        return ()
    name = f"SM{major}{minor}"
    return (name,) if hasattr(trt.ComputeCapability, name) else ("CURRENT",)


def _set_targets(trt: Any, found: Found, config: Any, names: Sequence[str]) -> None:
    if not names:
        return
    if not hasattr(trt, "ComputeCapability"):
        raise BackendError(
            f"{found.title} builds for the GPU that is present, not for {', '.join(names)}; expected no compute "
            "capabilities. Build ahead of time with TensorRT-RTX (flavour=rtx)."
        )
    known = [name for name in dir(trt.ComputeCapability) if re.fullmatch(r"SM\d+|CURRENT", name)]
    strange = [name for name in names if name not in known]
    if strange:
        raise BackendError(f"{found.title} has no compute capability {', '.join(strange)}; it has {', '.join(known)}.")
    config.num_compute_capabilities = len(names)
    for index, name in enumerate(names):
        if not config.set_compute_capability(getattr(trt.ComputeCapability, name), index):
            raise BackendError(
                f"{found.title} does not build for {name} together with {', '.join(names)}; build it alone."
            )


def _set_profile(builder: Any, network: Any, config: Any, model: str, options: LoadOptions) -> None:
    """One optimisation profile for the shapes that will be fed: minimum, optimum and maximum alike.

    Without a sample shape a free first axis takes 1 to FREE_ROWS rows, compiled best for `options.batch`.
    """
    profile, dynamic = builder.create_optimization_profile(), False
    for tensor in (network.get_input(index) for index in range(network.num_inputs)):
        declared = tuple(int(size) for size in tensor.shape)
        shape = fixed_shape(model, tensor.name, declared, options)
        if tensor.is_shape_tensor:
            raise BackendError(f"trt: input '{tensor.name}' of '{model}' is a shape; make it a constant in the model.")
        if -1 in declared:
            least, most = shape, shape
            if tensor.name not in options.sample_shapes:
                least, most = (1, *shape[1:]), (max(FREE_ROWS, options.batch), *shape[1:])
            profile.set_shape(tensor.name, least, shape, most)
            dynamic = True
    if dynamic and config.add_optimization_profile(profile) < 0:
        raise BackendError(f"trt: '{model}' does not take the shapes {dict(options.sample_shapes)}; check them.")


def fixed_shape(model: str, name: str, declared: tuple[int, ...], options: LoadOptions) -> tuple[int, ...]:
    """The shape that input `name` will have: the sample's, else the declared one with the batch put on a free first axis."""
    shape = options.sample_shapes.get(name)
    if shape is None:
        shape = (options.batch, *declared[1:]) if declared[:1] == (-1,) else declared
        if -1 in shape:
            raise BackendError(
                f"trt: input '{name}' of '{model}' has free sizes {format_shape([None if s == -1 else s for s in declared])}; "
                "expected a sample shape for it, because engines are compiled for a shape."
            )
    if len(shape) != len(declared) or any(want not in (-1, got) for got, want in zip(shape, declared, strict=True)):
        raise BackendError(
            f"trt: input '{name}' of '{model}' will be fed {format_shape(shape)}, the model expects "
            f"{format_shape([None if s == -1 else s for s in declared])}; export it with a free batch axis or change the batch."
        )
    return tuple(shape)
