"""Exports of torch modules are compared with the module itself, and say what went another way than expected."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from profiler import onnx_io  # noqa: E402 (after importorskip)
from profiler.errors import ModelError  # noqa: E402
from profiler.export import export_model  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.runtime]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(7)


def rows(count: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((count, *shape)).astype(np.float32)


def run(path, feeds):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))


class Small(torch.nn.Module):
    """Dropout and batch statistics: wrong unless exported in evaluation mode."""

    def __init__(self):
        super().__init__()
        self.body = torch.nn.Sequential(
            torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Dropout(0.5)
        )
        self.head = torch.nn.Linear(4, 3)
        for _ in range(5):
            self.body(torch.randn(16, 1, 8, 8) * 3 + 1)

    def forward(self, image):
        return {"logits": self.head(self.body(image).mean((2, 3)))}


def test_the_batch_axis_stays_dynamic_and_parity_is_measured(tmp_path):
    """One, three and eight rows run, and the difference stated is the one an independent comparison finds."""
    module, sample = Small(), {"image": rows(20, 1, 8, 8)}

    exported = export_model(module, sample, tmp_path / "m.onnx")

    assert exported.exporter.startswith("torch dynamo")
    assert (exported.source_framework, exported.opset, exported.notes) == ("torch", 18, ())
    assert onnx_io.model_inputs(onnx_io.read_model(exported.path))[0].shape == ("N", 1, 8, 8)
    for batch in (1, 3, 8):
        assert (batch, 3) == run(exported.path, {"image": sample["image"][:batch]})["logits"].shape
    with torch.no_grad():
        expected = module.eval()(torch.from_numpy(sample["image"]))["logits"].numpy()
    difference = float(np.abs(expected - run(exported.path, sample)["logits"]).max())
    assert exported.parity.ok
    assert exported.parity.rows == 20
    assert exported.parity.max_abs_diff == pytest.approx(difference, abs=1e-6)
    assert exported.parity.max_rel_diff < 1e-5


def test_a_module_in_training_mode_is_exported_in_evaluation_mode_and_left_as_it_was(tmp_path):
    """Dropout and batch statistics don't reach the file; each submodule keeps its own mode."""
    module = Small().train()
    module.body[3].eval()
    before = [part.training for part in module.modules()]

    exported = export_model(module, {"image": rows(8, 1, 8, 8)}, tmp_path / "m.onnx")

    assert before == [part.training for part in module.modules()]
    assert exported.parity.ok
    assert not {"Dropout", "RandomUniformLike", "Bernoulli"} & set(onnx_io.count_ops(onnx_io.read_model(exported.path)))


def test_the_file_carries_no_path_of_the_machine_that_wrote_it(tmp_path):
    """Stack traces that exporters put into nodes are dropped."""
    exported = export_model(Small(), {"image": rows(4, 1, 8, 8)}, tmp_path / "m.onnx")

    assert b".py" not in exported.path.read_bytes()


class TwoInputs(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(10, 4)

    def forward(self, weights, tokens, scale=2.0):
        return (self.table(tokens).sum(1) * weights).sum(1) * scale


def test_inputs_are_matched_by_name_and_integers_stay_int64(tmp_path):
    """The sample's order is the file's order, whatever forward's is; a parameter with a default may be left out."""
    tokens = np.random.default_rng(2).integers(0, 10, (6, 5))

    exported = export_model(TwoInputs(), {"tokens": tokens, "weights": rows(6, 4)}, tmp_path / "m.onnx")

    inputs = onnx_io.model_inputs(onnx_io.read_model(exported.path))
    assert [(info.name, info.dtype) for info in inputs] == [("tokens", "int64"), ("weights", "float32")]
    assert exported.parity.ok


def test_one_input_needs_no_matching_name(tmp_path):
    """An array named otherwise than forward's only parameter is used, named as the data, and noted."""
    exported = export_model(torch.nn.Linear(3, 2), {"features": rows(5, 3)}, tmp_path / "m.onnx")

    assert tuple(info.name for info in onnx_io.model_inputs(onnx_io.read_model(exported.path))) == ("features",)
    assert exported.notes == ("input 'features' was given to forward's parameter 'input'.",)


def test_names_that_do_not_fit_are_told_with_those_that_would(tmp_path):
    """The message lists forward's parameters and the sample's arrays."""
    with pytest.raises(ModelError, match=r"\['weights', 'tokens', 'scale'\].*\['a', 'b'\]"):
        export_model(TwoInputs(), {"a": rows(2, 4), "b": rows(2, 5)}, tmp_path / "m.onnx")


class FlippedSoftmax(torch.nn.Module):
    def forward(self, x):
        return torch.flip(torch.softmax(x, 1), (1,))


@pytest.mark.parametrize("name", ["softmax", "flip", "_softmax", "x", "node__softmax_0"])
def test_an_output_may_be_named_like_an_op(tmp_path, name):
    """T4, pytorch/pytorch#158094: such files loaded in no runtime."""
    sample = {"data": rows(4, 3)}

    exported = export_model(FlippedSoftmax(), sample, tmp_path / "m.onnx", outputs=[name])

    assert exported.parity.ok
    assert [name] == list(run(exported.path, sample))


class Fields(NamedTuple):
    same: torch.Tensor
    twice: torch.Tensor
    again: torch.Tensor


class PassThrough(torch.nn.Module):
    def forward(self, x):
        double = x * 2
        return Fields(x, double, double)


def test_outputs_that_are_inputs_or_each_other_stay_apart(tmp_path):
    """pytorch/pytorch#173076 and #167848: such values lost their names or their numbers."""
    sample = {"x": rows(4, 3)}

    exported = export_model(PassThrough(), sample, tmp_path / "m.onnx")
    results = run(exported.path, sample)

    assert list(results) == ["same", "twice", "again"]
    np.testing.assert_array_equal(sample["x"], results["same"])
    np.testing.assert_array_equal(sample["x"] * 2, results["again"])


class Branching(torch.nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x * 2
        return x - 1


def test_a_branch_on_values_falls_back_and_says_what_that_means(tmp_path):
    """The dynamo exporter refuses; the other one keeps one path only, and the notes say both."""
    exported = export_model(Branching(), {"x": np.abs(rows(4, 3))}, tmp_path / "m.onnx")

    assert exported.exporter.startswith("torch TorchScript")
    assert "keeps only the path" in exported.notes[0]
    assert any("dynamo exporter failed" in note for note in exported.notes)
    assert exported.parity.ok


def test_a_branch_that_the_sample_takes_both_ways_fails_parity(tmp_path):
    """The first two rows take one path, all rows together the other: the difference is recorded, loudly and first."""
    sample = {"x": np.array([[1.0, 1.0], [1.0, 1.0], [-9.0, -9.0]], np.float32)}

    exported = export_model(Branching(), sample, tmp_path / "m.onnx")

    assert not exported.parity.ok
    # The module gives x − 1, the file 2 x: they differ most at −9, by |−10 + 18|, relative to the largest value, 10.
    assert exported.parity.max_abs_diff == 8.0
    assert exported.parity.max_rel_diff == pytest.approx(0.8)
    assert exported.notes[0].startswith("PARITY FAILED")


class BakedIn(torch.nn.Module):
    """A batch size taken through numpy: the dynamo exporter refuses, the other one writes it down as a constant."""

    def forward(self, x):
        return x.reshape(int(np.int64(int(x.shape[0]))), 2, -1).sum(2)


def test_a_batch_baked_in_is_refused(tmp_path):
    """The file was traced with two rows and folds eight rows into two: its shape gives it away."""
    with pytest.raises(ModelError, match=r"shape \(8, 2\), its export gives \(2, 2\)"):
        export_model(BakedIn(), {"x": rows(8, 6)}, tmp_path / "m.onnx")


class Unsupported(torch.nn.Module):
    def forward(self, x):
        return (
            torch.from_numpy(np.sort(x.detach().numpy(), axis=1))
            + torch.linalg.eigvals(x[:, :, None] * x[:, None, :]).real
        )


def test_a_module_that_no_exporter_takes_is_refused_with_both_reasons(tmp_path):
    """The message carries what each exporter said."""
    with pytest.raises(ModelError, match=r"dynamo exporter: .*TorchScript exporter: "):
        export_model(Unsupported(), {"x": rows(4, 3)}, tmp_path / "m.onnx")


def test_a_module_that_fails_on_the_sample_is_not_exported(tmp_path):
    """The module's own error is quoted."""
    with pytest.raises(ModelError, match="cannot run on the sample"):
        export_model(torch.nn.Linear(3, 2), {"input": rows(4, 7)}, tmp_path / "m.onnx")


def test_weights_beside_the_file_are_counted(tmp_path, monkeypatch):
    """T5: above the single-file limit both files are written, listed, measured, and needed."""
    monkeypatch.setattr(onnx_io, "SINGLE_FILE_BYTES", 10_000)
    module = torch.nn.Linear(100, 64)

    exported = export_model(module, {"input": rows(4, 100)}, tmp_path / "m.onnx")

    assert [file.name for file in exported.files] == ["m.onnx", "m.onnx.data"]
    assert exported.size_bytes == sum(file.stat().st_size for file in tmp_path.iterdir())
    assert exported.size_bytes > 100 * 64 * 4
    assert exported.parity.ok
    assert any("m.onnx.data" in note for note in exported.notes)
    (tmp_path / "m.onnx.data").unlink()
    with pytest.raises(ModelError, match=r"m\.onnx\.data"):
        onnx_io.read_model(exported.path)


def test_the_same_module_gives_the_same_bytes(tmp_path):
    """Artifacts are addressed by their content."""
    module, sample = Small(), {"image": rows(4, 1, 8, 8)}

    first = export_model(module, sample, tmp_path / "a" / "m.onnx").path.read_bytes()

    assert first == export_model(module, sample, tmp_path / "b" / "m.onnx").path.read_bytes()
