"""One model from several of one origin: the mean of their weights, as model soups (Wortsman et al. 2022).

Self-critical training leads from one model to others that lie close enough to it and to one another. Their
mean errs less than each, and it is better still for some of the weights from before (WiSE-FT, Wortsman et al.
2022b), whose captions were less sure of themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from captioner.checkpoint import Checkpoint, load_checkpoint
from captioner.errors import CheckpointError, OptionsError
from captioner.training.initial import pointer_channels

__all__ = ["average"]


def average(
    models: Sequence[tuple[Path, float]], *, pointer: float = 1.0, description: str = ""
) -> Checkpoint:
    """A model whose weights are the mean of others'.

    Args:
        models: checkpoint directories and how much each counts, more than 0; all of one architecture and
            vocabulary. Settings of generation are the first one's.
        pointer: factor on the output of the heads that start as a pointer
            (:func:`~captioner.training.initial.favour_copying`).
        description: for ``captioner models``.

    Raises:
        CheckpointError: one cannot be read, or differs from the first in more than its weights.
        OptionsError: there is none, or one counts nothing.
    """
    total = sum(weight for _, weight in models)
    if not models or not all(0 < weight < math.inf for _, weight in models):
        raise OptionsError("give at least one model, and let each count more than 0")
    (first_path, _), *_ = models
    first = _load(first_path)
    tensors = first.model.state_dict()
    mean: dict[str, Tensor] = {n: torch.zeros_like(t) for n, t in tensors.items() if t.is_floating_point()}
    for path, weight in models:
        other = _load(path)
        _check_alike(first_path, first, path, other)
        for name, value in other.model.state_dict().items():
            if name in mean:
                mean[name] += weight / total * value
    output = f"decoder.blocks.{first.model.config.decoder.layers - 1}.cross_attention.out.weight"
    mean[output][:, : pointer_channels(first.model)] *= pointer
    first.model.load_state_dict(mean, strict=False)
    return replace(first, description=description)


def _load(path: Path) -> Checkpoint:
    return load_checkpoint(path, device=torch.device("cpu"), dtype=torch.float32)


def _check_alike(first_path: Path, first: Checkpoint, path: Path, other: Checkpoint) -> None:
    a, b = first.model, other.model
    is_same = (
        a.config == b.config
        and first.processor == other.processor
        and first.tokenizer.is_same(other.tokenizer)
        and all(
            torch.equal(value, b.state_dict()[name])
            for name, value in a.state_dict().items()
            if not value.is_floating_point()
        )
    )
    if not is_same:
        raise CheckpointError(
            f"{path} and {first_path} differ in more than their weights: average models of one origin"
        )
