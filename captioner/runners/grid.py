"""Which part of a photo each of its tokens stands for, where they make a grid."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["photo_grids", "photo_places"]


def photo_places(config: Any, input_ids: Tensor) -> list[Tensor]:
    """For each row of ``input_ids (B, T)`` where the tokens of its photo stand."""
    token = getattr(config, "image_token_id", None)
    token = getattr(config, "image_token_index", None) if token is None else token
    return [(row == token).nonzero()[:, 0] for row in input_ids.cpu()]


def photo_grids(
    config: Any, image_processor: Any, inputs: Mapping[str, Any], counts: list[int]
) -> list[tuple[int, int] | None]:
    """The rows and columns that each photo's tokens make; None where they make no grid over the whole photo.

    That is so where a photo is cut into tiles, where its middle is cropped out, and where queries gather what
    is in it (Q-Former, Perceiver).

    Args:
        config: the network's.
        image_processor: what made the inputs.
        inputs: of the network, for one photo a row.
        counts: tokens of each photo.
    """
    nothing: list[tuple[int, int] | None] = [None] * len(counts)
    gathers = any(getattr(config, name, None) is not None for name in ("qformer_config", "perceiver_config"))
    if gathers or getattr(image_processor, "do_center_crop", None):
        return nothing
    if "image_grid_thw" in inputs:
        merge = getattr(config.vision_config, "spatial_merge_size", 1)
        sizes = [(int(h) // merge, int(w) // merge) for _, h, w in inputs["image_grid_thw"].tolist()]
        return [size if math.prod(size) == count else None for size, count in zip(sizes, counts, strict=True)]
    views = _views(inputs["pixel_values"], len(counts))
    each = sum(counts) / max(1, views)  # tokens of a view
    side = math.isqrt(int(each))
    square = (side, side) if side and side * side == each else None
    return [square if count == each else None for count in counts]


def _views(pixel_values: Tensor, photos: int) -> int:
    """How many pictures the encoder sees: of a photo in tiles, several. Those that only fill up are black."""
    if pixel_values.ndim == 4:
        return len(pixel_values)
    assert len(pixel_values) == photos, pixel_values.shape
    return int(torch.count_nonzero(pixel_values.flatten(2).abs().amax(-1)))
