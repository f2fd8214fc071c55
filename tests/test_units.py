"""Numbers for people: read and written without surprises."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.base import EdgeprofError
from profiler import units


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (0.08031, "0.0803"), (12.44, "12.4"), (1284.4, "1,280"), (-0.5, "-0.500"), (999.6, "1,000"),
        (0.0009996, "0.00100"), (1e-7, "1.00e-07"), (2.5e9, "2.50e+09"), (float("inf"), "unbounded"),
        (float("nan"), "unbounded"),
    ],
)  # fmt: skip
def test_significant_digits(value, text):
    """Three significant digits, no exponent in the usual range, words where there is no number."""
    assert text == units.significant(value)


@given(st.floats(1e-6, 9.99e8), st.integers(1, 6))
def test_significant_keeps_the_value(value, digits):
    """What is shown is the value to within half a unit of its last digit."""
    shown = float(units.significant(value, digits).replace(",", ""))

    assert abs(shown - value) <= value * 0.5000001 * 10.0 ** (1 - digits)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.284e-4, "128 µs"),
        (0.0128, "12.8 ms"),
        (2.5, "2.50 s"),
        (3e-9, "3.00 ns"),
        (0.0, "0 ns"),
        (-0.002, "-2.00 ms"),
    ],
)
def test_durations_take_the_unit_that_suits_them(value, text):
    """Seconds come in, people's units go out."""
    assert text == units.seconds(value)


@pytest.mark.parametrize(("value", "text"), [(474_000, "474 kB"), (2.1e9, "2.10 GB"), (0, "0 B"), (999, "999 B")])
def test_sizes_are_decimal(value, text):
    """MB is a million bytes."""
    assert text == units.size(value)


@pytest.mark.parametrize(("value", "text"), [(-0.0012, "−0.12"), (0.005, "+0.50"), (0.0, "+0.00")])
def test_points_carry_their_sign(value, text):
    """A change always shows its direction, with a real minus sign."""
    assert text == units.points(value)


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (units.parse_seconds, "5ms", 0.005), (units.parse_seconds, " 0.5 s ", 0.5), (units.parse_seconds, "800us", 8e-4),
        (units.parse_seconds, "800µs", 8e-4), (units.parse_seconds, "2min", 120.0), (units.parse_seconds, ".5s", 0.5),
        (units.parse_seconds, "1e-3s", 1e-3), (units.parse_bytes, "512MB", 512_000_000), (units.parse_bytes, "2 GiB", 2 << 30),
        (units.parse_bytes, "64000B", 64_000),
    ],
)  # fmt: skip
def test_texts_with_units_are_read(read, text, value):
    """The forms the help texts show, spaces and decimals included."""
    assert value == pytest.approx(read(text))


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("1pt", 0.01, "points"), ("1%", 0.01, "points"), ("0.5 points", 0.005, "points"), ("2dB", 2.0, "own"),
        ("0.01", 0.01, None), ("1e-3", 1e-3, None), ("3", 3.0, None), ("0", 0.0, None),
    ],
)  # fmt: skip
def test_a_loss_says_whether_it_is_of_a_proportion(text, value, unit):
    """Points are of a proportion, dB are not, and a bare number leaves it to the metric."""
    assert units.parse_drop(text) == units.Drop(pytest.approx(value), unit)


def test_an_amount_of_memory_needs_its_unit():
    """`--max-memory 512` is 512 MB to a person and 512 bytes to a program."""
    with pytest.raises(EdgeprofError, match="512MB"):
        units.parse_bytes("512")


@pytest.mark.parametrize("read", [units.parse_seconds, units.parse_bytes, units.parse_drop])
@pytest.mark.parametrize(
    "text",
    [
        "",
        "ms",
        "fast",
        "-1ms",
        "1 parsec",
        "1,5ms",
        "nan",
        "inf",
        "1e999",
        "1e308GB",
        "1e308min",
        "5 m s",
        "0x10",
        "١٠ms5",
    ],
)
def test_other_texts_are_refused_with_an_example(read, text):
    """Negative, infinite, overflowing and unitless nonsense: one message that shows what was expected."""
    if read is units.parse_bytes and text == "1e308min":
        text = "1e308GiB"
    with pytest.raises(EdgeprofError, match="such as"):
        read(text)


def test_a_time_needs_its_unit():
    """5 could be seconds or milliseconds, so it is neither."""
    with pytest.raises(EdgeprofError, match="cannot read '5'"):
        units.parse_seconds("5")


@given(st.floats(0, 1e6), st.sampled_from(["s", "ms", "us", "min"]))
def test_scales_are_right(number, unit):
    """The unit's factor and nothing else."""
    factor = {"s": 1, "ms": 1e-3, "us": 1e-6, "min": 60}[unit]

    assert float(f"{number:.9f}") * factor == pytest.approx(units.parse_seconds(f"{number:.9f}{unit}"))
