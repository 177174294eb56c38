"""Ctrl-C and SIGTERM end a run after what is under way, so that nothing is half done."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

from captioner.commandline import complain

__all__ = ["Signals"]


class Signals:
    """Remembers Ctrl-C or SIGTERM instead of dying of it; a second one is obeyed at once.

    Attributes:
        received: the signal's number, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        for number in (signal.SIGINT, signal.SIGTERM):
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
        complain("stopping after this batch; once more stops at once")
