"""Captions without their photographs, and the tags that such photographs would have.

The decoder reads word tags and class tags, and which words a photo's captions say is known where there are
captions, photo or not. Tags of real photos are not as good as that: they miss words, say others, and are
unsure. So each line of captions gets the tags of a real photo whose captions say much the same, and where the
two differ, the tags are drawn from what the regression and the classifier gave for photos whose captions
say the word, or do not. A decoder can then learn words and sentences from captions alone (with a joint
embedding of text and image instead of tags: DeCap, Li et al. 2023; CapDec, Nukrai et al. 2022).
"""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from captioner.errors import DataError
from captioner.regions import Tags, TagTokens
from captioner.training.labels import Captions, Labels
from captioner.training.words import word_shares

__all__ = ["KnownPhotos", "TextLines", "read_texts"]

NEAREST = 4  # photos with the most alike captions, of which one lends its tags
SAMPLES = 64  # answers of the regression that are kept for each word and level
FEWEST_ANSWERS = 5  # photos whose answers are enough to draw from
MANY = 0.5  # share of the captions from which on "many" of them say a word
FEW_CAPTIONS = 3  # fewer do not tell whether many people would say a word
CLASS_SHARE = 0.4  # of the captions that must say a class's word to have the class among the tags
UNKNOWN_RATE = 0.6  # how often a class is found whose word no photo's captions said
IN_A_QUARTER = 0.7  # how often a class is found in the whole photo and in a quarter, not in one of them


def read_texts(path: Path) -> list[tuple[str, ...]]:
    """The captions of each line of a JSON Lines file, ``{"captions": […]}``, which may be gzipped.

    Raises:
        DataError: the file cannot be read, or a line is not such an object.
    """
    lines = []
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open() as file:
            for number, line in enumerate(file, 1):
                captions = json.loads(line).get("captions") if line.strip() else None
                if not captions or not all(isinstance(text, str) and text.strip() for text in captions):
                    raise DataError(f'{path}: line {number} is not {{"captions": ["…", …]}}')
                lines.append(tuple(captions))
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    except (ValueError, AttributeError) as error:
        raise DataError(f'{path}: a line is not JSON with {{"captions": […]}} ({error})') from None
    if not lines:
        raise DataError(f"{path}: holds no captions")
    return lines


@dataclass(frozen=True)
class KnownPhotos:
    """Real photos: what their captions say and what the tags are drawn from.

    Attributes:
        said: share of the captions that say each word of the word head, ``(N, words)``.
        answers: what the word head says of it if fitted to all other photos, alike.
        classes: class tags.
    """

    said: Tensor
    answers: Tensor
    classes: Tags


class TextLines:
    """Captions without photos, and made-up tags for them.

    It takes 16 bytes a photo and word of the word head: 400 MB for 16,000 photos and 1,500 words.

    Args:
        lines: the captions of each line, as texts.
        photos: real ones to learn from what tags are like.
        tags: the model's, with its words and their prior.
        labels: how captions are written as tokens of the model.
    """

    def __init__(
        self,
        lines: Sequence[Sequence[str]],
        photos: KnownPhotos,
        tags: TagTokens,
        labels: Labels,
    ) -> None:
        self.photos, self.tags, self.labels = photos, tags, labels
        self.lines = [[labels.sequence(text) for text in line] for line in lines]
        self.words = tags.head_words[tags.classes :].tolist()
        rarity = torch.log(len(photos.said) / ((photos.said > 0).sum(0) + 1.0)).clamp(min=0)
        self.rarity = rarity
        self.directions = F.normalize(photos.said * rarity, dim=1)
        self.answers = _answers(photos)
        self.class_words = tags.head_words[: tags.classes].tolist()
        self.rates, self.found, self.scores = self._class_statistics()

    def __len__(self) -> int:
        return len(self.lines)

    def batches(self, size: int, *, most: int, seed: int) -> Iterator[tuple[Tags, Captions]]:
        """Lines in random order, again and again: their tags, and up to ``most`` captions of each."""
        rng = random.Random(f"text-{seed}")
        generator = torch.Generator().manual_seed(seed)
        waiting: list[int] = []
        while True:
            while len(waiting) < size:
                waiting += rng.sample(range(len(self.lines)), len(self.lines))
            chosen, waiting = [self.lines[i] for i in waiting[:size]], waiting[size:]
            captions = [rng.sample(line, min(most, len(line))) for line in chosen]
            yield self._make_up(chosen, rng, generator), self.labels.pack(captions)

    def _make_up(
        self, lines: Sequence[Sequence[Sequence[int]]], rng: random.Random, generator: torch.Generator
    ) -> Tags:
        """Class tags and word tags of photos that some lines could be of."""
        said = word_shares(lines, self.words)
        alike = F.normalize(said * self.rarity, dim=1) @ self.directions.T
        nearest = alike.topk(min(NEAREST, alike.shape[1]), dim=1).indices
        lent = nearest.gather(1, torch.randint(nearest.shape[1], (len(lines), 1), generator=generator))[:, 0]
        few = torch.tensor([[len(line) < FEW_CAPTIONS] for line in lines])
        answers = self._answer(said, lent, few, generator)
        classes, scores = self.photos.classes.pick(lent.tolist())
        for row, line in enumerate(lines):
            self._add_classes(classes[row], scores[row], line, rng)
        words = self.tags.likely_words(answers.to(self.tags.word_prior)).to("cpu")
        return Tags(classes, scores).join(words)

    def _answer(self, said: Tensor, lent: Tensor, few: Tensor, generator: torch.Generator) -> Tensor:
        """The regression's answers: the lent photo's, redrawn for words that its captions say otherwise."""
        draw = torch.randint(SAMPLES, said.shape, generator=generator)
        none, some, many = (
            samples.gather(1, draw.T).T
            for samples in self.answers  # each (lines, words)
        )
        unsure = torch.rand(said.shape, generator=generator) < 0.5
        spoken = torch.where(torch.where(few, unsure, said >= MANY), many, some)
        other = self.photos.said[lent]
        differs = torch.where(few, (said > 0) != (other > 0), _level(said) != _level(other))
        drawn = torch.where(said > 0, spoken, none)
        return torch.where(differs, drawn, self.photos.answers[lent])

    def _add_classes(
        self, tags: Tensor, scores: Tensor, line: Sequence[Sequence[int]], rng: random.Random
    ) -> None:
        """In place, for the words of a line that classes have: one of their classes, if it would be found."""
        there = {self.class_words[tag] for tag in tags.tolist()}
        counts = Counter(token for caption in line for token in set(caption))
        for word, count in sorted(counts.items()):
            if word not in self.rates or word in there or count < max(1.0, CLASS_SHARE * len(line)):
                continue
            if rng.random() >= self.rates[word]:
                continue
            tag, quarters = rng.choice(self.found[word]), TagTokens.CLASSES - TagTokens.WHOLE
            places = [rng.randrange(TagTokens.CLASSES)]
            if rng.random() < IN_A_QUARTER:
                places = [0, TagTokens.WHOLE + rng.randrange(quarters)]
            for place in places:
                tags[place], scores[place] = tag, rng.choice(self.scores)

    def _class_statistics(self) -> tuple[dict[int, float], dict[int, list[int]], list[float]]:
        """For each word of a class how often photos of it have such a class, and which; all the scores."""
        classes, said = self.photos.classes, self.photos.said
        by_word: defaultdict[int, list[int]] = defaultdict(list)
        for number, word in enumerate(self.class_words):
            if word != self.labels.tokenizer.config.unk_id:
                by_word[word].append(number)
        columns = {word: column for column, word in enumerate(self.words)}
        rates, found, scores = {}, {}, []
        for word, numbers in by_word.items():
            hits = torch.isin(classes.tags, torch.tensor(numbers))
            found[word] = classes.tags[hits].tolist() or numbers
            rates[word] = UNKNOWN_RATE
            if word in columns:
                spoken = said[:, columns[word]] >= CLASS_SHARE
                right = int(hits[spoken].any(1).sum())
                rates[word] = (right + 2) / (int(spoken.sum()) + 4)
                scores += classes.scores[spoken][hits[spoken]].tolist()
        return rates, found, scores or classes.scores.flatten().tolist()


def _level(said: Tensor) -> Tensor:
    """0, 1 or 2 where no, few or many captions say a word."""
    return (said > 0).int() + (said >= MANY).int()


def _answers(photos: KnownPhotos) -> list[Tensor]:
    """The regression's answers, ``(words, SAMPLES)``, for words that no, few and many captions say."""
    generator = torch.Generator().manual_seed(0)
    levels = [torch.empty(photos.said.shape[1], SAMPLES) for _ in range(3)]
    for word, (said, answers) in enumerate(zip(photos.said.T, photos.answers.T, strict=True)):
        spoken = answers[said > 0]
        for samples, level in zip(levels, range(3), strict=True):
            found = answers[_level(said) == level]
            if len(found) < FEWEST_ANSWERS:
                found = spoken if level and len(spoken) else answers
            samples[word] = found[torch.randint(len(found), (SAMPLES,), generator=generator)]
    return levels
