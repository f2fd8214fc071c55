"""Silero VAD: is somebody speaking? A state whose batch lies on the second axis, and a scalar that says the sample rate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scripts.real_models_lib.akiki import RATE, recordings
from scripts.real_models_lib.fetch import debian, wheel
from scripts.real_models_lib.suite import Job, save

TITLE = "Silero VAD: a recurrent state and a scalar"
ABOUT = (
    "The most used voice-activity detector: `input` [N, 576], `state` [2, N, 128] that goes in and out, and `sr`, one number for "
    "all rows. Rows are steps of recordings, in order; the state is carried from step to step, as it is in use."
)
CHUNK, CONTEXT = 512, 64
_STEPS = 60
_PAUSE = 0.02


def prepare(folder: Path, *, quick: bool) -> Job:
    """Recordings as sequences of steps; speech against music."""
    model = wheel("silero-vad", "6.2.3", "MIT")
    speech = debian("asterisk-core-sounds-en-wav", "CC-BY-SA-3.0")
    music = debian("asterisk-moh-opsound-wav", "CC-BY-SA-3.0")
    random = np.random.default_rng(0)
    prompts = [audio for audio in recordings(speech.folder) if len(audio) >= 3 * RATE]
    chosen = [prompts[place] for place in random.permutation(len(prompts))[: 36 if quick else 60]]
    songs = list(recordings(music.folder))
    length = _STEPS * CHUNK + CONTEXT
    pieces = [
        songs[number % len(songs)][start:][:length]
        for number, start in enumerate(random.integers(0, 8 * RATE, len(chosen)))
    ]
    sources = [*((audio[:length], 1) for audio in chosen), *((audio, 0) for audio in pieces)]
    numbered = list(enumerate(sources))
    evaluation = _sequences([source for source in numbered if source[0] % 4])
    calibration = _sequences([source for source in numbered if source[0] % 4 == 0])
    return Job(
        model=str(model.folder / "silero_vad" / "data" / "silero_vad_op18_ifless.onnx"),
        data=save(folder / "evaluation.npz", **evaluation),
        settings={
            "calibration": str(save(folder / "calibration.npz", **{k: v for k, v in calibration.items() if k != "labels"})),
            "inputs": {"sr": {"value": RATE}, "state": {"from": "stateN"}},
            "variants": ("int8-dynamic", "int8-weight"),
            "backends": ("ort",),
            "metric": "auc{output=output}",
            "constraints": {"max_drop": 0.02},
        },
        sources=(model, speech, music),
        facts=(
            (
                f"{len(np.unique(evaluation['ids']))} recordings of at most {_STEPS} steps of 32 ms, half prompts, half music; "
                "every fourth recording calibrates. A step's label is its recording's."
            ),
        ),
    )  # fmt: skip


def right(job: Job, model: Path) -> float:
    """Area under the curve of a file's answers, step by step with its own state."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    scores, states = [], dict[str, NDArray[np.float32]]()
    with np.load(job.data) as data:
        arrays = {name: data[name] for name in data.files}
    for audio, source in zip(arrays["input"], arrays["ids"].tolist(), strict=True):
        state = states.get(source, np.zeros((2, 1, 128), np.float32))
        answer, states[source] = session.run(
            ["output", "stateN"], {"input": audio[np.newaxis], "state": state, "sr": np.array(RATE, np.int64)}
        )
        scores.append(float(answer.reshape(-1)[0]))
    spoken = arrays["labels"] == 1
    one, other = np.array(scores)[spoken], np.array(scores)[~spoken]
    return float(np.mean((one[:, None] > other[None]) + 0.5 * (one[:, None] == other[None])))


def _sequences(sources: list[tuple[int, tuple[NDArray[np.float32], int]]]) -> dict[str, NDArray[np.generic]]:
    """Steps of numbered recordings, each with the number as its id: no two recordings of the two sides share one."""
    rows, labels, ids = [], [], []
    for number, (audio, label) in sources:
        padded = np.concatenate([np.zeros(CONTEXT, np.float32), audio])
        for start in range(0, len(padded) - CONTEXT - CHUNK, CHUNK):
            rows.append(padded[start : start + CONTEXT + CHUNK])
            labels.append(label)
            ids.append(f"recording {number}")
    return {"input": np.stack(rows).astype(np.float32), "labels": np.array(labels, np.int64), "ids": np.array(ids)}
