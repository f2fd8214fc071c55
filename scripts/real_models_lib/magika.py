"""magika: which of 214 types is this file? Data: files of this machine whose extension names their type."""

from __future__ import annotations

import hashlib
import json
import os
import sysconfig
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scripts.real_models_lib.fetch import wheel
from scripts.real_models_lib.suite import Job, save

TITLE = "magika: file types from bytes"
ABOUT = (
    "Google's deep-learning file classifier as its users ship it: an ONNX file with an int32 input [N, 2048] and a dynamic "
    "batch axis, opset 15. Quantizing every op the library can destroys it; quantizing products and convolutions doesn't, "
    "and dynamic int8, which is the usual first try, makes its convolutions slower."
)
EXTENSIONS = {
    ".py": "python", ".pyc": "pythonbytecode", ".html": "html", ".css": "css", ".js": "javascript", ".json": "json",
    ".xml": "xml", ".svg": "svg", ".png": "png", ".gif": "gif", ".jpg": "jpeg", ".jpeg": "jpeg", ".bmp": "bmp",
    ".tiff": "tiff", ".tif": "tiff", ".ico": "ico", ".webp": "webp", ".pdf": "pdf", ".ps": "postscript", ".ttf": "ttf", ".otf": "otf",
    ".woff": "woff", ".woff2": "woff2", ".wav": "wav", ".mp3": "mp3", ".ogg": "ogg", ".flac": "flac", ".so": "elf",
    ".exe": "pebin", ".dll": "pebin", ".gz": "gzip", ".bz2": "bzip", ".xz": "xz", ".zip": "zip", ".tar": "tar", ".deb": "deb",
    ".h5": "h5", ".npy": "npy", ".npz": "npz", ".onnx": "onnx", ".pickle": "pickle", ".sqlite": "sqlite", ".parquet": "parquet",
    ".rst": "rst", ".md": "markdown", ".toml": "toml", ".yaml": "yaml", ".yml": "yaml", ".csv": "csv", ".ipynb": "ipynb", ".sh": "shell",
    ".bat": "batch", ".ps1": "powershell", ".pl": "perl", ".pm": "perl", ".rb": "ruby", ".java": "java", ".go": "go", ".rs": "rust",
    ".cpp": "cpp", ".hpp": "cpp", ".c": "c", ".f90": "fortran", ".cmake": "cmake", ".m4": "m4", ".tcl": "tcl", ".lua": "lua",
    ".sql": "sql", ".po": "po", ".proto": "proto", ".tex": "latex", ".pem": "pem", ".whl": "zip", ".pt": "pytorch", ".wasm": "wasm",
}  # fmt: skip
"""Extensions that leave no doubt about the type, and the model's word for it."""
SIDE = 1024
BLOCK = 4096
PADDING = 256
PER_CLASS = 40
_LARGEST_BYTES = 20_000_000
_CALIBRATION_SHARE = 4
"""One folder in four is for calibration."""


def features(content: bytes) -> NDArray[np.int32]:
    """The model's input for a file, shape (2048,).

    The first and last 1,024 bytes of what is left when white space is stripped from the outer sides of the first and
    last 4,096; padded with 256 on the inner side (github.com/google/magika, `_extract_features_from_seekable`).
    """
    start, end = content[:BLOCK].lstrip()[:SIDE], content[-BLOCK:].rstrip()[-SIDE:]
    row = np.full(2 * SIDE, PADDING, np.int32)
    row[: len(start)] = np.frombuffer(start, np.uint8)
    row[2 * SIDE - len(end) :] = np.frombuffer(end, np.uint8)
    return row


def prepare(folder: Path, *, quick: bool) -> Job:
    """Collect labelled files, cut them by folder, write the arrays."""
    source = wheel("magika", "1.0.3", "Apache-2.0", platform="manylinux_2_28_x86_64")
    home = source.folder / "magika" / "models" / "standard_v3_3"
    labels = json.loads((home / "config.min.json").read_text())["target_labels_space"]
    rows, wanted, owners = _collected(labels, PER_CLASS if not quick else PER_CLASS // 2)
    held_out = np.array([_digest(owner.encode())[0] % _CALIBRATION_SHARE == 0 for owner in owners])
    data = save(folder / "evaluation.npz", bytes=rows[~held_out], labels=wanted[~held_out], ids=owners[~held_out])
    calibration = save(folder / "calibration.npz", bytes=rows[held_out][:256], ids=owners[held_out][:256])
    variants = ("int8-dynamic", "int8-static", "int8-static{per_channel=true}", "graph", "bf16")
    classes = len(np.unique(wanted[~held_out]))
    return Job(
        model=str(home / "model.onnx"),
        data=data,
        settings={
            "calibration": str(calibration),
            "variants": variants,
            "metric": "top1",
            "constraints": {"max_drop": 0.02},
        },
        sources=(source,),
        facts=(
            f"{int((~held_out).sum())} files of {classes} types from this machine's Python library, installed packages and "
            "/usr/share, labelled by extension: another machine has other files.",
            f"{int(min(held_out.sum(), 256))} other files for calibration; a folder's files are all on one side, and "
            f"{len(set(owners[~held_out]))} folders count as the sources that intervals are computed over.",
        ),
    )


def _collected(labels: list[str], most: int) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.str_]]:
    """Rows, labels and folders of at most `most` different files of each type, in an order that only their bytes decide."""
    index = {name: number for number, name in enumerate(labels)}
    found: dict[str, dict[bytes, tuple[NDArray[np.int32], str]]] = defaultdict(dict)
    for path in _files():
        kind = EXTENSIONS.get(path.suffix.lower())
        if kind not in index:
            continue
        try:
            if path.is_symlink() or not 64 <= path.stat().st_size <= _LARGEST_BYTES:
                continue
            row = features(path.read_bytes())
        except OSError:
            continue
        found[kind][_digest(row.tobytes())] = (row, str(path.parent))
    kept = [(kind, *files[key]) for kind, files in sorted(found.items()) for key in sorted(files)[:most]]
    order = np.random.default_rng(0).permutation(len(kept))
    rows = np.stack([kept[place][1] for place in order])
    # The folder's name stays out of the data: only which files share one matters.
    owners = np.array([_digest(kept[place][2].encode()).hex()[:12] for place in order])
    return rows, np.array([index[kept[place][0]] for place in order], np.int64), owners


def _files() -> Iterator[Path]:
    for top in (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), "/usr/share", "/usr/include"):
        for folder, below, names in os.walk(top):
            below.sort()
            yield from (Path(folder, name) for name in sorted(names))


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()
