"""The files of a Hugging Face checkpoint, read without any code of theirs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from captioner.errors import CheckpointError
from captioner.tokenizer import CaptionTokenizer, TokenizerConfig

__all__ = [
    "generation_defaults",
    "image_settings",
    "read_json",
    "read_tensors",
    "read_tokenizer",
    "weight_files",
]


def read_json(path: Path, *, optional: bool = False) -> dict[str, Any]:
    """The object in a JSON file; nothing where it is missing and optional. Raises CheckpointError."""
    if optional and not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} is damaged: it is not a JSON object")
    return data


def image_settings(directory: Path) -> dict[str, Any]:
    """What the image processor's file says, or that of all processors, which newer versions write."""
    found = read_json(directory / "preprocessor_config.json", optional=True)
    found = found or read_json(directory / "processor_config.json", optional=True).get("image_processor", {})
    return {name: value for name, value in found.items() if value is not None}


def weight_files(directory: Path) -> list[Path]:
    """Where the weights are. Raises CheckpointError where they are not in safetensors, or not all there."""
    index = read_json(directory / "model.safetensors.index.json", optional=True)
    names = sorted({Path(name).name for name in index.get("weight_map", {}).values()})
    files = [directory / name for name in names or ["model.safetensors"]]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise CheckpointError(
            f"{directory} is not a complete checkpoint: {', '.join(missing)} missing. Weights are read from "
            "model.safetensors, whole or in shards, and from pytorch_model.bin."
        )
    return files


def read_tensors(directory: Path) -> dict[str, Tensor]:
    """All weights, by their names on disk. Raises CheckpointError."""
    files = weight_files(directory)
    try:
        parts = [load_file(file) for file in files]
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"the weights of {directory} are damaged: {error}") from error
    return {name: tensor for part in parts for name, tensor in part.items()}


def read_tokenizer(
    directory: Path,
    *,
    start_ids: tuple[int, ...],
    eos_id: int,
    pad_id: int,
    counted_start: int = 0,
    forced_end: int | None = None,
) -> CaptionTokenizer:
    """``tokenizer.json`` with what the configuration says of its ids. Raises CheckpointError."""
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(
            f"{directory} has no tokenizer.json: write one there with the tokenizer's save_pretrained "
            "of `transformers`"
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise CheckpointError(f"{path} is damaged: {error}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    unknown = getattr(tokenizer.model, "unk_token", None)
    unknown_id = tokenizer.token_to_id(unknown) if unknown else None
    config = TokenizerConfig(
        start_ids=start_ids,
        eos_id=eos_id,
        pad_id=pad_id,
        unk_id=-1 if unknown_id is None else unknown_id,
        never_ids=(),
        counted_start=counted_start,
        forced_end=forced_end,
    )
    return CaptionTokenizer(tokenizer, config)


def generation_defaults(settings: Mapping[str, Any], max_positions: int) -> dict[str, Any]:
    """Our defaults from what ``generation_config.json`` holds.

    Its lengths count the start token, its least ones not the end token.
    """
    names = ("num_beams", "length_penalty", "no_repeat_ngram_size")
    options = {name: settings[name] for name in names if settings.get(name) is not None}
    if settings.get("early_stopping") is True:
        options["early_stopping"] = True
    shortest = settings.get("min_new_tokens", 0) or (settings.get("min_length") or 0) - 1
    if shortest > 0:
        options["min_length"] = shortest + 1
    longest = settings.get("max_new_tokens") or (settings.get("max_length") or 0) - 1
    if longest > 0:
        options["max_length"] = min(longest, max_positions)
    return options
