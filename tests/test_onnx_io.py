"""The border where model files come in."""

from __future__ import annotations

import os

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from backends.base import TensorInfo
from profiler import onnx_io
from profiler.errors import ModelError


def small(width=64):
    rng = np.random.default_rng(0)
    weight = numpy_helper.from_array(rng.standard_normal((width, width)).astype(np.float32), "w")
    bias = numpy_helper.from_array(np.ones(width, np.float32), "b")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "b"], ["y"])]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", width])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", width])
    graph = helper.make_graph(nodes, "g", [x], [y], [weight, bias])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def with_if():
    def branch(name):
        weight = numpy_helper.from_array(np.ones((2, 2), np.float32), f"w_{name}")
        node = helper.make_node("MatMul", ["x", weight.name], [f"y_{name}"])
        return helper.make_graph(
            [node], name, [], [helper.make_tensor_value_info(f"y_{name}", TensorProto.FLOAT, ["N", 2])], [weight]
        )

    nodes = [helper.make_node("If", ["c"], ["y"], then_branch=branch("a"), else_branch=branch("b"))]
    inputs = [
        helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2]),
    ]
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def external(tmp_path):
    """A model with its weights in `m.onnx.data`, as the dynamo exporter of torch writes it."""
    path = tmp_path / "model" / "m.onnx"
    path.parent.mkdir()
    onnx.save(small(), path, save_as_external_data=True, location="m.onnx.data", size_threshold=100)
    return path


def relocate(path, location):
    """Make the model at `path` claim that its external data are at `location`."""
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(model.SerializeToString())


def test_a_good_model_is_read_with_its_facts(tmp_path):
    """A model that was written is read back with inputs, outputs, opset, ops and weights."""
    path = tmp_path / "m.onnx"
    onnx.save(small(), path)

    model = onnx_io.read_model(path)

    assert (TensorInfo("x", "float32", ("N", 64)),) == onnx_io.model_inputs(model)
    assert (TensorInfo("y", "float32", ("N", 64)),) == onnx_io.model_outputs(model)
    assert onnx_io.opset_of(model) == 17
    assert dict(onnx_io.count_ops(model)) == {"MatMul": 1, "Add": 1}
    assert onnx_io.weights_count(model) == 64 * 64 + 64
    assert path.stat().st_size == onnx_io.model_size_bytes(path)


def test_inputs_that_an_initializer_supplies_are_not_inputs():
    """Files of old IR versions list their weights as graph inputs too; nobody has to feed those."""
    model = small()
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [64, 64]))

    assert [info.name for info in onnx_io.model_inputs(model)] == ["x"]


def test_dimensions_that_exporters_write_as_minus_one_or_question_mark_are_unknown():
    """-1 is no size and "?" no name."""
    model = small()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "?"

    assert onnx_io.model_inputs(model)[0].shape == (None, None)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"hello, this is no model at all", "not an ONNX model"),
        (b"\0" * 4096, "not an ONNX model"),
        (b"PK\x03\x04" + b"x" * 100, "zip archive"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "git lfs pull"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "web page"),
        (b"\x20\0\0\0TFL3" + b"\0" * 64, "TensorFlow Lite"),
        (b"\x08\x08", "holds no graph"),
    ],
)
def test_a_file_that_is_no_model_is_refused_with_its_reason(tmp_path, content, words):
    """Each kind of wrong file gets a message that says what it is, and names the file."""
    path = tmp_path / "m.onnx"
    path.write_bytes(content)

    with pytest.raises(ModelError, match=words) as caught:
        onnx_io.read_model(path)

    assert str(path) in str(caught.value)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9, 0.999])
def test_a_truncated_model_is_refused_as_cut_short(tmp_path, share):
    """An interrupted download is told apart from a file of another kind."""
    data = small().SerializeToString()
    path = tmp_path / "m.onnx"
    path.write_bytes(data[: int(len(data) * share)])

    with pytest.raises(ModelError, match="cut short"):
        onnx_io.read_model(path)


def test_a_huge_sparse_file_is_refused_without_reading_it(tmp_path):
    """A bogus file of gigabytes costs neither time nor memory: 60 GB of holes would never be read in a test."""
    path = tmp_path / "m.onnx"
    with path.open("wb") as file:
        file.truncate(60_000_000_000)
    with pytest.raises(ModelError, match="limit is 32"):
        onnx_io.read_model(path)

    with path.open("wb") as file:
        file.truncate(2_100_000_000)
    with pytest.raises(ModelError, match="not an ONNX model"):
        onnx_io.read_model(path)


def test_a_model_beyond_what_protobuf_can_hold_is_refused_with_the_way_out(tmp_path):
    """A well-formed outer structure of more than 2 GB gets the advice to use external data."""
    path = tmp_path / "m.onnx"
    length = 2_200_000_000
    varint, rest = b"", length
    while rest:
        varint, rest = varint + bytes([(rest & 0x7F) | (0x80 if rest >> 7 else 0)]), rest >> 7
    with path.open("wb") as file:
        file.write(b"\x08\x08\x3a" + varint)  # ir_version 8, then a graph of that many bytes
        file.truncate(file.tell() + length)

    with pytest.raises(ModelError, match="external data"):
        onnx_io.read_model(path)


def test_folders_and_absent_files_are_named_as_such(tmp_path):
    """The two slips people make with paths."""
    with pytest.raises(ModelError, match="is a folder"):
        onnx_io.read_model(tmp_path)
    with pytest.raises(ModelError, match="no model file"):
        onnx_io.read_model(tmp_path / "absent.onnx")


def test_a_graph_that_onnx_refuses_is_quoted(tmp_path):
    """A graph reading a tensor that nobody makes is refused by the checker, whose words are passed on."""
    model = small()
    model.graph.node[0].input[0] = "nobody"
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())

    with pytest.raises(ModelError, match=r"not valid ONNX.*nobody"):
        onnx_io.read_model(path)


def test_external_data_are_loaded_and_counted(external):
    """T5: the size is both files, and the weights arrive."""
    data = external.parent / "m.onnx.data"

    model = onnx_io.read_model(external)

    assert np.array_equal(
        numpy_helper.to_array(small().graph.initializer[0]), numpy_helper.to_array(model.graph.initializer[0])
    )
    assert (data,) == onnx_io.external_files(external)
    assert external.stat().st_size + data.stat().st_size == onnx_io.model_size_bytes(external)


def test_a_model_moved_without_its_data_gives_a_clear_error(external):
    """T5: the message names the missing file and the folder it was looked for in."""
    (external.parent / "m.onnx.data").unlink()

    with pytest.raises(ModelError, match=r"m\.onnx\.data.*no such file") as caught:
        onnx_io.read_model(external)

    assert str(external.parent) in str(caught.value)


@pytest.mark.parametrize("location", ["../secret", "a/../../secret", "/etc/passwd", "C:\\secret", "..\\secret", ""])
def test_external_data_outside_the_folder_are_refused(external, location):
    """A model may not name files elsewhere on the machine, in the notation of any system."""
    (external.parent.parent / "secret").write_bytes(b"x" * 100_000)
    relocate(external, location)

    with pytest.raises(ModelError, match="refused"):
        onnx_io.read_model(external)


def test_external_data_behind_a_link_that_leaves_the_folder_are_refused(external):
    """A symbolic link is followed before it is judged."""
    secret = external.parent.parent / "secret"
    (external.parent / "m.onnx.data").rename(secret)
    (external.parent / "m.onnx.data").symlink_to(secret)

    with pytest.raises(ModelError, match="refused"):
        onnx_io.read_model(external)


def test_external_data_that_are_too_short_are_refused(external):
    """A data file cut short is noticed by the ranges of its tensors."""
    os.truncate(external.parent / "m.onnx.data", 100)

    with pytest.raises(ModelError, match="cut short or belongs to another model"):
        onnx_io.read_model(external)


def test_the_size_limit_counts_external_data(external):
    """A tiny model file cannot bring in more than the limit beside it."""
    with pytest.raises(ModelError, match="limit"):
        onnx_io.read_model(external, max_bytes=external.stat().st_size + 10)


def test_ops_and_weights_inside_branches_are_counted():
    """T3: what is in the bodies of control flow counts."""
    model = with_if()

    assert dict(onnx_io.count_ops(model)) == {"If": 1, "MatMul": 2}
    assert onnx_io.weights_count(model) == 8
    assert len(list(onnx_io.walk_graphs(model))) == 3


def test_written_models_are_equal_when_they_compute_equally(tmp_path):
    """Order of initializers, producer, documentation and unused imports make no difference; a weight does."""
    one, two, other = small(), small(), small()
    two.producer_name, two.doc_string = "somebody", "words"
    two.graph.initializer.sort(key=lambda tensor: tensor.name, reverse=True)
    one.graph.initializer.sort(key=lambda tensor: tensor.name)
    two.opset_import.append(helper.make_opsetid("com.unused", 1))
    other.graph.initializer[1].raw_data = np.zeros(64, np.float32).tobytes()

    paths = [onnx_io.write_model(model, tmp_path / str(i)) for i, model in enumerate((one, two, other))]

    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert paths[0].read_bytes() != paths[2].read_bytes()


def test_writing_and_copying_leave_the_model_as_it_was(tmp_path):
    """Neither write_model nor clone modify, and clone is deep."""
    model = small()
    before = model.SerializeToString()

    onnx_io.write_model(model, tmp_path)
    copy = onnx_io.clone(model)
    assert copy.SerializeToString() == before
    copy.graph.initializer[0].name = "changed"

    assert model.SerializeToString() == before


def test_large_models_are_written_with_external_data_and_read_back(tmp_path, monkeypatch):
    """Above the limit weights go to a second file in the same folder, and nothing is lost."""
    monkeypatch.setattr(onnx_io, "SINGLE_FILE_BYTES", 1000)

    path = onnx_io.write_model(small(), tmp_path)

    assert [tmp_path / "model.onnx.data"] == list(onnx_io.external_files(path))
    assert path.stat().st_size < 1000
    back = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx_io.read_model(path).graph.initializer}
    for tensor in small().graph.initializer:
        assert np.array_equal(numpy_helper.to_array(tensor), back[tensor.name])


def test_upgrading_the_opset_says_what_happened():
    """A newer opset than asked for is left alone; an older one is converted, in a copy."""
    model = small()
    same, changed, note = onnx_io.upgrade_opset(model, 13)
    assert (model, False, "opset 17 is enough") == (same, changed, note)

    newer, changed, note = onnx_io.upgrade_opset(model, 18)

    assert (onnx_io.opset_of(newer), changed, onnx_io.opset_of(model)) == (18, True, 17)
    assert note == "opset upgraded from 17 to 18"


def test_an_opset_that_cannot_be_upgraded_is_an_error_that_says_why():
    """An op that the default domain does not have cannot be converted."""
    model = small()
    model.graph.node[0].op_type = "NoSuchOp"

    with pytest.raises(ModelError, match="cannot be upgraded to 18"):
        onnx_io.upgrade_opset(model, 18)


def one_op(**changed: int) -> onnx.ModelProto:
    """Identity over `x`, float32 unless told otherwise."""
    nodes = [helper.make_node("Identity", ["x"], ["y"], name="node_name")]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["dim_name", 4]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "graph_name", values[:1], values[1:])
    graph.value_info.append(helper.make_tensor_value_info("value_name", TensorProto.FLOAT, [1]))
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="maker_name"
    )
    for name, kind in changed.items():
        next(v for v in (*graph.input, *model.graph.input, *model.graph.output) if v.name == name)
        for value in (*model.graph.input, *model.graph.output):
            if value.name == name:
                value.type.tensor_type.elem_type = kind
    return model


@pytest.mark.parametrize("kind", [0, 33, 99, 2**31 - 1])
def test_an_input_of_an_unknown_element_type_is_told(kind):
    """With its number; an output of one is only named so, since nobody feeds it."""
    with pytest.raises(ModelError, match=rf"input 'x' has the element type {kind}, which this onnx"):
        onnx_io.model_inputs(one_op(x=kind))
    (output,) = onnx_io.model_outputs(one_op(y=kind))

    assert output.dtype == "unknown"


@pytest.mark.parametrize("name", ["node_name", "graph_name", "value_name", "maker_name", "dim_name", "Identity"])
def test_a_name_that_is_no_text_is_told(tmp_path, name):
    """Wherever it stands: nobody after this line mixes bytes with text."""
    path = tmp_path / "m.onnx"
    path.write_bytes(one_op().SerializeToString())
    onnx_io.read_model(path)
    path.write_bytes(one_op().SerializeToString().replace(name.encode(), b"\xff\xfe" + name.encode()[2:]))

    with pytest.raises(ModelError, match="that is no UTF-8"):
        onnx_io.read_model(path)
