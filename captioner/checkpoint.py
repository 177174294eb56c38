"""A checkpoint directory: ``config.json``, ``model.safetensors``, ``tokenizer.json``; strict both ways."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from captioner.calibration import Calibration
from captioner.errors import CheckpointError
from captioner.image import ImageProcessor
from captioner.model import CaptionModel, ModelConfig, model_without_weights
from captioner.tokenizer import CaptionTokenizer, TokenizerConfig

__all__ = [
    "Checkpoint",
    "check_tensors",
    "load_checkpoint",
    "read_config",
    "save_checkpoint",
    "write_calibration",
]

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
        generation: this model's own defaults of :class:`~captioner.options.GenerationOptions`, by field name.
        calibration: what makes probabilities of what decoding knows; None where nothing was fitted.
    """

    model: CaptionModel
    tokenizer: CaptionTokenizer
    processor: ImageProcessor
    description: str = ""
    generation: dict[str, Any] = field(default_factory=dict)
    calibration: Calibration | None = None


def save_checkpoint(checkpoint: Checkpoint, directory: Path, *, dtype: torch.dtype = torch.float16) -> None:
    """Write a checkpoint; each file is replaced at once, the weights last, so a killed run damages none.

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
    if checkpoint.calibration is not None:
        config["calibration"] = checkpoint.calibration.to_dict()
    tensors = {
        name: (value.to(dtype) if value.is_floating_point() else value).contiguous().cpu()
        for name, value in checkpoint.model.state_dict().items()
    }
    with _replacing(directory / "tokenizer.json") as partial:
        checkpoint.tokenizer.save(partial)
    with _replacing(directory / "config.json") as partial:
        partial.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    with _replacing(directory / "model.safetensors") as partial:
        save_file(tensors, partial, {"format": "pt"})
        shutil.copymode(directory / "config.json", partial)  # safetensors makes files for their owner alone


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A file beside ``path`` to write to, which takes its place if all goes well."""
    partial = path.with_name(f"{path.name}.partial")
    yield partial
    os.replace(partial, path)


def write_calibration(directory: Path, calibration: Calibration) -> None:
    """Give a checkpoint on disk another calibration; all else of it stays as it is.

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged.
    """
    config = {**read_config(directory), "calibration": calibration.to_dict()}
    with _replacing(directory / "config.json") as partial:
        partial.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        shutil.copymode(directory / "config.json", partial)


def read_config(directory: Path) -> dict[str, Any]:
    """The parsed ``config.json``. Raises CheckpointError if it is damaged or a file is missing beside it."""
    missing = [name for name in FILES if not (directory / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{directory} is not a checkpoint: {', '.join(missing)} missing. "
            "Give a directory written by `captioner train` or `captioner convert`."
        )
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
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
        model = model_without_weights(model_config)
        processor = ImageProcessor.from_dict(config["image"])
        tokenizer_config = TokenizerConfig.from_dict(config["tokenizer"])
        generation = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in config["generation"].items()
        }
        fitted = config.get("calibration")
        calibration = None if fitted is None else Calibration.from_dict(fitted)
    except Exception as error:  # a wrong value may reach any constructor, and each fails in its own way
        raise CheckpointError(f"{directory / 'config.json'} does not describe a model: {error!r}") from error
    try:
        tensors = load_file(directory / "model.safetensors", device=str(device))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{directory / 'model.safetensors'} is damaged: {error}") from error
    check_tensors(directory, model.state_dict(), tensors)
    converted = {  # on a CPU, a single tensor that is still the file's would keep all of it in memory
        name: value.to(dtype) if value.is_floating_point() else value.clone()
        for name, value in tensors.items()
    }
    del tensors
    model.load_state_dict(converted, assign=True)
    model.to(device)  # what no file holds
    try:
        tokenizer = CaptionTokenizer.from_file(directory / "tokenizer.json", tokenizer_config)
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise CheckpointError(f"{directory / 'tokenizer.json'} is damaged: {error}") from error
    _check_fit(directory, model_config, tokenizer, processor)
    return Checkpoint(
        model=model.eval().requires_grad_(False),
        tokenizer=tokenizer,
        processor=processor,
        description=str(config.get("description", "")),
        generation=generation,
        calibration=calibration,
    )


def _check_fit(
    directory: Path, config: ModelConfig, tokenizer: CaptionTokenizer, processor: ImageProcessor
) -> None:
    words = config.decoder.vocab_size
    if tokenizer.vocab_size > words:
        raise CheckpointError(
            f"{directory}: tokenizer.json has {tokenizer.vocab_size} tokens, the model only {words}."
        )
    special = tokenizer.config
    ids = {*special.start_ids, special.eos_id, special.pad_id, *special.never_ids, *special.never_last_ids}
    ids = ids.union(*vars(special.classes).values()) if special.classes else ids
    if not special.start_ids or not ids <= set(range(words)):
        raise CheckpointError(f"{directory / 'config.json'} has token ids that the model lacks: {special}.")
    if processor.size != config.backbone.image_size:
        raise CheckpointError(
            f"{directory / 'config.json'} prepares images of {processor.size} pixels "
            f"for a backbone that takes {config.backbone.image_size}."
        )


def check_tensors(directory: Path, expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    """Raise a CheckpointError that names tensors which are missing, unknown or of a wrong shape or type."""
    problems = [f"{name} is missing" for name in expected.keys() - found.keys()]
    problems += [f"{name} is unknown" for name in found.keys() - expected.keys()]
    problems += [
        f"{name} has shape {tuple(found[name].shape)}, not {tuple(expected[name].shape)}"
        for name in expected.keys() & found.keys()
        if expected[name].shape != found[name].shape
    ]
    problems += [
        f"{name} holds {found[name].dtype}, not {expected[name].dtype}"
        for name in expected.keys() & found.keys()
        if expected[name].is_floating_point() != found[name].is_floating_point()
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(
            f"{directory / 'model.safetensors'} does not fit config.json: "
            f"{'; '.join(sorted(problems)[:3])}{more}."
        )
