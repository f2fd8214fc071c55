"""Where the TensorRT binding is looked for, and what people are told when it isn't there."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from backends.base import BackendUnavailable
from backends.trt_find import PATH_VARIABLE, find, load, system_hint


def package(folder: Path, name: str, text: str = '__version__ = "10.13.2"\n') -> Path:
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(text)
    return folder


def test_auto_prefers_full_tensorrt_over_rtx(tmp_path):
    """With both installed, the one that runs on every NVIDIA GPU is taken."""
    package(package(tmp_path, "tensorrt_rtx"), "tensorrt")
    assert (find("auto", {}, [str(tmp_path)]).flavour, find("auto", {}, [str(tmp_path)]).module) == ("trt", "tensorrt")
    assert find("rtx", {}, [str(tmp_path)]).module == "tensorrt_rtx"


def test_version_is_read_from_the_bindings_behind_the_thin_package(tmp_path):
    """NVIDIA's `tensorrt` package imports its version; it is told without importing."""
    package(tmp_path, "tensorrt", "from tensorrt_bindings import *\nfrom tensorrt_bindings import __version__\n")
    package(tmp_path, "tensorrt_bindings", '__version__ = "11.4.0.106"\nraise RuntimeError("imported")\n')
    assert find("auto", {}, [str(tmp_path)]).version == "11.4.0.106"


@pytest.mark.parametrize("module", ["tensorrt_rtx_bindings", "tensorrt_bindings"])
def test_bindings_alone_are_found(tmp_path, module):
    """The registry's wheels without the thin package are enough."""
    assert module == find("auto", {}, [str(package(tmp_path, module))]).module


def test_environment_variable_is_the_only_place_searched(tmp_path):
    """What someone points at wins over what is installed."""
    here, there = package(tmp_path / "a", "tensorrt"), package(tmp_path / "b", "tensorrt_rtx")
    found = find("auto", {PATH_VARIABLE: str(there)}, [str(here)])
    assert ("tensorrt_rtx", str(there)) == (found.module, found.folder)


def test_absence_names_the_modules_and_the_variable(tmp_path):
    """Nothing found: the text says what was looked for and where."""
    with pytest.raises(BackendUnavailable, match=rf"{PATH_VARIABLE}=.*none of tensorrt, tensorrt_bindings is there"):
        find("trt", {PATH_VARIABLE: str(tmp_path)}, [])


def test_system_binding_outside_the_environment_is_pointed_at(tmp_path):
    """JetPack's binding gives the exact variable to set, and the Python it was compiled for."""
    package(tmp_path / "usr/lib/python3.99/dist-packages", "tensorrt")
    hint = system_hint(tmp_path)
    assert f"{PATH_VARIABLE}={tmp_path}/usr/lib/python3.99/dist-packages" in hint
    assert "Python 3.99" in hint
    assert system_hint(tmp_path / "empty") == ""


def test_binding_without_its_libraries_is_unavailable_with_the_loader_s_words(tmp_path, monkeypatch):
    """The usual broken installation: bindings there, libnvinfer not."""
    name = "tensorrt_bindings"
    monkeypatch.delitem(sys.modules, name, raising=False)
    package(tmp_path, name, 'raise ImportError("libnvinfer.so.11: cannot open shared object file")\n')
    found = find("trt", {PATH_VARIABLE: str(tmp_path)})
    with pytest.raises(BackendUnavailable, match=r"libnvinfer\.so\.11: cannot open.*pip install tensorrt"):
        load(found)
    assert str(tmp_path) not in sys.path


def test_path_is_on_sys_path_only_during_the_import(tmp_path, monkeypatch):
    """The folder may hold other packages (numpy!), which must not hide this environment's."""
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    package(tmp_path, "tensorrt")
    module = load(find("trt", {PATH_VARIABLE: str(tmp_path)}))
    monkeypatch.delitem(sys.modules, "tensorrt")
    assert module.__version__ == "10.13.2"
    assert str(tmp_path) not in sys.path


def test_too_old_tensorrt_is_refused_with_the_version(tmp_path, monkeypatch):
    """JetPack 5's TensorRT 8 has another interface."""
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    package(tmp_path, "tensorrt", '__version__ = "8.5.2"\n')
    found = find("trt", {PATH_VARIABLE: str(tmp_path)})
    with pytest.raises(BackendUnavailable, match=r"8\.5\.2 is too old: expected 10\.0 or newer"):
        load(found)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
