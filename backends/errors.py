"""The errors that adapters raise, and the base of every error of edgeprof. Imports nothing: messages must be cheap."""

from __future__ import annotations

MAX_MESSAGE = 4000
"""Characters of a message. Runtimes quote whole models in theirs; nobody reads on, and records and pages keep every one."""
_TAIL = 800


def shortened(text: str, most: int = MAX_MESSAGE) -> str:
    """A message that is not longer than `most`: its beginning and its end, and between them how much was left out."""
    if len(text) <= most:
        return text
    tail = min(_TAIL, most // 4)
    head = most - tail - 50
    return f"{text[:head]} … ({len(text) - head - tail} characters left out) … {text[-tail:]}"


class EdgeprofError(Exception):
    """Base of every error raised on purpose: its text names the thing, what came, what was expected, what to do."""

    def __init__(self, message: object = "") -> None:
        """A message longer than `MAX_MESSAGE` is shortened."""
        super().__init__(shortened(str(message)))


class BackendError(EdgeprofError):
    """A runtime could not load or run a model."""


class BackendUnavailable(BackendError):  # noqa: N818 (reads as the state it reports)
    """The runtime, its device or its libraries are not on this machine; the text names what to install."""


class ProviderMismatch(BackendError):  # noqa: N818
    """Another execution provider than the one asked for would run the model (ONNX Runtime falls back in silence)."""


class FeedError(BackendError):
    """The inputs do not fit the model: names, dtypes, ranks or fixed sizes."""
