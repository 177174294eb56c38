"""What may follow: rules and sampling filters over the scores of the next word, as plain functions.

``scores (B, N, V)`` are float32 log-probs of ``B`` images with ``N`` rows of text each; ``history (B, N, T)``
int64 is the text so far without its start token. Every function returns new scores; -inf is never chosen.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = [
    "bad_word_table",
    "forbid_bad_words",
    "forbid_repeated_ngrams",
    "penalise_repetition",
    "top_k",
    "top_p",
]

ANY, NONE = -1, -2  # in a table of bad words: matches every token; stands before the text began


def penalise_repetition(scores: Tensor, history: Tensor, penalty: float) -> Tensor:
    """Multiply the log-probs of words that the text already has by ``penalty`` (CTRL, Keskar et al. 2019).

    A log-prob is never positive, so a penalty above 1 always makes a word less likely, which is not so for
    the logits that the paper divides.
    """
    seen = scores.gather(-1, history) * penalty
    return scores.scatter(-1, history, seen)


def forbid_repeated_ngrams(scores: Tensor, history: Tensor, size: int) -> Tensor:
    """Forbid words that would complete an n-gram of ``size`` words which the text already has."""
    if history.shape[-1] < size:
        return scores
    ngrams = history.unfold(-1, size, 1)  # (B, N, T-size+1, size)
    current = history[..., history.shape[-1] - size + 1 :]
    return _forbid(scores, ngrams[..., -1], (ngrams[..., :-1] == current[..., None, :]).all(-1))


def bad_word_table(words: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Bad words as ``(W, M)`` int64, one a row, filled up on the left so that any token matches there."""
    longest = max(map(len, words))
    return torch.tensor([[ANY] * (longest - len(word)) + list(word) for word in words], device=device)


def forbid_bad_words(scores: Tensor, history: Tensor, table: Tensor) -> Tensor:
    """Forbid the last token of each bad word whose other tokens the text ends with."""
    start, last = table[:, :-1], table[:, -1]
    padding = history.new_full((*history.shape[:-1], start.shape[1]), NONE)
    text = torch.cat([padding, history], dim=-1)
    current = text[..., text.shape[-1] - start.shape[1] :, None].transpose(-1, -2)  # (B, N, 1, M-1)
    matches = ((start == current) | (start == ANY)).all(-1)  # (B, N, W)
    return _forbid(scores, last.expand_as(matches), matches)


def top_k(scores: Tensor, k: int) -> Tensor:
    """Keep the ``k`` best words of each row (Fan et al. 2018), and those that tie with the last of them."""
    worst = scores.topk(min(k, scores.shape[-1])).values[..., -1:]
    return scores.masked_fill(scores < worst, -torch.inf)


def top_p(scores: Tensor, p: float) -> Tensor:
    """Keep the fewest words whose probabilities sum to ``p`` or more (nucleus, Holtzman et al. 2020)."""
    ordered = scores.sort(dim=-1, descending=True).values
    probs = ordered.softmax(-1)
    needed = probs.cumsum(-1) - probs < p  # what stands before the word does not reach p
    worst = ordered.masked_fill(~needed, torch.inf).amin(-1, keepdim=True)
    return scores.masked_fill(scores < worst, -torch.inf)


def _forbid(scores: Tensor, ids: Tensor, where: Tensor) -> Tensor:
    """-inf at ``ids (B, N, m)`` where ``where`` holds; the others are sent to a column that is cut off."""
    vocab = scores.shape[-1]
    banned = torch.zeros(*scores.shape[:-1], vocab + 1, dtype=torch.bool, device=scores.device)
    banned.scatter_(-1, ids.masked_fill(~where, vocab), True)
    return scores.masked_fill(banned[..., :vocab], -torch.inf)
