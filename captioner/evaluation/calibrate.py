"""Fit a model's confidence to what people said of photographs that it has not seen.

Nothing is kept of the photographs but a few numbers. How good these are is told by a fit to one half of the
photographs, judged on the other, and the other way round.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from captioner.calibration import FEATURES, Calibration, WordSignals, features
from captioner.captioner import Captioner
from captioner.coco import CocoCaptions
from captioner.content import content_words, words_of
from captioner.errors import DataError, RemoteError
from captioner.evaluation.confidence import ConfidenceScores
from captioner.evaluation.correctness import said_by
from captioner.evaluation.evaluate import photo_files, prepared_batches
from captioner.evaluation.reliability import rank_correlation, reliability
from captioner.runners import WrittenCaption

__all__ = ["CalibrationResult", "Judged", "calibrate", "fit_calibration", "judge", "judge_calibration"]

REFERENCES = 5
"""People who describe a photo, for whom confidence is stated: as many as Flickr8k and COCO asked."""

RIDGE = 1e-3  # of the weights of features in units of their spread
FEWEST_PHOTOS = 100
Rows = NDArray[np.float64]


@dataclass(frozen=True)
class Judged:
    """A caption with what is right in it.

    Attributes:
        words: what decoding knew of each word.
        logprobs: of the caption's tokens.
        right: whether some reference of the photo says the word.
        references: how many the photo has.
    """

    words: Sequence[WordSignals]
    logprobs: Sequence[float]
    right: Sequence[bool]
    references: int

    @property
    def content(self) -> list[int]:
        """Where the content words stand."""
        return [index for index, word in enumerate(self.words) if word.is_content]


@dataclass(frozen=True)
class CalibrationResult:
    """A fit, and how good such fits are.

    Attributes:
        calibration: fitted to all photos.
        held_out: for each photo set, how far confidences can be believed that were fitted to the other half
            of the photos. Photos with a single reference are left out, unless all have only one: of five
            people's words one says few.
    """

    calibration: Calibration
    held_out: Sequence[ConfidenceScores]


def calibrate(
    captioner: Captioner,
    photo_sets: Sequence[tuple[Path, CocoCaptions]],
    *,
    limit: int | None = None,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> CalibrationResult:
    """Caption photos with the model's own settings, and fit its confidence to what their references say.

    Args:
        captioner: the model.
        photo_sets: folders of photos with their captions; photos that the model was not trained on.
        limit: take the first photos of each set only, as many as this.
        batch_size: photos in one forward pass.
        progress: called after each batch with the photos done and their number.

    Raises:
        DataError: photos are missing, cannot be read or are fewer than 100.
    """
    chosen = [(folder, coco, coco.images[:limit]) for folder, coco in photo_sets]
    files = [photo_files(folder, images) for folder, _, images in chosen]
    total, judged = sum(map(len, files)), list[list[Judged]]()
    if total < FEWEST_PHOTOS:
        raise DataError(f"{total} photos are too few to fit confidence to: give {FEWEST_PHOTOS} or more")
    for (_, coco, images), paths in zip(chosen, files, strict=True):
        found: list[WrittenCaption] = []
        for batch in prepared_batches(captioner, paths, batch_size):
            for captions in captioner.write_prepared(batch):
                assert not isinstance(captions, RemoteError), "a checkpoint of ours runs here"
                found.append(captions[0])
            if progress is not None:
                progress(sum(map(len, judged)) + len(found), total)
        pairs = zip(found, images, strict=True)
        judged.append([judge(caption, coco.captions[image.id]) for caption, image in pairs])
    return CalibrationResult(
        fit_calibration([caption for part in judged for caption in part]), cross_validate(judged)
    )


def judge(caption: WrittenCaption, references: Sequence[str]) -> Judged:
    """Which words of a caption some reference says."""
    assert caption.logprobs is not None, "our own search tells them"
    said = said_by(references)
    right = [said.issuperset(content_words(word.text) or words_of(word.text)) for word in caption.signals]
    return Judged(caption.signals, caption.logprobs, right, len(references))


def cross_validate(photo_sets: Sequence[Sequence[Judged]]) -> list[ConfidenceScores]:
    """For each photo set, how good confidences are that were fitted to the other half of all photos."""
    halves = [
        fit_calibration([caption for part in photo_sets for caption in part[other::2]]) for other in (1, 0)
    ]
    fewest = 2 if any(caption.references > 1 for part in photo_sets for caption in part) else 1
    return [
        judge_calibration(
            [
                (halves[index % 2], caption)
                for index, caption in enumerate(part)
                if caption.references >= fewest
            ]
        )
        for part in photo_sets
    ]


def judge_calibration(captions: Sequence[tuple[Calibration, Judged]]) -> ConfidenceScores:
    """How far the confidences that calibrations give to captions can be believed."""
    words: list[tuple[float, bool]] = []
    whole: list[tuple[float, float]] = []
    for calibration, caption in captions:
        confidences = calibration.words(caption.words, caption.logprobs)
        content = [(confidences[index], caption.right[index]) for index in caption.content]
        if content:
            words += content
            share = sum(right for _, right in content) / len(content)
            whole.append((calibration.caption([stated for stated, _ in content]), share))
    stated, shares = [each for each, _ in whole], [share for _, share in whole]
    return ConfidenceScores(
        words=reliability([each for each, _ in words], [right for _, right in words]),
        captions=reliability(stated, [share == 1 for share in shares]),
        rank_correlation=rank_correlation(stated, shares),
    )


def fit_calibration(captions: Sequence[Judged]) -> Calibration:
    """The calibration under which what is right is likeliest.

    A word that is right need not stand in the one caption of a photo, so the regressions are told how many
    references there are, and are applied as if there were five.
    """
    content: list[tuple[tuple[float, ...], bool]] = []
    function: list[tuple[tuple[float, ...], bool]] = []
    for caption in captions:
        told = math.log(caption.references / REFERENCES)
        for word, row, right in zip(
            caption.words, features(caption.words, caption.logprobs), caption.right, strict=True
        ):
            (content if word.is_content else function).append(((*row, told), right))
    return Calibration(
        content_words=(weights := _regress(content)),
        function_words=_regress(function),
        independence=_independence(captions, weights),
    )


def _regress(examples: Sequence[tuple[tuple[float, ...], bool]]) -> dict[str, float]:
    """Logistic regression with a ridge, by Newton's method."""
    if not examples:
        return dict.fromkeys(("bias", *FEATURES), 0.0)
    rows = np.array([row for row, _ in examples])
    right = np.array([right for _, right in examples], float)
    mean, spread = rows.mean(0), rows.std(0)
    spread[spread < 1e-9] = 1.0  # what never changes gets no weight
    mean[-1] = 0.0  # so that the last weight can be left out for photos with as many references as are meant
    design = np.column_stack([np.ones(len(rows)), (rows - mean) / spread])
    ridge = np.diag([1e-9, *[RIDGE] * rows.shape[1]]) * len(rows)
    weights = np.zeros(design.shape[1])
    for _ in range(100):
        likely = 1 / (1 + np.exp(-design @ weights))
        slope = design.T @ (right - likely) - ridge @ weights
        curvature = (design * (likely * (1 - likely))[:, None]).T @ design + ridge
        step = np.linalg.solve(curvature, slope)
        weights += step
        if np.abs(step).max() < 1e-8:
            break
    scaled = weights[1:] / spread
    named = {"bias": weights[0] - float(scaled @ mean), **dict(zip(FEATURES, scaled, strict=False))}
    return {name: round(float(weight), 5) for name, weight in named.items()}


def _independence(captions: Sequence[Judged], weights: dict[str, float]) -> float:
    """How far the content words of captions are right independently, by likelihood, to 0.01."""
    calibration = Calibration(content_words=weights, function_words=weights, independence=0.0)
    several = [caption for caption in captions if caption.references > 1] or captions
    sums, least, right = [], [], []
    for caption in several:
        stated = calibration.words(caption.words, caption.logprobs)
        logs = [math.log(stated[index]) for index in caption.content]
        if logs:
            sums.append(sum(logs))
            least.append(min(logs))
            right.append(all(caption.right[index] for index in caption.content))
    if not sums:
        return 1.0
    product, lowest, all_right = np.array(sums), np.array(least), np.array(right)

    def surprise(independence: float) -> float:
        likely = np.exp(independence * product + (1 - independence) * lowest).clip(1e-9, 1 - 1e-9)
        return float(-np.log(np.where(all_right, likely, 1 - likely)).mean())

    return min((step / 100 for step in range(101)), key=surprise)
