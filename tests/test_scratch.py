"""What killed processes left is taken away, and nothing else."""

from __future__ import annotations

import time
from pathlib import Path

from profiler.scratch import STALE_AFTER_S, scratch_folder, sweep

LATER = time.time() + 100 * STALE_AFTER_S


def test_a_folder_is_gone_afterwards_and_never_while_it_is_used(tmp_path, monkeypatch):
    """However old it is."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with scratch_folder() as folder:
        sweep(tmp_path, LATER)
        assert list(tmp_path.iterdir()) == [Path(folder)]

    assert list(tmp_path.iterdir()) == []


def test_only_our_own_old_folders_are_swept(tmp_path):
    """No file, no link and what it leads to, no other program's folder, none of today."""
    elsewhere = tmp_path / "elsewhere"
    for name in ("edgeprof-a", "edgeprof.variant.b", "other-c"):
        (tmp_path / name / "inner").mkdir(parents=True)
        (tmp_path / name / "inner" / "file").write_text("x")
    elsewhere.mkdir()
    (elsewhere / "kept").write_text("x")
    (tmp_path / "edgeprof-link").symlink_to(elsewhere)
    (tmp_path / "edgeprof-file").write_text("x")
    sweep(tmp_path)
    assert (tmp_path / "edgeprof-a" / "inner" / "file").is_file()
    sweep(tmp_path, LATER)

    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "edgeprof-file",
        "edgeprof-link",
        "elsewhere",
        "other-c",
    ]
    assert (elsewhere / "kept").is_file()
    sweep(tmp_path / "gone", LATER)
