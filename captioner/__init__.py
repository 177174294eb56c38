"""Captioner describes photographs in words and shows, word by word, where it looked."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from captioner.caption import Alternative, Caption, Word
from captioner.errors import (
    CaptionerError,
    CheckpointError,
    DataError,
    DeviceError,
    ImageDecodeError,
    ImageError,
    ImageSizeError,
    ImageTypeError,
    NotWantedError,
    OptionsError,
    PartialError,
    RemoteError,
    RemoteUnavailableError,
)
from captioner.load import ModelInfo, NamedModel, is_out_of_memory, list_models, load, named_models
from captioner.memory import free_unloaded
from captioner.options import GenerationOptions, SearchOptions

if TYPE_CHECKING:
    from captioner.captioner import Captioner, PreparedImage, StreamEvent

__all__ = [
    "Alternative",
    "Caption",
    "Captioner",
    "CaptionerError",
    "CheckpointError",
    "DataError",
    "DeviceError",
    "GenerationOptions",
    "ImageDecodeError",
    "ImageError",
    "ImageSizeError",
    "ImageTypeError",
    "ModelInfo",
    "NamedModel",
    "NotWantedError",
    "OptionsError",
    "PartialError",
    "PreparedImage",
    "RemoteError",
    "RemoteUnavailableError",
    "SearchOptions",
    "StreamEvent",
    "Word",
    "free_unloaded",
    "is_out_of_memory",
    "list_models",
    "load",
    "named_models",
]


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is first used (PEP 562), so that ``captioner --help`` does not wait."""
    if name in ("Captioner", "PreparedImage", "StreamEvent"):
        return getattr(import_module("captioner.captioner"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
