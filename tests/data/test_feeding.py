"""Rows become feeds as the model takes them: on the right axis, constants once, states from step to step, or not at all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.base import TensorInfo
from profiler.data import load_dataset
from profiler.data.dataset import Dataset
from profiler.data.feeding import Feeding, InputRule, feeds_of, rows_fed
from profiler.data.rules import carried_output, decide
from profiler.errors import DataError, StudyError
from profiler.study import Study, make_study

X = TensorInfo("x", "float32", ("N", 3))
H = TensorInfo("h", "float32", (2, "N", 4))
SR = TensorInfo("sr", "int64", ())


def study(**settings) -> Study:
    return make_study(model="m.onnx", **settings)


def decided(infos, outputs=(), **settings) -> Feeding:
    return decide(study(**settings), infos, outputs)


def test_plain_rows_are_fed_as_before():
    """One row a sample on the first axis needs no word."""
    feeding = decided([X, TensorInfo("z", "int64", ("N",))])
    rows = {"x": np.arange(12, dtype=np.float32).reshape(4, 3), "z": np.arange(4)}

    assert feeding.is_plain
    made = feeding.feeds(rows, np.array([2, 0]))
    np.testing.assert_array_equal(rows["x"][[2, 0]], made["x"])
    assert made["z"].tolist() == [2, 0]
    assert feeding.shapes(rows, 5) == {"x": [5, 3], "z": [5]}


def test_an_axis_with_the_symbol_of_the_batch_is_the_batch():
    """Never the layers in front of it: a row is a slice of the second axis."""
    feeding = decided([X, H])
    rows = {"x": np.zeros((5, 3), np.float32), "h": np.arange(40, dtype=np.float32).reshape(5, 2, 4)}
    made = feeding.feeds(rows, np.array([1, 4, 2]))

    assert made["h"].shape == (2, 3, 4)
    np.testing.assert_array_equal(rows["h"][4], made["h"][:, 1])
    assert feeding.shapes(rows, 7)["h"] == [2, 7, 4]
    assert any("axis 1" in note for note in feeding.notes)


@pytest.mark.parametrize(
    ("infos", "named", "advice"),
    [
        ([X, TensorInfo("h", "float32", (2, None, 4))], "'h'", "h{batch_axis=1}"),
        ([X, TensorInfo("anchors", "float32", (10, 4))], "'anchors'", "anchors{value=data}"),
        ([TensorInfo("a", "float32", (2, 3)), TensorInfo("b", "float32", (3, 4))], "'b'", "--batch 2 --input 'b{value=data}'"),
        ([TensorInfo("a", "float32", (1, 3)), TensorInfo("h", "float32", (2, 1, 4))], "'h'", "h{batch_axis=1}"),
        ([X, TensorInfo("t", "float32", ("T", "N", 4))], "'t'", "t{batch_axis=1}"),
    ],
)  # fmt: skip
def test_rows_are_never_fed_to_a_first_axis_that_is_not_the_batch(infos, named, advice):
    """Refused with one command, whose declaration then is accepted, at the batch that it names."""
    with pytest.raises(StudyError, match="not the batch") as refused:
        decided(infos)
    text = str(refused.value)
    assert named in text
    assert advice in text
    assert text.count("edgeprof profile") == 1
    from profiler.cli.options import inputs

    words = advice.split("'")
    declared = inputs([words[1] if len(words) > 1 else advice])
    batches = (2,) if "--batch 2" in advice else (1,)
    feeding = decided(infos, inputs=declared, batches=batches)
    feeding.check_batches(batches)


TM = TensorInfo("x", "float32", (5, "N", 6))
Y = TensorInfo("y", "float32", ("N", 4))


@pytest.mark.parametrize("infos", [[TM], [TM, SR], [TM, TensorInfo("z", "float32", (5, "N", 2))]])
def test_rows_on_the_second_axis_are_suggested_where_the_outputs_count_them(infos):
    """Time first: the steps are no batch, whatever their number is."""
    with pytest.raises(StudyError, match="not the batch") as refused:
        decided(infos, [Y])
    assert "x{batch_axis=1}" in str(refused.value)
    assert "--batch" not in str(refused.value)
    declared = {info.name: {"batch_axis": 1} for info in infos if info.shape}
    feeding = decided(infos, [Y], inputs=declared)
    feeding.check_batches((1, 8))
    rows = {info.name: np.zeros((3, 5, info.shape[2]), np.float32) for info in infos if info.shape}
    feeds = feeding.with_constants({"sr": np.int64(1)}).feeds(rows, np.arange(2))
    assert feeds["x"].shape == (5, 2, 6)


def test_a_fixed_first_axis_that_is_the_batch_asked_for_stays_the_batch():
    """A row of text whose length counts the rows of an output, too: nothing else was asked for."""
    feeding = decided([TensorInfo("ids", "int64", (1, "S"))], [TensorInfo("y", "float32", ("S", 4))])
    assert feeding.fixed_batch == 1
    feeding.check_batches((1,))


def test_a_declaration_overrules_what_the_model_suggests():
    """The user may know that the ten rows are the batch."""
    infos = [X, TensorInfo("z", "float32", (10, 4))]
    feeding = decided(infos, inputs={"z": {"batch_axis": 0}})

    assert feeding.fixed_batch == 10
    with pytest.raises(StudyError, match="Ask for --batch 10"):
        feeding.check_batches((1,))
    feeding.check_batches((10,))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"h": {"batch_axis": 3}}, "has no axis 3"),
        ({"nope": {"value": 1}}, "unknown input in --input"),
        ({"h": {"from": "nope"}}, "unknown output"),
        ({"h": {"from": "y"}}, "its own type and shape"),
        ({"sr": {"value": 1.5}}, "1.5 cannot be"),
        ({"sr": {"value": [1, 2]}}, "a list"),
        ({"h": {"value": 1}}, "open axes"),
    ],
)
def test_declarations_that_this_model_cannot_mean_are_refused(options, message):
    """Each says what the input is."""
    outputs = [TensorInfo("y", "float32", ("N", 2)), TensorInfo("hn", "float32", (2, "N", 4))]
    with pytest.raises(StudyError, match=message):
        decided([X, H, SR], outputs, inputs=options)


@pytest.mark.parametrize(
    "options",
    [{}, {"value": 1, "batch_axis": 0}, {"value": 1, "from": "y"}, {"init": 1.0, "batch_axis": 0}, {"batch_axis": -1}, {"x": 1}],
)  # fmt: skip
def test_declarations_that_mean_nothing_are_refused(options):
    """At the border, with the input's name."""
    with pytest.raises(StudyError, match=r"inputs\.h"):
        study(inputs={"h": options})


def test_a_declaration_is_the_same_in_a_study_and_on_the_command_line():
    """And survives the database."""
    from profiler.cli.options import inputs

    texts = [
        "h{batch_axis=1,from=hn,init=0.5}",
        "sr{value=16000}",
        "a/b:0{value=1|2.5}",
        "m{value=true}",
        "z{batch_axis=none}",
    ]
    asked = study(inputs=inputs(texts))

    assert [options.text(name) for name, options in asked.inputs.items()] == texts
    assert make_study(**__import__("json").loads(asked.to_json())) == asked
    assert asked.inputs["m"].value is True
    assert isinstance(asked.inputs["sr"].value, int)


@pytest.mark.parametrize(
    ("name", "output", "found"),
    [("state", "stateN", True), ("h0", "hn", True), ("past_k", "present_k", True), ("h_in", "h_out", True), ("x", "y", False),
     ("in", "out", False)],
)  # fmt: skip
def test_a_state_is_known_by_name_shape_and_type(name, output, found):
    """Only ever suggested, so a wrong guess costs a sentence."""
    info = TensorInfo(name, "float32", (2, "N", 4))

    assert (carried_output(info, [TensorInfo(output, "float32", (2, "N", 4))]) is not None) is found
    assert carried_output(info, [TensorInfo(output, "float32", (2, "N", 5))]) is None
    assert carried_output(info, [TensorInfo(output, "float16", (2, "N", 4))]) is None


def test_rows_of_an_inner_axis_are_read_as_the_model_takes_them_or_first():
    """Both layouts give the same rows; where both would fit, the number of rows decides."""
    feeding = decided([X, H])
    x = np.zeros((2, 3), np.float32)
    h = np.arange(16, dtype=np.float32).reshape(2, 2, 4)  # two layers, two rows: fits either way
    as_model = load_dataset({"x": x, "h": h}, inputs=[X, H], feeding=feeding)
    np.testing.assert_array_equal(h.swapaxes(0, 1), as_model.inputs["h"])

    x, h = np.zeros((5, 3), np.float32), np.arange(40, dtype=np.float32).reshape(5, 2, 4)
    first, second = (
        load_dataset({"x": x, "h": array}, inputs=[X, H], feeding=feeding) for array in (h, np.moveaxis(h, 0, 1))
    )
    np.testing.assert_array_equal(h, first.inputs["h"])
    np.testing.assert_array_equal(h, second.inputs["h"])
    with pytest.raises(DataError, match="rows on axis 1"):
        load_dataset({"x": x, "h": h[:, :1]}, inputs=[X, H], feeding=feeding)
    with pytest.raises(DataError, match=r"'x' \(4, 3\), 'h' \(5, 2, 4\)"):
        load_dataset({"x": x[:4], "h": h}, inputs=[X, H], feeding=feeding)


@pytest.mark.parametrize("sr", [np.int64(7), np.full(5, 7), np.array([7])])
def test_a_single_value_is_a_constant_wherever_the_data_say_one(sr):
    """One value, or the same one for each row."""
    data = load_dataset({"x": np.zeros((5, 3), np.float32), "sr": sr}, inputs=[X, SR])

    assert data.constants["sr"].tolist() == 7
    assert data.constants["sr"].shape == ()
    assert list(data.inputs) == ["x"]


def test_different_values_for_an_input_of_one_value_are_refused():
    """Unless one row is the whole input, which only a batch of 1 can be."""
    source = {"x": np.zeros((3, 3), np.float32), "sr": np.arange(3)}
    with pytest.raises(DataError, match="batch_axis=none"):
        load_dataset(source, inputs=[X, SR])
    feeding = decided([X, SR], inputs={"sr": {"batch_axis": "none"}})
    data = load_dataset(source, inputs=[X, SR], feeding=feeding)
    assert feeding.feeds(data.inputs, np.array([2]))["sr"].tolist() == 2
    with pytest.raises(StudyError, match="no batch axis"):
        feeding.check_batches((2,))


def rule(**options) -> InputRule:
    return InputRule(H, "state", 1, source="hn", **options)


@given(
    ids=st.lists(st.integers(0, 4), min_size=1, max_size=30),
    batch=st.integers(1, 6),
    init=st.sampled_from([0.0, 2.5, "data"]),
)
def test_a_sequence_carries_its_own_state_and_nobody_elses(ids, batch, init):
    """Whatever the batch and however rows interleave: a row's answer is the sum of its sequence until there."""
    names = np.array(ids)
    x = np.arange(1, 3 * len(ids) + 1, dtype=np.float32).reshape(-1, 3)
    start = np.arange(8 * len(ids), dtype=np.float32).reshape(-1, 2, 4)
    rows = {"x": x, "h": start} if init == "data" else {"x": x}
    feeding = Feeding((InputRule(X), rule(init=init)), {"hn": 1})

    def infer(feeds):
        assert feeds["h"].shape == (2, batch, 4)
        after = feeds["h"] + feeds["x"][:, 0][None, :, None]
        return {"y": after[0, :, :1], "hn": after}

    data = Dataset.of("d", rows, ids=names)
    if init != "data":
        feeding = Feeding((InputRule(X), InputRule(TensorInfo("h", "float32", (2, "N", 4)), "state", 1, "hn", init)))
    found = np.full(len(ids), np.nan)
    for index, outputs in feeding.answers(data, batch, infer):
        assert list(outputs) == ["y"]
        found[index] = outputs["y"][: len(index), 0]

    for name in set(ids):
        places = np.flatnonzero(names == name)
        first = start[places[0], 0, 0] if init == "data" else init
        np.testing.assert_allclose(first + np.cumsum(x[places, 0]), found[places], rtol=1e-6)


def test_a_state_without_ids_is_refused():
    """Whether rows are one sequence or many decides the answers."""
    feeding = Feeding((InputRule(X), rule()))
    data = Dataset.of("d", {"x": np.zeros((3, 3), np.float32)})

    with pytest.raises(DataError, match="`ids`"):
        next(feeding.answers(data, 1, lambda feeds: {"hn": feeds["h"]}))


def test_an_output_that_is_no_next_state_is_told():
    """Of another shape than the input."""
    feeding = Feeding((InputRule(X), rule()))
    data = Dataset.of("d", {"x": np.zeros((3, 3), np.float32)}, ids=np.zeros(3, int))

    with pytest.raises(DataError, match="does not take as its next value"):
        next(feeding.answers(data, 1, lambda feeds: {"hn": feeds["h"][:1]}))


def test_a_limit_takes_whole_sequences():
    """The middle of a sequence has no beginning."""
    ids = np.repeat(np.arange(10), 5)
    feeding = Feeding((InputRule(X), rule()))
    data = load_dataset({"x": np.zeros((50, 3), np.float32), "ids": ids}, inputs=[X, H], feeding=feeding, limit=12)

    assert sorted(np.unique(data.ids, return_counts=True)[1].tolist()) == [5, 5]


@given(count=st.integers(1, 9), start=st.integers(0, 5))
def test_rows_travel_with_the_way_they_are_fed(count, start):
    """What a process elsewhere makes of them is what is made here; a value for all rows is never cut."""
    table = np.arange(20, dtype=np.float32).reshape(10, 2)
    infos = [X, H, SR, TensorInfo("table", "float32", (10, 2))]
    feeding = Feeding((
        InputRule(X), rule(), InputRule(SR, "constant", None, value=np.asarray(5)),
        InputRule(infos[3], "constant", None, value=table),
    ))  # fmt: skip
    x = np.arange(45, dtype=np.float32).reshape(15, 3)
    states = {"h": np.arange(120, dtype=np.float32).reshape(15, 2, 4)}
    travelled = {name: np.array(array) for name, array in feeding.travelling({"x": x}, states).items()}
    make, rows, size = feeds_of(infos, travelled)

    made = make(start, start + count)
    assert (rows, size) == (15, 1)
    np.testing.assert_array_equal(x[start : start + count], made["x"])
    np.testing.assert_array_equal(states["h"][start : start + count], made["h"].swapaxes(0, 1))
    np.testing.assert_array_equal(table, made["table"])
    assert made["sr"].shape == ()
    assert rows_fed(travelled, made) == count


def test_plain_rows_travel_alone():
    """So that nothing changes for models that are fed row by row."""
    rows = {"x": np.zeros((4, 3), np.float32)}
    assert list(Feeding.plain([X]).travelling(rows, {})) == ["x"]


@pytest.mark.parametrize(
    "texts", [["sr"], ["sr{value=1"], ["{value=1}"], ["sr{value}"], ["sr{value=1}", "sr{batch_axis=0}"]]
)
def test_texts_that_declare_nothing_are_refused(texts):
    """Before a study is made of them."""
    from profiler.cli.options import inputs
    from profiler.errors import EdgeprofError

    with pytest.raises(EdgeprofError, match=r"sr|value"):
        inputs(texts)


def test_what_cannot_be_fed_is_said_before_anything_runs():
    """Text, sequences and the like."""
    from profiler.data.rules import complete

    feeding = decided([TensorInfo("t", "object", ("N", 1))])
    with pytest.raises(StudyError, match="takes text"):
        complete(study(), feeding, data_given=False)
