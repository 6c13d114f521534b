"""The `hearth` command: one file per verb, loaded when that verb runs."""

from __future__ import annotations

import importlib
import os
import sys

import typer

from openhearth.cli.output import fail
from openhearth.errors import HearthError

VERBS = ("run", "pull", "list", "show", "rm", "bench", "doctor")


def build_app(verbs: tuple[str, ...] = VERBS) -> typer.Typer:
    """Return the command line with these verbs; their modules are imported here."""
    app = typer.Typer(name="hearth", add_completion=False, no_args_is_help=True, rich_markup_mode=None,
                      pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]},
                      help="Get, run, check and release open-weight models on hardware you own.")
    app.callback()(_global_options)
    for verb in verbs:
        module = importlib.import_module(f"openhearth.cli.{verb}")
        app.command(verb)(module.command)
    return app


def _print_version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        typer.echo(f"hearth {version('openhearth')}")
        raise typer.Exit


def _global_options(
    version: bool = typer.Option(False, "--version", is_eager=True, callback=_print_version,
                                 help="Print the version and leave."),
) -> None:
    pass


def main(args: list[str] | None = None) -> None:
    """Run the command line and leave the process with the verb's exit code.

    An error of ours prints without a traceback; Ctrl-C gives 130; a closed pipe ends quietly. What
    nobody foresaw is a mistake of ours: it prints in one line, and in full with HEARTH_DEBUG=1.
    """
    args = sys.argv[1:] if args is None else args
    verbs = (args[0],) if args and args[0] in VERBS else VERBS
    try:
        build_app(verbs)(args)
    except HearthError as error:
        fail(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)
    except Exception as error:
        if os.environ.get("HEARTH_DEBUG"):
            raise
        fail(HearthError(f"this is a mistake in hearth: {type(error).__name__}: {error}",
                         why="nothing that was stored is lost by it",
                         hint=f"HEARTH_DEBUG=1 hearth {' '.join(args[:1])} ... shows where it happened"))
