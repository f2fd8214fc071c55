"""Frames carry what was put in, and everything else is refused in words before memory is spent on it."""

from __future__ import annotations

import io
import json
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from profiler import wire
from profiler.wire import WireError

DTYPES = st.one_of(
    hnp.integer_dtypes(endianness="?"), hnp.unsigned_integer_dtypes(endianness="?"),
    hnp.floating_dtypes(endianness="?", sizes=(16, 32, 64)), hnp.boolean_dtypes(),
)  # fmt: skip
ARRAYS = st.dictionaries(
    st.text(max_size=8),
    hnp.arrays(DTYPES, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)),
    max_size=3,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def frame_of(header: object, payload: bytes = b"") -> io.BytesIO:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return io.BytesIO(struct.pack(">I", len(text)) + text + payload)


def written(header, arrays=None) -> bytes:
    stream = io.BytesIO()
    wire.write_frame(stream, header, arrays)
    return stream.getvalue()


@given(st.dictionaries(st.text(max_size=5).filter(lambda key: key != "arrays"), JSON, max_size=3), ARRAYS)
def test_a_frame_comes_back_as_it_was_written(header, arrays):
    """Header, names, dtypes, shapes and every bit of the arrays survive."""
    read_header, read_arrays = wire.read_frame(io.BytesIO(written(header, arrays)))

    assert header == read_header
    assert list(arrays) == list(read_arrays)
    for name, array in arrays.items():
        assert (array.dtype, array.shape) == (read_arrays[name].dtype, read_arrays[name].shape)
        assert array.tobytes() == read_arrays[name].tobytes()


@given(ARRAYS)
def test_packed_arrays_come_back(arrays):
    """What goes into the run database comes out of it."""
    unpacked = wire.unpack(wire.pack(arrays))

    assert {name: array.tobytes() for name, array in arrays.items()} == {n: a.tobytes() for n, a in unpacked.items()}


def test_arrays_that_are_not_contiguous_travel_in_c_order():
    """A transposed or strided view arrives as its values, not as its memory."""
    array = np.arange(24).reshape(4, 6)[::2, ::3].T
    _, arrays = wire.read_frame(io.BytesIO(written({}, {"a": array})))

    np.testing.assert_array_equal(array, arrays["a"])


def test_frames_follow_one_another_until_a_clean_end():
    """Reading goes on frame by frame and says None at the end, not an error."""
    stream = io.BytesIO(written({"n": 1}) + written({"n": 2}, {"a": np.ones(3)}))

    assert [wire.read_frame(stream)[0]["n"] for _ in range(2)] == [1, 2]
    assert wire.read_frame(stream) is None


@given(st.data())
def test_a_frame_cut_anywhere_is_refused(data):
    """Every cut inside a frame is a WireError, never a shorter array."""
    whole = written({"command": "time"}, {"a": np.arange(10)})
    cut = data.draw(st.integers(1, len(whole) - 1))

    with pytest.raises(WireError, match="middle of a message"):
        wire.read_frame(io.BytesIO(whole[:cut]))


@given(st.binary(max_size=200))
def test_random_bytes_are_an_error_of_the_wire_or_a_frame(garbage):
    """Nothing that arrives raises anything but WireError."""
    try:
        wire.read_frame(io.BytesIO(garbage))
    except WireError as error:
        assert str(error)  # noqa: PT017 (either outcome is fine)


@given(JSON)
def test_a_header_of_any_json_is_an_error_of_the_wire_or_a_frame(header):
    """A header of the wrong form is refused in words."""
    try:
        frame = wire.read_frame(frame_of(header))
    except WireError as error:
        assert "header" in str(error)  # noqa: PT017 (either outcome is fine)
    else:
        assert isinstance(frame[0], dict)


@given(
    st.one_of(
        st.sampled_from(
            ["f4", "<i8", "O", "V8", "U3", "S2", "M8[s]", "m8[s]", "c16", "i4,i4", "x", "f,", "(2,)i4", "(", "e", ">u2"]
        ),
        st.text(max_size=6),
        JSON,
    ),
    st.one_of(st.lists(st.integers(-3, 5), max_size=4), JSON),
)  # fmt: skip
def test_an_array_of_any_dtype_and_shape_is_numeric_or_refused(dtype, shape):
    """Whatever a header claims about an array, either plain numbers come out or a WireError."""
    try:
        _, arrays = wire.read_frame(
            frame_of({"arrays": [{"name": "a", "dtype": dtype, "shape": shape}]}, b"\0" * 10_000)
        )
    except WireError:
        return

    assert arrays["a"].dtype.kind in "biuf"


@pytest.mark.parametrize(
    "shape",
    [[2**40], [2**62, 2**62], [0, 10**30], [-1, -5], [1] * 80, [float("inf")], [None], ["3x"]],
    ids=str,
)
def test_impossible_shapes_are_refused(shape):
    """Huge, negative, infinite and too many dimensions: refused, and no memory is asked for them."""
    with pytest.raises(WireError):
        wire.read_frame(frame_of({"arrays": [{"name": "a", "dtype": "<f8", "shape": shape}]}, b"\0" * 64))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"arrays": [], "x": NaN}', "NaN is no JSON"), ('{"arrays": [], "x": -Infinity}', "-Infinity is no JSON"),
        ('{"arrays": [], "x": 1e999}', "the number 1e999"), ('{"arrays": [], "x": ' + "7" * 50 + "}", "50 digits"),
        ('{"arrays": [], "x": 0.' + "1" * 500 + "}", "the number 0.1"), ('{"arrays": {}}', "no list"), ("[]", "header"),
        ('{"arrays": [{"name": 5, "dtype": "<f4", "shape": []}]}', "header"),
        ('{"arrays": [{"name": "a", "dtype": "<f4,<f4", "shape": []}]}', "only numbers, booleans and text"),
        ('{"arrays": [{"name": "a", "dtype": "<f4", "shape": [1.5]}]}', "no size"),
        ('{"arrays": [{"name": "a", "dtype": "|u1", "shape": [0]}, {"name": "a", "dtype": "|u1", "shape": [0]}]}', "twice"),
    ],
)  # fmt: skip
def test_numbers_without_an_end_and_arrays_of_other_forms_are_refused(text, words):
    """Wherever they stand: nobody after this line sees an infinity, or reads digits for minutes."""
    with pytest.raises(WireError, match=words):
        wire.read_frame(frame_of(text.encode()))


def test_more_arrays_than_anybody_sends_are_refused():
    """Empty ones cost no bytes, but a place each."""
    several = [{"name": str(number), "dtype": "|u1", "shape": [0]} for number in range(wire.MAX_ARRAYS + 1)]

    assert len(wire.read_frame(frame_of({"arrays": several[1:]}))[1]) == wire.MAX_ARRAYS
    with pytest.raises(WireError, match="at most 4096"):
        wire.read_frame(frame_of({"arrays": several}))


def test_a_header_is_refused_by_the_limit_of_its_reader():
    """Who expects little reads little."""
    stream = io.BytesIO(written({"x": "y" * 500}))
    with pytest.raises(WireError, match="at most 100 are accepted"):
        wire.read_frame(stream, max_header_bytes=100)

    assert stream.tell() == 4


def test_memory_is_taken_for_what_came():
    """A payload that is announced and does not come costs nothing: 4 GB of it are not asked for."""
    import tracemalloc

    frame = frame_of({"arrays": [{"name": "a", "dtype": "|u1", "shape": [wire.MAX_PAYLOAD_BYTES]}]}, b"few")
    tracemalloc.start()
    with pytest.raises(WireError, match="3 of 4294967296 bytes came"):
        wire.read_frame(frame)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < 1 << 20


def test_a_huge_header_is_refused_before_it_is_read():
    """The announced length alone is enough to refuse."""

    class Endless:
        asked = 0

        def read(self, size):
            self.asked += size
            return struct.pack(">I", 0xFFFFFFFF)[:size] if self.asked <= 4 else b"x" * size

    stream = Endless()
    with pytest.raises(WireError, match="4294967295 bytes, at most"):
        wire.read_frame(stream)

    assert stream.asked == 4


def test_many_arrays_together_keep_to_the_limit():
    """The limit is on the sum, so that a thousand small arrays are no way around it."""
    frame = written({}, {str(index): np.zeros(10) for index in range(5)})

    with pytest.raises(WireError, match="'3'"):
        wire.read_frame(io.BytesIO(frame), max_payload_bytes=250)


def test_a_deeply_nested_header_is_refused():
    """JSON that exhausts the parser's stack is an error of the wire, not the end of the process."""
    with pytest.raises(WireError, match="header"):
        wire.read_frame(frame_of(b"[" * 200_000))


@pytest.mark.parametrize("array", [np.array([{}], object), np.zeros(2, "M8[s]"), np.zeros(1, "c8")])
def test_only_numbers_leave(array):
    """Objects, dates and complex numbers are refused by name before a byte is written."""
    stream = io.BytesIO()
    with pytest.raises(WireError, match="'odd'"):
        wire.write_frame(stream, {}, {"odd": array})

    assert stream.getvalue() == b""


WORDS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=6)


@given(st.lists(WORDS, max_size=6))
def test_text_comes_back(words):
    """As UTF-8 with lengths, in any shape; no signs are lost, and none but text is made of it."""
    array = np.array(words, dtype=np.str_)
    _, arrays = wire.read_frame(io.BytesIO(written({}, {"one": array, "two": array.reshape(1, -1), "n": np.arange(2)})))

    assert arrays["one"].tolist() == words
    assert (arrays["two"].shape, arrays["one"].dtype.kind) == ((1, len(words)), "U")
    np.testing.assert_array_equal(np.arange(2), arrays["n"])
    assert wire.unpack(wire.pack({"one": array}))["one"].tolist() == words


@pytest.mark.parametrize(
    ("fields", "data"),
    [
        ({"shape": [2], "bytes": 7}, b"\1\0\0\0\1\0\0"), ({"shape": [1], "bytes": 5}, b"\2\0\0\0a"),
        ({"shape": [1], "bytes": 5}, b"\1\0\0\0\xff"), ({"shape": [1], "bytes": 6}, b"\1\0\0\0ab"),
        ({"shape": [0], "bytes": 4}, b"\0\0\0\0"), ({"shape": [1], "bytes": True}, b""), ({"shape": [1]}, b""),
        ({"shape": [1], "bytes": 1 << 60}, b""), ({"shape": [1 << 31], "bytes": 1 << 31}, b""),
        ({"shape": [2000], "bytes": 4 * 2000 + 1000}, b"\xe8\3\0\0" + b"\0" * 4 * 1999 + b"a" * 1000),
    ],
)  # fmt: skip
def test_text_that_cannot_be_is_refused(fields, data):
    """Lengths that do not fit, bytes that are no text, and cells that would be wider than all of it together."""
    header = json.dumps({"arrays": [{"name": "t", "dtype": "utf8", **fields}]}).encode()
    with pytest.raises(WireError):
        wire.read_frame(io.BytesIO(len(header).to_bytes(4, "big") + header + data), max_payload_bytes=1_000_000)


def test_a_stored_bomb_takes_no_memory():
    """A megabyte that unpacks to a gigabyte: told after as much as it announces, or before, where that is too much."""

    def frame(announced: int) -> bytes:
        header = json.dumps({"arrays": [{"name": "a", "dtype": "|u1", "shape": [announced]}]}).encode()
        return len(header).to_bytes(4, "big") + header

    packer = zlib.compressobj(9)
    bombs = {}
    for announced in (1000, 1 << 30):
        packer = zlib.compressobj(9)
        parts = [
            packer.compress(frame(announced)),
            *(packer.compress(bytes(1 << 20)) for _ in range(256)),
            packer.flush(),
        ]
        bombs[announced] = b"".join(parts)
    tracemalloc.start()
    for bomb in bombs.values():
        assert len(bomb) < 400_000
        with pytest.raises(WireError, match=r"go on after their end|is not accepted"):
            wire.unpack(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < 20 << 20


def test_more_than_can_be_read_is_not_packed():
    """The same limit at both ends."""
    arrays = {"a": np.zeros(1000)}
    assert wire.unpack(wire.pack(arrays, max_payload_bytes=8000), max_payload_bytes=8000)["a"].shape == (1000,)
    with pytest.raises(WireError, match="8000 bytes of arrays are not stored"):
        wire.pack(arrays, max_payload_bytes=7999)


def test_a_file_of_arrays_is_read_when_it_is_looked_at(tmp_path):
    """Every dtype and shape, empty and single ones too; text and damage are read at once."""
    arrays = {
        "a": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.zeros((0, 5)), "c": np.array(7, np.int64),
        "d": np.array(["cat", "ö"]), "e": np.array([True, False]),
    }  # fmt: skip
    path = tmp_path / "kept.bin"
    with path.open("wb") as file:
        wire.write_frame(file, {}, arrays)
    found = wire.map_frame(path)

    assert isinstance(found["a"], np.memmap)
    for name, array in arrays.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(found[name], array)
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole + b"x", b"", whole[:10], zlib.compress(whole)):
        path.write_bytes(damaged)
        with pytest.raises(WireError):
            wire.map_frame(path)


def test_nan_in_a_header_is_refused():
    """A header is JSON, which has no NaN: None with a reason is what absence looks like."""
    stream = io.BytesIO()
    with pytest.raises(ValueError, match="JSON"):
        wire.write_frame(stream, {"cpu_s": float("nan")})

    assert stream.getvalue() == b""


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-7], lambda b: b"not zlib at all", lambda b: b"", lambda b: b[:9] + b"\xff" + b[10:]]
)
def test_damaged_stored_arrays_are_an_error_of_the_wire(damage):
    """A flipped or missing byte in a stored blob is told, not returned as numbers."""
    packed = wire.pack({"a": np.random.default_rng(0).random(100)})

    with pytest.raises(WireError):
        wire.unpack(damage(packed))


def test_a_reader_that_gives_single_bytes_is_fine():
    """Pipes hand out what they have."""

    class Slow(io.BytesIO):
        def read(self, size=-1):
            return super().read(min(size, 1))

    _, arrays = wire.read_frame(Slow(written({}, {"a": np.arange(5)})))

    np.testing.assert_array_equal(np.arange(5), arrays["a"])
