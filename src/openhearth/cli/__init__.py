"""The `hearth` command: one file per verb, loaded when that verb runs.

Importing this module imports almost nothing, so that Ctrl-C finds `main` already at work.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, NoReturn

from openhearth.errors import HearthError

if TYPE_CHECKING:
    import typer

MALLOC = {"GLIBC_TUNABLES": f"glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold={128 << 20}:"
                            f"glibc.malloc.trim_threshold={2 << 30}"}
"""Has glibc's malloc ask for huge pages and keep what is freed: blocks of up to 128 MiB, 2 GiB at the heap's
end; read once as a process starts. A training step takes and frees gigabytes: the system spends a fifth of it
on handing them out in pages of 4 KiB, and a twentieth on pages that it had a moment before."""
VERBS = ("run", "serve", "keys", "usage", "conform", "pull", "list", "show", "rm", "tune", "runs", "eval",
         "bench", "doctor")


def build_app(verbs: tuple[str, ...] = VERBS) -> typer.Typer:
    """Return the command line with these verbs; their modules are imported here."""
    import typer

    def global_options(
        version: bool = typer.Option(False, "--version", is_eager=True, callback=_print_version,
                                     help="Print the version and leave."),
    ) -> None:
        pass

    app = typer.Typer(name="hearth", add_completion=False, no_args_is_help=True, rich_markup_mode=None,
                      pretty_exceptions_enable=False,
                      context_settings={"help_option_names": ["-h", "--help"]},
                      help="Get, run, check and release open-weight models on hardware you own.")
    app.callback()(global_options)
    for verb in verbs:
        module = importlib.import_module(f"openhearth.cli.{verb}")
        app.command(verb)(module.command)
    return app


def _print_version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        import typer

        typer.echo(f"hearth {version('openhearth')}")
        raise typer.Exit


def main(args: list[str] | None = None) -> NoReturn:
    """Run the command line and leave the process with the verb's exit code.

    args: those of the process when left out. An error of ours prints without a traceback; Ctrl-C
    gives 130; a closed pipe ends quietly. What nobody foresaw is a mistake of ours: it prints in one
    line, and in full with HEARTH_DEBUG=1.
    """
    if args is None and sys.argv[1:2] == ["tune"]:
        _restart_with_malloc()
    code = _run(sys.argv[1:] if args is None else args)
    if args is None:
        _let_interrupts_kill()
    sys.exit(code)


def _run(args: list[str]) -> int:
    try:
        from openhearth.cli.interrupt import end_on_interrupt

        with end_on_interrupt():
            build_app((args[0],) if args and args[0] in VERBS else VERBS)(args, prog_name="hearth")
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except HearthError as error:
        return _print_error(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 141
    except Exception as error:
        if os.environ.get("HEARTH_DEBUG"):
            raise
        return _print_error(HearthError(
            f"this is a mistake in hearth: {type(error).__name__}: {error}",
            why="nothing that was stored is lost by it",
            hint=f"HEARTH_DEBUG=1 hearth {' '.join(args[:1])} ... shows where it happened"))
    return 0


def _restart_with_malloc() -> None:
    """Begin this process anew with MALLOC, unless the environment says something about it already."""
    if sys.platform == "linux" and sys.executable and not MALLOC.keys() & os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | MALLOC)


def _print_error(error: HearthError) -> int:
    from openhearth.cli.output import print_error

    print_error(error)
    return error.exit_code


def _let_interrupts_kill() -> None:
    """From here on Ctrl-C ends the process at once: nothing is left that could be lost."""
    import signal

    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
