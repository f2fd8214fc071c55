"""The command line: the only place that prints, prompts or exits. One file per command; everything heavy is imported inside."""

from __future__ import annotations

from profiler.cli.app import main

__all__ = ["main"]
