"""Run the command line inside the test's own process: fast, since torch is loaded once."""

from dataclasses import dataclass

from openhearth.cli import main


@dataclass(frozen=True)
class Outcome:
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str


def run_main(capfd, *args) -> Outcome:
    """Run `hearth args...` and return its exit code and output."""
    capfd.readouterr()
    code = 0
    try:
        main([str(arg) for arg in args])
    except SystemExit as exit:
        code = exit.code if isinstance(exit.code, int) else (1 if exit.code else 0)
    out, err = capfd.readouterr()
    return Outcome(code, out, err)
