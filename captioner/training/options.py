"""What a training run is told, and what it tells."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

from captioner.coco import CocoCaptions
from captioner.errors import DataError

__all__ = ["Offered", "PhotoSet", "Precision", "Progress", "TrainingOptions", "TrainingSet"]

Precision = Literal["auto", "float32", "bfloat16"]
"""``"auto"`` is bfloat16 where the device multiplies matrices faster in it: GPUs, and CPUs made for it."""

FROZEN_STAGES = 6
LORA_RATE = 1e-3  # additions start from nothing, and there are few of them


@dataclass(frozen=True)
class Offered:
    """Marks a field that the command line offers, with its help text and its bounds there.

    ``tuned`` is the default for going on from a finished model, if it is another.
    """

    help: str
    min: float | None = None
    max: float | None = None
    tuned: float | None = None


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How to train. The command line offers the fields with a help text; that text says what each means.

    Attributes:
        classes_weight: weight of the backbone's loss for classifying otherwise than it did before training,
            so that tag tokens still know what no caption spoke of (learning without forgetting, Li and
            Hoiem 2016).
        text_weight: how much a caption without a photo counts beside one with a photo.
        label_smoothing: probability spread over all words.
        weight_decay: AdamW's, on matrices only.
        ema: decay a step of the averaged weights that are validated and kept.
        scst_beams: captions for each photo in self-critical training.
    """

    token_dropout: Annotated[
        float,
        Offered("Share of the region tokens that each step of cross-entropy leaves out.", min=0, max=0.95),
    ] = 0.0
    grid_dropout: Annotated[
        float,
        Offered(
            "Share of the steps of cross-entropy that leave out the whole grid: only the tags remain.",
            min=0,
            max=1,
        ),
    ] = 0.0
    tag_swap: Annotated[
        float, Offered("Share of photos whose tag word is replaced in both tags and captions.", min=0, max=1)
    ] = 0.0
    rare_words: Annotated[
        bool,
        Offered(
            "Show photos more often whose captions use rare words, and those with common words less often."
        ),
    ] = False
    consensus: Annotated[
        float, Offered("How much agreement with the captions of similar photos counts in the reward.", min=0)
    ] = 0.0
    content_precision: Annotated[
        float,
        Offered("How much the share of content words that people used as well counts in the reward.", min=0),
    ] = 0.0
    people_penalty: Annotated[
        float,
        Offered("What a caption loses that names people where nobody did; it is part of the reward.", min=0),
    ] = 0.0
    repeat_penalty: Annotated[
        float,
        Offered("What a caption loses that uses a content word twice; it is part of the reward.", min=0),
    ] = 0.0
    text_epochs: Annotated[
        int, Offered("Passes over the captions of --text alone, before all others.", min=0)
    ] = 0
    epochs: Annotated[int, Offered("Passes of cross-entropy training.", min=0, tuned=5)] = 7
    frozen_epochs: Annotated[
        int, Offered("How many of these, from the first, do not train the backbone.", min=0, tuned=0)
    ] = 3
    scst_epochs: Annotated[int, Offered("Passes of self-critical training after them.", min=0, tuned=0)] = 7
    scst_mean: Annotated[
        float,
        Offered(
            "Share of the steps of self-critical training, the last, whose weights are averaged, each alike.",
            min=0,
            max=1,
        ),
    ] = 0.0
    learning_rate: Annotated[
        float, Offered("Highest learning rate of cross-entropy training.", min=0, tuned=1e-4)
    ] = 6e-4
    backbone_rate: Annotated[
        float,
        Offered(
            "Factor on the learning rate for the backbone's upper stages; 0 freezes them.", min=0, tuned=0
        ),
    ] = 0.1
    scst_rate: Annotated[float, Offered("Learning rate of self-critical training.", min=0, tuned=1e-5)] = 5e-5
    lora: Annotated[
        int,
        Offered(
            "Rank of LoRA: train small additions to the linear layers and keep the weights themselves; "
            "0 trains the weights.",
            min=0,
        ),
    ] = 0
    word_loss: Annotated[
        float,
        Offered(
            "How much it counts, while the backbone is trained, that its features tell the captions' words.",
            min=0,
        ),
    ] = 0.0
    smallest_crop: Annotated[
        float, Offered("The least share of a photo's area that its cropped views show.", min=0.05, max=1)
    ] = 0.6
    frozen_stages: Annotated[
        int | None,
        Offered(
            "How many of the backbone's stages, from the first, stay fixed: 6 if not given, and all with "
            "--backbone-rate 0. Their output is kept on disk.",
            min=0,
        ),
    ] = None
    text_photos: Annotated[int, Offered("Lines of --text beside each batch of photos.", min=1)] = 64
    max_words: Annotated[int, Offered("Captions are cut after this many tokens.", min=1, tuned=40)] = 20
    keep_epochs: Annotated[
        bool, Offered("Also keep the weights of each epoch, in OUTPUT/epochs, for `captioner average`.")
    ] = False
    precision: Annotated[Precision, Offered("Number type of the arithmetic; auto uses the faster one.")] = (
        "auto"
    )
    seed: Annotated[int, Offered("Seed of all random numbers.")] = 0
    classes_weight: float = 1.0
    text_weight: float = 0.6
    label_smoothing: float = 0.1
    weight_decay: float = 0.02
    ema: float = 0.998
    scst_beams: int = 5

    @property
    def all_epochs(self) -> int:
        """How many epochs a run has."""
        return self.text_epochs + self.epochs + self.scst_epochs

    def fixed_stages(self, stages: int) -> int:
        """How many of a backbone's stages a run leaves as they are, from the first."""
        usual = FROZEN_STAGES if self.backbone_rate else stages
        return min(stages, usual if self.frozen_stages is None else self.frozen_stages)

    @classmethod
    def tuned(cls, **given: Any) -> TrainingOptions:
        """Options for going on from a finished model, with what is given in place of their defaults."""
        marks = {
            name: mark
            for name, hint in get_type_hints(cls, include_extras=True).items()
            for mark in get_args(hint)
            if isinstance(mark, Offered)
        }
        tuned = {name: mark.tuned for name, mark in marks.items() if mark.tuned is not None}
        if given.get("lora"):
            tuned["learning_rate"] = LORA_RATE
        return cls(**{**tuned, **given})


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What the run tells its caller after each step and each validation.

    Attributes:
        phase: ``"cache"``, ``"start"`` (before all others), ``"text"``, ``"xe"`` or ``"scst"``.
        epoch: 1-based.
        step: photos in phase ``"cache"``, else optimiser steps, done in this epoch.
        steps: of how many.
        images_per_second: over this epoch so far; in phase ``"text"`` lines of text.
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


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """Photos to learn from, and how many of them.

    Attributes:
        source: the photos and their captions.
        per_batch: photos in a batch, each with all its captions.
        views: augmented views of each photo.
        narratives: the texts are no captions but long descriptions: they tell which words are right, but
            not how to put it.

    Raises:
        DataError: there are fewer photos than a batch takes.
    """

    source: PhotoSet
    per_batch: int = 20
    views: int = 4
    narratives: bool = False

    def __post_init__(self) -> None:
        photos = len(self.source.coco.images)
        if self.per_batch > photos:
            raise DataError(f"a batch takes {self.per_batch} photos, but there are {photos}: take fewer")
