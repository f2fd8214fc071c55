"""The key of a compiled engine, and the folder that keeps engines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends.base import BackendError
from backends.trt_cache import EngineCache, external_files, key, model_digest

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402


def external(name: str, location: str) -> TensorProto:
    tensor = numpy_helper.from_array(np.ones((2, 2), np.float32), name)
    onnx.external_data_helper.set_external_data(tensor, location, offset=0, length=16)
    tensor.ClearField("raw_data")
    return tensor


def save(path: Path, *tensors: TensorProto, nested: TensorProto | None = None) -> Path:
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    if nested is not None:
        constant = helper.make_node("Constant", [], ["c"], value=nested)
        branch = helper.make_graph([constant], "b", [], [helper.make_tensor_value_info("c", TensorProto.FLOAT, [2, 2])])
        nodes.append(helper.make_node("If", ["cond"], ["z"], then_branch=branch, else_branch=branch))
    info = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 2])
    path.write_bytes(helper.make_model(helper.make_graph(nodes, "g", [info], [info], tensors)).SerializeToString())
    return path


def test_external_files_are_found_in_initializers_and_subgraphs(tmp_path):
    """Weights can hide in an If branch's constant."""
    for name in ("a.bin", "b.bin"):
        (tmp_path / name).write_bytes(bytes(16))
    path = save(tmp_path / "m.onnx", external("w", "a.bin"), external("v", "a.bin"), nested=external("c", "b.bin"))
    assert [tmp_path / "a.bin", tmp_path / "b.bin"] == external_files(path)


def test_model_digest_changes_with_external_data(tmp_path):
    """Same ONNX file, other weights beside it: another engine."""
    (tmp_path / "a.bin").write_bytes(bytes(16))
    path = save(tmp_path / "m.onnx", external("w", "a.bin"))
    before = model_digest(path)
    (tmp_path / "a.bin").write_bytes(b"\1" * 16)
    assert before != model_digest(path)


@pytest.mark.parametrize("location", ["../a.bin", "/etc/passwd", "sub/../../a.bin"])
def test_external_data_outside_the_folder_is_refused(tmp_path, location):
    """A model from elsewhere must not make the runtime read other files."""
    (tmp_path / "a.bin").write_bytes(bytes(16))
    (tmp_path / "in" / "sub").mkdir(parents=True)
    with pytest.raises(BackendError, match="outside its folder"):
        external_files(save(tmp_path / "in" / "m.onnx", external("w", location)))


def test_missing_external_data_is_named(tmp_path):
    """The parser's own message would name neither file."""
    with pytest.raises(BackendError, match=r"'gone\.bin', which is not beside it"):
        external_files(save(tmp_path / "m.onnx", external("w", "gone.bin")))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=80))
def test_any_bytes_give_files_or_a_backend_error(tmp_path, data):
    """Untrusted bytes end in an answer or a BackendError, nothing else."""
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    try:
        files = external_files(path)
    except BackendError:
        files = []
    assert files == []


def test_key_ignores_order_and_sees_every_fact():
    """Two ways to say the same machine share an engine; another version doesn't."""
    assert key(a=1, b="x") == key(b="x", a=1)
    assert key(a=1, b="x") != key(a=1, b="y")


def test_cache_gives_back_what_was_put(tmp_path):
    """And makes its folder on the way."""
    cache = EngineCache(tmp_path / "engines")
    cache.put("k.engine", b"plan")
    assert cache.get("k.engine") == b"plan"
    assert {"k.engine", "k.engine.sha256"} == {path.name for path in (tmp_path / "engines").iterdir()}


@pytest.mark.parametrize("damage", ["truncate", "flip", "no digest", "binary digest"])
def test_damaged_engine_counts_as_absent(tmp_path, damage):
    """Deserialising a damaged plan can end the process, so it must not get that far."""
    cache = EngineCache(tmp_path)
    cache.put("k", b"plan")
    if damage == "truncate":
        (tmp_path / "k").write_bytes(b"pl")
    elif damage == "flip":
        (tmp_path / "k").write_bytes(b"plaN")
    elif damage == "no digest":
        (tmp_path / "k.sha256").unlink()
    else:
        (tmp_path / "k.sha256").write_bytes(b"\xff\xfe")
    assert None is cache.get("k")


def test_no_folder_means_no_cache(tmp_path, monkeypatch):
    """`cache_dir=None` writes nothing anywhere."""
    monkeypatch.chdir(tmp_path)
    cache = EngineCache(None)
    cache.put("k", b"plan")
    assert None is cache.get("k")
    assert list(tmp_path.iterdir()) == []
