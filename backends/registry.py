"""Which backends there are. Ours are one line each; other people's come by the entry point group `edgeprof.backends`.

A backend is named by text, "module:Class", so that listing names imports nothing. An entry point that does not load is
still listed: as a backend that is unavailable here, with its error as the reason, because a broken plug-in must neither
stop a run nor vanish without a word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module, metadata
from pathlib import Path

from backends.base import Availability, Backend, BackendUnavailable, EdgeprofError, LoadOptions, Session

GROUP = "edgeprof.backends"

BUILT_IN = {
    "ort": "backends.ort:OrtBackend",
    "ov": "backends.ov:OvBackend",
    "trt": "backends.trt:TrtBackend",
    "fake": "backends.fake:FakeBackend",
    "injected": "backends.injected:InjectedBackend",
    "onnx-reference": "backends.onnx_reference:ReferenceBackend",
}

EntryPoints = Callable[[], Iterable[metadata.EntryPoint]]


def _installed() -> Iterable[metadata.EntryPoint]:
    return metadata.entry_points(group=GROUP)


@dataclass(frozen=True)
class BrokenBackend:
    """Stands for an entry point that does not load; every question is answered with its error."""

    name: str
    reason: str

    def availability(self, device: str | None = None) -> Availability:  # noqa: ARG002 (broken on every device)
        """Not available, with the error."""
        return Availability(
            False, reason=self.reason, install=f"repair or uninstall the package that provides '{self.name}'"
        )

    def devices(self) -> Sequence[str]:
        """None: it cannot be asked."""
        return ()

    def load(self, artifact: Path, options: LoadOptions) -> Session:  # noqa: ARG002 (nothing can be loaded)
        """Raise BackendUnavailable with the error."""
        raise BackendUnavailable(f"backend '{self.name}' cannot run: {self.reason}.")


def names(entry_points: EntryPoints = _installed) -> list[str]:
    """Names of all backends: ours in their order, then other people's sorted. Nothing is imported."""
    return [*BUILT_IN, *sorted(_third_party(entry_points))]


def get(name: str, entry_points: EntryPoints = _installed) -> Backend:
    """The backend called `name`; only its own module is imported, not its runtime.

    Raises EdgeprofError with near matches for an unknown name. A third-party backend that does not load comes back as
    one whose `availability` tells why.
    """
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        built_in: Backend = getattr(import_module(module), attribute)()
        return built_in
    third_party = _third_party(entry_points)
    if name in third_party:
        return _load(name, third_party[name])
    known = [*BUILT_IN, *sorted(third_party)]
    near = get_close_matches(name, known, n=3, cutoff=0.5)
    suggestion = f" Did you mean {' or '.join(near)}?" if near else ""
    raise EdgeprofError(
        f"unknown backend '{name}'.{suggestion} Known: {', '.join(known)}. "
        f"Others install themselves through the entry point group '{GROUP}'."
    )


def _third_party(entry_points: EntryPoints) -> dict[str, metadata.EntryPoint]:
    # Ours win over an entry point of the same name: installing a package must not change what `ort` measures.
    return {entry.name: entry for entry in entry_points() if entry.name not in BUILT_IN}


def _load(name: str, entry: metadata.EntryPoint) -> Backend:
    where = f"its entry point {entry.value}"
    try:
        backend = entry.load()()
    except Exception as error:  # noqa: BLE001 (anything can happen while other people's code is imported)
        return BrokenBackend(name, f"{where} raised {type(error).__name__}: {error}")
    if not isinstance(backend, Backend):
        return BrokenBackend(name, f"{where} gave a {type(backend).__name__}, expected a backends.base.Backend")
    if backend.name != name:
        return BrokenBackend(name, f"{where} calls itself '{backend.name}', records would name the wrong backend")
    return backend
