"""Photographs and captions -> batches of frozen activations and token ids.

The lower stages of the backbone are frozen, so each photo passes through them once for each of a few
augmented *views*, and the activations wait on disk. An epoch costs only the stages above and the decoder.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from captioner.coco import CocoCaptions
from captioner.image import ImageProcessor, decode_image
from captioner.tokenizer import CaptionTokenizer
from captioner.vision import Backbone

__all__ = ["ActivationCache", "Batch", "CaptionSet", "augment", "batches"]

IGNORE = -100
"""Target of padding and of words outside the vocabulary."""


def augment(pixels: Image.Image, *, view: int, seed: str) -> Image.Image:
    """One view of a photo, the same for the same seed.

    View 0 is the photo itself, odd views are mirrored, and from view 2 on the photo is also cropped (60 to
    100 % of its area) and its brightness, contrast and saturation changed by up to a quarter.
    """
    if view >= 2:
        rng = random.Random(f"{seed}-{view}")
        width, height = pixels.size
        area, ratio = rng.uniform(0.6, 1.0), 2 ** rng.uniform(-0.25, 0.25)
        crop_w, crop_h = min(1.0, (area * ratio) ** 0.5) * width, min(1.0, (area / ratio) ** 0.5) * height
        left, top = rng.uniform(0, width - crop_w), rng.uniform(0, height - crop_h)
        pixels = pixels.crop((round(left), round(top), round(left + crop_w), round(top + crop_h)))
        for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            pixels = enhance(pixels).enhance(rng.uniform(0.75, 1.25))
    return pixels.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if view % 2 else pixels


@dataclass(frozen=True)
class ActivationCache:
    """Activations of a photo set below the first trainable stage, one ``.npy`` file a view.

    Attributes:
        folder: where the files are.
        name: the photo set's name, first part of the file names.
        views: how many views each photo has.
    """

    folder: Path
    name: str
    views: int

    def path(self, view: int) -> Path:
        return self.folder / f"{self.name}{view}.npy"

    def open(self, view: int) -> npt.NDArray[np.float16]:
        """``(photos, h, w, C)`` float16, mapped from disk."""
        mapped: npt.NDArray[np.float16] = np.load(self.path(view), mmap_mode="r")
        return mapped

    def parts(self, view: int, size: int = 64) -> Iterator[Tensor]:
        """Batches of a view in the photos' order, float32: ``(B, C, h, w)`` or ``(B, tokens, C)``."""
        stored = self.open(view)
        for start in range(0, len(stored), size):
            yield _activations(stored[start : start + size].astype(np.float32))

    def build(
        self, view: int, files: Sequence[Path], processor: ImageProcessor, backbone: Backbone, stages: int
    ) -> Iterator[int]:
        """Compute one view where it is missing, yielding the photos done; a killed view starts again."""
        if self.path(view).exists():
            return
        partial = self.path(view).with_suffix(".partial")
        self.folder.mkdir(parents=True, exist_ok=True)

        def read(file: Path) -> Tensor:
            photo = decode_image(file, min_side=processor.size)
            return processor(augment(photo.pixels, view=view, seed=file.name))

        mapped = None
        with ThreadPoolExecutor(2) as pool:
            for start in range(0, len(files), 32):
                pixels = torch.stack(list(pool.map(read, files[start : start + 32])))
                device = next(backbone.parameters()).device
                with torch.inference_mode():
                    values = backbone.run(processor.normalize(pixels.to(device), torch.float32), 0, stages)
                array = (
                    values.permute(0, 2, 3, 1).half().cpu().numpy()
                    if values.ndim == 4
                    else values.half().cpu().numpy()
                )
                if mapped is None:
                    shape = (len(files), *array.shape[1:])
                    mapped = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float16, shape=shape)
                mapped[start : start + len(array)] = array
                yield start + len(array)
        assert mapped is not None
        mapped.flush()
        partial.rename(self.path(view))


@dataclass(frozen=True)
class CaptionSet:
    """The captions of one photo set as token ids, and its cached activations.

    Attributes:
        cache: the photos' activations.
        token_ids: for each photo its captions, start and end token included.
        mirrored: the same captions with left and right exchanged, for mirrored views.
        photos_per_batch: how many photos a batch takes from this set.
    """

    cache: ActivationCache
    token_ids: list[list[list[int]]]
    mirrored: list[list[list[int]]]
    photos_per_batch: int

    @classmethod
    def build(
        cls,
        coco: CocoCaptions,
        tokenizer: CaptionTokenizer,
        cache: ActivationCache,
        *,
        photos_per_batch: int,
        max_words: int,
    ) -> CaptionSet:
        """Tokenise the captions; those over ``max_words`` are cut and lose their end token."""
        config = tokenizer.config
        left, right = tokenizer.token_id("left"), tokenizer.token_id("right")
        swap = {left: right, right: left} if left is not None and right is not None else {}

        def sequence(caption: str) -> list[int]:
            ids = tokenizer.encode(caption)
            return [*config.start_ids, *ids[:max_words], *([config.eos_id] if len(ids) <= max_words else [])]

        token_ids = [[sequence(text) for text in coco.captions[image.id]] for image in coco.images]
        mirrored = [[[swap.get(i, i) for i in ids] for ids in captions] for captions in token_ids]
        return cls(cache, token_ids, mirrored, photos_per_batch)

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True)
class Batch:
    """Some photos of one set in one view each.

    Attributes:
        photos: the photos' places in their set.
        activations: ``(B, C, h, w)`` or ``(B, tokens, C)`` float16.
        input_ids: ``(B, N, T)`` int64, start token first.
        targets: ``(B, N, T)`` int64, the next token, or ``IGNORE``.
    """

    photos: list[int]
    activations: Tensor
    input_ids: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        tensors = {name: getattr(self, name).to(device) for name in ("activations", "input_ids", "targets")}
        return replace(self, **tensors)


def batches(
    sets: Sequence[CaptionSet], *, pad_id: int, unk_id: int, seed: int
) -> Iterator[tuple[Batch, ...]]:
    """One epoch over the first set, with a batch of each further set beside every batch of the first.

    Photos come in a random order; each is seen in a random view, with as many of its captions as the photo of
    its set with the fewest has. Further sets are shuffled and cut to the length of the epoch.
    """
    rng = random.Random(seed)
    steps = len(sets[0]) // sets[0].photos_per_batch
    orders = [rng.sample(range(len(group)), len(group)) for group in sets]
    views = [[group.cache.open(view) for view in range(group.cache.views)] for group in sets]
    for step in range(steps):
        parts = []
        for group, order, opened in zip(sets, orders, views, strict=True):
            size = group.photos_per_batch
            photos = [order[(step * size + i) % len(order)] for i in range(size)]
            chosen = [rng.randrange(group.cache.views) for _ in photos]
            parts.append(_batch(group, photos, chosen, opened, rng, pad_id, unk_id))
        yield tuple(parts)


def _batch(
    group: CaptionSet,
    photos: list[int],
    chosen: list[int],
    opened: list[npt.NDArray[np.float16]],
    rng: random.Random,
    pad_id: int,
    unk_id: int,
) -> Batch:
    rows = min(len(group.token_ids[photo]) for photo in photos)
    captions = []
    for photo, view in zip(photos, chosen, strict=True):
        source = group.mirrored[photo] if view % 2 else group.token_ids[photo]
        captions.append(rng.sample(source, rows))
    longest = max(len(ids) for photo in captions for ids in photo)
    padded = torch.full((len(photos), rows, longest), pad_id, dtype=torch.int64)
    for i, photo_captions in enumerate(captions):
        for j, ids in enumerate(photo_captions):
            padded[i, j, : len(ids)] = torch.tensor(ids)
    targets = padded[:, :, 1:].clone()
    targets[(targets == pad_id) | (targets == unk_id)] = IGNORE
    stacked = np.stack([opened[view][photo] for photo, view in zip(photos, chosen, strict=True)])
    return Batch(photos, _activations(stacked), padded[:, :, :-1].contiguous(), targets)


def _activations(stored: npt.NDArray[Any]) -> Tensor:
    tensor = torch.from_numpy(stored)
    if tensor.ndim == 4:
        tensor = tensor.permute(0, 3, 1, 2)  # channels last in memory, as the backbone wants it
    return tensor
