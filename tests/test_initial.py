"""The untrained model: its tag words."""

from __future__ import annotations

from importlib import resources

import torch
from timm.data import ImageNetInfo
from tiny import tiny_checkpoint

from captioner.decoder import DecoderConfig
from captioner.model import CaptionModel, ModelConfig
from captioner.regions import RegionConfig, Tags
from captioner.tokenizer import train_word_tokenizer
from captioner.training.initial import class_words, favour_copying, tag_word_ids

INFO = ImageNetInfo("imagenet-1k")
NAMES = [INFO.index_to_description(index).lower().split(", ")[0] for index in range(1000)]


def test_each_class_has_its_everyday_word():
    lines = resources.files("captioner.training").joinpath("imagenet_words.txt").read_text("utf-8")
    assert [line.split("\t")[0] for line in lines.splitlines()] == NAMES
    words = dict(zip(NAMES, class_words(), strict=True))
    assert (words["espresso"], words["tabby"], words["zebra"]) == ("coffee", "cat", "zebra")
    assert sum(word == "" for word in words.values()) < 50


def test_tag_words_are_in_the_vocabulary_though_no_caption_says_them():
    words = class_words()
    tokenizer = train_word_tokenizer(["a dog"] * 4, words={word for word in words if word})
    ids = dict(zip(NAMES, tag_word_ids(tokenizer, words).tolist(), strict=True))
    assert tokenizer.decode([ids["espresso"]]) == "coffee"
    assert tokenizer.decode([ids["beagle"]]) == "dog"
    assert ids["guillotine"] == tokenizer.config.unk_id


@torch.no_grad()  # inference mode does not count changes of weights
def test_an_untrained_decoder_says_what_tags_say():
    torch.manual_seed(0)
    regions = RegionConfig(width=96, layers=1, heads=6, mlp_width=96, classes=10)
    decoder = DecoderConfig(
        vocab_size=20, width=96, layers=2, heads=6, mlp_width=96, max_positions=8, region_width=96
    )
    model = CaptionModel(
        ModelConfig(backbone=tiny_checkpoint().model.config.backbone, regions=regions, decoder=decoder)
    ).eval()
    model.regions.tags.head_words = words = torch.arange(10, 20)
    tags = Tags(torch.arange(10)[:, None].expand(10, 8), torch.full((10, 8), 0.5))  # a photo of each class

    def chance_of_the_tags_word() -> float:
        tokens = model.regions(torch.randn(10, 24, 2, 2), model.decoder.word_embedding, tags=tags)
        hidden, _ = model.decoder(torch.ones(10, 1, 1, dtype=torch.int64), model.decoder.cross_cache(tokens))
        return float(model.decoder.logits(hidden)[:, 0, 0, words].softmax(-1).diagonal().mean())

    assert chance_of_the_tags_word() < 0.15
    favour_copying(model)
    assert chance_of_the_tags_word() > 0.4
