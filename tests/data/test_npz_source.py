"""npz files come from anywhere: hostile and broken ones are refused with words, good ones are read exactly."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from profiler.data.npz import read_npz
from profiler.errors import DataError


def npy(array: np.ndarray, **kwargs) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, **kwargs)
    return stream.getvalue()


def header(shape: tuple[int, ...], descr: str = "<f4") -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_come_back_exactly(tmp_path, save):
    """Every dtype and order that numpy writes without pickle is read as numpy reads it."""
    arrays = {
        "float": np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4),
        "fortran": np.asfortranarray(np.arange(24, dtype=np.int16).reshape(2, 3, 4)),
        "big_endian": np.arange(5, dtype=">i4"),
        "text": np.array(["a", "größer"]),
        "flag": np.array([True, False]),
        "empty": np.zeros((0, 4), np.float32),
    }
    save(tmp_path / "a.npz", **arrays)

    read = read_npz(tmp_path / "a.npz")

    assert list(arrays) == list(read)
    for name, array in arrays.items():
        assert array.dtype == read[name].dtype
        np.testing.assert_array_equal(array, read[name])


class Exploit:
    def __reduce__(self):
        return (exec, ("raise SystemExit('pickle was executed')",))


def test_pickles_are_refused_and_never_run(tmp_path):
    """An object array's payload is not unpickled."""
    np.savez(tmp_path / "a.npz", x=np.array([Exploit()], dtype=object))

    with pytest.raises(DataError, match="Python objects, which are never loaded"):
        read_npz(tmp_path / "a.npz")


def test_a_bare_pickle_member_is_refused(tmp_path):
    """numpy.load would try pickle for a member without the npy magic; we don't."""
    path = zipped(tmp_path / "a.npz", {"x.npy": pickle.dumps(Exploit())})

    with pytest.raises(DataError, match="no valid npy header"):
        read_npz(path)


@pytest.mark.parametrize("shape", [(2**40,), (2**31, 2**31), (10**6,), (2**62, 8)])
def test_a_header_that_claims_more_than_the_member_has_is_refused_before_allocating(tmp_path, shape):
    """A 200-byte file cannot ask for a terabyte."""
    path = zipped(tmp_path / "a.npz", {"x.npy": header(shape) + b"\0" * 16})

    with pytest.raises(DataError, match="cut off or forged"):
        read_npz(path)


def test_a_zip_bomb_is_refused_by_its_declared_size(tmp_path):
    """Sizes are added up before anything is unpacked."""
    content = npy(np.zeros((1000, 1000), np.float64))
    path = zipped(tmp_path / "a.npz", {f"x{i}.npy": content for i in range(4)})
    assert path.stat().st_size < 100_000

    with pytest.raises(DataError, match=r"unpacks to 0\.0 GB, at most 0\.0 GB"):
        read_npz(path, max_bytes=20_000_000)


def test_a_huge_header_is_refused(tmp_path):
    """Header parsing is limited: Python's literal parser can be exhausted by long ones."""
    content = b"\x93NUMPY\x02\x00" + (2_000_000).to_bytes(4, "little") + b"(" * 2_000_000
    path = zipped(tmp_path / "a.npz", {"x.npy": content})

    with pytest.raises(DataError, match="no valid npy header"):
        read_npz(path)


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_a_data_error(tmp_path, keep):
    """Wherever a download was cut."""
    path = tmp_path / "a.npz"
    np.savez(path, x=np.arange(1000.0))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])

    with pytest.raises(DataError, match=r"a\.npz"):
        read_npz(path)


def test_a_flipped_byte_is_found_by_the_checksum(tmp_path):
    """Corrupt data would otherwise become a slightly wrong accuracy."""
    path = tmp_path / "a.npz"
    np.savez(path, x=np.ones(1000))
    content = bytearray(path.read_bytes())
    content[4000] ^= 1
    path.write_bytes(bytes(content))

    with pytest.raises(DataError, match="CRC"):
        read_npz(path)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"notes.txt": b"hello"}, "no npy array"),
        ({"x.npy": b""}, "no valid npy header"),
        ({"x.npy": header((-1,)) + b"\0" * 4}, "forged"),
        ({"x.npy": npy(np.zeros(2, [("a", "f4")]))}, "structured"),
        ({"x.npy": npy(np.zeros(2, "M8[s]"))}, "dates"),
        ({f"{i}.npy": b"" for i in range(300)}, "300 arrays"),
    ],
)
def test_members_that_are_no_plain_arrays_are_refused(tmp_path, members, message):
    """Each with its own words."""
    with pytest.raises(DataError, match=message):
        read_npz(zipped(tmp_path / "a.npz", members))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_array_that_stands_twice_is_refused(tmp_path):
    """Readers differ in which one they take."""
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", npy(np.zeros(2)))
        archive.writestr("x.npy", npy(np.ones(2)))

    with pytest.raises(DataError, match="twice"):
        read_npz(tmp_path / "a.npz")


@pytest.mark.parametrize("position", range(0, 300, 7))
def test_random_damage_gives_a_data_error_or_the_array(tmp_path, position):
    """No other exception escapes for bytes overwritten in the local header, the npy header or the data."""
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=np.arange(64, dtype=np.float32))
    content = bytearray(path.read_bytes())
    content[position % len(content)] ^= 0xFF
    path.write_bytes(bytes(content))
    try:
        read = read_npz(path)
    except DataError:
        return
    else:
        np.testing.assert_array_equal(np.arange(64, dtype=np.float32), next(iter(read.values())))


def test_a_pipe_or_device_is_refused_before_it_is_opened(tmp_path):
    """Opening the pipe would wait for ever."""
    os.mkfifo(tmp_path / "rows.npz")
    with pytest.raises(DataError, match="is a pipe"):
        read_npz(tmp_path / "rows.npz")
    (tmp_path / "zero.npz").symlink_to("/dev/zero")
    with pytest.raises(DataError, match="is a device"):
        read_npz(tmp_path / "zero.npz")
