"""ONNX Runtime: the provider that was asked for or an error, realised precision from its own profile, its words in ours."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from backends import ort, ort_facts
from backends.base import BackendError, BackendUnavailable, LoadOptions, ProviderMismatch
from backends.ort import OrtBackend

BACKEND = OrtBackend()


def node(op: str, inputs: list[dict], outputs: list[dict], provider: str = "CPUExecutionProvider") -> dict:
    args = {"op_name": op, "provider": provider, "input_type_shape": inputs, "output_type_shape": outputs}
    return {"cat": "Node", "name": f"{op}_0_kernel_time", "args": args}


F32, F16, U8, I64 = {"float": [2, 8]}, {"float16": [2, 8]}, {"uint8": [2, 8]}, {"int64": [2]}


@pytest.mark.parametrize(
    ("op", "inputs", "outputs", "precision"),
    [
        ("MatMul", [F32], [F32], "f32"),
        ("FusedMatMul", [F16], [F16], "f16"),
        ("QLinearConv", [U8, {"float": []}], [U8], "i8"),
        ("MatMulIntegerToFloat", [U8], [F32], "i8"),
        ("DynamicQuantizeMatMul", [F32], [F32], "i8"),
        ("MaxPool", [U8], [U8], "i8"),
        ("QuantizeLinear", [F32], [U8], "conversion"),
        ("Cast", [F16], [F32], "conversion"),
        ("Gather", [F32, I64], [F32], "f32"),
        ("Shape", [], [I64], "other"),
        ("MatMulNBits", [{"float": [2, 64]}, {"uint8": [8, 2, 16]}, {"float": [16]}], [F32], "int4-weight"),
        ("MatMulNBits", [{"float": [2, 64]}, {"uint8": [8, 2, 32]}, {"float": [16]}], [F32], "int8-weight"),
        ("MatMulNBits", [F32, {"float": [4]}], [F32], "int4-weight"),
    ],
)
def test_ops_count_by_the_precision_they_run_in(op, inputs, outputs, precision):
    """Name and tensor types of an executed op tell its precision."""
    assert {precision: 1} == ort_facts.executed([node(op, inputs, outputs)]).precision


def test_ops_count_by_provider_and_only_kernels_count():
    """Session events, fences and control flow are no ops; each op belongs to the provider that ran it."""
    events = [
        {"cat": "Session", "name": "model_run", "args": {}},
        {"cat": "Node", "name": "MatMul_0_fence_before", "args": {"op_name": "MatMul"}},
        node("If", [F32], [F32]),
        node("MatMul", [F32], [F32], "CUDAExecutionProvider"),
        node("Relu", [F32], [F32], "CUDAExecutionProvider"),
        node("NonZero", [F32], [I64]),
    ]

    assert ort_facts.executed(events).providers == {"CPUExecutionProvider": 1, "CUDAExecutionProvider": 2}


class FallenBack:
    """A session as onnxruntime makes it when the CUDA provider's libraries do not load."""

    def get_providers(self):
        return ["CPUExecutionProvider"]


def pretend(monkeypatch, session: object) -> list[tuple]:
    """Put a module in onnxruntime's place that offers CUDA and makes `session`."""
    made: list[tuple] = []

    def make(path, settings, providers):
        made.append((path, settings, providers))
        return session

    fake = SimpleNamespace(
        __version__="0.test",
        set_default_logger_severity=lambda severity: None,
        get_available_providers=lambda: ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"],
        SessionOptions=lambda: SimpleNamespace(add_session_config_entry=lambda key, value: None),
        ExecutionMode=SimpleNamespace(ORT_SEQUENTIAL=0),
        GraphOptimizationLevel=SimpleNamespace(ORT_ENABLE_ALL=99),
        InferenceSession=make,
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    return made


@pytest.mark.parametrize("device", ["cuda", "cuda.1", "tensorrt"])
def test_silent_fallback_to_the_cpu_is_a_mismatch(monkeypatch, mlp_file, device):
    """Asked for a GPU and given a CPU session without an exception: an error at the seam, not a footnote."""
    pretend(monkeypatch, FallenBack())

    with pytest.raises(ProviderMismatch, match=r"would run 'model\.onnx' on CPUExecutionProvider"):
        BACKEND.load(mlp_file, LoadOptions(device=device))


def test_the_device_index_reaches_the_provider_and_tf32_is_off(monkeypatch, mlp_file):
    """`cuda.1` is the second GPU; float32 stays float32 unless `tf32=true` is asked for."""
    made = pretend(monkeypatch, FallenBack())
    with pytest.raises(ProviderMismatch):
        BACKEND.load(mlp_file, LoadOptions(device="cuda.1"))

    assert made[0][2] == [("CUDAExecutionProvider", {"device_id": "1", "use_tf32": "0"}), "CPUExecutionProvider"]


@pytest.mark.runtime
def test_fallback_while_running_is_switched_off(monkeypatch, mlp_file):
    """onnxruntime's second fallback, after a failed run, is disabled on each session."""
    import onnxruntime

    disabled = []
    real = onnxruntime.InferenceSession.disable_fallback
    monkeypatch.setattr(
        onnxruntime.InferenceSession, "disable_fallback", lambda self: (disabled.append(self), real(self))[1]
    )
    BACKEND.load(mlp_file, LoadOptions())

    assert len(disabled) == 1


@pytest.mark.runtime
def test_cuda_from_a_cpu_build_is_unavailable(mlp_file):
    """A build without the CUDA provider says which providers it has and what to install."""
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has the CUDA provider")

    assert not BACKEND.availability("cuda").available
    with pytest.raises(BackendUnavailable, match=r"needs CUDAExecutionProvider.*pip install onnxruntime-gpu"):
        BACKEND.load(mlp_file, LoadOptions(device="cuda"))


@pytest.mark.runtime
def test_cuda_provider_runs_or_is_a_mismatch(mlp_file):
    """With a CUDA build, `ort:cuda` either runs on CUDA or fails; a CPU session never comes back."""
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has no CUDA provider")
    try:
        provider = BACKEND.load(mlp_file, LoadOptions(device="cuda")).facts.provider
    except BackendError as error:
        provider = f"refused: {error}"

    assert re.match(r"CUDAExecutionProvider$|refused: .*CUDA", provider)


def test_missing_package_is_told_with_the_install_command(monkeypatch):
    """Without onnxruntime the reason is its absence, and the command is given."""
    monkeypatch.setattr(ort.util, "find_spec", lambda name: None)
    availability = BACKEND.availability()

    assert (
        availability.available,
        availability.reason,
        availability.install,
    ) == (False, "onnxruntime is not installed", "pip install onnxruntime")


def test_provider_is_recognised_by_its_library(monkeypatch, tmp_path):
    """A build has a GPU provider when the provider's library is in it."""
    (tmp_path / "capi").mkdir()
    (tmp_path / "capi" / "libonnxruntime_providers_cuda.so").touch()
    monkeypatch.setattr(ort.util, "find_spec", lambda name: SimpleNamespace(origin=str(tmp_path / "__init__.py")))

    assert [BACKEND.availability(device).available for device in ("cuda", "tensorrt")] == [True, False]


@pytest.mark.runtime
def test_external_data_that_is_missing_is_refused(tmp_path):
    """A model without its weights file is a BackendError in onnxruntime's words."""
    weights = numpy_helper.from_array(np.zeros((64, 64), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 64])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="model.data", size_threshold=0)
    (tmp_path / "model.data").unlink()

    with pytest.raises(BackendError, match=r"model\.data"):
        BACKEND.load(path, LoadOptions())


@pytest.mark.runtime
def test_unknown_op_is_refused_by_name(tmp_path):
    """An op that onnxruntime lacks is named in the error."""
    graph = helper.make_graph(
        [helper.make_node("Abracadabra", ["x"], ["y"], domain="nowhere")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("nowhere", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "model.onnx")

    with pytest.raises(BackendError, match="Abracadabra"):
        BACKEND.load(tmp_path / "model.onnx", LoadOptions())


@pytest.mark.runtime
def test_a_wrong_input_is_an_error_in_the_runtime_s_words(mlp_file):
    """A failing run is a BackendError, not a native exception class."""
    session = BACKEND.load(mlp_file, LoadOptions())

    with pytest.raises(BackendError, match=r"could not run 'model\.onnx'.*invalid dimensions"):
        session.infer({"x": np.zeros((2, 3), np.float32)})


@pytest.mark.runtime
def test_graph_optimisation_is_an_option(examples):
    """`opt=off` runs the graph as written: more ops than `opt=all`, and batch normalisation on its own."""
    counts = {}
    for opt in ("all", "off"):
        facts = BACKEND.load(examples["conv"].path, LoadOptions(options={"opt": opt})).facts
        counts[opt] = sum(facts.precision.values())
        assert opt == facts.details["opt"]

    assert counts["off"] == 6
    assert counts["all"] != counts["off"]


@pytest.mark.runtime
def test_only_the_branch_that_ran_counts(examples):
    """Of an If only the executed branch is in the facts: ReduceSum, Greater and, on zeros, Neg."""
    facts = BACKEND.load(examples["branching"].path, LoadOptions(options={"opt": "off"})).facts

    assert facts.precision == {"f32": 3}


@pytest.mark.runtime
def test_options_with_other_values_are_refused(mlp_file):
    """An option's value is one of the known ones."""
    with pytest.raises(BackendError, match="got opt=max, expected one of: all, extended, basic, off"):
        BACKEND.load(mlp_file, LoadOptions(options={"opt": "max"}))


@pytest.mark.runtime
def test_large_models_are_not_loaded_twice(monkeypatch, examples):
    """Above the limit the precision is None with the reason; a device could not hold two of them."""
    monkeypatch.setattr(ort, "INSPECTION_LIMIT_BYTES", 100)
    facts = BACKEND.load(examples["mlp"].path, LoadOptions()).facts

    assert facts.precision is None
    assert "limit 100" in str(facts.precision_reason)


@pytest.mark.runtime
def test_nothing_is_left_behind(examples, tmp_path, monkeypatch):
    """The profile that the facts were read from is deleted."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.chdir(tmp_path)
    BACKEND.load(examples["mlp"].path, LoadOptions()).facts  # noqa: B018 (the property works when read)

    assert list(Path(tmp_path).iterdir()) == []
