"""Three packages with common names: a stranger in the place of one of them is noticed at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from profiler._selfcheck import check

ROOT = Path(__file__).parents[1]


def test_our_own_packages_are_accepted():
    """Where they lie beside each other."""
    check(ROOT / "profiler")


def test_packages_that_lie_elsewhere_are_refused(tmp_path):
    """The message names the place they should have and the place they were found in."""
    with pytest.raises(ImportError, match=f"'backends' should lie in {tmp_path}.*{ROOT}"):
        check(tmp_path / "profiler")


@pytest.mark.process
@pytest.mark.parametrize("name", ["backends", "device_profiles"])
def test_a_folder_of_the_user_is_noticed(tmp_path, name):
    """`python -c 'import profiler'` beside a folder with one of our names: words instead of an odd AttributeError later."""
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-c", "import profiler"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 1
    assert f"edgeprof's package '{name}'" in done.stderr
    assert str(tmp_path) in done.stderr
