"""Descriptions inside photographs, as other programs write them into each format."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from images import draw_scene, encode
from metadata import write_exiftool
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from captioner.batch.embedded import embedded_descriptions

MINE = "In the gärden"


def photo(path: Path) -> str:
    format = {"jpg": "JPEG", "tif": "TIFF"}.get(path.suffix[1:], path.suffix[1:].upper())
    path.write_bytes(encode(draw_scene(), format))
    return str(path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp", "heic", "avif"])
@pytest.mark.parametrize("place", ["XMP-dc:Description-de", "EXIF:ImageDescription", "EXIF:UserComment"])
def test_each_format_and_place(tmp_path: Path, suffix: str, place: str):
    path = photo(tmp_path / f"dog.{suffix}")
    assert embedded_descriptions(path) == []
    write_exiftool(path, f"-{place}={MINE}")
    assert embedded_descriptions(path) == [MINE]


def test_a_cameras_file_whose_pixels_pillow_does_not_know(tmp_path: Path):
    ifd = ImageFileDirectory_v2()
    ifd[256], ifd[257], ifd[262], ifd[270] = 9, 9, 32803, "In the garden"
    data = io.BytesIO()
    ifd.save(data)
    (tmp_path / "dog.dng").write_bytes(b"II*\0\x08\0\0\0" + data.getvalue()[8:])
    assert embedded_descriptions(str(tmp_path / "dog.dng")) == ["In the garden"]


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
@pytest.mark.parametrize("coding", ["-codedcharacterset=utf8", "-charset=iptc=Latin"])
def test_iptc_in_both_its_encodings(tmp_path: Path, suffix: str, coding: str):
    path = photo(tmp_path / f"dog.{suffix}")
    write_exiftool(path, coding, f"-IPTC:Caption-Abstract={MINE}")
    assert embedded_descriptions(path) == [MINE]


def test_a_pngs_own_text(tmp_path: Path):
    text = PngInfo()
    text.add_itxt("Description", MINE)
    text.add_text("Comment", "Created with GIMP")
    Image.new("RGB", (9, 9)).save(tmp_path / "dog.png", pnginfo=text)
    assert embedded_descriptions(str(tmp_path / "dog.png")) == [MINE]


@pytest.mark.parametrize("order", ["little", "big"])
def test_a_comment_in_windows_letters(tmp_path: Path, order: str):
    for code in (b"UNICODE\0", b"ASCII\0\0\0", b"\0" * 8):
        wide = "utf-16-le" if order == "little" else "utf-16-be"
        text = MINE.encode(wide if code.startswith(b"U") else "utf-8")
        exif = Image.Exif()
        exif.get_ifd(0x8769)[0x9286] = code + text
        Image.new("RGB", (9, 9)).save(tmp_path / "dog.jpg", exif=exif)
        assert embedded_descriptions(str(tmp_path / "dog.jpg")) == [MINE]


@pytest.mark.parametrize(
    "words",
    [
        "OLYMPUS DIGITAL CAMERA         ",
        "SONY DSC",
        "DCIM\\100MEDIA\\DJI_0001.JPG",
        "hdrpl",
        "Exif_JPEG_PICTURE",
        "Screenshot",
        "",
        "   ",
    ],
)
def test_what_a_camera_writes_is_no_description(tmp_path: Path, words: str):
    path = photo(tmp_path / "dog.jpg")
    write_exiftool(path, f"-EXIF:ImageDescription={words}", f"-EXIF:UserComment={words}")
    assert embedded_descriptions(path) == []


@pytest.mark.parametrize("words", ["Created by my father, 1987", "A digital camera", "HDR of the lake", "x"])
def test_what_a_person_writes_is_one(tmp_path: Path, words: str):
    path = photo(tmp_path / "dog.jpg")
    write_exiftool(path, f"-EXIF:ImageDescription={words}")
    assert embedded_descriptions(path) == [words]


def test_a_comment_that_is_no_text_is_none(tmp_path: Path):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"\0" * 8 + bytes(range(200))
    Image.new("RGB", (9, 9)).save(tmp_path / "dog.jpg", exif=exif)
    assert embedded_descriptions(str(tmp_path / "dog.jpg")) == []


@pytest.mark.parametrize("cut", [0, 1, 3, 20, 200, 700])
def test_damage_is_no_description(tmp_path: Path, cut: int):
    path = photo(tmp_path / "dog.jpg")
    write_exiftool(path, f"-EXIF:ImageDescription={MINE}", f"-XMP-dc:Description={MINE}")
    Path(path).write_bytes(Path(path).read_bytes()[:cut])
    assert embedded_descriptions(path) in ([], [MINE])
    assert embedded_descriptions(str(tmp_path / "none.jpg")) == []
