"""Notice when another installed package, or a folder of the user, stands in for one of our three (ADR 0001)."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def check(here: Path) -> None:
    """Raise ImportError unless `backends` and `device_profiles` lie beside the folder `here`."""
    for name in ("backends", "device_profiles"):
        spec = importlib.util.find_spec(name)
        places = list(spec.submodule_search_locations or []) if spec else []
        if not any(Path(place).resolve().parent == here.parent for place in places):
            found = ", ".join(places) or "nowhere"
            raise ImportError(
                f"edgeprof's package '{name}' should lie in {here.parent}, but Python finds it in: {found}. "
                "Another package or a folder of the working directory has the same name: install edgeprof into an "
                "environment of its own (pipx install edgeprof), or start it by its command, `edgeprof`."
            )
