"""Captions without photos: what is read, and tags that photos of them could have."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import torch

from captioner.errors import DataError
from captioner.regions import RegionConfig, Tags, TagTokens
from captioner.tokenizer import train_word_tokenizer
from captioner.training.labels import Labels
from captioner.training.text import KnownPhotos, TextLines, read_texts

WORDS = train_word_tokenizer(["a dog runs on the beach with a ball", "a cat on a sofa"], min_count=1)
DOG, CAT, BALL, SOFA, UNKNOWN = (WORDS.token_id(word) for word in ("dog", "cat", "ball", "sofa", "<unk>"))
PHOTOS = 40


def tag_tokens() -> TagTokens:
    """Three classes: a dog, a cat and one without a word; and four words."""
    config = RegionConfig(width=4, layers=1, heads=1, mlp_width=4, classes=3, words=4)
    tags = TagTokens(2, config)
    tags.head_words = torch.tensor([DOG, CAT, UNKNOWN, DOG, CAT, BALL, SOFA])
    return tags


def known_photos() -> KnownPhotos:
    """Half of dogs, half of cats on sofas; what a word's answer is tells whether captions say it."""
    said = torch.zeros(PHOTOS, 4)
    said[::2, 0] = 1.0  # dog
    said[1::2, 1] = said[1::2, 3] = 1.0  # cat, sofa
    said[:12, 2] = 0.2  # a ball, which few speak of
    answers = torch.where(said >= 0.5, 0.8, torch.where(said > 0, 0.3, 0.01))
    answers += torch.arange(PHOTOS)[:, None] * 1e-4
    classes = torch.full((PHOTOS, 8), 2)
    classes[::2, 0] = 0  # each dog is found, and no cat
    return KnownPhotos(said, answers, Tags(classes, torch.full((PHOTOS, 8), 0.4)))


def text_lines(*lines: tuple[str, ...]) -> TextLines:
    return TextLines(lines, known_photos(), tag_tokens(), Labels(WORDS, 20))


def shares(tags: Tags) -> torch.Tensor:
    """The made-up answers, in the order of the words."""
    words = tags.tags[:, 8:]
    assert words.sort(1).values.tolist() == [[3, 4, 5, 6]] * len(words)
    return tags.scores[:, 8:].gather(1, words.argsort(1))


def test_tags_are_as_the_regression_would_have_them():
    lines = text_lines(*[("a dog with a ball",) * 4] * 4, *[("a cat",) * 4] * 4)
    tags, captions = next(lines.batches(8, most=3, seed=0))
    assert tags.tags.shape == (8, 12)
    assert captions.input_ids.shape[:2] == (8, 3)
    for row, ids in zip(shares(tags), captions.input_ids.tolist(), strict=True):
        dog, cat, ball, sofa = row.tolist()
        if DOG in ids[0]:
            assert dog > 0.7 > 0.1 > max(cat, sofa)
            assert 0.2 < ball < 0.4, "few captions speak of one, so that all answers there are are unsure"
        else:
            assert cat > 0.7 > 0.1 > max(dog, ball, sofa)


def test_one_caption_does_not_tell_how_many_people_would_say_a_word():
    (row,) = shares(next(text_lines(("a ball",)).batches(1, most=1, seed=0))[0])
    assert 0.2 < row[2] < 0.4


def test_classes_of_what_captions_name_are_found_as_often_as_in_photos():
    lines = text_lines(*[("a cat and a dog",) * 3] * 200)
    tags, _ = next(lines.batches(200, most=1, seed=0))
    dogs, cats = ((tags.tags[:, :8] == number).any(1).float().mean() for number in (0, 1))
    assert dogs > 0.9
    assert cats < 0.2
    scores = tags.scores[:, :8]
    assert torch.allclose(scores, torch.tensor(0.4)), "as the classifier has them"


def test_lines_come_in_random_order_all_before_any_comes_again():
    lines = text_lines(("a dog",), ("a cat",), ("a ball",), ("a sofa",))

    def drawn(seed: int) -> list[int]:
        stream = lines.batches(2, most=1, seed=seed)
        return [ids[0][2] for _ in range(4) for ids in next(stream)[1].input_ids.tolist()]

    first = drawn(0)
    assert sorted(first[:4]) == sorted(first[4:]) == sorted([DOG, CAT, BALL, SOFA])
    assert first == drawn(0)
    assert any(first != drawn(seed) for seed in range(1, 4))


def test_texts_are_read_gzipped_or_not(tmp_path: Path):
    content = '{"source": "x", "captions": ["a dog", "two dogs"]}\n{"captions": ["a cat"]}\n'
    (tmp_path / "a.jsonl").write_text(content)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(content.encode()))
    expected = [("a dog", "two dogs"), ("a cat",)]
    assert read_texts(tmp_path / "a.jsonl") == read_texts(tmp_path / "a.jsonl.gz") == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"captions": []}', "line 1 is not"),
        ('{"captions": ["a"]}\n{"captions": [3]}', "line 2 is not"),
        ('{"captions": "a dog"}', "line 1 is not"),
        ("[1]", "a line is not JSON with"),
        ("a dog", "a line is not JSON with"),
        ("", "holds no captions"),
        (None, "cannot be read"),
    ],
)
def test_what_holds_no_captions_is_refused(content: str | None, message: str, tmp_path: Path):
    if content is not None:
        (tmp_path / "x.jsonl").write_text(content)
    with pytest.raises(DataError, match=message):
        read_texts(tmp_path / "x.jsonl")
    (tmp_path / "x.jsonl.gz").write_text("no gzip")
    with pytest.raises(DataError, match="cannot be read"):
        read_texts(tmp_path / "x.jsonl.gz")
