"""Photographs -> activations on disk.

The lower stages of the backbone are frozen, so each photo passes through them once for each of a few
augmented *views*, and the activations wait on disk. An epoch costs only the stages above and the decoder.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from captioner.image import ImageProcessor, decode_image
from captioner.model import CaptionModel
from captioner.regions import region_colours

__all__ = ["ActivationCache", "View", "augment"]

READ_AT_ONCE = 32


def augment(pixels: Image.Image, *, view: int, seed: str, smallest_crop: float = 0.6) -> Image.Image:
    """One view of a photo, the same for the same seed.

    View 0 is the photo itself, odd views are mirrored, and from view 2 on the photo is also cropped (to
    ``smallest_crop`` of its area or more) and its brightness, contrast and saturation changed by up to a
    quarter.
    """
    if view >= 2:
        rng = random.Random(f"{seed}-{view}")
        width, height = pixels.size
        area, ratio = rng.uniform(smallest_crop, 1.0), 2 ** rng.uniform(-0.25, 0.25)
        crop_w, crop_h = min(1.0, (area * ratio) ** 0.5) * width, min(1.0, (area / ratio) ** 0.5) * height
        left, top = rng.uniform(0, width - crop_w), rng.uniform(0, height - crop_h)
        pixels = pixels.crop((round(left), round(top), round(left + crop_w), round(top + crop_h)))
        for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            pixels = enhance(pixels).enhance(rng.uniform(0.75, 1.25))
    return pixels.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if view % 2 else pixels


class View(NamedTuple):
    """One view of some photos: ``(B, C, h, w)`` or ``(B, tokens, C)``, and ``(B, K, rows, columns)`` or None.

    The second are the colours of :func:`~captioner.model.region_colours`.
    """

    activations: Tensor
    colours: Tensor | None

    def to(self, device: torch.device) -> View:
        """The same on a device, float32."""
        moved = (None if values is None else values.to(device).float() for values in self)
        return View(*moved)  # type: ignore[arg-type]

    @classmethod
    def join(cls, views: Sequence[View]) -> View:
        """All photos of several."""
        colours = [view.colours for view in views if view.colours is not None]
        return cls(torch.cat([view.activations for view in views]), torch.cat(colours) if colours else None)


@dataclass(frozen=True)
class ActivationCache:
    """Activations of a photo set below the first trainable stage, and its colours; ``.npy`` files a view.

    Attributes:
        folder: where the files are, of these photos and this encoder alone.
        name: the photo set's name, first part of the file names.
        views: how many views each photo has.
        shades: of :func:`~captioner.model.region_colours`; 0 for a model that is not told of colours.
        smallest_crop: of :func:`augment`.
    """

    folder: Path
    name: str
    views: int
    shades: int = 0
    smallest_crop: float = 0.6

    def path(self, view: int) -> Path:
        return self.folder / f"{self.name}{view}.npy"

    def colours_path(self, view: int) -> Path:
        return self.folder / f"{self.name}{view}-colours{self.shades}.npy"

    def open(self, view: int) -> Stored:
        """A view of all photos, mapped from disk."""
        colours = np.load(self.colours_path(view), mmap_mode="r") if self.shades else None
        return Stored(np.load(self.path(view), mmap_mode="r"), colours)

    def parts(self, view: int, size: int = 64) -> Iterator[View]:
        """Batches of a view in the photos' order."""
        stored = self.open(view)
        for start in range(0, len(stored.activations), size):
            yield stored.pick(range(start, min(start + size, len(stored.activations))))

    def build(
        self, view: int, files: Sequence[Path], processor: ImageProcessor, model: CaptionModel, stages: int
    ) -> Iterator[int]:
        """Compute one view where it is missing, yielding the photos done; a killed view starts again."""
        paths = [self.path(view), *([self.colours_path(view)] if self.shades else [])]
        if all(path.exists() for path in paths):
            return
        self.folder.mkdir(parents=True, exist_ok=True)

        def read(file: Path) -> Tensor:
            photo = decode_image(file, min_side=processor.shown)
            return processor(
                augment(photo.pixels, view=view, seed=file.name, smallest_crop=self.smallest_crop)
            )

        device = next(model.parameters()).device
        mapped: list[npt.NDArray[np.float16]] = []
        with ThreadPoolExecutor(2) as pool:
            for start in range(0, len(files), READ_AT_ONCE):
                pixels = torch.stack(list(pool.map(read, files[start : start + READ_AT_ONCE])))
                with torch.inference_mode():
                    seen = self._see(model, processor.normalize(pixels.to(device), torch.float32), stages)
                for index, array in enumerate(map(_array, seen)):
                    if start == 0:
                        partial, shape = paths[index].with_suffix(".partial"), (len(files), *array.shape[1:])
                        mapped.append(
                            np.lib.format.open_memmap(partial, mode="w+", dtype=np.float16, shape=shape)
                        )
                    mapped[index][start : start + len(array)] = array
                yield min(start + READ_AT_ONCE, len(files))
        for path, values in zip(paths, mapped, strict=True):
            values.flush()  # type: ignore[attr-defined]
            path.with_suffix(".partial").rename(path)

    def _see(self, model: CaptionModel, pixel_values: Tensor, stages: int) -> list[Tensor]:
        """What is kept of some photos: activations, then colours if there are to be any."""
        activations = model.backbone.run(pixel_values, 0, stages)
        if not self.shades:
            return [activations]
        last = model.feature_map(model.backbone.run(activations[:1], stages))
        return [activations, region_colours(pixel_values, (last.shape[2], last.shape[3]), self.shades)]


class Stored(NamedTuple):
    """A view of all photos of a set as it is on disk: float16, maps with their channels last."""

    activations: npt.NDArray[np.float16]
    colours: npt.NDArray[np.float16] | None

    def pick(self, photos: Sequence[int]) -> View:
        """Some of the photos, read."""
        return stack([self] * len(photos), photos)


def stack(stored: Sequence[Stored], photos: Sequence[int]) -> View:
    """Photos of one set, each in a view of its own."""
    pairs = list(zip(stored, photos, strict=True))
    activations = np.stack([view.activations[photo] for view, photo in pairs])
    if pairs[0][0].colours is None:
        return View(_tensor(activations), None)
    colours = np.stack([view.colours[photo] for view, photo in pairs if view.colours is not None])
    return View(_tensor(activations), _tensor(colours))


def _array(values: Tensor) -> npt.NDArray[np.float16]:
    array: npt.NDArray[np.float16]
    array = (values.permute(0, 2, 3, 1) if values.ndim == 4 else values).half().cpu().numpy()
    return array


def _tensor(stored: npt.NDArray[Any]) -> Tensor:
    tensor = torch.from_numpy(stored)
    if tensor.ndim == 4:
        tensor = tensor.permute(0, 3, 1, 2)  # channels last in memory, as the backbone wants it
    return tensor
