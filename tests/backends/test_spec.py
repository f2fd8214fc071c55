"""The text form of variants and backends parses back to itself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.spec import Spec, SpecError, parse, split_list

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,8}", fullmatch=True)
devices = st.none() | st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,6}(\.[0-9]{1,2})?", fullmatch=True)
options = st.dictionaries(
    st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True),
    st.from_regex(r"[A-Za-z0-9_.+/:|-]{1,8}", fullmatch=True),
    max_size=4,
)


@given(st.builds(Spec, names, devices, options))
def test_text_parses_back(spec):
    """`parse(str(spec)) == spec`, and equal specs hash alike."""
    again = parse(str(spec))

    assert spec == again
    assert hash(spec) == hash(again)


@given(st.lists(st.builds(Spec, names, devices, options), max_size=4))
def test_lists_split_outside_braces(specs):
    """Joined by commas and split again, the parts are the same."""
    assert [str(spec) for spec in specs] == split_list(",".join(map(str, specs)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ort", Spec("ort")),
        (" ort ", Spec("ort")),
        ("ov:GPU.0", Spec("ov", "GPU.0")),
        ("ov:GPU{precision=bf16}", Spec("ov", "GPU", {"precision": "bf16"})),
        ("int8{ per_channel = true , bits=8}", Spec("int8", None, {"per_channel": "true", "bits": "8"})),
        ("a{}", Spec("a")),
    ],
)  # fmt: skip
def test_forms_people_write(text, expected):
    """Devices, options, spaces and empty braces are read."""
    assert expected == parse(text)


def test_options_stand_sorted():
    """One case has one text, whatever the order it was written in."""
    assert str(parse("a{c=2,b=1}")) == "a{b=1,c=2}"


@pytest.mark.parametrize(
    "text", ["", "a{", "a}", "a{b}", "a{b=}", "a{B=1}", "a{b=1,b=2}", "a:b:c", "a b", "-a", "a{b={c=1}}", "a;rm"]
)
def test_anything_else_is_refused_with_its_text(text):
    """The error shows what came."""
    with pytest.raises(SpecError) as caught:
        parse(text)

    assert f"'{text.strip()}'" in str(caught.value) or f"'{text}'" in str(caught.value)
