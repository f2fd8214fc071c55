"""What a device needs to run a worker, made on the host: two archives, one of wheels and one of edgeprof's own modules.

Wheels are resolved for the device's Python, architecture and C library by pip or uv, never built, so the device needs no
network, no compiler and no pip. An archive is named by the hash of what is in it: what is there is not sent again, and two
devices of a kind share one. The options are those of pip's documentation (`--target`, `--platform`, `--only-binary`), the tags
those of PEP 600.
"""

from __future__ import annotations

import ast
import functools
import gzip
import hashlib
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from profiler import __version__
from profiler.errors import TargetError
from profiler.targets.agent import MODULES
from profiler.targets.log import clean
from profiler.wire import file_sha256

RUNTIMES: Mapping[str, str] = {"ort": "onnxruntime", "ov": "openvino"}
"""Backends whose runtime comes as a wheel, with its package. TensorRT is the device's own."""
ALWAYS = ("numpy", "psutil")
OLDEST_PYTHON = (3, 10)
_MACHINES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}
_OLDEST_GLIBC_MINOR = 17
_UV_GLIBC_MINORS = (40, 39, 38, 37, 36, 35, 34, 33, 32, 31, 28, 17)
"""Those of `uv pip install --python-platform`, 0.13."""
_PACKAGES = ("profiler", "backends", "device_profiles")
_ROOTS = ("profiler/worker.py", "device_profiles/__init__.py")
"""What a worker begins with; each of the three packages must lie beside the others (`profiler._selfcheck`)."""
_RESOLVE_S = 900.0
_LEFT_OUT = re.compile(
    r"(^|/)(__pycache__|tests|bin|testing/data)(/|$)|\.(pyc|pyi|h|a|lib|cmake)$|(RECORD|INSTALLER|REQUESTED|direct_url\.json)$"
    r"|^openvino_telemetry[-/]"
)
"""Nothing of it is needed by a worker; names of installers would make equal bundles differ. OpenVINO reports every import to its
maker, with an id in the home, where this package is there, and has a stub of its own for where it is not."""


@dataclass(frozen=True)
class Device:
    """What decides which wheels fit, as the agent's `look` tells it."""

    python: tuple[int, int]
    machine: str
    """As wheels name it: x86_64 or aarch64."""
    glibc: tuple[int, int]
    modules: Mapping[str, str]
    """Packages that are there already, with their versions."""


@dataclass(frozen=True)
class Bundle:
    """One archive, ready to be sent."""

    name: str
    archive: Path
    sha256: str
    """Of the archive."""
    packages: Mapping[str, str]
    """Wheels in it, with their versions; empty for edgeprof's own modules."""


def device(name: str, looked: Mapping[str, Any]) -> Device:
    """What the agent found, checked. Raises TargetError that says what is missing there."""
    python, libc = looked.get("python"), looked.get("libc")
    machine = _MACHINES.get(str(looked.get("machine", "")).lower())
    if not isinstance(python, list) or len(python) < 2 or not all(isinstance(part, int) for part in python):
        raise TargetError(f"'{name}' does not tell its Python version.")
    version = int(python[0]), int(python[1])
    if version < OLDEST_PYTHON:
        raise TargetError(
            f"'{name}' has Python {version[0]}.{version[1]} as its interpreter, 3.10 or later is needed: install one there and "
            "name it, e.g. `edgeprof target add NAME … --python python3.11`."
        )
    if looked.get("implementation") != "cpython" or looked.get("system") != "Linux" or machine is None:
        raise TargetError(
            f"'{name}' is {_shown(looked.get('system'))} on {_shown(looked.get('machine'))} with "
            f"{_shown(looked.get('implementation'))}: "
            "bundles exist for CPython on Linux, x86-64 or 64-bit ARM. A 32-bit system on a 64-bit board must be replaced by a "
            "64-bit one; elsewhere install edgeprof itself and run it there."
        )
    found = (
        re.fullmatch(r"(\d{1,3})\.(\d{1,3})(\..*)?", str(libc[1]))
        if isinstance(libc, list) and len(libc) == 2
        else None
    )
    if found is None or libc is None or libc[0] != "glibc":
        raise TargetError(
            f"'{name}' has the C library {_shown(libc)}, wheels of the runtimes need glibc: Alpine and Android (outside of a "
            "Debian chroot) cannot run them."
        )
    modules = looked.get("modules")
    known = {key: _shown(modules[key])[:40] for key in MODULES if modules.get(key)} if isinstance(modules, dict) else {}
    return Device(version, machine, (int(found[1]), int(found[2])), known)


def wanted(there: Device, runtimes: Iterable[str]) -> tuple[str, ...]:
    """Packages for the bundle: what the device lacks. Its own numpy stays beside its own runtime, which was built for it."""
    packages = [RUNTIMES[name] for name in runtimes if RUNTIMES[name] not in there.modules]
    own_runtime = any(name in there.modules for name in (*RUNTIMES.values(), "tensorrt"))
    packages += [name for name in ALWAYS if not (name in there.modules and own_runtime)]
    return tuple(sorted(packages))


def wheels(there: Device, packages: Sequence[str], cache: Path) -> Bundle:
    """The archive with these packages for such a device, from `cache` when it was made before. Raises TargetError."""
    asked = {
        "python": there.python, "machine": there.machine, "glibc": there.glibc, "packages": sorted(packages),
        "edgeprof": __version__, "left_out": _LEFT_OUT.pattern,
    }  # fmt: skip
    index = cache / f"wheels-{_digest(json.dumps(asked, sort_keys=True).encode())[:20]}.json"
    known = _from_index(index, cache)
    if known is not None:
        return known
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="edgeprof-bundle-", dir=cache) as scratch:
        site = Path(scratch) / "site"
        _resolve(there, packages, site)
        versions = {
            match[1].replace("_", "-").lower(): match[2]
            for match in (re.fullmatch(r"(.+?)-([^-]+)\.dist-info", path.name) for path in site.glob("*.dist-info"))
            if match and not _LEFT_OUT.search(f"{match.string}/")
        }
        contents = {path.relative_to(site).as_posix(): path for path in sorted(site.rglob("*")) if path.is_file()}
        bundle = _packed("wheels", {name: path.read_bytes for name, path in contents.items()}, cache, versions)
    index.write_text(
        json.dumps({"name": bundle.name, "sha256": bundle.sha256, "packages": bundle.packages}), encoding="utf-8"
    )
    return bundle


def modules(cache: Path) -> Bundle:
    """The archive with the modules that a worker needs, as they are here."""
    cache.mkdir(parents=True, exist_ok=True)
    return _packed("edgeprof", {name: path.read_bytes for name, path in _own_files().items()}, cache, {})


@functools.cache
def modules_name() -> str:
    """The name that `modules` would give: tells whether a device has the same worker. Commands and reports are no part of it."""
    return f"edgeprof-{_content({name: path.read_bytes for name, path in _own_files().items()})}"


@functools.cache
def whole_name() -> str:
    """The same over all of edgeprof, for machines on which more than a worker runs."""
    return f"edgeprof-{_content({name: path.read_bytes for name, path in _all_files().items()})}"


def default_cache() -> Path:
    """Where bundles are kept on the host."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "edgeprof" / "bundles"


def _own_files() -> dict[str, Path]:
    """The worker's modules: what it imports of edgeprof, at once or later, and every adapter, since those are found by name."""
    known = _all_files()
    waiting = [*_ROOTS, *(name for name in known if name.startswith("backends/"))]
    found: dict[str, Path] = {}
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = known[name]
            waiting += [other for other in _imported(name, known[name]) if other in known]
    return dict(sorted(found.items()))


def _all_files() -> dict[str, Path]:
    found: dict[str, Path] = {}
    for package in _PACKAGES:
        home = Path(str(files(package)))
        for path in sorted(home.rglob("*.py")):
            found[f"{package}/{path.relative_to(home).as_posix()}"] = path
    return found


def _imported(name: str, path: Path) -> Iterable[str]:
    """Files that the module may import, wherever in it the statement stands; those of type checkers only are left out."""
    # A package is run before what lies in it.
    parts = name.split("/")
    yield from ("/".join((*parts[:depth], "__init__.py")) for depth in range(1, len(parts)))
    for node in _run_when_imported(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for module in modules:
            place = module.replace(".", "/")
            yield from (f"{place}.py", f"{place}/__init__.py")


def _run_when_imported(tree: ast.AST) -> Iterable[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        yield node
        yield from _run_when_imported(node)


def _resolve(there: Device, packages: Sequence[str], site: Path) -> None:
    version = f"{there.python[0]}.{there.python[1]}"
    tags = platform_tags(there)
    uv = shutil.which("uv")
    if importlib.util.find_spec("pip") is not None:
        platforms = [word for tag in tags for word in ("--platform", tag)]
        command = [
            sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", "--target", str(site),
            "--python-version", version, "--implementation", "cp", "--abi", f"cp{there.python[0]}{there.python[1]}",
            "--abi", "abi3", "--abi", "none", "--only-binary", ":all:", "--no-compile", *platforms, *packages,
        ]  # fmt: skip
    elif uv is not None:
        minor = next(minor for minor in _UV_GLIBC_MINORS if (2, minor) <= there.glibc)
        command = [
            uv, "pip", "install", "--quiet", "--target", str(site), "--python-version", version, "--only-binary", ":all:",
            "--python-platform", f"{there.machine}-manylinux_2_{minor}", *packages,
        ]  # fmt: skip
    else:
        raise TargetError("making a bundle needs pip or uv beside edgeprof: `python -m ensurepip`, or install uv.")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_RESOLVE_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise TargetError(f"the wheels for the device could not be fetched: {error}.") from None
    if done.returncode:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        reason = next(
            (line for line in said if "from versions" in line or "No matching" in line or "no wheels" in line),
            " / ".join(said[-2:]),
        )
        raise TargetError(
            f"no wheels of {', '.join(packages)} for Python {version} on {there.machine} with glibc "
            f"{there.glibc[0]}.{there.glibc[1]}: {reason[:400]}. Leave a runtime out (`edgeprof target setup NAME --runtimes "
            "ort`), use a newer system on the device, or install the runtime there by its maker's way: what is there is used."
        )


def platform_tags(there: Device) -> list[str]:
    """Tags of wheels that run there, the newest first (PEP 600, with the older names)."""
    tags = [f"manylinux_2_{minor}_{there.machine}" for minor in range(there.glibc[1], _OLDEST_GLIBC_MINOR - 1, -1)]
    if there.glibc < (2, _OLDEST_GLIBC_MINOR):
        raise TargetError(
            f"glibc {there.glibc[0]}.{there.glibc[1]} is older than any runtime's wheel: 2.17 is the least."
        )
    older = ["manylinux2014"] if there.machine == "aarch64" else ["manylinux2014", "manylinux2010", "manylinux1"]
    if there.machine == "x86_64":
        tags += [f"manylinux_2_{minor}_x86_64" for minor in (12, 5)]
    return [*tags, *(f"{name}_{there.machine}" for name in older), f"linux_{there.machine}", "any"]


def _packed(kind: str, contents: Mapping[str, Any], cache: Path, packages: Mapping[str, str]) -> Bundle:
    """An archive of `contents`, the same bytes for the same contents: sorted, without times and owners."""
    kept = {name: read for name, read in contents.items() if not _LEFT_OUT.search(name)}
    name = f"{kind}-{_content(kept)}"
    archive = cache / f"{name}.tar.gz"
    # One that is there may be damaged, and would arrive so on every device.
    fresh = archive.with_suffix(f".{os.getpid()}.tmp")
    with (
        fresh.open("wb") as raw,
        gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=6, mtime=0, filename="") as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as tar,
    ):
        for path in sorted(kept):
            data = kept[path]()
            info = tarfile.TarInfo(path)
            info.size, info.mode = len(data), 0o644
            tar.addfile(info, io.BytesIO(data))
    fresh.replace(archive)
    return Bundle(name, archive, file_sha256(archive), packages)


def _content(contents: Mapping[str, Any]) -> str:
    lines = [f"{name} {_digest(contents[name]())}" for name in sorted(contents) if not _LEFT_OUT.search(name)]
    return _digest("\n".join(lines).encode())[:16]


def _from_index(index: Path, cache: Path) -> Bundle | None:
    try:
        known = json.loads(index.read_text(encoding="utf-8"))
        archive = cache / f"{known['name']}.tar.gz"
        if file_sha256(archive) == known["sha256"]:
            return Bundle(known["name"], archive, known["sha256"], known["packages"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _shown(value: object) -> str:
    return clean(str(value))[:60]
