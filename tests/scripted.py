"""A stand-in for the model behind the service, whose words the test lets out."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from fakes import FakeCaptioner

from captioner import Caption, SearchOptions, StreamEvent
from captioner.image import ImageSource, Photo, decode_image
from captioner.runners import Lacks


class ScriptedCaptioner(FakeCaptioner):
    """Describes photos by their size, or as it is told, word by word.

    Attributes:
        captions: by the photo's name, what to answer instead.
        warm: clear it, and the first batch waits until it is set again.
        broken: names of photos on which it fails after a word.
        streamed: the options of every stream that has begun.
    """

    name = "scripted"
    description = "a stand-in"
    device = torch.device("cpu")
    dtype = torch.float32
    parameters = 0
    weight_bytes = 0
    lacks = Lacks(details=None)
    sends_photos_to = None

    def __init__(self) -> None:
        super().__init__()
        self.captions: dict[str, Caption] = {}
        self.warm = threading.Event()
        self.warm.set()
        self.broken: set[str | None] = set()
        self.streamed: list[SearchOptions] = []
        self._held = False
        self._words = threading.Semaphore(0)

    def warm_up_sizes(self, max_batch: int) -> list[int]:
        return [1]

    def hold(self) -> None:
        """Give no more words until :meth:`let_out` or :meth:`release`."""
        self._held = True

    def let_out(self, words: int) -> None:
        """Give so many words."""
        self._words.release(words)

    def release(self) -> None:
        """Give all words there are, from now on."""
        self._held = False
        self._words.release(1000)
        self.warm.set()

    def prepare(self, image: ImageSource, *, name: str | None = None, max_pixels: int | None = None) -> Photo:
        return decode_image(image, name=name, **({"max_pixels": max_pixels} if max_pixels else {}))

    def caption_prepared(self, images: Sequence[Photo], options: SearchOptions, **how: Any) -> list[Caption]:
        self.warm.wait()
        return super().caption_prepared(images, options)

    def stream_prepared(self, photo: Photo, options: SearchOptions, **how: Any) -> Iterator[StreamEvent]:
        self.streamed.append(options)
        return self._stream(photo, options)

    def _stream(self, photo: Photo, options: SearchOptions) -> Iterator[StreamEvent]:
        caption = self.captions.get(photo.file or "") or self._caption(photo, options)
        prompt = len(options.prompt.split())
        caption = replace(caption, words=caption.words[prompt:])  # a prompt's words are not the model's
        *words, last = caption.caption.split()
        for word in words:
            self._await_leave()
            yield StreamEvent(f"{word} ")
            if photo.file in self.broken:
                raise RuntimeError("an illegal memory access was encountered")
        self._await_leave()
        yield StreamEvent(last, caption)

    def _await_leave(self) -> None:
        if self._held:
            self._words.acquire()
