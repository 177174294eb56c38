"""Final token ids -> where the model looked for each word.

Decoding runs on fused kernels that keep no attention weights. One forced pass over the finished caption gives
them all at once: the query that predicts a token stands at the token before it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from captioner.caption import Box, RegionMap
from captioner.decoder import TextDecoder
from captioner.image import region_box
from captioner.model import EncodedImages

__all__ = ["as_region_map", "attention_box", "token_maps"]

BOX_THRESHOLD = 0.5
"""Cells of at least this share of the strongest one belong to a word's box, where they hang together."""


def token_maps(
    decoder: TextDecoder,
    encoded: EncodedImages,
    prompt_ids: Sequence[int],
    token_ids: Sequence[Sequence[Sequence[int]]],
    pad_id: int,
) -> list[list[Tensor]]:
    """The cross-attention of every generated token, averaged over heads and layers.

    Args:
        decoder: in eval mode.
        encoded: ``B`` images.
        prompt_ids: what every caption began with.
        token_ids: for each image its captions, one at least, as generated ids.
        pad_id: fills shorter captions up.

    Returns:
        For each caption of each image a ``(tokens, h, w)`` float32 tensor on the CPU; each map sums to 1.
        Attention to class and tag tokens, which have no place in the image, is left out.
    """
    rows = max(map(len, token_ids))
    longest = max(len(ids) for captions in token_ids for ids in captions)
    padded = [[captions[min(row, len(captions) - 1)] for row in range(rows)] for captions in token_ids]
    texts = [
        [[*prompt_ids, *ids, *[pad_id] * (longest - len(ids))] for ids in captions] for captions in padded
    ]
    input_ids = torch.tensor(texts, device=encoded.region_tokens.device)[..., :-1]  # (B, N, T)
    _, maps = decoder(input_ids, decoder.cross_cache(encoded.region_tokens), weights=True)
    attention = torch.stack(maps).mean(0)[:, :, len(prompt_ids) - 1 :, encoded.grid_slice()]
    attention = attention / attention.sum(-1, keepdim=True).clamp_min(torch.finfo(attention.dtype).tiny)
    grids = attention.reshape(*attention.shape[:3], *encoded.grid).float().cpu()
    return [
        [grid[: len(ids)] for grid, ids in zip(of_image, captions, strict=False)]  # without the filling
        for of_image, captions in zip(grids, token_ids, strict=True)
    ]


def attention_box(attention: Tensor, *, width: int, height: int) -> Box:
    """The box around the cells that hang together with the strongest one and have at least half its weight.

    Args:
        attention: ``(h, w)``.
        width: pixels of the upright image.
        height: likewise.
    """
    rows, columns = attention.shape
    strong = (attention >= BOX_THRESHOLD * attention.max()).tolist()
    peak = divmod(int(attention.argmax()), columns)
    reached, waiting = {peak}, [peak]
    while waiting:
        row, column = waiting.pop()
        for near in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
            inside = 0 <= near[0] < rows and 0 <= near[1] < columns
            if inside and near not in reached and strong[near[0]][near[1]]:
                reached.add(near)
                waiting.append(near)
    top, bottom = min(row for row, _ in reached), max(row for row, _ in reached) + 1
    left, right = min(column for _, column in reached), max(column for _, column in reached) + 1
    return region_box((top, left, bottom, right), (rows, columns), width=width, height=height)


def as_region_map(attention: Tensor) -> RegionMap:
    """A map as plain numbers, rows from the top."""
    return tuple(tuple(row) for row in attention.tolist())
