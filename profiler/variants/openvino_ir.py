"""OpenVINO IR (an `.xml` with a `.bin` beside it) as an ONNX file that only the OpenVINO backend loads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, helper

from backends import ov_embedded, signal_stack
from backends.base import TensorInfo
from profiler import units
from profiler.errors import VariantError
from profiler.onnx_io import SINGLE_FILE_BYTES
from profiler.variants.running import short

SUFFIX = ".xml"
_OPSET = 17


def ir_files(path: Path) -> tuple[Path, ...]:
    """The XML and, where there is one, its weights. Raises VariantError when the file is missing or empty."""
    weights = path.with_suffix(".bin")
    files = (path, weights) if weights.is_file() else (path,)
    if not path.is_file() or path.stat().st_size == 0:
        raise VariantError(f"there is no OpenVINO model '{path}', or it is empty: check the path.")
    size = sum(file.stat().st_size for file in files)
    if size > SINGLE_FILE_BYTES:
        raise VariantError(
            f"OpenVINO model '{path}' has {units.size(size)}, at most {units.size(SINGLE_FILE_BYTES)} fit one artifact."
        )
    return files


def read_ir(path: Path, names: Sequence[str]) -> ModelProto:
    """The model at `path` inside an ONNX file, see `backends.ov_embedded`.

    A tensor in IR may carry several names; the one among `names` is taken for it, else its first. Raises VariantError when
    OpenVINO does not read or compile it.
    """
    import openvino

    files = ir_files(path)
    try:
        core = openvino.Core()
        model = core.read_model(str(path))
        with signal_stack.kept():
            core.compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": 1})
        inputs = [_info(port, names) for port in model.inputs]
        outputs = [_info(port, names) for port in model.outputs]
    except (RuntimeError, TypeError) as error:
        raise VariantError(f"OpenVINO cannot load '{path}': {short(error)}.") from error
    context = ov_embedded.pack(files[0].read_bytes(), files[1].read_bytes() if len(files) > 1 else b"")
    names_in, names_out = [info.name for info in inputs], [info.name for info in outputs]
    node = helper.make_node(ov_embedded.OP_TYPE, names_in, names_out, domain=ov_embedded.DOMAIN)
    attributes = {"main_context": 1, "embed_mode": 1, "source": ov_embedded.SOURCE, ov_embedded.CONTEXT: context}
    node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
    graph = helper.make_graph([node], "openvino", [_value(info) for info in inputs], [_value(info) for info in outputs])
    imports = [helper.make_opsetid("", _OPSET), helper.make_opsetid(ov_embedded.DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def _info(port: Any, names: Sequence[str]) -> TensorInfo:
    own = port.get_names()
    name = next((name for name in names if name in own), None) or (port.get_any_name() if own else "unnamed")
    shape = tuple(dim.get_length() if dim.is_static else None for dim in port.get_partial_shape())
    return TensorInfo(name, np.dtype(port.get_element_type().to_dtype()).name, shape)


def _value(info: TensorInfo) -> onnx.ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(info.dtype))
    return helper.make_tensor_value_info(info.name, kind, list(info.shape))
