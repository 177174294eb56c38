"""Photos on their way to a caption, and their answers: what all places of work take and give."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial

from captioner import (
    Caption,
    Captioner,
    NotWantedError,
    OptionsError,
    PartialError,
    PreparedImage,
    RemoteError,
    SearchOptions,
    StreamEvent,
)
from service.metrics import Metrics

__all__ = ["InferenceError", "Job", "Pace", "Stream", "caption_jobs", "fail_jobs", "give_up"]

logger = logging.getLogger(__name__)


class InferenceError(Exception):
    """The model failed on the batch that the photo was in; the log says why."""

    def __init__(self) -> None:
        super().__init__("the model failed on this request; the server's log says why")


@dataclass(frozen=True, eq=False)
class Job:
    """A photo that waits for its caption.

    Attributes:
        captioner: the model.
        image: what to caption.
        options: how.
        future: its caption; cancel it before the work begins, and it costs nothing any more.
        gone: set it at any time, and the work is broken off as soon as no photo of its batch is wanted.
    """

    captioner: Captioner
    image: PreparedImage
    options: SearchOptions
    future: Future[Caption] = field(default_factory=Future)
    gone: threading.Event = field(default_factory=threading.Event)

    def begin(self, metrics: Metrics) -> bool:
        """It leaves the queue: whether somebody still wants it. From then on the future is not cancelled."""
        metrics.queue.dec()
        wanted = self.future.set_running_or_notify_cancel()
        if not wanted:
            metrics.images.labels("dropped", self.captioner.name).inc()
        return wanted


@dataclass(eq=False)
class Stream:
    """A caption that is given word by word.

    Attributes:
        captioner: the model.
        image: what to caption.
        options: how.
        emit: takes each event, or the error that ends the stream, in the thread that captions.
        gone: set it, and the rest of the caption is not computed.
        steps: the captioner's iterator, once it has begun.
    """

    captioner: Captioner
    image: PreparedImage
    options: SearchOptions
    emit: Callable[[StreamEvent | Exception], None]
    gone: threading.Event = field(default_factory=threading.Event)
    steps: Iterator[StreamEvent] | None = None

    def advance(self, metrics: Metrics) -> bool:
        """Compute and emit the next event; whether the stream goes on after that.

        Raises:
            InferenceError: the model has failed, which the stream has been told.
        """
        if self.gone.is_set():
            metrics.images.labels("dropped", self.captioner.name).inc()
            self.steps = None  # the connection to a model's server is closed with it
            return False
        try:
            if self.steps is None:
                self.steps = self.captioner.stream_prepared(
                    self.image, self.options, is_wanted=lambda: not self.gone.is_set()
                )
            event = next(self.steps)
        except NotWantedError:
            metrics.images.labels("dropped", self.captioner.name).inc()
            return False
        except (OptionsError, RemoteError) as error:
            metrics.images.labels("failed", self.captioner.name).inc()
            self.emit(error)
            return False
        except Exception as error:
            metrics.images.labels("failed", self.captioner.name).inc()
            logger.exception("a stream failed")
            self.emit(InferenceError())
            raise InferenceError from error
        if event.caption:
            metrics.count([event.caption], self.captioner)
        self.emit(event)
        return event.caption is None


class Pace:
    """How long a photo takes of late.

    Args:
        metrics: where to count.

    Attributes:
        seconds_per_image: a moving average; 0 before the first one.
    """

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics
        self.seconds_per_image = 0.0

    def measure(self, seconds: float, model: str, *, images: int) -> None:
        """A batch of a model took so long, in which so many photos were under way."""
        self.metrics.batch_seconds.labels(model).observe(seconds)
        each, known = seconds / images, self.seconds_per_image
        self.seconds_per_image = known + 0.1 * (each - known) if known else each


def caption_jobs(jobs: Sequence[Job], metrics: Metrics) -> None:
    """Caption photos of one model with the same options in one call, and answer each who waits for it.

    Raises:
        Exception: whatever the model raised that is not about single photos or the options; then no job has
            its answer yet.
    """
    captioner, options = jobs[0].captioner, jobs[0].options
    try:
        results: Sequence[Caption | RemoteError] = captioner.caption_prepared(
            [job.image for job in jobs],
            options,
            is_wanted=lambda: not all(job.gone.is_set() for job in jobs),
        )
    except NotWantedError as error:
        metrics.images.labels("dropped", captioner.name).inc(len(jobs))
        for job in jobs:
            job.future.set_exception(error)
        return
    except OptionsError as error:
        fail_jobs(jobs, partial(OptionsError, str(error)), metrics)
        return
    except PartialError as error:
        results = error.results
    good = [result for result in results if isinstance(result, Caption)]
    metrics.count(good, captioner)
    metrics.batch_size.labels(captioner.name).observe(len(jobs))
    for job, result in zip(jobs, results, strict=True):
        if isinstance(result, Caption):
            job.future.set_result(result)
        else:
            fail_jobs([job], partial(type(result), str(result)), metrics)


def fail_jobs(jobs: Sequence[Job], make_error: Callable[[], Exception], metrics: Metrics) -> None:
    """An error for each job: a shared one would gather the tracebacks of all who raise it."""
    for job in jobs:
        metrics.images.labels("failed", job.captioner.name).inc()
        job.future.set_exception(make_error())


def give_up(item: Job | Stream, metrics: Metrics) -> None:
    """Answer what is queued but is never going to be computed."""
    if isinstance(item, Stream):
        item.emit(InferenceError())
    elif item.begin(metrics):
        item.future.set_exception(InferenceError())
