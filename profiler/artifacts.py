"""The artifact cache: model files by the hash of their content, and what each variant made of which model.

    <folder>/objects/<sha256[:2]>/<sha256>/model.onnx[, model.onnx.data]
    <folder>/entries/<key>.json

Objects are written whole into a temporary folder and moved into place in one step, so readers see all of one or nothing, and
processes that make the same thing at the same time do no harm: the content decides the name. What was damaged later is
noticed (every file is hashed when it is handed out) and made again.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from profiler import __version__, units
from profiler.errors import EdgeprofError, StoreError, VariantError
from profiler.onnx_io import external_files, read_model, write_model
from profiler.records import ArtifactRecord

if TYPE_CHECKING:
    from onnx import ModelProto

    from profiler.variants.base import Calibration, Variant, VariantResult

FORMAT = 1
MODEL_NAME = "model.onnx"
COMPRESS_UP_TO_BYTES = 1_000_000_000
"""Larger artifacts are not compressed to learn their compressed size: zlib level 6 takes some 30 s per GB."""
MAKERS = ("onnx", "onnxruntime", "onnxslim")
"""Packages whose version decides what a variant looks like."""
CHUNK = 1 << 20
TEMPORARY = "tmp"
"""Folder of a store in which files are written before they appear."""
STALE_AFTER_S = 24 * 3600.0
OPTION_PREFIX = "backend_options."


class ArtifactStore:
    """Artifacts below `folder`, which is made when it is missing. Safe to use from several processes."""

    def __init__(self, folder: Path, *, scratch: Path | None = None) -> None:
        """Prepare the folder; raises StoreError when that is not possible.

        `scratch` is a folder on the same file system in which files are written before they appear; None: one of its own.
        """
        self.folder, self._scratch_folder = folder, scratch or folder / TEMPORARY
        with full_disk(folder):
            for name in ("objects", "entries", TEMPORARY):
                (folder / name).mkdir(parents=True, exist_ok=True)
        self._sweep()

    def put(self, model: ModelProto | Path) -> str:
        """Store a model, or a model file with its external data as they are, and return its sha256."""
        return self._store(model)[0]

    def _store(self, model: ModelProto | Path) -> tuple[str, int, int | None]:
        """Sha256, size and compressed size, all taken before anybody else can touch the files."""
        with full_disk(self.folder), self._scratch() as made:
            if isinstance(model, Path):
                for file in (model, *external_files(model)):
                    target = made / (MODEL_NAME if file == model else file.relative_to(model.parent))
                    target.parent.mkdir(parents=True, exist_ok=True)
                    _copy(file, target)
            else:
                write_model(model, made, MODEL_NAME)
            digest, files = content_sha256(made), _files(made)
            size = sum(file.stat().st_size for file in files)
            compressed = compressed_bytes(files) if size <= COMPRESS_UP_TO_BYTES else None
            made.chmod(0o755)  # mkdtemp makes folders for this user only
            self._publish(made, digest)
        return digest, size, compressed

    def path(self, sha256: str) -> Path:
        """The model file of an artifact; unverified. Raises StoreError when it is not here."""
        path = self._object(sha256) / MODEL_NAME
        if not path.is_file():
            raise StoreError(f"artifact {sha256[:12]} is not in '{self.folder}': run the study again to make it.")
        return path

    def files(self, sha256: str) -> dict[str, Path]:
        """All files of an artifact by their name relative to it, the order in which they are hashed."""
        root = self.path(sha256).parent
        return {str(file.relative_to(root)): file for file in _files(root)}

    def verify(self, sha256: str) -> bool:
        """Whether the artifact is here and its bytes still have that hash."""
        folder = self._object(sha256)
        try:
            return (folder / MODEL_NAME).is_file() and content_sha256(folder) == sha256
        except OSError:
            return False

    def make(
        self, source: Path, variant: Variant, calibration: Calibration | None, calibration_sha: str | None
    ) -> ArtifactRecord:
        """The artifact of `variant` on the model at `source`, from the cache or made now.

        `calibration_sha` identifies the calibration rows; it counts only for variants that look at them. A damaged cache entry
        is made again, and the record's notes say so. Raises ModelError, DataError or VariantError when it cannot be made.
        """
        return self.keep(source, variant, calibration_sha, lambda: _apply(source, variant, calibration))

    def keep(
        self, source: Path, variant: Variant, calibration_sha: str | None, result: Callable[[], VariantResult]
    ) -> ArtifactRecord:
        """As `make`, with `result` in the place of the work: called where the cache has nothing. Raises what it raises."""
        entry = self._entry(source, variant, calibration_sha)
        cached, damage = self._read_entry(entry)
        if cached is not None:
            return cached
        started = time.perf_counter()
        record = self._record(variant, result(), started)
        with full_disk(self.folder):
            self._write_entry(entry, record)
        if damage:
            note = f"the cached artifact was damaged ({damage}) and was made again."
            return dataclasses.replace(record, notes=(*record.notes, note))
        return record

    def cached(self, source: Path, variant: Variant, calibration_sha: str | None) -> ArtifactRecord | None:
        """What `make` would find in the cache. Raises ModelError for a source that cannot be read."""
        return self._read_entry(self._entry(source, variant, calibration_sha))[0]

    def remake(
        self, source: Path, variant: Variant, calibration: Calibration | None, calibration_sha: str | None, sha256: str
    ) -> str:
        """Put an artifact back that was lost: its sha256, which is `sha256` where making it gives the same file again.

        Raises as `make`, and StoreError where the folder cannot be made.
        """
        with full_disk(self.folder):
            for name in ("objects", "entries", "tmp"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
        if self.verify(sha256):
            return sha256
        return self.make(source, variant, calibration, calibration_sha).sha256

    def _entry(self, source: Path, variant: Variant, calibration_sha: str | None) -> Path:
        return self.folder / "entries" / f"{cache_key(source_sha256(source), variant, calibration_sha)}.json"

    def _record(self, variant: Variant, result: VariantResult, started: float) -> ArtifactRecord:
        sha256, size, compressed = self._store(result.model)
        return ArtifactRecord(
            variant=variant.text,
            sha256=sha256,
            size_bytes=size,
            compressed_bytes=compressed,
            changed=result.changed,
            facts={**result.facts, **_loading_facts(variant)},
            notes=result.notes,
            seconds=time.perf_counter() - started,
        )

    def _read_entry(self, entry: Path) -> tuple[ArtifactRecord | None, str | None]:
        """The cached record, or None and what is damaged (None too when there was no entry)."""
        try:
            data = json.loads(entry.read_text(encoding="utf-8"))
            body = data["record"]
            if data["format"] != FORMAT or data["check"] != _check(body):
                return None, "its entry does not match its checksum"
            record = record_of(body)
        except FileNotFoundError:
            return None, None
        except (OSError, ValueError, KeyError, TypeError):
            return None, "its entry cannot be read"
        if not self.verify(record.sha256):
            missing = not (self._object(record.sha256) / MODEL_NAME).is_file()
            return None, "its file is missing" if missing else "its file does not have the recorded hash"
        return record, None

    def _write_entry(self, entry: Path, record: ArtifactRecord) -> None:
        body = record_fields(record)
        text = json.dumps({"format": FORMAT, "check": _check(body), "record": body}, indent=1, sort_keys=True)
        with self._scratch() as folder:
            temporary = folder / entry.name
            with temporary.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(entry)
            _sync_folder(entry.parent)

    def _object(self, sha256: str) -> Path:
        if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
            raise StoreError(f"'{sha256[:80]}' is not the sha256 of an artifact: expected 64 hexadecimal digits.")
        return self.folder / "objects" / sha256[:2] / sha256

    def _publish(self, made: Path, sha256: str) -> None:
        target = self._object(sha256)
        target.parent.mkdir(exist_ok=True)
        _sync_folder(made)
        for _ in range(10):
            try:
                made.rename(target)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                # Somebody was first. Theirs is as good as ours, unless it was damaged since.
                if self.verify(sha256):
                    return
                self._remove(target)
            else:
                _sync_folder(target.parent)
                return
        raise StoreError(f"artifact {sha256[:12]} in '{target}' is damaged and cannot be replaced: delete that folder.")

    def _remove(self, target: Path) -> None:
        """Take a damaged object out of the way in one step; another process may do the same."""
        with self._scratch() as bin_folder:
            try:
                target.rename(bin_folder / "damaged")
            except FileNotFoundError:
                return

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        folder = Path(tempfile.mkdtemp(dir=self._scratch_folder))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _sweep(self) -> None:
        """Remove what processes left that were killed long ago."""
        for folder in (self.folder / TEMPORARY).iterdir():
            try:
                # Wall clock on purpose: it is compared with file times.
                old = time.time() - folder.stat().st_mtime > STALE_AFTER_S
            except OSError:
                continue
            if old:
                shutil.rmtree(folder, ignore_errors=True)


def _apply(source: Path, variant: Variant, calibration: Calibration | None) -> VariantResult:
    """What `ArtifactStore.make` raises, for whatever happens while a variant is made."""
    model = read_model(source)
    try:
        # Rows are offered only where the cache key holds their hash.
        return variant.apply(model, calibration if variant.looks_at_calibration else None)
    except EdgeprofError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _no_space(Path(tempfile.gettempdir()), error) from error
        raise VariantError(f"{variant.text} could not be made from '{source}': {error}.") from error
    except MemoryError as error:
        raise VariantError(f"{variant.text} needs more memory than this machine has free.") from error
    except Exception as error:
        text = " ".join(str(error).split())[:300] or "no message"
        raise VariantError(
            f"{variant.text} could not be made from '{source}': {type(error).__name__}: {text}. Leave it out of the study."
        ) from error


def record_fields(record: ArtifactRecord) -> dict[str, Any]:
    """The record as JSON has it; `record_of` takes it back."""
    return {**dataclasses.asdict(record), "facts": dict(record.facts), "notes": list(record.notes)}


def record_of(body: Mapping[str, Any]) -> ArtifactRecord:
    """The record that `record_fields` gave. Raises KeyError, TypeError or ValueError for what is none."""
    return ArtifactRecord(**{**body, "notes": tuple(body["notes"])})


def cache_key(source: str, variant: Variant, calibration_sha: str | None) -> str:
    """Hash of everything that decides an artifact: model, recipe, calibration rows, and the versions of what makes it."""
    parts = {
        "source": source,
        "variant": variant.text,
        "content": variant.content_key(),
        "calibration": calibration_sha if variant.looks_at_calibration else None,
        "edgeprof": __version__,
        "makers": {name: _version(name) for name in MAKERS},
        "format": FORMAT,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def source_sha256(path: Path) -> str:
    """Hash of a model file and its external data, wherever it lies and whatever the file is called."""
    digest = hashlib.sha256()
    for file in (path, *external_files(path)):
        _feed(digest, "" if file == path else str(file.relative_to(path.parent)), file)
    return digest.hexdigest()


def content_sha256(folder: Path) -> str:
    """Hash over names, sizes and bytes of all files in an artifact's folder, `model.onnx` first, then by name."""
    digest = hashlib.sha256()
    for file in _files(folder):
        _feed(digest, str(file.relative_to(folder)), file)
    return digest.hexdigest()


def compressed_bytes(files: Iterable[Path]) -> int:
    """Size of the files together after zlib level 6, without keeping the result."""
    packer, total = zlib.compressobj(6), 0
    for file in files:
        for chunk in _chunks(file):
            total += len(packer.compress(chunk))
    return total + len(packer.flush())


def merged(record: ArtifactRecord, earlier: Iterable[ArtifactRecord]) -> ArtifactRecord:
    """`record`, with `equal_to` naming the first of `earlier` that has the same bytes and is loaded the same way."""
    for other in earlier:
        same = other.sha256 == record.sha256 and _loading(other.facts) == _loading(record.facts)
        if same and other.variant != record.variant and other.equal_to is None:
            return dataclasses.replace(record, equal_to=other.variant)
    return record


def backend_options(record: ArtifactRecord, backend: str) -> dict[str, str]:
    """Load options that belong to the variant of `record` on `backend`: `{"precision": "bf16"}`."""
    prefix = f"{OPTION_PREFIX}{backend}."
    return {key[len(prefix) :]: str(value) for key, value in record.facts.items() if key.startswith(prefix)}


def runs_on(record: ArtifactRecord, backend: str) -> bool:
    """Whether the variant of `record` may be tried on `backend`."""
    only = record.facts.get("only_backends")
    return only is None or backend in str(only).split("|")


def _loading_facts(variant: Variant) -> dict[str, str]:
    facts = {
        f"{OPTION_PREFIX}{backend}.{key}": value
        for backend, options in variant.backend_options.items()
        for key, value in options.items()
    }
    return {**facts, **({"only_backends": "|".join(variant.only_backends)} if variant.only_backends else {})}


def _loading(facts: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in facts.items() if key.startswith(OPTION_PREFIX) or key == "only_backends"}


def _check(body: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _files(folder: Path) -> list[Path]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return sorted(files, key=lambda file: (file.name != MODEL_NAME, str(file.relative_to(folder))))


def _feed(digest: hashlib._Hash, name: str, file: Path) -> None:
    digest.update(f"{name}\0{file.stat().st_size}\0".encode())
    for chunk in _chunks(file):
        digest.update(chunk)


def _chunks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            yield chunk


def _copy(source: Path, target: Path) -> None:
    with target.open("wb") as out:
        for chunk in _chunks(source):
            out.write(chunk)
        out.flush()
        os.fsync(out.fileno())


def _sync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power cut, where the system can open folders."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


@contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """Turn the system's errors about writing into a message that says what to do; half-written files are gone by then."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _no_space(folder, error) from error
        raise StoreError(
            f"the artifact cache '{folder}' cannot be written: {error}. Choose another folder with --out."
        ) from error


def _no_space(folder: Path, error: OSError) -> StoreError:
    try:
        free = units.size(shutil.disk_usage(folder).free)
    except OSError:
        free = "an unknown amount"
    return StoreError(
        f"no space left for artifacts in '{folder}' ({error.strerror}, {free} free): free some, or choose another --out."
    )
