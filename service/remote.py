"""Threads that ask a model's server for captions, several at a time; they wait, and the device does not."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from time import monotonic

from captioner import Captioner
from service.metrics import Metrics
from service.work import InferenceError, Job, Pace, Stream, caption_jobs, fail_jobs, give_up

__all__ = ["RemoteWorker"]

logger = logging.getLogger(__name__)


class RemoteWorker:
    """Asks one server. What nobody wants any more by the time that it comes up is not asked for.

    Args:
        captioner: the model; ``parallel`` of its photos and streams are under way at most.
        metrics: where to count.

    Attributes:
        pace: of photos, as if they were asked for one after the other.
    """

    def __init__(self, captioner: Captioner, *, metrics: Metrics) -> None:
        self.metrics = metrics
        self.pace = Pace(metrics)
        self._parallel = captioner.parallel
        self._work: queue.SimpleQueue[Job | Stream | None] = queue.SimpleQueue()
        for _ in range(self._parallel):  # daemons: the end of the process does not wait for a server
            threading.Thread(target=self._run, name="remote", daemon=True).start()

    def submit(self, *work: Job | Stream) -> None:
        """Queue photos, from any thread."""
        for item in work:
            if isinstance(item, Job):
                self.metrics.queue.inc()
            self._work.put(item)

    def close(self) -> None:
        """Give up what is queued, which nobody waits for any more, and end the threads that are free."""
        with contextlib.suppress(queue.Empty):
            while item := self._work.get_nowait():
                give_up(item, self.metrics)
        for _ in range(self._parallel):
            self._work.put(None)

    def _run(self) -> None:
        while (item := self._work.get()) is not None:
            start = monotonic()
            if isinstance(item, Stream):
                self._stream(item)
            elif item.begin(self.metrics):
                self._caption(item)
                self.pace.measure(monotonic() - start, item.captioner.name, images=self._parallel)

    def _caption(self, job: Job) -> None:
        try:
            caption_jobs([job], self.metrics)
        except Exception:
            logger.exception("a photo failed")
            fail_jobs([job], InferenceError, self.metrics)

    def _stream(self, stream: Stream) -> None:
        with contextlib.suppress(InferenceError):  # which the stream has been told
            while stream.advance(self.metrics):
                pass
