"""A model is found by path, by factory, or is the object itself; whatever is wrong with it is said in one sentence."""

from __future__ import annotations

import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from profiler import export as export_package
from profiler import onnx_io
from profiler.errors import ModelError
from profiler.export import export_model, framework_of, resolve
from profiler.export.base import compare, differences


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write the text of a module `edgeprof_user_model` into the working directory."""

    def write(text: str) -> str:
        (tmp_path / "edgeprof_user_model.py").write_text(text)
        return "edgeprof_user_model"

    monkeypatch.chdir(tmp_path)
    yield write
    sys.modules.pop("edgeprof_user_model", None)


@pytest.fixture
def relu_path(tmp_path):
    """y = relu(x) with a free batch axis, opset 12."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3]) for name in ("x", "y"))
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)], ir_version=8)
    path = tmp_path / "relu.onnx"
    onnx.save(model, str(path))
    return path


SAMPLE = {"x": np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)}


@pytest.mark.parametrize("text", ["model.pt", "torchvision.models", ":factory", "a b:c", "a:b()", "models/net.py:make"])
def test_a_text_of_neither_form_is_answered_with_both(text):
    """The message shows what was asked and what would be read."""
    with pytest.raises(ModelError, match=r"expected the path of an \.onnx file, or package\.module:factory"):
        resolve(text)


def test_a_factory_in_the_working_directory_is_found_and_the_path_restored(module):
    """The command's own folder is not where the user's modules are."""
    name = module("def make():\n    return 42\n")
    before = list(sys.path)

    assert resolve(f"{name}:make") == 42
    assert before == sys.path


def test_a_module_that_does_not_exist_is_named(module):
    """So is the folder that was looked in."""
    with pytest.raises(ModelError, match="there is no module 'edgeprof_nowhere' in"):
        resolve("edgeprof_nowhere.models:make")


def test_a_module_whose_own_import_fails_says_which(module):
    """The user's module exists; what it needs does not."""
    name = module("import edgeprof_missing_dependency\n")
    with pytest.raises(ModelError, match="needs 'edgeprof_missing_dependency'"):
        resolve(f"{name}:make")


def test_a_name_that_is_not_there_is_answered_with_those_that_are(module):
    """Public names only."""
    name = module("def build():\n    pass\n_hidden = 1\n")
    with pytest.raises(ModelError, match=r"has no 'make'\. It has: build\."):
        resolve(f"{name}:make")


def test_what_a_factory_raises_is_quoted(module):
    """With its type."""
    name = module("def make():\n    raise FileNotFoundError('weights.bin')\n")
    with pytest.raises(ModelError, match=r"the factory raised FileNotFoundError: weights\.bin"):
        resolve(f"{name}:make")


def test_a_factory_of_something_else_is_refused_with_its_type(module, tmp_path):
    """A dict is no model."""
    name = module("def make():\n    return {'weights': 1}\n")
    with pytest.raises(ModelError, match=r"is a builtins\.dict, expected a torch\.nn\.Module or a"):
        export_model(f"{name}:make", SAMPLE, tmp_path / "m.onnx")


def test_a_constant_is_no_factory(module):
    """Neither model nor callable."""
    name = module("model = 3\n")
    with pytest.raises(ModelError, match="is a int, expected a function"):
        resolve(f"{name}:model")


def test_the_framework_is_told_without_importing_it():
    """Names of base classes decide, so a lookalike class suffices and nothing is imported."""
    base = type("Module", (), {"__module__": "torch.nn.modules.module"})
    assert framework_of(type("Mine", (base,), {})()) == "torch"
    assert framework_of(object()) is None


def test_a_missing_extra_is_named_with_its_command(monkeypatch, tmp_path):
    """The command installs exactly what is missing."""
    monkeypatch.setattr(export_package, "find_spec", lambda name: None)
    estimator = type("BaseEstimator", (), {"__module__": "sklearn.base"})()
    with pytest.raises(ModelError, match=r"pip install 'edgeprof\[sklearn\]'"):
        export_model(estimator, SAMPLE, tmp_path / "m.onnx")


def test_a_finished_file_is_passed_on_unchanged_and_says_why_nothing_was_compared(relu_path, tmp_path):
    """Parity is None with a reason, never zero."""
    exported = export_model(str(relu_path), SAMPLE, tmp_path / "out" / "m.onnx")

    assert exported.parity is None
    assert "no parity check" in exported.notes[0]
    assert (exported.source_framework, exported.opset, exported.exporter) == ("onnx", 12, "none (already ONNX)")
    assert onnx_io.count_ops(onnx_io.read_model(exported.path)) == {"Relu": 1}


@pytest.mark.runtime
def test_an_upgraded_opset_is_compared_with_what_it_was(relu_path, tmp_path):
    """The converter proves nothing; the outputs do."""
    exported = export_model(relu_path, SAMPLE, tmp_path / "m18.onnx", opset=18)

    assert (exported.opset, exported.parity.ok, exported.parity.max_abs_diff) == (18, True, 0.0)
    assert "opset upgraded from 12 to 18." in exported.notes


def test_an_older_opset_is_not_made(relu_path, tmp_path):
    """And the notes say so."""
    exported = export_model(relu_path, SAMPLE, tmp_path / "m.onnx", opset=9)

    assert exported.opset == 12
    assert any("never taken to an older one" in note for note in exported.notes)


def test_a_sample_that_does_not_fit_is_refused_before_anything_is_written(relu_path, tmp_path):
    """Names of arrays and inputs are both shown."""
    with pytest.raises(ModelError, match=r"relu\.onnx.*\['image'\].*\['x'\]"):
        export_model(relu_path, {"image": SAMPLE["x"]}, tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


def test_no_rows_is_no_sample(relu_path, tmp_path):
    """Nor are arrays with different numbers of rows."""
    with pytest.raises(ModelError, match="needs sample rows"):
        export_model(relu_path, {"x": SAMPLE["x"][:0]}, tmp_path / "m.onnx")


def test_a_difference_above_the_tolerance_is_recorded_not_raised():
    """0.2 % of the largest value: not ok, with both figures."""
    parity, notes = compare(
        lambda feeds: {"y": feeds["x"]},
        lambda feeds: {"y": feeds["x"] * 1.002},
        {"x": np.full((3, 2), 10.0)},
        max_rows=64,
        what="m",
    )

    assert (parity.ok, parity.rows) == (False, 3)
    assert parity.max_rel_diff == pytest.approx(0.002)
    assert parity.max_abs_diff == pytest.approx(0.02)
    assert notes[0].startswith("PARITY FAILED")


def test_a_batch_that_only_the_original_takes_is_recorded():
    """The export runs at four rows and refuses one: a baked-in batch."""

    def fixed(feeds):
        if len(feeds["x"]) != 4:
            raise ValueError("expected 4 rows")
        return {"y": feeds["x"]}

    parity, notes = compare(lambda feeds: {"y": feeds["x"]}, fixed, SAMPLE, max_rows=64, what="m")

    assert (parity.ok, parity.rows, parity.max_rel_diff) == (False, 4, 0.0)
    assert "takes a batch of 1, its export does not" in notes[0]


def test_an_export_that_runs_nowhere_is_refused():
    """There is nothing to record then."""

    def broken(feeds):
        raise ValueError("no kernel")

    with pytest.raises(ModelError, match="no kernel"):
        compare(lambda feeds: {"y": feeds["x"]}, broken, SAMPLE, max_rows=64, what="m")


def test_other_shapes_and_new_infinities_are_refused():
    """Both mean a wrong graph, not an inexact one."""
    ones = np.ones((2, 3))
    with pytest.raises(ModelError, match=r"shape \(2, 3\).*gives \(3, 2\)"):
        list(differences({"y": ones}, {"y": ones.T}, "m"))
    with pytest.raises(ModelError, match="6 of 6"):
        list(differences({"y": ones}, {"y": ones * np.nan}, "m"))


def test_infinities_on_both_sides_are_no_difference():
    """Masks add −inf on purpose."""
    values = np.array([[1.0, -np.inf]])

    assert list(differences({"y": values}, {"y": values.copy()}, "m")) == [(0.0, 1.0)]
