"""AECMOS: how much echo is left in a call? Convolutions and GRUs over spectrograms, and a state that is the same for all rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scripts.real_models_lib.akiki import RATE, recordings
from scripts.real_models_lib.fetch import debian, wheel
from scripts.real_models_lib.suite import Job, run_rows, save

TITLE = "AECMOS: an audio model with GRUs"
ABOUT = (
    "Microsoft's estimate of how people would rate a call: `input` [N, 3, frames, 160], and `h0` [4, 1, 64], zeros that the GRUs "
    "begin with, the same for all rows, which fixes the batch at 1. The answer to a row is four numbers (the first two are the "
    "ratings of echo and of degradation), on the axis that the file calls its batch: only who says that a row is the whole input "
    "(`batch_axis = none`) can have it evaluated. There are no ratings to be had here, so the labels are the unmodified model's "
    "own answers, rounded to a hundredth: its own error is the rounding."
)
FRAMES, BANDS = 120, 160
MODEL = "Run_1663829550_Stage_0.onnx"


def prepare(folder: Path, *, quick: bool) -> Job:
    """Three spectrograms a row: what the loudspeaker played, what the microphone heard, what was sent."""
    source = wheel("speechmos", "0.0.1.1", "MIT")
    speech = debian("asterisk-core-sounds-en-wav", "CC-BY-SA-3.0")
    prompts = [audio for audio in recordings(speech.folder) if len(audio) >= 2 * RATE]
    random = np.random.default_rng(0)
    rows = np.stack([_call(prompts, random) for _ in range(80 if quick else 240)])
    path = source.folder / "speechmos" / "aecmos_models" / MODEL
    answers = _ratings(path, rows)
    held_out = np.arange(len(rows)) % 4 == 0
    return Job(
        model=str(path),
        data=save(folder / "evaluation.npz", input=rows[~held_out], labels=np.round(answers[~held_out], 2)),
        settings={
            "calibration": str(save(folder / "calibration.npz", input=rows[held_out])),
            "inputs": {"h0": {"value": 0}, "input": {"batch_axis": "none"}},
            "variants": ("fp16", "int8-dynamic", "int8-static{per_channel=true}"),
            "metric": "rmse",
            "constraints": {"max_drop": 0.1},
        },
        sources=(source, speech),
        facts=(f"{int((~held_out).sum())} calls put together from prompts, with echoes; every fourth calibrates.",),
    )  # fmt: skip


def right(job: Job, model: Path) -> float:
    """Root of the mean squared difference between a file's ratings and the labels."""
    with np.load(job.data) as data:
        error = _ratings(model, data["input"]).astype(np.float64) - data["labels"]
        return float(np.sqrt(np.mean(error**2)))


def _ratings(model: Path, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Four numbers a row, shape (n, 4); a row is the model's whole input, shape (1, 3, frames, bands)."""
    said = run_rows(model, {"input": rows[:, 0]}, {"h0": np.zeros((4, 1, 64), np.float32)})["output"]
    return np.asarray(said.reshape(len(rows), 4), np.float32)


def _call(prompts: list[NDArray[np.float32]], random: np.random.Generator) -> NDArray[np.float32]:
    length = (FRAMES + 1) * 256
    far, near = (np.resize(prompts[int(random.integers(len(prompts)))], length) for _ in range(2))
    echo = float(random.uniform(0, 0.8))
    heard = near + echo * np.roll(far, 800)
    sent = near + echo * float(random.uniform(0, 1)) * np.roll(far, 800)
    return np.stack([_bands(signal) for signal in (far, heard, sent)])[np.newaxis]


def _bands(signal: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logarithm of the power in 160 bands, shape (frames, bands). Plain ones, not mel bands: no true rating is asked for."""
    frames = np.lib.stride_tricks.sliding_window_view(signal, 512)[::256][:FRAMES] * np.hanning(512).astype(np.float32)
    power = np.abs(np.fft.rfft(frames, axis=1))[:, :BANDS] ** 2
    return np.asarray((10 * np.log10(np.maximum(power, 1e-9)) + 40) / 40, np.float32)
