"""The application: its commands, its exit codes, and the one place where errors become messages."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from typing import Any

import typer

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
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    sys.exit(_run([argument for argument in given if argument != "--debug"], debug=debug))


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
        typer.echo(f"edgeprof: code that the study imports ended the program (exit code {error.code}).", err=True)
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
    again = "edgeprof run --resume latest (a search: edgeprof search --resume latest)"
    typer.echo(f"interrupted; what was measured is kept. Go on with: {again}", err=True)
    return EXIT_INTERRUPTED


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
    show = getattr(error, "show", None)
    if show is not None:
        show()
    elif isinstance(error, EdgeprofError):
        typer.echo(f"edgeprof: {error}", err=True)
    elif isinstance(error, OSError) and error.strerror:
        place = f" ({error.filename})" if error.filename else _full_places(error)
        typer.echo(f"edgeprof: {error.strerror}{place}.", err=True)
    elif isinstance(error, MemoryError):
        typer.echo("edgeprof: not enough free memory for that; use --limit or a smaller batch.", err=True)
    else:
        typer.echo(
            f"edgeprof: unexpected {type(error).__name__}: {str(error)[:500]}. This is a bug in edgeprof; "
            "please report it with the output of the same command and --debug.",
            err=True,
        )
    return EXIT_ERROR
