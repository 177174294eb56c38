"""Every error that Captioner raises on purpose, as one tree.

CaptionerError
├── ImageError               a photograph cannot be used
│   ├── ImageTypeError       not an image, or a format that is not read
│   ├── ImageSizeError       more pixels than the limit allows
│   └── ImageDecodeError     empty, truncated or damaged
├── OptionsError             options that are out of range or contradict each other
├── CheckpointError          a checkpoint that is missing, incomplete or does not fit
├── DataError                a captions file or a photo folder that cannot be used
├── DeviceError              a device or number type that this machine lacks
├── NotWantedError           nobody waits for the captions any more
└── RemoteError              a model's server fails on a photograph
    ├── RemoteUnavailableError   it would fail on any other as well
    └── PartialError         some photographs of a batch have captions, others do not
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = [
    "CaptionerError",
    "CheckpointError",
    "DataError",
    "DeviceError",
    "ImageDecodeError",
    "ImageError",
    "ImageSizeError",
    "ImageTypeError",
    "NotWantedError",
    "OptionsError",
    "PartialError",
    "RemoteError",
    "RemoteUnavailableError",
]


class CaptionerError(Exception):
    """Base of all errors; its text says what is wrong and what to do about it."""


class ImageError(CaptionerError):
    """A photograph cannot be used.

    Args:
        file: the name to show, a path or ``"image 3"``; never the bytes.
        reason: what is wrong, as a phrase: ``"is truncated: 312 of 4096 bytes decoded"``.
    """

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(f"{file}: {reason}")
        self.file = file
        self.reason = reason


class ImageTypeError(ImageError):
    """The bytes are not an image, or of a format that is not read."""


class ImageSizeError(ImageError):
    """The header announces more pixels than the limit allows."""


class ImageDecodeError(ImageError):
    """The file is empty, truncated or damaged."""


class OptionsError(CaptionerError):
    """Options are out of range or contradict each other."""


class CheckpointError(CaptionerError):
    """A checkpoint is missing, incomplete, or does not fit its configuration."""


class DataError(CaptionerError):
    """A captions file or a photo folder cannot be used."""


class DeviceError(CaptionerError):
    """The requested device or number type is not available on this machine."""


class NotWantedError(CaptionerError):
    """Work was broken off since nobody waits for its captions any more."""


class RemoteError(CaptionerError):
    """A model's server failed on a photograph, or gave no answer that makes sense."""


class RemoteUnavailableError(RemoteError):
    """A model's server is out of reach or full, or knows no such model or key: any photograph would fail."""


class PartialError(RemoteError):
    """Not all photographs of a batch have captions.

    Args:
        results: for each photograph its caption, or the RemoteError that says why it has none.
    """

    def __init__(self, results: Sequence[Any]) -> None:
        errors = [item for item in results if isinstance(item, RemoteError)]
        super().__init__(f"{len(errors)} of {len(results)} photographs have no caption: {errors[0]}")
        self.results = results
        self.errors = errors
