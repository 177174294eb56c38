"""Sampling against exact odds, streaming against whole captions, and the edges of what may be asked for."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from decoding import (
    CLOSE,
    END,
    OURS,
    PENALTIES,
    PROMPT,
    RULES,
    SEARCHES,
    Model,
    all_texts,
    assert_alike,
    random_decoder,
    random_regions,
)
from torch import Tensor

from captioner.decoder import TextDecoder
from captioner.errors import OptionsError
from captioner.generation import Decided, Hypothesis, SearchOptions, generate, start_search, stream

# Sampling


def frequencies(found: Sequence[Sequence[Hypothesis]], place: int = 0) -> Counter[int]:
    return Counter(h.token_ids[place] for hypotheses in found for h in hypotheses if len(h.token_ids) > place)


@pytest.mark.parametrize(
    "choice",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 3.0},
        {"top_k": 3},
        {"top_p": 0.7},
        {"top_k": 5, "top_p": 0.8, "temperature": 2.0},
    ],
)
def test_tokens_are_drawn_as_often_as_the_distribution_says(choice: dict[str, Any]):
    decoder, image = random_decoder(), random_regions(1)
    logits = torch.tensor(Model(decoder, image[0])(())) / choice.get("temperature", 1.0)
    probs = logits.softmax(-1).tolist()
    order = sorted(range(len(probs)), key=lambda i: -probs[i])[: choice.get("top_k", len(probs))]
    total = sum(probs[i] for i in order)
    expected, so_far = {}, 0.0
    for i in order:
        if so_far < choice.get("top_p", 1.0):
            expected[i] = probs[i]
        so_far += probs[i] / total
    torch.manual_seed(0)
    options = SearchOptions(do_sample=True, alternatives=63, max_length=1, **choice)
    found = generate(decoder, image.expand(400, -1, -1), options, RULES)
    counts, draws = frequencies(found), 400 * 64
    assert set(counts) <= set(expected)
    for token, weight in expected.items():
        p = weight / sum(expected.values())
        assert abs(counts[token] / draws - p) < 4.5 * math.sqrt(p * (1 - p) / draws) + 1e-9


def test_the_second_token_is_drawn_given_the_first():
    decoder, image = random_decoder(), random_regions(1)
    model = Model(decoder, image[0])
    torch.manual_seed(0)
    options = SearchOptions(do_sample=True, alternatives=63, max_length=2)
    found = generate(decoder, image.expand(200, -1, -1), options, RULES)
    counts = Counter(h.token_ids for hypotheses in found for h in hypotheses)
    draws = 200 * 64
    for text in all_texts(OURS.vocab_size, 2, 0):
        p = math.exp(sum(model.logprobs(text)))
        assert abs(counts[text] / draws - p) < 4.5 * math.sqrt(p * (1 - p) / draws) + 1e-3


def test_a_seed_gives_the_same_samples_and_another_seed_others():
    decoder, region_tokens = random_decoder(), random_regions(4)
    options = SearchOptions(do_sample=True, alternatives=2, seed=5)
    found = generate(decoder, region_tokens, options, RULES)
    torch.manual_seed(1)  # the global generator has no say
    assert generate(decoder, region_tokens, options, RULES) == found
    assert generate(decoder, region_tokens, replace(options, seed=6), RULES) != found
    assert len({h.token_ids for h in found[0]}) == 3, "samples differ from one another"


def test_without_a_seed_each_call_and_each_image_draws_anew():
    decoder, image = random_decoder(), random_regions(1).expand(8, -1, -1)
    options = SearchOptions(do_sample=True)
    torch.manual_seed(0)
    found = generate(decoder, image, options, RULES)
    assert len({hypothesis.token_ids for (hypothesis,) in found}) > 4
    assert generate(decoder, image, options, RULES) != found


def test_samples_come_best_first_with_the_models_own_log_probs():
    decoder, region_tokens = random_decoder(end=1.0), random_regions(4)
    options = SearchOptions(do_sample=True, alternatives=7, seed=0, temperature=2.0, length_penalty=0.5)
    for image, samples in zip(region_tokens, generate(decoder, region_tokens, options, RULES), strict=True):
        model = Model(decoder, image)
        assert [h.score for h in samples] == sorted((h.score for h in samples), reverse=True)
        for sample in samples:
            logprobs = model.logprobs(sample.token_ids)
            assert sample.logprobs == pytest.approx(logprobs, **CLOSE)
            assert sample.score == pytest.approx(sum(logprobs) / len(logprobs) ** 0.5, **CLOSE)


def test_the_best_word_alone_is_greedy_search():
    decoder, region_tokens = random_decoder(), random_regions(5)
    greedy = generate(decoder, region_tokens, SearchOptions(num_beams=1), RULES)
    assert generate(decoder, region_tokens, SearchOptions(do_sample=True, top_k=1), RULES) == greedy


# Streaming


def pieces_of(events: Sequence[Decided], image: int) -> list[Decided]:
    return [event for event in events if event.image == image]


@pytest.mark.parametrize("kind", SEARCHES)
def test_what_is_streamed_adds_up_to_what_is_generated(kind: str):
    decoder, region_tokens = random_decoder(end=1.0), random_regions(24)
    found = generate(decoder, region_tokens, SEARCHES[kind], RULES)
    events = list(stream(decoder, region_tokens, SEARCHES[kind], RULES))
    for image, hypotheses in enumerate(found):
        *pieces, last = pieces_of(events, image)
        assert_alike(last.hypotheses, hypotheses)
        assert all(piece.token_ids and not piece.hypotheses for piece in pieces)
        whole = [token for piece in (*pieces, last) for token in piece.token_ids]
        assert tuple(whole) == last.hypotheses[0].token_ids
    assert len(events) > 1.5 * len(found), "tokens come before the end"


def test_greedy_tokens_are_streamed_one_by_one():
    decoder, region_tokens = random_decoder(end=1.0), random_regions(3)
    events = list(stream(decoder, region_tokens, SearchOptions(num_beams=1, max_length=15), RULES))
    assert all(len(event.token_ids) == 1 for event in events)


@pytest.mark.parametrize("length_penalty", PENALTIES)
def test_a_beam_search_streams_a_token_as_soon_as_all_that_may_win_agree(length_penalty: float):
    """At every step, what was told is what the naive search's contenders then have in common."""
    decoder, region_tokens = random_decoder(end=1.0), random_regions(8)
    options = SearchOptions(num_beams=3, max_length=9, length_penalty=length_penalty)
    search = start_search(decoder, region_tokens, options, RULES)
    models = [Model(decoder, image) for image in region_tokens]
    early = 0
    for length in range(1, options.max_length):
        search.step()
        for model, decided in zip(models, search.decided(), strict=True):
            assert tuple(decided) == common_beginning(contenders(model, options, length))
            early += 0 < len(decided) < length
    assert early > 0


def contenders(model: Model, options: SearchOptions, steps: int) -> list[tuple[int, ...]]:
    beams, best = [(0.0, ())], (-math.inf, ())
    for length in range(1, steps + 1):
        children = sorted(
            ((score + p, (*text, token)) for score, text in beams for token, p in enumerate(model(text))),
            reverse=True,
        )
        for score, text in children[: options.num_beams]:
            if text[-1] == END:
                best = max(best, (score / length**options.length_penalty, text))
        beams = [child for child in children if child[1][-1] != END][: options.num_beams]
    lengths = range(steps + 1, options.max_length + 1)
    hopeful = [
        text
        for score, text in beams
        if max(score / length**options.length_penalty for length in lengths) > best[0]
    ]
    return hopeful + [best[1]] * (best[0] > -math.inf)


def common_beginning(texts: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    agreed = itertools.takewhile(lambda tokens: len(set(tokens)) == 1, zip(*texts, strict=False))
    return tuple(tokens[0] for tokens in agreed)


def test_a_stream_refuses_bad_options_before_it_starts():
    with pytest.raises(OptionsError, match="positions"):
        stream(random_decoder(), random_regions(1), SearchOptions(max_length=40), RULES)


# Edges


def test_a_caption_may_fill_all_positions_but_no_more():
    decoder, region_tokens = random_decoder(end=-9), random_regions(1)
    room = OURS.max_positions - len(PROMPT) + 1  # the last token is never fed back
    ((hypothesis,),) = generate(decoder, region_tokens, SearchOptions(max_length=room), RULES)
    assert (len(hypothesis.token_ids), hypothesis.finished) == (room, False)
    message = (
        f"prompt of 2 tokens and max_length {room + 1} exceed this model's 30 positions: lower max_length"
    )
    with pytest.raises(OptionsError, match=message):
        generate(decoder, region_tokens, SearchOptions(max_length=room + 1), RULES)


def test_fewer_captions_where_fewer_exist():
    """Of one token there are but as many captions as tokens."""
    decoder = random_decoder(vocab_size=5)
    options = SearchOptions(num_beams=8, alternatives=7, max_length=1)
    (found,) = generate(decoder, random_regions(1), options, RULES)
    assert sorted(h.token_ids for h in found) == [(i,) for i in range(5)]


@pytest.mark.parametrize("num_beams", [1, 3])
def test_there_is_a_caption_even_if_every_word_is_forbidden(num_beams: int):
    rules = replace(RULES, bad_words_ids=tuple((i,) for i in range(OURS.vocab_size)))
    found = generate(random_decoder(), random_regions(2), SearchOptions(num_beams=num_beams), rules)
    assert [h.token_ids for (h,) in found] == [(END,), (END,)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_scores_in_float32(dtype: torch.dtype):
    decoder, region_tokens = random_decoder().to(dtype), random_regions(2).to(dtype)
    options = SearchOptions(num_beams=8, alternatives=7, max_length=1)
    for hypotheses in generate(decoder, region_tokens, options, RULES):
        assert sum(math.exp(h.score) for h in hypotheses) == pytest.approx(1, abs=1e-6)


def test_images_are_encoded_once_whatever_the_rows():
    class Counting(TextDecoder):
        calls = 0
        rows: tuple[int, ...] = ()

        def cross_cache(self, region_tokens: Tensor) -> Any:
            self.calls += 1
            self.rows += (len(region_tokens),)
            return super().cross_cache(region_tokens)

    decoder = Counting(OURS).eval()
    generate(decoder, random_regions(4), SearchOptions(do_sample=True, alternatives=4), RULES)
    assert (decoder.calls, decoder.rows) == (1, (4,))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", ["greedy", "beams", "early stopping", "rules"])
def test_a_gpu_finds_the_same(kind: str):
    decoder, region_tokens = random_decoder(end=1.0), random_regions(64)
    expected = generate(decoder, region_tokens, SEARCHES[kind], RULES)
    found = generate(decoder.cuda(), region_tokens.cuda(), SEARCHES[kind], RULES)
    assert sum(a[0].token_ids == b[0].token_ids for a, b in zip(found, expected, strict=True)) >= 63
