"""Where the model looked: the right query, regions alone, and boxes in pixels of the photo."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import tiny_checkpoint
from torch import Tensor

from captioner.attention import as_region_map, attention_box, token_maps
from captioner.decoder import DecoderConfig
from captioner.model import CaptionModel, EncodedImages, ModelConfig
from captioner.vision import BackboneConfig


def by_hand(model: CaptionModel, encoded: EncodedImages, image: int, ids: list[int], token: int) -> Tensor:
    """The map of the ``token``-th id: cross-attention with the query at the id before it, layer by layer."""
    decoder, tokens = model.decoder, encoded.region_tokens[image : image + 1]
    layers: list[Tensor] = []
    for block in decoder.blocks:
        inputs: list[Tensor] = []
        handle = block.cross_attention.q.register_forward_hook(lambda _, __, out, to=inputs: to.append(out))
        decoder(torch.tensor(ids[:token])[None, None], decoder.cross_cache(tokens))
        handle.remove()
        queries = inputs[0][0, token - 1]
        keys = block.cross_attention.kv(tokens[0])[:, : len(queries)]
        heads = block.cross_attention.heads
        size = len(queries) // heads
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            layers.append(torch.softmax(keys[:, part] @ queries[part] / size**0.5, dim=0))
    weights = torch.stack(layers).mean(0)[encoded.grid_slice()]
    return (weights / weights.sum()).reshape(encoded.grid)


def vit_model() -> CaptionModel:
    """With a class token before the grid, and post-norm."""
    torch.manual_seed(0)
    options = {"patch_size": 8, "layers": 1, "heads": 2, "mlp_width": 16}
    config = ModelConfig(
        backbone=BackboneConfig(kind="vit", image_size=32, width=12, options=options),
        regions=None,
        decoder=DecoderConfig(
            vocab_size=20,
            width=16,
            layers=2,
            heads=4,
            mlp_width=16,
            max_positions=12,
            region_width=12,
            norm="post",
        ),
    )
    model = CaptionModel(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


@pytest.mark.parametrize("kind", ["ours", "vit"])
@torch.inference_mode()
def test_the_map_of_a_token_is_that_of_the_query_before_it(kind: str):
    model = vit_model() if kind == "vit" else tiny_checkpoint().model
    size = model.config.backbone.image_size * (1 if kind == "vit" else 2)
    encoded = model.encode(torch.randn(3, 3, size, size))
    prompt, texts = [1, 5], [[[6, 7, 8, 2], [6, 2]], [[9, 2]], [[5, 5, 4], [4, 2], [8, 7, 6, 5]]]
    maps = token_maps(model.decoder, encoded, prompt, texts, pad_id=0)
    assert list(map(len, maps)) == [2, 1, 3]
    for image, captions in enumerate(texts):
        for found, ids in zip(maps[image], captions, strict=True):
            assert (found.shape, found.dtype) == ((len(ids), *encoded.grid), torch.float32)
            torch.testing.assert_close(found.sum((1, 2)), torch.ones(len(ids)))
            for place in range(len(ids)):
                expected = by_hand(model, encoded, image, [*prompt, *ids], len(prompt) + place)
                torch.testing.assert_close(found[place], expected, rtol=1e-4, atol=1e-6)
    other = by_hand(model, encoded, 0, [*prompt, *texts[0][0]], len(prompt) + 2)
    assert (maps[0][0][1] - other).abs().max() > 1e-3, "neighbouring queries look elsewhere"


@torch.inference_mode()
def test_an_image_whose_regions_differ_in_one_place_is_looked_at_there():
    """Keys that only one cell matches: the map is that cell, rows from the top."""
    decoder = vit_model().decoder
    for block in decoder.blocks:
        cross = block.cross_attention
        cross.q.weight.zero_()
        cross.q.bias.fill_(10)
        cross.kv.weight.zero_()
        cross.kv.weight[:16, 0] = 10
    region_tokens = torch.zeros(1, 1 + 2 * 3, 12)
    region_tokens[0, 1 + 1 * 3 + 2, 0] = 1  # after the class token: second row, third column
    encoded = EncodedImages(region_tokens, (2, 3), 1)
    ((maps,),) = token_maps(decoder, encoded, [1], [[[4, 5]]], pad_id=0)
    expected = torch.zeros(2, 2, 3)
    expected[:, 1, 2] = 1
    torch.testing.assert_close(maps, expected)


@torch.inference_mode()
def test_half_precision_gives_maps_that_sum_to_one():
    model = tiny_checkpoint().model
    encoded = model.encode(torch.randn(2, 3, 128, 128))
    half = replace(encoded, region_tokens=encoded.region_tokens.half())
    maps = token_maps(model.half().decoder, half, [1], [[[4, 5, 6]], [[7, 2]]], pad_id=0)
    for (each,) in maps:
        assert each.dtype == torch.float32
        torch.testing.assert_close(each.sum((1, 2)), torch.ones(len(each)), rtol=1e-3, atol=1e-3)


def grid(*rows: str) -> Tensor:
    """A map from digits: "029" is nothing, 2 and 9 parts."""
    values = torch.tensor([[float(digit) for digit in row] for row in rows])
    return values / values.sum()


@pytest.mark.parametrize(
    ("attention", "box"),
    [
        (grid("000", "090", "000"), (40, 20, 80, 40)),
        (grid("900", "000", "000"), (0, 0, 40, 20)),
        (grid("000", "000", "009"), (80, 40, 120, 60)),
        (grid("940", "000", "000"), (0, 0, 40, 20)),
        (grid("950", "000", "000"), (0, 0, 80, 20)),
        (grid("908", "000", "000"), (0, 0, 40, 20)),  # as strong, but apart
        (grid("900", "080", "000"), (0, 0, 40, 20)),  # touches at a corner only
        (grid("900", "880", "080"), (0, 0, 80, 60)),
        (grid("888", "808", "889"), (0, 0, 120, 60)),
        (grid("111", "111", "111"), (0, 0, 120, 60)),
    ],
)
def test_a_box_is_around_the_cells_that_hang_together_with_the_strongest(
    attention: Tensor, box: tuple[int, ...]
):
    assert attention_box(attention, width=120, height=60) == box


def test_a_box_in_a_photo_smaller_than_the_grid_has_a_pixel_at_least():
    left, top, right, bottom = attention_box(grid("000", "000", "009"), width=2, height=1)
    assert (left, top, right, bottom) == (1, 0, 2, 1)


def test_a_region_map_is_rows_of_plain_numbers_from_the_top():
    assert as_region_map(torch.tensor([[0.25, 0.5], [0.0, 0.25]])) == ((0.25, 0.5), (0.0, 0.25))
