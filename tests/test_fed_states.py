"""Models that are not fed row by row, from study to accuracy, in real runtimes; the truth is computed apart, in numpy."""

from __future__ import annotations

import numpy as np
import pytest

from profiler import prepare
from profiler.api import profile
from profiler.data import load_dataset
from profiler.errors import DataError, StudyError
from profiler.onnx_io import read_model
from profiler.study import make_study
from profiler.variants.running import batches
from tests import recurrent

INPUTS = {"sr": {"value": recurrent.RATE}, "h": {"from": "hn"}}


@pytest.fixture
def files(tmp_path):
    """`(model, data)` of the recurrent model; labels are the truth of carried states."""
    model = recurrent.build(tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", **recurrent.rows())
    return str(model), str(tmp_path / "d.npz")


def accuracies(result):
    return {record.case: record.per_sample.mean() for record in result.run.qualities}


@pytest.mark.runtime
@pytest.mark.process
def test_the_accuracy_of_a_carried_state_is_the_truth(files, tmp_path):
    """On both runtimes and at two batches; fed row by row without the state it would be another one."""
    data = recurrent.rows()
    alone = np.array(
        [recurrent.step(x.astype(float), np.zeros((recurrent.LAYERS, recurrent.WIDTH)))[0] for x in data["x"]]
    )
    assert (alone.argmax(axis=1) == data["labels"]).mean() < 0.8

    result = profile(
        *files, out=tmp_path / "runs", inputs=INPUTS, variants=("fp32", "int8-static"), batches=(1, 4), backends=("ort", "ov"),
        effort={"processes": 1, "rounds": 1, "block_s": 0.002, "block_samples": 3, "warmup_s": 0.002, "warmup_max_s": 0.02},
    )  # fmt: skip
    found = accuracies(result)

    exact = {f"fp32@{backend}/b{batch}" for backend in ("ort", "ov") for batch in (1, 4)}
    assert {key: found[key] for key in exact} == dict.fromkeys(exact, 1.0)
    assert len(found) == 8
    assert all(value >= 0.85 for value in found.values())
    assert not result.run.failures


@pytest.mark.runtime
@pytest.mark.process
def test_a_wrong_rate_is_the_users_word_and_gives_its_own_answers(files, tmp_path):
    """The constant really reaches the model."""
    data = recurrent.rows()
    expected = (recurrent.scores(data["x"], data["ids"], rate=4000).argmax(axis=1) == data["labels"]).mean()
    result = profile(
        *files, out=tmp_path / "runs", inputs={**INPUTS, "sr": {"value": 4000}}, variants=("fp32",), backends=("ort",),
        effort={"processes": 1, "rounds": 1, "block_s": 0.002, "block_samples": 3, "warmup_s": 0.002, "warmup_max_s": 0.02},
    )  # fmt: skip

    assert accuracies(result)["fp32@ort/b1"] == pytest.approx(expected)
    assert expected < 1


@pytest.mark.runtime
@pytest.mark.process
def test_calibration_is_fed_with_the_states_that_the_model_passes_through(files, tmp_path):
    """Recorded in a worker; row i's state is the truth's state before step i."""
    study = make_study(model=files[0], data=files[1], inputs=INPUTS, variants=("int8-static",), calibration_samples=40)
    prepared = prepare.prepare(study, prepare.check_names(study), tmp_path)
    rows = prepared.calibration
    assert rows is not None
    assert not set(rows.ids) & set(prepared.evaluation.ids)

    states: dict[str, np.ndarray] = {}
    fed = list(batches(read_model(prepared.source), rows.inputs, len(rows)))
    assert len(fed) == len(rows)
    for row, (feeds, name) in enumerate(zip(fed, rows.ids.tolist(), strict=True)):
        before = states.get(name, np.zeros((recurrent.LAYERS, recurrent.WIDTH)))
        np.testing.assert_allclose(before, feeds["h"][:, 0], atol=1e-5)
        assert feeds["sr"].tolist() == recurrent.RATE
        states[name] = recurrent.step(rows.inputs["x"][row].astype(float), before)[1]


def test_constants_are_asked_for_with_a_command_that_says_them(files, tmp_path):
    """The value can only be the user's."""
    study = make_study(model=files[0], data=files[1], inputs={"h": {"from": "hn"}})
    with pytest.raises(StudyError, match=r"--input 'h\{from=hn\}' --input 'sr\{value=16000\}'"):
        prepare.prepare(study, prepare.check_names(study), tmp_path)


def test_a_state_that_the_data_do_not_hold_is_suggested(files, tmp_path):
    """By name, shape and type of an output."""
    study = make_study(model=files[0], data=files[1], inputs={"sr": {"value": 1}})
    with pytest.raises(DataError, match=r"`ids`.*edgeprof profile .*--input 'h\{batch_axis=1,from=hn\}'"):
        prepare.prepare(study, prepare.check_names(study), tmp_path)


@pytest.mark.runtime
@pytest.mark.process
def test_states_given_row_by_row_are_fed_to_their_axis(tmp_path):
    """Each row with a state of its own, in the model's layout: two layers are not two rows."""
    data = recurrent.rows()
    rng = np.random.default_rng(5)
    h = rng.standard_normal((len(data["x"]), recurrent.LAYERS, recurrent.WIDTH)).astype(np.float32)
    truth = np.array([recurrent.step(x.astype(float), state)[0] for x, state in zip(data["x"], h, strict=True)])
    model = recurrent.build(tmp_path / "m.onnx")
    np.savez(
        tmp_path / "d.npz", x=data["x"], h=h.swapaxes(0, 1), sr=np.int64(recurrent.RATE), labels=truth.argmax(axis=1)
    )
    result = profile(
        model, tmp_path / "d.npz", out=tmp_path / "runs", variants=("fp32",), backends=("ort",), batches=(2,),
        effort={"processes": 1, "rounds": 1, "block_s": 0.002, "block_samples": 3, "warmup_s": 0.002, "warmup_max_s": 0.02},
    )  # fmt: skip

    assert accuracies(result) == {"fp32@ort/b2": 1.0}


def test_random_rows_beyond_any_data_are_refused_before_they_are_made(tmp_path, build_model):
    """A shape in a file costs nothing, its numbers would."""
    import onnx

    path = build_model(tmp_path / "m.onnx")
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1 << 31
    onnx.save(model, path)
    study = make_study(model=str(path), variants=("fp32",))

    with pytest.raises(StudyError, match=r"'x' would take .* GB"):
        prepare.prepare(study, prepare.check_names(study), tmp_path)


def test_batches_that_cannot_be_sent_are_refused_before_anything_runs(tmp_path, build_model):
    """What timing takes in turn goes to a worker at once."""
    path = build_model(tmp_path / "m.onnx", width=1 << 16)
    study = make_study(model=str(path), variants=("fp32",), batches=(1 << 16,))

    with pytest.raises(StudyError, match="smaller --batch"):
        prepare.prepare(study, prepare.check_names(study), tmp_path)


def test_labels_of_another_length_are_refused(tmp_path, build_model):
    """With both shapes."""
    from backends.base import TensorInfo

    with pytest.raises(DataError, match=r"4 rows and labels of shape \(3,\)"):
        load_dataset(
            {"x": np.zeros((4, 2), np.float32), "labels": np.zeros(3, int)},
            inputs=[TensorInfo("x", "float32", ("N", 2))],
        )
