"""The application: its commands, its exit codes, and the one place where errors become messages."""

from __future__ import annotations

import errno
import importlib
import io
import os
import sys
from contextlib import suppress
from typing import Any

import typer

from profiler import advice
from profiler.errors import EdgeprofError, unknown

EXIT_OK, EXIT_NO_CASE, EXIT_ERROR, EXIT_INTERRUPTED = 0, 1, 2, 130

_NO_ROOM_BYTES = 1 << 20

EXIT_CODES = (
    "Exit codes: 0 done; 1 done, but no case meets the constraints, none could be measured, the unmodified "
    "model could not be, or a self-test did not pass; "
    "2 not possible as asked (the message says why); "
    "130 interrupted, what was measured is kept."
)

# Order of the help page. Each command lives in a module of its own, imported when it is used.
COMMANDS = {
    "demo": "Profile the built-in model: the whole job in two minutes.",
    "profile": "Profile a model: variants, measurement, frontier, recommendation, report.",
    "search": "Find the frontier of variants, backends, batches and threads within a time budget.",
    "load": "Serve a model under load: latency at a rate, or the highest rate under a limit.",
    "soak": "Heat the device up: burst from a cool start, sustained once hot, and the ratio of both.",
    "mlperf": "Run MLPerf LoadGen and our own engine on the same worker, and show both.",
    "init": "Write a commented study file for a model.",
    "run": "Do a study file, or resume an interrupted run.",
    "frontier": "The frontier of a run, over any two figures.",
    "report": "Write a run's report: one HTML file, a picture, CSV and JSON.",
    "show": "Everything known about one case of a run.",
    "explain": "Why a variant of a run is not faster: what really ran, and the reasons ranked.",
    "runs": "List the runs of a folder.",
    "doctor": "What on this machine will spoil measurements, and the command that repairs it.",
    "selftest": "Validate the profiler on this machine: does it find what is there, and nothing else?",
    "backends": "Which runtimes and devices work here, and what is missing for the others.",
    "target": "Other machines to measure on: add, set up, check, probe, list, remove.",
    "fleet": "Many devices at once: what each does now, and a study over all of them.",
    "cluster": "Certificates for a dask.distributed cluster, and whether one can be used from here.",
    "devices": "Device profiles and prices that a measurement can be declared as.",
    "export": "Export a model to ONNX and compare it with its source.",
    "variants": "Make variants of a model without measuring them.",
}


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit."""
    _open_closed_streams()
    advice.forget()
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    code = _run([argument for argument in given if argument != "--debug"], debug=debug)
    sys.exit(_flushed(code))


def _open_closed_streams() -> None:
    """Give each standard stream that is closed (`>&-`) the null device, or the next file opened would be written to as stdout;
    and let no sign that an encoding lacks end a command that has measured for an hour.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is taken, which is this one.
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 (lives as long as the program)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _flushed(code: int) -> int:
    """The exit code, after what is left was written: a full disk or a reader that went away is told here, not by python."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return _unread()
    except OSError as error:
        code = _told(error)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return code


def _run(arguments: list[str], *, debug: bool) -> int:
    """Dispatch here rather than in a typer group: a group imports every command in order to print its help."""
    first = arguments[0] if arguments else "--help"
    if first in ("-h", "--help"):
        typer.echo(_help())
        return EXIT_OK
    if first == "--version":
        from profiler import __version__

        typer.echo(f"edgeprof {__version__}")
        return EXIT_OK
    try:
        if first not in COMMANDS:
            raise unknown("command", first, COMMANDS, hint="`edgeprof --help` explains them.")
        code = _command(first).main(args=arguments[1:], prog_name=f"edgeprof {first}", standalone_mode=False)
        # Depending on its version, typer turns Ctrl-C into this code itself, without a word.
        return _interrupted() if code == EXIT_INTERRUPTED else code if isinstance(code, int) else EXIT_OK
    except typer.Exit as error:
        return _interrupted() if error.exit_code == EXIT_INTERRUPTED else error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted()
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):
            return _unread()
        _say(f"code that the study imports ended the program (exit code {error.code}).")
        return EXIT_ERROR
    except BrokenPipeError:
        return _unread()
    except Exception as error:
        if debug:
            raise
        return _told(error)


def _unread() -> int:
    """The reader (head, less) has seen enough; python would complain again while closing stdout."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return EXIT_OK


def _interrupted() -> int:
    again = advice.to_resume()
    _say(
        "interrupted before a run was begun."
        if again is None
        else f"interrupted; what was measured is kept. Go on with: {again}"
    )
    return EXIT_INTERRUPTED


def _say(text: str) -> None:
    """A line on stderr. It may hold texts of models, data, studies and databases, so it goes through the console that cleans."""
    from profiler.cli import console

    with suppress(OSError):
        console.tell(text)


def _command(name: str) -> Any:
    module = importlib.import_module(f"profiler.cli.{name}_command")
    settings = {"help_option_names": ["-h", "--help"]}
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    several = getattr(module, "COMMANDS", None)
    if several is None:
        app.command(help=COMMANDS[name], context_settings=settings, epilog=EXIT_CODES)(module.command)
        return typer.main.get_command(app)
    app.callback(help=COMMANDS[name], epilog=EXIT_CODES)(lambda: None)
    for word, command in several.items():
        app.command(word, context_settings=settings, epilog=EXIT_CODES)(command)
    group = typer.main.get_command(app)
    group.context_settings.update(settings)
    return group


def _help() -> str:
    lines = "\n".join(f"  {name:<10} {text}" for name, text in COMMANDS.items())
    return (
        "usage: edgeprof [--debug] COMMAND …    (edgeprof COMMAND --help: its options)\n\n"
        "Measure which variant of a model to deploy, on which runtime and device, what it costs, and how sure that is.\n\n"
        f"{lines}\n\n  --version  Show the version.\n"
        "  --debug    Show Python's traceback when something goes wrong.\n\n"
        f"{EXIT_CODES}"
    )


def _full_places(error: OSError) -> str:
    """Where there is no room, for an error that does not say it: of the places that anything here writes to."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return ""
    import shutil
    import tempfile
    from pathlib import Path

    full = []
    for name in dict.fromkeys((tempfile.gettempdir(), str(Path.cwd()), os.environ.get("XDG_CACHE_HOME", ""))):
        try:
            if name and shutil.disk_usage(name).free < _NO_ROOM_BYTES:
                full.append(name)
        except OSError:
            continue
    return (
        f" ({', '.join(full)}: TMPDIR and --out choose other places)" if full else " (the folder of --out, or TMPDIR)"
    )


def _told(error: Exception) -> int:
    """An error as one message for people; usage errors of the option parser show themselves."""
    format_message = getattr(error, "format_message", None)
    if format_message is not None:
        hint = getattr(getattr(error, "ctx", None), "command_path", None)
        _say(f"{format_message()}{f' `{hint} --help` shows the options.' if hint else ''}")
    elif isinstance(error, EdgeprofError):
        _say(_shortened(str(error)))
    elif isinstance(error, OSError) and error.strerror:
        place = f" ({error.filename})" if error.filename else _full_places(error)
        _say(f"{error.strerror}{place}.")
    elif isinstance(error, MemoryError):
        _say("not enough free memory for that; use --limit or a smaller batch.")
    else:
        _say(
            f"unexpected {type(error).__name__}: {str(error)[:500]}. This is a bug in edgeprof; "
            "please report it with the output of the same command and --debug."
        )
    return EXIT_ERROR


_LONGEST = 8000


def _shortened(text: str) -> str:
    """A message that quotes a whole model or log, without its middle."""
    if len(text) <= _LONGEST:
        return text
    half = _LONGEST // 2
    return f"{text[:half]} … ({len(text) - 2 * half:,} characters left out) … {text[-half:]}"
