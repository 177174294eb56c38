"""Which part of a photo each of its tokens stands for, where they make a grid."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["no_grid", "photo_grids", "photo_places", "untiled"]

TILING = ("crop_to_patches", "do_image_splitting", "do_pan_and_scan", "split_image")
"""What image processors call the setting by which they cut a photo into tiles."""


def untiled(image_processor: Any) -> dict[str, bool]:
    """What to give a processor so that it leaves photos whole; empty where it has no such setting."""
    known = getattr(type(image_processor), "valid_kwargs", None)
    names = getattr(known, "__annotations__", {})
    return {name: False for name in TILING if name in names}


def no_grid(config: Any, image_processor: Any) -> str | None:
    """Why a model's photo tokens never make a grid over the whole photo; None where they may."""
    if config.get_text_config().is_encoder_decoder:
        return "its encoder mixes the photo with the question"
    if any(getattr(config, name, None) is not None for name in ("qformer_config", "perceiver_config")):
        return "its queries gather what is in a photo, and none of them stands for a place"
    if getattr(image_processor, "do_center_crop", None):
        return "it sees no more than the middle of a photo"
    if getattr(config, "image_grid_pinpoints", None):
        return "it always sees photos in tiles, whose tokens make no one grid"
    if hasattr(image_processor, "pad_to_square") and image_processor.do_pad:
        return "it sees photos with margins that make them square"
    return None


def photo_places(config: Any, input_ids: Tensor) -> list[Tensor]:
    """For each row of ``input_ids (B, T)`` where the tokens of its photo stand."""
    token = getattr(config, "image_token_id", None)
    token = getattr(config, "image_token_index", None) if token is None else token
    return [(row == token).nonzero()[:, 0] for row in input_ids.cpu()]


def photo_grids(
    config: Any, image_processor: Any, inputs: Mapping[str, Any], counts: list[int]
) -> list[tuple[int, int] | None]:
    """The rows and columns that each photo's tokens make; None where they make no grid over the whole photo.

    That is so where :func:`no_grid` says why, where a photo is cut into tiles, and where it keeps its shape
    without the inputs telling the grid.

    Args:
        config: the network's.
        image_processor: what made the inputs.
        inputs: of the network, for one photo a row.
        counts: tokens of each photo.
    """
    nothing: list[tuple[int, int] | None] = [None] * len(counts)
    if no_grid(config, image_processor):
        return nothing
    if "image_grid_thw" in inputs:
        merge = getattr(config.vision_config, "spatial_merge_size", 1)
        sizes = [(int(h) // merge, int(w) // merge) for _, h, w in inputs["image_grid_thw"].tolist()]
        return [size if math.prod(size) == count else None for size, count in zip(sizes, counts, strict=True)]
    if not _squares(inputs):
        return nothing
    views = _views(inputs["pixel_values"], len(counts))
    each = sum(counts) / max(1, views)  # tokens of a view
    side = math.isqrt(int(each))
    square = (side, side) if side and side * side == each else None
    return [square if count == each else None for count in counts]


def _squares(inputs: Mapping[str, Any]) -> bool:
    """Whether the encoder sees squares alone, which may be squashed photos."""
    height, width = inputs["pixel_values"].shape[-2:]
    sizes = inputs.get("image_sizes", torch.zeros(1, 2))
    return bool(height == width and (sizes[:, 0] == sizes[:, 1]).all())


def _views(pixel_values: Tensor, photos: int) -> int:
    """How many pictures the encoder sees: of a photo in tiles, several. Those that only fill up are black."""
    if pixel_values.ndim == 4:
        return len(pixel_values)
    assert len(pixel_values) == photos, pixel_values.shape
    return int(torch.count_nonzero(pixel_values.flatten(2).abs().amax(-1)))
