"""What a study names as code: it runs with the user's rights, so only the user's own word may start it (docs/security.md)."""

from __future__ import annotations

from pathlib import Path

from profiler.data.functions import FUNCTION
from profiler.study import Study


def named_code(study: Study) -> tuple[str, ...]:
    """Everything that this study would run beside the model: modules that are imported and called, and commands.

    Each as words for people, such as `data = "rows:make"`; empty for a study of files only.
    """
    found = [
        f'{name} = "{text}"'
        for name, text in (("model", study.model), ("data", study.data), ("calibration", study.calibration))
        if text is not None and FUNCTION.fullmatch(text) and not Path(text).exists()
    ]
    if study.metric is not None and FUNCTION.fullmatch(study.metric.strip()):
        found.append(f'metric = "{study.metric}"')
    if study.energy is not None and study.energy.command is not None:
        found.append(f'energy.command = "{study.energy.command}"')
    return tuple(found)
