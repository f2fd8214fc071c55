"""The application: its commands, its exit codes, and the one place where errors become messages."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

import click
import typer

from profiler.errors import EdgeprofError

EXIT_OK, EXIT_NO_CASE, EXIT_ERROR, EXIT_INTERRUPTED = 0, 1, 2, 130

EPILOG = (
    "Exit codes: 0 done; 1 done, but no case meets the constraints; 2 not possible as asked (the message says why); "
    "130 interrupted, what was measured is kept."
)

# Order of the help page. Each command lives in a module of its own, imported when it is used.
COMMANDS = {
    "demo": "Profile the built-in model: the whole job in two minutes.",
    "profile": "Profile a model: variants, measurement, frontier, recommendation, report.",
    "init": "Write a commented study file for a model.",
    "run": "Do a study file, or resume an interrupted run.",
    "frontier": "The frontier of a run, over any two figures.",
    "report": "Write a run's report: one HTML file, a picture, CSV and JSON.",
    "show": "Everything known about one case of a run.",
    "runs": "List the runs of a folder.",
    "backends": "Which runtimes and devices work here, and what is missing for the others.",
    "devices": "Device profiles and prices that a measurement can be declared as.",
    "export": "Export a model to ONNX and compare it with its source.",
    "variants": "Make variants of a model without measuring them.",
}


class _Lazy(click.Group):
    """Imports a command's module when the command is used, so that `edgeprof --help` answers at once."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (the base class gives it)
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 (as above)
        if cmd_name not in COMMANDS:
            return None
        return _Deferred(cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        return name, command.real() if isinstance(command, _Deferred) else command, rest


class _Deferred(click.Command):
    """A command's name and help; the command itself when it is needed."""

    def __init__(self, name: str) -> None:
        super().__init__(name, help=COMMANDS[name], short_help=COMMANDS[name])

    def real(self) -> click.Command:
        module = importlib.import_module(f"profiler.cli.{self.name}_command")
        function: Callable[..., Any] = module.command
        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        app.command(name=self.name, help=COMMANDS[str(self.name)])(function)
        return typer.main.get_command(app)


def _version(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        from profiler import __version__

        click.echo(f"edgeprof {__version__}")
        context.exit()


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]}, epilog=EPILOG)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version.")
@click.option("--debug", is_flag=True, help="Show Python's traceback when something goes wrong.")
def application(debug: bool) -> None:
    """Measure which variant of a model to deploy, on which runtime and device, what it costs, and how sure that is."""
    if debug:
        os.environ["EDGEPROF_DEBUG"] = "1"


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit."""
    if "--debug" in (arguments if arguments is not None else sys.argv[1:]):
        arguments = ["--debug", *(a for a in (arguments if arguments is not None else sys.argv[1:]) if a != "--debug")]
    try:
        code = application.main(args=arguments, prog_name="edgeprof", standalone_mode=False)
    except click.exceptions.Exit as error:
        code = error.exit_code
    except click.ClickException as error:
        error.show()
        code = EXIT_ERROR
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted; what was measured is kept. Go on with: edgeprof run --resume latest", err=True)
        code = EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) has seen enough; python would complain again while closing stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = EXIT_OK
    except Exception as error:  # noqa: BLE001 (the outermost border: people get a sentence, not a traceback)
        code = _told(error)
    sys.exit(code if isinstance(code, int) else EXIT_OK)


def _told(error: Exception) -> int:
    """An error as one message; the traceback only with --debug."""
    if os.environ.get("EDGEPROF_DEBUG"):
        raise error
    if isinstance(error, EdgeprofError):
        click.echo(f"edgeprof: {error}", err=True)
    elif isinstance(error, OSError) and error.strerror:
        place = f" ({error.filename})" if error.filename else ""
        click.echo(f"edgeprof: {error.strerror}{place}.", err=True)
    elif isinstance(error, MemoryError):
        click.echo(
            "edgeprof: this machine has not enough free memory for that; use --limit or a smaller batch.", err=True
        )
    else:
        click.echo(
            f"edgeprof: unexpected {type(error).__name__}: {str(error)[:500]}. This is a bug in edgeprof; "
            "please report it with the output of the same command and --debug.",
            err=True,
        )
    return EXIT_ERROR
