"""A residual dense network that doubles an image's sides: an answer that is a picture, judged in dB."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from scripts.real_models_lib.fetch import debian, npm
from scripts.real_models_lib.suite import Job, run_rows, save

TITLE = "UpscalerJS: super-resolution, judged in dB"
ABOUT = (
    "A published super-resolution network (222,000 weights, MIT) of twelve convolutions, carried over from its Keras file to "
    "ONNX layer by layer. Its answer is an image twice as large in both directions; the metric is the peak signal-to-noise ratio "
    "against the image it was made from, in dB, so the accepted loss is in dB too."
)
METRIC = "scripts.real_models_lib.upscaler:psnr"
SIDE = 32
_CLASSES = Path(__file__).with_name("tuxpaint_imagenet.json")


def prepare(folder: Path, *, quick: bool) -> Job:
    """Squares of photographs, and the same halved."""
    package = npm("@upscalerjs/default-model", "1.0.0", "MIT")
    pictures = debian("tuxpaint-stamps-default", "GPL-2")
    path = folder / "upscaler.onnx"
    onnx.save(from_keras(package.folder / "models"), path)
    home = pictures.folder / "usr/share/tuxpaint/stamps"
    small, large, ids = _squares(photographs(home), 1 if quick else 4)
    names = np.unique(ids)
    held_out = np.isin(ids, names[::6])
    return Job(
        model=str(path),
        data=save(folder / "evaluation.npz", LR=small[~held_out], labels=large[~held_out], ids=ids[~held_out]),
        settings={
            "calibration": str(save(folder / "calibration.npz", LR=small[held_out])),
            "variants": ("graph", "fp16", "int8-static{per_channel=true}"),
            "metric": METRIC,
            "constraints": {"max_drop": 0.5},
        },
        sources=(package, pictures),
        facts=(
            (
                f"{int((~held_out).sum())} squares of {2 * SIDE} pixels out of {len(names) - len(names[::6])} photographs of Tux "
                f"Paint, halved by averaging; {int(held_out.sum())} out of {len(names[::6])} others calibrate. Squares of one "
                "photograph are one source."
            ),
        ),
    )  # fmt: skip


def psnr(outputs: Mapping[str, NDArray[Any]], labels: NDArray[Any]) -> NDArray[np.float64]:
    """Peak signal-to-noise ratio of each image, dB, shape (n,); pixels are 0..255 and higher is better."""
    return _psnr(outputs["SR"], labels)


def right(job: Job, model: Path) -> float:
    """Mean dB of a file's images."""
    with np.load(job.data) as data:
        made, found = run_rows(model, {"LR": data["LR"]})["SR"], []
        for image, wanted in zip(made, data["labels"], strict=True):
            error = float(np.mean((np.clip(image.astype(np.float64), 0, 255) - wanted) ** 2))
            found.append(20 * math.log10(255) - 10 * math.log10(error))
        return sum(found) / len(found)


def from_keras(folder: Path) -> onnx.ModelProto:
    """The network of `model.json` and its weights; images are [N, height, width, 3], 0..255.

    Convolutions, Relu, additions, concatenations and an upsampling by two are all that it has; anything else raises KeyError.
    """
    described = json.loads((folder / "model.json").read_text())
    stored = np.frombuffer((folder / "group1-shard1of1.bin").read_bytes(), np.float32)
    weights, at = dict[str, NDArray[np.float32]](), 0
    for entry in described["weightsManifest"][0]["weights"]:
        size = int(np.prod(entry["shape"]))
        weights[entry["name"]] = stored[at : at + size].reshape(entry["shape"])
        at += size
    nodes = [helper.make_node("Transpose", ["LR"], ["LR.nchw"], perm=[0, 3, 1, 2])]
    tensors = [numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales")]
    for layer in described["modelTopology"]["model_config"]["config"]["layers"]:
        name, kind = layer["name"], layer["class_name"]
        ins = [f"{entry[0]}.nchw" for entry in layer["inbound_nodes"][0]] if layer["inbound_nodes"] else []
        if kind == "Conv2D":
            tensors.append(
                numpy_helper.from_array(weights[f"{name}/kernel"].transpose(3, 2, 0, 1).copy(), f"{name}.weight")
            )
            tensors.append(numpy_helper.from_array(weights[f"{name}/bias"].copy(), f"{name}.bias"))
            pad = layer["config"]["kernel_size"][0] // 2
            inputs = [*ins, f"{name}.weight", f"{name}.bias"]
            nodes.append(helper.make_node("Conv", inputs, [f"{name}.nchw"], name=name, pads=[pad] * 4))
        elif kind != "InputLayer":
            op, fields = {
                "Activation": ("Relu", {}), "Add": ("Add", {}), "Concatenate": ("Concat", {"axis": 1}),
                "UpSampling2D": ("Resize", _resize(layer["config"])),
            }[kind]  # fmt: skip
            inputs = [*ins, "", "scales"] if op == "Resize" else ins
            nodes.append(helper.make_node(op, inputs, [f"{name}.nchw"], name=name, **fields))
    nodes.append(helper.make_node("Transpose", ["SR.nchw"], ["SR"], perm=[0, 2, 3, 1]))
    image = ["N", "height", "width", 3]
    graph = helper.make_graph(
        nodes, "rdn", [helper.make_tensor_value_info("LR", TensorProto.FLOAT, image)],
        [helper.make_tensor_value_info("SR", TensorProto.FLOAT, ["N", "height2", "width2", 3])], tensors,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def _resize(config: dict[str, Any]) -> dict[str, str]:
    if config.get("interpolation", "nearest") == "nearest":
        return {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}


def _psnr(made: NDArray[Any], wanted: NDArray[Any]) -> NDArray[np.float64]:
    error = (np.clip(made.astype(np.float64), 0, 255) - wanted) ** 2
    return np.asarray(10 * np.log10(255**2 / np.maximum(error.reshape(len(made), -1).mean(axis=1), 1e-9)), np.float64)


def photographs(home: Path) -> list[Path]:
    """Those of Tux Paint's stamps that are photographs, as far as anybody has looked: the ones with an ImageNet class."""
    classes = json.loads(_CLASSES.read_text())["classes"]
    return [path for name in sorted(classes) if (path := home / f"{name}.png").is_file()]


def _squares(paths: list[Path], each: int) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.str_]]:
    """Out of the middle of each photograph that is large enough; what is transparent is white."""
    from PIL import Image

    random, large, ids = np.random.default_rng(0), [], []
    for path in paths:
        with Image.open(path) as opened:
            stamp = opened.convert("RGBA")
        if min(stamp.size) < 3 * SIDE:
            continue
        image = Image.new("RGBA", stamp.size, (255, 255, 255, 255))
        image.alpha_composite(stamp)
        picture = np.asarray(image.convert("RGB"), np.float32)
        for _ in range(each):
            top, left = (
                (size - 2 * SIDE) // 2 + int(random.integers(-SIDE // 2, SIDE // 2 + 1)) for size in picture.shape[:2]
            )
            large.append(picture[top : top + 2 * SIDE, left : left + 2 * SIDE])
            ids.append(f"{path.parent.name}/{path.stem}")
    whole = np.stack(large)
    small = whole.reshape(len(whole), SIDE, 2, SIDE, 2, 3).mean(axis=(2, 4))
    return small.astype(np.float32), whole, np.array(ids)
