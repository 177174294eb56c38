"""A checkpoint directory: ``config.json``, ``model.safetensors``, ``tokenizer.json``; strict in both directions."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from captioner.errors import CheckpointError
from captioner.image import ImageProcessor
from captioner.model import CaptionModel, ModelConfig
from captioner.tokenizer import CaptionTokenizer, TokenizerConfig

__all__ = ["Checkpoint", "load_checkpoint", "read_config", "save_checkpoint"]

FORMAT = 1
FILES = ("config.json", "model.safetensors", "tokenizer.json")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """All that is needed to caption.

    Attributes:
        model: the network.
        tokenizer: text to ids and back.
        processor: pixels to ``pixel_values``.
        description: one line for ``captioner models``.
        generation: this model's own defaults of :class:`~captioner.generation.GenerationOptions`, by field name.
    """

    model: CaptionModel
    tokenizer: CaptionTokenizer
    processor: ImageProcessor
    description: str = ""
    generation: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(checkpoint: Checkpoint, directory: Path, *, dtype: torch.dtype = torch.float16) -> None:
    """Write a checkpoint; the weights are replaced last and at once, so a killed run leaves the old or the new.

    Args:
        checkpoint: what to write.
        directory: made where missing.
        dtype: of the floating-point weights on disk.
    """
    directory.mkdir(parents=True, exist_ok=True)
    config = {
        "format": FORMAT,
        "description": checkpoint.description,
        "model": checkpoint.model.config.to_dict(),
        "image": checkpoint.processor.to_dict(),
        "tokenizer": checkpoint.tokenizer.config.to_dict(),
        "generation": checkpoint.generation,
    }
    tensors = {
        name: (value.to(dtype) if value.is_floating_point() else value).contiguous().cpu()
        for name, value in checkpoint.model.state_dict().items()
    }
    checkpoint.tokenizer.save(directory / "tokenizer.json")
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    partial = directory / "model.safetensors.partial"
    save_file(tensors, partial, {"format": "pt"})
    os.replace(partial, directory / "model.safetensors")


def read_config(directory: Path) -> dict[str, Any]:
    """The parsed ``config.json``. Raises CheckpointError if a file of the checkpoint is missing or damaged."""
    missing = [name for name in FILES if not (directory / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{directory} is not a checkpoint: {', '.join(missing)} missing. "
            "Give a directory written by `captioner train` or `captioner convert`."
        )
    try:
        config = json.loads((directory / "config.json").read_text())
        found = config["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{directory / 'config.json'} is damaged: {error!r}") from error
    if found != FORMAT:
        raise CheckpointError(f"{directory} has format {found!r}; this version reads format {FORMAT}.")
    assert isinstance(config, dict)
    return config


def load_checkpoint(directory: Path, *, device: torch.device, dtype: torch.dtype) -> Checkpoint:
    """Read a checkpoint, checking every name and shape.

    Raises:
        CheckpointError: a file is missing or damaged, or the weights do not fit the configuration.
    """
    config = read_config(directory)
    try:
        model_config = ModelConfig.from_dict(config["model"])
        with torch.device("meta"):
            model = CaptionModel(model_config)
        processor = ImageProcessor.from_dict(config["image"])
        tokenizer_config = TokenizerConfig.from_dict(config["tokenizer"])
        generation = dict(config["generation"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{directory / 'config.json'} does not describe a model: {error!r}") from error
    try:
        tensors = load_file(directory / "model.safetensors", device=str(device))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{directory / 'model.safetensors'} is damaged: {error}") from error
    _check_tensors(directory, model.state_dict(), tensors)
    converted = {
        name: value.to(dtype) if value.is_floating_point() else value for name, value in tensors.items()
    }
    model.load_state_dict(converted, assign=True)
    try:
        tokenizer = CaptionTokenizer.from_file(directory / "tokenizer.json", tokenizer_config)
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise CheckpointError(f"{directory / 'tokenizer.json'} is damaged: {error}") from error
    if tokenizer.vocab_size > model_config.decoder.vocab_size:
        raise CheckpointError(
            f"{directory}: tokenizer.json has {tokenizer.vocab_size} tokens, "
            f"the model only {model_config.decoder.vocab_size}."
        )
    return Checkpoint(
        model=model.eval().requires_grad_(False),
        tokenizer=tokenizer,
        processor=processor,
        description=str(config.get("description", "")),
        generation=generation,
    )


def _check_tensors(directory: Path, expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    problems = [f"{name} is missing" for name in expected.keys() - found.keys()]
    problems += [f"{name} is unknown" for name in found.keys() - expected.keys()]
    problems += [
        f"{name} has shape {tuple(found[name].shape)}, not {tuple(expected[name].shape)}"
        for name in expected.keys() & found.keys()
        if expected[name].shape != found[name].shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(
            f"{directory / 'model.safetensors'} does not fit config.json: {'; '.join(sorted(problems)[:3])}{more}."
        )
