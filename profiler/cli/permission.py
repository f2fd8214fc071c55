"""The user's word for what a study file or a stored run would do beyond measuring: run code, change power modes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from profiler.errors import StudyError
from profiler.plain import one_line

if TYPE_CHECKING:
    from profiler.study import Study

AllowCode = Annotated[
    bool,
    typer.Option(
        "--allow-code", help="Run the functions and commands that the study names, without asking (docs/security.md)."
    ),
]


def confirm_code(study: Study, *, allowed: bool, whose: str) -> None:
    """Ask before code runs that the user did not type himself: a study file's, or that of a stored run.

    `whose` names it. Raises StudyError, with the names, when nobody can be asked; Abort for a no.
    """
    from profiler.named_code import named_code

    found = [one_line(text) for text in named_code(study)]
    if allowed or not found:
        return
    what = "; ".join(found)
    if not sys.stdin.isatty():
        raise StudyError(f"{whose} runs code, with your rights: {what}. Look at it, and agree with --allow-code.")
    typer.confirm(f"{one_line(whose)} runs code, with your rights: {what}. Run it?", abort=True, err=True)
