"""The trt backend and its session, over a fake binding and a GPU made of host memory."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from backends.base import BackendError, BackendUnavailable, FeedError, LoadOptions, TensorInfo
from backends.trt import TrtBackend
from backends.trt_cuda import CudaError, Gpus
from backends.trt_find import Found

sys.path.append(str(Path(__file__).parent))
from trt_fake import FakeDevice, fake_trt

onnx = pytest.importorskip("onnx")
from onnx import TensorProto as T  # noqa: E402
from onnx import helper  # noqa: E402

ROWS = {"x": (4, 8)}
X = np.arange(32, dtype=np.float32).reshape(4, 8) - 16


class Rig:
    """A backend with its fakes at hand."""

    def __init__(self, flavour: str = "trt", version: str = "11.4.0", gpu=("NVIDIA Fake", (8, 6))) -> None:
        self.trt = fake_trt(flavour, version)
        self.devices: list[FakeDevice] = []
        self.gpu = gpu
        found = Found("tensorrt", flavour, version, None)

        def open_device(ordinal: int) -> FakeDevice:
            self.trt.journal.append(("open", ordinal))
            self.devices.append(FakeDevice(self.trt.journal, *self.gpu))
            return self.devices[-1]

        self.backend = TrtBackend(lambda flavour: found, lambda found: self.trt, lambda: Gpus(2), open_device)

    def load(self, path: Path, **options):
        return self.backend.load(path, LoadOptions(**{"sample_shapes": ROWS, **options}))

    @property
    def builds(self) -> int:
        return self.trt.journal.count("build")


@pytest.fixture
def double(tmp_path) -> Path:
    """The fake computes 2·x for each output; here one output like the input."""
    return save(tmp_path, [("x", T.FLOAT, ["N", 8])], [("y", T.FLOAT, ["N", 8])])


def save(folder: Path, inputs, outputs) -> Path:
    nodes = [helper.make_node("Identity", [inputs[0][0]], [name]) for name, _, _ in outputs]
    infos = [[helper.make_tensor_value_info(*entry) for entry in side] for side in (inputs, outputs)]
    path = folder / "model.onnx"
    path.write_bytes(helper.make_model(helper.make_graph(nodes, "g", *infos)).SerializeToString())
    return path


def test_inference_copies_in_runs_copies_out_and_waits_in_this_order(double):
    """`infer` returns when the outputs are on the host and the stream is idle."""
    rig = Rig()
    session = rig.load(double)
    rig.trt.journal.clear()
    answer = session.infer({"x": X})
    assert rig.trt.journal == ["to_device", "execute", "to_host", "synchronize"]
    np.testing.assert_array_equal(X * 2, answer["y"])


def test_every_address_and_shape_is_set_once_at_load(double):
    """Nothing but copies and the run is left for the timed call."""
    rig = Rig()
    rig.load(double)
    set_up = [entry for entry in rig.trt.journal if isinstance(entry, tuple) and entry[0].startswith("set_")]
    assert set_up[-3:] == [("set_input_shape", "x", (4, 8)), ("set_tensor_address", "x"), ("set_tensor_address", "y")]


def test_gpu_is_opened_before_the_runtime_is_touched(double):
    """Without a working GPU TensorRT's Runtime crashes the process, so the driver is asked first."""
    rig = Rig()
    rig.load(double, device="gpu.1")
    assert rig.trt.journal.index(("open", 1)) < rig.trt.journal.index("runtime")


def test_no_gpu_is_unavailable_and_imports_nothing(double):
    """The driver's refusal ends the load; TensorRT is not even imported."""

    def refuse(ordinal):
        raise BackendUnavailable("no NVIDIA driver")

    backend = TrtBackend(
        lambda flavour: Found("tensorrt", "trt", "11.4.0", None), lambda found: 1 / 0, open_device=refuse
    )
    with pytest.raises(BackendUnavailable, match="no NVIDIA driver"):
        backend.load(double, LoadOptions())


def test_inputs_and_outputs_have_the_shapes_compiled_for(double):
    """The symbolic batch became the rows that are fed."""
    session = Rig().load(double)
    assert [TensorInfo("x", "float32", (4, 8))] == list(session.inputs)
    assert [TensorInfo("y", "float32", (4, 8))] == list(session.outputs)


def test_other_shape_than_compiled_is_refused_not_broadcast(double):
    """numpy would spread one row over the batch in silence."""
    session = Rig().load(double)
    with pytest.raises(FeedError, match=r"got shape \(1, 8\), this engine was compiled for \[4, 8\]"):
        session.infer({"x": X[:1]})


def test_other_dtype_is_refused_not_cast(double):
    """A float64 feed is a mistake in the caller."""
    with pytest.raises(TypeError, match="Cannot cast"):
        Rig().load(double).infer({"x": X.astype(np.float64)})


def test_non_contiguous_feed_is_read_as_what_it_shows(double):
    """A strided view gives its own values."""
    wide = np.repeat(X, 2, axis=1)[:, ::2]
    np.testing.assert_array_equal(X * 2, Rig().load(double).infer({"x": wide})["y"])


def test_without_sample_shapes_other_rows_are_taken(double):
    """Then nothing was promised; buffers are made anew and the old ones freed."""
    rig = Rig()
    session = rig.load(double, sample_shapes={})
    np.testing.assert_array_equal(X[:1] * 2, session.infer({"x": X[:1]})["y"])
    live = len(rig.devices[0].live)
    np.testing.assert_array_equal(X * 2, session.infer({"x": X})["y"])
    assert live == len(rig.devices[0].live)
    assert session.inputs[0].shape == (4, 8)


def test_rows_beyond_the_engine_s_range_close_the_session(double):
    """The engine refuses; what the context pointed to is gone, so the session can't go on."""
    rig = Rig()
    session = rig.load(double, sample_shapes={})
    with pytest.raises(BackendError, match=r"does not take \[400, 8\] as input 'x'"):
        session.infer({"x": np.ones((400, 8), np.float32)})
    with pytest.raises(BackendError, match="is closed"):
        session.infer({"x": X[:1]})
    assert rig.devices[0].live == {}


def test_integer_input_and_several_outputs(tmp_path):
    """Two outputs of different types from an int64 input."""
    path = save(tmp_path, [("x", T.INT64, ["N", 8])], [("a", T.FLOAT, ["N", 8]), ("b", T.INT64, ["N", 8])])
    answer = Rig().load(path).infer({"x": X.astype(np.int64)})
    assert [answer[name].dtype.name for name in ("a", "b")] == ["float32", "int64"]
    np.testing.assert_array_equal(X.astype(np.int64) * 2, answer["b"])


def test_output_whose_size_depends_on_the_data_follows_each_run(tmp_path):
    """TensorRT asks for memory and tells the shape; the answer has it, also when it grows, shrinks or is empty."""
    path = save(tmp_path, [("x", T.FLOAT, ["N", 8])], [("found", T.FLOAT, ["found"])])
    rig = Rig()
    session = rig.load(path)
    assert session.outputs[0].shape == (None,)
    for values in (X, X - 100, np.abs(X) + 1, X):
        np.testing.assert_array_equal(values[values > 0], session.infer({"x": values})["found"])
    session.close()
    assert rig.devices[0].live == {}


def test_full_gpu_during_a_run_is_an_error_not_a_crash(tmp_path):
    """An exception can't pass through TensorRT, so the allocator answers null and the run fails."""
    path = save(tmp_path, [("x", T.FLOAT, ["N", 8])], [("found", T.FLOAT, ["found"])])
    rig = Rig()
    session = rig.load(path)
    rig.devices[0].limit_bytes = 0
    with pytest.raises(BackendError, match=r"could not run 'model\.onnx'"):
        session.infer({"x": X})


def test_type_that_numpy_lacks_is_named(tmp_path):
    """bfloat16 at the border of the model."""
    path = save(tmp_path, [("x", T.FLOAT, ["N", 8])], [("y", T.BFLOAT16, ["N", 8])])
    with pytest.raises(BackendError, match=r"tensor 'y' of 'model\.onnx' has type BF16"):
        Rig().load(path)


@pytest.mark.parametrize(
    ("behave", "words"),
    [
        ({"deserialize": None, "deserialize_log": [("ERROR", "cudaError 35")]}, "cannot use its engine.*cudaError 35"),
        ({"context": None}, "has no room to run"),
        ({"set_input_shape": False}, "does not take"),
        ({"infer_shapes": ["x"]}, "shapes of x"),
        ({"host_tensors": ("x",)}, "is a shape"),
        ({"build": None, "build_log": [("ERROR", "no tactic")]}, "could not build.*no tactic"),
    ],
)
def test_every_none_and_false_is_an_error_and_frees_the_gpu(double, behave, words):
    """TensorRT answers None or False; each becomes an error with its words, and no memory or context is kept."""
    rig = Rig()
    rig.trt.behave |= behave
    with pytest.raises(BackendError, match=words):
        rig.load(double)
    assert (rig.devices[0].live, rig.devices[0].closed) == ({}, 1)


def test_false_from_the_run_quotes_the_log(double):
    """The reason is in TensorRT's log alone."""
    rig = Rig()
    session = rig.load(double)
    rig.trt.behave |= {"execute": False, "run_log": [("ERROR", "illegal memory access")]}
    with pytest.raises(BackendError, match=r"could not run 'model\.onnx': illegal memory access"):
        session.infer({"x": X})


def test_rtx_names_why_an_engine_does_not_fit(double):
    """The bit mask of diagnostics becomes names."""
    rig = Rig("rtx", "1.7.1")
    rig.trt.behave |= {"deserialize": None, "diagnostics": 2 | 4}
    with pytest.raises(BackendError, match="UNSUPPORTED_CC, OLD_CUDA_DRIVER"):
        rig.load(double)


def test_rtx_compiles_its_kernels_before_the_first_inference(double):
    """In the background they would be swapped in amid a measurement."""
    rig = Rig("rtx", "1.7.1")
    rig.load(double)
    assert ("kernels", "EAGER") in rig.trt.journal
    assert ("set_compute_capability", "SM86", 0) in rig.trt.journal


def test_second_load_takes_the_engine_from_the_cache(double, tmp_path):
    """Same model, machine, shapes and options: one build, and the facts tell."""
    rig, cache = Rig(), tmp_path / "engines"
    first, second = rig.load(double, cache_dir=cache), rig.load(double, cache_dir=cache)
    assert rig.builds == 1
    assert [session.facts.details["engine"] for session in (first, second)] == ["built", "cache"]
    np.testing.assert_array_equal(X * 2, second.infer({"x": X})["y"])


@pytest.mark.parametrize(
    "change",
    [
        {"gpu": ("NVIDIA Other", (8, 6))},
        {"gpu": ("NVIDIA Fake", (8, 9))},
        {"version": "11.0.0"},
        {"flavour": "rtx", "version": "11.4.0"},
    ],
    ids=["name", "capability", "version", "flavour"],
)
def test_other_machine_or_runtime_builds_its_own_engine(double, tmp_path, change):
    """An engine is for one GPU and one runtime version."""
    cache = tmp_path / "engines"
    Rig().load(double, cache_dir=cache)
    other = Rig(**change)
    other.load(double, cache_dir=cache)
    assert other.builds == 1


@pytest.mark.parametrize(
    "change",
    [{"sample_shapes": {"x": (2, 8)}}, {"options": {"tf32": "true"}}, {"batch": 2}],
    ids=["shape", "option", "batch"],
)
def test_other_shape_or_option_builds_its_own_engine(double, tmp_path, change):
    """What is compiled for is in the key."""
    rig, cache = Rig(), tmp_path / "engines"
    rig.load(double, cache_dir=cache)
    rig.load(double, cache_dir=cache, **change)
    assert rig.builds == 2


def test_builds_that_are_to_be_compared_know_nothing_of_each_other(double, tmp_path):
    """Each its own engine, made without the timings of another and leaving none; asked for again it is the same one."""
    rig, cache = Rig(), tmp_path / "engines"
    for number in ("1", "2", "1"):
        rig.load(double, cache_dir=cache, options={"build": number})
    assert rig.builds == 2
    assert list(cache.glob("*.timing")) == []
    rig.load(double, cache_dir=cache)
    assert len(list(cache.glob("*.timing"))) == 1
    with pytest.raises(BackendError, match="build"):
        rig.load(double, options={"build": "-1"})


def test_a_captured_graph_is_launched_from_the_second_inference_on(double):
    """One call instead of each kernel's; copies stay outside, so other feeds give other outputs."""
    rig = Rig()
    session = rig.load(double, options={"graph": "true"})
    for feed in (X, X + 1, X + 2):
        np.testing.assert_array_equal(feed * 2, session.infer({"x": feed})["y"])
    assert (rig.trt.journal.count("capture"), rig.trt.journal.count("launch")) == (1, 2)
    assert session.facts.details["cuda_graph"] == "true"
    device = rig.devices[0]
    session.close()
    assert (device.live, device.graphs) == ({}, {})


def test_a_graph_does_not_outlive_the_shapes_that_it_was_captured_with(double):
    """It holds the addresses of buffers that are free by then."""
    rig = Rig()
    session = rig.load(double, options={"graph": "true"}, sample_shapes={})
    for rows in (1, 1, 3, 3):
        feed = np.ones((rows, 8), np.float32)
        np.testing.assert_array_equal(feed * 2, session.infer({"x": feed})["y"])
    assert rig.trt.journal.count("capture") == 2
    assert len(rig.devices[0].graphs) == 1


def test_what_cannot_be_captured_says_what_to_leave_out(double):
    """A loop, or an output whose size depends on the data."""
    rig = Rig()
    session = rig.load(double, options={"graph": "true"})
    rig.devices[0].uncapturable = True
    with pytest.raises(BackendError, match=r"cannot capture 'model.onnx' as a CUDA graph: .* Leave graph=true out"):
        session.infer({"x": X})


def test_damaged_engine_is_built_again(double, tmp_path):
    """And the next load finds it whole."""
    rig, cache = Rig(), tmp_path / "engines"
    rig.load(double, cache_dir=cache)
    (engine,) = cache.glob("*.engine")
    engine.write_bytes(engine.read_bytes()[:-3])
    rig.load(double, cache_dir=cache)
    rig.load(double, cache_dir=cache)
    assert rig.builds == 2


def test_facts_tell_what_runs(double):
    """GPU, version, realised precision from the engine's own inspector, and what the build was allowed."""
    rig = Rig("trt", "10.13.2")
    rig.trt.behave["build_log"] = [("WARNING", "subnormal weights")]
    facts = rig.load(double, options={"precision": "fp16"}).facts
    assert (
        facts.runtime,
        facts.runtime_version,
        facts.provider,
        facts.threads,
    ) == ("TensorRT", "10.13.2", "NVIDIA Fake", None)
    assert facts.precision == {"conversion": 1, "i8": 1, "f16": 1, "f32": 1}
    assert facts.details["typing"] == "weak, fp16 allowed"
    assert facts.details["warnings"] == "subnormal weights"


def test_facts_without_inspector_data_give_a_reason(double):
    """None with a reason, never an invented precision."""
    rig = Rig()
    rig.trt.behave["layers"] = '{"Layers": ["a", "b"]}'
    facts = rig.load(double).facts
    assert (facts.precision, facts.precision_reason) == (None, "the inspector tells no layer types for this engine")


def test_close_frees_everything_and_twice_is_harmless(double):
    """All device memory, pinned memory, the stream and the context."""
    rig = Rig()
    session = rig.load(double)
    session.close()
    session.close()
    assert (rig.devices[0].live, rig.devices[0].closed) == ({}, 1)
    with pytest.raises(BackendError, match="closed"):
        session.infer({"x": X})
    with pytest.raises(BackendError, match="closed"):
        _ = session.facts


def test_close_after_a_gpu_fault_raises_nothing_new(double, monkeypatch):
    """After a fault every CUDA call fails; the fault itself was already raised."""
    rig = Rig()
    session = rig.load(double)

    def fail(*_):
        raise CudaError("CUDA: cuMemFree_v2 failed with error 700.")

    for name in ("free", "unpin", "destroy_stream", "close"):
        monkeypatch.setattr(rig.devices[0], name, fail)
    session.close()
    session.close()


@pytest.mark.parametrize(("device", "ordinal"), [(None, 0), ("gpu", 0), ("GPU.1", 1), ("cuda:1", 1), ("1", 1)])
def test_device_names_choose_the_gpu(double, device, ordinal):
    """`gpu` is the first; a number picks another."""
    rig = Rig()
    rig.load(double, device=device)
    assert ("open", ordinal) in rig.trt.journal


def test_unknown_device_and_missing_file_are_named(double, tmp_path):
    """Before anything is looked for."""
    with pytest.raises(BackendError, match="no device 'abacus'"):
        Rig().load(double, device="abacus")
    with pytest.raises(BackendError, match=r"absent\.onnx"):
        Rig().load(tmp_path / "absent.onnx")


def test_modules_name_the_binding_that_can_be_imported_first():
    """The worker times import and load apart; a binding outside sys.path it can't import."""
    inside, outside = (Found("tensorrt", "trt", "11.4.0", folder) for folder in (None, "/somewhere"))
    assert TrtBackend(lambda flavour: inside).modules == ("tensorrt",)
    assert TrtBackend(lambda flavour: outside).modules == ()


def test_availability_without_a_binding_gives_reason_and_install():
    """The plain case on most machines."""

    def missing(flavour):
        raise BackendUnavailable("no TensorRT binding: none is there")

    answer = TrtBackend(missing, probe=lambda: Gpus(1)).availability()
    assert (answer.available, answer.reason) == (False, "no TensorRT binding: none is there")
    assert "pip install tensorrt" in (answer.install or "")


@pytest.mark.parametrize(
    ("gpus", "device", "available", "words"),
    [
        (Gpus(1), None, True, None),
        (Gpus(0, "no NVIDIA driver"), None, False, "no NVIDIA driver"),
        (Gpus(1), "gpu.1", False, "GPU 1 is not here, 1 visible"),
    ],
)
def test_availability_with_a_binding_depends_on_the_gpu(gpus, device, available, words):
    """Installed is not enough; nothing is imported to tell."""
    found = Found("tensorrt", "trt", "11.4.0", None)
    answer = TrtBackend(lambda flavour: found, lambda found: 1 / 0, lambda: gpus).availability(device)
    assert (available, "11.4.0", words) == (answer.available, answer.version, answer.reason)
