"""From what a runner wrote to the result: confidence, doubt, and what is left of a caption in doubt."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from captioner.calibration import FEATURES, Calibration, WordSignals
from captioner.caption import Caption
from captioner.compose import compose
from captioner.options import GenerationOptions, SearchOptions
from captioner.runners import PreparedImage, WrittenCaption
from captioner.tokenizer import TokenSpan
from service.metrics import count_tokens

IMAGE = PreparedImage(content=None, width=64, height=64, file="x.jpg")
FLAT = {"bias": 0.0, **dict.fromkeys(FEATURES, 0.0)}
SURE = {**FLAT, "logprob": 1.0}  # a word's confidence is the logistic function of its log-prob plus 5
CALIBRATION = Calibration(
    content_words={**SURE, "bias": 5.0}, function_words={**SURE, "bias": 5.0}, independence=1.0
)


def written(text: str, *doubtful: str, maps: bool = False) -> WrittenCaption:
    """A caption each of whose words is sure (0.98) but for some (0.05)."""
    words = text.split()
    logprobs = [-8.0 if word in doubtful else -1.0 for word in words]
    return WrittenCaption(
        text=text,
        logprobs=[*logprobs, -0.5],
        words=[TokenSpan(word, index, index + 1) for index, word in enumerate(words)],
        signals=[
            WordSignals(text=word, logprob=p, token_id=9) for word, p in zip(words, logprobs, strict=True)
        ],
        maps=torch.full((len(words) + 1, 2, 2), 0.25) if maps else None,
    )


def composed(
    *found: WrittenCaption, calibration: Calibration | None = CALIBRATION, **options: object
) -> Caption:
    resolved: SearchOptions = GenerationOptions(**options).resolve(GenerationOptions())  # type: ignore[arg-type]
    return compose(IMAGE, found, resolved, model="m", calibration=calibration)


CAPTION = written("a woman in front of a brick wall", "woman", "brick")
"""Two of its words are in doubt."""


def test_a_caption_is_as_sure_as_its_content_words():
    caption = composed(CAPTION)
    sure = [word.confidence for word in caption.words]
    assert sure[1] == sure[6] == pytest.approx(1 / (1 + math.exp(3)))
    assert caption.confidence == pytest.approx(sure[1] * sure[6] * sure[7])  # "front" is a function word
    assert caption.logprob == pytest.approx(sum(CAPTION.logprobs))
    assert caption.calibrated
    assert not caption.uncertain


def test_without_a_calibration_likelihood_stands_in():
    caption = composed(CAPTION, calibration=None)
    assert caption.confidence == pytest.approx(math.exp(sum(CAPTION.logprobs) / 9))
    assert caption.words[1].confidence == pytest.approx(math.exp(-8))
    data = caption.to_dict()
    assert data["calibrated"] is False
    assert "uncertain" not in data
    assert "unhedged" not in data


def test_what_is_below_the_least_confidence_is_marked():
    assert composed(CAPTION, min_confidence=0.5).to_dict()["uncertain"] is True
    assert not composed(written("a brick wall"), min_confidence=0.5).uncertain
    assert composed(CAPTION, min_confidence=0.5).caption == CAPTION.text


def test_hedging_keeps_what_is_sure():
    caption = composed(CAPTION, hedge=True)
    assert caption.caption == "a wall"
    assert [word.text for word in caption.words] == ["a", "wall"]
    assert caption.confidence == pytest.approx(caption.words[1].confidence)
    assert caption.confidence > 0.5
    assert caption.logprob == pytest.approx(-2.0)
    assert not caption.uncertain
    assert caption.unhedged is not None
    assert (caption.unhedged.caption, caption.unhedged.confidence) == (
        CAPTION.text,
        pytest.approx(composed(CAPTION).confidence),
    )


def test_what_is_said_instead_is_more_likely_right_than_wrong():
    """Also where only captions that are much less likely are to be shortened."""
    half = replace(
        written("a dog in the snow"),
        signals=[
            WordSignals(text=text, logprob=p, token_id=9)
            for text, p in zip(("a", "dog", "in", "the", "snow"), (-1, -4.5, -1, -1, -6.5), strict=True)
        ],
    )  # a dog: 0.62, snow: 0.18, both: 0.11
    assert composed(half, hedge=True, min_confidence=0.2).caption == "a dog"
    assert composed(half, hedge=True, min_confidence=0.1).unhedged is None


def test_a_sure_caption_stays_whole():
    caption = composed(written("a brick wall"), hedge=True)
    assert caption == composed(written("a brick wall"))
    assert caption.unhedged is None


def test_phrases_must_be_sure_as_a_whole():
    """Two words at 0.73 are more likely wrong than right together (0.53 against 0.6)."""
    words = zip(("a", "dog", "in", "the", "snow"), (-1, -4, -1, -1, -4), strict=True)
    signals = [WordSignals(text=text, logprob=p, token_id=9) for text, p in words]
    doubtful = replace(written("a dog in the snow"), signals=signals)
    assert composed(doubtful, hedge=True, min_confidence=0.6).caption == "a dog"
    assert composed(doubtful, hedge=True, min_confidence=0.5).unhedged is None


def test_the_next_caption_helps_where_the_best_has_nothing_sure():
    best = written("a woman standing", "woman", "standing")
    caption = composed(best, written("a wall with a cat", "cat"), hedge=True, attention=True)
    assert caption.caption == "a wall"
    assert caption.unhedged is not None
    assert caption.unhedged.caption == "a woman standing"
    lost = composed(best, written("a cat", "cat"), hedge=True)
    assert (lost.caption, lost.uncertain, lost.unhedged) == ("a woman standing", True, None)


def test_words_keep_their_attention():
    caption = composed(replace(CAPTION, maps=torch.eye(9).reshape(9, 3, 3)), hedge=True)
    peaks = [[value for row in word.attention or () for value in row].index(1.0) for word in caption.words]
    assert peaks == [5, 7]  # of "a" and "wall"


def test_a_caption_with_a_prompt_is_marked_but_not_shortened():
    caption = composed(CAPTION, hedge=True, prompt="a")
    assert (caption.caption, caption.uncertain, caption.unhedged) == (CAPTION.text, True, None)


def test_only_the_alternatives_that_were_asked_for_are_shown():
    found = [written(text) for text in ("a wall", "a dog", "a cat")]
    assert [other.caption for other in composed(*found, alternatives=1).alternatives] == ["a dog"]


@pytest.mark.parametrize("options", [{}, {"min_confidence": 0.5}, {"hedge": True}])
def test_records_come_back_from_json(options: dict[str, object]):
    caption = composed(CAPTION, written("a dog"), alternatives=1, **options)
    data = json.loads(json.dumps(caption.to_dict()))
    assert Caption.from_dict(data).to_dict() == data


def test_tokens_are_counted_whatever_the_confidence_means():
    caption = composed(CAPTION, alternatives=1)
    assert caption.tokens == len(CAPTION.logprobs or ())
    assert "tokens" not in caption.to_dict()
    assert count_tokens(caption) == caption.tokens
    assert count_tokens(Caption.from_dict(caption.to_dict())) == len(caption.caption.split()) + 1
