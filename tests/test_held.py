"""Folders of the moment go with their process, however it ends, and nobody else's do."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from profiler.held import HELD, STALE_AFTER_S, held_folder, sweep, sweep_old

LATER = time.time() + 100 * STALE_AFTER_S
HOLD = """
import sys, time
from pathlib import Path
from profiler.held import held_folder
with held_folder(Path(sys.argv[1]), "made-") as folder:
    (folder / "inner").mkdir()
    (folder / "inner" / "file").write_text("x")
    print(folder, flush=True)
    time.sleep(600)
"""


def test_a_folder_is_there_for_the_block_and_gone_after_it(tmp_path):
    """Also after an error inside."""

    def fails():
        with held_folder(tmp_path, "made-") as folder:
            assert folder.parent == tmp_path
            assert folder.stat().st_mode & 0o077 == 0
            (folder / "file").write_text("x")
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fails()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.process
def test_what_a_killed_process_left_is_removed_by_the_next_one(tmp_path):
    """Not before: while it lives its folder is held, whoever sweeps."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        sweep(tmp_path, "made-")
        assert sorted(path.name for path in folder.iterdir()) == [HELD, "inner"]
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert folder.is_dir()

    with held_folder(tmp_path, "made-") as own:
        assert list(tmp_path.iterdir()) == [own]


def test_folders_of_others_stay(tmp_path):
    """Those with another name, without a lock file, held in this process, and what a link leads to."""
    plain, other = tmp_path / "made-plain", tmp_path / "else"
    plain.mkdir()
    other.mkdir()
    (other / HELD).touch()
    (tmp_path / "made-link").symlink_to(other)
    with held_folder(tmp_path, "made-") as held:
        sweep(tmp_path, "made-")
        assert held.is_dir()
    assert plain.is_dir()
    assert (other / HELD).exists()


def test_a_folder_in_use_is_never_old(tmp_path):
    """However long a run takes."""
    with held_folder(tmp_path, "edgeprof-") as folder:
        sweep_old(tmp_path, LATER)
        assert folder.is_dir()


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
    sweep_old(tmp_path)
    assert (tmp_path / "edgeprof-a" / "inner" / "file").is_file()
    sweep_old(tmp_path, LATER)

    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "edgeprof-file",
        "edgeprof-link",
        "elsewhere",
        "other-c",
    ]
    assert (elsewhere / "kept").is_file()
    sweep_old(tmp_path / "gone", LATER)
