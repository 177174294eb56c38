"""Rewards of captions: whose are rewarded, for what, and what they lose."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from captioner.tokenizer import train_word_tokenizer
from captioner.training.consensus import expected_from, leave_one_out
from captioner.training.options import TrainingOptions
from captioner.training.rewards import NARRATIVE_WEIGHT, References, Rewards, consensus_sets

TEXTS = (
    "a dog runs on the beach",
    "two dogs in the grass",
    "a man rides a red bicycle",
    "there are trees and benches in the park",
)
WORDS = train_word_tokenizer(TEXTS, min_count=1, words={"bench", "woman"})


def references(*photos: list[str], narratives: bool = False) -> References:
    return References([[WORDS.encode(text) for text in texts] for texts in photos], narratives)


BEACH, GRASS, MAN, PARK = TEXTS
MAIN = references([BEACH], [GRASS])
MANY = references([GRASS] * 4, [MAN])
TOLD = references([PARK], narratives=True)


def worth(photo: tuple[int, int], text: str, *, alike: Any = (), texts: Any = (), **options: Any) -> float:
    rewards = Rewards([MAIN, MANY, TOLD], WORDS, TrainingOptions(**options), alike=alike, texts=texts)
    (reward,) = rewards(photo, [(*WORDS.encode(text), WORDS.config.eos_id)])
    return reward


def test_photos_of_the_main_set_and_those_with_many_captions_are_rewarded():
    rewards = Rewards([MAIN, MANY, TOLD], WORDS, TrainingOptions())
    assert [rewards.covers(photo) for photo in ((0, 0), (1, 0), (1, 1), (2, 0))] == [True, True, False, True]
    assert consensus_sets([MAIN, MANY, TOLD]) == [0, 1]
    assert consensus_sets([MAIN, references([MAN], [BEACH]), TOLD]) == [0]


def test_content_words_that_some_reference_says_are_right_in_any_number():
    only = {"content_precision": 0.4}

    def gain(photo: tuple[int, int], text: str, **options: Any) -> float:
        return worth(photo, text, **options) - worth(photo, text)

    assert gain((0, 1), "a dog in the grass", **only) == pytest.approx(0.4)
    assert gain((0, 1), "a dog on the beach", **only) == pytest.approx(0.2)
    assert gain((0, 1), "a man", **only) == pytest.approx(0)
    assert gain((0, 1), "there in the", **only) == 0, "which says nothing, right or wrong"
    assert worth((2, 0), "a man and a bench", **only) == pytest.approx(0.4 * NARRATIVE_WEIGHT * 0.5), (
        "a narrative is no caption to be like"
    )
    assert gain((0, 1), "a man", people_penalty=0.5) == pytest.approx(-0.5)
    assert gain((1, 1), "a woman", people_penalty=0.5) == 0, "there is somebody"
    assert gain((0, 1), "a dog and two dogs", repeat_penalty=0.3) == pytest.approx(-0.3)
    assert gain((0, 1), "the dog in the grass", repeat_penalty=0.3) == 0


def test_texts_make_their_words_less_worth_but_for_the_main_set():
    texts = [[WORDS.encode(text) for text in [GRASS] * 4]] * 5
    few = [[WORDS.encode(GRASS)]] * 5
    half = "two dogs on the beach"
    assert worth((0, 1), half, texts=texts) == worth((0, 1), half)
    assert worth((1, 0), half, texts=texts) != worth((1, 0), half)
    assert worth((1, 0), half, texts=few) == worth((1, 0), half), "which tells little"


def test_a_consensus_is_of_all_photos_that_many_described():
    nobody, third = torch.zeros(2, 4), torch.zeros(1, 4)
    third[0, 3] = 1.0  # the narrative's photo looks like the man's
    alike = [nobody, nobody, third]
    gain = worth((2, 0), MAN, alike=alike, consensus=2.0)
    assert 0.8 < gain / (10 * 2.0) <= 1.0001, "all but the end"
    assert worth((2, 0), "dogs", alike=alike, consensus=2.0) == 0
    assert worth((0, 0), MAN, alike=alike, consensus=2.0) == worth((0, 0), MAN), "expected there, not here"


def test_photos_that_are_not_among_the_known_ones_follow_from_those_like_them():
    torch.manual_seed(0)
    features, known = torch.randn(6, 8), torch.randn(6)
    weights = expected_from(features[:2], features, ridge=1e-6)
    torch.testing.assert_close(weights @ known, known[:2], rtol=1e-3, atol=1e-3)
    new = expected_from(torch.randn(3, 8), features)
    torch.testing.assert_close(new.sum(1), torch.ones(3))
    assert torch.allclose(leave_one_out(features).sum(1), torch.ones(6))
