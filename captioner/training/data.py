"""Captions of photographs -> batches of activations and token ids."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from captioner.coco import CocoCaptions
from captioner.tokenizer import CaptionTokenizer
from captioner.training.cache import ActivationCache, View, stack

__all__ = [
    "IGNORE",
    "MANY_CAPTIONS",
    "Batch",
    "CaptionSet",
    "Captions",
    "batches",
    "pack",
    "rarity",
    "sequence",
]

IGNORE = -100
"""Target of padding and of words outside the vocabulary."""

MANY_CAPTIONS = 4
"""Captions of a photo from which on they tell what people say of it; of fewer each is one person's choice."""

RAREST, COMMONEST = 2.0, 0.5
"""How often a photo of rare or of common words is shown, at most and at least, of once for the mean photo."""


class Captions(NamedTuple):
    """Captions of ``B`` photos, up to ``N`` of each; rows without one are padding throughout.

    ``input_ids (B, N, T)`` int64, start token first; ``targets`` alike: the next token, or ``IGNORE``.
    """

    input_ids: Tensor
    targets: Tensor

    @property
    def number(self) -> int:
        """How many captions there are."""
        return int((self.targets != IGNORE).any(2).sum())

    def to(self, device: torch.device) -> Captions:
        """The same on a device."""
        return Captions(self.input_ids.to(device), self.targets.to(device))

    def pick(self, photos: list[int]) -> Captions:
        """Those of some photos."""
        return Captions(self.input_ids[photos], self.targets[photos])


@dataclass(frozen=True)
class CaptionSet:
    """The captions of one photo set as token ids, and its cached activations.

    Attributes:
        cache: the photos' activations.
        token_ids: for each photo its captions, start and end token included.
        mirrored: the same captions with left and right exchanged, for mirrored views.
        photos_per_batch: how many photos a batch takes from this set.
        weights: how often each photo is shown, on average once; None for all alike.
        narratives: whether the texts are no captions to learn, but long descriptions.
    """

    cache: ActivationCache
    token_ids: list[list[list[int]]]
    mirrored: list[list[list[int]]]
    photos_per_batch: int
    weights: npt.NDArray[np.float64] | None = None
    narratives: bool = False

    @classmethod
    def build(
        cls,
        coco: CocoCaptions,
        tokenizer: CaptionTokenizer,
        cache: ActivationCache,
        *,
        photos_per_batch: int,
        max_words: int,
        content: Container[int] | None = None,
        narratives: bool = False,
    ) -> CaptionSet:
        """Tokenise the captions; those over ``max_words`` are cut and lose their end token.

        ``content`` are the tokens by whose rarity photos are weighed, if they are to be.
        """
        left, right = tokenizer.token_id("left"), tokenizer.token_id("right")
        swap = {left: right, right: left} if left is not None and right is not None else {}
        most = None if narratives else max_words
        token_ids = [
            [sequence(tokenizer, text, most) for text in coco.captions[image.id]] for image in coco.images
        ]
        mirrored = [[[swap.get(i, i) for i in ids] for ids in captions] for captions in token_ids]
        weights = None if content is None or narratives else rarity(token_ids, content)
        return cls(cache, token_ids, mirrored, photos_per_batch, weights, narratives)

    def __len__(self) -> int:
        return len(self.token_ids)

    def order(self, rng: random.Random) -> list[int]:
        """As many photos as there are, in random order; each as often as its weight says, rounded at random.

        That is systematic resampling: a photo of weight 1.6 comes once or twice.
        """
        if self.weights is None:
            return rng.sample(range(len(self)), len(self))
        places = rng.random() + np.arange(len(self))
        found = np.searchsorted(np.cumsum(self.weights), places).clip(max=len(self) - 1)
        drawn = [int(photo) for photo in found]
        rng.shuffle(drawn)
        return drawn


def sequence(tokenizer: CaptionTokenizer, caption: str, max_words: int | None) -> list[int]:
    """The token ids of a caption, with the end token if it was not cut."""
    config, ids = tokenizer.config, tokenizer.encode(caption)
    whole = max_words is None or len(ids) <= max_words
    return [*config.start_ids, *ids[:max_words], *([config.eos_id] if whole else [])]


def rarity(token_ids: Sequence[Sequence[Sequence[int]]], content: Container[int]) -> npt.NDArray[np.float64]:
    """How often photos are to be shown so that common things do not drown the rest; 1 on average.

    It goes with the mean inverse document frequency of the content words of a photo's captions, and is held
    between a half and twice the mean.
    """
    said = [[[t for t in set(ids) if t in content] for ids in captions] for captions in token_ids]
    photos = Counter(token for captions in said for token in {t for ids in captions for t in ids})
    rare = [
        [math.log(len(said) / photos[token]) for ids in captions for token in ids] or [1.0]
        for captions in said
    ]
    means = np.array([sum(values) / len(values) for values in rare])
    weights = (means / max(float(means.mean()), 1e-9)).clip(COMMONEST, RAREST)
    normalised: npt.NDArray[np.float64] = weights / weights.mean()
    return normalised


@dataclass(frozen=True)
class Batch:
    """Some photos of one set in one view each.

    Attributes:
        group: which set it is, from 0.
        photos: the photos' places in their set.
        view: what is kept of them.
        captions: theirs.
        narratives: whether these are no captions to learn, but long descriptions.
    """

    group: int
    photos: list[int]
    view: View
    captions: Captions
    narratives: bool = False

    def pick(self, chosen: list[int]) -> Batch:
        """Some of its photos."""
        colours = None if self.view.colours is None else self.view.colours[chosen]
        view = View(self.view.activations[chosen], colours)
        captions = self.captions.pick(chosen)
        return replace(self, photos=[self.photos[i] for i in chosen], view=view, captions=captions)


def batches(sets: Sequence[CaptionSet], *, pad_id: int, unk_id: int, seed: int) -> Iterator[list[Batch]]:
    """One epoch over the first set, with a batch of each further set beside every batch of the first.

    Photos come in a random order, each in a random view. Further sets are shuffled and cut to the length of
    the epoch, or start again.
    """
    rng = random.Random(seed)
    steps = len(sets[0]) // sets[0].photos_per_batch
    orders = [group.order(rng) for group in sets]
    views = [[group.cache.open(view) for view in range(group.cache.views)] for group in sets]
    for step in range(steps):
        parts = []
        for number, (group, order, opened) in enumerate(zip(sets, orders, views, strict=True)):
            size = group.photos_per_batch
            photos = [order[(step * size + i) % len(order)] for i in range(size)]
            chosen = [rng.randrange(group.cache.views) for _ in photos]
            captions = []
            for photo, view in zip(photos, chosen, strict=True):
                source = group.mirrored[photo] if view % 2 else group.token_ids[photo]
                captions.append(rng.sample(source, len(source)))
            parts.append(
                Batch(
                    number,
                    photos,
                    stack([opened[view] for view in chosen], photos),
                    pack(captions, pad_id=pad_id, unk_id=unk_id),
                    group.narratives,
                )
            )
        yield parts


def pack(captions: Sequence[Sequence[Sequence[int]]], *, pad_id: int, unk_id: int) -> Captions:
    """The token ids of each photo's captions, start token included, in one rectangle."""
    rows, longest = max(map(len, captions)), max(len(ids) for photo in captions for ids in photo)
    padded = torch.full((len(captions), rows, longest), pad_id, dtype=torch.int64)
    for i, photo in enumerate(captions):
        for j, ids in enumerate(photo):
            padded[i, j, : len(ids)] = torch.tensor(ids)
    targets = padded[:, :, 1:].clone()
    targets[(targets == pad_id) | (targets == unk_id)] = IGNORE
    return Captions(padded[:, :, :-1].contiguous(), targets)
