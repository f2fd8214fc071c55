"""What travels to a GPU machine without a network: wheels and models, in archives small enough to be carried."""

from __future__ import annotations

import io
import lzma
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from scripts.gpu_lib.fatbin import slimmed

WHEELS = {
    "onnxruntime-gpu": ("onnxruntime-gpu==1.30.0", "manylinux_2_28_x86_64"),
    "tensorrt-rtx": ("tensorrt-rtx-cu13-libs==1.7.1.116", "manylinux_2_28_x86_64"),
    "tensorrt-rtx-bindings": ("tensorrt-rtx-cu13-bindings==1.7.1.116", "manylinux_2_28_x86_64"),
    "nvidia-ml-py": ("nvidia-ml-py", "any"),
    "psutil": ("psutil", "manylinux2014_x86_64"),
}
"""Packages that a machine with PyTorch's CUDA wheels still lacks."""
_CUDA_LIBRARY = "libonnxruntime_providers_cuda.so"
_LEFT_OUT = (
    "/transformers/",
    "/tools/",
    "/quantization/",
    "libonnxruntime_providers_tensorrt.so",
    "capi/libonnxruntime.so",
)
PRESET = 6


def write(out: Path, models: Path, *, python: str, capability: int, piece_bytes: int, wheels: bool) -> list[str]:
    """Archives `piece-NN.tar.xz` in `out`, the most valuable first; returns what is not in them, with reasons."""
    missing: list[str] = []
    pieces = _Pieces(out, piece_bytes)
    for folder in sorted(models.iterdir(), key=lambda path: path.stat().st_ctime):
        for path in sorted(folder.iterdir(), key=lambda path: path.stat().st_size):
            pieces.add(f"models/{folder.name}/{path.name}", path.read_bytes())
        if folder.name == "mini-resnet" and wheels:
            # The smallest model and the runtimes are enough for the first results; the larger models follow.
            for name, content in _wheel_files(python, capability, missing):
                pieces.add(f"site/{name}", content)
    pieces.close()
    return missing


def unpacked(folder: Path, there: Path) -> Path:
    """Unpack whatever archives are in `folder`, and join what was cut; returns `there`."""
    for archive in sorted(folder.glob("piece-*.tar.xz")):
        with tarfile.open(archive) as opened:
            opened.extractall(there, filter="data")
    for first in sorted(there.rglob("*.part-000")):
        whole = first.with_suffix("")
        parts = sorted(first.parent.glob(f"{whole.name}.part-*"))
        whole.write_bytes(b"".join(part.read_bytes() for part in parts))
        for part in parts:
            part.unlink()
    return there


class _Pieces:
    """Archives of at most so many bytes; a file that is too large for one is cut."""

    def __init__(self, out: Path, limit: int) -> None:
        self._out, self._limit, self._number, self._held, self._size = out, limit, 0, list[tuple[str, bytes]](), 0
        out.mkdir(parents=True, exist_ok=True)

    def add(self, name: str, content: bytes) -> None:
        size = len(lzma.compress(content, preset=PRESET))
        if size > self._limit * 0.95:
            step = int(len(content) * self._limit * 0.9 / size)
            for number, start in enumerate(range(0, len(content), step)):
                self.add(f"{name}.part-{number:03}", content[start : start + step])
            return
        if self._size + size > self._limit * 0.98:
            self.close()
        self._held.append((name, content))
        self._size += size

    def close(self) -> None:
        """Write what is held."""
        if not self._held:
            return
        with tarfile.open(self._out / f"piece-{self._number:02}.tar.xz", "w:xz", preset=PRESET) as tar:
            for name, content in self._held:
                info = tarfile.TarInfo(name)
                info.size, info.mode = len(content), 0o755 if name.endswith(".so") else 0o644
                tar.addfile(info, io.BytesIO(content))
        self._number, self._held, self._size = self._number + 1, [], 0


def _wheel_files(python: str, capability: int, missing: list[str]) -> Iterator[tuple[str, bytes]]:
    for name, (requirement, platform) in WHEELS.items():
        with tempfile.TemporaryDirectory(prefix="edgeprof-gpu-") as scratch:
            site = Path(scratch, "site")
            command = [
                sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-compile",
                "--target", str(site), "--only-binary", ":all:", "--python-version", python, "--implementation", "cp",
                "--platform", platform, "--platform", "manylinux_2_35_x86_64", "--platform", "manylinux2014_x86_64", requirement,
            ]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["no word"])[-1]
                missing.append(f"{requirement} for Python {python}: {last[:200]}")
                continue
            for path in sorted(site.rglob("*")):
                relative = path.relative_to(site).as_posix()
                if path.is_dir() or any(part in f"/{relative}" for part in _LEFT_OUT):
                    continue
                content = path.read_bytes()
                if path.name == _CUDA_LIBRARY:
                    content, seen = slimmed(content, capability)
                    kept = seen[capability] / max(1, sum(seen.values()))
                    missing.append(f"{name}: code for other GPUs than {capability} ({1 - kept:.0%} of it) is taken out")
                yield relative, content
            shutil.rmtree(site)
