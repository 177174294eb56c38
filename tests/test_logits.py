"""The rules and filters, each against a plain reading of what it says, row by row."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from captioner.logits import (
    DecodeRules,
    Grammar,
    LogitsRules,
    bad_word_table,
    bad_words,
    forbid,
    keep_likely,
    penalise_repetition,
    repeated_ngrams,
)
from captioner.options import SearchOptions
from captioner.tokenizer import WordClasses

IMAGES, ROWS, VOCAB = 3, 4, 7
CPU = torch.device("cpu")


def test_what_is_forced_counts_and_ends_a_text():
    options = SearchOptions(max_length=6, min_length=4, no_repeat_ngram_size=1)
    rules = DecodeRules(prompt_ids=(3, 0), eos_id=2, pad_id=1, counted_start=1, forced_end=2)
    apply, scores = LogitsRules(options, rules, CPU), random_scores()
    for length in range(5):  # with the forced first one, the last of these makes six
        found = apply(scores.clone(), torch.full((IMAGES, ROWS, length), 5))
        ends = {2} if length < 2 else set()
        expected = {2} if length == 4 else set(range(VOCAB)) - {0, *[5] * length} - ends
        assert allowed(found) == [expected] * IMAGES * ROWS
    assert found[..., 2].eq(0).all(), "an end that is no choice costs nothing"


def test_an_ngram_may_begin_with_the_start_token_but_that_token_alone_is_none():
    rules = DecodeRules(prompt_ids=(2, 0), eos_id=2, pad_id=1)
    said = torch.tensor([5, 2]).expand(IMAGES, ROWS, -1)  # after 2, 0, as if the start token had been said
    for size, banned in ((1, {0, 2, 5}), (2, {0}), (3, set[int]())):
        apply = LogitsRules(SearchOptions(no_repeat_ngram_size=size), rules, CPU)
        assert allowed(apply(random_scores(), said)) == [set(range(VOCAB)) - banned] * IMAGES * ROWS
    apply = LogitsRules(SearchOptions(no_repeat_ngram_size=1), rules, CPU)
    assert 2 in allowed(apply(random_scores(), said[..., :1]))[0], "a text may end that began with that token"


def random_scores() -> Tensor:
    return torch.randn(IMAGES, ROWS, VOCAB).log_softmax(-1)


def random_history(length: int) -> Tensor:
    return torch.randint(0, VOCAB, (IMAGES, ROWS, length))


def allowed(scores: Tensor) -> list[set[int]]:
    """Of each row the tokens that may come next."""
    return [{i for i, score in enumerate(row) if score > -math.inf} for row in scores.flatten(0, 1).tolist()]


def rows(history: Tensor) -> list[list[int]]:
    found: list[list[int]] = history.flatten(0, 1).tolist()
    return found


@pytest.mark.parametrize("length", [0, 1, 5, 30])
@pytest.mark.parametrize("penalty", [0.5, 1.3])
def test_repetition_penalty(length: int, penalty: float):
    torch.manual_seed(length)
    scores, history = random_scores(), random_history(length)
    found = penalise_repetition(scores, history, penalty).flatten(0, 1)
    for row, text, result in zip(scores.flatten(0, 1), rows(history), found, strict=True):
        expected = [score * penalty if i in text else score for i, score in enumerate(row.tolist())]
        torch.testing.assert_close(result, torch.tensor(expected))


@pytest.mark.parametrize("length", [0, 1, 2, 6, 40])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_no_ngram_twice(size: int, length: int):
    torch.manual_seed(length)
    scores, history = random_scores(), random_history(length)
    found = scores.clone()
    forbid(found, *repeated_ngrams(history, size))
    kept = found > -torch.inf
    torch.testing.assert_close(found[kept], scores[kept])
    for text, tokens in zip(rows(history), allowed(found), strict=True):
        ngrams = {tuple(text[i : i + size]) for i in range(len(text) - size + 1)}
        current = tuple(text[len(text) - size + 1 :]) if len(text) >= size - 1 else None
        assert tokens == {i for i in range(VOCAB) if current is None or (*current, i) not in ngrams}


@pytest.mark.parametrize("length", [0, 1, 2, 3, 20])
def test_bad_words_of_any_number_of_tokens(length: int):
    torch.manual_seed(length)
    words = ((3,), (1, 2), (2, 2), (4, 5, 6), (0, 1, 2, 3))
    scores, history = random_scores(), random_history(length)
    history[0, 0, max(0, length - 2) :] = torch.tensor([4, 5])[: min(2, length)]
    found = scores.clone()
    forbid(found, *bad_words(history, bad_word_table(words, CPU)))
    for text, tokens in zip(rows(history), allowed(found), strict=True):
        completed = {
            word[-1]
            for word in words
            if len(text) >= len(word) - 1 and tuple(text[len(text) - len(word) + 1 :]) == word[:-1]
        }
        assert tokens == set(range(VOCAB)) - completed


@pytest.mark.parametrize("top_k", [0, 1, 3, 7, 100])
@pytest.mark.parametrize("top_p", [0.001, 0.3, 0.6, 0.95, 1.0])
def test_top_k_and_top_p(top_k: int, top_p: float):
    torch.manual_seed(0)
    scores = random_scores()
    for row, tokens in zip(
        rows(scores.exp()), allowed(keep_likely(scores, top_k=top_k, top_p=top_p)), strict=True
    ):
        order = sorted(range(VOCAB), key=lambda i: -row[i])[: top_k or VOCAB]
        total = sum(row[i] for i in order)
        needed, so_far = set(), 0.0
        for i in order:
            if so_far < top_p:
                needed.add(i)
            so_far += row[i] / total
        assert tokens == needed


CLASSES = WordClasses(
    determiners=(3,), modifiers=(4, 5), conjunctions=(6,), closing=(7,), repeatable=(0, 1, 2, 3, 6, 7)
)
WORDS = 12  # those from 8 on are nouns and verbs
THE, RED, OLD, AND, IN, DOG, END = 3, 4, 5, 6, 7, 8, 2


def lacks_its_noun(text: list[int]) -> bool:
    """Whether a text ends in an article and modifiers, up to two of which "and" joins; a plain reading."""
    if not text or text[-1] not in CLASSES.modifiers:
        return False
    before = text[:-1]
    if before[-1:] == [AND] and before[-2:-1] and before[-2] in CLASSES.modifiers:
        before = before[:-2]
    return bool(before) and before[-1] in (THE, *CLASSES.modifiers)


@pytest.mark.parametrize("length", [0, 1, 2, 3, 4, 5, 9])
def test_grammar(length: int):
    torch.manual_seed(length)
    likely = torch.tensor([THE, RED, OLD, AND, IN, DOG, 9, 11])
    history = likely[torch.randint(0, len(likely), (50, 4, length))]
    scores = torch.randn(50, 4, WORDS).log_softmax(-1)
    found = scores.clone()
    forbid(found, *Grammar(CLASSES, END, CPU)(history))
    kept = found > -torch.inf
    torch.testing.assert_close(found[kept], scores[kept])
    for text, tokens in zip(rows(history), allowed(found), strict=True):
        said = {token for token in text if token not in CLASSES.repeatable}
        closed = {IN, END} if lacks_its_noun(text) else set()
        assert tokens == set(range(WORDS)) - said - closed


@pytest.mark.parametrize(
    ("text", "next_tokens"),
    [
        ([THE, RED], {OLD, AND, DOG}),
        ([THE, RED, AND, OLD], {AND, DOG}),
        ([THE, RED, OLD], {AND, DOG}),
        ([THE, RED, DOG], {OLD, AND, IN, END}),
        ([IN, RED, AND, OLD], {AND, IN, DOG, END}),
        ([THE, DOG, RED], {OLD, AND, IN, END}),
    ],
)
def test_grammar_by_example(text: list[int], next_tokens: set[int]):
    ids = DecodeRules(prompt_ids=(1,), eos_id=END, pad_id=0, classes=CLASSES)
    scores = torch.zeros(1, 1, WORDS)
    (found,) = allowed(LogitsRules(SearchOptions(), ids, CPU)(scores, torch.tensor([[text]])))
    assert found & {OLD, AND, IN, DOG, END} - {RED} == next_tokens


def rules(prompt_ids: tuple[int, ...] = (1,), bad_words: Any = (), **options: Any) -> LogitsRules:
    ids = DecodeRules(prompt_ids=prompt_ids, eos_id=2, pad_id=0, bad_words_ids=bad_words)
    return LogitsRules(SearchOptions(**options), ids, CPU)


def test_without_options_there_are_no_rules():
    scores = random_scores()
    assert rules()(scores, random_history(3)) is scores


def test_the_end_waits_for_min_length_which_counts_it():
    scores = random_scores()
    for length in range(6):
        found = allowed(rules(min_length=4)(scores.clone(), random_history(length)))
        assert all((2 in tokens) == (length + 1 >= 4) for tokens in found)
        assert all(tokens >= set(range(VOCAB)) - {2} for tokens in found)


def test_the_prompt_counts_as_text_but_its_start_token_does_not():
    scores = random_scores()
    found = rules(prompt_ids=(1, 5), no_repeat_ngram_size=1)(scores.clone(), torch.full((IMAGES, ROWS, 1), 3))
    assert allowed(found) == [set(range(VOCAB)) - {5, 3}] * IMAGES * ROWS
    found = rules(prompt_ids=(1, 5), bad_words=((5, 4),))(scores.clone(), random_history(0))
    assert allowed(found) == [set(range(VOCAB)) - {4}] * IMAGES * ROWS
    found = rules(prompt_ids=(1, 5), repetition_penalty=2.0)(scores, random_history(0))
    assert ((found != scores).nonzero()[:, 2] == 5).all()


def test_where_everything_is_forbidden_the_text_ends():
    scores = random_scores()
    everything = tuple((i,) for i in range(VOCAB))
    found = rules(bad_words=everything, min_length=9)(scores.clone(), random_history(1))
    assert allowed(found) == [{2}] * IMAGES * ROWS
    torch.testing.assert_close(found[..., 2], scores[..., 2])


def test_rules_leave_the_log_probs_of_all_other_tokens_alone():
    scores, history = random_scores(), random_history(2)
    before = scores.clone()
    found = rules(bad_words=((3,),), no_repeat_ngram_size=1, min_length=9)(scores, history)
    kept = found > -torch.inf
    assert kept.any()
    torch.testing.assert_close(scores[kept], before[kept], rtol=0, atol=0)
    scores = before.clone()
    rules(bad_words=((3,),), repetition_penalty=2.0)(scores, history)
    torch.testing.assert_close(scores, before, rtol=0, atol=0)
