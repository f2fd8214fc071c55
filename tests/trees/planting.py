"""Make a root folder from a machine's description in this folder.

A description has one `path: content` a line; `{0-7}` in a path stands for each of these numbers, `\\n`, `\\0` and `\\t` in a
content for the characters; a line that begins with `#` says where the content comes from.
"""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent
MACHINES = sorted(path.stem for path in HERE.glob("*.txt"))


def plant(name: str, root: Path) -> Path:
    """Write the files of machine `name` below `root`, which is returned."""
    return write(read(name), root)


def read(name: str) -> dict[str, str]:
    """The files of machine `name`: content by path."""
    files = {}
    for line in (HERE / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            path, _, content = f"{line} ".partition(": ")
            for each in _each(path):
                files[each] = re.sub(
                    r"\\[n0t]", lambda found: {"n": "\n", "0": "\0", "t": "\t"}[found[0][1]], content[:-1]
                )
    return files


def write(files: dict[str, str | bytes], root: Path) -> Path:
    """Write files below `root`, each ending in a newline as the kernel's do (device-tree strings end in a null byte)."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if content.endswith("\0") else f"{content}\n", encoding="utf-8")
    return root


def _each(path: str) -> list[str]:
    span = re.search(r"\{(\d+)-(\d+)\}", path)
    if span is None:
        return [path]
    numbers = range(int(span[1]), int(span[2]) + 1)
    return [again for number in numbers for again in _each(path.replace(span[0], str(number), 1))]
