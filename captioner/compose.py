"""What a runner wrote -> the result: words with confidence and place, and on request what is sure of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from captioner.attention import as_region_map, attention_box
from captioner.calibration import Calibration
from captioner.caption import Alternative, Caption, Word
from captioner.content import content_words
from captioner.hedge import Phrase, phrases, text_of
from captioner.options import SURE, SearchOptions
from captioner.runners import PreparedImage, WrittenCaption
from captioner.tokenizer import TokenSpan

__all__ = ["compose"]


def compose(
    image: PreparedImage,
    found: Sequence[WrittenCaption],
    options: SearchOptions,
    *,
    model: str,
    calibration: Calibration | None,
) -> Caption:
    """The caption of a photo.

    Args:
        image: the photo.
        found: its captions, best first.
        options: how many alternatives are shown, and what becomes of a caption that is in doubt.
        model: its name.
        calibration: the model's; None for one without.
    """
    rated = [_Rated.of(written, calibration) for written in found]
    best, *others = rated
    caption = Caption(
        file=image.file,
        model=model,
        warning=image.warning,
        width=image.width,
        height=image.height,
        caption=best.written.text,
        confidence=best.confidence,
        logprob=best.logprob,
        words=tuple(_words(best, image)),
        alternatives=tuple(other.alternative() for other in others[: options.alternatives]),
        calibrated=calibration is not None,
        tokens=best.tokens,
        finished=best.written.finished,
    )
    if not options.min_confidence or (best.confidence or 0.0) >= options.min_confidence:
        return caption
    shorter = (
        _shorter(rated, max(options.min_confidence, SURE)) if options.hedge and not options.prompt else None
    )
    if shorter is None:
        return replace(caption, uncertain=True)
    source, phrase = shorter
    words = list(_words(source, image))
    said = tuple(replace(words[index], text=text) for index, text in phrase)
    return replace(
        caption,
        caption=text_of(phrase, source.written.text),
        confidence=source.confidence_of(index for index, _ in phrase),
        logprob=sum(word.logprob or 0.0 for word in said),
        words=said,
        unhedged=best.alternative(),
    )


@dataclass(frozen=True)
class _Rated:
    """A caption and its confidences.

    Attributes:
        written: the caption.
        calibration: the model's, if it has one.
        words: the confidence of each word; None where nothing is known of it.
        confidence: of the whole; likewise.
    """

    written: WrittenCaption
    calibration: Calibration | None
    words: Sequence[float | None]
    confidence: float | None

    @classmethod
    def of(cls, written: WrittenCaption, calibration: Calibration | None) -> _Rated:
        if written.logprobs is None:
            return cls(written, None, [None] * len(written.words), None)
        if calibration is None:
            tokens = [_tokens(written, span) for span in written.words]
            words = [_likelihood(logprobs) if logprobs else None for logprobs in tokens]
            return cls(written, None, words, _likelihood(written.logprobs))
        rated = cls(written, calibration, calibration.words(written.signals, written.logprobs), None)
        return replace(rated, confidence=rated.confidence_of(range(len(rated.words))))

    @property
    def logprob(self) -> float | None:
        return None if self.written.logprobs is None else sum(self.written.logprobs)

    @property
    def tokens(self) -> int | None:
        return None if self.written.logprobs is None else len(self.written.logprobs)

    def confidence_of(self, part: Iterable[int]) -> float | None:
        """The confidence of some words of the caption together."""
        kept = list(part)
        if self.calibration is not None:
            content = [index for index in kept if content_words(self.written.words[index].text)]
            return self.calibration.caption([self.words[index] or 0.0 for index in content or kept])
        tokens = [p for index in kept for p in _tokens(self.written, self.written.words[index])]
        return _likelihood(tokens) if tokens else None

    def alternative(self) -> Alternative:
        return Alternative(
            caption=self.written.text,
            confidence=self.confidence,
            logprob=self.logprob,
            tokens=self.tokens,
            finished=self.written.finished,
        )


def _shorter(rated: Sequence[_Rated], least: float) -> tuple[_Rated, Phrase] | None:
    """The longest phrase that is sure: of the best caption, if it has one, else of the next."""
    for each in rated:
        words = [span.text for span in each.written.words]
        doubtful = {
            index
            for index, (word, sure) in enumerate(zip(words, each.words, strict=True))
            if content_words(word) and (sure or 0.0) < least
        }
        for phrase in (tuple(enumerate(words)), *phrases(words, doubtful=doubtful)):
            if words and (each.confidence_of(index for index, _ in phrase) or 0.0) >= least:
                return each, phrase
    return None


def _words(rated: _Rated, image: PreparedImage) -> Iterator[Word]:
    written = rated.written
    for span, confidence in zip(written.words, rated.words, strict=True):
        logprobs = _tokens(written, span)
        word = Word(text=span.text, logprob=sum(logprobs) if logprobs else None, confidence=confidence)
        if written.maps is not None:
            attention = written.maps[span.start : span.stop].mean(0)  # sums to 1, as its tokens' do
            box = attention_box(attention, width=image.width, height=image.height)
            word = replace(word, attention=as_region_map(attention), box=box)
        yield word


def _tokens(written: WrittenCaption, span: TokenSpan) -> Sequence[float]:
    """The log-probs of a word's tokens; empty where they are not known."""
    return () if written.logprobs is None else written.logprobs[span.start : span.stop]


def _likelihood(logprobs: Sequence[float]) -> float:
    """exp(mean log-prob); 1 for nothing."""
    return math.exp(sum(logprobs) / len(logprobs)) if logprobs else 1.0
