"""The end of what a child wrote is kept, whatever it wrote and however it ends, and nothing of it moves a cursor."""

from __future__ import annotations

import os
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.targets.log import KEPT_BYTES, FileLog, TailLog, clean


@pytest.mark.parametrize("kind", [FileLog, TailLog])
def test_the_end_of_a_log_is_kept(kind):
    """All of a short one, the end of a long one, any bytes."""
    log = kind()
    child = os.dup(log.handle)
    log.started()
    os.write(child, b"short\xff")
    short = log.text()
    for _ in range(30):
        os.write(child, b"x" * 10_000)
    os.write(child, b"the end")
    long = log.text()
    os.close(child)
    after = log.text()
    log.close()

    assert short == "short\ufffd"
    assert len(long) == KEPT_BYTES
    assert long.endswith("xthe end")
    assert after == long


def test_a_log_is_closed_while_somebody_holds_its_other_end():
    """A grandchild that lives on: neither closing waits for it, nor does closing twice matter."""
    log = TailLog()
    child = os.dup(log.handle)
    log.started()
    log.close()
    log.close()

    with pytest.raises(BrokenPipeError):
        os.write(child, b"x")
    os.close(child)


def test_a_log_that_was_never_used_is_closed():
    """The command could not be started."""
    log = TailLog()
    handles = [log._from_child, log._to_parent, log._woken, log._wake]
    log.close()

    for handle in handles:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(handle)


@given(st.text())
def test_clean_text_is_printable_and_as_long_as_it_was(text):
    """One character for one; line ends and tabs become spaces, or stay where they are asked for."""
    assert clean(text).isprintable()
    assert len(clean(text)) == len(text) == len(clean(text, lines=True))
    assert set(clean(text, lines=True)) - set("\n\t") <= set(filter(str.isprintable, clean(text) + "?"))


@pytest.mark.parametrize("text", [string.printable.rstrip("\n\r\t\x0b\x0c"), "äöü × − µ 字 🙂", ""])
def test_what_may_be_printed_stays(text):
    """Signs of all languages."""
    assert clean(text) == text


@pytest.mark.parametrize(
    "char", ["\x1b", "\x07", "\r", "\x7f", "\x9b", "\x00", "\u202e", "\u200b", "\u2066", "\ufeff", "\u2028", "\x08"]
)
def test_what_moves_or_hides_is_gone(char):
    """Escapes, returns, one-byte controls, writing from the right, zero width, other line ends."""
    assert clean(f"a{char}b") == "a?b" == clean(f"a{char}b", lines=True)
