"""Word tags: the words that a photo's captions say, as its features tell them.

A ridge regression from the mean feature to the share of captions that say each word is honest about photos it
has not seen, since it is solved in closed form: so is its answer for each training photo with that photo left
out. The decoder learns from those answers how far to trust word tags. Told what the regression says with the
photo itself in, it would learn to trust them blindly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from captioner.model import Tags, TagTokens
from captioner.tokenizer import CaptionTokenizer

__all__ = ["caption_words", "fit_word_head"]

FEWEST_PHOTOS = 20  # whose captions say a word that is to be a tag
RIDGE = 0.75  # of a feature's own variance
EXTRA_WEIGHT = 0.3  # of a photo of an extra set
WORDS_AT_ONCE = 128  # whose numbers are in memory in double precision
FUNCTION_WORDS = """
a all an and are as around at back background be been being by down each for from front has have having he
her him his in into is it its near next not of off on one or other out over she side some that the their
them there they this through to together top up very what while who with
"""  # and others that tell nothing of a photo


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
    return sorted(word for word in words if word.isalpha() and word not in FUNCTION_WORDS.split())


@torch.no_grad()
def fit_word_head(
    tags: TagTokens, features: Sequence[Tensor], captions: Sequence[Sequence[Sequence[Sequence[int]]]]
) -> list[Tags]:
    """Solve the word head by the training photos, and tell what it says of each if fitted to all others.

    It takes some 30 bytes a photo and channel and 5 a photo and word: half a gigabyte for 12,000 photos.

    Args:
        tags: with the word head, its words known.
        features: the mean features of each photo set, ``(photos, C)``; the main set first.
        captions: for each set and photo the token ids of the captions.

    Returns:
        For each set the word tags of its photos, each by a fit without the photo itself.
    """
    assert tags.word_head is not None
    words = tags.head_words[tags.classes :].tolist()
    sizes = [len(part) for part in features]
    x = torch.cat(list(features)).double()
    shares = torch.cat([_shares(part, words) for part in captions])
    weight = torch.ones(len(x), 1, dtype=x.dtype)
    weight[sizes[0] :] = EXTRA_WEIGHT
    total = weight.sum()
    mean = (weight * x).sum(0) / total
    scale = ((weight * (x - mean).square()).sum(0) / total).sqrt() + 1e-3
    x = (x - mean) / scale
    gram = (weight * x).T @ x
    gram.diagonal().add_(RIDGE * total)
    inverse = torch.linalg.inv(gram)
    leverage = weight * ((x @ inverse) * x).sum(1, keepdim=True)
    for begin in range(0, len(words), WORDS_AT_ONCE):
        columns = slice(begin, begin + WORDS_AT_ONCE)
        y = shares[:, columns].double()
        prior = (weight.T @ y)[0] / total
        y -= prior
        solution = inverse @ (x.T @ (weight * y))  # (C, words)
        shares[:, columns] = (x @ solution - leverage * y) / (1 - leverage) + prior  # each photo left out
        slope = solution / scale[:, None]
        tags.word_head.weight[columns] = slope.T.to(tags.word_head.weight)
        tags.word_head.bias[columns] = (prior - mean @ slope).to(tags.word_head.bias)
        tags.word_prior[columns] = prior.to(tags.word_prior)
    return [tags.likely_words(part) for part in torch.split(shares.to(tags.word_prior), sizes)]


def _shares(captions: Sequence[Sequence[Sequence[int]]], words: Sequence[int]) -> Tensor:
    """The share of each photo's captions that say each word: ``(photos, words)``."""
    columns = {word: column for column, word in enumerate(words)}
    shares = torch.zeros(len(captions), len(words))
    for row, texts in zip(shares, captions, strict=True):
        for text in texts:
            said = [columns[token] for token in set(text) if token in columns]
            row[said] += 1 / len(texts)
    return shares
