"""The errors that adapters raise, and the base of every error of edgeprof. Imports nothing: messages must be cheap."""

from __future__ import annotations


class EdgeprofError(Exception):
    """Base of every error raised on purpose: its text names the thing, what came, what was expected, what to do."""


class BackendError(EdgeprofError):
    """A runtime could not load or run a model."""


class BackendUnavailable(BackendError):  # noqa: N818 (reads as the state it reports)
    """The runtime, its device or its libraries are not on this machine; the text names what to install."""


class ProviderMismatch(BackendError):  # noqa: N818
    """Another execution provider than the one asked for would run the model (ONNX Runtime falls back in silence)."""


class FeedError(BackendError):
    """The inputs do not fit the model: names, dtypes, ranks or fixed sizes."""
