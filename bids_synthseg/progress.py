"""How far a run has come: a bar on a terminal, plain lines in a batch log."""

import logging
import sys
import time
from contextlib import ExitStack

from bids_synthseg.bids.plan import in_words

LOG = logging.getLogger(__name__)
_PACKAGE = logging.getLogger("bids_synthseg")


class Progress:
    """Shown while the context lasts: a bar where stderr is a terminal and the log not quiet."""

    def __init__(self, n_sessions: int) -> None:
        self.n_sessions = n_sessions
        self._start = time.monotonic()
        self._begun = self._ended = self._worked = 0
        self._running: list[str] = []
        self._open = ExitStack()

    def __enter__(self) -> "Progress":
        self._bar = None
        if LOG.isEnabledFor(logging.INFO) and sys.stderr.isatty():
            from tqdm import tqdm
            from tqdm.contrib.logging import logging_redirect_tqdm

            level = _PACKAGE.level
            self._open.enter_context(logging_redirect_tqdm([_PACKAGE]))
            # The handler that takes the console's place would show every level.
            _PACKAGE.handlers[-1].setLevel(level)
            bar = tqdm(total=self.n_sessions, unit="session", dynamic_ncols=True)
            self._bar = self._open.enter_context(bar)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def begin(self, label: str) -> None:
        """A session begins."""
        self._begun += 1
        self._running.append(label)
        if self._bar is None:
            LOG.info("%s (%d of %d)%s", label, self._begun, self.n_sessions, self._left())
        else:
            self._bar.set_postfix_str(", ".join(self._running))

    def end(self, label: str, *, skipped: bool) -> None:
        """A session has ended; those that were done already say nothing on how long others take."""
        self._ended += 1
        self._worked += not skipped
        if label in self._running:
            self._running.remove(label)
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(self._running), refresh=False)
            self._bar.update()

    def postpone(self, label: str) -> None:
        """A session that began will begin again."""
        self._begun -= 1
        self._running.remove(label)

    def _left(self) -> str:
        """The time until all have ended, in words; "" before any has."""
        if not self._worked:
            return ""
        each_s = (time.monotonic() - self._start) / self._worked
        return f", about {in_words(each_s * (self.n_sessions - self._ended))} left"
