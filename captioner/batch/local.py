"""The engine of one machine: threads read and decode ahead, while the caller's thread captions."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable
from contextlib import closing
from itertools import islice
from time import perf_counter

from captioner.batch.engine import BatchCaptioner
from captioner.batch.items import Item
from captioner.batch.prefetch import prefetch
from captioner.batch.records import Record
from captioner.errors import CaptionerError

__all__ = ["BatchSize", "LocalEngine"]

FIRST_BATCH = 8
LARGEST_ON_CPU, LARGEST_ON_GPU = 32, 256
WORTH_DOUBLING = 1.05


class LocalEngine:
    """Records in the items' order, each batch as soon as it is done.

    Args:
        captioner: what captions.
        batch_size: photographs that go through the model together; None finds the size that is fastest.
        workers: threads that decode; None for one a core.
    """

    def __init__(
        self, captioner: BatchCaptioner, *, batch_size: int | None = None, workers: int | None = None
    ) -> None:
        self.captioner = captioner
        largest = LARGEST_ON_CPU if captioner.captioner.device.type == "cpu" else LARGEST_ON_GPU
        self.batch_size = BatchSize(largest) if batch_size is None else BatchSize(batch_size, batch_size)
        self.workers = workers or os.cpu_count() or 1

    def run(self, items: Iterable[Item]) -> Generator[list[Record]]:
        """See :class:`~captioner.batch.engine.Engine`."""
        ahead = 2 * self.batch_size.largest
        with closing(prefetch(self.captioner.prepare, items, workers=self.workers, ahead=ahead)) as prepared:
            while batch := list(islice(prepared, self._next_size())):
                begun = perf_counter()
                records = self.captioner.records(*zip(*batch, strict=True))
                self.batch_size.measure(len(batch), perf_counter() - begun)
                yield records
                if self.captioner.stopped:
                    raise CaptionerError(f"{self.captioner.stopped}; the same command goes on")

    def _next_size(self) -> int:
        return min(self.batch_size.next, self.captioner.max_batch or self.batch_size.next)


class BatchSize:
    """Finds the batch size: doubles it as long as that makes captioning faster.

    Args:
        largest: to try.
        first: to begin with.

    Attributes:
        next: the size to use now.
    """

    def __init__(self, largest: int, first: int = FIRST_BATCH) -> None:
        self.largest = largest
        self.next = min(first, largest)
        self._best: tuple[float, int] = (0.0, self.next)  # images/s, batch size
        self._speeds: list[float] = []  # of the current size
        self._searching = self.next < largest

    def measure(self, images: int, seconds: float) -> None:
        """Learn how long a batch took; two of the current size decide on it, since the first one warms up."""
        if not self._searching or images != self.next:
            return
        self._speeds.append(images / seconds)
        if len(self._speeds) < 2:
            return
        speed, self._speeds = max(self._speeds), []
        if speed < WORTH_DOUBLING * self._best[0]:
            self._searching = False
            self.next = self._best[1]
        else:
            self._best = (speed, self.next)
            self.next *= 2
            self._searching = self.next <= self.largest
            self.next = min(self.next, self.largest)
