"""A text decoder: the next letter of a name in Latin script, from the letters so far and an encoded Arabic name."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import numpy as np

from scripts.real_models_lib.fetch import wheel
from scripts.real_models_lib.suite import Job, run_file, run_rows, save

TITLE = "A text decoder with attention"
ABOUT = (
    "The decoder of a small transliterator (GRU with attention): token ids, an encoder's memory, its mask (bool) "
    "and hidden state come in; log probabilities of the next letter and the next state go out. Each row brings the state that "
    "the unmodified model had reached there."
)
PREFIX = 4
_LONGEST = 12


def prepare(folder: Path, *, quick: bool) -> Job:
    """Names of the package's own dictionary, of which the first letters are known and the next is asked for."""
    source = wheel("arabic-name-romanizer", "0.2.0", "MIT")
    home = source.folder / "arabic_name_romanizer" / "resources"
    vocabulary = {token: number for number, token in enumerate(json.loads((home / "vocab.json").read_text())["tokens"])}
    pairs = _names(home / "names.sqlite3", vocabulary, 600 if quick else 2000)
    sources = np.zeros((len(pairs), _LONGEST + 3), np.int64)
    for row, (arabic, _) in enumerate(pairs):
        ids = [
            vocabulary["<UNK_COUNTRY>"],
            vocabulary["<ROLE_UNKNOWN>"],
            *(vocabulary[letter] for letter in arabic),
            vocabulary["<EOS>"],
        ]
        sources[row, : len(ids)] = ids
    encoded = run_file(home / "encoder.onnx", {"src": sources, "src_mask": sources == 0})
    prefixes = np.array(
        [[vocabulary["<BOS>"], *(vocabulary[letter] for letter in latin[: PREFIX - 1])] for _, latin in pairs]
    )
    labels = np.array([vocabulary[latin[PREFIX - 1]] for _, latin in pairs], np.int64)
    rows = {"memory": encoded["memory_out"], "src_mask": encoded["src_mask_out"], "hidden": encoded["hidden_out"]}
    for known in range(1, PREFIX):
        # The decoder reads the last letter only; what came before is in its state.
        rows["hidden"] = run_file(home / "decoder.onnx", {**rows, "prefix": prefixes[:, :known]})["hidden_out"]
    rows["prefix"] = prefixes
    held_out = np.arange(len(pairs)) % 5 == 0
    return Job(
        model=str(home / "decoder.onnx"),
        data=save(folder / "evaluation.npz", labels=labels[~held_out], **{k: v[~held_out] for k, v in rows.items()}),
        settings={
            "calibration": str(save(folder / "calibration.npz", **{k: v[held_out] for k, v in rows.items()})),
            "variants": ("int8-dynamic", "int8-weight", "int8-static{per_channel=true}"),
            "constraints": {"max_drop": 0.02},
        },
        sources=(source,),
        facts=(
            (
                f"{len(vocabulary)} tokens; {int((~held_out).sum())} names of at most {_LONGEST} Arabic letters from its "
                f"dictionary; every fifth name calibrates. Asked is letter {PREFIX}, with the letters before it given."
            ),
        ),
    )  # fmt: skip


def right(job: Job, model: Path) -> float:
    """Share of letters that a file says rightly."""
    with np.load(job.data) as data:
        arrays = {name: data[name] for name in data.files}
    labels = arrays.pop("labels")
    return float(np.mean(run_rows(model, arrays)["logprobs"].argmax(axis=1) == labels))


def _names(database: Path, vocabulary: dict[str, int], most: int) -> list[tuple[str, str]]:
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as opened:
        found = opened.execute(
            "SELECT arabic_key, latin FROM units WHERE latin_lang IN ('', 'en') ORDER BY count DESC, arabic_key, latin"
        )
        known = {}
        for arabic, latin in found:
            if (
                len(latin) >= PREFIX
                and len(arabic) <= _LONGEST
                and all(letter in vocabulary for letter in arabic + latin)
            ):
                # The commonest spelling of a name.
                known.setdefault(arabic, latin)
    names = sorted(known.items())
    return [names[place] for place in np.random.default_rng(0).permutation(len(names))[:most]]
