"""Captioners that behave as a real one would on a bad day, around a real one in miniature."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from tiny import tiny_checkpoint

from captioner import Caption, Captioner, GenerationOptions, PreparedImage, SearchOptions, StreamEvent
from captioner.runners import CheckpointRunner


class Recording(Captioner):
    """Remembers its batches.

    Attributes:
        batches: the file names of each batch, without those of the warm-up.
    """

    def __init__(self) -> None:
        super().__init__(CheckpointRunner(tiny_checkpoint()), name="tiny")
        self.batches: list[list[str | None]] = []

    def caption_prepared(
        self,
        images: Sequence[PreparedImage],
        options: GenerationOptions | SearchOptions | None = None,
        **how: Any,
    ) -> list[Caption]:
        if images[0].file != "warm-up":
            self.batches.append([image.file for image in images])
            self.check(images)
        return super().caption_prepared(images, options, **how)

    def check(self, images: Sequence[PreparedImage]) -> None:
        """Where a stand-in fails or waits."""


class Held(Recording):
    """Captions nothing until ``go`` is set; ``busy`` is set while a batch waits for that."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()
        self.busy = threading.Event()
        self.steps = 0

    def check(self, images: Sequence[PreparedImage]) -> None:
        self.busy.set()
        assert self.go.wait(30)

    def stream_prepared(
        self,
        image: PreparedImage,
        options: GenerationOptions | SearchOptions | None = None,
        **how: Any,
    ) -> Iterator[StreamEvent]:
        for event in super().stream_prepared(image, options, **how):
            self.steps += 1
            yield event
            self.busy.set()
            assert self.go.wait(30)


class SmallMemory(Recording):
    """A GPU that holds ``fits`` photos at a time."""

    def __init__(self, *, fits: int) -> None:
        super().__init__()
        self.fits = fits

    def check(self, images: Sequence[PreparedImage]) -> None:
        if len(images) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


class Crashing(Recording):
    """Fails on every batch with a photo called ``bad`` in it; after one called ``fatal``, on every batch."""

    broken = False

    def check(self, images: Sequence[PreparedImage]) -> None:
        names = {image.file for image in images}
        self.broken |= "fatal" in names
        if "bad" in names or self.broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def caption_prepared(
        self,
        images: Sequence[PreparedImage],
        options: GenerationOptions | SearchOptions | None = None,
        **how: Any,
    ) -> list[Caption]:
        if self.broken:
            self.check(images)
        return super().caption_prepared(images, options, **how)

    def stream_prepared(
        self,
        image: PreparedImage,
        options: GenerationOptions | SearchOptions | None = None,
        **how: Any,
    ) -> Iterator[StreamEvent]:
        events = super().stream_prepared(image, options, **how)
        yield next(events)
        self.check([image])
        yield from events


class CrashingOnRequests(Crashing):
    """Fails on a photo that a request brings without a name, and not on the one that warms it up."""

    def check(self, images: Sequence[PreparedImage]) -> None:
        if images[0].file == "image 1":
            raise RuntimeError("no more")


def names(batches: Sequence[Sequence[Any]]) -> list[Any]:
    """What is in the batches, one after the other."""
    return [name for batch in batches for name in batch]
