"""Times per op: each adapter's own way to ask its runtime, and what is said where there is nothing to ask."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from backends import base, registry
from backends.base import BackendError, LoadOptions, NoOpTimes, OpTime, op_times
from backends.fake import FakeBackend
from backends.ort_facts import timed
from backends.trt import TrtBackend
from backends.trt_cuda import Gpus
from backends.trt_find import Found

sys.path.append(str(Path(__file__).parent))
from trt_fake import FakeDevice, fake_trt

FLOAT, UINT8 = {"float": [1, 4]}, {"uint8": [1, 4]}


def node(name, op, dur, inputs=(FLOAT,), outputs=(FLOAT,)):
    args = {
        "op_name": op,
        "provider": "CPUExecutionProvider",
        "input_type_shape": inputs,
        "output_type_shape": outputs,
    }
    return {"cat": "Node", "name": f"{name}_kernel_time", "dur": dur, "args": args}


RUN_ENDS = {"cat": "Session", "name": "model_run", "dur": 100, "args": {}}


def profile(*runs):
    return [event for run in runs for event in (*run, RUN_ENDS)]


def test_a_profile_gives_each_op_its_middle_mean_without_the_warm_up():
    """Whole microseconds of 4, 5, 5, 90 are 5.0 in the middle; the slow first run does not count."""
    runs = [[node("a", "Conv", dur)] for dur in (900, 4, 5, 5, 90)]
    (op,) = timed(profile(*runs), warm=1)
    assert (op.name, op.op_type, op.precision, op.calls) == ("a", "Conv", "f32", 1.0)
    assert op.duration_s == pytest.approx(5e-6)


def test_ops_in_a_loop_or_in_a_branch_count_by_inference():
    """Twice in one inference adds up; once in two inferences halves."""
    runs = [
        [node("body", "Gemm", 3), node("body", "Gemm", 3), node("branch", "Add", 8), node("loop", "Loop", 50)],
        [node("body", "Gemm", 3), node("body", "Gemm", 3), node("loop", "Loop", 50)],
    ]
    found = {op.name: op for op in timed(profile(*runs), warm=0)}
    assert "loop" not in found
    assert (found["body"].calls, found["body"].duration_s) == (2.0, pytest.approx(6e-6))
    assert (found["branch"].calls, found["branch"].duration_s) == (0.5, pytest.approx(4e-6))


def test_realised_precision_stands_beside_each_op():
    """As in the session's facts: by op and by result type."""
    events = profile([node("q", "QuantizeLinear", 1), node("c", "QLinearConv", 1, (UINT8,), (UINT8,))])
    assert [op.precision for op in timed(events, warm=0)] == ["conversion", "i8"]


def test_middle_mean_ignores_a_quarter_on_either_side():
    """An interruption must not look like a slow op."""
    assert base.middle_mean([1.0, 2.0, 3.0, 1000.0]) == 2.5
    assert base.middle_mean([7.0]) == 7.0


def test_the_fake_tells_the_ops_of_its_option(tmp_path):
    """Name, type, precision, microseconds."""
    path = tmp_path / "m.bin"
    path.write_bytes(b"any")
    session = FakeBackend().load(path, LoadOptions(options={"ops": "c1:Conv:f32:30|out:Cast:conversion:5"}))
    feeds = {"x": np.zeros((1, 4), np.float32)}
    assert op_times(session, feeds, 3) == (
        OpTime("c1", "Conv", "f32", "cpu", 30e-6, 1.0),
        OpTime("out", "Cast", "conversion", "cpu", 5e-6, 1.0),
    )
    with pytest.raises(BackendError, match="at least 1"):
        op_times(session, feeds, 0)


def test_without_ops_the_fake_gives_a_reason(tmp_path):
    """None measured is said, not an empty list."""
    path = tmp_path / "m.bin"
    path.write_bytes(b"any")
    found = op_times(FakeBackend().load(path, LoadOptions()), {"x": np.zeros((1, 4), np.float32)}, 1)
    assert isinstance(found, NoOpTimes)
    assert "ops=" in found.reason


def test_an_adapter_without_a_profiler_gives_a_reason(tmp_path):
    """Other people's adapters need not follow."""
    path = tmp_path / "m.bin"
    path.write_bytes(b"any")
    session = registry.get("injected").load(path, LoadOptions(device="fake"))
    found = op_times(session, {"x": np.zeros((1, 4), np.float32)}, 1)
    assert isinstance(found, NoOpTimes)
    assert "fake" in found.reason


@pytest.mark.runtime
@pytest.mark.parametrize("name", ["ort", "ov"])
def test_a_runtime_tells_the_ops_that_it_ran(name, small_model):
    """Both matrix products are there, with times that a clock can have measured, and the session goes on as before."""
    options = LoadOptions(sample_shapes={"x": (2, 4)}, batch=2)
    session = registry.get(name).load(small_model, options)
    feeds = {"x": np.ones((2, 4), np.float32)}
    before = {key: value.copy() for key, value in session.infer(feeds).items()}
    found = op_times(session, feeds, 8)
    assert not isinstance(found, NoOpTimes)
    # OpenVINO compiles the whole of it into one kernel, and says of what; onnxruntime keeps the two products apart.
    whole = [op for op in found if {"a", "y"} <= set(op.origins)]
    assert len(whole or [op for op in found if "MatMul" in op.op_type or "Gemm" in op.op_type]) == (1 if whole else 2)
    assert all(op.precision == "f32" and op.calls > 0 and 0 <= op.duration_s < 1 for op in found)
    np.testing.assert_array_equal(before["y"], session.infer(feeds)["y"])
    session.close()
    with pytest.raises(BackendError, match="closed"):
        op_times(session, feeds, 1)


@pytest.mark.runtime
def test_openvino_names_kernels_and_what_was_fused(small_model):
    """The kernel's name tells the instruction set, the origins lead back to the model."""
    pytest.importorskip("openvino")
    session = registry.get("ov").load(small_model, LoadOptions(sample_shapes={"x": (1, 4)}))
    found = op_times(session, {"x": np.ones((1, 4), np.float32)}, 4)
    assert not isinstance(found, NoOpTimes)
    assert all(op.kernel for op in found)
    assert any(op.origins for op in found)


def test_tensorrt_reports_layers_and_gets_a_fresh_context(tmp_path):
    """The context that was profiled is synchronous for ever, so the next inference must not use it."""
    onnx = pytest.importorskip("onnx")
    infos = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 8]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", infos[:1], infos[1:])
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx.helper.make_model(graph).SerializeToString())
    trt = fake_trt()
    trt.behave["layer_times"] = [("conv", 0.5), ("copy", 0.25), ("conv", 0.5)]
    backend = TrtBackend(
        lambda flavour: Found("tensorrt", "trt", "11.4.0", None), lambda found: trt, lambda: Gpus(1),
        lambda ordinal: FakeDevice(trt.journal, "NVIDIA Fake", (8, 6)),
    )  # fmt: skip
    session = backend.load(path, LoadOptions(sample_shapes={"x": (4, 8)}))
    feeds = {"x": np.arange(32, dtype=np.float32).reshape(4, 8)}
    found = {op.name: op for op in op_times(session, feeds, 4)}
    assert (found["conv"].duration_s, found["conv"].calls) == (pytest.approx(1e-3), 2.0)
    assert found["copy"].duration_s == pytest.approx(0.25e-3)
    copies = {op.op_type: op.duration_s for op in found.values() if op.precision == "copy"}
    assert copies == {"HostToDevice": pytest.approx(20e-6), "DeviceToHost": pytest.approx(10e-6)}
    assert session._context.profiler is None
    np.testing.assert_array_equal(feeds["x"] * 2, session.infer(feeds)["y"])
