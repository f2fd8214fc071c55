"""Bundles: the same bytes for the same contents, made for the device and not for this machine, with words for what is missing."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from profiler.errors import TargetError
from profiler.targets import bundle
from profiler.targets.bundle import Device

ORIN = Device((3, 10), "aarch64", (2, 35), {})
LAPTOP = Device((3, 12), "x86_64", (2, 39), {})
# Stands for `python -m pip`: writes what it was asked, then either fails with words or installs what its folder says.
FAKE = """#!/bin/sh
printf '%s\\n' "$@" > {folder}/asked
if [ -s {folder}/words ]; then cat {folder}/words >&2; exit 1; fi
target=$(grep -A1 -x -- --target {folder}/asked | tail -1)
mkdir -p "$target" && cp -r {folder}/site/. "$target"
"""


@pytest.fixture
def pip(tmp_path, monkeypatch):
    """A folder: `site/` is what it installs, `words` what it fails with, `asked` the arguments of the last call."""
    folder = tmp_path / "pip"
    for name, content in {
        "numpy/__init__.py": "n = 1", "numpy/core.so": "elf", "numpy/__pycache__/x.pyc": "p", "numpy/tests/test_x.py": "t",
        "numpy-2.2.6.dist-info/METADATA": "Name: numpy", "numpy-2.2.6.dist-info/RECORD": "r",
        "numpy-2.2.6.dist-info/INSTALLER": "pip",
        "onnx_runtime-1.23.0.dist-info/METADATA": "m", "bin/f2py": "#!", "onnxruntime/capi/lib.a": "a",
    }.items():  # fmt: skip
        path = folder / "site" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    script = tmp_path / "python"
    script.write_text(FAKE.format(folder=folder))
    script.chmod(0o755)
    monkeypatch.setattr(bundle.sys, "executable", str(script))
    return folder


def asked(pip: Path) -> dict[str, list[str]]:
    """Its options with their values, and what it was to install under ''."""
    words = (pip / "asked").read_text().splitlines()[3:]
    found: dict[str, list[str]] = {"": []}
    flags = {"--quiet", "--disable-pip-version-check", "--no-input", "--no-compile"}
    while words:
        word = words.pop(0)
        if word.startswith("--"):
            found.setdefault(word, []).extend([] if word in flags else [words.pop(0)])
        else:
            found[""].append(word)
    return found


def names(made: bundle.Bundle) -> list[str]:
    with tarfile.open(made.archive) as tar:
        return tar.getnames()


def test_a_bundle_is_made_for_the_device(pip, tmp_path):
    """Its Python, its architecture, its C library; nothing is built, and nothing is compiled for this Python."""
    made = bundle.wheels(ORIN, ["onnxruntime", "numpy"], tmp_path / "cache")
    options = asked(pip)

    assert options[""] == ["onnxruntime", "numpy"]
    assert (options["--python-version"], options["--implementation"]) == (["3.10"], ["cp"])
    assert options["--abi"] == ["cp310", "abi3", "none"]
    assert options["--only-binary"] == [":all:"]
    assert "--no-compile" in options
    assert options["--platform"][0] == "manylinux_2_35_aarch64"
    assert not any("x86" in tag for tag in options["--platform"])
    assert made.packages == {"numpy": "2.2.6", "onnx-runtime": "1.23.0"}


def test_a_bundle_leaves_out_what_no_worker_imports(pip, tmp_path):
    """Tests, compiled files, static libraries, scripts, and what installers write about themselves."""
    made = bundle.wheels(ORIN, ["numpy"], tmp_path / "cache")

    assert names(made) == [
        "numpy-2.2.6.dist-info/METADATA", "numpy/__init__.py", "numpy/core.so", "onnx_runtime-1.23.0.dist-info/METADATA",
    ]  # fmt: skip


def test_equal_contents_are_equal_bytes_with_equal_names(pip, tmp_path):
    """Whenever and wherever they are made, in whatever order, by whichever installer."""
    first = bundle.wheels(ORIN, ["numpy"], tmp_path / "one")
    (pip / "site/numpy-2.2.6.dist-info/INSTALLER").write_text("uv")
    (pip / "site/numpy-2.2.6.dist-info/RECORD").write_text("another")
    for path in (pip / "site").rglob("*"):
        os.utime(path, (1, 1))
        path.chmod(0o700)
    second = bundle.wheels(LAPTOP, ["numpy"], tmp_path / "two")
    (pip / "site/numpy/__init__.py").write_text("n = 2")
    third = bundle.wheels(ORIN, ["numpy"], tmp_path / "three")

    assert (first.name, first.sha256) == (second.name, second.sha256)
    assert first.archive.read_bytes() == second.archive.read_bytes()
    assert third.name != first.name


def test_what_is_in_an_archive_is_plain(pip, tmp_path):
    """Files of nobody, from no time, that nobody may execute."""
    made = bundle.wheels(ORIN, ["numpy"], tmp_path / "cache")
    with tarfile.open(made.archive) as tar:
        facts = {(info.isfile(), info.mode, info.mtime, info.uid, info.gid, info.uname) for info in tar}

    assert facts == {(True, 0o644, 0, 0, 0, "")}


def test_a_bundle_that_was_made_before_is_not_made_again(pip, tmp_path):
    """For the same device and packages; a damaged one is."""
    first = bundle.wheels(ORIN, ["numpy", "psutil"], tmp_path / "cache")
    (pip / "asked").unlink()
    second = bundle.wheels(ORIN, ["psutil", "numpy"], tmp_path / "cache")
    known = (pip / "asked").exists()
    first.archive.write_bytes(first.archive.read_bytes()[:-1])
    third = bundle.wheels(ORIN, ["numpy", "psutil"], tmp_path / "cache")

    assert (first, known) == (second, False)
    assert (pip / "asked").exists()
    assert first.sha256 == third.sha256
    assert hashlib.sha256(third.archive.read_bytes()).hexdigest() == third.sha256


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"name": "../../x", "sha256": "", "packages": {}}', "\xff"])
def test_a_broken_index_is_no_index(pip, tmp_path, content):
    """The bundle is made again."""
    cache = tmp_path / "cache"
    first = bundle.wheels(ORIN, ["numpy"], cache)
    (index,) = cache.glob("*.json")
    index.write_text(content, encoding="latin-1")

    assert bundle.wheels(ORIN, ["numpy"], cache) == first


def test_no_wheel_for_the_platform_is_told_in_pips_words(pip, tmp_path):
    """With what can be done; no half of a bundle stays."""
    (pip / "words").write_text(
        "ERROR: Could not find a version that satisfies the requirement openvino (from versions: none)\n"
        "ERROR: No matching distribution found for openvino\n"
    )
    with pytest.raises(
        TargetError, match=r"no wheels of numpy, openvino for Python 3\.10 on aarch64 with glibc 2\.35: .*--runtimes"
    ):
        bundle.wheels(ORIN, ["numpy", "openvino"], tmp_path / "cache")

    assert list((tmp_path / "cache").iterdir()) == []


def test_neither_pip_nor_uv_is_told(tmp_path, monkeypatch):
    """With how to get one."""
    monkeypatch.setattr(bundle.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(bundle.shutil, "which", lambda name: None)

    with pytest.raises(TargetError, match="python -m ensurepip"):
        bundle.wheels(ORIN, ["numpy"], tmp_path / "cache")


@pytest.mark.parametrize(("minor", "known"), [(35, 35), (17, 17), (27, 17), (30, 28), (99, 40)])
def test_uv_is_asked_for_a_platform_that_it_knows(pip, tmp_path, monkeypatch, minor, known):
    """Its list of C libraries has gaps and an end: an older one that runs there too is taken."""
    monkeypatch.setattr(bundle.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(bundle.shutil, "which", lambda name: bundle.sys.executable if name == "uv" else None)
    bundle.wheels(Device((3, 11), "aarch64", (2, minor), {}), ["numpy"], tmp_path / "cache")
    words = (pip / "asked").read_text().splitlines()

    assert words[words.index("--python-platform") + 1] == f"aarch64-manylinux_2_{known}"
    assert words[words.index("--only-binary") + 1] == ":all:"


def test_tags_are_those_of_the_device_the_newest_first():
    """Never newer than its C library, with the old names of PEP 513 and 599 for x86-64 only."""
    tags = bundle.platform_tags(LAPTOP)

    assert tags[0] == "manylinux_2_39_x86_64"
    assert {"manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux1_x86_64", "any"} <= set(tags)
    assert "manylinux_2_40_x86_64" not in tags
    assert "manylinux1_aarch64" not in bundle.platform_tags(ORIN)
    with pytest.raises(TargetError, match=r"glibc 2\.12 is older than any runtime's wheel: 2\.17 is the least"):
        bundle.platform_tags(Device((3, 10), "x86_64", (2, 12), {}))


@pytest.mark.parametrize(
    ("there", "runtimes", "packages"),
    [
        ({}, ("ort", "ov"), ("numpy", "onnxruntime", "openvino", "psutil")),
        ({"numpy": "1.26"}, ("ort",), ("numpy", "onnxruntime", "psutil")),
        ({"onnxruntime": "1.18", "numpy": "1.26"}, ("ort",), ("psutil",)),
        ({"onnxruntime": "1.18", "numpy": "1.26", "psutil": "5"}, ("ort",), ()),
        ({"onnxruntime": "1.18"}, ("ort",), ("numpy", "psutil")),
        ({"tensorrt": "10.3", "numpy": "1.21"}, ("ort",), ("onnxruntime", "psutil")),
        ({"onnxruntime": "1.18", "numpy": "1.26"}, ("ort", "ov"), ("openvino", "psutil")),
    ],
    ids=str,
)  # fmt: skip
def test_what_the_device_has_itself_is_used(there, runtimes, packages):
    """Its own runtime with the numpy that this was built for; a numpy alone is replaced by one that fits our wheels."""
    assert bundle.wanted(Device((3, 10), "aarch64", (2, 35), there), runtimes) == packages


def test_our_own_modules_are_an_archive_of_the_workers_closure(tmp_path):
    """Its name tells whether a device has the same worker: what a command or a report says is no part of it."""
    made = bundle.modules(tmp_path)
    rooms = {"/".join(name.split("/")[:2]) for name in names(made) if name.startswith("profiler/")}

    assert made.name == bundle.modules_name()
    assert {"profiler/worker.py", "backends/ort.py", "device_profiles/__init__.py"} <= set(names(made))
    assert rooms == {
        "profiler/__init__.py", "profiler/_selfcheck.py", "profiler/environment.py", "profiler/measure", "profiler/records.py",
        "profiler/wire.py", "profiler/worker.py",
    }  # fmt: skip
    assert all(name.endswith(".py") for name in names(made))
    assert bundle.modules(tmp_path / "again").sha256 == made.sha256


def test_the_name_for_machines_on_which_more_than_a_worker_runs_is_of_everything():
    """Whoever builds variants must have the same recipes, too."""
    assert bundle.whole_name() != bundle.modules_name()


def test_an_import_for_type_checkers_brings_nothing(tmp_path):
    """Those in functions do: the worker describes its machine only when it is asked."""
    module = tmp_path / "a.py"
    module.write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from profiler import api\n"
        "def later():\n    from profiler import wire\n    import backends.ort as o\n"
    )

    found = set(bundle._imported("profiler/a.py", module))

    assert {"profiler/__init__.py", "profiler/wire.py", "backends/ort.py"} <= found
    assert "profiler/api.py" not in found


@pytest.mark.process
def test_a_worker_starts_from_the_archive_alone(tmp_path):
    """Everything that a worker imports is in it, beside numpy and psutil."""
    made = bundle.modules(tmp_path)
    with tarfile.open(made.archive) as tar:
        tar.extractall(tmp_path / "there", filter="data") if hasattr(tarfile, "data_filter") else tar.extractall(
            tmp_path / "there"
        )
    code = (
        "import sys; sys.path[:] = [sys.argv[1], *sys.path[1:]];"
        "import profiler.worker, backends.registry as r; [r.get(n) for n in r.BUILT_IN]; print(profiler.worker.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "there")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    assert Path(done.stdout.strip()) == tmp_path / "there/profiler/worker.py"


@pytest.mark.real_models
def test_the_package_index_has_wheels_for_a_jetson(tmp_path):
    """JetPack 6: Python 3.10, aarch64, glibc 2.35. What is resolved is for it: ARM libraries only, none for a newer C library."""
    made = bundle.wheels(ORIN, ["numpy", "onnxruntime", "psutil"], tmp_path / "cache")
    machines = set()
    with tarfile.open(made.archive) as tar:
        for info in tar:
            if ".so" in info.name:
                head = io.BytesIO(tar.extractfile(info).read(20)).getvalue()
                machines.add(head[18])  # e_machine of the ELF header: 183 is AArch64
        wheels = [
            tar.extractfile(info).read().decode() for info in tar.getmembers() if info.name.endswith("dist-info/WHEEL")
        ]

    assert set(made.packages) >= {"numpy", "onnxruntime", "psutil"}
    assert machines == {183}
    assert any("aarch64" in text for text in wheels)
    assert not any("x86" in text for text in wheels)
    assert json.loads(next((tmp_path / "cache").glob("*.json")).read_text())["name"] == made.name
