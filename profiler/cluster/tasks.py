"""What runs on a cluster's workers: few functions that take and give text and bytes, and are sent by name.

A unit of work is a JSON text that names the files it needs by their hash; those that are missing are asked for, and come through
`receive`. So nothing large is held in Dask's memory, where it would be lost with its worker. The answer is a frame
(`profiler.wire`) and leaves the worker at once. Before a unit does anything, the scheduler has noted that it began: Dask itself
cannot tell a task that its worker's death interrupted from one that was only queued there.
"""

from __future__ import annotations

import functools
import importlib
import io
import json
import os
import platform
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from profiler import wire
from profiler.artifacts import MODEL_NAME, ArtifactStore
from profiler.environment import describe
from profiler.errors import EdgeprofError
from profiler.targets import base, bundle, launch
from profiler.targets.process import WorkerFailure
from profiler.variants import registry

PACKAGES = ("numpy", "scipy", "onnx", "onnxruntime", "onnxslim", "onnx-ir", "openvino", "nncf")
"""Packages whose version decides what a variant or an output looks like."""
KEPT_S = 24 * 3600.0
_FOLDER = "edgeprof-files"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_WORDS = 2000


class Missing(Exception):  # noqa: N818 (an answer, no mistake)
    """Files that this worker has not got."""

    def __init__(self, hashes: list[str]) -> None:
        """`hashes` as the unit names them."""
        super().__init__(", ".join(hashes))
        self.hashes = hashes


class NotHere(Exception):  # noqa: N818 (an answer, no mistake)
    """The unit would give something else here than where it was asked from; the text says why."""


def facts(dask_worker: Any = None) -> str:
    """What this machine is and has, as JSON; and old received files are removed. Dask fills in `dask_worker`."""
    if dask_worker is not None:
        _sweep(Path(dask_worker.local_directory) / _FOLDER)
    return _facts()


def end(dask_worker: Any) -> None:
    """End this worker at once, if it has a nanny that starts it anew. Dask fills in the argument."""
    if dask_worker.nanny:
        os.kill(os.getpid(), signal.SIGKILL)


def allowed_failures(dask_scheduler: Any) -> int:
    """How many workers a task may take with it before the scheduler lets the next one have it. Dask fills in the argument."""
    return int(dask_scheduler.allowed_failures)


@functools.cache
def _facts() -> str:
    here = describe()
    packages: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            packages[name] = None
    return json.dumps(
        {
            "edgeprof": bundle.whole_name(),
            "python": ".".join(platform.python_version_tuple()[:2]),
            "packages": packages,
            "host": here.hostname,
            "machine": here.machine,
            "isa": list(here.cpu_isa),
            "cpu": here.cpu_model,
            "cores": here.usable_cores,
        },
        sort_keys=True,
    )


def receive(sha256: str, size: int, offset: int, chunk: bytes, sender: str, dask_worker: Any) -> str:
    """One piece of a file; with its last piece the file is checked and in its place. Raises WireError for another hash."""
    if not _SHA256.fullmatch(sha256) or not sender.isalnum() or offset < 0 or offset + len(chunk) > size:
        raise wire.WireError("this is no piece of a file.")
    folder = Path(dask_worker.local_directory) / _FOLDER
    folder.mkdir(exist_ok=True)
    part = folder / f"{sha256}.{sender}.part"
    with part.open("r+b" if offset else "wb") as file:
        file.seek(offset)
        file.write(chunk)
    if offset + len(chunk) < size:
        return "more"
    if wire.file_sha256(part) != sha256:
        part.unlink()
        raise wire.WireError(f"the file {sha256[:12]} did not arrive whole.")
    part.replace(folder / sha256)
    return "whole"


def unit(text: str) -> bytes:
    """Do one unit of work; the answer is a frame, also when it failed. Runs as a Dask task."""
    distributed: Any = importlib.import_module("distributed")
    worker, asked = distributed.get_worker(), json.loads(text)
    # Waits for the scheduler: afterwards it is known for sure that this attempt has begun.
    note = {"key": asked["key"], "worker": worker.address}
    distributed.utils.sync(worker.loop, worker.scheduler.log_event, topic=asked["topic"], msg=note)
    return answer(asked, Path(worker.local_directory) / _FOLDER, worker.address)


def answer(asked: Mapping[str, Any], folder: Path, address: str) -> bytes:
    """The frame that answers `asked` with the files in `folder`.

    Its header has `worker`, `facts` and one of `done`, `missing`, `not_here`, `failed`; with `done` come arrays.
    """
    here = json.loads(_facts())
    header: dict[str, Any] = {"worker": address, "facts": here}
    arrays: wire.Arrays = {}
    try:
        folder.mkdir(exist_ok=True)
        if identity(here) != asked["identity"]:
            raise NotHere(f"it has {difference(asked['identity'], identity(here))}")
        kind = KINDS.get(str(asked["kind"]))
        if kind is None:
            raise NotHere(f"it does not know work of the kind '{str(asked['kind'])[:40]}'")
        missing = [sha256 for sha256, size in asked["files"].items() if not _has(folder, sha256, size)]
        if missing:
            raise Missing(missing)
        header["done"], arrays = kind(asked["fields"], folder)
    except Missing as error:
        header["missing"] = error.hashes
    except NotHere as error:
        header["not_here"] = str(error)[:_MAX_WORDS]
    except WorkerFailure as error:
        header["failed"] = {"type": error.kind, "text": str(error)[:_MAX_WORDS], "for_people": True}
    except Exception as error:  # noqa: BLE001 (the border: whatever it is, its words are the answer)
        people = isinstance(error, EdgeprofError)
        header["failed"] = {"type": type(error).__name__, "text": str(error)[:_MAX_WORDS], "for_people": people}
    return _frame(header, arrays)


def identity(here: Mapping[str, Any]) -> dict[str, Any]:
    """Of the facts: what must be the same everywhere."""
    return {"edgeprof": here["edgeprof"], "python": here["python"], **here["packages"]}


def difference(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Where two identities differ, in words: `onnx 1.19.0 (here 1.20.1)`."""
    names = [name for name in (*wanted, *(set(found) - set(wanted))) if wanted.get(name) != found.get(name)]
    return ", ".join(f"{name} {found.get(name) or 'missing'} (here {wanted.get(name) or 'missing'})" for name in names)


def _build(asked: Mapping[str, Any], folder: Path) -> tuple[dict[str, Any], wire.Arrays]:
    """Make a variant; the record as an artifact store writes it, and the artifact's files as bytes by name."""
    variant = registry.make(str(asked["variant"]))
    try:
        content = variant.content_key()
    except (EdgeprofError, OSError):
        content = None
    if content != asked["content"]:
        raise NotHere(f"what {variant.text} reads beside the model is not there")
    rows = None
    if asked["calibration"] is not None:
        with (folder / asked["calibration"]).open("rb") as file:
            frame = wire.read_frame(file)
        rows = None if frame is None else frame[1]
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        source = _laid_out(asked["source"], folder, Path(scratch) / "source")
        store = ArtifactStore(Path(scratch) / "store")
        try:
            record = store.make(source, variant, rows, asked["calibration_sha256"])
        except EdgeprofError as error:
            # A path of this machine tells nobody anything.
            raise type(error)(str(error).replace(f"'{source}'", "the model")) from error
        arrays: wire.Arrays = {
            name: np.frombuffer(path.read_bytes(), dtype=np.uint8) for name, path in store.files(record.sha256).items()
        }
    return {"record": {**asdict(record), "facts": dict(record.facts), "notes": list(record.notes)}}, arrays


def _evaluate(asked: Mapping[str, Any], folder: Path) -> tuple[dict[str, Any], wire.Arrays]:
    """Outputs of rows, which are a multiple of the batch, from a process as on the target; arrays by output."""
    here = json.loads(_facts())
    wanted = {"machine": here["machine"], "isa": here["isa"]}
    if wanted != asked["cpu"]:
        raise NotHere("its processor has other instruction sets than the target")
    if here["cores"] < int(asked["load"]["threads"]):
        raise NotHere(f"it has {here['cores']} cores for {asked['load']['threads']} threads")
    with (folder / asked["rows"]).open("rb") as file:
        frame = wire.read_frame(file)
    assert frame is not None
    rows, batch, limit_s = frame[1], int(asked["load"]["batch"]), float(asked["limit_s"])
    parts: dict[str, list[Any]] = {}
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        model = _laid_out(asked["source"], folder, Path(scratch) / "artifact")
        with launch.start(
            base.local(), cache=Path(scratch) / "received", memory_limit_bytes=asked["memory_limit_bytes"]
        ) as worker:
            worker.request(
                "load", timeout_s=limit_s, **asked["load"], path=str(model), sha256=None, name=MODEL_NAME,
                cache_dir=str(Path(scratch) / "engines"),
            )  # fmt: skip
            for start in range(0, len(next(iter(rows.values()))), batch):
                feeds = {name: np.ascontiguousarray(array[start : start + batch]) for name, array in rows.items()}
                for name, array in worker.request("infer", feeds, timeout_s=limit_s)[1].items():
                    if array.ndim == 0 or array.shape[0] != batch:
                        raise WorkerFailure("error", f"output '{name}' has shape {array.shape} for a batch of {batch}.")
                    parts.setdefault(name, []).append(array)
    return {}, {name: np.concatenate(arrays) for name, arrays in parts.items()}


KINDS: dict[str, Callable[[Mapping[str, Any], Path], tuple[dict[str, Any], wire.Arrays]]] = {
    "build": _build,
    "evaluate": _evaluate,
}
"""What a unit may ask for."""


def _frame(header: Mapping[str, Any], arrays: wire.Arrays) -> bytes:
    buffer = io.BytesIO()
    try:
        wire.write_frame(buffer, header, arrays)
    except (TypeError, ValueError, wire.WireError) as error:
        # Raised before a byte is written: facts that are no JSON, outputs that are texts.
        told = {key: header[key] for key in ("worker", "facts")}
        failed = {
            "type": type(error).__name__,
            "text": f"the answer cannot travel: {error}"[:_MAX_WORDS],
            "for_people": True,
        }
        wire.write_frame(buffer, {**told, "failed": failed})
    return buffer.getvalue()


def _laid_out(files: Mapping[str, str], folder: Path, scratch: Path) -> Path:
    """A model's files under their own names: runtimes go by them. Raises WireError for names that leave the folder."""
    for name, sha256 in files.items():
        target = scratch / plain_name(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        # Copies: onnx refuses links as external data.
        shutil.copyfile(folder / sha256, target)
    return scratch / MODEL_NAME


def plain_name(name: str) -> str:
    """The name itself. Raises WireError for one that is no relative path below a folder."""
    parts = Path(name).parts
    if not parts or Path(name).is_absolute() or ".." in parts or "\0" in name or "\\" in name:
        raise wire.WireError(f"'{name[:80]!r}' is not the name of an artifact's file.")
    return name


def _has(folder: Path, sha256: str, size: int) -> bool:
    """Whether the file is here; it was hashed when it came. Marks it as used."""
    if not _SHA256.fullmatch(sha256):
        raise wire.WireError("a unit names its files by SHA-256.")
    path = folder / sha256
    if not path.is_file() or path.stat().st_size != size:
        return False
    path.touch()
    return True


def _sweep(folder: Path) -> None:
    """Remove what nothing used for a day; a worker may live for months."""
    for path in folder.glob("*") if folder.is_dir() else ():
        try:
            # Wall clock on purpose: it is compared with file times.
            if path.is_file() and time.time() - path.stat().st_mtime > KEPT_S:
                path.unlink()
        except OSError:
            continue
