"""The one thread that owns the device: it captions batches, and between two of them continues the streams."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from time import monotonic

import numpy as np
import torch

from captioner import (
    Caption,
    Captioner,
    OptionsError,
    PartialError,
    PreparedImage,
    RemoteError,
    SearchOptions,
    StreamEvent,
    is_out_of_memory,
)
from service.batcher import Batcher
from service.metrics import Metrics

__all__ = ["InferenceError", "Job", "Stream", "Worker"]

logger = logging.getLogger(__name__)

STREAM_SHARE = 0.25
"""Time that all streams together get after a batch, as a part of the batch's."""


class InferenceError(Exception):
    """The model failed on the batch that the photo was in; the log says why."""

    def __init__(self) -> None:
        super().__init__("the model failed on this request; the server's log says why")


@dataclass(frozen=True, eq=False)
class Job:
    """A photo that waits for its caption; cancel the future, and it costs nothing any more."""

    image: PreparedImage
    options: SearchOptions
    future: Future[Caption] = field(default_factory=Future)


@dataclass(eq=False)
class Stream:
    """A caption that is given word by word.

    Attributes:
        image: what to caption.
        options: how.
        emit: takes each event, or the error that ends the stream, in the worker's thread.
        gone: set it, and the rest of the caption is not computed.
        steps: the captioner's iterator, once it has begun; the worker's own.
    """

    image: PreparedImage
    options: SearchOptions
    emit: Callable[[StreamEvent | Exception], None]
    gone: threading.Event = field(default_factory=threading.Event)
    steps: Iterator[StreamEvent] | None = None


class Worker:
    """Batches and streams on one device.

    Args:
        captioner: the model, which this thread alone uses.
        max_batch: photos in one forward pass.
        batch_window: seconds that the first photo of a batch waits for others.
        metrics: where to count.

    Attributes:
        warm: set once the model has captioned its first batch.
        seconds_per_image: of late, on average.
    """

    def __init__(
        self, captioner: Captioner, *, max_batch: int, batch_window: float, metrics: Metrics
    ) -> None:
        self.captioner = captioner
        self.metrics = metrics
        self.warm = threading.Event()
        self.seconds_per_image = 0.0
        self._batcher: Batcher[Job] = Batcher(max_batch=max_batch, window=batch_window)
        self._streams: deque[Stream] = deque()
        self._closing = False
        self._ended = False
        self._wake = threading.Condition()  # guards the four above
        self._suspect = False
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether the thread runs; if it ended by itself, only a new process helps."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Start the thread, which warms the model up first."""
        self._thread.start()

    def submit(self, *work: Job | Stream) -> None:
        """Queue photos, from any thread; those of one call can share a batch."""
        with self._wake:
            for item in work:
                if self._ended:
                    _give_up(item)
                    continue
                if isinstance(item, Stream):
                    self._streams.append(item)
                else:
                    self._batcher.add(item, key=item.options, now=monotonic())
            self._wake.notify()

    def close(self) -> None:
        """Finish what is queued and end the thread; returns when it has ended."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._warm_up()
            while (batch := self._next_batch()) is not None:
                start = monotonic()
                if batch:
                    self._caption(batch)
                    self._measure(monotonic() - start, len(batch))
                self._advance_streams((monotonic() - start) * STREAM_SHARE)
                if self._suspect:
                    self._suspect = False
                    self._prove((1,))
        except Exception:
            logger.critical("the inference thread has ended; restart the server", exc_info=True)
        finally:
            with self._wake:
                self._ended = True
                left: list[Job | Stream] = [*self._batcher.clear(), *self._streams]
            for item in left:
                _give_up(item)

    def _warm_up(self) -> None:
        """Have kernels chosen and memory taken before the first request."""
        if self.captioner.sends_photos_to is None:  # a server is not asked until somebody wants something
            on_cpu = self.captioner.device.type == "cpu"
            self._prove((1,) if on_cpu else (1, self._batcher.max_batch))
        self.warm.set()

    def _prove(self, sizes: Sequence[int]) -> None:
        """Caption batches of a blank photo. Raises InferenceError if that fails: then nothing works."""
        blank = self.captioner.prepare(np.full((64, 64, 3), 128, np.uint8), name="warm-up")
        options = replace(self.captioner.default_options, attention=True)
        for size in sizes:
            jobs = [Job(blank, options) for _ in range(size)]
            self._caption(jobs)
            for job in jobs:
                job.future.result()

    def _next_batch(self) -> list[Job] | None:
        """Wait for a batch; empty when only streams have work, None when all is done and the end has come."""
        with self._wake:
            while True:
                now = monotonic()
                batch = self._batcher.take(now, is_wanted=self._is_wanted)
                self.metrics.queue.set(len(self._batcher))
                if batch or self._streams:
                    return batch
                due = self._batcher.due(now)
                if self._closing and due is None:
                    return None
                self._wake.wait(due)

    def _is_wanted(self, job: Job) -> bool:
        wanted = job.future.set_running_or_notify_cancel()
        if not wanted:
            self.metrics.images.labels("dropped").inc()
        return wanted

    def _caption(self, jobs: Sequence[Job]) -> None:
        """Caption a batch; what goes wrong with it is its own requests' answer and nobody else's."""
        try:
            captions = self.captioner.caption_prepared([job.image for job in jobs], jobs[0].options)
        except OptionsError as error:
            text = str(error)
            return self._fail(jobs, lambda: OptionsError(text))
        except PartialError as error:
            for job, result in zip(jobs, error.results, strict=True):
                if isinstance(result, Caption):
                    self._resolve([job], [result])
                else:
                    self._fail([job], partial(type(result), str(result)))  # type: ignore[misc]
            return None
        except Exception as error:
            if not is_out_of_memory(error) or len(jobs) == 1:
                logger.exception("a batch of %d failed", len(jobs))
                self._suspect = True  # a broken CUDA context fails whatever comes after it
                return self._fail(jobs, InferenceError)
        else:
            return self._resolve(jobs, captions)
        # outside of the except clause: its traceback holds on to the tensors that did not fit
        logger.warning("a batch of %d did not fit into memory: halving it", len(jobs))
        self.metrics.out_of_memory.inc()
        if self.captioner.device.type == "cuda":
            torch.cuda.empty_cache()
        middle = len(jobs) // 2
        self._caption(jobs[:middle])
        self._caption(jobs[middle:])

    def _resolve(self, jobs: Sequence[Job], captions: Sequence[Caption]) -> None:
        self.metrics.count(captions, self.captioner.device)
        self.metrics.batch_size.observe(len(jobs))
        for job, caption in zip(jobs, captions, strict=True):
            job.future.set_result(caption)

    def _fail(self, jobs: Sequence[Job], make_error: Callable[[], Exception]) -> None:
        """An error for each job: a shared one would gather the tracebacks of all who raise it."""
        self.metrics.images.labels("failed").inc(len(jobs))
        for job in jobs:
            job.future.set_exception(make_error())

    def _measure(self, seconds: float, images: int) -> None:
        self.metrics.batch_seconds.observe(seconds)
        each, known = seconds / images, self.seconds_per_image
        self.seconds_per_image = known + 0.1 * (each - known) if known else each

    def _advance_streams(self, seconds: float) -> None:
        """Give the streams in turn their next words for about so long, one of them always."""
        end = monotonic() + seconds
        while self._streams:
            with self._wake:
                stream = self._streams.popleft()
            if self._step(stream):
                with self._wake:
                    self._streams.append(stream)
            self.metrics.streams.set(len(self._streams))
            if monotonic() >= end:
                return

    def _step(self, stream: Stream) -> bool:
        """Compute and emit a stream's next event; whether it goes on after that."""
        if stream.gone.is_set():
            self.metrics.images.labels("dropped").inc()
            return False
        try:
            if stream.steps is None:
                stream.steps = self.captioner.stream_prepared(stream.image, stream.options)
            event = next(stream.steps)
        except Exception as error:
            self.metrics.images.labels("failed").inc()
            if not isinstance(error, OptionsError | RemoteError):
                logger.exception("a stream failed")
                self._suspect = True
                error = InferenceError()
            stream.emit(error)
            return False
        if event.caption:
            self.metrics.count([event.caption], self.captioner.device)
        stream.emit(event)
        return event.caption is None


def _give_up(item: Job | Stream) -> None:
    """Answer what is never going to be computed."""
    if isinstance(item, Stream):
        item.emit(InferenceError())
    elif item.future.set_running_or_notify_cancel():
        item.future.set_exception(InferenceError())
