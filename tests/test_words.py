"""Word tags: which words they can be, and a head that is honest about photos it was fitted to."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from captioner.regions import RegionConfig, TagTokens
from captioner.tokenizer import train_word_tokenizer
from captioner.training import words
from captioner.training.words import caption_words, fit_word_head


def test_words_of_many_photos_that_tell_something_can_be_tags(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(words, "FEWEST_PHOTOS", 2)
    captions = [["a dog , 2 dogs and a cat", "a dog"], ["the dog and 2 dogs , running"], ["a zebra running"]]
    tokenizer = train_word_tokenizer([text for photo in captions for text in photo], min_count=2)
    assert caption_words(captions, tokenizer) == ["dog", "dogs", "running"], "a cat is in one photo only"


def tag_tokens(features: int, *head_words: int) -> TagTokens:
    config = RegionConfig(width=4, layers=1, heads=1, mlp_width=4, classes=3, words=len(head_words))
    tags = TagTokens(features, config)
    tags.head_words[3:] = torch.tensor(head_words)
    return tags


def random_sets() -> tuple[list[Tensor], list[list[list[list[int]]]]]:
    """20 main photos with two captions each and 10 others with one, of the tokens 5 to 9."""
    torch.manual_seed(0)
    features = [torch.randn(20, 8) * torch.linspace(0.1, 5, 8) + 2, torch.randn(10, 8)]
    counts = [[2] * 20, [1] * 10]
    captions = [
        [[torch.randint(5, 10, (3,)).tolist() for _ in range(count)] for count in group] for group in counts
    ]
    return features, captions


@torch.no_grad()
def test_each_photos_tags_are_those_of_a_fit_without_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(words, "RIDGE", 0.05)  # so that a photo has much to say of its own prediction
    monkeypatch.setattr(words, "WORDS_AT_ONCE", 2)
    features, captions = random_sets()
    tags = tag_tokens(8, 5, 7, 8)
    main, extra = map(tags.likely_words, fit_word_head(tags, features, captions))
    assert (main.tags.shape, extra.tags.shape) == ((20, 3), (10, 3))
    off = biased = 0.0
    for photo in range(5):
        rest = [index for index in range(20) if index != photo]
        without = tag_tokens(8, 5, 7, 8)
        fit_word_head(
            without, [features[0][rest], features[1]], [[captions[0][i] for i in rest], captions[1]]
        )
        found = main.scores[photo, main.tags[photo].argsort()]
        off += float((found - without.word_head(features[0][photo]).clamp(min=0)).abs().sum())
        biased += float((found - tags.word_head(features[0][photo]).clamp(min=0)).abs().sum())
    assert off < 0.2 * biased, "all that is left is that mean and scale know of the photo"


@torch.no_grad()
def test_the_head_tells_how_many_captions_say_a_word():
    torch.manual_seed(0)
    features = torch.randn(200, 3)
    captions = [[[5, 6], [5, 7] if x > 0 else [6, 7]] for x in features[:, 0].tolist()]
    tags = tag_tokens(3, 5, 6, 8)
    fit_word_head(tags, [features], [captions])
    expected = torch.tensor([0.5 + 0.5 * float((features[:, 0] > 0).float().mean()), 0, 0])
    expected[1] = 1.5 - expected[0]
    torch.testing.assert_close(tags.word_prior, expected)
    much, little = tags.word_head(torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]])).T[0]
    assert much > 0.8 > 0.7 > little
    assert tags.word_head(torch.randn(5, 3))[:, 2].abs().max() < 1e-6, "no caption says it"


@torch.no_grad()
def test_an_encoder_that_knows_the_photos_by_heart_leaves_the_answers_to_the_one_before():
    features, captions = random_sets()
    tags, before = tag_tokens(8, 5, 7, 8), tag_tokens(8, 5, 7, 8)
    earlier = [torch.randn(20, 3), torch.randn(10, 3)]
    answers = fit_word_head(tags, features, captions, earlier=earlier)
    alone = fit_word_head(before, features, captions)
    assert torch.equal(tags.word_head.weight, before.word_head.weight), "the head reads the encoder of today"
    narrow = tag_tokens(3, 5, 7, 8)
    for ours, theirs, own in zip(answers, fit_word_head(narrow, earlier, captions), alone, strict=True):
        assert torch.equal(ours, theirs)
        assert not torch.allclose(ours, own)


def test_photos_of_further_sets_count_as_the_main_ones_if_many_people_described_them():
    features = [torch.randn(10, 2), torch.randn(10, 2)]
    many, few = [[[[5]] * 4] * 10, [[[6]] * 4] * 10], [[[[5]] * 4] * 10, [[[6]]] * 10]
    for captions, prior in ((many, 0.5), (few, 0.3 / 1.3)):
        tags = tag_tokens(2, 6)
        fit_word_head(tags, features, captions)
        torch.testing.assert_close(tags.word_prior, torch.tensor([prior]))
