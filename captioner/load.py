"""A name, a directory or a model of the hub -> a ready :class:`~captioner.captioner.Captioner`.

Whatever imports torch is imported where it is needed: ``import captioner`` alone is quick.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from captioner.errors import CheckpointError, DeviceError, OptionsError

if TYPE_CHECKING:
    import torch

    from captioner.captioner import Captioner
    from captioner.runners import Runner

__all__ = [
    "ModelInfo",
    "NamedModel",
    "is_out_of_memory",
    "list_models",
    "load",
    "model_name",
    "named_models",
    "resolve_device",
    "resolve_dtype",
]

OWN_NAME = re.compile(r"(?![A-Za-z]+://)(\w[\w.:@/+-]*)=(.+)")
"""A name that somebody gives to a model, and the model; an address may have such a sign in it, too."""
DTYPES = ("float32", "float16", "bfloat16")
INT4 = "int4"


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """A model that :func:`load` finds by name.

    Attributes:
        name: what to give to :func:`load`.
        path: its checkpoint directory.
        description: one line.
        megabytes: size of its weights on disk, in 10**6 bytes.
    """

    name: str
    path: Path
    description: str
    megabytes: float


def _folders() -> list[Path]:
    """Where named checkpoints are: $CAPTIONER_WEIGHTS, inside the package, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    given = os.environ.get("CAPTIONER_WEIGHTS")
    return [*([Path(given)] if given else []), package / "weights", package.parent / "weights"]


def list_models() -> tuple[ModelInfo, ...]:
    """The models that can be loaded by name, the first of each name that is found."""
    from captioner.checkpoint import read_config

    found: dict[str, ModelInfo] = {}
    for folder in _folders():
        for path in sorted(folder.glob("*/config.json")):
            directory = path.parent
            try:
                description = str(read_config(directory).get("description", ""))
            except CheckpointError:
                continue
            size = (directory / "model.safetensors").stat().st_size / 1e6
            info = ModelInfo(name=directory.name, path=directory, description=description, megabytes=size)
            found.setdefault(info.name, info)
    return tuple(found.values())


def model_directory(name_or_path: str) -> Path:
    """Where the model of that name is, or what the name is as a path, which nothing need be at."""
    paths = {model.name: model.path for model in list_models()}
    return paths.get(name_or_path, Path(name_or_path))


@dataclass(frozen=True, kw_only=True)
class NamedModel:
    """One of several models, before it is loaded.

    Attributes:
        name: what it is called among them.
        place: what to give to :func:`load`.
        sends_photos_to: the server that photos are sent to; None where none are.
    """

    name: str
    place: str
    sends_photos_to: str | None = None


def named_models(texts: Iterable[str]) -> tuple[NamedModel, ...]:
    """Several models to choose from by name; nothing is loaded, and no server is asked.

    Args:
        texts: each what :func:`load` takes, whose name is then :func:`model_name`; or with a name of its own
            before it, as in ``blip=Salesforce/blip-image-captioning-large``.

    Raises:
        CheckpointError: see :func:`model_name`.
        OptionsError: two have the same name.
    """
    from captioner.runners import Address, is_address

    found: dict[str, NamedModel] = {}
    for text in texts:
        given = OWN_NAME.fullmatch(text)
        place = given[2] if given else text
        usual = model_name(place)
        name = given[1] if given else usual
        if name in found:
            raise OptionsError(f"two models are called {name!r}: give one another name, as in other={place}")
        host = Address.parse(place).host if is_address(place) else None
        found[name] = NamedModel(name=name, place=place, sends_photos_to=host)
    return tuple(found.values())


def model_name(name_or_path: str | os.PathLike[str]) -> str:
    """What :func:`load` calls a model; nothing is loaded, and no server is asked.

    Raises:
        CheckpointError: there is no such model on this machine, and it cannot be one of the hub or a server.
    """
    from captioner.hub import is_hub_name, is_local
    from captioner.runners import Address, is_address

    name = os.fspath(name_or_path)
    if is_address(name):
        return Address.parse(name).model
    directory = model_directory(name)
    if is_local(directory):
        return directory.resolve().name
    # A path whose folder exists is a mistyped path, and nobody on the network need hear of it
    mistyped = "/" in name and directory.parent.is_dir()
    if mistyped or not is_hub_name(name):
        known = ", ".join(model.name for model in list_models()) or "none found"
        raise CheckpointError(
            f"no model {name!r}: give a checkpoint directory, a model of the Hugging Face hub as owner/name, "
            f"a name of `captioner models --all`, or one of these: {known}"
        )
    return name


def load(
    name_or_path: str | os.PathLike[str] = "default", *, device: str = "auto", dtype: str = "auto"
) -> Captioner:
    """Load a model.

    On a CPU with glibc this also lets the process keep up to 256 MB of freed memory
    (:func:`~captioner.memory.keep_freed_memory`), which takes a third off the time of the image encoder.

    Args:
        name_or_path: a name that :func:`list_models` gives, or a checkpoint directory; also a Hugging Face
            checkpoint: a directory, ``owner/name`` on the hub, or a short name of ``captioner models --all``.
            It is downloaded once. BLIP, Florence-2, ViT-GPT2 and similar models are converted in memory each
            time, all others are run by `transformers`. ``http://HOST/v1#NAME`` is a model on a server that
            speaks OpenAI's API, ``ollama://HOST#NAME`` one of Ollama: photos are sent there, as the
            ``CAPTIONER_REMOTE_*`` variables say; device and dtype have no effect then.
        device: ``auto`` (CUDA, then MPS, then CPU), or as torch names it: ``cpu``, ``cuda:1``, ``mps``.
        dtype: ``auto``, ``float32``, ``float16`` or ``bfloat16``; auto is float32 on a CPU, float16 on a GPU,
            but there bfloat16 for vision-language models. ``int4`` is for those alone: their text decoder's
            weights in 4 bits (it needs the extra ``int4``), computed with as in ``auto``.

    Raises:
        CheckpointError: there is no such model, or it is damaged.
        DeviceError: this machine lacks the device, or the number type is unknown or cannot be used.
        OptionsError: one of the variables is not valid.
    """
    from captioner.captioner import Captioner
    from captioner.hub import fetch, is_local
    from captioner.memory import keep_freed_memory
    from captioner.runners import Address, is_address

    place, name = os.fspath(name_or_path), model_name(name_or_path)
    if is_address(place):
        from captioner.runners.remote import RemoteRunner

        return Captioner(RemoteRunner(Address.parse(place)), name=name)
    on = resolve_device(device)
    if on.type == "cpu":
        keep_freed_memory()
    directory = model_directory(place)
    if not is_local(directory):
        resolve_dtype(dtype, on, vision_language=True)  # an unknown one is refused before anything is fetched
        directory = fetch(place)
    return Captioner(_read_runner(directory, name, on, dtype), name=name)


def _read_runner(directory: Path, name: str, on: torch.device, dtype: str) -> Runner:
    """The model in a directory, read by whatever runs its kind. Raises what :func:`load` does."""
    from captioner.checkpoint import load_checkpoint
    from captioner.convert import is_hugging_face, read_hugging_face
    from captioner.hub import with_safetensors
    from captioner.runners import (
        CheckpointRunner,
        is_sequence_model,
        is_vision_language,
        read_sequence_model,
        read_vision_language,
    )

    theirs = is_hugging_face(directory)
    sequence = theirs and is_sequence_model(directory)
    vision_language = theirs and not sequence and is_vision_language(directory)
    number = resolve_dtype(dtype, on, vision_language=vision_language)
    if not theirs:
        return CheckpointRunner(load_checkpoint(directory, device=on, dtype=number))
    directory = with_safetensors(directory)
    if sequence:
        return read_sequence_model(directory, name=name, device=on, dtype=number)
    if vision_language:
        return read_vision_language(directory, name=name, device=on, dtype=number, int4=dtype == INT4)
    checkpoint = read_hugging_face(directory, name=name)
    checkpoint.model.to(on, number)
    return CheckpointRunner(checkpoint)


def resolve_device(device: str) -> torch.device:
    """The device that a setting stands for. Raises DeviceError where this machine lacks it."""
    import torch

    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise DeviceError(f"unknown device {device!r}: use auto, cpu, cuda, cuda:N or mps") from error
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not present.get(chosen.type):
        raise DeviceError(f"this machine has no {chosen.type}: use --device cpu or auto")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"this machine has {torch.cuda.device_count()} CUDA devices, so no {device}")
    return chosen


def resolve_dtype(dtype: str, device: torch.device, *, vision_language: bool = False) -> torch.dtype:
    """The number type that a setting stands for, for a model of that kind.

    Raises:
        DeviceError: torch knows none of that name, or it is not for such a model.
    """
    import torch

    if dtype == INT4 and not vision_language:
        raise DeviceError(
            f"int4 is for vision-language models on this machine alone: use auto, {', '.join(DTYPES)}"
        )
    if dtype in ("auto", INT4):
        on_gpu = torch.bfloat16 if vision_language and device.type == "cuda" else torch.float16
        return torch.float32 if device.type == "cpu" else on_gpu  # of float16 those models leave the range
    if dtype not in DTYPES:
        raise DeviceError(f"unknown dtype {dtype!r}: use auto, {', '.join(DTYPES)}")
    number: torch.dtype = getattr(torch, dtype)
    return number


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out. CUDA has a type for it; MPS and the CPU use words."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    texts = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(text in str(error) for text in texts)
