"""The decode loop: it feeds the decoder, applies the rules, and chooses the next tokens of every row.

:class:`Search` is the loop; its two kinds differ in how they choose: :class:`BeamSearch` among all beams of
an image, :class:`RowSearch` (greedy search and sampling) in each row by itself. Nothing in a step loops over
images or rows, and a step nowhere waits for the device.

Shapes: ``B`` images still in the batch, ``N`` rows of each (beams or samples), ``L`` tokens at most, ``K``
captions wanted, ``V`` words.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from captioner.decoder import KVCache, TextDecoder
from captioner.logits import DecodeRules, LogitsRules, perturb
from captioner.options import SearchOptions

__all__ = ["BeamSearch", "Hypothesis", "RowSearch", "Search"]


@dataclass(frozen=True)
class Hypothesis:
    """One caption as token ids.

    Attributes:
        token_ids: what was generated: without the prompt, with the end token if it came to that.
        logprobs: the model's own natural log-prob of each, before temperature, penalties and filters.
        score: summed log-probs, after the repetition penalty, / length ** length_penalty.
        finished: whether the model ended it; else max_length cut it off, with a forced end token or without.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    score: float
    finished: bool


class Texts:
    """``n`` texts of each image: ids and log-probs ``(B, n, L)``, scores and lengths ``(B, n)``.

    The scores of texts that go on are summed log-probs, of finished ones divided by their length's power;
    -inf where there is no text. All four are views of one tensor, so that a text is picked in one operation.

    Args:
        data: ``(B, n, 2 * L + 2)`` int32: ids, log-probs and score as the bits of float32, length.
    """

    def __init__(self, data: Tensor) -> None:
        self.data = data
        self._length = data.shape[-1] // 2 - 1

    @property
    def tokens(self) -> Tensor:
        return self.data[..., : self._length]

    @property
    def logprobs(self) -> Tensor:
        return self.data[..., self._length : 2 * self._length].view(torch.float32)

    @property
    def scores(self) -> Tensor:
        return self.data[..., 2 * self._length].view(torch.float32)

    @property
    def lengths(self) -> Tensor:
        return self.data[..., 2 * self._length + 1]

    @classmethod
    def empty(cls, images: int, rows: int, length: int, *, device: torch.device) -> Texts:
        texts = cls(torch.zeros(images, rows, 2 * length + 2, dtype=torch.int32, device=device))
        texts.scores.fill_(-torch.inf)
        return texts

    def pick(self, index: Tensor) -> Texts:
        """The texts at ``index (B, m)``."""
        return Texts(self.data.gather(1, index[..., None].expand(-1, -1, self.data.shape[-1])))

    def first(self, count: int) -> Texts:
        """The first texts of each image."""
        return Texts(self.data[:, :count])

    def keep(self, images: Tensor) -> Texts:
        """The texts of some images ``(B',)``."""
        return Texts(self.data[images])

    def join(self, others: Texts) -> Texts:
        """These texts, then the others."""
        return Texts(torch.cat([self.data, others.data], dim=1))


class Search(ABC):
    """A batch being decoded: the decoder's caches, the texts so far, and which images are done.

    Args:
        decoder: in eval mode.
        region_tokens: ``(B, R, D)``.
        options: of the search.
        rules: token ids.
        rows: ``N``.

    Attributes:
        steps: tokens to generate at most.
        images: where the images still in the batch stood in it at first.
        results: the captions of those that left it, best first.
        length: tokens generated so far.
    """

    def __init__(
        self,
        decoder: TextDecoder,
        region_tokens: Tensor,
        options: SearchOptions,
        rules: DecodeRules,
        *,
        rows: int,
    ) -> None:
        device = region_tokens.device
        self.decoder, self.options, self.rules, self.rows = decoder, options, rules, rows
        self.apply_rules = LogitsRules(options, rules, device)
        self.steps = rules.steps(options)
        # one table for all divisions by a length: bounds and final scores then round alike
        lengths = [max(rules.counted_start + n, 1) for n in range(self.steps + 1)]
        self.divisors = torch.tensor([n**options.length_penalty for n in lengths], device=device)
        self.places = torch.arange(self.steps, device=device)
        self.prompt = torch.tensor(rules.prompt_ids, device=device)
        self.begin(region_tokens)

    @torch.inference_mode()
    def begin(self, region_tokens: Tensor) -> None:
        """Start anew, with other images or the same; takes nothing from the host."""
        batch, device, prompt = len(region_tokens), region_tokens.device, len(self.prompt)
        self.images = list(range(batch))
        self.results: dict[int, list[Hypothesis]] = {}
        self.length = 0
        self.live = Texts.empty(batch, self.rows, self.steps, device=device)
        self.done = torch.zeros(batch, dtype=torch.bool, device=device)
        cross = self.decoder.cross_cache(region_tokens)
        # read at every step, and faster where an attention head's keys lie one after the other
        self.cross = [(keys.contiguous(), values.contiguous()) for keys, values in cross]
        self.cache = KVCache(
            self.decoder.config,
            images=batch,
            rows=self.rows,
            prompt=prompt,
            length=prompt + self.steps - 1,  # the last token is never fed
            like=self.cross[0][0],
        )

    @torch.inference_mode()
    def step(self) -> None:
        """Choose the next token of every row."""
        logprobs = self._next_logits().float().log_softmax(-1)
        scores = self.apply_rules(logprobs, self.live.tokens[..., : self.length].long())
        self.length += 1
        self._advance(logprobs, scores)

    @torch.inference_mode()
    def settle(self, *, at_most: float) -> None:
        """Let images that are done leave, if at most this share of the batch stays; waits for the device."""
        over = self.length == self.steps
        done = [True] * len(self.images) if over else self.done.tolist()
        left = [place for place, is_done in enumerate(done) if not is_done]
        if len(left) == len(done) or len(left) > at_most * len(done):
            return
        hypotheses = self.hypotheses()
        self.results |= {self.images[place]: hypotheses[place] for place in set(range(len(done))) - set(left)}
        self.images = [self.images[place] for place in left]
        self._keep(torch.tensor(left, dtype=torch.int64, device=self.done.device))

    def decided(self) -> list[list[int]]:
        """For each image in the batch the tokens that all contenders for its best caption begin with."""
        texts, mask = self._contenders()
        model = texts.pick(mask.int().argmax(1, keepdim=True)).tokens  # (B, 1, L), any of the contenders
        same = (texts.tokens == model) & (self.places < texts.lengths[..., None])
        agreed = (same | ~mask[..., None]).all(1).int().cumprod(-1).sum(-1)
        rows = zip(model[:, 0].tolist(), agreed.tolist(), strict=True)
        return [row[:count] for row, count in rows]

    @abstractmethod
    def _advance(self, logprobs: Tensor, scores: Tensor) -> None:
        """Choose the tokens at ``length - 1`` by ``scores (B, N, V)``: the ``logprobs`` after the rules."""

    @abstractmethod
    def _best(self) -> Texts:
        """The captions found so far, ``(B, K)``, best first."""

    @abstractmethod
    def _contenders(self) -> tuple[Texts, Tensor]:
        """Texts, and a mask ``(B, n)`` of those that are or may yet become the best caption."""

    def _next_logits(self) -> Tensor:
        """``(B, N, V)`` for the token that comes next; the prompt goes in as one row of each image."""
        batch, rows = self.live.scores.shape
        if self.length == 0:
            ids = self.prompt.expand(batch, 1, -1)
        else:
            ids = self.live.tokens[..., self.length - 1 : self.length]
        hidden, _ = self.decoder(ids, self.cross, cache=self.cache)
        return self.decoder.logits(hidden[:, :, -1]).expand(batch, rows, -1)

    def _reach(self) -> Tensor:
        """The best score ``(B, N)`` that the live texts can still get.

        Further log-probs are at most 0. What is negative gains by a larger divisor, so the bound is that of
        the last step for a positive length penalty and that of the very next token otherwise.
        """
        longest = self.steps
        if self.options.length_penalty <= 0:
            longest = min(self.length + 1, longest)
        return self.live.scores / self.divisors[longest]

    def _keep(self, images: Tensor) -> None:
        self.live = self.live.keep(images)
        self.done = self.done[images]
        self.cross = [(keys[images], values[images]) for keys, values in self.cross]
        self.cache.keep(images)

    @torch.inference_mode()
    def hypotheses(self) -> list[list[Hypothesis]]:
        """The captions of the images in the batch as they are now, best first; waits for the device."""
        best = Texts(self._best().data.cpu())
        forced = self.steps if self.rules.forced_end is not None else math.inf  # where an end is no choice
        fields = [tensor.tolist() for tensor in (best.tokens, best.logprobs, best.scores, best.lengths)]
        return [
            [
                Hypothesis(
                    tuple(ids[:n]), tuple(logprobs[:n]), score, ids[n - 1] == self.rules.eos_id and n < forced
                )
                for ids, logprobs, score, n in zip(*image, strict=True)
                if score > -math.inf
            ]
            for image in zip(*fields, strict=True)
        ]


class RowSearch(Search):
    """Each row takes its best next token (greedy search) or draws one (sampling) until its text ends."""

    def __init__(
        self, decoder: TextDecoder, region_tokens: Tensor, options: SearchOptions, rules: DecodeRules
    ) -> None:
        super().__init__(decoder, region_tokens, options, rules, rows=1 + options.alternatives)
        self.generator = None
        if options.seed is not None:
            self.generator = torch.Generator(region_tokens.device).manual_seed(options.seed)

    @torch.inference_mode()
    def begin(self, region_tokens: Tensor) -> None:
        super().begin(region_tokens)
        self.live.scores.zero_()
        self.ended = torch.zeros_like(self.live.scores, dtype=torch.bool)

    def _advance(self, logprobs: Tensor, scores: Tensor) -> None:
        live, going = self.live, ~self.ended
        choice = perturb(scores, self.options, self.generator) if self.options.do_sample else scores
        ids = choice.argmax(-1, keepdim=True)  # (B, N, 1)
        live.tokens[..., self.length - 1] = ids[..., 0]  # also after an end: what stands there is never read
        live.logprobs[..., self.length - 1] = logprobs.gather(-1, ids)[..., 0]
        live.scores.add_(scores.gather(-1, ids)[..., 0] * going)
        live.lengths.add_(going)
        self.ended |= ids[..., 0] == self.rules.eos_id
        self.done = self.ended.all(-1)

    def _final(self) -> Tensor:
        return self.live.scores / self.divisors[self.live.lengths]

    def _best(self) -> Texts:
        scores, order = self._final().sort(dim=-1, descending=True, stable=True)
        best = self.live.pick(order)
        best.scores.copy_(scores)
        return best

    def _contenders(self) -> tuple[Texts, Tensor]:
        final = self._final()
        best = final.masked_fill(~self.ended, -torch.inf).amax(-1, keepdim=True)
        return self.live, torch.where(self.ended, final, self._reach()) >= best

    def _keep(self, images: Tensor) -> None:
        super()._keep(images)
        self.ended = self.ended[images]


class BeamSearch(Search):
    """The ``N`` best texts of each image go on; of those that have ended the ``K`` best are kept.

    An image is done when no beam can come before its K-th best caption any more, so that its captions are
    those of a search to max_length. There, texts without an end count as well.
    """

    def __init__(
        self, decoder: TextDecoder, region_tokens: Tensor, options: SearchOptions, rules: DecodeRules
    ) -> None:
        super().__init__(decoder, region_tokens, options, rules, rows=options.num_beams)

    @torch.inference_mode()
    def begin(self, region_tokens: Tensor) -> None:
        super().begin(region_tokens)
        self.live.scores[:, 0].fill_(0)  # all rows begin alike, so only one of them may have children
        shape = (len(region_tokens), 1 + self.options.alternatives, self.steps)
        self.kept = Texts.empty(*shape, device=region_tokens.device)
        self.endings = torch.zeros_like(self.done, dtype=torch.int64)

    def _advance(self, logprobs: Tensor, scores: Tensor) -> None:
        beams, vocab = scores.shape[1:]
        total = (self.live.scores[..., None] + scores).flatten(1)  # (B, N*V)
        best, flat = total.topk(2 * beams)  # each beam has one end, so at least N of these go on
        parents, ids = flat // vocab, flat % vocab
        children = self.live.pick(parents)
        children.scores.copy_(best)
        children.tokens[..., self.length - 1] = ids
        children.logprobs[..., self.length - 1] = logprobs.flatten(1).gather(1, flat)
        children.lengths.add_(1)
        ends = ids == self.rules.eos_id
        self._collect(children.first(beams), ends[:, :beams])
        going, order = best.masked_fill(ends, -torch.inf).topk(beams)
        self.live = children.pick(order)
        self.live.scores.copy_(going)
        self.cache.follow(parents.gather(1, order))
        self.done |= self._reach()[:, 0] <= self.kept.scores[:, -1]
        if self.options.early_stopping:
            self.done |= self.endings >= beams

    def _collect(self, children: Texts, ends: Tensor) -> None:
        """Keep the best captions. Only ends among the N best children come here: with all, one beam would
        collect ends that greedy search passes by."""
        if self.length == self.steps:
            ends = torch.ones_like(ends)
        ends = ends & ~self.done[:, None]
        self.endings += ends.sum(-1)
        final = (children.scores / self.divisors[self.length]).masked_fill(~ends, -torch.inf)
        scores = torch.cat([self.kept.scores, final], dim=1)
        scores, order = scores.sort(dim=1, descending=True, stable=True)  # in a tie the older one stays
        wanted = self.kept.scores.shape[1]
        self.kept = self.kept.join(children).pick(order[:, :wanted])
        self.kept.scores.copy_(scores[:, :wanted])

    def _best(self) -> Texts:
        return self.kept

    def _contenders(self) -> tuple[Texts, Tensor]:
        best, reach = self.kept.first(1), self._reach()
        mask = torch.cat([best.scores > -torch.inf, reach > best.scores], dim=1)
        return best.join(self.live), mask

    def _keep(self, images: Tensor) -> None:
        super()._keep(images)
        self.kept = self.kept.keep(images)
        self.endings = self.endings[images]
