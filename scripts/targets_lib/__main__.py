"""`python -m scripts.targets_lib ssh|arm64|docker [--quick] [--write] [--keep]`; exit code 0 only when everything held."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from profiler.errors import EdgeprofError
from scripts.targets_lib import e2e_arm64, e2e_docker, e2e_ssh, page
from scripts.targets_lib.packages import Missing
from scripts.targets_lib.product import Checks, Failed


def main() -> int:
    """0 when everything held, 1 when something did not, 2 when this machine lacks what it takes."""
    parser = argparse.ArgumentParser(prog="scripts/e2e_ssh, scripts/e2e_arm64, scripts/e2e_docker", description=__doc__)
    parser.add_argument("what", choices=("ssh", "arm64", "docker"))
    parser.add_argument("--image", default="python:3.12-slim", help="for docker: an image with Python 3.10 or newer")
    parser.add_argument("--quick", action="store_true", help="for CI: fewer broken connections, cases and repeats")
    parser.add_argument("--write", action="store_true", help="put what was found into docs/results/targets.md")
    parser.add_argument("--keep", action="store_true", help="keep the folder with the runs and logs")
    asked = parser.parse_args()
    folder, began, checks = Path(tempfile.mkdtemp(prefix="edgeprof-e2e-")), time.monotonic(), Checks()
    try:
        found = _run(asked, folder, checks)
    except Missing as missing:
        print(f"e2e_{asked.what}: not possible here: {missing}", file=sys.stderr)
        return 2
    except (Failed, EdgeprofError) as error:
        print(f"e2e_{asked.what}: {error}", file=sys.stderr)
        return 1
    finally:
        if asked.keep:
            print(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    seconds = time.monotonic() - began
    print(f"{len(checks.good)} held, {len(checks.bad)} did not; {seconds:.0f} s")
    if asked.write and not checks.bad:
        page.write(asked.what, found, checks, seconds, quick=asked.quick)
    return 1 if checks.bad else 0


def _run(asked: argparse.Namespace, folder: Path, checks: Checks) -> dict[str, Any]:
    if asked.what == "docker":
        return e2e_docker.run(folder, e2e_docker.QUICK if asked.quick else e2e_docker.FULL, checks, asked.image)
    if asked.what == "ssh":
        return e2e_ssh.run(folder, e2e_ssh.QUICK if asked.quick else e2e_ssh.FULL, checks)
    return e2e_arm64.run(folder, e2e_arm64.QUICK if asked.quick else e2e_arm64.FULL, checks)


if __name__ == "__main__":
    sys.exit(main())
