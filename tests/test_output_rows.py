"""Outputs come back as they came, whatever their size; too many of them are told before they are kept."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from profiler import output_rows
from profiler.errors import StoreError
from profiler.output_rows import OutputRows, TooLarge

RNG = np.random.default_rng(0)
WHOLE = {
    "scores": RNG.random((10, 3)).astype(np.float32), "boxes": RNG.random((10, 4, 5)), "label": RNG.integers(0, 3, 10),
    "words": np.array(["a", "bb", "ccc", "d", "e", "f", "g", "", "i", "longest"]), "none": np.zeros((10, 0)),
    "flags": RNG.random(10) > 0.5,
}  # fmt: skip


def kept(folder, batch: int, **limits: int) -> OutputRows:
    rows = OutputRows(10, folder, **limits)
    for start in range(0, 10, batch):
        rows.add({name: array[start : start + batch] for name, array in WHOLE.items()})
    return rows


@pytest.mark.parametrize("batch", [1, 4, 10])
@pytest.mark.parametrize("in_memory_bytes", [0, 1 << 20])
def test_outputs_come_back_in_memory_and_from_files(tmp_path, batch, in_memory_bytes):
    """Every dtype and shape; what came so far is there before the end, and no file has a name."""
    rows = kept(tmp_path, batch, in_memory_bytes=in_memory_bytes)
    found = rows.outputs()

    assert list(tmp_path.iterdir()) == []
    assert isinstance(found["scores"], np.memmap) == (in_memory_bytes == 0)
    for name, array in WHOLE.items():
        np.testing.assert_array_equal(array, found[name])
        assert found[name].dtype.kind == array.dtype.kind
    early = OutputRows(10, tmp_path, in_memory_bytes=in_memory_bytes)
    early.add({name: array[:4] for name, array in WHOLE.items()})
    assert {name: len(array) for name, array in early.outputs().items()} == dict.fromkeys(WHOLE, 4)


def test_more_than_the_limit_is_told_with_the_first_rows(tmp_path):
    """Before anything is kept: the first rows say how large all of them will be. Text is counted as it comes."""
    rows = OutputRows(1_000_000, tmp_path, most_bytes=1_000_000)
    with pytest.raises(TooLarge, match=r"1000000 rows have 4.00 MB, at most 1.00 MB are kept.*--limit"):
        rows.add({"y": np.zeros((1, 1), np.float32)})
    text = OutputRows(10, tmp_path, most_bytes=100)
    with pytest.raises(TooLarge, match="at most 100 B"):
        text.add({"y": np.array(["a" * 50])})

    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_told_before_it_is_full(tmp_path, monkeypatch):
    """The run database needs some of it."""
    monkeypatch.setattr(output_rows.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 300 << 20})())
    rows = OutputRows(100, tmp_path)
    with pytest.raises(TooLarge, match=rf"in '{tmp_path}' 315 MB are free"):
        rows.add({"y": np.zeros((1, 1 << 20), np.uint8)})


def test_memory_stays_that_of_a_batch(tmp_path):
    """A hundred times as many rows as are in memory at once."""
    batch = np.zeros((1, 1 << 20), np.uint8)
    rows = OutputRows(100, tmp_path, in_memory_bytes=4 << 20)
    tracemalloc.start()
    for value in range(100):
        batch[:] = value
        rows.add({"y": batch})
    found = rows.outputs()["y"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert found[:, 0].tolist() == list(range(100))
    assert peak < 8 << 20


def test_what_is_kept_in_a_file_is_read_back_and_nothing_else_is(tmp_path):
    """A file of another form counts as none, so that it is made again."""
    path = tmp_path / "kept.bin"
    assert output_rows.read(path) is None
    output_rows.write(path, WHOLE)
    found = output_rows.read(path)
    for name, array in WHOLE.items():
        np.testing.assert_array_equal(array, found[name])
    path.write_bytes(path.read_bytes()[:-1])

    assert output_rows.read(path) is None
    assert [file.name for file in tmp_path.iterdir()] == ["kept.bin"]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    """With the system's word for it."""
    with pytest.raises(StoreError, match=r"cannot write the model's outputs to '.*gone'"):
        output_rows.write(tmp_path / "gone" / "kept.bin", WHOLE)
