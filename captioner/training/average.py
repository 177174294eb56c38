"""One model from several of one origin: the mean of their weights, as model soups (Wortsman et al. 2022).

Self-critical training leads from one model to others that lie close enough to it and to one another. The mean
of a run's epochs is better than each; that of several runs once it has some of the weights from before, too
(WiSE-FT, Wortsman et al. 2022b).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from captioner.checkpoint import Checkpoint, load_checkpoint
from captioner.errors import CheckpointError, OptionsError
from captioner.training.initial import pointer_channels

__all__ = ["average"]


def average(
    models: Sequence[tuple[Path, float]],
    *,
    pointer: float = 1.0,
    image_size: int | None = None,
    mirror: bool | None = None,
    description: str = "",
) -> Checkpoint:
    """A model whose weights are the mean of others'.

    Args:
        models: checkpoint directories and how much each counts, more than 0; all of one architecture and
            vocabulary. Settings of generation are the first one's.
        pointer: factor on the output of the heads that start as a pointer
            (:func:`~captioner.training.initial.favour_copying`).
        image_size: side in pixels at which photos are seen; None for the first model's. What was trained on
            crops, where things are large, is better with a larger one (FixRes, Touvron et al. 2019).
        mirror: whether photos are seen in the mirror as well; None for as the first model does.
        description: for ``captioner models``.

    Raises:
        CheckpointError: one cannot be read, or differs from the first in more than its weights.
        OptionsError: there is none, one counts nothing, or the backbone cannot see photos like that.
    """
    total = sum(weight for _, weight in models)
    if not models or not all(0 < weight < math.inf for _, weight in models):
        raise OptionsError("give at least one model, and let each count more than 0")
    (first_path, first_weight), *others = models
    first = _load(first_path)
    mean = {name: value for name, value in first.model.state_dict().items() if value.is_floating_point()}
    for value in mean.values():  # they share the model's memory
        value *= first_weight / total
    for path, weight in others:
        other = _load(path)
        tensors = other.model.state_dict()
        if not _is_alike(first, other, tensors):
            raise CheckpointError(
                f"{path} and {first_path} differ in more than their weights: average models of one origin"
            )
        for name, value in mean.items():
            value += weight / total * tensors[name]
    with torch.no_grad():
        output = first.model.decoder.blocks[-1].cross_attention.out.weight
        output[:, : pointer_channels(first.model)] *= pointer
    averaged = _seeing(first, image_size, mirror)
    return replace(averaged, description=description, calibration=None)  # which was fitted to other weights


def _seeing(checkpoint: Checkpoint, image_size: int | None, mirror: bool | None) -> Checkpoint:
    """The checkpoint with other settings of how photos are seen."""
    config = checkpoint.model.config
    before = config.backbone
    size = before.image_size if image_size is None else image_size
    after = replace(before, image_size=size, mirror=before.mirror if mirror is None else mirror)
    if before.kind == "vit" and after != before:
        raise OptionsError("a ViT sees photos in the size it was trained with, and not in the mirror")
    checkpoint.model.config = replace(config, backbone=after)
    return replace(checkpoint, processor=replace(checkpoint.processor, size=size))


def _load(path: Path) -> Checkpoint:
    return load_checkpoint(path, device=torch.device("cpu"), dtype=torch.float32)


def _is_alike(a: Checkpoint, b: Checkpoint, b_tensors: Mapping[str, Tensor]) -> bool:
    """Whether they differ in nothing but what a mean can be taken of."""
    return (
        a.model.config == b.model.config
        and a.processor == b.processor
        and a.tokenizer.is_same(b.tokenizer)
        and all(
            torch.equal(value, b_tensors[name])
            for name, value in a.model.state_dict().items()
            if not value.is_floating_point()
        )
    )
