"""Reading and writing ONNX at the border. A model file is untrusted: its size, its outer structure and where its external
data point are checked before anything large is read or allocated.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import onnx
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, inliner

from backends import protobuf
from backends.base import TensorInfo
from profiler import units
from profiler.errors import ModelError

MAX_MODEL_BYTES = 32_000_000_000
"""Most bytes read for one model, external data included."""
PROTOBUF_LIMIT_BYTES = 2**31 - 1
"""No protobuf message can be longer (protobuf.dev, "Proto limits"); larger models keep their weights beside the file."""
SINGLE_FILE_BYTES = 1_900_000_000
"""Up to here a written model is one file: below the protobuf limit with room for the graph."""
EXTERNAL_FROM_BYTES = 1024
ALIGNMENT_BYTES = 4096
"""External tensors start on a page, so that runtimes can map them."""

_MODEL_FIELDS = frozenset(range(1, 33))
"""onnx.proto uses 1 to 26 for ModelProto today."""
_GRAPH_FIELD = 7
_UNKNOWN_TYPE = "unknown"
_FLOATS = frozenset(
    value for name, value in TensorProto.DataType.items() if name.startswith(("FLOAT", "BFLOAT", "DOUBLE"))
)


def read_model(path: Path, *, max_bytes: int = MAX_MODEL_BYTES) -> ModelProto:
    """The model at `path` with its external data loaded, checked by `onnx.checker`.

    A model may end the process that reads it: `profiler.targets.maker` has it read in another one.

    Raises ModelError that says what is wrong: no file, a folder, empty, truncated, not ONNX, larger than `max_bytes`,
    external data missing, too short or outside the model's folder.
    """
    _check_file(path, max_bytes)
    model = _parse(path)
    total = path.stat().st_size
    for name in _external_names(model):
        total += _external_path(path, name).stat().st_size
        if total > max_bytes:
            raise ModelError(
                f"model '{path}' and its external data have more than {units.size(max_bytes)}, the limit for one model."
            )
    _check_external_ranges(path, model, max_bytes)
    _check_text(path, model)
    try:
        # By path: the checker's other form serializes the model, which fails above 2 GB.
        onnx.checker.check_model(str(path))
    except Exception as error:
        raise ModelError(f"model '{path}' is not valid ONNX: {_first_lines(error)}. Export it again.") from error
    try:
        onnx.external_data_helper.load_external_data_for_model(model, str(path.parent))
    except Exception as error:
        raise ModelError(f"external data of model '{path}' cannot be read: {_first_lines(error)}.") from error
    return model


def external_files(path: Path) -> tuple[Path, ...]:
    """The files beside `path` that hold its tensors, sorted by name; checked to exist inside the model's folder."""
    _check_file(path, MAX_MODEL_BYTES)
    return tuple(_external_path(path, name) for name in _external_names(_parse(path)))


def model_size_bytes(path: Path) -> int:
    """Size of the model file and of its external data."""
    return path.stat().st_size + sum(file.stat().st_size for file in external_files(path))


def model_inputs(model: ModelProto) -> tuple[TensorInfo, ...]:
    """What has to be fed: the graph's inputs without those that an initializer supplies.

    Raises ModelError for an element type that nobody can feed.
    """
    supplied = {tensor.name for tensor in model.graph.initializer}
    supplied |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    inputs = tuple(_tensor_info(value) for value in model.graph.input if value.name not in supplied)
    for info, value in zip(inputs, (v for v in model.graph.input if v.name not in supplied), strict=True):
        if info.dtype == _UNKNOWN_TYPE:
            raise ModelError(
                f"input '{info.name}' has the element type {value.type.tensor_type.elem_type}, which this onnx "
                f"({onnx.__version__}) does not know: export the model again, or install a newer onnx."
            )
    return inputs


def model_outputs(model: ModelProto) -> tuple[TensorInfo, ...]:
    """The graph's outputs, in order; `unknown` is the dtype of one whose element type this onnx does not know."""
    return tuple(_tensor_info(value) for value in model.graph.output)


def walk_graphs(model: ModelProto) -> Iterator[GraphProto | FunctionProto]:
    """The main graph, each model-local function, and all bodies of If, Loop, Scan and the like inside them."""
    pending: list[GraphProto | FunctionProto] = [model.graph, *model.functions]
    while pending:
        graph = pending.pop(0)
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.type == AttributeProto.GRAPH:
                    pending.append(attribute.g)
                pending.extend(attribute.graphs)


def walk_nodes(model: ModelProto) -> Iterator[NodeProto]:
    """Every node, also those in subgraphs and functions."""
    for graph in walk_graphs(model):
        yield from graph.node


def reads(node: NodeProto) -> set[str]:
    """Names of the values that a node reads, also from inside its bodies."""
    names = {name for name in node.input if name}
    for attribute in node.attribute:
        for body in (*([attribute.g] if attribute.type == AttributeProto.GRAPH else []), *attribute.graphs):
            for inner in body.node:
                names |= reads(inner)
            names |= {value.name for value in body.output}
    return names


def walk_tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every stored tensor: initializers, sparse ones, and attributes of nodes, also in subgraphs and functions."""
    for graph in walk_graphs(model):
        if isinstance(graph, GraphProto):
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.type == AttributeProto.TENSOR:
                    yield attribute.t
                elif attribute.type == AttributeProto.SPARSE_TENSOR:
                    yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
                yield from attribute.tensors


def count_ops(model: ModelProto) -> Counter[str]:
    """Nodes by op type, recursively; ops of other domains carry theirs: `com.microsoft::MatMulNBits`."""
    return Counter(op_name(node) for node in walk_nodes(model))


def op_name(node: NodeProto) -> str:
    """`Conv`, or `com.microsoft::MatMulNBits` outside the default domain."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"


def weights_count(model: ModelProto) -> int:
    """Number of stored floating-point values; scalars (epsilons, scales) are not counted."""
    return sum(_elements(tensor) for tensor in walk_tensors(model) if tensor.dims and tensor.data_type in _FLOATS)


def opset_of(model: ModelProto) -> int:
    """Version of the default operator set; a model that imports none (tree ensembles may) counts as 1."""
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=1)


def upgrade_opset(model: ModelProto, target: int) -> tuple[ModelProto, bool, str]:
    """`(model, changed, note)` with the default opset at `target` or above. The input is not modified.

    Raises ModelError when onnx has no conversion for one of the ops. The converter does not prove that outputs stay
    equal: compare them.
    """
    have = opset_of(model)
    if have >= target:
        return model, False, f"opset {have} is enough"
    try:
        # The converter forgets a model's own functions.
        source = inliner.inline_local_functions(model) if model.functions else model
        converted = onnx.version_converter.convert_version(source, target)
    except Exception as error:
        raise ModelError(f"opset {have} cannot be upgraded to {target}: {_first_lines(error)}.") from error
    return converted, True, f"opset upgraded from {have} to {target}"


def clone(model: ModelProto) -> ModelProto:
    """A deep copy, also of models above 2 GB, which protobuf's own copy may refuse."""
    copy = _without_weights(model)
    for tensor in model.graph.initializer:
        copy.graph.initializer.add().CopyFrom(tensor)
    return copy


def canonical(model: ModelProto) -> ModelProto:
    """A copy in which what has no order is sorted and what has no meaning to a runtime is gone.

    Initializers, value infos, opset imports and metadata are sorted; producer, documentation and unused opset imports are
    dropped. Transformations that differ only there serialize equally.
    """
    copy = _without_weights(model)
    for tensor in sorted(model.graph.initializer, key=lambda tensor: tensor.name):
        copy.graph.initializer.add().CopyFrom(tensor)
    for field in ("producer_name", "producer_version", "doc_string", "metadata_props"):
        copy.ClearField(field)
    for graph in walk_graphs(copy):
        graph.ClearField("doc_string")
        graph.value_info.sort(key=lambda value: value.name)
        if isinstance(graph, GraphProto) and graph is not copy.graph:
            graph.initializer.sort(key=lambda tensor: tensor.name)
        for node in graph.node:
            node.ClearField("doc_string")
            node.ClearField("metadata_props")
    used = {"" if node.domain == "ai.onnx" else node.domain for node in walk_nodes(copy)} | {""}
    imports = {"" if entry.domain == "ai.onnx" else entry.domain: entry.version for entry in copy.opset_import}
    copy.ClearField("opset_import")
    copy.opset_import.extend(onnx.helper.make_opsetid(d, v) for d, v in sorted(imports.items()) if d in used)
    return copy


def write_model(model: ModelProto, folder: Path, name: str = "model.onnx") -> Path:
    """Write `model` into `folder` in canonical form and return its path; equal models give equal bytes.

    One file below 1.9 GB; else tensors of 1 kB and more go to `<name>.data` beside it. The input is not modified.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    weights = sum(len(tensor.raw_data) + 4 * len(tensor.float_data) for tensor in model.graph.initializer)
    fits = weights < SINGLE_FILE_BYTES
    content = canonical(model) if fits else _with_external_data(model, folder / f"{name}.data")
    try:
        data = content.SerializeToString(deterministic=True)
    except Exception as error:
        raise ModelError(f"the model cannot be written to '{path}': {_first_lines(error)}.") from error
    with path.open("wb") as file:
        file.write(data)
        _sync(file)
    return path


def _with_external_data(model: ModelProto, data_path: Path) -> ModelProto:
    slim = _without_weights(model)
    with data_path.open("wb") as file:
        for tensor in sorted(model.graph.initializer, key=lambda tensor: tensor.name):
            entry = slim.graph.initializer.add()
            if len(tensor.raw_data) < EXTERNAL_FROM_BYTES:
                entry.CopyFrom(tensor)
                continue
            file.write(b"\0" * (-file.tell() % ALIGNMENT_BYTES))
            entry.name, entry.data_type = tensor.name, tensor.data_type
            entry.dims.extend(tensor.dims)
            entry.data_location = TensorProto.EXTERNAL
            facts = {"location": data_path.name, "offset": str(file.tell()), "length": str(len(tensor.raw_data))}
            for key, value in facts.items():
                entry.external_data.add(key=key, value=value)
            file.write(tensor.raw_data)
        _sync(file)
    return canonical(slim)


def _without_weights(model: ModelProto) -> ModelProto:
    """A copy of everything but the main graph's initializers, which hold the bulk."""
    copy = ModelProto()
    for field, value in model.ListFields():
        if field.name == "graph":
            _copy_fields(value, copy.graph, leave_out="initializer")
        elif field.is_repeated:
            getattr(copy, field.name).extend(value)
        else:
            setattr(copy, field.name, value)
    return copy


def _copy_fields(source: GraphProto, target: GraphProto, *, leave_out: str) -> None:
    for field, value in source.ListFields():
        if field.name == leave_out:
            continue
        if field.is_repeated:
            getattr(target, field.name).extend(value)
        else:
            setattr(target, field.name, value)


def _sync(file: object) -> None:
    file.flush()  # type: ignore[attr-defined]  # any open binary file
    os.fsync(file.fileno())  # type: ignore[attr-defined]


def _check_file(path: Path, max_bytes: int) -> None:
    if path.is_dir():
        raise ModelError(f"'{path}' is a folder, expected a model file: name the .onnx file inside it.")
    if not path.exists():
        raise ModelError(f"there is no model file '{path}': check the path.")
    if not path.is_file():
        raise ModelError(f"'{path}' is not a regular file, expected a model file.")
    size = path.stat().st_size
    if size == 0:
        raise ModelError(f"model file '{path}' is empty: export or download it again.")
    if size > max_bytes:
        raise ModelError(f"model file '{path}' has {units.size(size)}, the limit is {units.size(max_bytes)}.")
    _check_structure(path, size)


def _check_structure(path: Path, size: int) -> None:
    """Walk the outermost protobuf fields by their lengths, without reading what they hold."""
    seen: set[int] = set()
    with path.open("rb") as file:
        head = file.read(64)
        file.seek(0)
        while file.tell() < size:
            tag = protobuf.varint(file.read)
            number, wire = (tag or 0) >> 3, (tag or 0) & 7
            if tag is None or number not in _MODEL_FIELDS or wire not in (0, 1, 2, 5):
                raise ModelError(
                    f"'{path}' is not an ONNX model{_looks_like(head)}: expected a file from an ONNX exporter."
                )
            seen.add(number)
            length = protobuf.field_length(file.read, wire)
            if length is None or file.tell() + length > size:
                raise _cut_short(path, size, head, number)
            file.seek(length, os.SEEK_CUR)
    if _GRAPH_FIELD not in seen:
        raise ModelError(
            f"'{path}' is not an ONNX model{_looks_like(head)}: it holds no graph. Expected a file from an ONNX exporter."
        )
    if size > PROTOBUF_LIMIT_BYTES:
        raise ModelError(
            f"model file '{path}' has {units.size(size)}, no protobuf message can have more than "
            f"{units.size(PROTOBUF_LIMIT_BYTES)}: save it with external data."
        )


def _cut_short(path: Path, size: int, head: bytes, number: int) -> ModelError:
    # Every exporter writes ir_version first; without it a length that overshoots is more likely no ONNX at all.
    if head[:1] != b"\x08":
        return ModelError(f"'{path}' is not an ONNX model{_looks_like(head)}: expected a file from an ONNX exporter.")
    return ModelError(
        f"model file '{path}' is cut short: its field {number} goes on past the {size:,} bytes that are there. "
        "Download or copy it again."
    )


def _looks_like(head: bytes) -> str:
    if head.startswith(b"version https://git-lfs"):
        return " but a Git LFS pointer (run 'git lfs pull')"
    if head.startswith(b"PK"):
        return " but a zip archive (a PyTorch checkpoint has to be exported first)"
    if head[4:8] == b"TFL3":
        return " but a TensorFlow Lite model"
    if head.lstrip()[:1] in (b"<", b"{"):
        return " but text (a web page instead of the download?)"
    return ""


def _parse(path: Path) -> ModelProto:
    try:
        return onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's DecodeError ships no types, and onnx adds its own
        raise ModelError(f"model file '{path}' cannot be parsed as ONNX: {_first_lines(error)}.") from error


def _check_text(path: Path, model: ModelProto) -> None:
    """All names are text: protobuf reads those of `proto2` files as they are, and gives bytes or an error where it is none."""
    pending: list[tuple[str, Any]] = [("model", model)]
    while pending:
        place, message = pending.pop()
        try:
            for field, value in message.ListFields():
                if field.type == field.TYPE_STRING:
                    if not all(
                        isinstance(text, str) for text in ([value] if isinstance(value, (str, bytes)) else value)
                    ):
                        raise _no_text(path, f"{place}.{field.name}")
                elif field.type == field.TYPE_MESSAGE:
                    one = hasattr(value, "ListFields")
                    pending += [(f"{place}.{field.name}", inner) for inner in ([value] if one else value)]
        except UnicodeDecodeError as error:
            raise _no_text(path, place) from error


def _no_text(path: Path, place: str) -> ModelError:
    return ModelError(
        f"model '{path}' has a name in {place[-80:]} that is no UTF-8: the file is damaged, or not from an ONNX exporter. "
        "Download or export it again."
    )


def _external_entries(model: ModelProto) -> Iterator[tuple[str, dict[str, str]]]:
    for tensor in walk_tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL:
            yield tensor.name, {entry.key: entry.value for entry in tensor.external_data}


def _external_names(model: ModelProto) -> list[str]:
    return sorted({facts.get("location", "") for _, facts in _external_entries(model)})


def _external_path(model_path: Path, location: str) -> Path:
    """The file of `location`, refused unless it is a regular file inside the model's folder, symbolic links followed."""
    windows = PureWindowsPath(location)
    outside = PurePosixPath(location).is_absolute() or windows.drive or windows.root or ".." in windows.parts
    folder = model_path.parent
    if (
        not location
        or "\0" in location
        or outside
        or not (folder / location).resolve().is_relative_to(folder.resolve())
    ):
        raise ModelError(
            f"model '{model_path}' wants external data at '{location}', which is not a file inside its own folder: "
            "refused. Put the data file (not a link) beside the model and save the model with a relative location."
        )
    file = folder / location
    if not file.is_file():
        raise ModelError(
            f"model '{model_path}' keeps weights in '{location}', and there is no such file in '{folder}'. "
            "Copy the data file to where the model is, or export the model again."
        )
    return file


def _check_external_ranges(path: Path, model: ModelProto, max_bytes: int) -> None:
    total = 0
    for name, facts in _external_entries(model):
        have = _external_path(path, facts.get("location", "")).stat().st_size
        try:
            offset, length = int(facts.get("offset", "0")), int(facts.get("length", "0"))
        except ValueError:
            offset, length = -1, 0
        if offset < 0 or length < 0 or offset + length > have:
            raise ModelError(
                f"model '{path}': tensor '{name}' should be bytes {facts.get('offset', '0')} + {facts.get('length', '?')} "
                f"of '{facts.get('location')}', which has {have:,}: the file is cut short or belongs to another model."
            )
        # Many tensors may name the same bytes, and a sparse file has more of them than the disk: each is read on its own.
        total += length or have - offset
        if total > max_bytes:
            raise ModelError(
                f"the tensors of model '{path}' have more than {units.size(max_bytes)} together, the limit for one model: "
                f"several name the same bytes of '{facts.get('location')}'."
            )


def _tensor_info(value: onnx.ValueInfoProto) -> TensorInfo:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        return TensorInfo(value.name, (kind or "unknown").removesuffix("_type"), ())
    tensor = value.type.tensor_type
    dims: list[int | str | None] = []
    for dim in tensor.shape.dim:
        # Some exporters write -1 or "?" where they mean: not known.
        fixed = dim.WhichOneof("value") == "dim_value"
        dims.append((dim.dim_value if dim.dim_value >= 0 else None) if fixed else dim.dim_param.strip("?") or None)
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    except (KeyError, TypeError, ValueError):
        dtype = _UNKNOWN_TYPE
    return TensorInfo(value.name, dtype, tuple(dims))


def _elements(tensor: TensorProto) -> int:
    count = 1
    for size in tensor.dims:
        count *= size
    return count


def _first_lines(error: BaseException, limit: int = 300) -> str:
    text = " ".join(str(error).split())
    return (text[:limit] + "…" if len(text) > limit else text).rstrip(".") or type(error).__name__
