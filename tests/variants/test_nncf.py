"""`nncf`: NNCF's quantization as a variant. What needs nncf itself is skipped without the extra."""

from __future__ import annotations

import builtins
import os
import subprocess
import sys
from importlib import util
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from profiler.errors import StudyError, VariantError
from profiler.onnx_io import count_ops
from profiler.variants.base import from_options
from profiler.variants.nncf import Nncf
from profiler.variants.running import outputs

HAVE = util.find_spec("nncf") is not None
needs_nncf = pytest.mark.skipif(not HAVE, reason="needs the nncf extra")


@pytest.fixture
def residual(builders, cnn):
    """The `cnn` fixture with an addition around its second half: what NNCF quantizes and others leave."""
    model = type(cnn)()
    model.CopyFrom(cnn)
    graph = model.graph
    nodes = list(graph.node)
    pool = next(index for index, node in enumerate(nodes) if node.op_type == "GlobalAveragePool")
    extra = [
        helper.make_node("Conv", ["r2", "w4", "b4"], ["c4"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c4", "r2"], ["sum"]),
    ]
    rng = np.random.default_rng(3)
    from onnx import numpy_helper

    graph.initializer.extend(
        [
            numpy_helper.from_array((rng.standard_normal((32, 32, 3, 3)) / 17).astype(np.float32), "w4"),
            numpy_helper.from_array(np.zeros(32, np.float32), "b4"),
        ]
    )
    nodes[pool].input[0] = "sum"
    ordered = [*nodes[:pool], *extra, *nodes[pool:]]
    copies = [type(node).FromString(node.SerializeToString()) for node in ordered]
    del graph.node[:]
    graph.node.extend(copies)
    return model


@pytest.mark.runtime
@pytest.mark.nncf
@needs_nncf
def test_all_products_become_int8_and_the_answers_stay(residual, images):
    result = Nncf().apply(residual, images)
    assert result.changed
    assert result.facts["quantized"] == "Conv 3, Gemm 1"
    assert result.facts["ops_left_float"] == 0
    assert "Add" in str(result.facts["others_on_int8"])
    assert result.facts["calibration_rows"] == 16
    assert result.facts["calibration_cosine"] > 0.98
    assert "refused_by" not in result.facts
    # Computed again by hand, on the side of the file: an untouched copy would be exactly equal.
    before, after = outputs(residual, images)[0], outputs(result.model, images)[0]
    assert 0 < np.abs(before - after).max() < 0.2 * np.abs(before).max()


@pytest.mark.runtime
@pytest.mark.nncf
@needs_nncf
def test_equal_input_gives_equal_bytes_and_the_input_stays(cnn, images):
    before = cnn.SerializeToString()
    first, second = (Nncf().apply(cnn, images).model.SerializeToString(deterministic=True) for _ in range(2))
    assert first == second
    assert cnn.SerializeToString() == before


@pytest.mark.runtime
@pytest.mark.nncf
@needs_nncf
def test_ignored_types_and_names_stay_float(cnn, images):
    by_type = Nncf(ignored=("Gemm",)).apply(cnn, images)
    assert by_type.facts["quantized"] == "Conv 2"
    assert by_type.facts["ops_left_float"] == 1
    by_place = Nncf(ignored=("Conv:1",)).apply(cnn, images)
    assert by_place.facts["quantized"] == "Conv 1, Gemm 1"
    with pytest.raises(VariantError, match=r"no node or op type 'Gemmm'\. Did you mean Gemm"):
        Nncf(ignored=("Gemmm",)).apply(cnn, images)


@pytest.mark.runtime
@pytest.mark.nncf
@needs_nncf
def test_an_old_opset_is_raised_so_that_channels_get_scales_of_their_own(builders, images):
    result = Nncf().apply(builders["cnn"](opset=11), images)
    assert result.facts["opset"] >= 13
    assert any("opset upgraded from 11" in note for note in result.notes)
    scales = [
        tensor for tensor in result.model.graph.initializer if "scale" in tensor.name and list(tensor.dims) == [32]
    ]
    assert scales


@pytest.mark.runtime
@pytest.mark.nncf
@needs_nncf
def test_nothing_to_quantize_is_said(elementwise):
    rows = {"x": np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)}
    result = Nncf().apply(elementwise, rows)
    if not result.changed:
        assert "nothing was quantized" in result.notes[0]
    else:
        # NNCF may quantize elementwise products; then no weighted op is claimed.
        assert result.facts["ops_quantized"] == 0
        assert count_ops(result.model)["DequantizeLinear"] > 0


@pytest.mark.runtime
@pytest.mark.nncf
@needs_nncf
def test_nncf_says_nothing_to_the_user(cnn, images, capfd):
    Nncf(subset=4).apply(cnn, images)
    said = capfd.readouterr()
    assert said.out == ""
    assert "nncf" not in said.err.lower()


@pytest.mark.runtime
@pytest.mark.nncf
@needs_nncf
def test_smoothing_changes_a_transformer_only(mlp, vectors):
    plain = Nncf(model_type="transformer", smooth_quant_alpha=-1).apply(mlp, vectors)
    smooth = Nncf(model_type="transformer", smooth_quant_alpha=0.5).apply(mlp, vectors)
    assert plain.model.SerializeToString() != smooth.model.SerializeToString()


@pytest.mark.runtime
@pytest.mark.nncf
@needs_nncf
def test_nncf_reports_nothing_to_its_makers():
    """In a process of its own: under pytest NNCF leaves its telemetry away by itself."""
    code = (
        "import os; from profiler.variants.nncf import _engine; _engine('nncf');"
        "from nncf.telemetry import wrapper; print(type(wrapper.telemetry).__name__, 'NNCF_CI' in os.environ)"
    )
    environment = {key: value for key, value in os.environ.items() if key not in ("NNCF_CI", "NNCF_DEV")}
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["MagicMock", "False"]


def test_without_the_package_the_install_command_is_named(cnn, images, monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "nncf":
            raise ImportError("No module named 'nncf'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(VariantError, match=r"pip install 'edgeprof\[nncf\]'"):
        Nncf().apply(cnn, images)


@pytest.mark.nncf
@needs_nncf
def test_it_needs_calibration_rows(cnn):
    with pytest.raises(VariantError, match="needs calibration data"):
        Nncf().apply(cnn, None)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"preset": "fast"}, "expected one of: auto, performance, mixed"),
        ({"subset": "0"}, "expected at least 1"),
        ({"smooth_quant_alpha": "2", "model_type": "transformer"}, "expected a number from 0 to 1, or -1"),
        ({"smooth_quant_alpha": "0.5"}, "expected model_type=transformer beside it"),
    ],
)
def test_wrong_options_are_told(options, told):
    with pytest.raises(StudyError, match=told):
        from_options(Nncf, options)


def test_the_text_holds_what_differs_from_the_defaults():
    assert Nncf().text == "nncf"
    recipe = Nncf(preset="mixed", model_type="transformer", ignored=("Gemm", "Conv_0_"))
    assert recipe.text == "nncf{ignored=Gemm|Conv_0_,model_type=transformer,preset=mixed}"
