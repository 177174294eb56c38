"""Ctrl-C, SIGTERM and a closed terminal end a run after what is under way, so that nothing is half done."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Any

from captioner.commandline import complain

__all__ = ["Signals"]


class Signals:
    """Remembers Ctrl-C, SIGTERM or SIGHUP instead of dying of it; a second one is obeyed at once.

    A SIGHUP that is ignored, as nohup has it, stays so.

    Attributes:
        received: the signal's number, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        numbers = [signal.SIGINT, signal.SIGTERM]
        if sys.platform != "win32" and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        for number in numbers:
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def is_set(self) -> bool:
        """Whether a signal came."""
        return self.received is not None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = number
        try:
            complain("stopping after this batch; once more stops at once")
        except OSError:  # the terminal is gone, and with it all that could be said
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
