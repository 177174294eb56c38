"""Caption the photos of a captions file and judge the captions by it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from captioner.caption import Caption
from captioner.captioner import Captioner, PreparedImage
from captioner.coco import CocoCaptions, CocoImage, ImageId
from captioner.errors import DataError, ImageError, OptionsError
from captioner.evaluation.confidence import ConfidenceScores, judge_confidence
from captioner.evaluation.correctness import Correctness, correctness
from captioner.evaluation.metrics import Scores, score
from captioner.evaluation.pointing import ObjectBoxes, PointingScores, pointing_game
from captioner.options import GenerationOptions

__all__ = ["EvaluationResult", "evaluate", "photo_files", "prepared_batches"]

_READERS = 2  # threads that decode the next photos while the model captions


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """What an evaluation found.

    Attributes:
        scores: the metrics, all times 100.
        correctness: what the captions get right, in percent.
        confidence: how far their confidences can be believed.
        pointing: how often attention points at what a word names; None if it was not asked for.
        images: how many photos were captioned.
        images_per_second: of reading and captioning them, without the metrics.
        captions: by the photos' ids, in the order of the captions file.
    """

    scores: Scores
    correctness: Correctness
    confidence: ConfidenceScores
    images: int
    images_per_second: float
    captions: Mapping[ImageId, Caption]
    pointing: PointingScores | None = None

    def to_dict(self) -> dict[str, Any]:
        """The metrics and the speed as JSON-ready data, rounded."""
        figures = {**self.scores.to_dict(), **self.correctness.to_dict(), **self.confidence.to_dict()}
        if self.pointing is not None:
            figures |= self.pointing.to_dict()
        rounded = {name: value if value is None else round(value, 3) for name, value in figures.items()}
        return {**rounded, "images": self.images, "images_per_second": round(self.images_per_second, 2)}


def evaluate(
    captioner: Captioner,
    images: Path,
    coco: CocoCaptions,
    *,
    options: GenerationOptions | None = None,
    limit: int | None = None,
    batch_size: int = 32,
    meteor: bool = True,
    boxes: ObjectBoxes | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> EvaluationResult:
    """Caption the photos of a captions file and score the captions against those that people wrote.

    Args:
        captioner: the model.
        images: the folder that the file names of ``coco`` are relative to.
        coco: the photos and their captions.
        options: what is not given in them is as the model's own settings say.
        limit: take the first photos only, as many as this.
        batch_size: photos in one forward pass.
        meteor: measure METEOR too, where Java and ``pycocoevalcap`` are found.
        boxes: play the pointing game with these objects, too; None for not.
        progress: called after each batch with the photos done and their number.

    Raises:
        DataError: photos are missing or cannot be read; all missing ones are counted before any work.
        OptionsError: limit or batch_size is below 1, or the options do not suit the model.
    """
    if batch_size < 1 or (limit is not None and limit < 1):
        raise OptionsError(f"limit and batch_size must be at least 1, not {limit} and {batch_size}")
    chosen = coco.images[:limit]
    files = photo_files(images, chosen)
    resolved = captioner.resolve(options)
    if boxes is not None:
        resolved = replace(resolved, attention=True)
    begun = time.perf_counter()
    found: list[Caption] = []
    for batch in prepared_batches(captioner, files, batch_size):
        found += captioner.caption_prepared(batch, resolved)
        if progress is not None:
            progress(len(found), len(files))
    seconds = time.perf_counter() - begun
    captions = {image.id: caption for image, caption in zip(chosen, found, strict=True)}
    references = {image.id: coco.captions[image.id] for image in chosen}
    texts = {key: caption.caption for key, caption in captions.items()}
    return EvaluationResult(
        scores=score(references, texts, meteor=meteor),
        correctness=correctness(references, texts),
        confidence=judge_confidence(references, captions),
        images=len(files),
        images_per_second=len(files) / seconds,
        captions=captions,
        pointing=None if boxes is None else pointing_game(captions, boxes),
    )


def photo_files(images: Path, chosen: Sequence[CocoImage]) -> list[Path]:
    """Where the photos of a captions file are. Raises DataError that counts those that are missing."""
    files = [images / image.file_name for image in chosen]
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise DataError(
            f"photos of the captions file are missing: {_few(missing)}. Is {images} their folder?"
        )
    return files


def prepared_batches(
    captioner: Captioner, files: Sequence[Path], batch_size: int
) -> Iterator[list[PreparedImage]]:
    """Batches of prepared photos, always one batch ahead of what the model is given.

    Raises:
        DataError: photos cannot be read.
    """

    def read(file: Path) -> PreparedImage | ImageError:
        try:
            return captioner.prepare(file)
        except ImageError as error:
            return error

    def start(first: int) -> Iterable[PreparedImage | ImageError]:
        return pool.map(read, files[first : first + batch_size])

    with ThreadPoolExecutor(_READERS) as pool:
        waiting = start(0)
        for first in range(batch_size, len(files) + batch_size, batch_size):
            batch, waiting = list(waiting), start(first)
            bad = [str(item) for item in batch if isinstance(item, ImageError)]
            if bad:
                raise DataError(f"photos cannot be read: {_few(bad)}. Mend them or drop them from the file.")
            yield [item for item in batch if not isinstance(item, ImageError)]


def _few(things: Sequence[str]) -> str:
    return "; ".join(things[:3]) + (f" and {len(things) - 3} more" if len(things) > 3 else "")
