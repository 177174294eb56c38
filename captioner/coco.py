"""Captions files in the COCO captions format: which photos there are, and what people wrote about each.

``{"images": [{"id", "file_name"}, …], "annotations": [{"image_id", "caption"}, …]}``; other keys are ignored.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from captioner.errors import DataError

__all__ = ["CocoCaptions", "CocoImage", "ImageId", "read_items", "read_json"]

ImageId = int | str


@dataclass(frozen=True, slots=True)
class CocoImage:
    """One photo: its id, and its path relative to the folder of images."""

    id: ImageId
    file_name: str


@dataclass(frozen=True)
class CocoCaptions:
    """The photos of a captions file, in its order, and the captions of each, at least one."""

    images: tuple[CocoImage, ...]
    captions: Mapping[ImageId, tuple[str, ...]]

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> CocoCaptions:
        """Read a captions file.

        Raises:
            DataError: the file cannot be read, is not in the format, gives an id twice, has a caption of an
                unknown photo or a photo without captions, or names a photo outside the folder of images.
        """
        data = read_json(Path(path))
        images = tuple(
            CocoImage(_image_id(item, "id", where), _file_name(item, where))
            for item, where in read_items(data, "images", path)
        )
        captions: dict[ImageId, list[str]] = {}
        for number, image in enumerate(images):
            if image.id in captions:
                raise DataError(
                    f"{path}: images[{number}]: id {image.id!r} is there twice: give each photo its own"
                )
            captions[image.id] = []
        for item, where in read_items(data, "annotations", path):
            image_id = _image_id(item, "image_id", where)
            if image_id not in captions:
                raise DataError(
                    f"{where}: no photo in 'images' has the id {image_id!r}: add it, or drop the caption"
                )
            captions[image_id].append(_text(item, "caption", where))
        bare = next((image for image in images if not captions[image.id]), None)
        if bare:
            raise DataError(
                f"{path}: {bare.file_name} (id {bare.id!r}) has no caption: add one, or drop the photo"
            )
        return cls(images, {image_id: tuple(texts) for image_id, texts in captions.items()})

    def pairs(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Each photo's file name with its captions, in the order of ``images``."""
        return ((image.file_name, self.captions[image.id]) for image in self.images)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises DataError if there is none."""
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not JSON ({error}): give a file in the COCO format") from None
    if not isinstance(data, dict):
        raise DataError(f"{path}: is not a JSON object: give a file in the COCO format")
    return data


def read_items(
    data: dict[str, Any], key: str, path: str | os.PathLike[str]
) -> Iterator[tuple[dict[str, Any], str]]:
    """The objects under ``key``, each with where it stands in the file. Raises DataError for others."""
    items = data.get(key)
    if not isinstance(items, list) or not items:
        raise DataError(f"{path}: {key!r} must be a list with at least one entry, as in the COCO format")
    for number, item in enumerate(items):
        where = f"{path}: {key}[{number}]"
        if not isinstance(item, dict):
            raise DataError(f"{where}: must be an object, not {type(item).__name__}")
        yield item, where


def _image_id(item: dict[str, Any], key: str, where: str) -> ImageId:
    value = item.get(key)
    if isinstance(value, (int, str)) and not isinstance(value, bool):
        return value
    raise DataError(f"{where}: {key!r} must be a whole number or a string")


def _text(item: dict[str, Any], key: str, where: str) -> str:
    value = item.get(key)
    if isinstance(value, str) and value.strip():
        return value
    raise DataError(f"{where}: {key!r} must be a string that is not empty")


def _file_name(item: dict[str, Any], where: str) -> str:
    name = _text(item, "file_name", where)
    windows = PureWindowsPath(name)  # takes both slashes for separators
    if windows.anchor or PurePosixPath(name).anchor or ".." in windows.parts or "\0" in name:
        raise DataError(
            f"{where}: 'file_name' {name!r} must be a path inside the folder of images, without '..'"
        )
    return name
