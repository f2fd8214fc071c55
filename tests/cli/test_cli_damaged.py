"""A run of which some stored bytes became others: what is left of it is read and shown, and what is missing is named."""

from __future__ import annotations

import json
import shutil
import sqlite3

import numpy as np
import pytest

from profiler.store import DATABASE_NAME

pytestmark = pytest.mark.process
COMMANDS = (("show",), ("frontier",), ("report",), ("show", "latest", "1"), ("show", "--json"), ("runs",))


@pytest.fixture
def damaged(finished, tmp_path):
    """`damaged(*statements)`: a copy of the run after these."""

    def make(*statements: str):
        shutil.copy(finished / DATABASE_NAME, tmp_path / DATABASE_NAME)
        connection = sqlite3.connect(tmp_path / DATABASE_NAME)
        with connection:
            for statement in statements:
                connection.execute(statement)
        connection.close()
        return tmp_path

    return make


@pytest.mark.parametrize("table", ["artifacts", "processes", "blocks", "qualities", "failures"])
@pytest.mark.parametrize("which", ["id = (select max(id) from {table})", "1 = 1"], ids=["one", "all"])
def test_records_that_cannot_be_read_are_named_and_the_rest_is_shown(edgeprof, damaged, table, which):
    """One of a kind, or all of it."""
    out = damaged(f"update {table} set record = replace(record, '\"', '') where {which.format(table=table)}")
    kind = {
        "artifacts": "Artifact",
        "processes": "Process",
        "blocks": "Block",
        "qualities": "Quality",
        "failures": "Failure",
    }
    for command in COMMANDS:
        told = edgeprof(*command, "--out", out)
        assert told.code == 0, told.err
        if command in (("show",), ("frontier",)):
            assert f"{kind[table]}Record" in " ".join(told.out.split())
            assert "damaged and left out" in " ".join(told.out.split())
    notes = json.loads(edgeprof("show", "--json", "--out", out).out)["notes"]
    page = next(out.glob("*/report.html")).read_text(encoding="utf-8")

    assert [note for note in notes if "damaged and left out" in note]
    assert "damaged and left out" in page


def test_any_bytes_become_words_or_figures(edgeprof, finished, tmp_path):
    """Bytes of the file overwritten anywhere: every command ends with an answer or with the reason why there is none."""
    whole = (finished / DATABASE_NAME).read_bytes()
    random = np.random.default_rng(0)
    codes = []
    for _ in range(25):
        broken = bytearray(whole)
        # Behind the first page, which holds what makes the file a database.
        for place in random.integers(4096, len(whole), 12):
            broken[place] = int(random.integers(0, 256))
        (tmp_path / DATABASE_NAME).write_bytes(broken)
        for command in (("show",), ("frontier",), ("show", "--json"), ("runs",)):
            told = edgeprof(*command, "--out", tmp_path)
            assert told.code in (0, 2), told.err
            assert "bug in edgeprof" not in told.err, told.err
            assert len(told.err) < 2000
            codes.append(told.code)

    assert 0 in codes
