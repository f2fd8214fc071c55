"""The demo that ships is what its provenance says it is."""

from __future__ import annotations

import hashlib
import re

import numpy as np
import pytest

from profiler import demo

FOLDER = demo.model_path().parent


def stated(pattern: str) -> float:
    return float(re.search(pattern, (FOLDER / "PROVENANCE.md").read_text())[1])


@pytest.mark.parametrize(("part", "rows"), [("evaluation", 4000), ("calibration", 512)])
def test_arrays_have_the_promised_shapes_types_and_ranges(part, rows):
    """Images are float32 in 0..1 and use the whole range; classes are as equal as they can be; ids are unique."""
    data = getattr(demo, part)()

    assert list(data) == ["image", "labels", "ids"]
    assert ((rows, 1, 28, 28), np.float32) == (data["image"].shape, data["image"].dtype)
    assert (data["image"].min(), data["image"].max()) == (0.0, 1.0)
    assert ((rows,), np.int64) == (data["labels"].shape, data["labels"].dtype)
    counts = np.bincount(data["labels"], minlength=len(demo.CLASSES))
    assert len(counts) == 10
    assert counts.max() - counts.min() <= 1
    assert rows == len(set(data["ids"]))


def test_no_calibration_image_is_an_evaluation_image():
    """By the bytes of the image, not only by where it came from."""
    hashes = [{image.tobytes() for image in part()["image"]} for part in (demo.evaluation, demo.calibration)]

    assert not hashes[0] & hashes[1]


def test_the_files_are_those_the_provenance_names():
    """Sizes and sha256 agree, so a retrained model comes with a new PROVENANCE.md."""
    table = re.findall(
        r"\| `(fashion_mnist_\S+)` \| ([\d,]+) \| `([0-9a-f]{64})` \|", (FOLDER / "PROVENANCE.md").read_text()
    )

    assert len(table) == 3
    for name, size, digest in table:
        content = (FOLDER / name).read_bytes()
        assert (int(size.replace(",", "")), digest) == (len(content), hashlib.sha256(content).hexdigest())


def test_the_demo_is_small_enough_for_the_wheel():
    """Everything in the folder together stays below 4 MB."""
    assert sum(file.stat().st_size for file in FOLDER.iterdir() if file.is_file()) < 4_000_000


def test_the_licence_of_the_data_ships_with_it():
    """MIT asks for its notice in all copies."""
    text = (FOLDER / "LICENSE.fashion-mnist").read_text()

    assert "2017 Zalando SE" in text
    assert "above copyright notice and this permission notice shall be included" in text


def test_the_model_takes_what_the_data_gives():
    """Names, types and a free batch axis; 116,602 parameters less what batch normalisation folds into convolutions."""
    from profiler import onnx_io

    model = onnx_io.read_model(demo.model_path())

    (given,) = onnx_io.model_inputs(model)
    (answer,) = onnx_io.model_outputs(model)
    assert (given.name, given.dtype, given.shape) == ("image", "float32", ("N", 1, 28, 28))
    assert (answer.name, answer.dtype, answer.shape) == ("logits", "float32", ("N", 10))
    assert onnx_io.opset_of(model) >= 17


@pytest.mark.runtime
def test_the_shipped_model_reaches_the_stated_accuracy():
    """Within 0.1 point of PROVENANCE.md on the shipped images, and at least 92 %."""
    import onnxruntime

    data = demo.evaluation()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(demo.model_path()), options, providers=["CPUExecutionProvider"])
    answers = [session.run(["logits"], {"image": part})[0].argmax(1) for part in np.array_split(data["image"], 8)]
    accuracy = 100 * float((np.concatenate(answers) == data["labels"]).mean())

    assert accuracy == pytest.approx(stated(r"the 4,000 shipped ones: ([\d.]+) %"), abs=0.1)
    assert accuracy >= 92.0
    assert stated(r"all 10,000 test images: ([\d.]+) %") >= 92.5
