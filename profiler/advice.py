"""Commands that edgeprof tells people to type next: quoted for a shell, and about the run database that is being used.

Every message that ends in a command makes it here, so that what is printed can be pasted as it stands. Where runs lie is known
to whoever opened them (the command line, `profiler.api`), and is said here once.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass

DEFAULT_OUT = "runs"


@dataclass
class _Told:
    """What later commands have to name."""

    out: str = DEFAULT_OUT
    database: str | None = None
    resume: str | None = None


_told = _Told()


def forget() -> None:
    """As at the start of a program: runs lie where they usually do, and none was begun."""
    _told.out, _told.database, _told.resume = DEFAULT_OUT, None, None


def runs_lie_in(out: object, database: str | None = None) -> None:
    """From now on commands about runs name this folder, and the database where it is another one."""
    _told.out, _told.database = str(out), database


def database() -> str | None:
    """The database that commands name."""
    return _told.database


def database_is(url: str | None) -> None:
    """Commands name this database beside the folder."""
    _told.database = url


def place() -> list[str]:
    """The options that find the runs again; none for the usual folder."""
    found = [] if _told.out == DEFAULT_OUT else ["--out", _told.out]
    return found if _told.database is None else [*found, "--database", _told.database]


def command(*words: object) -> str:
    """`edgeprof` with these words, quoted for a shell."""
    return shlex.join(["edgeprof", *map(str, words)])


def of_run(*words: object) -> str:
    """A command that reads or goes on with runs: the same, with the options that find them."""
    return command(*words, *place())


def resume(run: str, *, search: bool = False, code: Iterable[str] = ()) -> str:
    """The command that goes on with a run; `code` is what its study runs of the user's own."""
    allow = ["--allow-code"] if tuple(code) else []
    return of_run("search" if search else "run", "--resume", run, *allow)


def began(run: str, *, search: bool = False, code: Iterable[str] = ()) -> None:
    """A run was begun or taken up again: whoever interrupts the program is told how to go on with this one."""
    _told.resume = resume(run, search=search, code=code)


def to_resume() -> str | None:
    """How to go on with the run that this program began last; None when it began none."""
    return _told.resume
