"""Reading a backend's own options (`ov{precision=bf16}`): text in, checked values out, with messages that list what is known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from backends.base import BackendError


def require_known(backend: str, options: Mapping[str, str], known: Sequence[str]) -> None:
    """Raise BackendError when `options` has a name that the backend does not know; a typo must not measure the default."""
    strange = sorted(set(options) - set(known))
    if strange:
        raise BackendError(
            f"backend '{backend}' has no option {', '.join(repr(name) for name in strange)}; "
            f"its options are: {', '.join(sorted(known)) or 'none'}."
        )


def choice(backend: str, options: Mapping[str, str], name: str, allowed: Sequence[str], default: str) -> str:
    """The option's value, one of `allowed`. Raises BackendError otherwise."""
    value = options.get(name, default)
    if value not in allowed:
        raise BackendError(f"backend '{backend}' got {name}={value}, expected one of: {', '.join(allowed)}.")
    return value


def flag(backend: str, options: Mapping[str, str], name: str, *, default: bool) -> bool:
    """The option's value, `true` or `false`. Raises BackendError otherwise."""
    return choice(backend, options, name, ("true", "false"), str(default).lower()) == "true"


def number(backend: str, options: Mapping[str, str], name: str, default: float) -> float:
    """The option's value as a finite number that is not negative. Raises BackendError otherwise."""
    text = options.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise BackendError(f"backend '{backend}' got {name}={text}, expected a number of at least 0.")
    return value
