"""The maker: a worker that also makes variants of models, reads them, counts in them. See `profiler.targets.maker`, its parent.

One more command, `do`, with the name of a task and its fields; the answer is JSON in an array, because names in a model are
passed on as they are. An error for people travels with its classes; whatever else happens is the worker's to tell.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from backends.base import EdgeprofError
from profiler import wire, worker

Fields = Mapping[str, Any]
Task = Callable[[Fields], Any]


def main() -> None:
    """Serve until stdin ends."""
    worker.main(more={"do": _do})


def _do(state: worker.State, header: Fields, arrays: wire.Arrays) -> worker.Reply:
    del state, arrays
    name = str(header.get("task"))
    if name not in TASKS:
        raise ValueError(f"unknown task '{name}'")
    try:
        answer = TASKS[name](header["fields"])
    except EdgeprofError as error:
        if memory_was_short(error):
            raise MemoryError from error
        return {"raised": {"classes": [one.__name__ for one in type(error).__mro__], "text": str(error)}}, {}
    finally:
        # It stays, idle, beside what is timed.
        worker.become_quiet()
    return {}, {"answer": np.frombuffer(json.dumps(answer).encode(), np.uint8)}


def memory_was_short(error: BaseException | None) -> bool:
    """Whether a lack of memory is at the root of an error, by the exceptions that it was raised from."""
    while error is not None:
        # Runtimes raise one class for everything: of theirs only the words tell.
        theirs = not isinstance(error, EdgeprofError) and worker.kind_of(str(error)) == "out_of_memory"
        if isinstance(error, MemoryError) or theirs:
            return True
        error = error.__cause__
    return False


def _describe(fields: Fields) -> Any:
    """See `profiler.targets.maker.describe`."""
    from profiler.artifacts import source_sha256
    from profiler.onnx_io import MAX_MODEL_BYTES, model_inputs, model_outputs, read_model

    path = Path(fields["path"])
    # Refused by what the file announces, before it is allocated: a sparse file announces more than any machine has.
    allowed = resource.getrlimit(resource.RLIMIT_DATA)[0]
    known = allowed != resource.RLIM_INFINITY
    model = read_model(path, max_bytes=min(MAX_MODEL_BYTES, allowed) if known else MAX_MODEL_BYTES)
    infos = {"inputs": model_inputs(model), "outputs": model_outputs(model)}
    del model
    return {name: [asdict(info) for info in found] for name, found in infos.items()} | {"sha256": source_sha256(path)}


def _make(fields: Fields) -> Any:
    """`ArtifactStore.make`; the record as the store writes it."""
    from profiler.artifacts import ArtifactStore, record_fields
    from profiler.targets.maker import read_rows
    from profiler.variants import external, registry

    external.count_from(Path(fields["working_folder"]))
    rows = None if fields["rows"] is None else read_rows(Path(fields["rows"]))
    store = ArtifactStore(Path(fields["store"]), scratch=Path(fields["scratch"]))
    variant = registry.make(fields["variant"])
    return record_fields(store.make(Path(fields["source"]), variant, rows, fields["calibration_sha256"]))


def _cached(fields: Fields) -> Any:
    """`ArtifactStore.cached`, as `_make` answers; null where there is none."""
    from profiler.artifacts import ArtifactStore, record_fields
    from profiler.variants import external, registry

    external.count_from(Path(fields["working_folder"]))
    store = ArtifactStore(Path(fields["store"]), scratch=Path(fields["scratch"]))
    found = store.cached(Path(fields["source"]), registry.make(fields["variant"]), fields["calibration_sha256"])
    return None if found is None else record_fields(found)


def _keep(fields: Fields) -> Any:
    """`ArtifactStore.keep` of a model that was made elsewhere and lies in `made`."""
    from profiler.artifacts import ArtifactStore, record_fields
    from profiler.onnx_io import read_model
    from profiler.variants import external, registry
    from profiler.variants.base import VariantResult

    external.count_from(Path(fields["working_folder"]))
    store = ArtifactStore(Path(fields["store"]), scratch=Path(fields["scratch"]))
    result = VariantResult(
        read_model(Path(fields["made"])), fields["facts"], tuple(fields["notes"]), changed=fields["changed"]
    )
    variant, sha256 = registry.make(fields["variant"]), fields["calibration_sha256"]
    return record_fields(store.keep(Path(fields["source"]), variant, sha256, lambda: result))


def _files(fields: Fields) -> Any:
    """Names of the files beside a model that hold its tensors, relative to its folder."""
    from profiler.onnx_io import external_files

    path = Path(fields["path"])
    return [file.relative_to(path.parent).as_posix() for file in external_files(path)]


def _count(fields: Fields) -> Any:
    """`count_model` of a model file; shapes are enough, what lies beside the file is not read unless it is to be `checked`."""
    import onnx

    from profiler.onnx_io import read_model
    from profiler.roofline.counting import count_model

    path = Path(fields["path"])
    model = read_model(path) if fields["checked"] else onnx.load(str(path), load_external_data=False)
    return asdict(count_model(model, fields["batch"], {name: tuple(shape) for name, shape in fields["shapes"].items()}))


def _layers(fields: Fields) -> Any:
    """`file_facts` of a model file at a batch, and its nodes without what they hold."""
    from profiler.explain.layers import bare_nodes, file_facts
    from profiler.onnx_io import read_model

    model = read_model(Path(fields["path"]))
    facts = file_facts(model, fields["batch"])
    return {
        "facts": {**asdict(facts), "nodes": sorted(facts.nodes)},
        "nodes": [asdict(node) for node in bare_nodes(model)],
    }


def _sensitivities(fields: Fields) -> Any:
    """`sensitivities` of a recipe's ops on calibration rows."""
    from profiler.onnx_io import read_model
    from profiler.targets.maker import read_rows
    from profiler.variants import registry
    from profiler.variants.int8_static import Int8Static
    from profiler.variants.sensitivity import sensitivities

    recipe = registry.make(fields["variant"])
    assert isinstance(recipe, Int8Static)
    model = read_model(Path(fields["path"]))
    found = sensitivities(model, read_rows(Path(fields["rows"])), recipe, limit=fields["limit"])
    return [asdict(one) for one in found]


def _suggestions(fields: Fields) -> Any:
    """`suggestions` for a model where it will run."""
    from profiler.onnx_io import read_model
    from profiler.search.space import suggestions

    return suggestions(read_model(Path(fields["path"])), fields["backends"], fields["isa"], fields["machine"])


def _export(fields: Fields) -> Any:
    """`export` of an ONNX file."""
    from profiler.export import onnx as from_onnx
    from profiler.targets.maker import read_rows

    rows = read_rows(Path(fields["rows"]))
    found = from_onnx.export(Path(fields["source"]), rows, Path(fields["out"]), opset=fields["opset"])
    return {**asdict(found), "path": str(found.path), "files": [str(file) for file in found.files]}


def _rows(fields: Fields) -> Any:
    """`read_function` in the caller's folder; answers where the rows lie, for `read_rows`."""
    from profiler.data.functions import read_function
    from profiler.targets.maker import write_rows

    # The user's code reads its own files as it always does, and imports what the caller can import.
    os.chdir(fields["working_folder"])
    sys.path += [path for path in fields["paths"] if path not in sys.path]
    rows = read_function(fields["function"], tuple(fields["names"]), limit=fields["limit"])
    folder = Path(tempfile.mkdtemp(prefix="rows-", dir=fields["scratch"]))
    write_rows(rows, folder)
    return str(folder)


TASKS: Mapping[str, Task] = {
    "cached": _cached,
    "count": _count,
    "describe": _describe,
    "export": _export,
    "files": _files,
    "keep": _keep,
    "layers": _layers,
    "make": _make,
    "rows": _rows,
    "sensitivities": _sensitivities,
    "suggestions": _suggestions,
}
"""What it can be asked to do."""
