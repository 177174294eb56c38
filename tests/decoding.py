"""Decoders in miniature, and decoding written plainly, to check the fast one by."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captioner.decoder import DecoderConfig, TextDecoder
from captioner.generation import DecodeRules, Hypothesis, SearchOptions

END = 2
PROMPT = (1, 3)
RULES = DecodeRules(prompt_ids=PROMPT, eos_id=END, pad_id=0)
OURS = DecoderConfig(
    vocab_size=8, width=16, layers=2, heads=2, mlp_width=32, max_positions=30, region_width=12
)
VARIANTS = {
    "ours": OURS,
    "gpt2": replace(OURS, activation="gelu_tanh", output_bias=False, eps=1e-6),
    "bert": replace(OURS, norm="post", embedding_norm=True, head_transform=True, eps=1e-12),
}
PENALTIES = [-1.0, 0.0, 0.6, 1.0, 2.0]

SEARCHES = {
    "greedy": SearchOptions(num_beams=1, max_length=20),
    "beams": SearchOptions(num_beams=4, max_length=20, alternatives=2, length_penalty=0.5),
    "early stopping": SearchOptions(num_beams=3, max_length=20, early_stopping=True),
    "rules": SearchOptions(num_beams=3, max_length=20, no_repeat_ngram_size=3, repetition_penalty=1.1),
    "sampling": SearchOptions(do_sample=True, max_length=20, seed=7, alternatives=3),
    "one sample": SearchOptions(do_sample=True, max_length=20, seed=3, top_k=6, top_p=0.9, temperature=1.5),
}
"""Of every kind, with captions that end at different times."""


def random_decoder(
    config: DecoderConfig = OURS, *, seed: int = 0, end: float = 0.0, **change: Any
) -> TextDecoder:
    """Weights that make captions differ from image to image; ``end`` makes their ends likelier."""
    torch.manual_seed(seed)
    decoder = TextDecoder(replace(config, **change)).eval().requires_grad_(False)
    for name, parameter in decoder.named_parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=1.0 if "cross" in name or "position" in name else 0.5)
        else:
            parameter += 0.1 * torch.randn_like(parameter)
    if decoder.output_bias is not None:
        decoder.output_bias[END] += end
    return decoder


def random_regions(images: int, *, seed: int = 1) -> Tensor:
    return torch.randn(images, 5, 12, generator=torch.Generator().manual_seed(seed))


class Model:
    """The decoder without cache, batch or beams: log-probs of the next token after one text of one image."""

    def __init__(self, decoder: TextDecoder, region_tokens: Tensor, prompt: Sequence[int] = PROMPT) -> None:
        self.decoder, self.prompt = decoder, list(prompt)
        self.cross = decoder.cross_cache(region_tokens[None])
        self.known: dict[tuple[int, ...], list[float]] = {}

    def __call__(self, text: tuple[int, ...]) -> list[float]:
        if text not in self.known:
            hidden, _ = self.decoder(torch.tensor([[self.prompt + list(text)]]), self.cross)
            self.known[text] = self.decoder.logits(hidden[0, 0, -1]).float().log_softmax(-1).tolist()
        return self.known[text]

    def logprobs(self, text: tuple[int, ...]) -> list[float]:
        return [self(text[:i])[token] for i, token in enumerate(text)]


CLOSE = {"rel": 1e-5, "abs": 5e-4}
"""How far a log-prob or a score of these models may be off on any CPU; a wrong one is off by far more."""


def assert_same(found: Sequence[Hypothesis], expected: Sequence[tuple[float, tuple[int, ...]]]) -> None:
    """The same texts and scores, best first. Rounding decides the order of texts whose scores are the same,
    and which of them is the last that is left out."""
    assert [hypothesis.score for hypothesis in found] == pytest.approx([s for s, _ in expected], **CLOSE)
    assert len({hypothesis.token_ids for hypothesis in found}) == len({text for _, text in expected})
    scores, last = {text: score for score, text in expected}, min(score for score, _ in expected)
    for hypothesis in found:
        assert hypothesis.score == pytest.approx(scores.get(hypothesis.token_ids, last), **CLOSE)


def assert_alike(found: Sequence[Hypothesis], expected: Sequence[Hypothesis]) -> None:
    """The same captions; other batches round otherwise."""
    assert_same(found, [(hypothesis.score, hypothesis.token_ids) for hypothesis in expected])
    by_text = {hypothesis.token_ids: hypothesis for hypothesis in expected}
    for one in found:
        if other := by_text.get(one.token_ids):
            assert one.logprobs == pytest.approx(other.logprobs, **CLOSE)
            assert one.finished == other.finished


def all_texts(vocab: int, max_length: int, min_length: int) -> Iterator[tuple[int, ...]]:
    for length in range(1, max_length + 1):
        for text in itertools.product(range(vocab), repeat=length):
            ended = text[-1] == END
            if (
                END not in text[:-1]
                and (ended or length == max_length)
                and not (ended and length < min_length)
            ):
                yield text


def naive_beam_search(model: Model, options: SearchOptions) -> list[tuple[float, tuple[int, ...]]]:
    """Beam search with lists that never stops before max_length."""
    beams, finished = [(0.0, ())], []
    for length in range(1, options.max_length + 1):
        children = sorted(
            (
                (score + logprob, (*text, token))
                for score, text in beams
                for token, logprob in enumerate(model(text))
            ),
            reverse=True,
        )
        for score, text in children[: options.num_beams]:
            if text[-1] == END or length == options.max_length:
                finished.append((score / length**options.length_penalty, text))
        beams = [child for child in children if child[1][-1] != END][: options.num_beams]
    return sorted(finished, reverse=True)[: 1 + options.alternatives]
