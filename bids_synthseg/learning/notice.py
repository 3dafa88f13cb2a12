"""A scheduler's word that a process is to end: heard at once, heeded when it suits the work."""

import signal
import threading
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""What SLURM, torchrun and `docker stop` send, and what a job may ask its scheduler to send."""


class Notice:
    """Within its context SIGNALS end nothing; `signal` names the first that came, "" for none.

    What the signals did before they do again afterwards. Outside the main thread, which alone
    may handle signals, none is ever heard.
    """

    def __init__(self) -> None:
        self.signal = ""
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "Notice":
        if threading.current_thread() is threading.main_thread():
            self._before = {one: signal.signal(one, self._hear) for one in SIGNALS}
        return self

    def __exit__(self, *problem: object) -> None:
        for one, before in self._before.items():
            signal.signal(one, before)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.signal = self.signal or signal.Signals(number).name
