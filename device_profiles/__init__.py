"""Facts about kinds of devices and prices, as data: one TOML per device, one CSV per price list, each with its source."""

from __future__ import annotations

from importlib.resources import files


def profile_files() -> dict[str, str]:
    """Text of each device profile (TOML) by file name, sorted."""
    return _texts("", ".toml")


def price_files() -> dict[str, str]:
    """Text of each price list (CSV) by file name, sorted."""
    return _texts("prices", ".csv")


def _texts(folder: str, suffix: str) -> dict[str, str]:
    home = files(__name__)
    entries = (home / folder if folder else home).iterdir()
    return {
        entry.name: entry.read_text(encoding="utf-8")
        for entry in sorted(entries, key=lambda entry: entry.name)
        if entry.name.endswith(suffix)
    }
