"""Train, export and write the built-in demo: a small residual network on Fashion-MNIST, with its labelled data.

    python scripts/train_demo_model.py                     # fetches the Debian package of the data (no root needed)
    python scripts/train_demo_model.py --data FOLDER       # the four *-ubyte.gz files lie in FOLDER
    python scripts/train_demo_model.py --weights demo.pt   # keeps the trained weights there; uses them if they exist

The test images play no part in training: no checkpoint is chosen, the weights of the last epoch are exported. The script
fails below 92.5 % on the 10,000 test images, measured through onnxruntime on the exported file.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from scripts.environment import enter

enter(__name__, "dev", "torch")

import numpy as np  # noqa: E402
import onnx  # noqa: E402
import onnxruntime  # noqa: E402
import torch  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from torch import nn  # noqa: E402

from profiler.export import Exported, export_model  # noqa: E402

DEBIAN_PACKAGE = "dataset-fashion-mnist"
FLOOR = 0.925
SEED = 20240229
MEAN, STD = 0.2860, 0.3530
"""Pixel mean and standard deviation of the 60,000 training images, in units of the full range."""
EVALUATION_ROWS, CALIBRATION_ROWS, CLASS_COUNT = 4000, 512, 10
MIT_LICENSE = """The MIT License (MIT)

Copyright (c) 2017 Zalando SE, https://tech.zalando.com

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""
OUT = Path(__file__).resolve().parent.parent / "profiler" / "demo"


class Residual(nn.Module):
    """Two 3×3 convolutions around an identity: relu(x + f(x)), same shape out as in."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.body(x))


def stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Convolution, batch normalisation, relu."""
    convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


class MiniResNet(nn.Module):
    """116,602 parameters: 16 → 32 (stride 2) → residual → 64 (stride 2) → residual → mean → linear."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(stage(1, 16, 1), stage(16, 32, 2), Residual(32), stage(32, 64, 2), Residual(64))
        self.head = nn.Linear(64, CLASS_COUNT)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """`image` float32 [N, 1, 28, 28] in 0..1 → `logits` float32 [N, 10]. Normalisation is part of the graph."""
        features = self.features((image - MEAN) / STD)
        return {"logits": self.head(features.mean((2, 3)))}


@dataclass(frozen=True)
class Split:
    """Images uint8 [n, 28, 28] and labels int64 [n]."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


def read_idx(path: Path) -> NDArray[np.uint8]:
    """A gzipped IDX file of unsigned bytes: two zero bytes, type 8, rank, sizes as big-endian int32, then the bytes."""
    raw = gzip.decompress(path.read_bytes())
    if raw[:3] != b"\x00\x00\x08":
        sys.exit(f"{path} is not an IDX file of unsigned bytes (starts with {raw[:4].hex()}).")
    shape = np.frombuffer(raw, dtype=">i4", count=raw[3], offset=4)
    return np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * raw[3]).reshape(shape)


def fetch_debian_package(folder: Path) -> tuple[Path, str]:
    """Download and unpack the Debian package without installing it; its data folder and its version."""
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            sys.exit(f"{tool} is missing: pass --data FOLDER with the four *-ubyte.gz files of Fashion-MNIST.")
    subprocess.run(["apt-get", "download", DEBIAN_PACKAGE], cwd=folder, check=True)
    archive = next(folder.glob(f"{DEBIAN_PACKAGE}_*.deb"))
    subprocess.run(["dpkg-deb", "-x", str(archive), str(folder)], check=True)
    version = subprocess.run(["dpkg-deb", "-f", str(archive), "Version"], check=True, capture_output=True, text=True)
    return folder / "usr/share/datasets/fashion-mnist", version.stdout.strip()


def load_data(folder: Path) -> tuple[dict[str, Split], dict[str, str]]:
    """The `train` and `t10k` splits, and the sha256 of each file read."""
    splits, hashes = {}, {}
    for name in ("train", "t10k"):
        files = [folder / f"{name}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1")]
        for file in files:
            hashes[file.name] = sha256(file)
        splits[name] = Split(read_idx(files[0]), read_idx(files[1]).astype(np.int64))
    return splits, hashes


def sha256(path: Path) -> str:
    """Hash of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each image [n, 1, 28, 28] mirrored with probability ½ and shifted by up to 2 pixels, black moving in."""
    count = images.shape[0]
    mirror = torch.rand(count, generator=generator) < 0.5
    images = torch.where(mirror[:, None, None, None], images.flip(3), images)
    padded = nn.functional.pad(images, (2, 2, 2, 2))[:, 0]
    shift = torch.randint(0, 5, (2, count), generator=generator)
    rows = shift[0][:, None] + torch.arange(28)
    columns = shift[1][:, None] + torch.arange(28)
    return padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]][:, None]


def train(model: nn.Module, data: Split, *, epochs: int, batch: int, seed: int) -> None:
    """One-cycle SGD over the whole training split; the model keeps the weights of the last step."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.from_numpy(data.images.copy())[:, None].float() / 255
    labels = torch.from_numpy(data.labels)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = len(labels) // batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.2, total_steps=steps * epochs, pct_start=0.25)
    for epoch in range(epochs):
        model.train()
        started, total = time.perf_counter(), 0.0
        order = torch.randperm(len(labels), generator=generator)
        for step in range(steps):
            rows = order[step * batch : (step + 1) * batch]
            loss = nn.functional.cross_entropy(model(augment(images[rows], generator))["logits"], labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        seconds = time.perf_counter() - started
        print(f"epoch {epoch + 1}/{epochs}: training loss {total / steps:.4f}, {seconds:.0f} s", flush=True)


def trained(model: nn.Module, data: Split, arguments: argparse.Namespace) -> dict[str, Any]:
    """Load the weights where --weights names an existing file, else train and keep them; how they were made."""
    if arguments.weights and arguments.weights.exists():
        saved = torch.load(arguments.weights, weights_only=True)
        model.load_state_dict(saved["weights"])
        return dict(saved["made"])
    train(model, data, epochs=arguments.epochs, batch=arguments.batch, seed=arguments.seed)
    made = {
        "epochs": arguments.epochs,
        "batch": arguments.batch,
        "seed": arguments.seed,
        "threads": arguments.threads,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    if arguments.weights:
        torch.save({"weights": model.state_dict(), "made": made}, arguments.weights)
    return made


def choose(data: Split, count: int, seed: int, *, forbidden: frozenset[bytes] = frozenset()) -> NDArray[np.int64]:
    """`count` row numbers, ascending, equally many of each class (±1), without images whose bytes are forbidden."""
    generator = np.random.default_rng(seed)
    chosen = []
    for label in range(CLASS_COUNT):
        rows = [row for row in np.flatnonzero(data.labels == label) if data.images[row].tobytes() not in forbidden]
        share = count // CLASS_COUNT + (label < count % CLASS_COUNT)
        chosen.append(generator.choice(rows, share, replace=False))
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def predictions(path: Path, images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Predicted class of each image, through onnxruntime."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    parts = [
        session.run(["logits"], {"image": part[:, None].astype(np.float32) / 255})[0].argmax(1)
        for part in np.array_split(images, max(1, len(images) // 500))
    ]
    return np.concatenate(parts)


def provenance(
    exported: Exported,
    made: dict[str, Any],
    hashes: dict[str, str],
    data_version: str | None,
    accuracy: float,
    subset: float,
    arguments: argparse.Namespace,
) -> str:
    """Where everything in the folder comes from, as Markdown; tests read the two accuracies from it."""
    parity = exported.parity
    assert parity is not None
    files = [exported.path, *(arguments.out / f"fashion_mnist_{name}.npz" for name in ("evaluation", "calibration"))]
    shipped = "\n".join(f"| `{file.name}` | {file.stat().st_size:,} | `{sha256(file)}` |" for file in files)
    read = "\n".join(f"| `{name}` | `{digest}` |" for name, digest in sorted(hashes.items()))
    package = f"`{DEBIAN_PACKAGE}` {data_version}" if data_version else f"`{DEBIAN_PACKAGE}`"
    return f"""# The built-in demo: where it comes from

Written by `scripts/train_demo_model.py`; not edited by hand.

## Data

Fashion-MNIST by Han Xiao, Kashif Rasul and Roland Vollgraf, Zalando SE 2017
(<https://github.com/zalandoresearch/fashion-mnist>, arXiv:1708.07747), from the Debian package {package}. Licence: MIT
(`LICENSE.fashion-mnist`). 28×28 grey images of ten kinds of clothing: 60,000 to train, 10,000 to test.

- `fashion_mnist_evaluation.npz`: {EVALUATION_ROWS:,} test images, {EVALUATION_ROWS // CLASS_COUNT} of each class,
  chosen with seed {arguments.seed}.
- `fashion_mnist_calibration.npz`: {CALIBRATION_ROWS} training images, 51 or 52 of each class, the same seed;
  none has the bytes of any test image.

Arrays: `image` uint8 [n, 28, 28], `labels` uint8 [n], `index` uint16 [n] (row in the original file).

| file read | sha256 |
|---|---|
{read}

## Model

Residual network, {sum(p.numel() for p in MiniResNet().parameters()):,} parameters:
convolution 16 → 32 (stride 2) → residual → 64 (stride 2) → residual → mean → linear. Input `image` float32
[N, 1, 28, 28] in 0..1 (pixel / 255); the graph itself subtracts the mean {MEAN} and divides by the standard deviation {STD}.
Output `logits` float32 [N, 10]. Licence: as edgeprof (Apache-2.0).

Trained on all 60,000 training images: {made["epochs"]} epochs, batch {made["batch"]}, one-cycle SGD (peak 0.2, Nesterov
momentum 0.9, weight decay 5e-4), mirrored with probability ½ and shifted by up to 2 pixels, seed {made["seed"]},
threads: {made["threads"]}, torch {made["torch"]}, Python {made["python"]}, {made["machine"]}. The weights are those of the
last step: no test image had a part in training or in choosing them. Another number of threads or another processor
rounds differently and gives other weights.

Exported by {exported.exporter}, opset {exported.opset}; against the module on {parity.rows} calibration images the
outputs differ by at most {parity.max_rel_diff:.1e} relative (tolerance {parity.tolerance:g}).

Accuracy, measured through onnxruntime {onnxruntime.__version__} on the exported file:

- all 10,000 test images: {accuracy * 100:.2f} %
- the {EVALUATION_ROWS:,} shipped ones: {subset * 100:.2f} %

| file | bytes | sha256 |
|---|---|---|
{shipped}

Versions: torch {torch.__version__}, onnx {onnx.__version__}, onnxruntime {onnxruntime.__version__}, numpy {np.__version__}.
"""


def main() -> None:
    """Data → weights → ONNX → accuracy → files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with the four *-ubyte.gz files; else the Debian package")
    parser.add_argument(
        "--weights", type=Path, help="file for the trained weights; used instead of training if it exists"
    )
    parser.add_argument(
        "--data-version", help="version of the package that --data was unpacked from, for PROVENANCE.md"
    )
    parser.add_argument("--out", type=Path, default=OUT, help="folder to write to (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    torch.use_deterministic_algorithms(True)
    with tempfile.TemporaryDirectory() as scratch:
        folder, version = (arguments.data, None) if arguments.data else fetch_debian_package(Path(scratch))
        splits, hashes = load_data(folder)
    model = MiniResNet()
    made = trained(model, splits["train"], arguments)
    test = splits["t10k"]
    seen = frozenset(image.tobytes() for image in test.images)
    rows = {
        "evaluation": choose(test, EVALUATION_ROWS, arguments.seed),
        "calibration": choose(splits["train"], CALIBRATION_ROWS, arguments.seed, forbidden=seen),
    }
    sample = {"image": splits["train"].images[rows["calibration"]][:, None].astype(np.float32) / 255}
    arguments.out.mkdir(parents=True, exist_ok=True)
    exported = export_model(model, sample, arguments.out / "fashion_mnist_resnet.onnx", opset=18)
    print(exported)
    if exported.parity is None or not exported.parity.ok:
        sys.exit("the exported model does not answer like the trained one: nothing else was written.")
    right = predictions(exported.path, test.images) == test.labels
    accuracy, subset = float(right.mean()), float(right[rows["evaluation"]].mean())
    print(
        f"accuracy: {accuracy:.2%} on all {len(right):,} test images, {subset:.2%} on the {EVALUATION_ROWS:,} shipped"
    )
    if accuracy < FLOOR:
        sys.exit(f"accuracy {accuracy:.2%} is below {FLOOR:.1%}: train longer or with another seed.")
    for name, split in (("evaluation", "t10k"), ("calibration", "train")):
        chosen = rows[name]
        np.savez_compressed(
            arguments.out / f"fashion_mnist_{name}.npz",
            image=splits[split].images[chosen],
            labels=splits[split].labels[chosen].astype(np.uint8),
            index=chosen.astype(np.uint16),
        )
    (arguments.out / "LICENSE.fashion-mnist").write_text(MIT_LICENSE)
    text = provenance(exported, made, hashes, version or arguments.data_version, accuracy, subset, arguments)
    (arguments.out / "PROVENANCE.md").write_text(text)


if __name__ == "__main__":
    main()
