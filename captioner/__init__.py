"""Captioner describes photographs in words and shows, word by word, where it looked."""

from captioner.caption import Alternative, Caption, Word
from captioner.captioner import Captioner, PreparedImage, StreamEvent
from captioner.errors import (
    CaptionerError,
    CheckpointError,
    DataError,
    DeviceError,
    ImageDecodeError,
    ImageError,
    ImageSizeError,
    ImageTypeError,
    OptionsError,
)
from captioner.generation import GenerationOptions
from captioner.load import ModelInfo, list_models, load

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
    "OptionsError",
    "PreparedImage",
    "StreamEvent",
    "Word",
    "list_models",
    "load",
]
