"""What both commands share: exit codes instead of exceptions, the log, options of many values."""

import logging
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper

import click

from bids_synthseg.errors import AppError, UsageProblem


class Terminated(KeyboardInterrupt):
    """SIGTERM, from a scheduler or `docker stop`: like Ctrl-C, but for the exit code."""

    exit_code = 128 + signal.SIGTERM


@contextmanager
def termination_as_interrupt() -> Iterator[None]:
    """SIGTERM raises Terminated meanwhile, so that what is open is closed and cleaned up."""

    def end(*_: object) -> None:
        raise Terminated("ended by the signal SIGTERM")

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run(command: click.Command, arguments: Sequence[str]) -> int:
    """Run a click command; returns its exit code after one line on stderr about what went wrong.

    click exits with 2 on bad usage, which belongs to the shell; the BIDS-Apps specification wants
    64; 128 and the number of the signal are what shells say of a program that a signal ends.
    Exceptions that are neither click's nor an AppError are bugs and pass.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a name whose bytes are no UTF-8 is shown escaped
            stream.reconfigure(errors="backslashreplace")
    try:
        with termination_as_interrupt():
            code = command.main(args=list(arguments), standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return UsageProblem.exit_code
    except AppError as error:
        lines = (" ".join(line.split()) for line in str(error).splitlines())
        click.echo("Error: " + "\n".join(lines), err=True)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort) as stop:
        # click raises its own exception from the one that it caught.
        if isinstance(stop, Terminated) or isinstance(stop.__cause__, Terminated):
            click.echo("Ended by SIGTERM.", err=True)
            return Terminated.exit_code
        click.echo("Interrupted.", err=True)
        return 128 + signal.SIGINT
    return int(code or 0)


def set_up_log(quiet: bool = False, verbose: int = 0) -> None:
    """Lines for the user go to stderr: warnings only when quiet, everything when verbose."""
    package = logging.getLogger("bids_synthseg")
    level = logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO
    console = logging.StreamHandler(sys.stderr)
    console.setLevel(level)
    console.setFormatter(logging.Formatter("%(message)s"))
    package.handlers = [console]
    package.setLevel(level)


def spread(arguments: Sequence[str], many: Sequence[str]) -> list[str]:
    """`--label 01 02` as `--label 01 --label 02`, for the options in `many`.

    argparse tools of the BIDS world take all words up to the next option; click takes one.
    """
    spread_out: list[str] = []
    current, has_value = "", False
    for number, word in enumerate(arguments):
        if word == "--":
            return spread_out + list(arguments[number:])
        if word.startswith("-"):
            name, sign, _ = word.partition("=")
            current, has_value = (name if name in many else ""), bool(sign)
        elif current and has_value:
            spread_out.append(current)
        else:
            has_value = True
        spread_out.append(word)
    return spread_out
