"""Stand-ins that tests hand in where the real thing would be slow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from captioner import GenerationOptions, SearchOptions
from captioner.caption import Alternative, Caption, RegionMap, Word
from captioner.image import ImageSource, Photo, decode_image

GRID = 7


def spot(row: int, column: int) -> RegionMap:
    """All attention on one cell of a 7 × 7 grid."""
    return tuple(tuple(float((y, x) == (row, column)) for x in range(GRID)) for y in range(GRID))


def make_caption(
    text: str, *, width: int = 120, height: int = 80, file: str | None = None, attention: bool = True
) -> Caption:
    """A caption whose first word looked at the top left cell, the second at the next one, and so on."""
    words = []
    for index, word in enumerate(text.split()):
        row, column = divmod(index, GRID)
        box = (
            width * column // GRID,
            height * row // GRID,
            width * (column + 1) // GRID,
            height * (row + 1) // GRID,
        )
        words.append(
            Word(
                text=word,
                logprob=math.log(0.5),
                confidence=0.5,
                attention=spot(row, column) if attention else None,
                box=box if attention else None,
            )
        )
    return Caption(
        file=file,
        model="fake",
        width=width,
        height=height,
        caption=text,
        confidence=0.5,
        logprob=len(words) * math.log(0.5),
        words=tuple(words),
    )


class FakeCaptioner:
    """Reads images as the real Captioner does, and describes them by their size.

    Attributes:
        options: those of every batch.
        batches: the size of every batch.
    """

    name = "fake"
    device = torch.device("cpu")
    default_options = SearchOptions(num_beams=4, max_length=12)

    def __init__(self) -> None:
        self.options: list[SearchOptions] = []
        self.batches: list[int] = []

    def resolve(self, options: GenerationOptions | SearchOptions | None = None) -> SearchOptions:
        if isinstance(options, SearchOptions):
            return options
        return (options or GenerationOptions()).resolve(GenerationOptions(num_beams=4, max_length=12))

    def prepare(self, image: ImageSource, *, name: str | None = None) -> Photo:
        return decode_image(image, name=name)

    def check_options(self, options: SearchOptions) -> None:
        """All options suit it."""

    def caption_prepared(self, images: Sequence[Photo], options: SearchOptions, **how: Any) -> list[Caption]:
        self.options.append(options)
        self.batches.append(len(images))
        return [self._caption(photo, options) for photo in images]

    def _caption(self, photo: Photo, options: SearchOptions) -> Caption:
        text = f"{options.prompt} a photo {photo.width} wide and {photo.height} high".strip()
        caption = make_caption(
            text, width=photo.width, height=photo.height, file=photo.file, attention=options.attention
        )
        others = [
            Alternative(caption=f"another {n}", confidence=0.4, logprob=-9.0)
            for n in range(options.alternatives)
        ]
        return Caption(**{**vars(caption), "alternatives": tuple(others), "warning": photo.warning})
