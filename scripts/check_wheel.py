"""The wheel holds the three packages, their data and nothing else, and stays small enough for a device's disk."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

MAX_BYTES = 5_000_000
TOP = {"profiler", "backends", "device_profiles"}
MUST = (
    "profiler/py.typed",
    "backends/py.typed",
    "device_profiles/py.typed",
    "profiler/demo/fashion_mnist_resnet.onnx",
    "profiler/demo/PROVENANCE.md",
    "device_profiles/prices/aws.csv",
)


def main(path: Path) -> None:
    names = zipfile.ZipFile(path).namelist()
    problems = [f"{missing} is missing" for missing in MUST if missing not in names]
    tops = {name.split("/", 1)[0] for name in names}
    extra = {top for top in tops - TOP if not top.endswith(".dist-info")}
    problems += [f"top-level '{top}' does not belong into the wheel" for top in sorted(extra)]
    problems += [
        f"{name} does not belong into the wheel" for name in names if name.endswith((".pyc", ".sqlite", ".tmp"))
    ]
    if not any(name.startswith("profiler/report/") and name.endswith((".html", ".j2", ".html.j2")) for name in names):
        problems.append("the report's template is missing")
    size = path.stat().st_size
    if size > MAX_BYTES:
        problems.append(f"the wheel has {size:,} bytes, at most {MAX_BYTES:,} are allowed")
    if problems:
        sys.exit("\n".join(problems))
    print(f"wheel: {len(names)} files, {size:,} bytes")


main(Path(sys.argv[1]))
