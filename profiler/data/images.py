"""A folder of images, one subfolder for each class, made into arrays by a declared preprocessing.

The preprocessing is part of the model: another resize filter or channel order costs accuracy in silence. So nothing
here has a convenient default that depends on the image; what isn't declared isn't done.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from backends.base import TensorInfo, format_shape
from profiler.data.dataset import MAX_BYTES, Array
from profiler.errors import DataError, StudyError, unknown

if TYPE_CHECKING:
    from PIL.Image import Image

# Formats that Pillow decodes by itself; EPS, for one, would start Ghostscript.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pnm"))
_FILTERS = {
    "nearest": "NEAREST",
    "box": "BOX",
    "bilinear": "BILINEAR",
    "hamming": "HAMMING",
    "bicubic": "BICUBIC",
    "lanczos": "LANCZOS",
}
MAX_PIXELS = 100_000_000
"""Largest accepted image: a small file may declare a picture of gigabytes."""


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes a model input, in this order: channels, resize, crop, size, scale, normalise, layout."""

    resize: int | None = None
    """Length of the short side after a resize that keeps the aspect ratio, pixels."""
    crop: int | None = None
    """Side of the square cut from the centre, pixels."""
    size: tuple[int, int] | None = None
    """Exact (height, width) to resize to last, aspect ratio not kept."""
    resampling: Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"] = "bilinear"
    scale: float = 1 / 255
    """Pixel values 0 … 255 are multiplied by this."""
    mean: tuple[float, ...] = (0.0,)
    """Subtracted after scaling: one value, or one for each channel in the order of `channels`."""
    std: tuple[float, ...] = (1.0,)
    """Divided by last, like `mean`."""
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    channels: Literal["RGB", "BGR", "L"] = "RGB"
    """`L` is grayscale, one channel."""
    classes: Mapping[str, int] | None = None
    """Class index by subfolder; None: subfolders named with digits only are their own index, others count in sorted order."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        for name, allowed in (
            ("resampling", tuple(_FILTERS)),
            ("layout", ("NCHW", "NHWC")),
            ("channels", ("RGB", "BGR", "L")),
        ):
            if (value := getattr(self, name)) not in allowed:
                raise unknown(f"preprocessing {name}", str(value), allowed)
        lengths = [value for value in (self.resize, self.crop, *(self.size or ())) if value is not None]
        if any(not 1 <= value <= 16_384 for value in lengths):
            raise StudyError(f"preprocessing resize, crop and size are pixels from 1 to 16384, got {lengths}.")
        depth = 1 if self.channels == "L" else 3
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, depth) or not np.all(np.isfinite(values)):
                raise StudyError(
                    f"preprocessing {name} has values {values}: give 1 finite value or {depth}, one for each channel."
                )
        if min(self.std) <= 0 or not np.isfinite(self.scale) or self.scale <= 0:
            raise StudyError(f"preprocessing std {self.std} and scale {self.scale} have to be above 0.")

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Preprocessing:
        """From a study's table; lists become tuples, a single mean or std stands for all channels. Raises StudyError."""
        known = {field.name for field in dataclasses.fields(cls)}
        values: dict[str, Any] = {}
        for name, value in options.items():
            if name not in known:
                raise unknown("preprocessing option", name, known)
            values[name] = tuple(value) if isinstance(value, list) else value
            if name in ("mean", "std") and isinstance(value, (int, float)):
                values[name] = (float(value),)
            if name == "size" and isinstance(value, int):
                values[name] = (value, value)
        try:
            return cls(**values)
        except TypeError as error:
            raise StudyError(f"preprocessing {dict(options)} has a value of the wrong type: {error}.") from error

    def array(self, image: Image, dtype: np.dtype[np.generic]) -> Array:
        """One image as an array of `dtype`, without the batch axis: [C, H, W] or [H, W, C]."""
        from PIL import Image as Pillow

        image = image.convert("L" if self.channels == "L" else "RGB")
        resampling = Pillow.Resampling[_FILTERS[self.resampling]]
        if self.resize is not None:
            width, height = image.size
            factor = self.resize / min(width, height)
            image = image.resize((max(1, round(width * factor)), max(1, round(height * factor))), resampling)
        if self.crop is not None:
            left, top = (image.size[0] - self.crop) // 2, (image.size[1] - self.crop) // 2
            if min(left, top) < 0:
                raise DataError(
                    f"the crop of {self.crop} pixels is larger than the image of {image.size[0]}×{image.size[1]}: set resize."
                )
            image = image.crop((left, top, left + self.crop, top + self.crop))
        if self.size is not None:
            image = image.resize((self.size[1], self.size[0]), resampling)
        pixels: Array = np.asarray(image)
        pixels = pixels[:, :, np.newaxis] if pixels.ndim == 2 else pixels
        if self.channels == "BGR":
            pixels = pixels[:, :, ::-1]
        if dtype != np.dtype(np.uint8):
            scaled = pixels.astype(np.float64) * self.scale
            pixels = ((scaled - np.asarray(self.mean)) / np.asarray(self.std)).astype(dtype)
        return np.ascontiguousarray(pixels.transpose(2, 0, 1) if self.layout == "NCHW" else pixels)


def read_images(
    folder: Path,
    info: TensorInfo,
    preprocessing: Preprocessing,
    *,
    limit: int | None = None,
    seed: int = 0,
    max_bytes: int = MAX_BYTES,
) -> tuple[Array, NDArray[np.int64], tuple[str, ...]]:
    """Images [n, …], labels [n] and notes. With `limit`, files are drawn at random: the first ones would be of one class.

    Raises DataError that names the file when one is corrupt, absurdly large or of another size than the others.
    """
    _require_pillow()
    dtype = np.dtype(info.dtype)
    if dtype.kind != "f" and (
        dtype != np.dtype(np.uint8)
        or (preprocessing.scale, preprocessing.mean, preprocessing.std) != (1.0, (0.0,), (1.0,))
    ):
        raise DataError(
            f"input '{info.name}' takes {info.dtype}: images become floats, or uint8 with scale=1, mean=0 and std=1."
        )
    files, left_out = _files(folder)
    labels, notes = _labels(folder, files, preprocessing.classes)
    if left_out:
        notes += (f"{left_out} files in '{folder.name}' have no image suffix and were left out",)
    if limit is not None and limit < len(files):
        chosen = np.sort(np.random.default_rng(seed).choice(len(files), limit, replace=False))
        notes += (f"{limit} of {len(files)} images, drawn at random (seed {seed})",)
        files, labels = [files[index] for index in chosen], labels[chosen]
    arrays: list[Array] = []
    for path in files:
        array = _decoded(path, preprocessing, dtype)
        _check_size(path, array, info, arrays[0] if arrays else None)
        if not arrays and array.nbytes * len(files) > max_bytes:
            raise DataError(
                f"{len(files)} images of {array.nbytes:,} bytes pass {max_bytes / 1e9:.1f} GB: use a limit or a smaller size."
            )
        arrays.append(array)
    return np.stack(arrays), labels, notes


def _require_pillow() -> None:
    try:
        import PIL  # noqa: F401 (asks only whether it is there)
    except ImportError as error:
        raise DataError(
            "reading images needs Pillow, which is not installed: pip install 'edgeprof[images]'."
        ) from error


def _files(folder: Path) -> tuple[list[Path], int]:
    found = [path for path in sorted(folder.rglob("*")) if path.is_file() and not _hidden(path, folder)]
    images = [path for path in found if path.suffix.lower() in _SUFFIXES]
    loose = [path for path in images if path.parent == folder]
    if loose:
        raise DataError(f"image '{loose[0]}' lies outside a class: put images into one subfolder for each class.")
    if not images:
        raise DataError(
            f"folder '{folder}' has no images in subfolders ({', '.join(sorted(_SUFFIXES))}): one subfolder for each class."
        )
    return images, len(found) - len(images)


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in path.relative_to(folder).parts)


def _labels(
    folder: Path, files: list[Path], classes: Mapping[str, int] | None
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    of_file = [path.relative_to(folder).parts[0] for path in files]
    # An empty subfolder is still a class: leaving it out would renumber the ones after it.
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not _hidden(path, folder))
    notes: tuple[str, ...] = ()
    if classes is not None:
        if missing := sorted(set(of_file) - classes.keys()):
            raise DataError(
                f"subfolders {missing} of '{folder}' have no index in classes {sorted(classes)}: add them or remove them."
            )
        index = dict(classes)
    elif all(name.isascii() and name.isdigit() for name in names):
        index = {name: int(name) for name in names}
        notes = ("subfolder names are numbers and were taken as class indexes",)
    else:
        index = {name: position for position, name in enumerate(names)}
        notes = (
            f"classes are the subfolders in sorted order: {', '.join(names[:5])}{', …' if len(names) > 5 else ''}",
        )
    return np.array([index[name] for name in of_file], np.int64), notes


def _decoded(path: Path, preprocessing: Preprocessing, dtype: np.dtype[np.generic]) -> Array:
    from PIL import Image as Pillow

    with warnings.catch_warnings():
        # Pillow only warns between its limit and twice that; the check below refuses.
        warnings.simplefilter("ignore", Pillow.DecompressionBombWarning)
        try:
            with Pillow.open(path, formats=_FORMATS) as image:
                if image.size[0] * image.size[1] > MAX_PIXELS:
                    raise DataError(
                        f"image '{path}' declares {image.size[0]}×{image.size[1]} pixels, "
                        f"at most {MAX_PIXELS:,} are read: remove it."
                    )
                return preprocessing.array(image, dtype)
        except DataError as error:
            raise error if str(path) in str(error) else DataError(f"image '{path}': {error}") from error
        except Exception as error:
            raise DataError(
                f"image '{path}' cannot be decoded ({type(error).__name__}: {error}): repair or remove it."
            ) from error


def _check_size(path: Path, array: Array, info: TensorInfo, first: Array | None) -> None:
    wanted = info.shape[1:]
    if len(wanted) != array.ndim or any(
        isinstance(want, int) and want != got for want, got in zip(wanted, array.shape, strict=True)
    ):
        raise DataError(
            f"image '{path}' becomes an array of shape {array.shape}, input '{info.name}' expects {format_shape(wanted)} "
            "after the batch axis: set layout, channels, resize, crop or size in the preprocessing."
        )
    if first is not None and first.shape != array.shape:
        raise DataError(
            f"image '{path}' becomes shape {array.shape}, the ones before {first.shape}: set crop or size to make them equal."
        )
