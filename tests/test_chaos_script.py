"""scripts/chaos in small: the promise that a killed run loses and doubles nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "chaos"


@pytest.mark.process
@pytest.mark.runtime
def test_a_few_kills_at_random_moments_change_nothing():
    """Exit code 0 and nothing left over; `scripts/chaos 200` is the long form."""
    pytest.importorskip("onnxruntime")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "4", "--seed", "3"], capture_output=True, text=True, timeout=280, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "workers left: 0; problems: 0" in done.stdout
