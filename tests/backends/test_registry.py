"""Backends are found by name; other people's can break without breaking ours."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from backends import registry
from backends.base import Backend, BackendUnavailable, EdgeprofError, LoadOptions
from backends.fake import FakeBackend


class Other(FakeBackend):
    """A stand-in for other people's backend."""

    @property
    def name(self) -> str:
        return "other"


def raising() -> None:
    raise RuntimeError("no licence file")


def entry(name: str, attribute: str, module: str | None = None):
    point = EntryPoint(name, f"{module or __name__}:{attribute}", registry.GROUP)
    return lambda: [point]


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """Test modules are not importable by name under importlib mode; entry points are."""
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or sys.modules[Other.__module__])


def test_our_names_come_first():
    """Ours in their order, then other people's."""
    assert registry.names(entry("other", "Other")) == [
        "ort",
        "ov",
        "trt",
        "fake",
        "injected",
        "onnx-reference",
        "other",
    ]


@pytest.mark.parametrize("name", ["ort", "ov", "trt", "fake", "injected", "onnx-reference"])
def test_each_of_ours_is_a_backend_of_its_name(name):
    """A registry line leads to an adapter that calls itself so."""
    backend = registry.get(name)

    assert isinstance(backend, Backend)
    assert name == backend.name


def test_unknown_name_is_answered_with_near_matches():
    """A typo gets the near name and the known ones."""
    with pytest.raises(EdgeprofError, match=r"unknown backend 'ortt'\. Did you mean ort.* Known: ort, ov, trt, fake"):
        registry.get("ortt")


def test_third_party_backend_is_found():
    """An entry point is one more backend."""
    assert isinstance(registry.get("other", entry("other", "Other")), Other)


@pytest.mark.parametrize(
    ("attribute", "reason"),
    [
        ("raising", "RuntimeError: no licence file"),
        ("absent", "AttributeError"),
        ("Path", "expected a backends.base.Backend"),
        ("FakeBackend", "calls itself 'fake'"),
    ],
)
def test_broken_third_party_backend_is_listed_as_unavailable(attribute, reason, tmp_path):
    """A plug-in that fails stays visible, tells why, and refuses to load."""
    points = entry("other", attribute)
    backend = registry.get("other", points)
    availability = backend.availability()

    assert "other" in registry.names(points)
    assert not availability.available
    assert reason in str(availability.reason)
    with pytest.raises(BackendUnavailable, match="'other' cannot run"):
        backend.load(tmp_path / "m.onnx", LoadOptions())


def test_a_third_party_module_that_is_missing_is_unavailable():
    """A half-uninstalled plug-in is told by its module."""
    backend = registry.get("other", entry("other", "Backend", module="not_installed_anywhere"))

    assert "not_installed_anywhere" in str(backend.availability().reason)


def test_a_third_party_cannot_replace_ours():
    """Installing a package does not change what `fake` is."""
    points = entry("fake", "raising")

    assert registry.names(points) == ["ort", "ov", "trt", "fake", "injected", "onnx-reference"]
    assert type(registry.get("fake", points)) is FakeBackend


def test_listing_and_asking_imports_no_runtime():
    """Names, adapters and the CPU's availability are told without loading a runtime."""
    code = (
        "import sys; from backends import registry\n"
        "for name in registry.names(): registry.get(name)\n"
        "for name in ('ort', 'ov'): registry.get(name).availability()\n"
        "heavy = {'onnxruntime', 'openvino', 'onnx', 'tensorrt', 'torch'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        cwd=Path(registry.__file__).parents[1],
    )

    assert (done.returncode, done.stderr) == (0, "")
