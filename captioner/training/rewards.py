"""What a caption is worth in self-critical training: likeness to what people wrote, and truth."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from captioner.content import PEOPLE
from captioner.evaluation.metrics import CiderScorer
from captioner.tokenizer import CaptionTokenizer
from captioner.training.data import MANY_CAPTIONS
from captioner.training.options import TrainingOptions
from captioner.training.words import content_tokens

__all__ = ["Photo", "References", "Rewards", "consensus_sets"]

EOS_WORD = "<eos>"
NARRATIVE_WEIGHT = 1.6
"""How much the content words of a photo with a narrative count of those of others: it has no CIDEr beside."""

Ids = Sequence[int]
Photo = tuple[int, int]
"""The number of its set, and its place in it."""


@dataclass(frozen=True)
class References:
    """What people wrote about the photos of one set, as token ids without start and end token.

    Attributes:
        captions: of each photo.
        narratives: whether they are long descriptions, of which a caption need only share the words.
    """

    captions: Sequence[Sequence[Ids]]
    narratives: bool = False


def consensus_sets(sets: Sequence[References]) -> list[int]:
    """The sets whose captions others are compared with: the first, and those with photos of many captions."""
    return [
        number
        for number, part in enumerate(sets)
        if not part.narratives
        and (number == 0 or any(len(photo) >= MANY_CAPTIONS for photo in part.captions))
    ]


class Rewards:
    """Scores captions of training photos.

    What a photo's own captions say is known by heart from cross-entropy training, and a reward for it alone
    teaches little of photos that are new. So a caption can be rewarded, too, for what it has in common with
    captions as all other photos let one expect them: a consensus (Devlin et al. 2015) by regression. Between
    the captions of a search it differs a third as much as the CIDEr against the photo's own.

    CIDEr pays for a likely sentence even where it names what is not there. So content words are counted as
    well: those that some reference says, in singular or plural, and people where no reference has any
    (CHAIR, Rohrbach et al. 2018).

    The end token counts as a word of both. Captions that break off, by their length or on a word that none
    ends with, get no reward at all: CIDEr alone pays for "in front of a red and", whose n-grams before the
    last are worth more than the one that such an end spoils.

    Args:
        sets: what people wrote; the first set's photos are scored by CIDEr with its own document
            frequencies, which are those of its kind of photos.
        tokenizer: whose token ids these are.
        options: weights of the parts.
        alike: where ``options.consensus`` is not 0, for each set the weights of its photos ``(photos, N)``
            over all photos of :func:`consensus_sets`, in their order; None for a set that is never rewarded.
        texts: captions of photos that are not there, which add to the document frequencies of all sets but
            the first: they too are of photos of any kind.
    """

    def __init__(
        self,
        sets: Sequence[References],
        tokenizer: CaptionTokenizer,
        options: TrainingOptions,
        *,
        alike: Sequence[Tensor | None] = (),
        texts: Sequence[Sequence[Ids]] = (),
    ) -> None:
        self.sets, self.options, self.alike = sets, options, alike
        self.eos = tokenizer.config.eos_id
        self.never_last = set(tokenizer.config.never_last_ids)
        words = content_tokens(tokenizer)
        self.stems = {token: _stem(word) for token, word in words.items()}
        self.people = {token for token, word in words.items() if word in PEOPLE}
        many = [[self._words(ids) for ids in photo] for photo in texts if len(photo) >= MANY_CAPTIONS]
        joined = consensus_sets(sets)
        self.scorers = {
            number: CiderScorer(self._references([number]), others=many if number else ())
            for number in joined
        }
        self.joint, self.index = None, {}
        if options.consensus:
            self.joint = self.scorers[0] if joined == [0] else CiderScorer(self._references(joined))
            photos = [(number, photo) for number in joined for photo in range(len(sets[number].captions))]
            self.index = _inverted(self.joint, photos)

    def covers(self, photo: Photo) -> bool:
        """Whether captions of a photo are rewarded; of other sets than the first those of many people are."""
        number, place = photo
        part = self.sets[number]
        return number == 0 or part.narratives or len(part.captions[place]) >= MANY_CAPTIONS

    def __call__(self, photo: Photo, captions: Sequence[Ids]) -> list[float]:
        """The rewards of captions of one photo, of which the set's number and its own are given."""
        expected = cache(partial(self._expected, photo))  # captions of one search share most n-grams
        number, options = photo[0], self.options
        rewards = []
        for ids in captions:
            words = self._words(ids[:-1])
            if ids[-1] != self.eos or (len(ids) > 1 and ids[-2] in self.never_last):
                rewards.append(0.0)
                continue
            reward = 0.0
            if number in self.scorers:
                reward += self.scorers[number].score(photo, words)
            if options.consensus and self.joint is not None:
                reward += options.consensus * self.joint.agreement(expected, words[:-1])
            rewards.append(reward + self._truth(photo, ids))
        return rewards

    def _truth(self, photo: Photo, ids: Ids) -> float:
        """The reward for content words, less the penalties."""
        options, narratives = self.options, self.sets[photo[0]].narratives
        if not (options.content_precision or options.people_penalty or options.repeat_penalty):
            return 0.0
        said = {token for caption in self.sets[photo[0]].captions[photo[1]] for token in caption}
        known = {self.stems[token] for token in said if token in self.stems}
        content = [self.stems[token] for token in ids if token in self.stems]
        reward = 0.0
        if content:
            right = sum(stem in known for stem in content) / len(content)
            reward += options.content_precision * right * (NARRATIVE_WEIGHT if narratives else 1.0)
        if len(set(content)) < len(content):
            reward -= options.repeat_penalty
        if self.people.isdisjoint(said) and not self.people.isdisjoint(ids):
            reward -= options.people_penalty
        return reward

    def _words(self, ids: Ids) -> list[str]:
        return [*map(str, ids), EOS_WORD]

    def _references(self, numbers: Sequence[int]) -> dict[Photo, list[list[str]]]:
        return {
            (number, photo): [self._words(ids) for ids in captions]
            for number in numbers
            for photo, captions in enumerate(self.sets[number].captions)
        }

    def _expected(self, photo: Photo, ngram: tuple[str, ...]) -> float:
        """What the other photos let one expect of an n-gram in a photo's captions."""
        alike = self.alike[photo[0]]
        if alike is None or ngram not in self.index:
            return 0.0
        photos, values = self.index[ngram]
        return float(alike[photo[1]][photos] @ values)


def _inverted(
    scorer: CiderScorer[Photo], photos: Sequence[Photo]
) -> dict[tuple[str, ...], tuple[Tensor, Tensor]]:
    """For each n-gram the photos whose captions have it, and what it has there in the mean vector."""
    lists: defaultdict[tuple[str, ...], list[tuple[int, float]]] = defaultdict(list)
    for place, photo in enumerate(photos):
        for ngram, value in scorer.mean_vector(photo).items():
            lists[ngram].append((place, value))
    index = {}
    for ngram, entries in lists.items():
        where, values = zip(*entries, strict=True)
        index[ngram] = torch.tensor(where), torch.tensor(values)
    return index


def _stem(word: str) -> str:
    """A plural's singular, so that "dogs" is right where people say "dog"; roughly so of other words."""
    for ending, instead in PLURALS:
        if word.endswith(ending) and len(word) > len(ending) + 2 and not word.endswith("ss"):
            return word.removesuffix(ending) + instead
    return word


PLURALS = (("ies", "y"), ("ves", "f"), ("sses", "ss"), ("ches", "ch"), ("shes", "sh"), ("s", ""))
