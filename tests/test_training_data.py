"""Batches: rare photos come more often, and photos with few captions stand beside those with many."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_checkpoint

from captioner.training.cache import ActivationCache
from captioner.training.data import CaptionSet, rarity
from captioner.training.labels import IGNORE, Labels


def caption_set(weights: list[float] | None) -> CaptionSet:
    captions = [[[1, 5, 2]]] * 4
    array = None if weights is None else np.array(weights)
    return CaptionSet(ActivationCache(Path(), "x", 1), captions, captions, 2, array)


def test_photos_weigh_as_their_words_are_rare():
    dog, sofa, zebra, function_word = 10, 11, 12, 5
    dogs, sofas = [[[1, function_word, dog, 2]]] * 10, [[[1, sofa, sofa, 2], [1, dog, 2]]] * 8
    weights = rarity([*dogs, *sofas, [[1, zebra, zebra, 2]]], {dog, sofa, zebra})
    assert weights.mean() == pytest.approx(1)
    assert weights[18] > weights[10] > weights[0]
    assert weights[18] / weights[0] == pytest.approx(4), "no more than twice, no less than half"
    assert rarity([[[1, 2]], [[1, 5, 2]]], {dog}).tolist() == [1, 1], "nothing tells them apart"


def test_each_pass_shows_photos_as_often_as_they_weigh():
    group = caption_set([0.5, 0.5, 1.0, 2.0])
    counts: Counter[int] = Counter()
    for seed in range(200):
        order = group.order(random.Random(seed))
        assert len(order) == 4
        seen = Counter(order)
        assert (seen[2], seen[3]) in {(1, 2), (1, 1), (2, 2), (1, 3), (2, 1)}
        counts.update(order)
    assert counts[2] == pytest.approx(200, abs=20)
    assert counts[3] == pytest.approx(400, abs=40)
    assert counts[0] == pytest.approx(100, abs=40)
    assert sorted(caption_set(None).order(random.Random(0))) == [0, 1, 2, 3]


def test_photos_with_fewer_captions_have_rows_without_one():
    labels = Labels(tiny_checkpoint().tokenizer, 20)
    captions = labels.pack([[[1, 5, 6, 2], [1, 7, 2]], [[1, 3, 2]]])
    assert captions.input_ids.tolist() == [[[1, 5, 6], [1, 7, 2]], [[1, 3, 2], [0, 0, 0]]]
    assert captions.targets[1].tolist() == [[IGNORE, 2, IGNORE], [IGNORE] * 3]
    assert captions.number == 3
    assert captions.pick([1]).number == 1
