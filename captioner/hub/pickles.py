"""Weights that are only there as a pickle, written anew as safetensors, once. Nothing else opens a pickle.

A pickle is a program. ``torch.load(weights_only=True)`` runs only the few instructions that make tensors, and
since torch 2.10 no known file gets past it (CVE-2025-32434 and CVE-2026-24747 did).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from captioner.errors import CheckpointError

__all__ = [
    "INDEX",
    "PICKLE",
    "SAFETENSORS",
    "assemble",
    "check_torch",
    "file_names",
    "is_small",
    "weights_in",
    "with_safetensors",
]

logger = logging.getLogger(__name__)

SAFE_TORCH = (2, 10)
SAFETENSORS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
PICKLE = re.compile(r"pytorch_model(-\d{5}-of-\d{5})?\.bin")
SMALL = (".json", ".jinja", ".txt")
INDEX = "model.safetensors.index.json"


def is_small(name: str) -> bool:
    """Whether a file of a checkpoint is read beside its weights: configuration, tokenizer, templates."""
    return name.endswith(SMALL)


def file_names(directory: Path) -> list[str]:
    """Those of the files directly in a directory, sorted."""
    return sorted(path.name for path in directory.iterdir() if path.is_file())


def weights_in(names: Iterable[str], kind: re.Pattern[str]) -> list[str]:
    """Those names that are the weights of one kind, whole or in shards; shards where there is an index."""
    found = sorted(name for name in names if kind.fullmatch(name))
    shards = [name for name in found if "-of-" in name]
    return shards or found


def with_safetensors(directory: Path, *, cache: Path | None = None) -> Path:
    """A checkpoint directory whose weights are safetensors: ``directory``, or a copy of it in the cache.

    Args:
        directory: a Hugging Face checkpoint.
        cache: where copies are kept, by the digest of the pickles; None for the assets of the hub's cache.

    Raises:
        CheckpointError: its weights are a pickle that cannot be converted.
    """
    names = file_names(directory)
    pickles = [directory / name for name in weights_in(names, PICKLE)]
    if weights_in(names, SAFETENSORS) or not pickles:
        return directory
    check_torch(directory.name)
    if cache is None:
        from huggingface_hub.constants import HF_ASSETS_CACHE

        cache = Path(HF_ASSETS_CACHE) / "captioner" / "converted"
    small = [directory / name for name in names if is_small(name)]
    target = cache / _digest([*pickles, *small])
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not target.is_dir():
                assemble(target, small, pickles)
                logger.info("%s: its weights, a pickle, are now safetensors in %s", directory, target)
    except OSError as error:
        raise CheckpointError(
            f"the weights of {directory} cannot be written into {cache}: {error}"
        ) from error
    return target


def check_torch(name: str, version: str | None = None) -> None:
    """Raise CheckpointError where this torch must not open a pickle.

    Args:
        name: of the checkpoint, for the message.
        version: of torch; None for the one that is installed.
    """
    if version is None:
        import torch

        version = str(torch.__version__)
    if tuple(int(part) for part in version.split(".")[:2]) < SAFE_TORCH:
        raise CheckpointError(
            f"the weights of {name} are a pickle, which is a program, and only torch 2.10 or newer reads the "
            f"tensors of one safely; this is torch {version}: upgrade it, or find a checkpoint with "
            "model.safetensors"
        )


def assemble(target: Path, small: Sequence[Path], weights: Sequence[Path]) -> None:
    """Put a checkpoint together from its parts; it is there whole or not at all.

    Args:
        target: a directory, which is replaced.
        small: files to copy.
        weights: safetensors to link, or pickles to convert.

    Raises:
        CheckpointError: a pickle holds more than tensors, or is damaged.
    """
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _fill(partial, small, weights)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _fill(directory: Path, small: Sequence[Path], weights: Sequence[Path]) -> None:
    for path in small:
        if not path.name.startswith("pytorch_model"):  # the index of the pickles
            shutil.copyfile(path, directory / path.name)
    shards: dict[str, str] = {}
    for path in weights:
        if SAFETENSORS.fullmatch(path.name):
            _link(path, directory / path.name)
            continue
        name = path.name.replace("pytorch_model", "model").replace(".bin", ".safetensors")
        shards |= dict.fromkeys(_convert(path, directory / name), name)
    if len(set(shards.values())) > 1:
        index = {"metadata": {}, "weight_map": shards}
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _link(path: Path, link: Path) -> None:
    """A relative link, so that a cache may be moved; a copy where the system has no links."""
    try:
        link.symlink_to(os.path.relpath(path.resolve(), link.parent))
    except OSError:
        shutil.copyfile(path, link)


def _convert(pickle: Path, target: Path) -> list[str]:
    """Write the tensors of one pickle as safetensors; their names."""
    from safetensors.torch import save_file
    from torch import Tensor, strided

    loaded = _load(pickle)
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) and value.layout == strided
        for name, value in loaded.items()
    ):
        raise CheckpointError(f"{pickle} is not a checkpoint's weights: it holds more than plain tensors")
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in loaded.items():
        tensor = value.detach().contiguous()
        place = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if place in seen else tensor  # tied weights share their memory
        seen.add(place)
    target.touch()
    mode = target.stat().st_mode
    try:
        save_file(tensors, target, {"format": "pt"})
    except Exception as error:  # a full disk, or a number type that safetensors lacks
        raise CheckpointError(f"{pickle} cannot be written as safetensors: {error}") from error
    target.chmod(mode)  # safetensors makes files for their owner alone
    return list(tensors)


def _load(pickle: Path) -> Any:
    import torch

    try:
        return torch.load(pickle, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # unpickling raises whatever the file makes it
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if wanted:
            raise CheckpointError(
                f"{pickle} is refused, and nothing of it was run: beside tensors it asks for "
                f"{wanted[1]}, as a program would"
            ) from error
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{pickle} cannot be read as weights: {reason}") from error


def _digest(paths: Sequence[Path]) -> str:
    """The start of the SHA-256 over the files' names and contents."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:32]
