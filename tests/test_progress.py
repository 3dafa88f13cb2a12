"""How far a run has come: plain lines in a log, a bar on a terminal."""

import io
import logging
import sys

import pytest

from bids_synthseg import console, progress
from bids_synthseg.progress import Progress

pytestmark = pytest.mark.usefixtures("package_log")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_lines_say_how_long_it_takes(capsys, clock):
    console.set_up_log()
    with Progress(5) as shown:
        shown.begin("sub-1")
        clock.now += 1
        shown.end("sub-1", skipped=True)
        shown.begin("sub-2")
        shown.begin("sub-3")
        clock.now += 59
        shown.end("sub-3", skipped=False)
        shown.begin("sub-4")
        clock.now += 7140
        shown.end("sub-2", skipped=False)
        shown.begin("sub-5")
    assert capsys.readouterr().err.splitlines() == [
        "sub-1 (1 of 5)",
        # What was done already says nothing.
        "sub-2 (2 of 5)",
        "sub-3 (3 of 5)",
        # A minute each, three have not ended.
        "sub-4 (4 of 5), about 3 min left",
        # Two in two hours, two have not ended.
        "sub-5 (5 of 5), about 2 h 0 min left",
    ]


@pytest.mark.parametrize("quiet", [False, True])
def test_a_bar_on_a_terminal(monkeypatch, quiet):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    console.set_up_log(quiet)
    package = logging.getLogger("bids_synthseg")
    handlers = package.handlers
    with Progress(2) as shown:
        shown.begin("sub-1")
        # As while a session runs, whose own log takes everything.
        package.setLevel(logging.DEBUG)
        progress.LOG.debug("a detail")
        progress.LOG.warning("a warning")
        shown.end("sub-1", skipped=False)
    assert package.handlers == handlers
    text = terminal.getvalue()
    assert "a warning\n" in text and "a detail" not in text
    assert ("1/2" in text and "sub-1" in text) == (not quiet)
