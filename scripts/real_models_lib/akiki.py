"""akiki: is somebody speaking? A small recurrent voice-activity detector whose state is an input and an output."""

from __future__ import annotations

import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scripts.real_models_lib.fetch import debian, wheel
from scripts.real_models_lib.suite import Job, save

TITLE = "akiki: voice activity with a recurrent state"
ABOUT = (
    "A streaming model: batch fixed at 1, opset 17, If nodes, and the state `h` goes in and out. So small that the runtime's "
    "overhead counts. Each row brings the state that the unmodified model had reached there, so what a variant's own errors do "
    "to the state over time is not measured here."
)
RATE = 16_000
CHUNK = 256
CONTEXT = 320
_FRAMES = 60
"""At most so many rows from one recording, spread over it."""
_LOUD = 0.02
"""RMS of a frame of speech, full scale 1. Quieter frames of the prompts are pauses and are left out."""
_SECONDS = 8.0


def prepare(folder: Path, *, quick: bool) -> Job:
    """Rows (audio, state) of prompts and of music, cut by recording."""
    model = wheel("akiki", "0.0.6", "Apache-2.0", platform="manylinux_2_34_x86_64")
    speech = debian("asterisk-core-sounds-en-wav", "CC-BY-SA-3.0")
    music = debian("asterisk-moh-opsound-wav", "CC-BY-SA-3.0")
    path = model.folder / "akiki" / "models" / "akiki-vad.onnx"
    prompts = [audio for file in _recordings(speech.folder) if len(audio := _read(file)) >= 2 * RATE]
    songs = [_read(file) for file in _recordings(music.folder)]
    random = np.random.default_rng(0)
    chosen = [prompts[place] for place in random.permutation(len(prompts))[: 72 if quick else 120]]
    # Pieces of one song are one source for the intervals; there are as many rows of music as of speech.
    pieces = [(song[start:][: int(_SECONDS * RATE)], number) for number, song in enumerate(songs)
              for start in random.integers(0, len(song) - int(_SECONDS * RATE), len(chosen) // len(songs))]  # fmt: skip
    rows = _Rows(path)
    for number, audio in enumerate(chosen):
        rows.add(audio[: int(_SECONDS * RATE)], 1, f"prompt {number}", calibrate=number % 4 == 0)
    for audio, song in pieces:
        rows.add(audio, 0, f"song {song}", calibrate=song == 0)
    evaluation, calibration = rows.arrays(calibrate=False), rows.arrays(calibrate=True)
    return Job(
        model=str(path),
        data=save(folder / "evaluation.npz", **evaluation),
        settings={
            "calibration": str(save(folder / "calibration.npz", **calibration)),
            "variants": ("graph", "int8-dynamic", "int8-static", "int8-static{per_channel=true}"),
            "metric": "auc{output=probability}",
            "constraints": {"max_drop": 0.01},
        },
        sources=(model, speech, music),
        facts=(
            (
                f"{len(evaluation['labels'])} frames of 16 ms to evaluate on: {int(evaluation['labels'].sum())} of telephone "
                f"prompts (one speaker), the others of music; {len(np.unique(evaluation['ids']))} recordings are the sources of "
                "the intervals."
            ),
            (
                f"{len(calibration['labels'])} frames of other recordings for calibration. All were recorded at 8 kHz and "
                "resampled to 16 kHz; pauses between words were left out."
            ),
        ),
    )


class _Rows:
    """Runs the model over recordings and keeps some of its inputs."""

    def __init__(self, model: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        self._kept: list[tuple[NDArray[np.float32], NDArray[np.float32], int, str, bool]] = []

    def add(self, audio: NDArray[np.float32], label: int, source: str, *, calibrate: bool) -> None:
        """Frames of one recording, each with the state that the frames before it left."""
        state = np.zeros((1, 1, 128), np.float32)
        found = []
        for start in range(CONTEXT, len(audio) - CHUNK, CHUNK):
            window = audio[start - CONTEXT : start + CHUNK][np.newaxis]
            loud = float(np.sqrt(np.mean(window[0, CONTEXT:] ** 2))) > _LOUD
            if loud:
                found.append((window, state, label, source, calibrate))
            state = self._session.run(["h_out"], {"audio_with_context": window, "h": state})[0]
        step = max(1, len(found) // _FRAMES)
        self._kept += found[::step][:_FRAMES]

    def arrays(self, *, calibrate: bool) -> dict[str, NDArray[np.generic]]:
        """The rows of one side, in an order drawn once."""
        rows = [row for row in self._kept if row[4] == calibrate]
        rows = [rows[place] for place in np.random.default_rng(0).permutation(len(rows))]
        return {
            "audio_with_context": np.concatenate([row[0] for row in rows]),
            "h": np.concatenate([row[1] for row in rows]),
            "labels": np.array([row[2] for row in rows], np.int64),
            "ids": np.array([row[3] for row in rows]),
        }


def recordings(folder: Path) -> Iterator[NDArray[np.float32]]:
    """The recordings of one of Asterisk's packages, in order, at 16 kHz."""
    return map(_read, _recordings(folder))


def _recordings(folder: Path) -> list[Path]:
    return sorted((folder / "usr/share/asterisk").rglob("*.wav"))


def _read(path: Path) -> NDArray[np.float32]:
    """A mono 16-bit recording at the model's rate, in −1..1."""
    from scipy.signal import resample_poly

    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getsampwidth()) == (1, 2), path
        audio = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768
        return np.asarray(resample_poly(audio, RATE // file.getframerate(), 1), np.float32)
