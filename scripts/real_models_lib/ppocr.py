"""PP-OCRv4's text detector. Data: pages rendered here, so that each line's box is known; metric: F1 of boxes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scripts.real_models_lib.fetch import wheel
from scripts.real_models_lib.suite import Job, save

TITLE = "PP-OCRv4 text detector: dynamic image size and a metric of one's own"
ABOUT = (
    "A segmentation network with open height and width, opset 12, converted from another framework. Its answer is a map, so "
    "accuracy needs post-processing: the metric is a function of the user's, `package.module:function`, the F1 of found boxes."
)
HEIGHT, WIDTH = 320, 320
_MOST_LINES = 12
_THRESHOLD = 0.3
_BOX_THRESHOLD = 0.5
_UNCLIP = 1.6
_SMALLEST_PIXELS = 16
_MATCH = 0.5
"""Intersection over union above which a box is found (Everingham et al., PASCAL VOC 2010)."""


def f1_of_boxes(outputs: Mapping[str, NDArray[Any]], labels: NDArray[Any]) -> NDArray[np.float64]:
    """F1 of each page at IoU 0.5, shape (n,). `labels` [n, lines, 4]: left, top, right, bottom; unused rows are −1.

    Boxes are the bounding boxes of connected regions above 0.3, grown by area × 1.6 / perimeter, as PaddleOCR does for
    its polygons (Liao et al., DB, AAAI 2020).
    """
    maps = next(iter(outputs.values()))[:, 0]
    return np.array([_f1(_boxes(page), truth[truth[:, 2] > 0]) for page, truth in zip(maps, labels, strict=True)])


f1_of_boxes.unit = "proportion"  # type: ignore[attr-defined]  # the profiler reads it there


def prepare(folder: Path, *, quick: bool) -> Job:
    """Render the pages."""
    source = wheel("rapidocr-onnxruntime", "1.4.4", "Apache-2.0")
    count = 32 if quick else 100
    pages = [_page(number) for number in range(count + 24)]
    images, boxes = np.stack([image for image, _ in pages]), np.stack([box for _, box in pages])
    calibration = save(folder / "calibration.npz", x=images[count:])
    lines = int((boxes[:count, :, 2] > 0).sum())
    return Job(
        model=str(source.folder / "rapidocr_onnxruntime" / "models" / "ch_PP-OCRv4_det_infer.onnx"),
        data=save(folder / "evaluation.npz", x=images[:count], labels=boxes[:count]),
        settings={
            "calibration": str(calibration),
            "variants": ("graph", "bf16", "int8-dynamic{op_types=Conv|MatMul}", "int8-static", "int8-static{per_channel=true}"),
            "metric": "scripts.real_models_lib.ppocr:f1_of_boxes",
            "constraints": {"max_drop": 0.05},
        },
        sources=(source,),
        facts=(
            (
                f"{count} rendered pages of {WIDTH}×{HEIGHT} pixels with {lines} lines of text in Pillow's own font, words from "
                "Python's documentation, some pages dark, tinted or noisy; accuracy is the mean F1 at IoU 0.5 over pages."
            ),
            "24 other pages for calibration. Rendered pages are easier than photographs: differences count, not the level.",
        ),
    )  # fmt: skip


def _page(seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A page [3, H, W], BGR as the model was trained, in −1..1, and its boxes [lines, 4] in pixels."""
    import pydoc_data.topics as text

    from PIL import Image, ImageDraw, ImageFont

    random = np.random.default_rng((7, seed))
    words = [
        word for word in text.topics["lambda"].split() + text.topics["for"].split() if word.isascii() and word.isalpha()
    ]
    light, ink = random.integers(150, 256, 3), random.integers(0, 140, 3)
    if random.random() < 0.3:
        light, ink = ink, light
    image = Image.new("RGB", (WIDTH, HEIGHT), tuple(map(int, light)))
    draw = ImageDraw.Draw(image)
    boxes, top = np.full((_MOST_LINES, 4), -1, np.float32), int(random.integers(6, 24))
    for line in range(_MOST_LINES):
        font = ImageFont.load_default(size=int(random.integers(8, 26)))
        left = int(random.integers(6, 80))
        said = " ".join(random.choice(words, int(random.integers(1, 6))))
        while len(said) > 1 and left + draw.textlength(said, font=font) > WIDTH - 6:
            said = said[: len(said) * 3 // 4].rstrip()
        # The whole line from ascender to descender, as people draw boxes, and not only this word's ink.
        ascent, descent = font.getmetrics()
        bottom = top + ascent + descent
        if bottom > HEIGHT - 6:
            break
        draw.text((left, top), said, font=font, fill=tuple(map(int, ink)))
        boxes[line] = left, top, left + draw.textlength(said, font=font), bottom
        top = bottom + int(random.integers(0, 16))
    pixels = np.asarray(image, np.float32) + random.normal(0, random.choice([0, 20, 40]), (HEIGHT, WIDTH, 1))
    normal = (np.clip(pixels, 0, 255)[:, :, ::-1] / 255 - 0.5) / 0.5
    return np.ascontiguousarray(normal.transpose(2, 0, 1), np.float32), boxes


def _boxes(page: NDArray[Any]) -> NDArray[np.float64]:
    """Boxes found in a probability map, shape (k, 4)."""
    from scipy import ndimage

    regions, count = ndimage.label(page > _THRESHOLD)
    found = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(regions), start=1):
        inside = regions[rows, columns] == number
        if inside.sum() < _SMALLEST_PIXELS or page[rows, columns][inside].mean() < _BOX_THRESHOLD:
            continue
        height, width = rows.stop - rows.start, columns.stop - columns.start
        grow = height * width * _UNCLIP / (2 * (height + width))
        found.append((columns.start - grow, rows.start - grow, columns.stop + grow, rows.stop + grow))
    del count
    return np.array(found, np.float64).reshape(-1, 4)


def _f1(found: NDArray[np.float64], truth: NDArray[Any]) -> float:
    """Each true box is matched with at most one found box, the best overlaps first."""
    if not len(found) or not len(truth):
        return float(len(found) == len(truth))
    corner = np.maximum(found[:, None, :2], truth[None, :, :2]), np.minimum(found[:, None, 2:], truth[None, :, 2:])
    common = np.prod(np.clip(corner[1] - corner[0], 0, None), axis=2)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (found, truth)]
    overlap = common / (areas[0][:, None] + areas[1][None, :] - common)
    matched = 0
    while overlap.max() > _MATCH:
        row, column = np.unravel_index(overlap.argmax(), overlap.shape)
        overlap[row, :] = overlap[:, column] = 0
        matched += 1
    return 2 * matched / (len(found) + len(truth))
