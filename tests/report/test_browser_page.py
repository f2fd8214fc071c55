"""The report in a real browser: its own policy lets its figures be drawn, and nothing else."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.browser

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_every_figure_is_drawn_without_network_and_without_complaint(full_page: str, tmp_path: Path) -> None:
    """Each figure's place holds a drawing, the console has no error, and the hostile script did not run."""
    path = tmp_path / "report.html"
    path.write_text(full_page, encoding="utf-8")
    command = [
        str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync",
        "--no-first-run", "--disable-component-update", "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=10000", "--enable-logging=stderr", "--dump-dom",
        path.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    places = re.findall(r'id="figure-([^"]+)"', done.stdout)
    assert len(places) >= 4
    assert done.stdout.count('<svg xmlns="http://www.w3.org/2000/svg"') >= len(places)
    assert "could not be drawn" not in re.sub(r"<script.*?</script>", "", done.stdout, flags=re.DOTALL)
    assert [
        line for line in done.stderr.splitlines() if "CONSOLE" in line and ("Refused" in line or "rror" in line)
    ] == []
