"""RGB pixels -> the model's ``pixel_values``; regions of its grid -> boxes of pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from PIL import Image

from captioner.caption import Box
from captioner.errors import CheckpointError, OptionsError

if TYPE_CHECKING:
    import torch

__all__ = ["ImageProcessor", "PixelBox", "region_box"]

PixelBox: TypeAlias = tuple[float, float, float, float]
"""Left, top, right and bottom of a part of an image, in pixels and fractions of one."""

_RESAMPLE = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

_FAST = ("AVX2", "AVX512")
"""Where torch resizes in whole numbers as Pillow does, up to seven times as fast and in one thread. Elsewhere
it is slower, and would start a team of threads for each thread that decodes.
"""


@dataclass(frozen=True)
class ImageProcessor:
    """Pixels to ``pixel_values``: squash to a square, then normalise.

    The aspect ratio is given up on purpose: the whole photo is seen, and the model is trained on photos
    squashed likewise. The two steps are apart so that bytes, not floats, travel to the GPU.

    Attributes:
        size: side of the square in pixels.
        mean: of red, green and blue, for values scaled to 0…1.
        std: likewise.
        resample: filter of the resize; with antialiasing, as Pillow's filters have.
        margin: pixels that are cut off at each side of a larger square, of which ``size`` is left (DeiT).

    Raises:
        OptionsError: a value is out of range.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resample: Literal["bilinear", "bicubic"] = "bicubic"
    margin: int = 0

    def __post_init__(self) -> None:
        if (
            self.size < 1
            or self.margin < 0
            or len(self.mean) != 3
            or len(self.std) != 3
            or min(self.std) <= 0
        ):
            raise OptionsError(
                f"size must be at least 1, margin 0, mean and std three values, std above 0: {self}"
            )
        if self.resample not in _RESAMPLE:
            raise OptionsError(f"resample must be one of {', '.join(_RESAMPLE)}, not {self.resample!r}")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ImageProcessor:
        """The inverse of :meth:`to_dict`; CheckpointError where a key is missing or unknown."""
        try:
            return cls(**{**data, "mean": tuple(data["mean"]), "std": tuple(data["std"])})
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"the image processor's configuration does not fit: {error}") from error

    @property
    def shown(self) -> int:
        """Side of the square that the whole photo is squashed to, in pixels."""
        return self.size + 2 * self.margin

    def to_dict(self) -> dict[str, Any]:
        """The processor as JSON-ready data."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    def __call__(self, pixels: Image.Image, box: PixelBox | None = None) -> torch.Tensor:
        """Squash an RGB image to ``(3, size, size)`` uint8, channels red, green, blue.

        Args:
            pixels: the image.
            box: the part to take, such as :attr:`Photo.box`; None for all.
        """
        import torch

        # copies by numpy: torch would start a team of OpenMP threads for each thread that decodes
        inside, size = slice(self.margin, self.margin + self.size), (self.shown, self.shown)
        whole = box in (None, (0, 0, *pixels.size)) and pixels.size != size
        if whole and torch.backends.cpu.get_cpu_capability() in _FAST:
            planes = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)
            resize = torch.nn.functional.interpolate
            square = resize(planes[None], size, mode=self.resample, antialias=True)[0].numpy()
        else:
            squashed = pixels.resize(size, _RESAMPLE[self.resample], box=box)
            square = np.asarray(squashed).transpose(2, 0, 1)
        return torch.from_numpy(np.array(square[:, inside, inside], order="C"))

    def normalize(self, pixel_values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """``(pixel_values / 255 - mean) / std`` on the tensor's own device.

        Args:
            pixel_values: ``(B, 3, H, W)`` uint8.
            dtype: the result's floating-point type; the arithmetic is float32 whatever it is.

        Returns:
            ``(B, 3, H, W)`` of ``dtype``.
        """
        import torch

        mean = torch.tensor(self.mean, device=pixel_values.device).view(3, 1, 1)
        std = torch.tensor(self.std, device=pixel_values.device).view(3, 1, 1)
        return torch.addcmul(-mean / std, pixel_values.float(), 1 / (255 * std)).to(dtype)


def region_box(cells: tuple[int, int, int, int], grid: tuple[int, int], *, width: int, height: int) -> Box:
    """The pixels that a block of region-grid cells covers.

    Args:
        cells: top, left, bottom, right in cells; bottom and right are exclusive.
        grid: the region grid's rows and columns.
        width: pixels of the upright image, which the grid spans from edge to edge.
        height: likewise.

    Returns:
        Left, top, right, bottom: every pixel that a cell touches, so at least one.
    """
    (top, left, bottom, right), (rows, columns) = cells, grid
    assert 0 <= top < bottom <= rows, (cells, grid)
    assert 0 <= left < right <= columns, (cells, grid)
    right, bottom = -(-right * width // columns), -(-bottom * height // rows)  # rounded up
    return left * width // columns, top * height // rows, right, bottom
