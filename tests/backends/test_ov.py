"""OpenVINO: fp32 unless asked, shapes fixed to what is fed, realised precision from the execution graph."""

from __future__ import annotations

import numpy as np
import pytest

from backends import ov
from backends.base import BackendError, BackendUnavailable, FeedError, LoadOptions, ProviderMismatch, check_feeds
from backends.ov import OvBackend, summarise

BACKEND = OvBackend()


def op(layer: str, precision: str, kernel: str = "ref") -> dict[str, str]:
    return {"layerType": layer, "runtimePrecision": precision, "primitiveType": kernel}


def test_execution_graph_counts_by_precision_and_kernel():
    """Inputs, constants and results are not executed; signed and unsigned int8 are one; reorders are conversions."""
    nodes = [
        op("Input", "f32"),
        op("Const", "i8"),
        op("Reorder", "f32", "jit_uni"),
        op("Convolution", "i8", "brgconv_i8"),
        op("Convolution", "u8", "brgconv_i8"),
        op("FullyConnected", "bf16", "brgemm_bf16"),
        op("ShapeOf", "i32"),
        op("Output", "f32"),
    ]

    assert summarise(nodes, "bf16") == (
        {"bf16": 1, "conversion": 1, "i8": 2, "other": 1},
        {"brgconv_i8": 2, "brgemm_bf16": 1, "jit_uni": 1, "ref": 1},
    )


@pytest.mark.parametrize(
    ("hint", "expected"), [("f32", {"f32": 1}), ("bf16", {"undetermined": 1}), (None, {"undetermined": 1})]
)
def test_a_fused_subgraph_counts_only_under_an_f32_hint(hint, expected):
    """A fused kernel tells the type of its results, not of its arithmetic."""
    assert expected == summarise([op("Subgraph", "f32")], hint)[0]


@pytest.mark.runtime
def test_default_precision_is_f32_whatever_the_host_prefers(examples):
    """On hosts with bf16 OpenVINO would compute in it unasked; the reference must not."""
    facts = BACKEND.load(examples["conv"].path, LoadOptions()).facts

    assert facts.details["INFERENCE_PRECISION_HINT"] == "f32"


@pytest.mark.runtime
def test_bf16_runs_in_bf16_or_not_at_all(examples):
    """`precision=bf16` changes the arithmetic where the host has it, and is a mismatch where it has not."""
    import openvino

    example = examples["mlp"]
    feeds = example.feed(64, 1)
    options = LoadOptions(options={"precision": "bf16"}, sample_shapes={"x": (64, 8)})
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(ProviderMismatch, match="precision=bf16"):
            BACKEND.load(example.path, options)
        return
    session = BACKEND.load(example.path, options)
    error = np.abs(session.infer(feeds)["y"] - example.expected(feeds)["y"]).max()

    assert session.facts.details["INFERENCE_PRECISION_HINT"] == "bf16"
    assert 1e-4 < error < 0.1


@pytest.mark.runtime
def test_a_precision_the_host_lacks_is_a_mismatch(mlp_file):
    """OpenVINO swaps f16 for another precision in silence; the case's name would be a lie."""
    import openvino

    if "FP16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has float16")

    with pytest.raises(ProviderMismatch, match=r"asked for precision=f16, but OpenVINO would compute 'model\.onnx' in"):
        BACKEND.load(mlp_file, LoadOptions(options={"precision": "f16"}))


@pytest.mark.runtime
def test_shapes_are_fixed_to_what_is_fed(mlp_file):
    """With sample shapes the session is static, says so, and its inputs refuse other batches at the border."""
    session = BACKEND.load(mlp_file, LoadOptions(sample_shapes={"x": (3, 8)}))

    assert session.inputs[0].shape == (3, 8)
    assert session.outputs[0].shape == (3, 4)
    assert session.facts.details["shape"] == "static"
    with pytest.raises(FeedError, match="size 2 on axis 0"):
        check_feeds(session.inputs, {"x": np.zeros((2, 8), np.float32)})


@pytest.mark.runtime
@pytest.mark.parametrize(
    "options", [LoadOptions(), LoadOptions(sample_shapes={"x": (3, 8)}, options={"shape": "dynamic"})]
)
def test_shapes_stay_dynamic_when_asked_or_unknown(mlp_file, options):
    """Without sample shapes, or with `shape=dynamic`, one session takes any batch."""
    session = BACKEND.load(mlp_file, options)

    assert session.inputs[0].shape == (None, 8)
    assert session.facts.details["shape"].startswith("dynamic")
    assert [session.infer({"x": np.ones((rows, 8), np.float32)})["y"].shape for rows in (2, 5)] == [(2, 4), (5, 4)]


@pytest.mark.runtime
def test_sample_shapes_that_do_not_fit_leave_the_model_dynamic(mlp_file):
    """A reshape that fails is undone and noted."""
    session = BACKEND.load(mlp_file, LoadOptions(sample_shapes={"x": (3, 7)}))

    assert "cannot take the sample shapes" in session.facts.details["shape"]
    assert session.infer({"x": np.ones((2, 8), np.float32)})["y"].shape == (2, 4)


@pytest.mark.runtime
def test_outputs_are_views_that_the_next_call_overwrites(mlp_file):
    """What `infer` documents as reused is reused: no copy is paid for inside timed code."""
    session = BACKEND.load(mlp_file, LoadOptions(sample_shapes={"x": (1, 8)}))
    first = session.infer({"x": np.ones((1, 8), np.float32)})["y"]
    kept = first.copy()
    session.infer({"x": -np.ones((1, 8), np.float32)})

    assert not np.array_equal(kept, first)


@pytest.mark.runtime
def test_compiled_models_are_cached_only_where_asked(mlp_file, tmp_path):
    """`cache_dir` is where OpenVINO keeps compiled models."""
    BACKEND.load(mlp_file, LoadOptions(cache_dir=tmp_path))

    assert list(tmp_path.rglob("*.blob")) != []


@pytest.mark.runtime
def test_a_cached_model_is_taken_only_for_the_same_settings(mlp_file, tmp_path):
    """OpenVINO's own key leaves out the precision on some processors, and then gives f16 for f32."""

    def load(**options):
        precision = {"precision": options.pop("precision")} if "precision" in options else {}
        BACKEND.load(mlp_file, LoadOptions(cache_dir=tmp_path, options=precision, **options)).close()
        return {path.parent for path in tmp_path.rglob("*.blob")}

    first = load()
    assert len(first) == 1
    assert load() == first
    assert len(load(precision="runtime")) == 2
    assert len(load(threads=2)) == 3


@pytest.mark.parametrize(
    ("device", "settings", "told"),
    [
        ("GPU", {"NUM_STREAMS": 1}, {}),
        ("CPU", {"NUM_STREAMS": 2}, {}),
        ("CPU", {"NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f16"}, {}),
        ("CPU", {"NUM_STREAMS": 1}, {"OPTIMIZATION_CAPABILITIES": ["FP32", "FP16"]}),
        ("CPU", {"NUM_STREAMS": 1}, {"FULL_DEVICE_NAME": "Cortex-A76"}),
    ],
)
def test_kinds_of_compiled_models_do_not_mix(device, settings, told):
    """Another device, setting, capability or processor is another folder of the cache."""

    class Core:
        def __init__(self, told):
            self.told = told

        def get_property(self, device, name):
            if name not in self.told:
                raise RuntimeError(f"{device} has no {name}")
            return self.told[name]

    plain = ov._kind(Core({}), "CPU", {"NUM_STREAMS": 1})
    assert plain == ov._kind(Core({}), "CPU", {"NUM_STREAMS": 1})
    assert ov._kind(Core(told), device, settings) != plain


@pytest.mark.runtime
@pytest.mark.parametrize("device", ["GPU", "NPU"])
def test_absent_devices_are_unavailable_with_the_reason(mlp_file, device):
    """A device that OpenVINO does not see is told with those it sees, and not replaced."""
    if BACKEND.availability(device).available:
        pytest.skip(f"this machine has an OpenVINO {device}")

    assert "sees no" in str(BACKEND.availability(device).reason)
    with pytest.raises(BackendUnavailable, match=f"ov:{device} cannot run here"):
        BACKEND.load(mlp_file, LoadOptions(device=device))


@pytest.mark.parametrize("device", ["AUTO", "MULTI", "cuda"])
def test_devices_that_choose_for_themselves_are_refused(mlp_file, device):
    """AUTO would run on a device nobody asked for."""
    with pytest.raises(BackendError, match=f"no device '{device}'"):
        BACKEND.load(mlp_file, LoadOptions(device=device))


@pytest.mark.runtime
def test_devices_are_read_in_either_case(mlp_file):
    """`ov:cpu` is `ov:CPU`."""
    assert BACKEND.load(mlp_file, LoadOptions(device="cpu")).facts.provider == "CPU"


def test_missing_package_is_told_with_the_install_command(monkeypatch):
    """Without openvino the reason is its absence, and the command is given."""
    monkeypatch.setattr(ov.util, "find_spec", lambda name: None)
    availability = BACKEND.availability()

    assert (
        availability.available,
        availability.reason,
        availability.install,
    ) == (False, "openvino is not installed", "pip install openvino")
