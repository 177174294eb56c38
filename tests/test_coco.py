"""Captions files: what is read, and what is said of each way a file can be wrong."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest

from captioner.coco import CocoCaptions, CocoImage
from captioner.errors import DataError

IMAGES: list[Any] = [{"id": 7, "file_name": "b.jpg"}, {"id": "x", "file_name": "2014/a b.jpg", "width": 640}]
ANNOTATIONS: list[Any] = [
    {"image_id": "x", "caption": "a cat", "id": 1},
    {"image_id": 7, "caption": "a dog"},
    {"image_id": "x", "caption": "ein Kätzchen"},
]


def write(folder: Path, images: Any = IMAGES, annotations: Any = ANNOTATIONS) -> Path:
    path = folder / "captions.json"
    path.write_text(json.dumps({"info": {}, "images": images, "annotations": annotations}))
    return path


def test_photos_and_captions_keep_the_order_of_the_file(tmp_path: Path) -> None:
    coco = CocoCaptions.from_file(write(tmp_path))
    assert coco.images == (CocoImage(7, "b.jpg"), CocoImage("x", "2014/a b.jpg"))
    assert coco.captions == {7: ("a dog",), "x": ("a cat", "ein Kätzchen")}
    assert list(coco.pairs()) == [("b.jpg", ("a dog",)), ("2014/a b.jpg", ("a cat", "ein Kätzchen"))]


def test_a_path_may_be_a_string_and_the_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = write(tmp_path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(CocoCaptions.from_file(str(path)).images) == 2


def test_what_was_read_is_frozen(tmp_path: Path) -> None:
    coco = CocoCaptions.from_file(write(tmp_path))
    with pytest.raises(FrozenInstanceError):
        coco.images = ()  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        coco.images[0].file_name = "c.jpg"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b'{"images": [', "is not JSON"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[1, 2]", "is not a JSON object"),
        (b"{}", "'images' must be a list"),
    ],
)
def test_what_is_no_captions_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "captions.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as raised:
        CocoCaptions.from_file(path)
    assert str(raised.value).startswith(f"{path}: ")


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"missing\.json: cannot be read: No such file"):
        CocoCaptions.from_file(tmp_path / "missing.json")
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        CocoCaptions.from_file(tmp_path)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (None, "'images' must be a list with at least one entry"),
        ([], "'images' must be a list with at least one entry"),
        ([7], r"images\[0\]: must be an object, not int"),
        ([{"file_name": "b.jpg"}], r"images\[0\]: 'id' must be a whole number or a string"),
        ([{"id": 7.0, "file_name": "b.jpg"}], r"images\[0\]: 'id' must be a whole number or a string"),
        ([{"id": True, "file_name": "b.jpg"}], r"images\[0\]: 'id' must be a whole number or a string"),
        ([{"id": 7}], r"images\[0\]: 'file_name' must be a string that is not empty"),
        ([{"id": 7, "file_name": " "}], r"images\[0\]: 'file_name' must be a string that is not empty"),
        ([*IMAGES, {"id": 7, "file_name": "c.jpg"}], r"images\[2\]: id 7 is there twice"),
        ([*IMAGES, {"id": 8, "file_name": "c.jpg"}], r"c.jpg \(id 8\) has no caption"),
        ([IMAGES[0]], r"annotations\[0\]: no photo in 'images' has the id 'x'"),
    ],
)
def test_photos_that_are_wrong_are_refused(tmp_path: Path, images: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        CocoCaptions.from_file(write(tmp_path, images=images))


@pytest.mark.parametrize(
    "file_name",
    [
        "/etc/passwd",
        "../b.jpg",
        "a/../../b.jpg",
        "a/..",
        "..\\b.jpg",
        "C:\\b.jpg",
        "C:b.jpg",
        "\\\\host\\share\\b.jpg",
        "\\b.jpg",
        "b\0.jpg",
    ],
)
def test_a_photo_outside_the_folder_is_refused(tmp_path: Path, file_name: str) -> None:
    path = write(tmp_path, images=[{"id": 7, "file_name": file_name}, IMAGES[1]])
    with pytest.raises(DataError, match=r"images\[0\]: 'file_name' .* must be a path inside the folder"):
        CocoCaptions.from_file(path)


@pytest.mark.parametrize("file_name", ["a/b.jpg", "a..b.jpg", "...jpg", "./b.jpg", "ä ö.jpg"])
def test_a_photo_inside_the_folder_is_taken(tmp_path: Path, file_name: str) -> None:
    path = write(tmp_path, images=[{"id": 7, "file_name": file_name}, IMAGES[1]])
    assert CocoCaptions.from_file(path).images[0].file_name == file_name


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ({}, "'annotations' must be a list with at least one entry"),
        ([], "'annotations' must be a list with at least one entry"),
        (["a dog"], r"annotations\[0\]: must be an object, not str"),
        ([{"caption": "a dog"}], r"annotations\[0\]: 'image_id' must be a whole number or a string"),
        ([{"image_id": 7}], r"annotations\[0\]: 'caption' must be a string that is not empty"),
        ([{"image_id": 7, "caption": ["a"]}], r"annotations\[0\]: 'caption' must be a string"),
        (
            [{"image_id": 7, "caption": "\n"}],
            r"annotations\[0\]: 'caption' must be a string that is not empty",
        ),
        ([*ANNOTATIONS, {"image_id": 9, "caption": "a"}], r"annotations\[3\]: no photo .* has the id 9"),
        ([*ANNOTATIONS, {"image_id": "7", "caption": "a"}], r"annotations\[3\]: no photo .* has the id '7'"),
        ([ANNOTATIONS[0]], r"b.jpg \(id 7\) has no caption"),
    ],
)
def test_captions_that_are_wrong_are_refused(tmp_path: Path, annotations: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        CocoCaptions.from_file(write(tmp_path, annotations=annotations))
