"""Region tokens in, token ids out: greedy and beam search, sampling, streaming.

There is one loop. :class:`_Search` feeds the decoder and applies the rules; its two kinds differ only in how
they choose the next tokens: :class:`_BeamSearch` among all beams of an image, :class:`_RowSearch` (greedy and
sampling) in each row by itself. Shapes: ``B`` images, ``N`` rows (beams or samples), ``L`` generated tokens at
most, ``K`` captions wanted, ``V`` words. Nothing in a step loops over images or rows.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from captioner import logits as rule
from captioner.decoder import KVCache, TextDecoder
from captioner.errors import OptionsError

__all__ = ["Decided", "DecodeRules", "GenerationOptions", "Hypothesis", "generate", "stream"]

DEFAULT_BEAMS = 3
DEFAULT_LENGTH_PENALTY = 1.0


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """How captions are searched for.

    Attributes:
        num_beams: 1…64; 1 is greedy search. Sampling does not use beams.
        max_length: 1…1024 generated tokens, the end token included, the prompt not.
        min_length: 0…max_length, counted likewise.
        length_penalty: -10…10; a caption's score is its summed log-prob / generated tokens ** length_penalty,
            so larger values favour longer captions and 0 compares plain log-probs.
        repetition_penalty: 0.1…10; log-probs of words that the caption already has are multiplied by it.
        no_repeat_ngram_size: 0…16; no n-gram of so many tokens occurs twice; 0 allows all.
        bad_words: words or phrases that no caption contains.
        prompt: text that every caption begins with.
        do_sample: draw words at random instead of searching for the best caption.
        temperature: 0.01…100; below 1 draws likely words more often. Sampling only, like the next three.
        top_k: 0…1000000; draw from so many best words only; 0 from all.
        top_p: above 0, at most 1; draw from the fewest words whose probabilities sum to it.
        seed: 0…2**63-1; the same seed gives an image the same samples, alone or in any batch, since all images
            of a batch share their random numbers. None draws from torch's global generator.
        alternatives: further captions wanted, best first: at most num_beams - 1, or 0…63 samples.
        attention: give for each word where the model looked.
        early_stopping: end a beam search as soon as num_beams captions are finished, instead of when no beam
            can become better than those wanted.

    Raises:
        OptionsError: a value is out of range or contradicts another one.
    """

    num_beams: int = DEFAULT_BEAMS
    max_length: int = 24
    min_length: int = 0
    length_penalty: float = DEFAULT_LENGTH_PENALTY
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    bad_words: tuple[str, ...] = ()
    prompt: str = ""
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    alternatives: int = 0
    attention: bool = False
    early_stopping: bool = False


@dataclass(frozen=True)
class Hypothesis:
    """One caption as token ids.

    Attributes:
        token_ids: what was generated: without the prompt, with the end token if it came to that.
        logprobs: the model's own natural log-prob of each, before temperature, penalties and filters.
        score: summed log-probs after the repetition penalty / length ** length_penalty.
        finished: it ends with the end token, not at max_length.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    score: float
    finished: bool


@dataclass(frozen=True, kw_only=True)
class DecodeRules:
    """The tokenizer's part: ids that the search needs.

    Attributes:
        prompt_ids: what every caption begins with; the start token first.
        eos_id: ends a caption.
        pad_id: fills rows that have ended; may equal eos_id.
        bad_words_ids: each a token or a sequence of tokens that no caption contains.
    """

    prompt_ids: tuple[int, ...]
    eos_id: int
    pad_id: int
    bad_words_ids: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class Decided:
    """What a step of :func:`stream` settled for one image.

    Attributes:
        image: index in the batch.
        token_ids: the next tokens of its best caption, which nothing can change any more.
        hypotheses: all its captions, best first, with its last tokens; empty before.
    """

    image: int
    token_ids: tuple[int, ...]
    hypotheses: tuple[Hypothesis, ...] = ()


def generate(
    decoder: TextDecoder, region_tokens: Tensor, options: GenerationOptions, rules: DecodeRules
) -> list[list[Hypothesis]]:
    """Caption a batch of encoded images.

    Args:
        decoder: in eval mode.
        region_tokens: ``(B, R, D)``.
        options: see :class:`GenerationOptions`; its texts are not used here, their ids stand in ``rules``.
        rules: token ids.

    Returns:
        For each image 1 + alternatives captions, best first, or fewer where fewer exist.

    Raises:
        OptionsError: prompt and max_length together need more positions than the decoder has.
    """
    search = _search(decoder, region_tokens, options, rules)
    every = 4 if region_tokens.is_cuda else 1  # looking at the results makes a GPU wait
    while search.running:
        search.step()
        if search.length % every == 0 or search.length == options.max_length:
            search.settle(at_most=0.5)
    return [search.results[image] for image in range(len(region_tokens))]


def stream(
    decoder: TextDecoder, region_tokens: Tensor, options: GenerationOptions, rules: DecodeRules
) -> Iterator[Decided]:
    """:func:`generate`, telling after each step which tokens of the best captions are now certain.

    Tokens are certain once every caption that can still become the image's best one has them. Arguments and
    errors are :func:`generate`'s; an image's pieces add up to the token ids of its first hypothesis.
    """
    search = _search(decoder, region_tokens, options, rules)
    sent = [0] * len(region_tokens)
    while search.running:
        search.step()
        images = search.images
        search.settle(at_most=1.0)
        prefixes = dict(zip(search.images, search.decided(), strict=True))
        for image in images:
            hypotheses = tuple(search.results.get(image, ()))
            tokens = hypotheses[0].token_ids if hypotheses else prefixes[image]
            if hypotheses or len(tokens) > sent[image]:
                yield Decided(image, tuple(tokens[sent[image] :]), hypotheses)
                sent[image] = len(tokens)


def _search(
    decoder: TextDecoder, region_tokens: Tensor, options: GenerationOptions, rules: DecodeRules
) -> _Search:
    needed = len(rules.prompt_ids) + options.max_length - 1  # the last token is never fed back
    if needed > decoder.config.max_positions:
        raise OptionsError(
            f"max_length {options.max_length} after a prompt of {len(rules.prompt_ids)} tokens is more than "
            f"this model's {decoder.config.max_positions} positions: lower max_length or shorten the prompt"
        )
    kind = _BeamSearch if options.num_beams > 1 and not options.do_sample else _RowSearch
    return kind(decoder, region_tokens, options, rules)


@dataclass
class _Texts:
    """``n`` texts of each image: ids ``(B, n, L)`` and their log-probs, scores ``(B, n)``, lengths ``(B, n)``."""

    tokens: Tensor
    logprobs: Tensor
    scores: Tensor
    lengths: Tensor

    @classmethod
    def empty(cls, images: int, rows: int, length: int, device: torch.device, *, pad_id: int) -> _Texts:
        return cls(
            tokens=torch.full((images, rows, length), pad_id, device=device),
            logprobs=torch.zeros(images, rows, length, device=device),
            scores=torch.full((images, rows), -torch.inf, device=device),
            lengths=torch.zeros(images, rows, dtype=torch.int64, device=device),
        )

    def pick(self, index: Tensor) -> _Texts:
        """The texts at ``index (B, m)``."""
        deep = index[..., None].expand(-1, -1, self.tokens.shape[-1])
        return _Texts(
            self.tokens.gather(1, deep),
            self.logprobs.gather(1, deep),
            self.scores.gather(1, index),
            self.lengths.gather(1, index),
        )

    def keep(self, images: Tensor) -> _Texts:
        """The texts of the given images ``(B',)``."""
        return _Texts(self.tokens[images], self.logprobs[images], self.scores[images], self.lengths[images])


class _Search(ABC):
    """A batch being decoded: the decoder's caches, the texts so far, and which images are done."""

    def __init__(
        self,
        decoder: TextDecoder,
        region_tokens: Tensor,
        options: GenerationOptions,
        rules: DecodeRules,
        *,
        rows: int,
    ) -> None:
        batch, device = len(region_tokens), region_tokens.device
        self.decoder, self.options, self.rules = decoder, options, rules
        self.images = list(range(batch))  # those still in the batch
        self.results: dict[int, list[Hypothesis]] = {}
        self.length = 0  # tokens generated so far
        self.prompt = torch.tensor(rules.prompt_ids, device=device)
        self.bad_words = rule.bad_word_table(rules.bad_words_ids, device) if rules.bad_words_ids else None
        self.live = _Texts.empty(batch, rows, options.max_length, device, pad_id=rules.pad_id)
        self.done = torch.zeros(batch, dtype=torch.bool, device=device)
        with torch.inference_mode():
            self.cross = decoder.cross_cache(region_tokens)
        self.cache = KVCache(
            decoder.config,
            images=batch,
            rows=rows,
            prompt=len(rules.prompt_ids),
            length=len(rules.prompt_ids) + options.max_length - 1,
            like=self.cross[0][0],
        )

    @property
    def running(self) -> bool:
        return bool(self.images)

    @torch.inference_mode()
    def step(self) -> None:
        """Choose the next token of every row."""
        logprobs = self._next_logits().float().log_softmax(-1)
        self._advance(logprobs, self._apply_rules(logprobs))
        self.length += 1

    @torch.inference_mode()
    def settle(self, *, at_most: float) -> None:
        """Take the results of images that are done, if at most this share of the batch is left without them."""
        done = self.done.tolist() if self.length < self.options.max_length else [True] * len(self.images)
        left = [position for position, is_done in enumerate(done) if not is_done]
        if len(left) == len(done) or len(left) > at_most * len(done):
            return
        hypotheses = self._hypotheses()
        for position, is_done in enumerate(done):
            if is_done:
                self.results[self.images[position]] = hypotheses[position]
        self.images = [self.images[position] for position in left]
        self._keep(torch.tensor(left, dtype=torch.int64, device=self.done.device))

    @abstractmethod
    def _advance(self, logprobs: Tensor, scores: Tensor) -> None:
        """Choose tokens by ``scores (B, N, V)``, the model's own ``logprobs`` after the rules."""

    @abstractmethod
    def _best(self) -> _Texts:
        """The results so far, ``(B, K)``, best first, with final scores."""

    @abstractmethod
    def _contenders(self) -> tuple[_Texts, Tensor]:
        """Texts of which one begins the best caption, and a mask ``(B, n)`` of those that still may."""

    def decided(self) -> list[list[int]]:
        """For each image in the batch the tokens that all contenders for its best caption begin with."""
        texts, mask = self._contenders()
        first = mask.int().argmax(1)[:, None, None].expand(-1, -1, texts.tokens.shape[-1])
        positions = torch.arange(texts.tokens.shape[-1], device=mask.device)
        same = (texts.tokens == texts.tokens.gather(1, first)) & (positions < texts.lengths[..., None])
        lengths = (same | ~mask[..., None]).all(1).int().cumprod(-1).sum(-1)
        rows = texts.tokens.gather(1, first)[:, 0].tolist()
        return [row[:length] for row, length in zip(rows, lengths.tolist(), strict=True)]

    def _keep(self, images: Tensor) -> None:
        self.live = self.live.keep(images)
        self.done = self.done[images]
        self.cross = [(keys[images], values[images]) for keys, values in self.cross]
        self.cache.keep(images)

    def _next_logits(self) -> Tensor:
        """``(B, N, V)`` for the token that follows; the prompt is fed as one row of each image."""
        batch, rows = self.live.scores.shape
        if self.length == 0:
            ids = self.prompt.expand(batch, 1, -1)
            positions = torch.arange(len(self.prompt), device=ids.device)
        else:
            ids = self.live.tokens[..., self.length - 1 : self.length]
            positions = torch.tensor([len(self.prompt) + self.length - 1], device=ids.device)
        hidden, _ = self.decoder(ids, self.cross, cache=self.cache, positions=positions)
        return self.decoder.logits(hidden[:, :, -1]).expand(batch, rows, -1)

    def _apply_rules(self, logprobs: Tensor) -> Tensor:
        options, scores = self.options, logprobs
        prompt = self.prompt[1:].expand(*logprobs.shape[:2], -1)
        history = torch.cat([prompt, self.live.tokens[..., : self.length]], dim=-1)
        if options.repetition_penalty != 1:
            scores = rule.penalise_repetition(scores, history, options.repetition_penalty)
        allowed = scores
        if options.no_repeat_ngram_size:
            scores = rule.forbid_repeated_ngrams(scores, history, options.no_repeat_ngram_size)
        if self.bad_words is not None:
            scores = rule.forbid_bad_words(scores, history, self.bad_words)
        if self.length + 1 < options.min_length:
            scores = scores.index_fill(
                -1, torch.tensor([self.rules.eos_id], device=scores.device), -torch.inf
            )
        return scores if scores is allowed else self._end_if_stuck(scores, allowed)

    def _end_if_stuck(self, scores: Tensor, allowed: Tensor) -> Tensor:
        """Where the rules forbid every word, let the caption end."""
        stuck = scores.amax(-1) == -torch.inf
        eos = self.rules.eos_id
        scores[..., eos] = torch.where(stuck, allowed[..., eos], scores[..., eos])
        return scores

    def _hypotheses(self) -> list[list[Hypothesis]]:
        texts = self._best()
        lists = (
            texts.tokens.tolist(),
            texts.logprobs.tolist(),
            texts.scores.tolist(),
            texts.lengths.tolist(),
        )
        return [
            [
                Hypothesis(tuple(ids[:n]), tuple(logprobs[:n]), score, ids[n - 1] == self.rules.eos_id)
                for ids, logprobs, score, n in zip(*image, strict=True)
                if score > -math.inf
            ]
            for image in zip(*lists, strict=True)
        ]


class _RowSearch(_Search):
    """Each row takes its best next token (greedy) or draws one (sampling) until it ends."""

    def __init__(
        self, decoder: TextDecoder, region_tokens: Tensor, options: GenerationOptions, rules: DecodeRules
    ) -> None:
        super().__init__(decoder, region_tokens, options, rules, rows=1 + options.alternatives)
        self.live.scores.zero_()
        self.ended = torch.zeros_like(self.live.scores, dtype=torch.bool)
        self.generator = None
        if options.seed is not None:
            self.generator = torch.Generator(region_tokens.device).manual_seed(options.seed)

    def _advance(self, logprobs: Tensor, scores: Tensor) -> None:
        live = self.live
        choice = self._disturb(scores) if self.options.do_sample else scores
        ids = choice.argmax(-1, keepdim=True)  # (B, N, 1)
        going = ~self.ended
        live.tokens[..., self.length] = torch.where(going, ids[..., 0], self.rules.pad_id)
        live.logprobs[..., self.length] = logprobs.gather(-1, ids)[..., 0] * going
        live.scores += scores.gather(-1, ids)[..., 0] * going
        live.lengths += going
        self.ended |= ids[..., 0] == self.rules.eos_id
        self.done = self.ended.all(-1)

    def _disturb(self, scores: Tensor) -> Tensor:
        """Scores whose best word is a draw from the filtered distribution (the Gumbel-max trick).

        Near a tie it is far less sensitive to rounding than to search in cumulated probabilities, so that a
        sample does not depend on the size of the batch.
        """
        options = self.options
        scores = scores / options.temperature
        if options.top_k:
            scores = rule.top_k(scores, options.top_k)
        if options.top_p < 1:
            scores = rule.top_p(scores, options.top_p)
        shape = scores.shape if self.generator is None else scores.shape[1:]
        noise = torch.empty(shape, device=scores.device).exponential_(generator=self.generator)
        return scores - noise.clamp_min_(torch.finfo(noise.dtype).tiny).log_()

    def _final(self) -> Tensor:
        return self.live.scores / self.live.lengths**self.options.length_penalty

    def _best(self) -> _Texts:
        scores, order = self._final().sort(dim=-1, descending=True, stable=True)
        best = self.live.pick(order)
        best.scores = scores
        return best

    def _contenders(self) -> tuple[_Texts, Tensor]:
        best = self._final().masked_fill(~self.ended, -torch.inf).amax(-1, keepdim=True)
        reach = torch.where(self.ended, self._final(), _reach(self.live.scores, self.length, self.options))
        return self.live, reach >= best

    def _keep(self, images: Tensor) -> None:
        super()._keep(images)
        self.ended = self.ended[images]


class _BeamSearch(_Search):
    """The ``N`` best beginnings of each image go on; the ``K`` best captions that ended are kept.

    An image is done when no beam can reach its K-th best caption, so the result is that of a search to
    max_length.
    """

    def __init__(
        self, decoder: TextDecoder, region_tokens: Tensor, options: GenerationOptions, rules: DecodeRules
    ) -> None:
        super().__init__(decoder, region_tokens, options, rules, rows=options.num_beams)
        self.live.scores[:, 0] = 0  # the rows are alike at first: only one may have children
        shape = (len(region_tokens), 1 + options.alternatives, options.max_length)
        self.kept = _Texts.empty(*shape, region_tokens.device, pad_id=rules.pad_id)
        self.ended = torch.zeros(len(region_tokens), dtype=torch.int64, device=region_tokens.device)

    def _advance(self, logprobs: Tensor, scores: Tensor) -> None:
        beams, vocab = scores.shape[1:]
        total = (self.live.scores[..., None] + scores).flatten(1)  # (B, N*V)
        best, flat = total.topk(2 * beams)  # N of them go on even if the other N end
        parents, ids = flat // vocab, flat % vocab
        children = self.live.pick(parents)
        children.tokens[..., self.length] = ids
        children.logprobs[..., self.length] = logprobs.flatten(1).gather(1, flat)
        children.scores = best
        children.lengths += 1
        ends = ids == self.rules.eos_id
        self._collect(children, ends if self.length + 1 < self.options.max_length else torch.ones_like(ends))
        going, order = best.masked_fill(ends, -torch.inf).topk(beams)
        self.live = children.pick(order)
        self.live.scores = going
        self.cache.follow(parents.gather(1, order))
        reach = _reach(going[:, 0], self.length + 1, self.options)
        self.done |= reach <= self.kept.scores[:, -1]
        if self.options.early_stopping:
            self.done |= self.ended >= beams

    def _collect(self, children: _Texts, ends: Tensor) -> None:
        """Keep the best captions; only an end among the N best children counts, so that one beam is greedy."""
        beams, kept = self.live.scores.shape[1], self.kept
        ends = ends[:, :beams] & ~self.done[:, None]
        self.ended += ends.sum(-1)
        final = children.scores[:, :beams] / (self.length + 1) ** self.options.length_penalty
        scores = torch.cat([kept.scores, final.masked_fill(~ends, -torch.inf)], dim=1)
        scores, order = scores.sort(dim=1, descending=True, stable=True)  # stable: what stands, stays
        order = order[:, : kept.scores.shape[1]]
        both = _Texts(
            torch.cat([kept.tokens, children.tokens[:, :beams]], dim=1),
            torch.cat([kept.logprobs, children.logprobs[:, :beams]], dim=1),
            scores,
            torch.cat([kept.lengths, children.lengths[:, :beams]], dim=1),
        )
        self.kept = both.pick(order)
        self.kept.scores = scores[:, : order.shape[1]]

    def _best(self) -> _Texts:
        return self.kept

    def _contenders(self) -> tuple[_Texts, Tensor]:
        best = self.kept.keep(torch.arange(len(self.images), device=self.done.device))
        reach = _reach(self.live.scores, self.length, self.options)
        texts = _Texts(
            torch.cat([best.tokens[:, :1], self.live.tokens], dim=1),
            torch.cat([best.logprobs[:, :1], self.live.logprobs], dim=1),
            torch.cat([best.scores[:, :1], reach], dim=1),
            torch.cat([best.lengths[:, :1], self.live.lengths], dim=1),
        )
        found = best.scores[:, :1] > -torch.inf
        return texts, torch.cat([found, reach > best.scores[:, :1]], dim=1)

    def _keep(self, images: Tensor) -> None:
        super()._keep(images)
        self.kept = self.kept.keep(images)
        self.ended = self.ended[images]


def _reach(scores: Tensor, length: int, options: GenerationOptions) -> Tensor:
    """The best final score that texts with these summed log-probs can still get.

    Further log-probs are at most 0. Dividing by a larger number helps what is negative, so the bound is at
    max_length for a positive length penalty and at the next token otherwise.
    """
    longest = options.max_length if options.length_penalty > 0 else length + 1
    return scores / float(longest**options.length_penalty)
