"""Tag swapping: the photo's tags and all its captions speak of the new thing, and nothing else changes."""

from __future__ import annotations

import torch
from torch import Tensor

from captioner.regions import RegionConfig, TagTokens
from captioner.tokenizer import train_word_tokenizer
from captioner.training.labels import IGNORE, Captions
from captioner.training.swap import TagSwap

WORDS = train_word_tokenizer(["a dog runs after an old man and another dog"], min_count=1, words={"owl"})
DOG, OWL, UNKNOWN = WORDS.token_id("dog"), WORDS.token_id("owl"), WORDS.config.unk_id
TAGS = TagTokens(1, RegionConfig(width=4, layers=1, heads=1, mlp_width=4, classes=4))
TAGS.head_words = torch.tensor([DOG, DOG, OWL, UNKNOWN])  # two breeds, an owl, and a class without a word


def batch(*photos: list[str]) -> Captions:
    captions = [[[1, *WORDS.encode(text), 2] for text in texts] for texts in photos]
    longest = max(len(ids) for texts in captions for ids in texts)
    ids = torch.tensor([[ids + [0] * (longest - len(ids)) for ids in texts] for texts in captions])
    targets = ids[:, :, 1:].clone()
    targets[targets == 0] = IGNORE
    return Captions(ids[:, :, :-1], targets)


def texts(ids: Tensor) -> list[list[str]]:
    return [[WORDS.decode([i for i in row if i > 3]) for row in photo] for photo in ids.tolist()]


def swap(share: float, before: Captions, classes: list[list[int]]) -> tuple[Captions, list[list[int]]]:
    torch.manual_seed(3)  # whose first class drawn for a dog is not another dog
    after, swapped = TagSwap(TAGS, WORDS, share)(before, torch.tensor(classes))
    return after, swapped.tolist()


def test_tags_and_captions_are_swapped_together_with_the_article():
    before = batch(["a dog runs", "an old dog runs after another dog", "an old man runs"])
    after, classes = swap(1.0, before, [[0, 3, 1, 0]])
    assert classes == [[2, 3, 2, 2]], "both breeds are the one dog that captions speak of"
    expected = [["an owl runs", "an old owl runs after another owl", "an old man runs"]]
    assert texts(after.input_ids) == texts(after.targets) == expected
    assert torch.equal(after.targets == IGNORE, before.targets == IGNORE)
    assert texts(before.input_ids)[0][0] == "a dog runs", "the batch that came in is as it was"


def test_what_captions_do_not_say_is_not_swapped():
    once, none, both = ["a dog runs", "a man"], ["a man", "a man"], ["a dog", "a dog and an owl"]
    unknown = ["a zebra", "a zebra"]
    before = batch(once, none, both, unknown)
    tags = [[0, 2], [0, 2], [0, 3], [3, 3]]
    after, classes = swap(1.0, before, tags)
    assert (texts(after.input_ids), classes) == (texts(before.input_ids), tags)


def test_only_classes_names_are_swapped_and_in_word_tags_too():
    tags = TagTokens(1, RegionConfig(width=4, layers=1, heads=1, mlp_width=4, classes=2, words=2))
    man = WORDS.token_id("man")
    tags.head_words = torch.tensor([DOG, OWL, DOG, man])
    before = batch(["a dog and a man", "a man and a dog"], ["a man", "a man"])
    torch.manual_seed(3)  # whose first class drawn is the owl
    classes = [[0] * 8 + [2, 3]] * 2
    after, swapped = TagSwap(tags, WORDS, 1.0)(before, torch.tensor(classes))
    assert swapped.tolist() == [[1] * 8 + [1, 3], classes[1]], "man is a word that no class has"
    assert texts(after.targets) == [["an owl and a man", "a man and an owl"], ["a man", "a man"]]


def test_one_caption_is_enough_where_there_is_but_one():
    after, classes = swap(1.0, batch(["a dog runs"]), [[0]])
    assert (texts(after.targets), classes) == ([["an owl runs"]], [[2]])


def test_the_share_is_of_the_photos():
    before = batch(*[["a dog"]] * 400)
    _, none = swap(0.0, before, [[0]] * 400)
    assert none == [[0]] * 400
    _, some = swap(0.5, before, [[0]] * 400)
    assert 40 < some.count([2]) < 100, "half of them are tried, of which a third meet the owl"
