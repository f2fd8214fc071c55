"""What a runtime answers as arrays: text and maps in the order that means the same as the model's classes."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from backends.base import BackendError
from profiler.measure.outputs import as_arrays

FLOATS = np.array([[0.25, 0.75], [0.5, 0.5]], np.float32)


def test_tensors_stay_what_they_are():
    """The same objects."""
    given = {"a": FLOATS, "b": np.array(3), "c": np.array(["x"])}

    assert all(as_arrays(given)[name] is array for name, array in given.items())


def test_objects_that_are_text_become_text():
    """In their shape; a numpy scalar becomes an array."""
    found = as_arrays({"label": np.array([["cat"], ["dög"]], object), "n": np.float32(2)})

    assert (found["label"].dtype.kind, found["label"].tolist()) == ("U", [["cat"], ["dög"]])
    assert found["n"].shape == ()


@pytest.mark.parametrize("keys", [(0, 1), ("bird", "cat"), (1, 0), ("b", "a")])
def test_maps_become_columns_in_the_order_of_their_keys(keys):
    """Whatever order each of them is in."""
    rows = [dict(zip(keys, row, strict=True)) for row in ((0.25, 0.75), (0.5, 0.125))]
    rows[1] = dict(reversed(rows[1].items()))
    table = as_arrays({"p": rows})["p"]

    assert table.dtype == np.float32
    expected = [[row[key] for key in sorted(keys)] for row in rows]
    np.testing.assert_array_equal(np.array(expected, np.float32), table)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([{0: 1.0}, {1: 1.0}], "of other keys in each.*zipmap"), ([{0: "a"}], "no numbers.*zipmap"), ([{0: [1.0]}], "no numbers"),
        ([np.zeros(2), np.zeros(3)], "a sequence of 2 ndarray objects"), ([], "a sequence of 0"), ({0: 1.0}, "a map, no tensor"),
        (np.array([None]), "neither numbers nor text"), (np.array([b"x"], object), "neither numbers nor text"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_array_is_named_with_what_to_do(value, words):
    """By its output's name, where there is no other output; beside one it is left out."""
    with pytest.raises(BackendError, match=rf"output 'odd' is .*{words}|output 'odd' holds .*{words}") as caught:
        as_arrays({"odd": value})
    assert list(as_arrays({"odd": value, "good": FLOATS})) == ["good"]

    assert "export the model with tensors" in str(caught.value).replace("Export the", "export the")


@pytest.mark.runtime
@pytest.mark.parametrize("text", [False, True])
def test_a_classifier_of_scikit_learn_gives_label_and_columns(tmp_path, text):
    """LinearClassifier and ZipMap as skl2onnx writes them, on the real runtime: the columns are the same without ZipMap."""
    from backends.base import LoadOptions
    from backends.ort import OrtBackend

    classes = {"classlabels_strings": ["bird", "cat", "dog"]} if text else {"classlabels_ints": [0, 1, 2]}
    zipped = {"classlabels_strings": ["bird", "cat", "dog"]} if text else {"classlabels_int64s": [0, 1, 2]}
    nodes = [
        helper.make_node(
            "LinearClassifier", ["x"], ["label", "raw"], domain="ai.onnx.ml", coefficients=[1.0, 0, 0, 1, 0.5, 0.5],
            intercepts=[0.0, 0.1, 0.2], multi_class=1, post_transform="SOFTMAX", **classes,
        ),
        helper.make_node("ZipMap", ["raw"], ["maps"], domain="ai.onnx.ml", **zipped),
    ]  # fmt: skip
    key = TensorProto.STRING if text else TensorProto.INT64
    maps = helper.make_sequence_type_proto(
        helper.make_map_type_proto(key, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    )
    graph = helper.make_graph(
        nodes, "classifier", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])],
        [
            helper.make_tensor_value_info("label", key, ["N"]),
            helper.make_tensor_value_info("raw", TensorProto.FLOAT, ["N", 3]), helper.make_value_info("maps", maps),
        ],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    path = tmp_path / "zipmap.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())
    session = OrtBackend().load(path, LoadOptions(batch=2))
    found = as_arrays(session.infer({"x": np.array([[3, 0], [0, 3]], np.float32)}))
    session.close()

    np.testing.assert_array_equal(found["raw"], found["maps"])
    assert found["label"].tolist() == (["bird", "cat"] if text else [0, 1])
    assert found["maps"].argmax(axis=1).tolist() == [0, 1]
