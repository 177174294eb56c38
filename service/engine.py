"""Requests in, full batches through the model, each request's own captions out.

Three places of work: the event loop admits requests and waits for them; a thread pool decodes photos; the
thread of a :class:`~service.worker.Worker` owns the device. A request that is cancelled, because its client
went away or its time is over, cancels its futures, and a cancelled future never costs a forward pass.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
from collections.abc import AsyncGenerator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from time import time
from typing import TypeVar

from captioner import Caption, Captioner, PreparedImage, SearchOptions, StreamEvent
from service.metrics import Metrics
from service.worker import InferenceError, Job, Stream, Worker

__all__ = ["DeadlineError", "Engine", "InferenceError", "NotReadyError", "QueueFullError", "Upload"]

T = TypeVar("T")


class NotReadyError(Exception):
    """The model is not warm yet, or the server is shutting down."""


class QueueFullError(Exception):
    """As many photos as are taken on are being worked on; there may be room in ``retry_after`` seconds."""

    def __init__(self, text: str, *, retry_after: int) -> None:
        super().__init__(text)
        self.retry_after = retry_after


class DeadlineError(Exception):
    """The request's time was over before its captions were there."""


@dataclass(frozen=True)
class Upload:
    """A photo as it came.

    Attributes:
        data: the file's bytes.
        name: what to call it in errors, and in the caption's ``file``.
    """

    data: bytes
    name: str


class Engine:
    """Dynamic batching on one device.

    Args:
        captioner: what captions; its ``prepare`` is called from many threads, all else from one.
        max_batch: photos in one forward pass.
        batch_window: seconds that the first photo of a batch waits for others.
        queue_size: photos taken on at a time.
        timeout: seconds that a request may take.
        max_pixels: largest photo; None for the library's own limit.
        metrics: where to count.

    Attributes:
        started_at: when it was made, in whole seconds of Unix time.
    """

    def __init__(
        self,
        captioner: Captioner,
        *,
        max_batch: int = 32,
        batch_window: float = 0.01,
        queue_size: int = 256,
        timeout: float = 60.0,
        max_pixels: int | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self.captioner = captioner
        self.metrics = metrics or Metrics()
        self.queue_size = queue_size
        self.started_at = int(time())
        self._timeout = timeout
        self._max_pixels = max_pixels
        self._worker = Worker(captioner, max_batch=max_batch, batch_window=batch_window, metrics=self.metrics)
        self._pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="decode")
        self._closing = False
        self._accepted = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def start(self) -> None:
        """Begin to warm up; :meth:`check_ready` tells when that is done."""
        self._worker.start()

    async def wait_until_warm(self) -> None:
        """Raises NotReadyError if the model fails to warm up."""
        while not self._worker.warm.is_set():
            if not self.alive:
                self.check_ready()
            await asyncio.sleep(0.02)

    async def close(self) -> None:
        """Accept nothing more, finish what was accepted, end the threads."""
        self._closing = True
        await self._idle.wait()
        await asyncio.to_thread(self._worker.close)
        self._pool.shutdown()

    @property
    def alive(self) -> bool:
        """Whether the device's thread runs; if not, only a new process helps."""
        return self._worker.alive

    def check_ready(self) -> None:
        """Raise NotReadyError until the model is warm, once its thread has ended, and after :meth:`close`."""
        if self._closing:
            raise NotReadyError("the server is shutting down")
        if not self.alive:
            raise NotReadyError("the model has failed: the server must be restarted")
        if not self._worker.warm.is_set():
            raise NotReadyError("the model is warming up")

    def check_room(self, count: int = 1) -> None:
        """Refuse ``count`` more photos if they cannot be taken on now; to be asked before reading them.

        Raises:
            NotReadyError: see :meth:`check_ready`.
            QueueFullError: there are too many already.
        """
        self.check_ready()
        if self._accepted + count > self.queue_size:
            wait = math.ceil(self._accepted * self._worker.seconds_per_image)
            raise QueueFullError(
                f"{self._accepted} photos of at most {self.queue_size} are being worked on: try again later",
                retry_after=min(60, max(1, wait)),
            )

    async def caption(self, uploads: Sequence[Upload], options: SearchOptions) -> list[Caption]:
        """Caption the photos of one request, in order. Cancel it, and its photos leave the queue.

        Raises:
            NotReadyError, QueueFullError: it was not accepted, see :meth:`check_room`.
            DeadlineError: it took too long.
            InferenceError: the model failed.
            ImageError: a photo cannot be used; the others are not captioned either.
            OptionsError: the options do not suit the model.
        """
        with self._admit(len(uploads)):
            try:
                async with asyncio.timeout(self._timeout):
                    jobs = [Job(image, options) for image in await self._prepare(uploads)]
                    self._worker.submit(*jobs)
                    return await _all([asyncio.wrap_future(job.future) for job in jobs])
            except TimeoutError as error:
                raise self._too_late() from error

    async def stream(self, upload: Upload, options: SearchOptions) -> AsyncGenerator[StreamEvent]:
        """Caption one photo, giving words as soon as they are decided; the last event has the whole caption.

        Close the iterator, and the rest is not computed. Errors are those of :meth:`caption`.
        """
        events: asyncio.Queue[StreamEvent | Exception] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout

        def emit(event: StreamEvent | Exception) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, so nobody listens
                loop.call_soon_threadsafe(events.put_nowait, event)

        with self._admit(1):
            stream = None
            try:
                async with asyncio.timeout_at(deadline):  # asyncio.wait_for can swallow a cancellation
                    (image,) = await self._prepare([upload])
                stream = Stream(image, options, emit)
                self._worker.submit(stream)
                while True:
                    async with asyncio.timeout_at(deadline):
                        event = await events.get()
                    if isinstance(event, Exception):
                        raise event
                    yield event
                    if event.caption:
                        return
            except TimeoutError as error:
                raise self._too_late() from error
            finally:
                if stream:
                    stream.gone.set()

    @contextlib.contextmanager
    def _admit(self, count: int) -> Iterator[None]:
        self.check_room(count)
        self._count(count)
        try:
            yield
        finally:
            self._count(-count)

    def _count(self, change: int) -> None:
        self._accepted += change
        self.metrics.accepted.set(self._accepted)
        if self._accepted:
            self._idle.clear()
        else:
            self._idle.set()

    async def _prepare(self, uploads: Sequence[Upload]) -> list[PreparedImage]:
        loop, prepare = asyncio.get_running_loop(), self.captioner.prepare
        calls = [partial(prepare, item.data, name=item.name, max_pixels=self._max_pixels) for item in uploads]
        return await _all([loop.run_in_executor(self._pool, call) for call in calls])

    def _too_late(self) -> DeadlineError:
        return DeadlineError(f"there was no answer within {self._timeout:g} seconds: try again later")


async def _all(futures: Sequence[asyncio.Future[T]]) -> list[T]:
    """The results of all futures; when one fails, or the caller is cancelled, all are cancelled."""
    try:
        return await asyncio.gather(*futures)
    finally:
        for future in futures:
            future.cancel()
