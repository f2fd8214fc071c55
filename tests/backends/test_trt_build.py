"""From ONNX to an engine: flags, shapes, targets and refusals, over a fake binding with the names of one version."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from backends.base import BackendError, BackendUnavailable, LoadOptions
from backends.trt_build import FREE_ROWS, Log, ModelRefused, NodeProblem, Settings, build, make_logger, target_names
from backends.trt_find import Found
from backends.trt_io import layer_precisions

sys.path.append(str(Path(__file__).parent))
from trt_fake import fake_trt

onnx = pytest.importorskip("onnx")

TEN, ELEVEN, RTX = ("trt", "10.13.2"), ("trt", "11.4.0"), ("rtx", "1.7.1")
ALL = pytest.mark.parametrize("which", [TEN, ELEVEN, RTX], ids=["10", "11", "rtx"])


def found(which) -> Found:
    return Found("tensorrt", which[0], which[1], None)


def run(trt, model, which=ELEVEN, options=None, targets=(), timing=b"", **load):
    load = {"sample_shapes": {"x": (4, 8)}, **load}
    return build(trt, found(which), model, Settings.read(options or {}), LoadOptions(**load), targets, timing)


@ALL
def test_network_is_strongly_typed_in_all_versions(which, mlp_file):
    """Precision comes from the model's own types, wherever that can be said."""
    trt = fake_trt(*which)
    run(trt, mlp_file, which)
    assert ("create_network", 1 << trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED) in trt.journal


@ALL
def test_tf32_is_off_unless_asked_for(which, mlp_file):
    """A float32 reference computes in float32."""
    off, on = fake_trt(*which), fake_trt(*which)
    run(off, mlp_file, which)
    run(on, mlp_file, which, {"tf32": "true"})
    assert ("clear_flag", "TF32") in off.journal
    assert ("set_flag", "TF32") in on.journal


@ALL
def test_sparse_kernels_are_allowed_when_asked_and_what_came_of_it_is_kept(which, mlp_file):
    """TensorRT's own lines say which layers could be sparse and which are."""
    said = [
        ("INFO", "(Sparsity) Layers eligible for sparse math: a, b"),
        ("INFO", "(Sparsity) TRT inference plan picked sparse implementation for layers: a"),
        ("INFO", "Total Weights Memory: 1"),
    ]
    off, on = fake_trt(*which), fake_trt(*which)
    on.behave["build_log"] = said
    assert run(off, mlp_file, which).sparsity == ()
    assert ("set_flag", "SPARSE_WEIGHTS") not in off.journal
    built = run(on, mlp_file, which, {"sparse": "true"})
    assert ("set_flag", "SPARSE_WEIGHTS") in on.journal
    assert built.sparsity == (
        "Layers eligible for sparse math: a, b", "TRT inference plan picked sparse implementation for layers: a"
    )  # fmt: skip
    assert built.warnings == ()


@pytest.mark.parametrize(("precision", "flag"), [("fp16", "FP16"), ("bf16", "BF16"), ("int8", "INT8")])
def test_precision_flags_work_on_10_with_a_weakly_typed_network(mlp_file, precision, flag):
    """10.x may still lower float32, when asked; its flags and strong typing exclude each other."""
    trt = fake_trt(*TEN)
    run(trt, mlp_file, TEN, {"precision": precision})
    assert [("create_network", 0), ("set_flag", flag)] == [trt.journal[0], trt.journal[1]]


@pytest.mark.parametrize("which", [ELEVEN, RTX])
def test_precision_flags_elsewhere_are_refused_with_the_way_out(which, mlp_file):
    """The flags are gone: the message says to make a variant."""
    with pytest.raises(BackendError, match="has no precision=fp16: it takes precision from the model's own types"):
        run(fake_trt(*which), mlp_file, which, {"precision": "fp16"})


def test_profile_is_the_shape_that_will_be_fed(mlp_file):
    """Minimum, optimum and maximum are the sample's shape: the engine is compiled for what gets measured."""
    trt = fake_trt()
    run(trt, mlp_file)
    assert ("set_shape", "x", (4, 8), (4, 8), (4, 8)) in trt.journal


def test_profile_without_sample_shapes_takes_a_range_of_rows(mlp_file):
    """Nothing promised: 1 to FREE_ROWS rows, best for the batch."""
    trt = fake_trt()
    run(trt, mlp_file, sample_shapes={}, batch=2)
    assert ("set_shape", "x", (1, 8), (2, 8), (FREE_ROWS, 8)) in trt.journal


def test_sample_that_does_not_fit_is_refused_before_the_build(mlp_file):
    """Wrong width: both shapes are in the text."""
    trt = fake_trt()
    with pytest.raises(BackendError, match=r"will be fed \[4, 9\], the model expects \[\?, 8\]"):
        run(trt, mlp_file, sample_shapes={"x": (4, 9)})
    assert "build" not in trt.journal


def test_profile_that_tensorrt_refuses_is_an_error(mlp_file):
    """It answers a negative index instead of raising."""
    trt = fake_trt()
    trt.behave["add_optimization_profile"] = -1
    with pytest.raises(BackendError, match="does not take the shapes"):
        run(trt, mlp_file)


def test_shape_inputs_are_refused_by_name(mlp_file):
    """Values that decide shapes would need values at build time."""
    trt = fake_trt()
    trt.behave["shape_tensors"] = ("x",)
    with pytest.raises(BackendError, match=r"input 'x' of 'model\.onnx' is a shape"):
        run(trt, mlp_file)


def test_refused_nodes_are_listed_with_op_code_and_reason(mlp_file):
    """Each node's own reason, and the way out; a check that says only "false" is named by its function."""
    trt = fake_trt()
    trt.behave["parse_errors"] = [
        (3, "det0", "Det", "UNSUPPORTED_NODE", "false"),
        (5, "", "Foo", "INVALID_NODE", "Plugin not found"),
    ]
    with pytest.raises(ModelRefused) as caught:
        run(trt, mlp_file)
    assert (
        NodeProblem(3, "det0", "Det", "UNSUPPORTED_NODE", "refused by importDet"),
        NodeProblem(5, "", "Foo", "INVALID_NODE", "Plugin not found"),
    ) == caught.value.nodes
    assert "node 5 '' (Foo): INVALID_NODE, Plugin not found" in str(caught.value)


def test_many_refused_nodes_are_counted_not_all_printed(mlp_file):
    """A model of one unknown op repeated 100 times still gives a readable message."""
    trt = fake_trt()
    trt.behave["parse_errors"] = [(i, f"n{i}", "Foo", "INVALID_NODE", "no") for i in range(100)]
    with pytest.raises(ModelRefused, match=r"(?s)100 node\(s\) not supported.*and 80 more") as caught:
        run(trt, mlp_file)
    assert len(caught.value.nodes) == 100


def test_refusal_without_node_errors_quotes_the_log(mlp_file):
    """The parser can say no and name nothing."""
    trt = fake_trt()
    trt.behave |= {"parse": False, "parse_log": [("ERROR", "Failed to parse ONNX model")]}
    with pytest.raises(ModelRefused, match=r"could not load 'model\.onnx': Failed to parse ONNX model"):
        run(trt, mlp_file)


def test_external_data_outside_the_folder_never_reaches_the_parser(tmp_path):
    """TensorRT's parser opens whatever file a model names."""
    weights = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [1], bytes(4), raw=True)
    onnx.external_data_helper.set_external_data(weights, "../secret.bin")
    graph = onnx.helper.make_graph([], "g", [], [], [weights])
    (tmp_path / "model.onnx").write_bytes(onnx.helper.make_model(graph).SerializeToString())
    trt = fake_trt()
    trt.behave["parse_errors"] = [(0, "n", "Op", "INVALID_NODE", "the parser was asked")]
    with pytest.raises(BackendError, match="outside its folder"):
        run(trt, tmp_path / "model.onnx")


def test_none_from_the_build_is_a_failure_with_the_log(mlp_file):
    """TensorRT doesn't raise; the errors it logged are the reason, and warnings are not."""
    trt = fake_trt()
    trt.behave |= {"build": None, "build_log": [("WARNING", "slow"), ("ERROR", "Cannot compile 'fc' for SM75")]}
    with pytest.raises(BackendError, match=r"could not build 'model\.onnx': Cannot compile 'fc' for SM75$"):
        run(trt, mlp_file)


def test_none_from_the_build_without_a_log_says_so(mlp_file):
    """No reason is told as such."""
    trt = fake_trt()
    trt.behave["build"] = None
    with pytest.raises(BackendError, match="it logged no reason"):
        run(trt, mlp_file)


def test_builder_that_cannot_start_is_unavailable(mlp_file):
    """What the real binding raises without a driver, seen with its libraries replaced by stubs."""
    trt = fake_trt()
    trt.behave |= {
        "builder": TypeError("pybind11::init(): factory function returned nullptr"),
        "builder_log": [("ERROR", "CUDA initialization failure with error: 35")],
    }
    with pytest.raises(
        BackendUnavailable, match="could not start its builder: CUDA initialization failure with error: 35"
    ):
        run(trt, mlp_file)


def test_lean_runtime_without_a_builder_is_unavailable(mlp_file):
    """The lean and dispatch packages import, but only run."""
    trt = fake_trt()
    del trt.Builder
    with pytest.raises(BackendUnavailable, match="has no builder"):
        run(trt, mlp_file)


def test_rtx_builds_for_the_named_generations(mlp_file):
    """Ahead of time and without a GPU, one engine for several generations."""
    trt = fake_trt(*RTX)
    run(trt, mlp_file, RTX, targets=("SM86", "SM120"))
    assert [entry for entry in trt.journal if entry[0] == "set_compute_capability"] == [
        ("set_compute_capability", "SM86", 0),
        ("set_compute_capability", "SM120", 1),
    ]


def test_unknown_generation_lists_the_known_ones(mlp_file):
    """RTX knows no Hopper."""
    with pytest.raises(BackendError, match="no compute capability SM90; it has CURRENT, SM120"):
        run(fake_trt(*RTX), mlp_file, RTX, targets=("SM90",))


def test_full_tensorrt_builds_for_the_present_gpu_only(mlp_file):
    """Asking it for targets is an error, not ignored."""
    with pytest.raises(BackendError, match="builds for the GPU that is present, not for SM86"):
        run(fake_trt(), mlp_file, targets=("SM86",))


def test_target_is_the_gpu_s_own_where_the_binding_lists_it():
    """A GPU it doesn't list is left to TensorRT-RTX's judgement; full TensorRT takes no target."""
    rtx = fake_trt(*RTX)
    assert (
        target_names(rtx, 8, 6),
        target_names(rtx, 9, 0),
        target_names(fake_trt(), 9, 0),
    ) == (("SM86",), ("CURRENT",), ())


def test_timing_cache_is_used_and_returned_on_full_tensorrt(mlp_file):
    """The second build of a family doesn't time the same kernels again."""
    trt = fake_trt()
    assert run(trt, mlp_file, timing=b"old").timing_cache == b"old+"


def test_unusable_timing_cache_is_replaced_by_an_empty_one(mlp_file):
    """Another TensorRT's cache gives None."""
    trt = fake_trt()
    trt.behave["bad_timing_caches"] = (b"old",)
    assert run(trt, mlp_file, timing=b"old").timing_cache == b"+"


def test_rtx_gets_no_timing_cache(mlp_file):
    """There the calls exist, warn and do nothing."""
    trt = fake_trt(*RTX)
    assert None is run(trt, mlp_file, RTX).timing_cache
    assert "create_timing_cache" not in {entry[0] for entry in trt.journal}


def test_workspace_and_level_reach_the_config(mlp_file):
    """In bytes, and only when asked."""
    trt = fake_trt()
    run(trt, mlp_file, options={"workspace_mib": "256", "level": "5"})
    assert ("set_memory_pool_limit", "WORKSPACE", 256 * 2**20) in trt.journal
    assert trt.last_config.builder_optimization_level == 5
    plain = fake_trt()
    run(plain, mlp_file)
    assert "set_memory_pool_limit" not in {entry[0] for entry in plain.journal}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"presicion": "fp16"}, "'presicion'"),
        ({"precision": "fp8"}, "precision=fp8, expected one of: model, fp16, bf16, int8"),
        ({"flavour": "lean"}, "flavour=lean"),
        ({"level": "6"}, "level=6"),
        ({"workspace_mib": "-1"}, "workspace_mib=-1"),
    ],
)
def test_wrong_options_are_named(options, words):
    """A typo must not measure the default."""
    with pytest.raises(BackendError, match=words):
        Settings.read(options)


def test_log_keeps_errors_and_drops_chatter():
    """Verbose lines come by the thousand; repeated errors are quoted once."""
    trt, log = fake_trt(), Log()
    logger = make_logger(trt, log)
    for severity, text in [("VERBOSE", "v"), ("INFO", "i"), ("WARNING", "w"), ("ERROR", "e"), ("ERROR", "e")]:
        logger.log(trt.ILogger.Severity[severity], text)
    assert (log.quote(), len(log.lines)) == ("e", 3)


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("Row major linear FP32", "f32"),
        ("Float", "f32"),
        ("Half", "f16"),
        ("Channel major FP16 format where channel % 8 == 0", "f16"),
        ("Row major linear BF16", "bf16"),
        ("Thirty-two wide channel vectorized row major Int8 format", "i8"),
        ("Row major linear FP8", "f8"),
        ("Int64", "other"),
        ("Bool", "other"),
    ],
)
def test_inspector_s_words_for_a_type_are_understood(words, kind):
    """Both ways TensorRT writes types."""
    text = json.dumps({"Layers": [{"LayerType": "gemm", "Inputs": [{"Format/Datatype": words}]}]})
    assert ({kind: 1}, None) == layer_precisions(text)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"Layers": ["conv1", "fc"]}', '{"Layers": [{"LayerType": "gemm"}]}'])
def test_inspector_that_tells_nothing_gives_a_reason(text):
    """No precision is None with a reason, never an empty table."""
    precision, reason = layer_precisions(text)
    assert None is precision
    assert reason
