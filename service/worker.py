"""The one thread that owns the device: it captions batches, and between two of them continues the streams."""

from __future__ import annotations

import logging
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from time import monotonic

import numpy as np
import torch

from captioner import Captioner, is_out_of_memory
from service.batcher import Batcher
from service.metrics import Metrics
from service.work import InferenceError, Job, Pace, Stream, caption_jobs, fail_jobs, give_up

__all__ = ["Worker"]

logger = logging.getLogger(__name__)

STREAM_SHARE = 0.25
"""Time that all streams together get after a batch, as a part of the batch's."""


class Worker:
    """Batches and streams on one device, of as many models as there are; a batch has one model.

    Args:
        max_batch: photos in one forward pass.
        batch_window: seconds that the first photo of a batch waits for others.
        metrics: where to count.

    Attributes:
        pace: of photos.
    """

    def __init__(self, *, max_batch: int, batch_window: float, metrics: Metrics) -> None:
        self.metrics = metrics
        self.pace = Pace(metrics)
        self._batcher: Batcher[Job] = Batcher(max_batch=max_batch, window=batch_window)
        self._streams: deque[Stream] = deque()
        self._new: deque[tuple[Captioner, Future[None]]] = deque()
        self._closing = False
        self._ended = False
        self._wake = threading.Condition()  # guards the five above
        self._suspect = False
        self._proven: weakref.ref[Captioner] | None = None  # has captioned; a model that is unloaded is gone
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether the thread runs; if it ended by itself, only a new process helps."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def warm_up(self, captioner: Captioner) -> Future[None]:
        """Have a model's kernels chosen and its memory taken before its first request.

        The future has InferenceError if it fails on a blank photo; if it is the first one, the thread ends.
        """
        warm: Future[None] = Future()
        with self._wake:
            if self._ended:
                warm.set_exception(InferenceError())
            else:
                self._new.append((captioner, warm))
            self._wake.notify()
        return warm

    def submit(self, *work: Job | Stream) -> None:
        """Queue photos, from any thread; those of one call can share a batch."""
        with self._wake:
            for item in work:
                if isinstance(item, Job):
                    self.metrics.queue.inc()
                if self._ended:
                    give_up(item, self.metrics)
                elif isinstance(item, Stream):
                    self._streams.append(item)
                else:
                    self._batcher.add(item, key=(item.captioner, item.options), now=monotonic())
            self._wake.notify()

    def close(self) -> None:
        """Finish what is queued and end the thread; returns when it has ended."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except Exception:
            logger.critical("the inference thread has ended; restart the server", exc_info=True)
        finally:
            with self._wake:
                self._ended = True
                left: list[Job | Stream] = [*self._batcher.clear(), *self._streams]
                new = [warm for _, warm in self._new]
            for item in left:
                give_up(item, self.metrics)
            for warm in new:
                warm.set_exception(InferenceError())

    def _turn(self) -> bool:
        """Wait for work and do some of it; False when all is done and the end has come.

        A method of its own, so that nothing holds on to a model while the thread waits.
        """
        batch = self._next_batch()
        if batch is None:
            return False
        start = monotonic()
        self._warm_up_new()
        if batch:
            self._caption(batch)
            self.pace.measure(monotonic() - start, batch[0].captioner.name, images=len(batch))
        self._advance_streams((monotonic() - start) * STREAM_SHARE)
        if self._suspect:
            self._suspect = False
            known = self._proven and self._proven()
            if known:
                self._prove(known, (1,))
        return True

    def _warm_up_new(self) -> None:
        while self._new:
            with self._wake:
                captioner, warm = self._new.popleft()
            try:
                self._prove(captioner, captioner.warm_up_sizes(self._batcher.max_batch))
            except InferenceError as error:
                warm.set_exception(InferenceError())
                if self._proven is None:
                    raise InferenceError from error
            else:
                warm.set_result(None)

    def _prove(self, captioner: Captioner, sizes: Sequence[int]) -> None:
        """Caption batches of a blank photo. Raises InferenceError if that fails."""
        blank = captioner.prepare(np.full((64, 64, 3), 128, np.uint8), name="warm-up")
        options = replace(captioner.default_options, attention=True)
        for size in sizes:
            jobs = [Job(captioner, blank, options) for _ in range(size)]
            self._caption(jobs)
            for job in jobs:
                job.future.result()

    def _next_batch(self) -> list[Job] | None:
        """Wait for a batch; empty when only streams or new models have work, None when the end has come."""
        with self._wake:
            while True:
                now = monotonic()
                batch = self._batcher.take(now, is_wanted=lambda job: job.begin(self.metrics))
                if batch or self._streams or self._new:
                    return batch
                due = self._batcher.due(now)
                if self._closing and due is None:
                    return None
                self._wake.wait(due)

    def _caption(self, jobs: Sequence[Job]) -> None:
        """Caption a batch; what goes wrong with it is its own requests' answer and nobody else's."""
        captioner = jobs[0].captioner
        try:
            caption_jobs(jobs, self.metrics)
        except Exception as error:
            if not is_out_of_memory(error) or len(jobs) == 1:
                logger.exception("a batch of %d failed", len(jobs))
                self._suspect = True  # a broken CUDA context fails whatever comes after it
                return fail_jobs(jobs, InferenceError, self.metrics)
        else:
            self._proven = weakref.ref(captioner)
            return None
        # outside of the except clause: its traceback holds on to the tensors that did not fit
        logger.warning("a batch of %d did not fit into memory: halving it", len(jobs))
        self.metrics.out_of_memory.inc()
        if captioner.device.type == "cuda":
            torch.cuda.empty_cache()
        middle = len(jobs) // 2
        self._caption(jobs[:middle])
        self._caption(jobs[middle:])

    def _advance_streams(self, seconds: float) -> None:
        """Give the streams in turn their next words for about so long, one of them always."""
        end = monotonic() + seconds
        while self._streams:
            with self._wake:
                stream = self._streams.popleft()
            try:
                goes_on = stream.advance(self.metrics)
            except InferenceError:
                goes_on, self._suspect = False, True
            if goes_on:
                with self._wake:
                    self._streams.append(stream)
            if monotonic() >= end:
                return
