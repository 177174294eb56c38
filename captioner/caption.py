"""The result: a caption, its words, how sure the model is of each, and where it looked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Alternative", "Box", "Caption", "RegionMap", "Word"]

RegionMap = tuple[tuple[float, ...], ...]
"""A word's attention over the region grid: ``h`` rows from the top, of ``w`` columns; sums to 1."""

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels of the upright image; right and bottom are exclusive."""


@dataclass(frozen=True, kw_only=True)
class Word:
    """One word of a caption.

    Attributes:
        text: the word as it stands in the caption.
        logprob: natural log-probability of the word (the sum over its tokens), at most 0; None, as is the
            confidence, where a model's server tells none.
        confidence: probability that some person who describes the photo says the word, in 0…1; exp(mean
            token log-prob) where the model has no calibration.
        attention: where the model looked while it wrote the word; present on request.
        box: the part of the upright image that the attention singles out; present with it.
    """

    text: str
    logprob: float | None
    confidence: float | None
    attention: RegionMap | None = None
    box: Box | None = None

    def to_dict(self) -> dict[str, Any]:
        """The word as JSON-ready data; ``attention`` and ``box`` only where present."""
        data: dict[str, Any] = {
            "text": self.text,
            "logprob": _rounded(self.logprob),
            "confidence": _rounded(self.confidence),
        }
        if self.attention is not None:
            data["attention"] = [[round(value, 5) for value in row] for row in self.attention]
        if self.box is not None:
            data["box"] = list(self.box)
        return data


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """Another caption that the search kept; the attributes are those of :class:`Caption`."""

    caption: str
    confidence: float | None
    logprob: float | None
    tokens: int | None = field(default=None, compare=False)
    finished: bool | None = field(default=None, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """The alternative as JSON-ready data."""
        return {
            "caption": self.caption,
            "confidence": _rounded(self.confidence),
            "logprob": _rounded(self.logprob),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Alternative:
        """The inverse of :meth:`to_dict`; what else is in ``data`` is left out."""
        return cls(caption=data["caption"], confidence=data["confidence"], logprob=data["logprob"])


@dataclass(frozen=True, kw_only=True)
class Caption:
    """The caption of one photograph.

    Attributes:
        file: the path or name the photo came with; None for bytes, arrays and PIL images.
        model: the name of the model that wrote it.
        width: pixels of the upright image, after EXIF orientation.
        height: likewise.
        caption: the sentence.
        confidence: probability that people who describe the photo say all its content words, in 0…1;
            exp(mean token log-prob) over all generated tokens where the model has no calibration; None
            where a server tells no log-probs.
        logprob: natural log-probability of the generated tokens, the end token included; None likewise.
        words: the words that the model wrote, in order; those of a prompt are not among them.
        alternatives: the next best captions, best first; as many as were asked for, or fewer.
        calibrated: whether confidences are probabilities that were fitted to what people say.
        uncertain: whether the confidence is below the least that was asked for.
        unhedged: the whole caption where ``caption`` is what is sure of it; else None.
        warning: what is missing of the photo, such as ``"incomplete: …"``; None where nothing is.
        tokens: how many tokens were generated, the end token included; None where that is not known, as of a
            caption that was read from JSON, which does not have it.
        finished: whether the model ended the caption; False where ``max_length`` cut it off, None where that
            is not known, likewise.
    """

    file: str | None
    model: str
    width: int
    height: int
    caption: str
    confidence: float | None
    logprob: float | None
    words: tuple[Word, ...] = ()
    alternatives: tuple[Alternative, ...] = field(default=())
    calibrated: bool = False
    uncertain: bool = False
    unhedged: Alternative | None = None
    warning: str | None = None
    tokens: int | None = field(default=None, compare=False)
    finished: bool | None = field(default=None, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """The caption as JSON-ready data; ``uncertain``, ``unhedged`` and ``warning`` only where set."""
        data: dict[str, Any] = {
            "file": self.file,
            "model": self.model,
            "width": self.width,
            "height": self.height,
            "caption": self.caption,
            "confidence": _rounded(self.confidence),
            "logprob": _rounded(self.logprob),
            "calibrated": self.calibrated,
            "words": [word.to_dict() for word in self.words],
            "alternatives": [alternative.to_dict() for alternative in self.alternatives],
        }
        if self.uncertain:
            data["uncertain"] = True
        if self.unhedged is not None:
            data["unhedged"] = self.unhedged.to_dict()
        if self.warning is not None:
            data["warning"] = self.warning
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Caption:
        """The inverse of :meth:`to_dict`, for records that were written to a file."""
        words = tuple(
            Word(
                text=word["text"],
                logprob=word["logprob"],
                confidence=word["confidence"],
                attention=tuple(map(tuple, word["attention"])) if word.get("attention") is not None else None,
                box=tuple(word["box"]) if word.get("box") is not None else None,
            )
            for word in data.get("words", ())
        )
        alternatives = tuple(map(Alternative.from_dict, data.get("alternatives", ())))
        plain = {key: data[key] for key in ("file", "model", "width", "height")}
        scores = {key: data[key] for key in ("caption", "confidence", "logprob")}
        return cls(
            **plain,
            **scores,
            words=words,
            alternatives=alternatives,
            calibrated=data.get("calibrated", False),
            uncertain=data.get("uncertain", False),
            unhedged=Alternative.from_dict(data["unhedged"]) if "unhedged" in data else None,
            warning=data.get("warning"),
        )


def _rounded(score: float | None) -> float | None:
    return None if score is None else round(score, 4)
