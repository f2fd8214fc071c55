"""The artifact cache: content-addressed, and honest about damage."""

from __future__ import annotations

import contextlib
import errno
import json
import multiprocessing
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from profiler import artifacts, onnx_io
from profiler.artifacts import ArtifactStore, backend_options, cache_key, merged, runs_on, source_sha256
from profiler.errors import ModelError, StoreError, VariantError
from profiler.variants import registry
from profiler.variants.base import Recipe, VariantResult


def small(value=1.0, width=64):
    weight = numpy_helper.from_array(np.full((width, width), value, np.float32), "w")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", width]) for name in "xy")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@dataclass(frozen=True)
class Counting(Recipe):
    """Scales the weights, and counts how often it really worked."""

    name: ClassVar[str] = "counting"
    looks_at_calibration: ClassVar[bool] = False
    calls: ClassVar[list[str]] = []

    factor: float = 2.0

    def apply(self, model, calibration):
        self.calls.append(self.text)
        result = onnx_io.clone(model)
        tensor = result.graph.initializer[0]
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(self.factor), tensor.name))
        return VariantResult(result, {"factor": self.factor, "none": None}, ("scaled.",), changed=True)


@dataclass(frozen=True)
class Failing(Recipe):
    """Raises what it is given."""

    name: ClassVar[str] = "failing"
    error: Exception

    def apply(self, model, calibration):
        raise self.error

    @property
    def text(self):
        return self.name


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source" / "m.onnx"
    path.parent.mkdir()
    onnx.save(small(), path)
    return path


@pytest.fixture
def store(tmp_path):
    Counting.calls.clear()
    return ArtifactStore(tmp_path / "cache")


def entries(store):
    return sorted((store.folder / "entries").iterdir())


def left_over(store):
    return list((store.folder / "tmp").iterdir())


def test_equal_models_have_one_hash_and_other_models_another(store):
    """The address is the content: producer and order do not matter, a weight does."""
    same = small()
    same.producer_name = "another exporter"

    assert store.put(small()) == store.put(same)
    assert store.put(small()) != store.put(small(2.0))
    assert left_over(store) == []


def test_what_was_put_is_found_whole(store):
    """The stored file is a model again, and its hash holds."""
    sha = store.put(small())

    assert store.verify(sha)
    assert np.array_equal(
        numpy_helper.to_array(small().graph.initializer[0]),
        numpy_helper.to_array(onnx_io.read_model(store.path(sha)).graph.initializer[0]),
    )
    assert {"model.onnx": store.path(sha)} == store.files(sha)


def test_a_model_file_is_stored_with_its_external_data(store, tmp_path):
    """Both files travel, and the hash covers both."""
    path = tmp_path / "big.onnx"
    onnx.save(small(), path, save_as_external_data=True, location="weights.bin", size_threshold=10)

    sha = store.put(path)

    assert list(store.files(sha)) == ["model.onnx", "weights.bin"]
    onnx_io.read_model(store.path(sha))
    data = store.files(sha)["weights.bin"]
    data.write_bytes(data.read_bytes()[:-1] + b"\x01")
    assert not store.verify(sha)


def test_an_unknown_or_malformed_hash_is_an_error_and_never_a_path(store):
    """Hashes come from records, which are untrusted: no dots, no slashes."""
    with pytest.raises(StoreError, match="not in"):
        store.path("0" * 64)
    with pytest.raises(StoreError, match="64 hexadecimal"):
        store.path("../" * 21 + "x")
    assert not store.verify("0" * 64)


def test_a_variant_is_made_once(store, source):
    """The second time the record comes from the cache, equal in every field."""
    first = store.make(source, Counting(), None, None)
    second = store.make(source, Counting(), None, None)

    assert first == second
    assert Counting.calls == ["counting"]
    assert dict(first.facts) == {"factor": 2.0, "none": None}
    assert first.notes == ("scaled.",)
    assert first.size_bytes == store.path(first.sha256).stat().st_size
    assert first.changed


def test_the_cache_survives_the_process(store, source):
    """Another store on the same folder finds what the first one made."""
    record = store.make(source, Counting(), None, None)

    assert record == ArtifactStore(store.folder).make(source, Counting(), None, None)
    assert len(Counting.calls) == 1


def test_whatever_decides_the_result_is_in_the_key(source, monkeypatch):
    """Model, recipe, calibration rows where they are looked at, and versions; not the path."""
    static, fp32 = registry.make("int8-static"), registry.make("fp32")
    sha = source_sha256(source)
    base = cache_key(sha, static, "rows")

    assert base != cache_key("0" * 64, static, "rows")
    assert base != cache_key(sha, registry.make("int8-static{per_channel=true}"), "rows")
    assert base != cache_key(sha, static, "other rows")
    assert cache_key(sha, fp32, "rows") == cache_key(sha, fp32, None)
    monkeypatch.setattr(artifacts, "__version__", "9.9.9")
    assert base != cache_key(sha, static, "rows")


def test_the_source_hash_covers_external_data_and_not_the_path(tmp_path):
    """A changed data file is a changed model; a moved model is the same."""
    one, two = tmp_path / "one" / "m.onnx", tmp_path / "two" / "renamed.onnx"
    for path in (one, two):
        path.parent.mkdir()
        onnx.save(small(), path, save_as_external_data=True, location="w.bin", size_threshold=10)
    same = source_sha256(one)
    assert same == source_sha256(two)

    data = bytearray((two.parent / "w.bin").read_bytes())
    data[5] ^= 1
    (two.parent / "w.bin").write_bytes(data)

    assert same != source_sha256(two)


def flip_a_byte(store, record):
    path = store.path(record.sha256)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate_the_model(store, record):
    path = store.path(record.sha256)
    path.write_bytes(path.read_bytes()[:100])


def remove_the_model(store, record):
    shutil.rmtree(store.path(record.sha256).parent)


def truncate_the_entry(store, record):
    entry = entries(store)[0]
    entry.write_text(entry.read_text()[:50])


def falsify_the_entry(store, record):
    entry = entries(store)[0]
    data = json.loads(entry.read_text())
    data["record"]["size_bytes"] = 1
    entry.write_text(json.dumps(data))


def empty_the_entry(store, record):
    entries(store)[0].write_bytes(b"")


def add_a_stray_file(store, record):
    (store.path(record.sha256).parent / "stray.data").write_bytes(b"x")


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_byte,
        truncate_the_model,
        remove_the_model,
        truncate_the_entry,
        falsify_the_entry,
        empty_the_entry,
        add_a_stray_file,
    ],
)
def test_a_damaged_entry_is_noticed_and_made_again(store, source, damage):
    """Every kind of damage leads to the right file again, with a note; the time after, the cache is clean."""
    first = store.make(source, Counting(), None, None)
    damage(store, first)

    again = store.make(source, Counting(), None, None)

    assert (first.sha256, first.size_bytes) == (again.sha256, again.size_bytes)
    assert store.verify(again.sha256)
    assert any("damaged" in note and "made again" in note for note in again.notes)
    assert len(Counting.calls) == 2
    healed = store.make(source, Counting(), None, None)
    assert not any("damaged" in note for note in healed.notes)
    assert len(Counting.calls) == 2
    assert left_over(store) == []


def test_a_library_that_fails_becomes_a_variant_error(store, source):
    """The message names the variant, the model and what the library said; nothing is cached or left over."""
    with pytest.raises(VariantError, match=r"failing.*m\.onnx.*ValueError: the library said no"):
        store.make(source, Failing(ValueError("the library said no")), None, None)
    with pytest.raises(VariantError, match="more memory"):
        store.make(source, Failing(MemoryError()), None, None)

    assert entries(store) == []
    assert left_over(store) == []


def test_a_model_that_cannot_be_read_is_a_model_error(store, tmp_path):
    """The border's own message comes through."""
    with pytest.raises(ModelError, match="no model file"):
        store.make(tmp_path / "absent.onnx", Counting(), None, None)


@pytest.mark.parametrize("where", ["write_model", "_write_entry"])
def test_a_full_disk_gives_a_clear_error_and_leaves_no_half_file(store, source, monkeypatch, where):
    """Half of the bytes are written when the disk is full: neither an object nor an entry appears."""

    def full(*args, **kwargs):
        if where == "write_model":
            (args[1] / "model.onnx").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*((artifacts, where) if where == "write_model" else (ArtifactStore, where)), full)

    with pytest.raises(StoreError, match=r"no space left.*free") as caught:
        store.make(source, Counting(), None, None)

    assert str(store.folder) in str(caught.value)
    assert entries(store) == []
    assert left_over(store) == []
    for path in store.folder.glob("objects/*/*"):
        assert store.verify(path.name)


def test_a_folder_that_cannot_be_written_is_an_error_that_names_it(tmp_path):
    """A file stands where the cache should be."""
    (tmp_path / "cache").write_text("in the way")

    with pytest.raises(StoreError, match="cannot be written"):
        ArtifactStore(tmp_path / "cache")


def test_the_compressed_size_shows_what_pruning_does(store, tmp_path):
    """T9: zeros change nothing on disk and something after compression."""
    path = tmp_path / "m.onnx"
    model = small()
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w"))
    onnx.save(model, path)

    dense = store.make(path, registry.make("fp32"), None, None)
    pruned = store.make(path, registry.make("prune-magnitude{sparsity=0.9}"), None, None)

    assert dense.size_bytes == pruned.size_bytes
    assert pruned.compressed_bytes < 0.5 * dense.compressed_bytes


def test_a_variant_equal_to_an_earlier_one_is_merged_with_it(store, tmp_path):
    """Nothing was quantized: the artifact is the reference's, and the record says so; the first name wins."""
    path = tmp_path / "m.onnx"
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Sigmoid", ["x"], ["y"])], "g", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)

    rows = {"x": np.ones((4, 4), np.float32)}
    records = []
    for text in ("fp32", "int8-dynamic", "int8-static", "bf16"):
        records.append(merged(store.make(path, registry.make(text), rows, "rows"), records))

    assert [record.equal_to for record in records] == [None, "fp32", "fp32", None]
    assert len({record.sha256 for record in records}) == 1


def test_load_options_travel_in_the_record(store, source):
    """bf16 is the same bytes loaded differently: not merged, tied to its backend, options readable from the record."""
    record = store.make(source, registry.make("bf16"), None, None)

    assert backend_options(record, "ov") == {"precision": "bf16"}
    assert backend_options(record, "ort") == {}
    assert (runs_on(record, "ov"), runs_on(record, "ort")) == (True, False)
    assert runs_on(store.make(source, registry.make("fp32"), None, None), "ort")


def test_what_killed_processes_left_is_swept_after_a_day(store):
    """Old temporary folders go, fresh ones may belong to somebody at work."""
    import os

    old, fresh = store.folder / "tmp" / "old", store.folder / "tmp" / "fresh"
    for folder in (old, fresh):
        folder.mkdir()
        (folder / "half").write_bytes(b"x")
    os.utime(old, (1, 1))

    ArtifactStore(store.folder)

    assert [fresh] == left_over(store)


def _make_many(folder: str, source: str, damage: bool, queue: multiprocessing.Queue[Mapping[str, str] | str]) -> None:
    try:
        store = ArtifactStore(Path(folder))
        found = {}
        for turn in range(6):
            for factor in (2.0, 3.0):
                record = store.make(Path(source), Counting(factor), None, None)
                found[record.variant] = record.sha256
                if damage and turn % 2:
                    # Somebody else may be replacing that very file.
                    with contextlib.suppress(OSError, StoreError):
                        flip_a_byte(store, record)
        queue.put(found)
    except Exception as error:
        queue.put(f"{type(error).__name__}: {error}")


@pytest.mark.process
@pytest.mark.parametrize("damage", [False, True])
def test_processes_at_work_at_the_same_time_do_not_corrupt(store, source, damage):
    """Four processes make the same artifacts, one of them damaging files: all agree, and what is left is sound."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [
        context.Process(target=_make_many, args=(str(store.folder), str(source), damage and i == 0, queue))
        for i in range(4)
    ]
    for worker in workers:
        worker.start()
    results = [queue.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join(timeout=30)

    assert all(result == results[0] for result in results), results
    assert {"counting", "counting{factor=3.0}"} == set(results[0])
    for factor in (2.0, 3.0):
        assert store.verify(store.make(source, Counting(factor), None, None).sha256)
    assert left_over(store) == []
