"""Cases with one known cause each, made for real from the built-in model or a small generated one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from profiler import demo
from profiler.artifacts import ArtifactStore, merged
from profiler.explain.collect import compare
from profiler.explain.evidence import Evidence
from profiler.job import Job
from profiler.onnx_io import clone, model_inputs, read_model, walk_nodes
from profiler.prepare import Prepared
from profiler.progress import Silent
from profiler.records import REFERENCE_VARIANT, ArtifactRecord
from profiler.store import open_store
from profiler.study import Case, make_study
from profiler.variants import registry

Arrays = Mapping[str, NDArray[np.generic]]
Make = Callable[[ModelProto, Arrays], ModelProto]

CALIBRATION_ROWS = 64


@dataclass(frozen=True)
class Built:
    """A case and the cause that was put into it. `cause` None: a control, in which nothing was put."""

    name: str
    cause: str | None
    how: str
    variant: str
    """Text of a recipe, or a name for what `make` makes."""
    backend: str = "ort"
    threads: int = 1
    model: Callable[[], tuple[ModelProto, Arrays]] | None = None
    """None: the built-in one."""
    make: Make | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    counts_only: bool = True
    """Whether the cause shows in counts alone, so that its place in the ranking does not hang on timing."""
    measures_accuracy: bool = False


def built() -> tuple[Built, ...]:
    """The built set."""
    return (
        Built("dynamic int8 on convolutions", "dynamic-conv", "quantize_dynamic of Conv",
              "int8-dynamic{op_types=Conv|MatMul}"),
        Built("all-ops QDQ", "all-ops-qdq", "quantize_static of every op type in the model", "all-ops", make=_all_ops),
        Built("per-tensor collapse", "per-tensor-collapse",
              "channels of the first convolutions scaled apart by up to 1000 (the function is the same), one scale per tensor",
              "int8-static", model=_spread_demo, measures_accuracy=True),
        Built("ISA limited, OpenVINO", "isa-limited", "ONEDNN_MAX_CPU_ISA=AVX2", "int8-static{per_channel=true}", "ov",
              environment={"ONEDNN_MAX_CPU_ISA": "AVX2"}),
        Built("provider fallback", "provider-fallback", "ort:cuda on a machine without CUDA", "int8-static{per_channel=true}",
              "ort:cuda"),
        Built("tiny model", "tiny-model", "an MLP with 192 multiplications", "int8-static", model=_tiny),
        Built("nothing quantized", "nothing-quantized", "int8-static on a model without stored weights", "int8-static",
              model=_weightless),
        Built("Q/DQ unfused: no optimisation", "qdq-unfused", "graph optimisation below the level that fuses Q/DQ",
              "int8-static{per_channel=true}", "ort{opt=basic}"),
        Built("Q/DQ unfused: inputs only", "qdq-unfused",
              "Q/DQ at the inputs of convolutions only (as TensorRT's tools place them), SiLU behind them", "inputs-only",
              model=_silu_demo, make=_inputs_only),
        Built("thread contention", "thread-contention", "eight threads for each usable core, on large convolutions",
              "int8-static{per_channel=true}",
              threads=8 * _cores(),
              model=_wide, counts_only=False),
        Built("fp16 on a CPU", "precision-not-realised", "float16 weights where no kernel computes in float16", "fp16"),
        Built("control", None, "int8 with ops of weights only, one scale per channel", "int8-static{per_channel=true}"),
    )  # fmt: skip


def explain(case: Built, folder: Path, *, goes: int = 3) -> Evidence:
    """Make the case in `folder`, run both sides of it, and return the evidence."""
    model, rows = (case.model or _demo)()
    files = ArtifactStore(folder / "cache")
    names = [REFERENCE_VARIANT, case.variant]
    records: list[ArtifactRecord] = []
    for name in names:
        records.append(merged(_record(files, name, model, rows, case.make), records))
    backends = tuple(dict.fromkeys((case.backend, _reference_backend(case.backend))))
    source = files.path(records[0].sha256)
    study = make_study(model=str(source), backends=backends, variants=(), threads=(case.threads,), time_limit_s=120.0)
    prepared = Prepared(source, model_inputs(model), None, None, rows, ())
    store = open_store(folder)
    try:
        by_name = dict(zip(names, records, strict=True))
        job = Job("built", study, store, files, by_name, prepared, folder, Silent())
        mine = Case(case.variant, case.backend, "local", 1, case.threads)
        other = Case(REFERENCE_VARIANT, _reference_backend(case.backend), "local", 1, case.threads)
        change = _accuracy_change(job, mine, other) if case.measures_accuracy else None
        with _environment(case.environment):
            return compare(job, mine, other, goes=goes, accuracy_change=change)
    finally:
        store.close()


def _reference_backend(text: str) -> str:
    return text.partition(":")[0]


def _record(files: ArtifactStore, name: str, model: ModelProto, rows: Arrays, make: Make | None) -> ArtifactRecord:
    changed, notes = True, ()
    made = model
    if name != REFERENCE_VARIANT and make is not None:
        made = make(model, rows)
    elif name != REFERENCE_VARIANT:
        recipe = registry.make(name)
        result = recipe.apply(model, {key: array[:CALIBRATION_ROWS] for key, array in rows.items()})
        made, changed, notes = result.model, result.changed, result.notes
    sha = files.put(made)
    size = sum(path.stat().st_size for path in files.files(sha).values())
    return ArtifactRecord(name, sha, size, None, changed or name == REFERENCE_VARIANT, {}, notes)


@contextmanager
def _environment(more: Mapping[str, str]) -> Iterator[None]:
    """Workers inherit the environment of this process."""
    before = {name: os.environ.get(name) for name in more}
    os.environ.update(more)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _accuracy_change(job: Job, mine: Case, other: Case) -> float:
    """Share of 250 test images that the variant gets right, less the reference's."""
    data = demo.evaluation()
    images, labels = data["image"][::16], data["labels"][::16]
    right = []
    for case in (mine, other):
        with job.open(case) as worker:
            job.load(worker, case)
            answers = []
            for row in images:
                _, arrays = worker.request("infer", {"image": row[None]}, timeout_s=60.0)
                answers.append(int(np.argmax(next(iter(arrays.values())))))
        right.append(float(np.mean(np.array(answers) == labels)))
    return right[0] - right[1]


def _cores() -> int:
    from backends.cpu import usable_cores

    return usable_cores()


def _demo() -> tuple[ModelProto, Arrays]:
    return read_model(demo.model_path()), {"image": demo.calibration()["image"]}


def _spread_demo() -> tuple[ModelProto, Arrays]:
    """The built-in model with output channels of a convolution scaled apart and its readers scaled back: ReLU lets it through."""
    model, rows = _demo()
    model = clone(model)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    factors = np.random.default_rng(0)
    for node in model.graph.node:
        if node.op_type != "Conv":
            continue
        users = [other for other in model.graph.node if node.output[0] in other.input]
        relu = users[0] if len(users) == 1 and users[0].op_type == "Relu" else None
        after = [other for other in model.graph.node if relu is not None and relu.output[0] in other.input]
        if len(after) != 1 or after[0].op_type != "Conv":
            continue
        weight = numpy_helper.to_array(tensors[node.input[1]])
        scale = np.exp(factors.uniform(0, np.log(1000), weight.shape[0])).astype(np.float32)
        _replace(tensors[node.input[1]], weight * scale[:, None, None, None])
        _replace(tensors[node.input[2]], numpy_helper.to_array(tensors[node.input[2]]) * scale)
        next_weight = numpy_helper.to_array(tensors[after[0].input[1]])
        _replace(tensors[after[0].input[1]], next_weight / scale[None, :, None, None])
    return model, rows


def _silu_demo() -> tuple[ModelProto, Arrays]:
    """The built-in model with SiLU in the place of ReLU, as in EfficientNet and YOLO."""
    model, rows = _demo()
    model = clone(model)
    nodes = []
    for node in model.graph.node:
        if node.op_type != "Relu":
            nodes.append(node)
            continue
        gate = f"{node.name}_gate"
        nodes.append(helper.make_node("Sigmoid", [node.input[0]], [gate], name=gate))
        nodes.append(helper.make_node("Mul", [node.input[0], gate], [node.output[0]], name=node.name))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model, rows


def _replace(tensor: TensorProto, values: NDArray[np.floating]) -> None:
    tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))


def _tiny() -> tuple[ModelProto, Arrays]:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("Gemm", ["b", "w2", "b2"], ["y"], name="second"),
    ]
    shapes = {"w1": (4, 32), "b1": (32,), "w2": (32, 2), "b2": (2,)}
    constants = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return _model(nodes, ["N", 4], ["N", 2], constants), {"x": rng.standard_normal((256, 4)).astype(np.float32)}


def _wide() -> tuple[ModelProto, Arrays]:
    """Two convolutions of 29 million multiplications each, large enough to be shared between threads."""
    rng = np.random.default_rng(0)
    constants = {name: (rng.standard_normal((64, 64, 3, 3)) * 0.05).astype(np.float32) for name in ("w1", "w2")}
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("Conv", ["b", "w2"], ["y"], name="second", pads=[1, 1, 1, 1]),
    ]
    shape: list[str | int] = ["N", 64, 28, 28]
    return _model(nodes, shape, shape, constants), {"x": rng.standard_normal((64, 64, 28, 28)).astype(np.float32)}


def _weightless() -> tuple[ModelProto, Arrays]:
    """A smoothing filter: much work, and nothing stored to quantize."""
    nodes = [
        helper.make_node("AveragePool", ["x"], ["a"], name="smooth", kernel_shape=[5, 5], pads=[2, 2, 2, 2]),
        helper.make_node("Sub", ["x", "a"], ["b"], name="detail"),
        helper.make_node("Relu", ["b"], ["y"], name="positive"),
    ]
    rng = np.random.default_rng(0)
    return _model(nodes, ["N", 8, 64, 64], ["N", 8, 64, 64], {}), {
        "x": rng.standard_normal((16, 8, 64, 64)).astype(np.float32)
    }


def _model(
    nodes: list[onnx.NodeProto], inputs: list[str | int], outputs: list[str | int], constants: Arrays
) -> ModelProto:
    graph = helper.make_graph(
        nodes, "built",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, inputs)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, outputs)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made, full_check=True)
    return made


def _all_ops(model: ModelProto, rows: Arrays) -> ModelProto:
    """onnxruntime's quantizer with its own defaults, told to quantize every op type that the model has."""
    import tempfile

    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Rows(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
        def __init__(self) -> None:
            count = min(CALIBRATION_ROWS, len(next(iter(rows.values()))))
            self._left = iter([{name: array[row : row + 1] for name, array in rows.items()} for row in range(count)])

        def get_next(self) -> dict[str, NDArray[np.generic]] | None:
            return next(self._left, None)

    with tempfile.TemporaryDirectory(prefix="edgeprof-") as folder:
        source, target = Path(folder) / "in.onnx", Path(folder) / "out.onnx"
        onnx.save(model, str(source))
        quantize_static(
            str(source), str(target), Rows(), quant_format=QuantFormat.QDQ,
            op_types_to_quantize=sorted({node.op_type for node in walk_nodes(model)}),
        )  # fmt: skip
        return onnx.load(str(target))


def _inputs_only(model: ModelProto, rows: Arrays) -> ModelProto:
    """int8-static without the Q/DQ behind each convolution: what follows reads its float result."""
    rows = {name: array[:CALIBRATION_ROWS] for name, array in rows.items()}
    quantized = clone(registry.make("int8-static{per_channel=true}").apply(model, rows).model)
    convolved = {node.output[0] for node in quantized.graph.node if node.op_type == "Conv"}
    first = {
        n.output[0]: n.input[0]
        for n in quantized.graph.node
        if n.op_type == "QuantizeLinear" and n.input[0] in convolved
    }
    second = {
        n.output[0]: n.input[0] for n in quantized.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in first
    }
    kept = [node for node in quantized.graph.node if node.output[0] not in {*first, *second}]
    for node in kept:
        for place, name in enumerate(node.input):
            if name in second:
                node.input[place] = first[second[name]]
    del quantized.graph.node[:]
    quantized.graph.node.extend(kept)
    return quantized
