"""The decode loop against known answers: enumeration, a plainly written search, transformers, batches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from decoding import (
    CLOSE,
    END,
    PENALTIES,
    PROMPT,
    RULES,
    SEARCHES,
    VARIANTS,
    Model,
    all_texts,
    assert_alike,
    assert_same,
    naive_beam_search,
    random_decoder,
    random_regions,
)

from captioner.decoder import TextDecoder
from captioner.generation import DecodeRules, Hypothesis, SearchOptions, generate, start_search, stream


@pytest.fixture(params=VARIANTS)
def decoder(request: pytest.FixtureRequest) -> TextDecoder:
    return random_decoder(VARIANTS[request.param])


def test_greedy_search_is_the_best_token_again_and_again(decoder: TextDecoder):
    region_tokens = random_regions(6)
    found = generate(decoder, region_tokens, SearchOptions(num_beams=1, max_length=12), RULES)
    for image, (hypothesis,) in zip(region_tokens, found, strict=True):
        model, text = Model(decoder, image), ()
        while len(text) < 12 and text[-1:] != (END,):
            logprobs = model(text)
            text += (logprobs.index(max(logprobs)),)
        assert_same([hypothesis], [(sum(model.logprobs(text)) / len(text), text)])
        assert hypothesis.logprobs == pytest.approx(model.logprobs(text), **CLOSE)
        assert hypothesis.finished == (text[-1] == END)
    assert len({hypothesis.token_ids for (hypothesis,) in found}) > 3


@pytest.mark.parametrize("length_penalty", PENALTIES)
@pytest.mark.parametrize(
    ("vocab", "max_length", "min_length"), [(5, 3, 0), (6, 3, 3), (4, 3, 2), (3, 6, 0), (3, 6, 4)]
)
def test_with_enough_beams_it_finds_the_best_of_all_texts(
    vocab: int, max_length: int, min_length: int, length_penalty: float
):
    """64 beams hold all beginnings, so the 64 best captions are exact, in order and with their scores."""
    decoder = random_decoder(vocab_size=vocab, end=0.5)
    rules = DecodeRules(prompt_ids=(1, 0), eos_id=END, pad_id=0)
    options = SearchOptions(
        num_beams=64,
        alternatives=63,
        max_length=max_length,
        min_length=min_length,
        length_penalty=length_penalty,
    )
    region_tokens = random_regions(3)
    for image, hypotheses in zip(
        region_tokens, generate(decoder, region_tokens, options, rules), strict=True
    ):
        model = Model(decoder, image, rules.prompt_ids)
        scored = [
            (sum(model.logprobs(text)) / len(text) ** length_penalty, text)
            for text in all_texts(vocab, max_length, min_length)
        ]
        assert_same(hypotheses, sorted(scored, reverse=True)[:64])
        for hypothesis in hypotheses:
            assert hypothesis.logprobs == pytest.approx(model.logprobs(hypothesis.token_ids), **CLOSE)
            assert hypothesis.finished == (hypothesis.token_ids[-1] == END)


@pytest.mark.parametrize("length_penalty", PENALTIES)
@pytest.mark.parametrize(("num_beams", "alternatives"), [(2, 0), (2, 1), (3, 0), (5, 0), (5, 2), (5, 4)])
def test_stopping_once_nothing_can_change_changes_nothing(
    num_beams: int, alternatives: int, length_penalty: float
):
    decoder = random_decoder(end=1.5)
    options = SearchOptions(
        num_beams=num_beams, alternatives=alternatives, max_length=10, length_penalty=length_penalty
    )
    region_tokens = random_regions(8)
    for image, hypotheses in zip(
        region_tokens, generate(decoder, region_tokens, options, RULES), strict=True
    ):
        assert_same(hypotheses, naive_beam_search(Model(decoder, image), options))


def test_a_search_ends_when_its_captions_are_certain():
    search = start_search(
        random_decoder(end=4), random_regions(4), SearchOptions(max_length=20, length_penalty=0.0), RULES
    )
    while search.images:
        search.step()
        search.settle(at_most=0.5)
    assert search.length < 12


def test_both_kinds_of_decoder_search_alike(decoder: TextDecoder):
    options, region_tokens = SearchOptions(num_beams=4, max_length=8, alternatives=1), random_regions(3)
    for image, hypotheses in zip(
        region_tokens, generate(decoder, region_tokens, options, RULES), strict=True
    ):
        assert_same(hypotheses, naive_beam_search(Model(decoder, image), options))


def test_rules_hold_in_a_beam_search():
    """The best caption is the naive search's when a model that obeys the rules is searched."""

    class Obedient(Model):
        def __call__(self, text: tuple[int, ...]) -> list[float]:
            logprobs = list(super().__call__(text))
            whole = (*PROMPT[1:], *text)
            pairs = set(itertools.pairwise(whole))
            for token in range(len(logprobs)):
                logprobs[token] *= 1.2 if token in whole else 1
                banned = token == 5 or (whole[-1], token) == (6, 7) or (whole[-1], token) in pairs
                if banned or (token == END and len(text) + 1 < 4):
                    logprobs[token] = -math.inf
            return logprobs

    decoder = random_decoder(end=1.5)
    rules = replace(RULES, bad_words_ids=((5,), (6, 7)))
    options = SearchOptions(
        num_beams=4,
        alternatives=3,
        max_length=9,
        min_length=4,
        repetition_penalty=1.2,
        no_repeat_ngram_size=2,
    )
    region_tokens = random_regions(6)
    for image, hypotheses in zip(
        region_tokens, generate(decoder, region_tokens, options, rules), strict=True
    ):
        assert_same(hypotheses, naive_beam_search(Obedient(decoder, image), options))
        for hypothesis in hypotheses:  # what the model itself thinks of it
            own = Model(decoder, image).logprobs(hypothesis.token_ids)
            assert hypothesis.logprobs == pytest.approx(own, **CLOSE)


def test_early_stopping_ends_with_as_many_captions_as_beams():
    decoder, region_tokens = random_decoder(end=1.5), random_regions(8)
    options = SearchOptions(num_beams=3, max_length=16, length_penalty=2.0, alternatives=2)
    patient = generate(decoder, region_tokens, options, RULES)
    hasty = generate(decoder, region_tokens, replace(options, early_stopping=True), RULES)
    assert all(h.finished for hypotheses in hasty for h in hypotheses)
    assert all(one[0].score <= other[0].score + 1e-6 for one, other in zip(hasty, patient, strict=True))
    assert longest(hasty) < longest(patient)


def longest(found: Sequence[Sequence[Hypothesis]]) -> int:
    return max(len(h.token_ids) for hypotheses in found for h in hypotheses)


@pytest.mark.parametrize("num_beams", [1, 3, 5])
def test_scores_are_those_of_transformers(num_beams: int, tmp_path: Path):
    from huggingface import save_vit_gpt2

    from captioner.convert import read_hugging_face

    theirs = save_vit_gpt2(tmp_path)
    ours = read_hugging_face(tmp_path)
    special = ours.tokenizer.config
    rules = DecodeRules(prompt_ids=special.start_ids, eos_id=special.eos_id, pad_id=special.pad_id)
    torch.manual_seed(0)
    pixel_values = torch.randn(6, 3, 32, 32)
    with torch.inference_mode():
        region_tokens = ours.model.encode(pixel_values).region_tokens
    for length_penalty in [-1.0, 0.0, 1.0, 2.0] if num_beams > 1 else [1.0]:
        options = SearchOptions(
            num_beams=num_beams, max_length=10, length_penalty=length_penalty, alternatives=num_beams - 1
        )
        beams = {"length_penalty": length_penalty, "early_stopping": "never"} if num_beams > 1 else {}
        out = theirs.generate(
            pixel_values=pixel_values,
            num_beams=num_beams,
            num_return_sequences=num_beams,
            max_new_tokens=10,
            do_sample=False,
            output_scores=True,
            return_dict_in_generate=True,
            **beams,
        )
        rows = iter(out.sequences[:, 1:].tolist())
        scores = out.sequences_scores.tolist() if num_beams > 1 else None
        found = generate(ours.model.decoder, region_tokens, options, rules)
        hypotheses = [hypothesis for image in found for hypothesis in image]
        for i, (hypothesis, row) in enumerate(zip(hypotheses, rows, strict=True)):
            ids = hypothesis.token_ids
            assert list(ids) == row[: len(ids)]
            assert set(row[len(ids) :]) <= {special.eos_id}  # their filling
            if scores is not None:
                assert hypothesis.score == pytest.approx(scores[i], **CLOSE)


@pytest.mark.parametrize("kind", SEARCHES)
def test_an_image_has_the_same_captions_alone_and_in_a_batch_of_64(kind: str):
    decoder, region_tokens = random_decoder(end=1.0), random_regions(64)
    found = generate(decoder, region_tokens, SEARCHES[kind], RULES)
    assert len({len(hypotheses[0].token_ids) for hypotheses in found}) > 5, "lengths are mixed"
    for i in range(64):
        (alone,) = generate(decoder, region_tokens[i : i + 1], SEARCHES[kind], RULES)
        assert_alike(alone, found[i])
    backwards = generate(decoder, region_tokens.flip(0), SEARCHES[kind], RULES)
    for one, other in zip(backwards[::-1], found, strict=True):
        assert_alike(one, other)


@pytest.mark.parametrize("kind", SEARCHES)
def test_images_that_are_done_may_leave_the_batch_at_any_time(kind: str):
    decoder, region_tokens = random_decoder(end=1.0), random_regions(16)
    results = []
    for at_most in (0.0, 0.5, 1.0):  # at the end, at half, at once
        search, sizes = start_search(decoder, region_tokens, SEARCHES[kind], RULES), []
        while search.images:
            sizes.append(len(search.images))
            search.step()
            search.settle(at_most=at_most)
        results.append([search.results[i] for i in range(16)])
        assert (len(set(sizes)) > 1) == (at_most > 0)
    for late, half, soon in zip(*results, strict=True):
        assert_alike(half, late)
        assert_alike(soon, late)


def test_an_empty_batch_has_no_captions():
    for options in SEARCHES.values():
        assert generate(random_decoder(), random_regions(0), options, RULES) == []
        assert list(stream(random_decoder(), random_regions(0), options, RULES)) == []
