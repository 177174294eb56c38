"""Text to token ids and back, and which tokens make up a word, in three kinds of vocabulary."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface import bert_tokenizer, gpt2_tokenizer
from tiny import SENTENCES

from captioner.tokenizer import CaptionTokenizer, TokenizerConfig, TokenSpan, train_word_tokenizer

WORDS = train_word_tokenizer(SENTENCES, min_count=1)


def wordpiece() -> CaptionTokenizer:
    theirs = bert_tokenizer()
    return CaptionTokenizer(
        theirs.backend_tokenizer, TokenizerConfig(start_ids=(2,), eos_id=3, pad_id=0, unk_id=1, never_ids=())
    )


def byte_pairs() -> CaptionTokenizer:
    return CaptionTokenizer(
        gpt2_tokenizer().backend_tokenizer,
        TokenizerConfig(start_ids=(0,), eos_id=0, pad_id=0, unk_id=-1, never_ids=()),
    )


KINDS = {"words": WORDS, "word pieces": wordpiece(), "byte pairs": byte_pairs()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ["a brown dog runs", "the green grass", "on the left side of a blue sofa"])
def test_text_comes_back_as_it_went_in(kind: str, text: str):
    tokenizer = KINDS[kind]
    end = tokenizer.config.eos_id
    assert tokenizer.decode([*tokenizer.encode(text), end]) == text


@pytest.mark.parametrize("kind", KINDS)
def test_every_token_of_a_caption_belongs_to_the_word_it_spells(kind: str):
    tokenizer = KINDS[kind]
    text = "a brown dog runs on the beach"
    ids = [*tokenizer.encode(text), tokenizer.config.eos_id]
    spans = tokenizer.words(ids)
    assert [span.text for span in spans] == text.split()
    assert [span.start for span in spans] == [0, *(span.stop for span in spans[:-1])], "no token is left out"
    assert spans[-1].stop == len(ids) - 1, "the end token belongs to no word"
    for span in spans:
        assert tokenizer.decode(ids[: span.stop]).endswith(span.text)


def test_a_clitic_is_part_of_its_word():
    ids = WORDS.encode("the man's white cat")
    assert len(ids) == 5
    assert WORDS.decode(ids) == "the man's white cat"
    assert WORDS.words(ids)[1] == TokenSpan("man's", 1, 3)


def test_word_pieces_are_part_of_their_word():
    tokenizer = wordpiece()
    ids = tokenizer.encode("a dogling walked")
    assert [tokenizer._tokenizer.id_to_token(i) for i in ids] == [
        "a", "dog", "##l", "##ing", "w", "##a", "##l", "##k", "##ed",
    ]  # fmt: skip
    assert tokenizer.words(ids) == [
        TokenSpan("a", 0, 1),
        TokenSpan("dogling", 1, 4),
        TokenSpan("walked", 4, 9),
    ]


def test_punctuation_stands_with_the_word_before_it():
    tokenizer = wordpiece()
    ids = tokenizer.encode("a dog, a cat.")
    assert tokenizer.decode(ids) == "a dog, a cat."
    assert [span.text for span in tokenizer.words(ids)] == ["a", "dog,", "a", "cat."]


@pytest.mark.parametrize("text", ["a café on the beach", "a 😀 on the beach", "naïve 日本 dog"])
def test_a_letter_of_several_byte_tokens_loses_none_of_them(text: str):
    tokenizer = byte_pairs()
    ids = tokenizer.encode(text)
    spans = tokenizer.words(ids)
    assert [span.text for span in spans] == text.split()
    assert [span.start for span in spans] == [0, *(span.stop for span in spans[:-1])]
    assert spans[-1].stop == len(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_a_caption_without_words_has_none(kind: str):
    tokenizer = KINDS[kind]
    assert tokenizer.words([tokenizer.config.eos_id]) == []
    assert tokenizer.words([]) == []
    assert tokenizer.decode([tokenizer.config.eos_id]) == ""


@pytest.mark.parametrize("kind", ["words", "word pieces"])
def test_an_unknown_word_is_the_unknown_token(kind: str):
    tokenizer = KINDS[kind]
    assert tokenizer.config.unk_id in tokenizer.encode("a 象 runs")


def test_the_config_goes_to_json_and_back():
    config = TokenizerConfig(start_ids=(5, 6), eos_id=7, pad_id=8, unk_id=-1, never_ids=())
    assert TokenizerConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_saved_tokenizer_is_the_same(tmp_path: Path):
    WORDS.save(tmp_path / "tokenizer.json")
    again = CaptionTokenizer.from_file(tmp_path / "tokenizer.json", WORDS.config)
    assert again.vocab_size == WORDS.vocab_size
    text = "The MAN’s white cat, doesn't it?"
    assert again.encode(text) == WORDS.encode(text)
    assert again.words(again.encode("the man's cat")) == WORDS.words(WORDS.encode("the man's cat"))


def test_training_keeps_words_that_occur_often_enough_most_frequent_first():
    tokenizer = train_word_tokenizer(["a dog", "a dog", "a cat", "The dog!"], min_count=2)
    assert [tokenizer.token_id(word) for word in ("<pad>", "<bos>", "<eos>", "<unk>")] == [0, 1, 2, 3]
    assert [tokenizer.token_id(word) for word in ("a", "dog")] == [4, 5], "the tie goes by the alphabet"
    assert tokenizer.token_id("cat") is None
    assert tokenizer.vocab_size == 6
    assert tokenizer.encode("A DOG, the cat.") == [4, 5, 3, 3]


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("  A  Dog ,  runs . ", "a dog runs"),
        ("a t-shirt - blue -", "a t-shirt blue"),
        ("'quoted' dogs' cats", "quoted dogs cats"),
        ("the dog 's ball", "the dog's ball"),
        ("a “smart” ﬁsh", "a smart fish"),
        ("don't they're", "don't they're"),
        ("5 o'clock", "5 o'clock"),
    ],
)
def test_training_text_is_lower_case_without_punctuation(text: str, plain: str):
    tokenizer = train_word_tokenizer([text], min_count=1)
    assert tokenizer.decode(tokenizer.encode(text)) == plain
