"""Items: one photograph of a batch each, and the name that it has however its path is spelled."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeAlias

from captioner.batch.remote import is_remote, open_file, read_file
from captioner.errors import ImageError, OptionsError

__all__ = [
    "IMAGE_SUFFIXES",
    "PHOTO_SUFFIXES",
    "RAW_SUFFIXES",
    "Dedupe",
    "Item",
    "identity",
    "split_member",
    "why_unreadable",
]

Dedupe: TypeAlias = Literal["bytes", "stem"]
"""What makes two photographs one."""

IMAGE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".jfif", ".jpe", ".jpeg", ".jpg"}
    | {".mpo", ".png", ".tif", ".tiff", ".webp"}
)
RAW_SUFFIXES = frozenset({".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2"})
PHOTO_SUFFIXES = IMAGE_SUFFIXES | RAW_SUFFIXES | {".jxl"}


@dataclass(frozen=True, slots=True)
class Item:
    """One photograph of a batch. Plain data: it can be sent to another process.

    Attributes:
        key: its name in records: the path as given, or ``shard.tar!member``.
        path: the file that holds it.
        offset: where in that file the photograph begins, for a shard's member; None for a file of its own.
        size: the member's bytes.
        modified: when the member was modified, in seconds since 1970.
        problem: why it cannot be read, where that is known already.
    """

    key: str
    path: str
    offset: int | None = None
    size: int = 0
    modified: float = 0.0
    problem: str = ""

    @property
    def is_file(self) -> bool:
        """Whether it is a file of this machine, beside which another can stand."""
        return self.offset is None and not is_remote(self.path)

    def version(self) -> tuple[int, float] | None:
        """Its bytes and when it was modified, which tell whether it has changed; None if unknown."""
        if self.offset is not None:
            return self.size, self.modified
        if self.problem or is_remote(self.path):
            return None
        try:
            status = os.stat(self.path)
        except OSError:
            return None
        return status.st_size, round(status.st_mtime, 3)

    def source(self) -> str | bytes:
        """What :meth:`Captioner.prepare` takes: the path of a file, the bytes of a member or a store's file.

        Raises:
            ImageError: it cannot be read.
        """
        if self.problem:
            raise ImageError(self.key, self.problem)
        if self.is_file:
            return self.path
        try:
            if self.offset is None:
                return read_file(self.path)
            with open_file(self.path) as shard:
                shard.seek(self.offset)
                return shard.read(self.size)
        except OSError as error:
            raise ImageError(self.key, why_unreadable(error)) from error
        except OptionsError as error:  # a URI of a kind that is not read
            raise ImageError(self.key, str(error)) from error


def identity(key: str) -> str:
    """One name for a photograph, however its path is spelled: absolute, and without links to folders."""
    if is_remote(key):
        return key
    file, member = split_member(key)
    folder, name = os.path.split(file)
    return os.path.join(_real_folder(os.getcwd(), folder), name) + member


def split_member(key: str) -> tuple[str, str]:
    """The file that holds a photograph, and ``!member`` where that is a shard, else nothing."""
    mark = re.search(r"(?<=\.tar)!", key, re.IGNORECASE)
    end = mark.start() if mark else len(key)
    return key[:end], key[end:]


@lru_cache(maxsize=1024)  # photographs come folder by folder
def _real_folder(here: str, folder: str) -> str:
    return os.path.realpath(os.path.join(here, folder))


def why_unreadable(error: OSError) -> str:
    """The problem of an item, as a phrase."""
    return f"cannot be read: {' '.join((error.strerror or str(error)).split())[:200]}"
