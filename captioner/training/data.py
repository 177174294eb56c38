"""Captions of photographs -> batches of activations and token ids."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from captioner.coco import CocoCaptions
from captioner.training.cache import ActivationCache, View, stack
from captioner.training.labels import Captions, Labels, mirrored

__all__ = ["MANY_CAPTIONS", "Batch", "CaptionSet", "batches", "rarity"]

MANY_CAPTIONS = 4
"""Captions of a photo from which on they tell what people say of it; of fewer each is one person's choice."""

RAREST, COMMONEST = 2.0, 0.5
"""How often a photo of rare or of common words is shown, at most and at least, of once for the mean photo."""


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
        labels: Labels,
        cache: ActivationCache,
        *,
        photos_per_batch: int,
        content: Container[int] | None = None,
        narratives: bool = False,
    ) -> CaptionSet:
        """Tokenise the captions; of narratives the whole.

        ``content`` are the tokens by whose rarity photos are weighed, if they are to be.
        """
        texts = [captions for _, captions in coco.pairs()]
        token_ids, turned = (
            [[labels.sequence(side(text), whole=narratives) for text in captions] for captions in texts]
            for side in (str, mirrored)
        )
        weights = None if content is None or narratives else rarity(token_ids, content)
        return cls(cache, token_ids, turned, photos_per_batch, weights, narratives)

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


def batches(sets: Sequence[CaptionSet], labels: Labels, *, seed: int) -> Iterator[list[Batch]]:
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
                    labels.pack(captions),
                    group.narratives,
                )
            )
        yield parts
