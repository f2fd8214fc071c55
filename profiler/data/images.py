"""A folder of images, one subfolder for each class, made into arrays by a declared preprocessing.

The preprocessing is part of the model: another resize filter or channel order costs accuracy in silence. So nothing
here has a convenient default that depends on the image; what isn't declared isn't done.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Mapping
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
MAX_FILES = 5_000_000
"""Most files of a folder, with those behind its links."""
_DEEP = ("I;16", "I;16B", "I;16L", "I;16N", "I")
_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes a model input, in this order: EXIF, channels, resize, crop, size, scale, normalise, layout.

    A pixel counts 0 … 255 whatever the file's depth: 16 bits are divided by 257 and keep their steps, floats are shares 0 … 1.
    """

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
    exif: bool = False
    """Turn images as their EXIF orientation says. Off as in Pillow and torchvision, which most models were trained with."""

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
        from PIL import ImageOps

        if self.exif:
            image = ImageOps.exif_transpose(image)
        if image.mode in _DEEP or image.mode == "F":
            image = Pillow.fromarray(_deep_pixels(image))
        else:
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
        if self.channels != "L" and pixels.shape[2] == 1:
            pixels = np.repeat(pixels, 3, axis=2)
        if self.channels == "BGR":
            pixels = pixels[:, :, ::-1]
        if dtype != np.dtype(np.uint8):
            scaled = pixels.astype(np.float64) * self.scale
            pixels = ((scaled - np.asarray(self.mean)) / np.asarray(self.std)).astype(dtype)
        elif pixels.dtype != np.dtype(np.uint8):
            pixels = np.clip(np.rint(pixels.astype(np.float64)), 0, 255).astype(np.uint8)
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
    notes += left_out
    if limit is not None and limit < len(files):
        chosen = np.sort(np.random.default_rng(seed).choice(len(files), limit, replace=False))
        notes += (f"{limit} of {len(files)} images, drawn at random (seed {seed})",)
        files, labels = [files[index] for index in chosen], labels[chosen]
    arrays: list[Array] = []
    turned = deep = 0
    for path in files:
        array, kind = _decoded(path, preprocessing, dtype)
        turned += kind.turned
        deep += kind.deep
        _check_size(path, array, info, arrays[0] if arrays else None)
        if not arrays and array.nbytes * len(files) > max_bytes:
            raise DataError(
                f"{len(files)} images of {array.nbytes:,} bytes pass {max_bytes / 1e9:.1f} GB: use a limit or a smaller size."
            )
        arrays.append(array)
    if turned and not preprocessing.exif:
        told = f"{turned} of {len(files)} images have an EXIF orientation, which was not applied, as Pillow and torchvision do"
        notes += (f"{told}; preprocessing exif = true applies it",)
    if deep:
        notes += (f"{deep} of {len(files)} images have 16-bit or float pixels, brought to 0 … 255 without rounding",)
    return np.stack(arrays), labels, notes


def _require_pillow() -> None:
    try:
        import PIL  # noqa: F401 (asks only whether it is there)
    except ImportError as error:
        raise DataError(
            "reading images needs Pillow, which is not installed: pip install 'edgeprof[images]'."
        ) from error


def _files(folder: Path) -> tuple[list[Path], tuple[str, ...]]:
    """Images in sorted order, those behind links too, and notes about what was left out."""
    found = sorted(_walk(folder))
    files = [path for path in found if path.is_file()]
    images = [path for path in files if path.suffix.lower() in _SUFFIXES]
    loose = [path for path in images if path.parent == folder]
    if loose:
        raise DataError(f"image '{loose[0]}' lies outside a class: put images into one subfolder for each class.")
    nowhere = [path for path in found if path.is_symlink() and not path.exists()]
    lost = [path for path in nowhere if path.parent == folder and path.suffix.lower() not in _SUFFIXES]
    if lost:
        raise DataError(
            f"'{lost[0]}' is a link that leads nowhere ({len(lost)} of them in '{folder}'): without that class the others would "
            "be numbered otherwise. Repair or remove it."
        )
    if not images:
        raise DataError(
            f"folder '{folder}' has no images in subfolders ({', '.join(sorted(_SUFFIXES))}): one subfolder for each class."
        )
    counts = (
        (len(files) - len(images), "files in '{}' have no image suffix and were left out"),
        (len(nowhere), "links in '{}' lead nowhere and were left out"),
        (
            len(found) - len(files) - len(nowhere),
            "entries of '{}' are no files (pipes, devices, sockets) and were left out",
        ),
    )
    return images, tuple(f"{count} {text.format(folder.name)}" for count, text in counts if count)


def _walk(folder: Path) -> Iterator[Path]:
    """Everything below a folder that is no folder, through linked folders too, but never round in a circle."""
    count = 0
    waiting: list[tuple[Path, frozenset[tuple[int, int]]]] = [(folder, frozenset())]
    while waiting:
        place, above = waiting.pop()
        try:
            about = place.stat()
            entries = list(place.iterdir())
        except OSError as error:
            raise DataError(f"cannot read folder '{place}': {error.strerror or error}.") from error
        itself = (about.st_dev, about.st_ino)
        if itself in above:
            continue
        for path in entries:
            if _hidden(path, folder):
                continue
            count += 1
            if count > MAX_FILES:
                raise DataError(f"folder '{folder}' and what its links lead to have more than {MAX_FILES:,} entries.")
            if path.is_dir():
                waiting.append((path, above | {itself}))
            else:
                yield path


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


@dataclass(frozen=True)
class _Kind:
    """What is special about an image file."""

    turned: bool
    deep: bool


def _deep_pixels(image: Image) -> NDArray[np.float32]:
    """Pixels of more than 8 bits as floats 0 … 255. Raises DataError where the file does not say what its values mean."""
    values = np.asarray(image)
    if image.mode == "F":
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= 1):
            raise DataError(
                f"it has float pixels from {low:g} to {high:g}, floats are read as shares 0 … 1: save it with 8 or 16 bits, or "
                "give the arrays as .npz."
            )
        return (values * np.float32(255)).astype(np.float32)
    if image.mode == "I" and image.format not in ("PNG", "PPM"):
        raise DataError(
            "it has 32-bit whole numbers as pixels, whose largest value is not known: save it with 8 or 16 bits."
        )
    return (values.astype(np.float64) / 257).astype(np.float32)


def _decoded(path: Path, preprocessing: Preprocessing, dtype: np.dtype[np.generic]) -> tuple[Array, _Kind]:
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
                kind = _Kind(
                    image.getexif().get(_ORIENTATION, 1) not in (0, 1), image.mode in _DEEP or image.mode == "F"
                )
                return preprocessing.array(image, dtype), kind
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
