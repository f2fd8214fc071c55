"""Folders of images become exactly the arrays that the preprocessing declares."""

from __future__ import annotations

import numpy as np
import pytest

from backends.base import TensorInfo
from profiler.data import Preprocessing, load_dataset
from profiler.errors import DataError, StudyError

Image = pytest.importorskip("PIL.Image")


def save(path, pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(3)
    for name in ("cat", "dog"):
        for i in range(3):
            save(tmp_path / "images" / name / f"{i}.png", rng.integers(0, 256, (8, 8, 3)))
    return tmp_path / "images"


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(np.float64)


def test_values_are_scaled_then_normalised_by_channel(folder, image_input):
    """(pixel · scale − mean) / std in the declared order, NCHW."""
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)

    data = load_dataset(folder, inputs=[image_input], preprocessing=Preprocessing(mean=mean, std=std))

    expected = ((pixels(folder / "cat" / "0.png") / 255 - mean) / std).transpose(2, 0, 1)
    np.testing.assert_allclose(expected, data.inputs["x"][0], rtol=1e-6)
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert np.float32 == data.inputs["x"].dtype


def test_layout_and_channel_order_are_as_declared(folder):
    """NHWC and BGR: the classic edge-versus-cloud mix-up."""
    data = load_dataset(
        folder,
        inputs=[TensorInfo("x", "float32", ("N", 8, 8, 3))],
        preprocessing=Preprocessing(layout="NHWC", channels="BGR", scale=1.0),
    )

    np.testing.assert_allclose(pixels(folder / "cat" / "0.png")[:, :, ::-1], data.inputs["x"][0])


def test_grayscale_has_one_channel(folder):
    """Also from colour images, by Pillow's luma."""
    data = load_dataset(
        folder,
        inputs=[TensorInfo("x", "float32", ("N", 1, 8, 8))],
        preprocessing=Preprocessing(channels="L", scale=1.0),
    )

    np.testing.assert_allclose(np.asarray(Image.open(folder / "dog" / "2.png").convert("L")), data.inputs["x"][5, 0])


def test_uint8_models_get_pixels_as_they_are(folder):
    """Only without scaling."""
    info = TensorInfo("x", "uint8", ("N", 3, 8, 8))
    data = load_dataset(folder, inputs=[info], preprocessing=Preprocessing(scale=1.0))

    np.testing.assert_array_equal(pixels(folder / "cat" / "1.png").transpose(2, 0, 1), data.inputs["x"][1])
    with pytest.raises(DataError, match="uint8 with scale=1"):
        load_dataset(folder, inputs=[info], preprocessing=Preprocessing())


def test_resize_keeps_the_aspect_ratio_and_the_crop_is_central(tmp_path):
    """Short side first, then the middle square: the marked centre survives, the marked edges go."""
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, :10] = wide[:, 50:] = 255
    wide[:, 20:40] = 100
    save(tmp_path / "f" / "a" / "0.png", wide)

    data = load_dataset(
        tmp_path / "f",
        inputs=[TensorInfo("x", "float32", ("N", 3, 10, 10))],
        preprocessing=Preprocessing(resize=10, crop=10, resampling="nearest", scale=1.0),
    )

    np.testing.assert_array_equal(np.full((1, 3, 10, 10), 100), data.inputs["x"])


def test_the_resampling_filter_matters_and_is_used(tmp_path):
    """Each filter gives Pillow's own result."""
    rng = np.random.default_rng(0)
    save(tmp_path / "f" / "a" / "0.png", rng.integers(0, 256, (16, 16, 3)))
    seen = []
    for name in ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"):
        data = load_dataset(
            tmp_path / "f",
            inputs=[TensorInfo("x", "float32", ("N", 3, 8, 8))],
            preprocessing=Preprocessing(size=(8, 8), resampling=name, scale=1.0),
        )
        expected = np.asarray(Image.open(tmp_path / "f" / "a" / "0.png").resize((8, 8), Image.Resampling[name.upper()]))
        np.testing.assert_array_equal(expected.transpose(2, 0, 1), data.inputs["x"][0])
        seen.append(data.sha256)
    assert len(seen) == len(set(seen))


def test_subfolders_named_with_numbers_are_their_own_index(tmp_path):
    """In sorted order '10' would come before '2'."""
    for name in ("0", "2", "10"):
        save(tmp_path / "f" / name / "0.png", np.zeros((8, 8, 3)))
    data = load_dataset(
        tmp_path / "f", inputs=[TensorInfo("x", "float32", ("N", 3, 8, 8))], preprocessing=Preprocessing()
    )

    assert sorted(data.labels.tolist()) == [0, 2, 10]


def test_an_empty_class_keeps_its_number(folder, image_input):
    """Leaving it out would renumber the ones after it."""
    (folder / "cow").mkdir()
    data = load_dataset(folder, inputs=[image_input], preprocessing=Preprocessing())

    assert data.labels.tolist() == [0, 0, 0, 2, 2, 2]


def test_given_classes_are_used_and_must_cover_the_folders(folder, image_input):
    """By name, from the study's table."""
    options = Preprocessing.of({"classes": {"cat": 281, "dog": 207}, "mean": 0.5, "std": [0.5, 0.5, 0.5], "size": 8})
    data = load_dataset(folder, inputs=[image_input], preprocessing=options)

    assert data.labels.tolist() == [281] * 3 + [207] * 3
    assert options.size == (8, 8)
    with pytest.raises(DataError, match=r"\['dog'\].*have no index"):
        load_dataset(folder, inputs=[image_input], preprocessing=Preprocessing(classes={"cat": 0}))


def test_hidden_files_are_ignored_and_others_counted(folder, image_input):
    """`.DS_Store` is nobody's image; a text file is told about."""
    (folder / "cat" / ".hidden.png").write_bytes(b"no image")
    (folder / ".thumbs").mkdir()
    (folder / "__MACOSX").mkdir()
    (folder / "cat" / "readme.txt").write_text("hello")
    data = load_dataset(folder, inputs=[image_input], preprocessing=Preprocessing())

    assert len(data) == 6
    assert "1 files in 'images' have no image suffix and were left out" in data.notes
    assert np.unique(data.labels).tolist() == [0, 1]


def test_a_limit_draws_from_all_classes(tmp_path, image_input):
    """Not the first class only."""
    for name in ("a", "b"):
        for i in range(20):
            save(tmp_path / "f" / name / f"{i}.png", np.full((8, 8, 3), i))
    data = load_dataset(tmp_path / "f", inputs=[image_input], preprocessing=Preprocessing(), limit=12)

    assert len(data) == 12
    assert {0, 1} == set(data.labels.tolist())


@pytest.mark.parametrize(
    "content",
    [b"", b"no image at all", b"\x89PNG\r\n\x1a\n" + b"\0" * 50, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n"],
)
def test_a_corrupt_image_is_named(folder, image_input, content):
    """Also one that is really PostScript, which Pillow would hand to Ghostscript."""
    (folder / "dog" / "bad.png").write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.png' cannot be decoded"):
        load_dataset(folder, inputs=[image_input], preprocessing=Preprocessing())


def test_a_truncated_image_is_named(folder, image_input):
    """Half a download has a valid header."""
    content = (folder / "dog" / "0.png").read_bytes()
    (folder / "dog" / "0.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"0\.png' cannot be decoded"):
        load_dataset(folder, inputs=[image_input], preprocessing=Preprocessing())


def test_a_decompression_bomb_is_refused_before_decoding(folder, image_input):
    """A small file that declares 400 million pixels, and one that Pillow only warns about."""
    for size in (20_000, 10_100):
        Image.new("1", (size, size)).save(folder / "cat" / "bomb.png")
        with pytest.raises(DataError, match=r"bomb\.png"):
            load_dataset(folder, inputs=[image_input], preprocessing=Preprocessing(size=(8, 8)))


def test_images_that_do_not_fit_are_named_with_what_to_set(folder, image_input):
    """Another size than the model's, and differing sizes for a dynamic model."""
    save(folder / "dog" / "large.png", np.zeros((9, 8, 3)))
    with pytest.raises(DataError, match=r"large\.png' becomes an array of shape \(3, 9, 8\).*set layout"):
        load_dataset(folder, inputs=[image_input], preprocessing=Preprocessing())
    with pytest.raises(DataError, match=r"large\.png' becomes shape"):
        load_dataset(folder, inputs=[TensorInfo("x", "float32", ("N", 3, "H", "W"))], preprocessing=Preprocessing())
    with pytest.raises(DataError, match=r"0\.png': the crop of 100"):
        load_dataset(folder, inputs=[image_input], preprocessing=Preprocessing(crop=100))


def test_folders_without_classes_or_preprocessing_say_what_is_missing(tmp_path, folder, image_input):
    """Each step of a first try has its own message."""
    with pytest.raises(DataError, match="say how they become arrays"):
        load_dataset(folder, inputs=[image_input])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images in subfolders"):
        load_dataset(tmp_path / "empty", inputs=[image_input], preprocessing=Preprocessing())
    save(tmp_path / "flat" / "0.png", np.zeros((8, 8, 3)))
    with pytest.raises(DataError, match="outside a class"):
        load_dataset(tmp_path / "flat", inputs=[image_input], preprocessing=Preprocessing())
    with pytest.raises(DataError, match="images feed one input"):
        load_dataset(folder, inputs=[image_input, image_input], preprocessing=Preprocessing())


def test_the_missing_extra_is_named(folder, image_input, monkeypatch):
    """What to install, when Pillow isn't there."""
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(DataError, match=r"edgeprof\[images\]"):
        load_dataset(folder, inputs=[image_input], preprocessing=Preprocessing())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resampling": "bicubicc"}, "Did you mean bicubic"),
        ({"layout": "CHW"}, "layout"),
        ({"resise": 3}, "Did you mean.*resize"),
        ({"mean": [0.1, 0.2]}, "1 finite value or 3"),
        ({"std": 0}, "above 0"),
        ({"size": 0}, "pixels from 1"),
        ({"resize": "many"}, "wrong type"),
    ],
)
def test_impossible_preprocessing_is_refused(options, message):
    """Before any image is read."""
    with pytest.raises(StudyError, match=message):
        Preprocessing.of(options)


@pytest.mark.parametrize("kind", ["16 bit", "float"])
@pytest.mark.parametrize("channels", ["L", "RGB"])
def test_deep_pixels_keep_their_values(tmp_path, kind, channels):
    """A share of the range is that share, whatever the file's depth; clipping would make all white or black."""
    shares = np.array([[0.1, 0.3], [0.7, 0.9]])
    path = tmp_path / "photos" / "a" / f"0.{'png' if kind == '16 bit' else 'tif'}"
    path.parent.mkdir(parents=True)
    stored = (shares * 65535).astype(np.uint16) if kind == "16 bit" else shares.astype(np.float32)
    Image.fromarray(stored).save(path)
    depth = 1 if channels == "L" else 3
    data = load_dataset(
        tmp_path / "photos",
        inputs=[TensorInfo("x", "float32", ("N", depth, 2, 2))],
        preprocessing=Preprocessing(channels=channels),
    )

    np.testing.assert_allclose(data.inputs["x"], np.broadcast_to(shares, (1, depth, 2, 2)), atol=2e-5)
    assert any("16-bit or float" in note for note in data.notes)


def test_deep_pixels_are_rounded_for_models_that_take_bytes(tmp_path):
    """Half of 65535 is 128, not 255."""
    path = tmp_path / "photos" / "a" / "0.png"
    path.parent.mkdir(parents=True)
    Image.fromarray(np.array([[0, 32768, 65535]], np.uint16)).save(path)
    data = load_dataset(
        tmp_path / "photos",
        inputs=[TensorInfo("x", "uint8", ("N", 1, 1, 3))],
        preprocessing=Preprocessing(channels="L", scale=1.0),
    )

    assert data.inputs["x"].ravel().tolist() == [0, 128, 255]


def test_float_pixels_beyond_shares_are_refused(tmp_path):
    """Whether 200 means 200 of 255 or of 65535 only the user knows."""
    path = tmp_path / "photos" / "a" / "0.tif"
    path.parent.mkdir(parents=True)
    Image.fromarray(np.full((2, 2), 200, np.float32)).save(path)

    with pytest.raises(DataError, match=r"0\.tif.*200 to 200.*shares"):
        load_dataset(
            tmp_path / "photos", inputs=[TensorInfo("x", "float32", ("N", 1, 2, 2))],
            preprocessing=Preprocessing(channels="L"),
        )  # fmt: skip


def test_linked_classes_and_images_are_read(folder, tmp_path, image_input):
    """A subset made of links is the same data as its copy; a circle of links ends."""
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "cat").symlink_to(folder / "cat")
    (linked / "dog").mkdir()
    for image in (folder / "dog").iterdir():
        (linked / "dog" / image.name).symlink_to(image)
    (linked / "dog" / "round").symlink_to(linked)

    one, other = (load_dataset(f, inputs=[image_input], preprocessing=Preprocessing()) for f in (folder, linked))

    assert one.sha256 == other.sha256


def test_links_that_lead_nowhere_are_told(folder, image_input):
    """An image less is a note with the count; a class less would number the others otherwise."""
    for number in range(2):
        (folder / "cat" / f"gone{number}.png").symlink_to(folder / "nothing.png")
    data = load_dataset(folder, inputs=[image_input], preprocessing=Preprocessing())
    assert len(data) == 6
    assert any("2 links" in note and "lead nowhere" in note for note in data.notes)

    (folder / "ant").symlink_to(folder / "nothing")
    with pytest.raises(DataError, match="ant' is a link that leads nowhere"):
        load_dataset(folder, inputs=[image_input], preprocessing=Preprocessing())


@pytest.mark.parametrize("exif", [False, True])
def test_the_exif_orientation_is_applied_when_asked_for(tmp_path, exif):
    """Without it, what Pillow and torchvision do, and a note with the count."""
    upright = np.arange(12, dtype=np.uint8).reshape(2, 6) * 20
    path = tmp_path / "photos" / "a" / "0.png"
    path.parent.mkdir(parents=True)
    about = Image.Exif()
    about[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(upright).save(path, exif=about)
    shape = (6, 2) if exif else (2, 6)
    data = load_dataset(
        tmp_path / "photos",
        inputs=[TensorInfo("x", "uint8", ("N", 1, *shape))],
        preprocessing=Preprocessing.of({"channels": "L", "scale": 1.0, "exif": exif}),
    )

    np.testing.assert_array_equal(np.rot90(upright, -1) if exif else upright, data.inputs["x"][0, 0])
    assert any("1 of 1 images have an EXIF orientation" in note for note in data.notes) is not exif


@pytest.mark.parametrize(
    ("shape", "size", "more"),
    [
        (("N", 3, 8, 10), (8, 10), {}),
        (("N", 8, 10, 3), (8, 10), {"layout": "NHWC"}),
        (("N", 1, 8, 10), (8, 10), {"channels": "L"}),
        (("N", 3, "H", "W"), (224, 224), {}),
    ],
)
def test_a_folder_without_preprocessing_is_told_what_to_add(folder, shape, size, more):
    """The option that is printed is taken as it stands, and the images then fit."""
    import re
    import shlex

    from profiler.cli.options import with_settings
    from profiler.study import make_study

    info = TensorInfo("x", "float32", shape)
    with pytest.raises(DataError, match="is a folder of images") as caught:
        load_dataset(folder, inputs=[info])
    printed = re.search(r"--set ('.*?'); in a study", str(caught.value))
    assert printed is not None
    study = make_study(**with_settings({"model": "m.onnx"}, shlex.split(printed[1])))
    options = Preprocessing.of(study.preprocessing)

    assert options == Preprocessing(size=size, **more)
    assert len(load_dataset(folder, inputs=[info], preprocessing=options)) == 6
