"""The model: configuration, region and tag tokens, and a decoder that sees what it may and nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_checkpoint
from torch import Tensor, nn

from captioner.decoder import DecoderConfig, KVCache, TextDecoder
from captioner.model import CaptionModel, ModelConfig
from captioner.regions import RegionConfig, TagTokens, photo_features, region_colours
from captioner.runners import CheckpointRunner
from captioner.runners.base import PreparedImage
from captioner.vision import BackboneConfig

VIT = BackboneConfig(
    kind="vit",
    image_size=32,
    width=24,
    options={"patch_size": 8, "layers": 1, "heads": 2, "mlp_width": 32},
)
DECODER = DecoderConfig(
    vocab_size=20, width=16, layers=2, heads=2, mlp_width=32, max_positions=16, region_width=12
)
VARIANTS = {
    "ours": DECODER,
    "gpt2": replace(DECODER, activation="gelu_tanh", output_bias=False),
    "bert": replace(DECODER, norm="post", embedding_norm=True, head_transform=True, eps=1e-12),
    "bart": replace(DECODER, norm="post", embedding_norm=True, embedding_scale=4.0, output_bias=False),
}


@pytest.fixture(params=VARIANTS)
def decoder(request: pytest.FixtureRequest) -> TextDecoder:
    return random_decoder(VARIANTS[request.param])


def random_decoder(config: DecoderConfig) -> TextDecoder:
    torch.manual_seed(0)
    decoder = TextDecoder(config).eval()
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.5)
    return decoder


def random_ids(*shape: int) -> Tensor:
    return torch.randint(0, DECODER.vocab_size, shape)


def scores(decoder: TextDecoder, ids: Tensor, region_tokens: Tensor) -> Tensor:
    return decoder.logits(decoder(ids, decoder.cross_cache(region_tokens))[0])


def test_configuration_goes_to_json_and_back():
    config = tiny_checkpoint().model.config
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    bare = replace(config, regions=None)
    assert ModelConfig.from_dict(json.loads(json.dumps(bare.to_dict()))) == bare


@pytest.mark.parametrize(
    "change",
    [
        {"colour": 1},
        {"decoder": {"vocab_size": 5}},
        {"regions": {"width": 5, "depth": 3}},
        {"backbone": None},
    ],
)
def test_a_configuration_with_missing_or_unknown_keys_is_refused(change: dict[str, Any]):
    with pytest.raises(TypeError):
        ModelConfig.from_dict({**tiny_checkpoint().model.config.to_dict(), **change})


@torch.inference_mode()
def test_a_scale_of_the_embeddings_counts_where_they_go_in_and_not_where_they_score():
    scaled, plain = (random_decoder(replace(DECODER, embedding_scale=scale)) for scale in (4.0, 1.0))
    ids, region_tokens = random_ids(2, 1, 7), torch.randn(2, 5, 12)
    weight = plain.word_embedding.weight
    weight *= 4
    expected = scores(plain, ids, region_tokens) - plain.output_bias
    torch.testing.assert_close(scores(scaled, ids, region_tokens) - scaled.output_bias, expected / 4)


@pytest.mark.parametrize("change", [{"norm": "none"}, {"activation": "tanh"}, {"heads": 3}])
def test_a_decoder_that_cannot_be_is_refused(change: dict[str, Any]):
    with pytest.raises(ValueError, match=r"norm|heads"):
        TextDecoder(replace(DECODER, **change))


@torch.inference_mode()
def test_a_token_depends_on_those_before_it_alone(decoder: TextDecoder):
    ids, region_tokens = random_ids(2, 3, 7), torch.randn(2, 5, 12)
    before = scores(decoder, ids, region_tokens)
    changed = ids.clone()
    changed[1, 2, 4] = (ids[1, 2, 4] + 1) % DECODER.vocab_size
    after = scores(decoder, changed, region_tokens)
    same = (before - after).abs().amax(-1) < 1e-5
    expected = torch.ones(2, 3, 7, dtype=torch.bool)
    expected[1, 2, 4:] = False
    assert same.equal(expected)


@torch.inference_mode()
def test_a_text_depends_on_its_own_image_alone(decoder: TextDecoder):
    ids, region_tokens = random_ids(2, 3, 7), torch.randn(2, 5, 12)
    before = scores(decoder, ids, region_tokens)
    region_tokens[1, 4] += 1
    after = scores(decoder, ids, region_tokens)
    torch.testing.assert_close(after[0], before[0])
    assert ((after[1] - before[1]).abs().amax(-1) > 1e-5).all()


@torch.inference_mode()
def test_cross_attention_takes_keys_and_values_from_the_regions():
    """With the text's part in the queries switched off, every token sees the plain mean of the values."""
    decoder = random_decoder(replace(DECODER, layers=1))
    cross = decoder.blocks[0].cross_attention
    cross.q.weight.zero_()
    cross.q.bias.zero_()
    region_tokens = torch.randn(1, 5, 12)
    out, maps = cross(torch.randn(1, 4, 16), *cross.keys_values(region_tokens), weights=True)
    mean = region_tokens.mean(1) @ cross.kv.weight[16:].T + cross.kv.bias[16:]
    torch.testing.assert_close(out, cross.out(mean)[:, None].expand(1, 4, 16))
    torch.testing.assert_close(maps, torch.full((1, 4, 5), 0.2))


@torch.inference_mode()
def test_asking_for_the_attention_changes_nothing_else(decoder: TextDecoder):
    ids, cross = random_ids(2, 3, 7), decoder.cross_cache(torch.randn(2, 5, 12))
    plain, none = decoder(ids, cross)
    hidden, maps = decoder(ids, cross, weights=True)
    assert none == []
    torch.testing.assert_close(hidden, plain)
    assert [tuple(layer.shape) for layer in maps] == [(2, 3, 7, 5)] * 2
    torch.testing.assert_close(torch.stack(maps).sum(-1), torch.ones(2, 2, 3, 7))


@torch.inference_mode()
def test_cached_steps_give_what_one_pass_gives(decoder: TextDecoder):
    """Rows exchange their histories after every token, as beams do, and an image leaves the batch."""
    images, rows, prompt, length = 3, 4, 2, 8
    region_tokens, opening = torch.randn(images, 5, 12), random_ids(images, 1, prompt)
    cross = decoder.cross_cache(region_tokens)
    cache = KVCache(
        decoder.config, images=images, rows=rows, prompt=prompt, length=length, like=region_tokens
    )
    hidden, _ = decoder(opening, cross, cache=cache)
    texts = opening.expand(-1, rows, -1)
    assert_last(decoder, texts, region_tokens, hidden[:, :, -1:].expand(-1, rows, -1, -1))
    for position in range(prompt, length):
        if position == 5:
            kept = torch.tensor([2, 0])
            region_tokens, texts = region_tokens[kept], texts[kept]
            cross = [(keys[kept], values[kept]) for keys, values in cross]
            cache.keep(kept)
        parents = torch.randint(0, rows, (len(texts), rows))
        texts = texts.gather(1, parents[..., None].expand_as(texts))
        if position > prompt:
            cache.follow(parents)
        ids = random_ids(len(texts), rows, 1)
        texts = torch.cat([texts, ids], dim=-1)
        hidden, _ = decoder(ids, cross, cache=cache)
        assert_last(decoder, texts, region_tokens, hidden)


def assert_last(decoder: TextDecoder, texts: Tensor, region_tokens: Tensor, hidden: Tensor) -> None:
    whole, _ = decoder(texts, decoder.cross_cache(region_tokens))
    torch.testing.assert_close(hidden, whole[:, :, -1:])


def tag_tokens(
    classes: int = 10, features: int = 6, width: int = 4, said: int = 0
) -> tuple[TagTokens, nn.Embedding]:
    torch.manual_seed(0)
    config = RegionConfig(width=width, layers=1, heads=1, mlp_width=4, classes=classes, words=said)
    tags, words = TagTokens(features, config), nn.Embedding(30, width)
    tags.head_words = torch.randint(0, 30, (classes + said,))
    nn.init.normal_(tags.score)
    return tags.eval(), words


@torch.inference_mode()
def test_a_tag_token_is_its_classs_word_and_what_was_learned_of_the_class():
    tags, words = tag_tokens()
    features = torch.zeros(1, 6, 3, 3)
    tags.classifier.weight.zero_()
    tags.classifier.bias.copy_(torch.arange(10) * 50.0)  # class 9 for certain, then 8, 7 and 6
    tokens = tags(tags.find(features), words)
    for index, found in enumerate([9, 8, 7, 6, 9, 9, 9, 9]):
        probability = 1.0 if found == 9 else 0.0
        expected = words.weight[tags.head_words[found]] + tags.class_embedding.weight[found]
        torch.testing.assert_close(tokens[0, index], expected + probability * tags.score)


@torch.inference_mode()
def test_a_thing_in_a_corner_is_the_tag_of_its_quarter_alone():
    tags, _ = tag_tokens()
    tags.classifier.weight.zero_()
    tags.classifier.weight[3, 0] = 1000.0
    tags.classifier.bias.zero_()
    tags.classifier.bias[5] = 10.0  # what a photo shows where nothing else is
    features = torch.zeros(1, 6, 9, 9)
    features[0, 0, 8, 0] = 1.0  # bottom left
    assert tags.find(features).tags[0, 4:].tolist() == [5, 5, 3, 5]


@torch.inference_mode()
def test_word_tags_are_what_captions_of_such_a_photo_say_more_than_of_others():
    tags, words = tag_tokens(said=14)
    nn.init.normal_(tags.word_score)
    shares = torch.tensor([0.9, 0.6, 0.5, *[0.1] * 9, 0.05, -0.2])
    tags.word_prior.copy_(torch.tensor([0.9, 0.8, 0.1, *[0.1] * 11]))  # 0.45, 0.2, 0.45, 0.05, …, 0, -0.25
    tags.word_head.weight.zero_()
    tags.word_head.weight[1, 0] = 1.0
    tags.word_head.bias.copy_(shares)
    features = torch.zeros(2, 6, 3, 3)
    features[1, 0, 0, 0] = 9.0  # a mean of 1: there, every caption has one more of the second word
    found = tags.find(features)
    assert found.tags.shape == (2, 8 + 12)
    assert torch.equal(found.tags[:, :8], tags.find_classes(features).tags)
    assert set(found.tags[0, 8:10].tolist()) == {10, 12}, "words are counted on from the classes"
    assert found.tags[1, 8] == 11
    assert {22, 23}.isdisjoint(found.tags[:, 8:].flatten().tolist())
    torch.testing.assert_close(found.scores[1, 8], torch.tensor(1.6))
    expected = words.weight[tags.head_words[11]] + tags.class_embedding.weight[11] + 1.6 * tags.word_score
    torch.testing.assert_close(tags(found, words)[1, 8], expected)


@torch.inference_mode()
def test_few_words_are_all_tags_and_none_has_a_score_below_0():
    tags, _ = tag_tokens(said=3)
    tags.word_head.weight.zero_()
    tags.word_head.bias.copy_(torch.tensor([0.1, -0.1, 0.2]))
    found = tags.find(torch.zeros(1, 6, 3, 3))
    assert found.tags[0, 8:].tolist() == [12, 10, 11]
    torch.testing.assert_close(found.scores[0, 8:], torch.tensor([0.2, 0.1, 0.0]))


@pytest.mark.parametrize("side", range(2, 13))
@torch.inference_mode()
def test_a_photo_has_eight_tags_whatever_its_grid(side: int):
    tags, words = tag_tokens()
    assert tags(tags.find(torch.randn(2, 6, side, side)), words).shape == (2, 8, 4)


@torch.inference_mode()
def test_grid_tokens_come_row_by_row_and_tags_last():
    model = tiny_checkpoint().model
    encoded = model.encode(torch.randn(2, 3, 96, 96))
    assert encoded.grid == (3, 3)
    assert encoded.region_tokens.shape == (2, 9 + 8, 16)
    assert encoded.grid_slice() == slice(0, 9)
    assert model.regions is not None
    features = torch.randn(1, 24, 2, 3)
    seen: list[Tensor] = []
    model.regions.layers[0].register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    model.regions(features, model.decoder.word_embedding)
    for row in range(2):
        for column in range(3):
            expected = model.regions.project(model.regions.norm(features[0, :, row, column]))
            expected = expected + model.regions.rows.weight[row] + model.regions.columns.weight[column]
            torch.testing.assert_close(seen[0][0, row * 3 + column], expected)


@torch.inference_mode()
def test_a_regions_colours_are_a_histogram_of_its_pixels():
    pixel_values = torch.full((2, 3, 64, 64), -1.0)
    pixel_values[0, 0, :, 32:] = 1  # black on the left, red on the right
    pixel_values[1] = 0  # grey, halfway between the second and the third of 4 shades
    colours = region_colours(pixel_values, (2, 2), 4)
    assert colours.shape == (2, 64, 2, 2)
    assert torch.allclose(colours.sum(1), torch.ones(2, 2, 2))
    black, red = 0, 3 * 16
    assert colours[0, black, :, 0].tolist() == [1, 1]
    assert colours[0, red, :, 1].tolist() == [1, 1]
    assert colours[1, :, 0, 0].nonzero().flatten().tolist() == [21, 22, 25, 26, 37, 38, 41, 42]
    assert photo_features(torch.zeros(2, 5, 2, 2), colours)[0, 5 + red] == pytest.approx(0.5**0.5)


def test_colours_reach_the_region_tokens_and_the_word_tags():
    config = tiny_checkpoint(words=5).model.config
    assert config.regions is not None
    torch.manual_seed(0)
    model = CaptionModel(replace(config, regions=replace(config.regions, colours=2))).eval()
    assert model.regions is not None
    photos = torch.rand(2, 3, 64, 64) * 2 - 1
    features = model.features(photos)
    red, green = (
        region_colours(torch.eye(3)[i].view(1, 3, 1, 1).expand_as(photos), (2, 2), 2) for i in (0, 1)
    )
    tokens = [model.encode(features, start=99, colours=c).region_tokens for c in (red, red, green)]
    assert torch.equal(tokens[0], tokens[1])
    assert not torch.allclose(tokens[0], tokens[2])
    own = region_colours(photos, (2, 2), 2)
    assert torch.equal(
        model.encode(photos).region_tokens, model.encode(features, start=99, colours=own).region_tokens
    )


def test_a_vision_transformers_tokens_pass_through_where_there_is_no_region_encoder():
    torch.manual_seed(0)
    model = CaptionModel(ModelConfig(backbone=VIT, regions=None, decoder=replace(DECODER, region_width=24)))
    pixel_values = torch.randn(2, 3, 32, 32)
    encoded = model.encode(pixel_values)
    assert (encoded.grid, encoded.prefix, encoded.grid_slice()) == ((4, 4), 1, slice(1, 17))
    torch.testing.assert_close(encoded.region_tokens, model.backbone.run(pixel_values))


@torch.inference_mode()
def test_a_region_encoder_takes_a_vision_transformers_patches_without_the_class_token():
    torch.manual_seed(0)
    regions = RegionConfig(width=12, layers=1, heads=2, mlp_width=16)
    model = CaptionModel(ModelConfig(backbone=VIT, regions=regions, decoder=DECODER)).eval()
    pixel_values = torch.randn(2, 3, 32, 32)
    encoded = model.encode(pixel_values)
    assert (encoded.grid, encoded.prefix, encoded.grid_slice()) == ((4, 4), 0, slice(0, 16))
    patches = model.backbone.run(pixel_values)[:, 1:].transpose(1, 2).reshape(2, 24, 4, 4)
    assert model.regions is not None
    expected = model.regions(patches, model.decoder.word_embedding)
    torch.testing.assert_close(encoded.region_tokens, expected)


@torch.inference_mode()
def test_encoding_may_start_from_the_output_of_the_lower_stages():
    model = tiny_checkpoint().model
    pixel_values = torch.randn(2, 3, 64, 64)
    below = model.backbone.run(pixel_values, 0, 6)
    torch.testing.assert_close(
        model.encode(below, start=6).region_tokens, model.encode(pixel_values).region_tokens
    )


def test_only_training_leaves_out_tokens():
    model = CaptionModel(tiny_checkpoint().model.config)
    assert model.regions is not None
    model.regions.token_dropout = 0.5
    model.regions.layers = torch.nn.ModuleList()  # which would mix the tokens
    pixels = torch.randn(2, 3, 64, 64)
    whole = model.eval().encode(pixels).region_tokens
    torch.manual_seed(0)
    some, others = (model.train().encode(pixels).region_tokens for _ in range(2))
    assert some.shape[1] == others.shape[1] == whole.shape[1] / 2
    assert not torch.equal(some, others), "others at each step"
    same = torch.isclose(some[:, :, None], whole[:, None]).all(-1)  # (B, kept, R)
    assert (same.sum(2) >= 1).all()
    assert torch.equal(same[0], same[1]), "the same of all photos"
    model.regions.token_dropout = 0.99
    assert model.encode(pixels).region_tokens.shape[1] == 1


@pytest.mark.parametrize("mirror", [False, True])
@torch.inference_mode()
def test_photos_encode_the_same_however_many_pass_at_once(mirror: bool, monkeypatch: pytest.MonkeyPatch):
    checkpoint = tiny_checkpoint()
    with_mirror(checkpoint.model.eval(), mirror)
    runner = CheckpointRunner(checkpoint)
    noise = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    contents = [runner.prepare(Image.fromarray(pixels)) for pixels in noise]
    photos = [PreparedImage(content, width=64, height=64, file=None) for content in contents]
    together = runner.encode(photos).region_tokens
    for images, group in ((5, 1), (1, 2), (2, 8), (1, 1)):
        monkeypatch.setattr("captioner.model.CPU_IMAGES", images)
        monkeypatch.setattr("captioner.model.CPU_GROUP", group)
        torch.testing.assert_close(runner.encode(photos).region_tokens, together)


@torch.inference_mode()
def test_with_mirror_a_photo_and_its_mirror_image_have_the_same_features(monkeypatch: pytest.MonkeyPatch):
    model = with_mirror(tiny_checkpoint().model.eval(), True)
    x = torch.randn(3, 3, 64, 64)
    plain, mirrored = model.backbone.run(x), model.backbone.run(x.flip(3)).flip(3)
    assert not torch.allclose(plain, mirrored, atol=1e-2)
    torch.testing.assert_close(model.features(x), (plain + mirrored) / 2)
    torch.testing.assert_close(model.features(x.flip(3)).flip(3), model.features(x))
    encoded = model.encode(x).region_tokens
    expected = model.encode(model.features(x), start=model.backbone.num_stages).region_tokens
    torch.testing.assert_close(encoded, expected)
    monkeypatch.setattr(model, "features", None)
    model.train().encode(x)  # a training step looks once


def with_mirror(model: CaptionModel, mirror: bool) -> CaptionModel:
    model.config = replace(model.config, backbone=replace(model.config.backbone, mirror=mirror))
    return model
