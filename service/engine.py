"""Requests in, full batches through the model, each request's own captions out.

The event loop admits requests and waits for them; a thread pool decodes photos; the thread of a
:class:`~service.worker.Worker` owns the device, and the threads of a :class:`~service.remote.RemoteWorker`
ask a server. A request that is cancelled, because its client went away or its time is over, cancels its
futures, and a cancelled future never costs a forward pass.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from time import time
from typing import TypeVar

from captioner import Caption, Captioner, PreparedImage, SearchOptions, StreamEvent
from service.models import Model, Models
from service.remote import RemoteWorker
from service.work import Job, Stream
from service.worker import Worker

__all__ = ["DeadlineError", "Engine", "NotReadyError", "QueueFullError", "Turn", "Upload"]

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
    """Dynamic batching on one device, and requests to the servers of models that run elsewhere.

    Args:
        models: to choose among; it counts in their ``metrics``.
        max_batch: photos in one forward pass.
        batch_window: seconds that the first photo of a batch waits for others.
        queue_size: photos taken on at a time.
        timeout: seconds that a request may take, once its body is there.
        max_pixels: largest photo; None for the library's own limit.

    Attributes:
        started_at: when it was made, in whole seconds of Unix time.
    """

    def __init__(
        self,
        models: Models,
        *,
        max_batch: int = 32,
        batch_window: float = 0.01,
        queue_size: int = 256,
        timeout: float = 60.0,
        max_pixels: int | None = None,
    ) -> None:
        self.models = models
        self.metrics = models.metrics
        self.queue_size = queue_size
        self.started_at = int(time())
        self.timeout = timeout
        self._max_pixels = max_pixels
        self._device = Worker(max_batch=max_batch, batch_window=batch_window, metrics=self.metrics)
        self._servers: dict[Captioner, RemoteWorker] = {}
        self._first: Future[None] = Future()  # done once the first model is warm
        self._pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="decode")
        self._closing = False
        self._accepted = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def start(self) -> None:
        """Load the first model and begin to warm it up; :meth:`check_ready` tells when that is done.

        Raises:
            CaptionerError: it cannot be loaded.
        """
        await self.models.start(self._warm_up)
        self._device.start()
        for model in self.models.all:
            if model.captioner and model.sends_photos_to:
                self._servers[model.captioner] = RemoteWorker(model.captioner, metrics=self.metrics)
        first = self.models.first.captioner
        assert first is not None
        if first in self._servers:  # a server is not asked until somebody wants something
            self._first.set_result(None)
        else:
            self._first = self._device.warm_up(first)

    async def wait_until_warm(self) -> None:
        """Raises NotReadyError if the first model fails to warm up."""
        while not self._first.done():
            await asyncio.sleep(0.02)
        self.check_ready()

    async def close(self) -> None:
        """Accept nothing more, finish what was accepted, end the threads."""
        self._closing = True
        await self._idle.wait()
        for server in self._servers.values():
            server.close()
        await asyncio.to_thread(self._device.close)
        self._pool.shutdown()

    @property
    def alive(self) -> bool:
        """Whether the device's thread runs; if not, only a new process helps."""
        return self._device.alive

    def check_ready(self) -> None:
        """Raise NotReadyError until the first model is warm, once the device's thread has ended, and after
        :meth:`close`."""
        if self._closing:
            raise NotReadyError("the server is shutting down")
        if not self.alive or (self._first.done() and self._first.exception()):
            raise NotReadyError("the model has failed: the server must be restarted")
        if not self._first.done():
            raise NotReadyError("the model is warming up")

    def check_room(self, count: int = 1) -> None:
        """Refuse ``count`` more photos if they cannot be taken on now; to be asked before reading them.

        Raises:
            NotReadyError: see :meth:`check_ready`.
            QueueFullError: there are too many already.
        """
        self.check_ready()
        if self._accepted + count > self.queue_size:
            workers: list[Worker | RemoteWorker] = [self._device, *self._servers.values()]
            wait = math.ceil(self._accepted * max(worker.pace.seconds_per_image for worker in workers))
            raise QueueFullError(
                f"{self._accepted} photos of at most {self.queue_size} are being worked on: try again later",
                retry_after=min(60, max(1, wait)),
            )

    @contextlib.asynccontextmanager
    async def admit(self, model: Model, photos: int) -> AsyncIterator[Turn]:
        """Take on a request, and go on once its model is loaded.

        Args:
            model: which it wants.
            photos: how many it brings.

        Raises:
            NotReadyError, QueueFullError: it is not accepted, see :meth:`check_room`.
            LoadError: its model cannot be loaded.
            DeadlineError: that took too long; the model goes on loading for the next request.
        """
        self.check_room(photos)
        deadline = asyncio.get_running_loop().time() + self.timeout
        self._count(photos)
        try:
            async with contextlib.AsyncExitStack() as stack:
                async with self.in_time(deadline):
                    captioner = await stack.enter_async_context(self.models.use(model))
                worker = self._servers.get(captioner, self._device)
                yield Turn(self, captioner, worker, deadline)
        finally:
            self._count(-photos)

    @contextlib.asynccontextmanager
    async def in_time(self, deadline: float) -> AsyncIterator[None]:
        """Cancel what is done here, with a DeadlineError, at this time of the loop."""
        try:
            async with asyncio.timeout_at(deadline):
                yield
        except TimeoutError as error:
            text = f"there was no answer within {self.timeout:g} seconds: try again later"
            raise DeadlineError(text) from error

    async def prepare(self, captioner: Captioner, uploads: Sequence[Upload]) -> list[PreparedImage]:
        """Decode photos in the pool. Raises ImageError for the first that cannot be used."""
        loop = asyncio.get_running_loop()
        calls = [
            partial(captioner.prepare, item.data, name=item.name, max_pixels=self._max_pixels)
            for item in uploads
        ]
        return await _all([loop.run_in_executor(self._pool, call) for call in calls])

    async def _warm_up(self, captioner: Captioner) -> None:
        await asyncio.wrap_future(self._device.warm_up(captioner))

    def _count(self, change: int) -> None:
        self._accepted += change
        self.metrics.accepted.set(self._accepted)
        if self._accepted:
            self._idle.clear()
        else:
            self._idle.set()


class Turn:
    """A request that was taken on, and its model.

    Args:
        engine: which took it on.
        captioner: the model.
        worker: what runs it.
        deadline: when its time is over, in the loop's time.
    """

    def __init__(
        self, engine: Engine, captioner: Captioner, worker: Worker | RemoteWorker, deadline: float
    ) -> None:
        self.captioner = captioner
        self._engine, self._worker, self._deadline = engine, worker, deadline

    async def caption(self, uploads: Sequence[Upload], options: SearchOptions) -> list[Caption]:
        """Caption photos, in order. Cancel it, and its photos leave the queue.

        Raises:
            DeadlineError: it took too long.
            InferenceError: the model failed.
            RemoteError: its server did.
            ImageError: a photo cannot be used; the others are not captioned either.
            OptionsError: the options do not suit the model.
        """
        async with self._engine.in_time(self._deadline):
            images = await self._engine.prepare(self.captioner, uploads)
            jobs = [Job(self.captioner, image, options) for image in images]
            self._worker.submit(*jobs)
            try:
                return await _all([asyncio.wrap_future(job.future) for job in jobs])
            finally:
                for job in jobs:
                    job.gone.set()

    async def stream(self, upload: Upload, options: SearchOptions) -> AsyncGenerator[StreamEvent]:
        """Caption one photo, giving words as soon as they are decided; the last event has the whole caption.

        Close the iterator, and the rest is not computed. Errors are those of :meth:`caption`.
        """
        events: asyncio.Queue[StreamEvent | Exception] = asyncio.Queue()
        loop, metrics = asyncio.get_running_loop(), self._engine.metrics

        def emit(event: StreamEvent | Exception) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, so nobody listens
                loop.call_soon_threadsafe(events.put_nowait, event)

        async with self._engine.in_time(self._deadline):  # asyncio.wait_for can swallow a cancellation
            (image,) = await self._engine.prepare(self.captioner, [upload])
        stream = Stream(self.captioner, image, options, emit)
        metrics.streams.inc()
        try:
            self._worker.submit(stream)
            while True:
                async with self._engine.in_time(self._deadline):
                    event = await events.get()
                if isinstance(event, Exception):
                    raise event
                yield event
                if event.caption:
                    return
        finally:
            metrics.streams.dec()
            stream.gone.set()


async def _all(futures: Sequence[asyncio.Future[T]]) -> list[T]:
    """The results of all futures; when one fails, or the caller is cancelled, all are cancelled."""
    try:
        return await asyncio.gather(*futures)
    finally:
        for future in futures:
            future.cancel()
