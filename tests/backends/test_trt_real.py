"""NVIDIA's own software: TensorRT-RTX's parser and builder, which need no GPU, and the names in five real bindings.

What is missing is fetched only when these tests are asked for by name (`-m tensorrt`), else they are skipped with the reason.
Nothing here runs an engine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent))
import trt_fake
import trt_stubs

onnx = pytest.importorskip("onnx")
from onnx import TensorProto as T  # noqa: E402
from onnx import helper  # noqa: E402

pytestmark = pytest.mark.tensorrt

GENERATIONS = ("SM80", "SM89", "SM120")  # Ampere, Ada, Blackwell
_CALLS = r"""
import json, sys
from pathlib import Path
from backends.base import BackendError, LoadOptions
answers = []
for call in json.load(sys.stdin):
    model = Path(call.pop("model"))
    try:
        if call.pop("load", False):
            from backends.trt import TrtBackend
            TrtBackend().load(model, LoadOptions())
            answers.append({})
        elif call.pop("deserialize", False):
            sys.path.append(call.pop("fakes"))
            from trt_fake import FakeDevice
            from backends.trt import TrtBackend
            TrtBackend(open_device=lambda ordinal: FakeDevice([])).load(model, LoadOptions())
            answers.append({})
        else:
            from backends.trt_build import build_engine
            shapes = {name: tuple(shape) for name, shape in call.pop("shapes", {}).items()}
            answers.append({"size": len(build_engine(model, shapes=shapes, **call))})
    except BackendError as error:
        nodes = [[n.index, n.name, n.op, n.code, n.reason] for n in getattr(error, "nodes", ())]
        answers.append({"error": type(error).__name__, "text": str(error), "nodes": nodes})
print(json.dumps(answers))
"""


def fetch(request) -> bool:
    asked = request.config.getoption("-m") or ""
    return "tensorrt" in asked and "not tensorrt" not in asked


@pytest.fixture(scope="module")
def rtx(request):
    """Makes calls on the real TensorRT-RTX in one fresh process per test: a crash there is a failed test here."""
    try:
        folder = trt_stubs.rtx(fetch=fetch(request))
    except trt_stubs.NotPrepared as error:
        pytest.skip(str(error))
    environ = os.environ | {"EDGEPROF_TENSORRT_PATH": str(folder), "PYTHONPATH": str(trt_stubs.ROOT)}

    def ask(*calls):
        command = [sys.executable, "-W", "error::DeprecationWarning", "-c", _CALLS]
        done = subprocess.run(
            command, input=json.dumps(calls), env=environ, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"ended with {done.returncode}: {done.stderr[-3000:]}"
        return json.loads(done.stdout)

    return ask


def save(folder: Path, nodes, inputs, outputs, opset: int = 17) -> str:
    infos = [[helper.make_tensor_value_info(*entry) for entry in side] for side in (inputs, outputs)]
    graph = helper.make_graph(nodes, "g", *infos)
    path = folder / "model.onnx"
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9).SerializeToString()
    )
    return str(path)


def test_every_example_builds_for_three_gpu_generations_without_a_gpu(rtx, example):
    """A product chain, conv and batch norm, QDQ int8, two inputs, a state, a branch: each gives an engine per generation."""
    shapes = {name: array.shape for name, array in example.feed(4, 1).items()}
    calls = [{"model": str(example.path), "shapes": shapes, "compute_capabilities": [name]} for name in GENERATIONS]
    answers = rtx(*calls, {"model": str(example.path), "shapes": shapes, "compute_capabilities": list(GENERATIONS)})
    assert [answer for answer in answers if "error" in answer] == []
    assert min(answer["size"] for answer in answers) > 1000


def test_example_builds_without_sample_shapes_for_a_range_of_rows(rtx, examples):
    """Free rows give an engine too."""
    assert list(rtx({"model": str(examples["conv"].path)})[0]) == ["size"]


def test_float16_model_builds_with_its_own_types(rtx, tmp_path):
    """Precision comes from the model: a half-precision product, strongly typed."""
    weights = helper.make_node("Constant", [], ["w"], value=onnx.numpy_helper.from_array(np.ones((16, 8), np.float16)))
    product = helper.make_node("MatMul", ["x", "w"], ["y"])
    path = save(tmp_path, [weights, product], [("x", T.FLOAT16, ["N", 16])], [("y", T.FLOAT16, ["N", 8])])
    assert list(rtx({"model": path, "shapes": {"x": [2, 16]}, "compute_capabilities": ["SM86"]})[0]) == ["size"]


@pytest.mark.parametrize("text", ["fp8", "fp8{bias_correction=true}+fp16"])
def test_float8_builds_from_ada_on_and_is_refused_before(rtx, tmp_path, text):
    """The real compiler takes our float8 pairs for what they are: hardware without the type is refused for them."""
    from profiler import demo
    from profiler.onnx_io import model_inputs, read_model, write_model
    from profiler.variants import registry

    model, rows = read_model(demo.model_path()), demo.calibration()
    made = registry.make(text).apply(model, {info.name: rows[info.name][:32] for info in model_inputs(model)})
    path = str(write_model(made.model, tmp_path))
    ada, blackwell, ampere = rtx(
        *({"model": path, "compute_capabilities": [name]} for name in ("SM89", "SM120", "SM80"))
    )
    assert "size" in ada, ada
    assert "size" in blackwell, blackwell
    assert "fp8_e4m3" in ampere["text"]


def test_sparse_weights_may_be_allowed(rtx, tmp_path):
    """The flag is taken. That TensorRT-RTX 1.7 chooses a sparse kernel was not seen: its engine has the same size."""
    weights = helper.make_node("Constant", [], ["w"], value=onnx.numpy_helper.from_array(np.eye(64, dtype=np.float16)))
    product = helper.make_node("MatMul", ["x", "w"], ["y"])
    path = save(tmp_path, [weights, product], [("x", T.FLOAT16, ["N", 64])], [("y", T.FLOAT16, ["N", 64])])
    call = {"model": path, "shapes": {"x": [64, 64]}, "compute_capabilities": ["SM86"]}
    assert list(rtx({**call, "options": {"sparse": "true"}})[0]) == ["size"]


def test_refused_ops_come_with_node_name_op_and_code(rtx, tmp_path):
    """All of them at once, in the model's order, in the parser's own words."""
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="fine"),
        helper.make_node("Det", ["a"], ["b"], name="the_det"),
        helper.make_node("Unique", ["b"], ["y"], name="the_unique"),
    ]
    (answer,) = rtx({"model": save(tmp_path, nodes, [("x", T.FLOAT, [2, 4, 4])], [("y", T.FLOAT, [None])])})
    assert answer["error"] == "ModelRefused"
    assert [node[:4] for node in answer["nodes"]] == [
        [1, "the_det", "Det", "UNSUPPORTED_NODE"],
        [2, "the_unique", "Unique", "UNSUPPORTED_NODE"],
    ]
    assert "node 1 'the_det' (Det): UNSUPPORTED_NODE, refused by checkDet" in answer["text"]


def test_unknown_op_says_that_no_plugin_has_it(rtx, tmp_path):
    """A custom op of another runtime."""
    node = helper.make_node("MyOp", ["x"], ["y"], name="mine", domain="example")
    (answer,) = rtx({"model": save(tmp_path, [node], [("x", T.FLOAT, [2])], [("y", T.FLOAT, [2])])})
    assert answer["nodes"][0][:4] == [0, "mine", "MyOp", "INVALID_NODE"]
    assert "plugin" in answer["nodes"][0][4].lower()


def test_generation_that_lacks_a_kernel_is_an_error_with_the_compiler_s_words(rtx, examples):
    """Turing has no float32 matrix product there: the builder gives None and logs why."""
    path = str(examples["mlp"].path)
    (answer,) = rtx({"model": path, "shapes": {"x": [4, 8]}, "compute_capabilities": ["SM75"]})
    assert answer["error"] == "BackendError"
    assert "Turing (SM75)" in answer["text"]


def test_precision_flag_and_unknown_generation_are_refused(rtx, examples):
    """The real binding lacks both."""
    path = str(examples["mlp"].path)
    flag, generation = rtx(
        {"model": path, "options": {"precision": "fp16"}}, {"model": path, "compute_capabilities": ["SM90"]}
    )
    assert "takes precision from the model's own types" in flag["text"]
    assert "no compute capability SM90; it has CURRENT, SM120" in generation["text"]


def test_a_file_that_is_no_model_is_refused(rtx, no_model):
    """Before the parser sees it."""
    assert "could not load 'model.onnx'" in rtx({"model": str(no_model)})[0]["text"]


def test_loading_without_a_gpu_is_unavailable_and_never_a_crash(rtx, examples):
    """The driver is asked before TensorRT's runtime is."""
    from backends.trt_cuda import probe

    if probe().count:
        pytest.skip("this machine has an NVIDIA GPU")
    (answer,) = rtx({"model": str(examples["mlp"].path), "load": True})
    assert answer["error"] == "BackendUnavailable"
    assert "no NVIDIA driver" in answer["text"] or "no usable GPU" in answer["text"]


def test_deserialising_without_a_gpu_is_an_error_with_the_cuda_reason(rtx, examples):
    """Even past the probe, the real runtime's None becomes an error that quotes its log."""
    from backends.trt_cuda import probe

    if probe().count:
        pytest.skip("this machine has an NVIDIA GPU")
    call = {"model": str(examples["mlp"].path), "deserialize": True, "fakes": str(Path(__file__).parent)}
    (answer,) = rtx(call)
    assert answer["error"] == "BackendError"
    assert "cannot use its engine of 'model.onnx'" in answer["text"]
    assert "CUDA driver version is insufficient" in answer["text"] or "cudaError" in answer["text"]


def demo_models() -> list[Path]:
    return sorted((trt_stubs.ROOT / "profiler" / "demo").glob("*.onnx"))


@pytest.mark.parametrize("path", demo_models(), ids=lambda path: path.stem)
def test_demo_model_builds(rtx, path):
    """What people try first."""
    (answer,) = rtx({"model": str(path), "compute_capabilities": list(GENERATIONS)})
    assert "text" not in answer, answer["text"]


@pytest.mark.parametrize("version", [*trt_stubs.BINDINGS, "rtx"])
def test_names_the_adapter_uses_are_in_nvidia_s_binding(request, version):
    """The fake of each version has what the real binding has, and lacks what it lacks. Names only, not behaviour."""
    flavour, number = ("rtx", trt_stubs.RTX) if version == "rtx" else ("trt", version)
    every, used = trt_fake.everything(), trt_fake.contract(trt_fake.fake_trt(flavour, number))
    try:
        if flavour == "rtx":
            folder = trt_stubs.rtx(fetch=fetch(request))
            said, there = trt_stubs.names_in_binding(folder, "tensorrt_rtx_bindings", every)
        else:
            folder, stubs = trt_stubs.bindings(version, fetch=fetch(request)), trt_stubs.stub_libraries()
            said, there = trt_stubs.names_in_binding(folder, "tensorrt_bindings", every, stubs)
    except trt_stubs.NotPrepared as error:
        pytest.skip(str(error))
    assert number == said
    assert used == there
