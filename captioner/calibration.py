"""Confidence: what decoding knows of a word -> the probability that it is right.

A word is right if some person who describes the photo says it, a caption if all its content words are. Of a
word, two logistic regressions tell (Platt 1999), one of content words and one of function words. Whether the
margin to the next best word, the share of beams that have a word, or the entropy of attention add to what is
used here was measured: they do not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from captioner.content import content_words

__all__ = ["FEATURES", "Calibration", "WordSignals", "features"]

FEATURES = ("logprob", "word_tag", "tagged", "class_tag", "rank", "caption", "length", "caption_tags")
"""The numbers that the regressions weigh, in the order in which :func:`features` gives them."""


@dataclass(frozen=True, kw_only=True)
class WordSignals:
    """What decoding knows of one word of a caption.

    Attributes:
        text: the word.
        logprob: sum of its tokens' natural log-probs.
        token_id: its rarest token's; vocabularies are in the order of frequency.
        word_tag: the share of captions that the word head expects to say it, 0 where it is no word tag.
        class_tag: probability of the likeliest class tag that it names, 0 where there is none.
    """

    text: str
    logprob: float
    token_id: int
    word_tag: float = 0.0
    class_tag: float = 0.0

    @property
    def is_content(self) -> bool:
        """Whether it says something of the photo."""
        return bool(content_words(self.text))


def features(words: Sequence[WordSignals], logprobs: Sequence[float]) -> list[tuple[float, ...]]:
    """The :data:`FEATURES` of each word of a caption.

    Args:
        words: all that the model wrote.
        logprobs: of the caption's tokens, the end token included.
    """
    content = [word for word in words if word.is_content]
    caption = sum(logprobs) / max(len(logprobs), 1)
    tags = sum(math.sqrt(word.word_tag) for word in content) / max(len(content), 1)
    return [
        (
            word.logprob,
            math.sqrt(word.word_tag),
            float(word.word_tag > 0),
            math.sqrt(word.class_tag),
            math.log1p(word.token_id),
            caption,
            float(len(content)),
            tags,
        )
        for word in words
    ]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The fitted numbers, as they stand in a checkpoint's ``config.json``.

    Attributes:
        content_words: weights of the features for content words, and ``bias``.
        function_words: the same for all other words.
        independence: how far words are right independently of one another, 0 to 1: 1 if knowing that one is
            tells nothing of the others, 0 if they are all right as soon as the most doubtful one is.

    Raises:
        ValueError: a weight is missing, unknown or no number, or independence is out of range.
    """

    content_words: Mapping[str, float]
    function_words: Mapping[str, float]
    independence: float

    def __post_init__(self) -> None:
        for weights in (self.content_words, self.function_words):
            if set(weights) != {"bias", *FEATURES}:
                raise ValueError(
                    f"a calibration weighs bias, {', '.join(FEATURES)}, not {', '.join(weights)}"
                )
            if not all(_is_number(weight) for weight in weights.values()):
                raise ValueError(f"the weights of a calibration are numbers, not {weights}")
        if not _is_number(self.independence) or not 0 <= self.independence <= 1:
            raise ValueError(f"independence must be from 0 to 1, not {self.independence!r}")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Calibration:
        """The inverse of :meth:`to_dict`. Raises TypeError or ValueError for other data."""
        return cls(**data)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def words(self, words: Sequence[WordSignals], logprobs: Sequence[float]) -> list[float]:
        """The confidence of each word of a caption; arguments are those of :func:`features`."""
        return [
            _logistic(self.content_words if word.is_content else self.function_words, row)
            for word, row in zip(words, features(words, logprobs), strict=True)
        ]

    def caption(self, confidences: Sequence[float]) -> float:
        """The probability that several words are all right: between their product and the least of them.

        Args:
            confidences: of the content words of a caption or of a part of it; 1 for none.
        """
        if not confidences:
            return 1.0
        product = math.prod(confidences)
        return float(product**self.independence * min(confidences) ** (1 - self.independence))


def _logistic(weights: Mapping[str, float], row: Sequence[float]) -> float:
    logit = weights["bias"] + sum(weights[name] * value for name, value in zip(FEATURES, row, strict=True))
    return 1 / (1 + math.exp(-max(-30.0, min(30.0, logit))))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
