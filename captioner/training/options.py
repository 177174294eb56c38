"""What a training run is told, and what it tells."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from captioner.coco import CocoCaptions
from captioner.errors import DataError

__all__ = ["PhotoSet", "Precision", "Progress", "TrainingOptions"]

Precision = Literal["auto", "float32", "bfloat16"]
"""``"auto"`` is bfloat16 where the device multiplies matrices faster in it: GPUs, and CPUs made for it."""


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How to train.

    Attributes:
        token_dropout: share of the region tokens that a step of cross-entropy training leaves out.
        tag_swap: share of the photos whose tag word is swapped for another's, in tags and captions, of those
            whose captions say it (:class:`~captioner.training.swap.TagSwap`).
        consensus: weight, in the reward, of CIDEr against what other photos' captions let one expect
            (:class:`~captioner.training.scst.SelfCritic`); 0 rewards by a photo's own captions alone.
        epochs: passes of cross-entropy training over the main photo set.
        frozen_epochs: how many of these, from the first, leave the whole backbone as it is: what a decoder
            that knows nothing yet would ask of it is noise.
        scst_epochs: passes of self-critical training after it.
        learning_rate: peak of the decoder's and region encoder's rate; cosine decay after a linear warm-up.
        backbone_rate: factor on it for the backbone's trainable stages; 0 freezes them.
            Self-critical training leaves them as they are.
        scst_rate: learning rate of self-critical training, constant.
        classes_weight: weight of the backbone's loss for classifying otherwise than it did before training,
            so that tag tokens still know what no caption spoke of (learning without forgetting, Li and
            Hoiem 2016).
        frozen_stages: backbone stages that are never trained and whose output is cached; where the backbone
            has fewer, all of them.
        views: augmented views of each photo of the main set.
        extra_views: of each photo of the extra set, which an epoch sees less of.
        photos: photos of the main set in a batch, each with all its captions.
        extra_photos: photos of the extra set beside them.
        label_smoothing: probability spread over all words.
        weight_decay: AdamW's, on matrices only.
        ema: decay a step of the averaged weights that are validated and kept.
        max_words: longer captions are cut.
        scst_beams: captions for each photo in self-critical training.
        keep_epochs: keep each epoch's averaged weights, as a checkpoint in ``epochs/N``.
        precision: of the arithmetic.
        seed: of everything random.
    """

    token_dropout: float = 0.0
    tag_swap: float = 0.0
    consensus: float = 0.0
    epochs: int = 7
    frozen_epochs: int = 3
    scst_epochs: int = 7
    learning_rate: float = 6e-4
    backbone_rate: float = 0.1
    classes_weight: float = 1.0
    scst_rate: float = 5e-5
    frozen_stages: int = 6
    views: int = 4
    extra_views: int = 2
    photos: int = 20
    extra_photos: int = 10
    label_smoothing: float = 0.1
    weight_decay: float = 0.02
    ema: float = 0.998
    max_words: int = 20
    scst_beams: int = 5
    keep_epochs: bool = False
    precision: Precision = "auto"
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What the run tells its caller after each step and each validation.

    Attributes:
        phase: ``"cache"``, ``"xe"`` or ``"scst"``.
        epoch: 1-based.
        step: photos in phase ``"cache"``, else optimiser steps, done in this epoch.
        steps: of how many.
        images_per_second: over this epoch so far.
        loss: running mean, or None.
        scores: the validation's scores at the end of an epoch, or None.
    """

    phase: str
    epoch: int
    step: int
    steps: int
    images_per_second: float
    loss: float | None = None
    scores: dict[str, float | None] | None = None


@dataclass(frozen=True, kw_only=True)
class PhotoSet:
    """A folder of photos and its captions."""

    name: str
    images: Path
    coco: CocoCaptions

    def files(self) -> list[Path]:
        """The photos in order. Raises DataError if one is missing."""
        files = [self.images / image.file_name for image in self.coco.images]
        missing = [file for file in files if not file.is_file()]
        if missing:
            raise DataError(
                f"{len(missing)} photos are missing, for one {missing[0]}. Check the images folder."
            )
        return files
