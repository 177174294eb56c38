"""What may come next: rules and sampling filters over the scores of the next token.

``scores (B, N, V)`` are float32 log-probs for ``N`` rows of text of each of ``B`` images; ``history
(B, N, T)`` int64 is the text so far without its start token. What has -inf is never chosen.
:class:`LogitsRules` applies those that the options ask for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from captioner.options import SearchOptions
from captioner.tokenizer import WordClasses

__all__ = [
    "DecodeRules",
    "Grammar",
    "LogitsRules",
    "bad_word_table",
    "bad_words",
    "forbid",
    "keep_likely",
    "penalise_repetition",
    "perturb",
    "repeated_ngrams",
]

Ban: TypeAlias = tuple[Tensor, Tensor]
"""Token ids ``(B, N, m)``, and whether each is forbidden now."""

ANY, NONE = -1, -2  # in place of a token: whatever stands there; nothing stands there yet


@dataclass(frozen=True, kw_only=True)
class DecodeRules:
    """The tokenizer's part of a search: token ids.

    Attributes:
        prompt_ids: what every caption begins with; the start token first.
        eos_id: ends a caption.
        pad_id: fills up captions of different lengths; may equal eos_id.
        bad_words_ids: each a token or a sequence of tokens that no caption contains.
        classes: parts of speech; None leaves their rules out.
        counted_start: how many tokens of the prompt count towards max_length, min_length and length_penalty.
        forced_end: the token that a text ends with where max_length cuts it; None for whatever is best.
    """

    prompt_ids: tuple[int, ...]
    eos_id: int
    pad_id: int
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    classes: WordClasses | None = None
    counted_start: int = 0
    forced_end: int | None = None

    def steps(self, options: SearchOptions) -> int:
        """How many tokens a search generates at most."""
        return max(1, options.max_length - self.counted_start)


class LogitsRules:
    """All the rules of one search; its tensors lie on the search's device."""

    def __init__(self, options: SearchOptions, rules: DecodeRules, device: torch.device) -> None:
        assert all([rules.prompt_ids, *rules.bad_words_ids]), "a start token, and no empty bad word"
        self.options, self.rules, self.eos_id = options, rules, rules.eos_id
        self.steps = rules.steps(options)
        self.prompt = torch.tensor(rules.prompt_ids, dtype=torch.int64, device=device)
        self.bad_words = bad_word_table(rules.bad_words_ids, device) if rules.bad_words_ids else None
        self.grammar = Grammar(rules.classes, rules.eos_id, device) if rules.classes else None

    def __call__(self, logprobs: Tensor, tokens: Tensor) -> Tensor:
        """Scores ``(B, N, V)`` from the model's log-probs after the generated ``tokens (B, N, t)``.

        They may be the log-probs themselves, in which only what is forbidden is overwritten: a whole copy of
        them takes longer than all rules.
        """
        options, scores = self.options, logprobs
        if self.rules.forced_end is not None and tokens.shape[-1] + 1 == self.steps:
            forced = torch.full_like(scores, -torch.inf)
            forced[..., self.rules.forced_end].fill_(0)
            return forced
        text = torch.cat([self.prompt.expand(*tokens.shape[:2], -1), tokens], dim=-1)
        history = text[..., 1:]
        if options.repetition_penalty != 1:
            scores = penalise_repetition(scores, history, options.repetition_penalty)
        bans = []
        if options.no_repeat_ngram_size:
            size = options.no_repeat_ngram_size  # as `transformers`, with the start; alone it may be the end
            bans.append(repeated_ngrams(text if size > 1 else history, size))
        if self.bad_words is not None:
            bans.append(bad_words(history, self.bad_words))
        if self.grammar is not None:
            bans.append(self.grammar(history))
        too_short = self.rules.counted_start + tokens.shape[-1] + 1 < options.min_length
        end = scores[..., self.eos_id].clone()
        if bans:
            forbid(scores, *(torch.cat(part, dim=-1) for part in zip(*bans, strict=True)))
        if too_short:
            scores[..., self.eos_id].fill_(-torch.inf)
        if sum(ids.shape[-1] for ids, _ in bans) + too_short >= scores.shape[-1]:
            # where the rules leave no token at all, the text may end, whatever they say
            stuck = scores.amax(-1) == -torch.inf
            scores[..., self.eos_id] = torch.where(stuck, end, scores[..., self.eos_id])
        return scores


def penalise_repetition(scores: Tensor, history: Tensor, penalty: float) -> Tensor:
    """Multiply the log-probs of tokens that the text already has by ``penalty`` (CTRL, Keskar et al. 2019).

    The paper divides logits, whose sign decides whether that punishes. A log-prob is never positive, so a
    penalty above 1 always does.
    """
    return scores.scatter(-1, history, scores.gather(-1, history) * penalty)


def repeated_ngrams(history: Tensor, size: int) -> Ban:
    """Tokens that would complete an n-gram of ``size`` which the text already has."""
    if history.shape[-1] < size:
        return history[..., :0], history[..., :0].bool()
    ngrams = history.unfold(-1, size, 1)  # (B, N, T-size+1, size)
    current = history[..., None, history.shape[-1] - size + 1 :]
    return ngrams[..., -1], (ngrams[..., :-1] == current).all(-1)


def bad_word_table(words: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Bad words as ``(W, M)`` int64, one a row, filled up on the left."""
    longest = max(map(len, words))
    return torch.tensor([[ANY] * (longest - len(word)) + list(word) for word in words], device=device)


def bad_words(history: Tensor, table: Tensor) -> Ban:
    """The last token of each bad word whose other tokens the text ends with."""
    start, last = table[:, :-1], table[:, -1]
    nothing = history.new_full((*history.shape[:-1], start.shape[1]), NONE)
    text = torch.cat([nothing, history], dim=-1)
    current = text[..., None, history.shape[-1] :]  # (B, N, 1, M-1)
    matches = ((start == current) | (start == ANY)).all(-1)  # (B, N, W)
    return last.expand_as(matches), matches


class Grammar:
    """Keeps captions from saying a content word twice and from leaving a noun phrase without its noun.

    After "a red" and "a red and white" there comes neither "is" nor the end, as in "parked in front of a
    parked" or "the lit up at night". The phrase is looked for in the last four tokens.
    """

    def __init__(self, classes: WordClasses, eos_id: int, device: torch.device) -> None:
        names = ("determiners", "modifiers", "conjunctions", "repeatable")
        size = 2 + max(max(getattr(classes, name), default=0) for name in names)
        parts = torch.zeros(len(names), size, dtype=torch.bool, device=device)  # what is beyond is no part
        for row, name in zip(parts, names, strict=True):
            row[list(getattr(classes, name))] = True
        self.parts = parts
        self.closing = torch.tensor([*classes.closing, eos_id], dtype=torch.int64, device=device)

    def __call__(self, history: Tensor) -> Ban:
        """What cannot follow."""
        nothing = self.parts.shape[1] - 1
        places = torch.nn.functional.pad(history, (4, 0), value=nothing).clamp(max=nothing)
        determiner, modifier, conjunction, repeatable = self.parts[:, places]
        begun = determiner | modifier
        joined = conjunction[..., -2] & modifier[..., -3] & begun[..., -4]
        lacks_noun = modifier[..., -1] & (begun[..., -2] | joined)
        closing = self.closing.expand(*history.shape[:-1], -1)
        where = torch.cat([~repeatable[..., 4:], lacks_noun[..., None].expand_as(closing)], dim=-1)
        return torch.cat([history, closing], dim=-1), where


def keep_likely(scores: Tensor, *, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Keep the tokens that sampling may draw.

    First the ``top_k`` best (Fan et al. 2018), then of them the fewest whose probabilities, made to sum to 1,
    sum to ``top_p`` or more (nucleus sampling, Holtzman et al. 2020). Ties with the last one stay too.
    """
    vocab = scores.shape[-1]
    ordered = scores.topk(min(top_k or vocab, vocab)).values
    probs = ordered.softmax(-1)
    needed = probs.cumsum(-1) - probs < top_p  # those before it do not suffice
    worst = ordered.masked_fill(~needed, torch.inf).amin(-1, keepdim=True)
    return scores.masked_fill(scores < worst, -torch.inf)


def perturb(scores: Tensor, options: SearchOptions, generator: torch.Generator | None) -> Tensor:
    """Scores whose best token is a draw from the filtered distribution (Gumbel-max trick).

    Rounding hardly ever changes such a draw, while it would shift all bounds of a search in cumulated
    probabilities. So a sample does not depend on the batch it is drawn in: with a generator, all images share
    their random numbers. From 24-bit uniform numbers the noise cannot reach words rarer than about 1e-7.
    """
    scores = scores / options.temperature
    if options.top_k or options.top_p < 1:
        scores = keep_likely(scores, top_k=options.top_k, top_p=options.top_p)
    shape = scores.shape if generator is None else scores.shape[1:]
    uniform = torch.rand(shape, generator=generator, device=scores.device)
    exponential = uniform.clamp_min_(torch.finfo(uniform.dtype).tiny).log_().neg_()
    return scores - exponential.log_()


def forbid(scores: Tensor, ids: Tensor, where: Tensor) -> None:
    """Put -inf at ``ids (B, N, m)`` where ``where`` holds; an id may come more than once."""
    scores.scatter_add_(-1, ids, torch.where(where, -torch.inf, 0.0))
