"""Notice when another installed package, or a folder of the user, stands in for one of our three (ADR 0001)."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def check(here: Path) -> None:
    """Raise ImportError unless `backends` and `device_profiles` lie beside the folder `here`."""
    for name in ("backends", "device_profiles"):
        spec = importlib.util.find_spec(name)
        places = list(spec.submodule_search_locations or []) if spec else []
        if not any(Path(place).resolve().parent == here.parent for place in places):
            found = ", ".join(places) or "nowhere"
            text = (
                f"edgeprof's package '{name}' should lie in {here.parent}, but Python finds it in: {found}. "
                "Another package or a folder of the working directory has the same name: install edgeprof into an "
                "environment of its own (pipx install edgeprof), or start it by its command, `edgeprof`."
            )
            if Path(sys.argv[0]).name == "edgeprof":
                # The command imports this package before its own error handling exists.
                sys.stderr.write(f"edgeprof: {text}\n")
                raise SystemExit(2)
            raise ImportError(text)
