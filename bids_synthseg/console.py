"""What both commands share: exit codes instead of exceptions, the log, options of many values."""

import errno
import io
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO, cast

import click

from bids_synthseg.errors import AppError, UsageProblem
from bids_synthseg.storage import explain

ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""Signals that end a run: of a scheduler or `docker stop`, of a terminal that is closed, and what
SLURM may send before the time is up (`--signal=USR1`)."""


class Terminated(KeyboardInterrupt):
    """One of ENDING: like Ctrl-C, but for the exit code."""

    exit_code = 128 + signal.SIGTERM


@contextmanager
def termination_as_interrupt() -> Iterator[None]:
    """The signals of ENDING raise Terminated meanwhile, so that what is open is closed and cleaned
    up; one that is ignored (SIGHUP under nohup) stays so."""

    def end(number: int, _: object) -> None:
        raise Terminated(f"ended by the signal {signal.Signals(number).name}")

    heard = [number for number in ENDING if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, end) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Stream:
    """A text stream that fails in a way that can be told, or, `lossy`, not at all."""

    def __init__(self, stream: TextIO, name: str, lossy: bool) -> None:
        self._stream = stream
        self._name = name
        self._lossy = lossy

    def write(self, text: str) -> int:
        """Write text; returns its length. Raises StorageProblem unless lossy."""
        if text != "":  # click asks whether a stream takes text by writing none
            with self._failing():
                # A name whose bytes are no UTF-8 is shown escaped.
                encoding = self._stream.encoding or "utf-8"
                self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        """Raises StorageProblem unless lossy."""
        with self._failing():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno == errno.EPIPE and not self._lossy:
                raise  # click ends without a word, as who read has gone
            # What is still in the buffer would fail again when the process ends.
            with suppress(OSError, io.UnsupportedOperation), open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())
            if not self._lossy:
                raise explain(error, Path(self._name)) from error


@contextmanager
def safe_streams() -> Iterator[None]:
    """A closed or broken stderr stops no run meanwhile: the logs of the sessions hold what was
    said. A full disk behind stdout is told as any other."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed: else the next file opened would get what is meant for a terminal
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr, logging.raiseExceptions
    logging.raiseExceptions = False  # a log that cannot be written is no reason to stop
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        sys.stdout = cast(TextIO, _Stream(sys.stdout or nowhere, "standard output", lossy=False))
        sys.stderr = cast(TextIO, _Stream(sys.stderr or nowhere, "standard error", lossy=True))
        try:
            yield
        finally:
            sys.stdout, sys.stderr, logging.raiseExceptions = before


def run(command: click.Command, arguments: Sequence[str]) -> int:
    """Run a click command; returns its exit code after one line on stderr about what went wrong.

    click exits with 2 on bad usage, which belongs to the shell; the BIDS-Apps specification wants
    64; 128 and the number of the signal are what shells say of a program that a signal ends.
    Exceptions that are neither click's nor an AppError are bugs and pass.
    """
    with safe_streams():
        return _run(command, arguments)


def _run(command: click.Command, arguments: Sequence[str]) -> int:
    try:
        with termination_as_interrupt():
            code = command.main(args=list(arguments), standalone_mode=False)
            sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        return UsageProblem.exit_code
    except AppError as error:
        lines = (" ".join(line.split()) for line in str(error).splitlines())
        click.echo("Error: " + "\n".join(lines), err=True)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort) as stop:
        # click raises its own exception from the one that it caught.
        cause = stop if isinstance(stop, Terminated) else stop.__cause__
        if isinstance(cause, Terminated):
            click.echo(f"Interrupted: {cause}.", err=True)
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
