"""Word tags: the words that a photo's captions say, as its features tell them.

A ridge regression from the mean feature to the share of captions that say each word is honest about photos it
has not seen, since it is solved in closed form: so is its answer for each training photo with that photo left
out. The decoder learns from those answers how far to trust word tags. Told what the regression says with the
photo itself in, it would learn to trust them blindly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from captioner.content import FUNCTION_WORDS, word_set
from captioner.regions import TagTokens
from captioner.tokenizer import CaptionTokenizer
from captioner.training.data import MANY_CAPTIONS

__all__ = ["caption_words", "content_tokens", "fit_word_head", "word_shares"]

FEWEST_PHOTOS = 20  # whose captions say a word that is to be a tag
RIDGE = 0.75  # of a feature's own variance
FEW_WEIGHT = 0.3  # of a photo of an extra set with few captions
WORDS_AT_ONCE = 128  # whose numbers are in memory in double precision
NO_TAGS = word_set(
    """
a all an and are as around at back background be been being by down each for from front has have having he
her him his in into is it its near next not of off on one or other out over she side some that the their
them there they this through to together top up very what while who with
"""
)
"""Words that are no tags, though captions say them often. They are not content.py's function words, of which
some are tags of the shipped model ("behind", "inside").
"""


def caption_words(captions: Sequence[Sequence[str]], tokenizer: CaptionTokenizer) -> list[str]:
    """The words that can be tags: known, not function words, said by the captions of 20 photos or more.

    Args:
        captions: of each photo.
        tokenizer: whose words they are.
    """
    photos = Counter(
        token for texts in captions for token in {token for text in texts for token in tokenizer.encode(text)}
    )
    words = {tokenizer.decode([token]) for token, count in photos.items() if count >= FEWEST_PHOTOS}
    return sorted(word for word in words if word.isalpha() and word not in NO_TAGS)


def content_tokens(tokenizer: CaptionTokenizer) -> dict[int, str]:
    """The tokens of a vocabulary that say something of a photo, and the word of each."""
    words = {token: tokenizer.decode([token]) for token in range(tokenizer.vocab_size)}
    return {token: word for token, word in words.items() if word[:1].isalnum() and word not in FUNCTION_WORDS}


@torch.no_grad()
def fit_word_head(
    tags: TagTokens,
    features: Sequence[Tensor],
    captions: Sequence[Sequence[Sequence[Sequence[int]]]],
    *,
    earlier: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    """Solve the word head by the training photos, and tell what it says of each if fitted to all others.

    It takes some 30 bytes a photo and channel and 5 a photo and word: half a gigabyte for 12,000 photos.

    Args:
        tags: with the word head, its words known.
        features: of each photo set what the word head reads, ``(photos, C)``; the main set first.
        captions: for each set and photo the token ids of the captions.
        earlier: the same of a backbone that has not been trained on these photos, if this one has: it knows
            them by heart, so that leaving a photo out of the fit no longer hides it. The answers are then
            those of a fit to the earlier features.

    Returns:
        For each set, ``(photos, words)``: the share of a photo's captions that say each word, as a fit
        without the photo itself has it.
    """
    assert tags.word_head is not None
    words = tags.head_words[tags.classes :].tolist()
    sizes = [len(part) for part in features]
    shares = torch.cat([word_shares(part, words) for part in captions])
    weight = torch.ones(len(shares), 1, dtype=torch.float64)
    few = [len(texts) < MANY_CAPTIONS for part in captions[1:] for texts in part]
    weight[sizes[0] :][torch.tensor(few, dtype=torch.bool)] = FEW_WEIGHT
    said = shares if earlier is None else shares.clone()
    for columns, slope, bias, prior in _regress(torch.cat(list(features)), said, weight):
        tags.word_head.weight[columns] = slope.T.to(tags.word_head.weight)
        tags.word_head.bias[columns] = bias.to(tags.word_head.bias)
        tags.word_prior[columns] = prior.to(tags.word_prior)
    if earlier is not None:
        for _ in _regress(torch.cat(list(earlier)), shares, weight):
            pass
    return list(torch.split(shares, sizes))


def _regress(
    features: Tensor, shares: Tensor, weight: Tensor
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """Ridge regression of shares ``(photos, words)`` on features ``(photos, C)``, some words at a time.

    Yields which words, their slope ``(C, words)``, bias and mean. Their shares are then replaced, in place,
    by what a fit without the photo itself says.
    """
    x = features.double()
    total = weight.sum()
    mean = (weight * x).sum(0) / total
    scale = ((weight * (x - mean).square()).sum(0) / total).sqrt() + 1e-3
    x = (x - mean) / scale
    gram = (weight * x).T @ x
    gram.diagonal().add_(RIDGE * total)
    inverse = torch.linalg.inv(gram)
    leverage = weight * ((x @ inverse) * x).sum(1, keepdim=True)
    for begin in range(0, shares.shape[1], WORDS_AT_ONCE):
        columns = slice(begin, begin + WORDS_AT_ONCE)
        y = shares[:, columns].double()
        prior = (weight.T @ y)[0] / total
        y -= prior
        solution = inverse @ (x.T @ (weight * y))  # (C, words)
        shares[:, columns] = (x @ solution - leverage * y) / (1 - leverage) + prior  # each photo left out
        slope = solution / scale[:, None]
        yield columns, slope, prior - mean @ slope, prior


def word_shares(captions: Sequence[Sequence[Sequence[int]]], words: Sequence[int]) -> Tensor:
    """The share of each photo's captions that say each word: ``(photos, words)``."""
    columns = {word: column for column, word in enumerate(words)}
    shares = torch.zeros(len(captions), len(words))
    for row, texts in zip(shares, captions, strict=True):
        for text in texts:
            said = [columns[token] for token in set(text) if token in columns]
            row[said] += 1 / len(texts)
    return shares
