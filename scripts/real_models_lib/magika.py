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
    ".tiff": "tiff", ".tif": "tiff",
    ".ico": "ico", ".webp": "webp", ".pdf": "pdf", ".ps": "postscript", ".ttf": "ttf", ".otf": "otf",
    ".woff": "woff", ".woff2": "woff2", ".wav": "wav", ".mp3": "mp3", ".ogg": "ogg", ".flac": "flac", ".so": "elf",
    ".exe": "pebin", ".dll": "pebin", ".gz": "gzip", ".bz2": "bzip", ".xz": "xz", ".zip": "zip", ".tar": "tar", ".deb": "deb",
    ".h5": "h5", ".npy": "npy", ".npz": "npz", ".onnx": "onnx", ".pickle": "pickle", ".sqlite": "sqlite", ".parquet": "parquet",
    ".rst": "rst", ".md": "markdown", ".toml": "toml", ".yaml": "yaml", ".yml": "yaml", ".csv": "csv",
    ".ipynb": "ipynb", ".sh": "shell",
    ".bat": "batch", ".ps1": "powershell", ".pl": "perl", ".pm": "perl", ".rb": "ruby", ".java": "java", ".go": "go",
    ".rs": "rust",
    ".cpp": "cpp", ".hpp": "cpp", ".c": "c", ".f90": "fortran", ".cmake": "cmake", ".m4": "m4", ".tcl": "tcl", ".lua": "lua",
    ".sql": "sql", ".po": "po", ".proto": "proto", ".tex": "latex", ".pem": "pem", ".whl": "zip", ".pt": "pytorch",
    ".wasm": "wasm",
}  # fmt: skip
"""Extensions that leave no doubt about the type, and the model's word for it."""
EVERYTHING = "int8-static{op_types=Add|Concat|Conv|Gemm|MatMul|Mul|Reshape|Softmax|Sub|Tanh|Transpose}"
"""Quantizes more than products: what many recipes on the web do, and what destroys this model."""
SIDE = 1024
BLOCK = 4096
PADDING = 256
PER_CLASS = 40
_SMALLEST_BYTES = 64
_CALIBRATION_SHARE = 4
"""One folder in four is for calibration."""


def features(first: bytes, last: bytes) -> NDArray[np.int32]:
    """The model's input, shape (2048,), from the first and the last 4,096 bytes of a file.

    Of each side the outer 1,024 bytes after white space was stripped there; padded with 256 on the inner side
    (github.com/google/magika, `_extract_features_from_seekable`).
    """
    start, end = first[:BLOCK].lstrip()[:SIDE], last[-BLOCK:].rstrip()[-SIDE:]
    row = np.full(2 * SIDE, PADDING, np.int32)
    row[: len(start)] = np.frombuffer(start, np.uint8)
    row[2 * SIDE - len(end) :] = np.frombuffer(end, np.uint8)
    return row


def prepare(folder: Path, *, quick: bool) -> Job:
    """Collect labelled files, cut them by folder, write the arrays."""
    source = wheel("magika", "1.0.3", "Apache-2.0", platform="manylinux_2_28_x86_64")
    home = source.folder / "magika" / "models" / "standard_v3_3"
    labels = json.loads((home / "config.min.json").read_text())["target_labels_space"]
    rows, wanted, owners = _collected(labels, PER_CLASS // 2 if quick else PER_CLASS)
    held_out = np.array([_digest(owner.encode())[0] % _CALIBRATION_SHARE == 0 for owner in owners])
    data = save(folder / "evaluation.npz", bytes=rows[~held_out], labels=wanted[~held_out], ids=owners[~held_out])
    calibration = save(folder / "calibration.npz", bytes=rows[held_out][:256], ids=owners[held_out][:256])
    variants = (
        "graph",
        "bf16",
        "int8-dynamic",
        "int8-dynamic{op_types=Conv|Gemm|MatMul}",
        "int8-static",
        "int8-static{per_channel=true}",
        EVERYTHING,
    )
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
            (
                f"{int((~held_out).sum())} files of {classes} types from this machine's Python library, installed packages and "
                "/usr/share, labelled by extension: another machine has other files."
            ),
            (
                f"{int(min(held_out.sum(), 256))} other files for calibration; a folder's files are all on one side, and "
                f"{len(set(owners[~held_out]))} folders count as the sources that intervals are computed over."
            ),
        ),
    )


def _collected(labels: list[str], most: int) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.str_]]:
    """Rows, labels and folders of at most `most` different files of each type, drawn by the hash of their paths."""
    index = {name: number for number, name in enumerate(labels)}
    found: dict[str, list[Path]] = defaultdict(list)
    for path in _files():
        kind = EXTENSIONS.get(path.suffix.lower())
        if kind in index:
            found[kind].append(path)
    kept = []
    for kind, paths in sorted(found.items()):
        seen: set[bytes] = set()
        for path in sorted(paths, key=lambda path: _digest(str(path).encode())):
            if len(seen) == most:
                break
            row = _row(path)
            if row is not None and (content := _digest(row.tobytes())) not in seen:
                seen.add(content)
                kept.append((row, index[kind], str(path.parent)))
    order = np.random.default_rng(0).permutation(len(kept))
    # The folder's name stays out of the data: only which files share one matters.
    owners = np.array([_digest(kept[place][2].encode()).hex()[:12] for place in order])
    return (
        np.stack([kept[place][0] for place in order]),
        np.array([kept[place][1] for place in order], np.int64),
        owners,
    )


def _row(path: Path) -> NDArray[np.int32] | None:
    """The features of a file; None for links, tiny files and what cannot be read."""
    try:
        if path.is_symlink() or path.stat().st_size < _SMALLEST_BYTES:
            return None
        with path.open("rb") as file:
            first = file.read(BLOCK)
            file.seek(max(0, path.stat().st_size - BLOCK))
            return features(first, file.read(BLOCK))
    except OSError:
        return None


def _files() -> Iterator[Path]:
    for top in (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), "/usr/share", "/usr/include"):
        for folder, below, names in os.walk(top):
            below.sort()
            yield from (Path(folder, name) for name in sorted(names))


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()
