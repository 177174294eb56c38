"""Files whose end is missing, and PNGs whose metadata are bad: what pixels are there is captioned."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from images import corners, draw_scene, encode, png_bytes, png_chunk
from PIL import Image, PngImagePlugin

from captioner.errors import ImageDecodeError, ImageError
from captioner.image import decode_image

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow warns of damaged metadata

SIDE = 240
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "jpeg": ("JPEG", {"quality": 90}),
    "grey jpeg": ("JPEG", {"quality": 90}),
    "cmyk jpeg": ("JPEG", {"quality": 90}),
    "jpeg with restarts": ("JPEG", {"quality": 90, "restart_marker_rows": 1}),
    "png": ("PNG", {}),
    "grey png": ("PNG", {}),
    "palette png": ("PNG", {}),
    "webp": ("WEBP", {"quality": 85}),
    "lossless webp": ("WEBP", {"lossless": True}),
    "transparent webp": ("WEBP", {"quality": 85}),
}


def draw_photo() -> Image.Image:
    """Something of a photograph: soft shapes with some grain, alike in all its parts."""
    generator = np.random.default_rng(3)
    coarse = Image.fromarray(generator.integers(20, 236, (16, 16, 3), dtype=np.uint8))
    soft = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC)).astype(int)
    return Image.fromarray((soft + generator.integers(-8, 9, soft.shape)).clip(0, 255).astype(np.uint8))


def encode_photo(kind: str) -> bytes:
    image = draw_photo()
    if kind.startswith("grey"):
        image = image.convert("L")
    if kind.startswith("cmyk"):
        image = image.convert("CMYK")
    if kind.startswith("palette"):
        image = image.quantize(200)
    if kind.startswith("transparent"):
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    format, options = FORMATS[kind]
    return encode(image, format, **options)


def rows_alike(file: bytes, cut: bytes, min_side: int | None = None) -> float:
    """Share of the rows, from the top, that a cut file gives as the whole one does; the rest must be grey."""
    whole, part = (np.asarray(decode_image(data, min_side=min_side).pixels) for data in (file, cut))
    assert whole.shape == part.shape
    alike = (whole == part).all(axis=(1, 2))
    rows = int(alike.argmin()) if not alike.all() else len(alike)
    grey = (part == 128).all(axis=(1, 2))
    assert grey[rows + (rows < len(grey)) :].all()  # a reduced row may be of both
    return rows / len(whole)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_photo_that_lacks_only_its_end_is_whole(kind: str) -> None:
    file = encode_photo(kind)
    end = {"png": 12, "webp": 0}.get(kind.split()[-1], 2)
    cuts = [file[:-end]] if end else []
    if kind.endswith("png"):
        cuts += [file[: -end - 4], file[:-1]]  # the checksum of the last pixels, too
    if "jpeg" in kind:
        cuts += [file[:-1], file[:-2] + bytes(900)]  # filled up with zeros
    for cut in cuts:
        photo = decode_image(cut)
        assert photo.warning is None
        assert photo.pixels.tobytes() == decode_image(file).pixels.tobytes()


@pytest.mark.parametrize("kind", FORMATS)
def test_a_photo_that_lacks_up_to_half_is_read_as_far_as_it_goes(kind: str) -> None:
    file = encode_photo(kind)
    for share in (0.95, 0.8, 0.65, 0.51):
        cut = file[: int(len(file) * share)]
        photo = decode_image(cut)
        assert photo.warning is not None
        assert photo.warning.startswith("incomplete: the last ")
        assert (photo.width, photo.height, photo.pixels.size) == (SIDE, SIDE, (SIDE, SIDE))
        there = rows_alike(file, cut)
        assert share - 0.2 < there < share + 0.15
        assert f"{round(100 * (1 - there))} %" in photo.warning
        assert abs(rows_alike(file, cut, min_side=30) - there) < 0.05


@pytest.mark.parametrize("kind", FORMATS)
def test_less_than_that_is_damaged(kind: str) -> None:
    file = encode_photo(kind)
    for size in (len(file) * 3 // 10, len(file) // 10, 700, 200, 60, 20):
        with pytest.raises(ImageDecodeError, match=r"x: is (truncated or damaged|empty)"):
            decode_image(file[:size], name="x")


def test_the_rest_of_a_download_may_be_zeros() -> None:
    file = encode_photo("jpeg")
    cut = file[: len(file) * 7 // 10]
    padded = decode_image(cut + bytes(len(file) - len(cut)))
    assert padded.pixels.tobytes() == decode_image(cut).pixels.tobytes()
    assert padded.warning == decode_image(cut).warning is not None


def test_a_progressive_photo_that_is_cut_lacks_detail() -> None:
    file = encode(draw_photo(), "JPEG", quality=90, progressive=True)
    assert decode_image(file[:-2]).warning is None
    for share in (0.9, 0.5):
        photo = decode_image(file[: int(len(file) * share)])
        assert photo.warning == "incomplete: the fine detail of the photo is missing"
        difference = np.asarray(photo.pixels).astype(int) - np.asarray(draw_photo())
        assert np.abs(difference).mean() < 8
    for share in (0.12, 0.03):  # within the second scan, and the first
        with pytest.raises(ImageDecodeError):
            decode_image(file[: int(len(file) * share)])


def test_an_upright_photo_that_is_cut_lacks_a_side() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = encode(draw_photo(), "JPEG", quality=90, exif=exif.tobytes())
    pixels = np.asarray(decode_image(file[: len(file) * 3 // 4]).pixels)
    assert (pixels[:, :40] == 128).all()  # what was the bottom
    assert not (pixels[:, -40:] == 128).all(axis=2).any()


def test_what_follows_the_first_frame_is_not_missed() -> None:
    frames = {"save_all": True, "append_images": [draw_scene(SIDE, SIDE)]}
    for format in ("WEBP", "PNG", "MPO"):
        file = encode(draw_photo(), format, **frames)
        photo = decode_image(file[: len(file) - 200])
        assert photo.warning is None
        assert photo.pixels.tobytes() == decode_image(file).pixels.tobytes()


def test_an_interlaced_png_that_is_cut_is_damaged() -> None:
    rows = b"".join(b"\0" + bytes([level] * 24) for level in range(40))
    chunks = [
        png_chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 1)),
        png_chunk(b"IDAT", zlib.compress(rows)[:-20]),
    ]
    with pytest.raises(ImageDecodeError):
        decode_image(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


# --- metadata of PNG ----------------------------------------------------------------------------------------


def png_with(*chunks: bytes, after: bool = False) -> bytes:
    """A PNG of the scene with further chunks, before its pixels or after them."""
    file = encode(draw_scene(), "PNG")
    at = file.index(b"IEND" if after else b"IDAT") - 4
    return file[:at] + b"".join(chunks) + file[at:]


BAD_CHUNKS = {
    "a long compressed text": png_chunk(
        b"zTXt", b"Raw profile type xmp\0\0" + zlib.compress(b"x" * 3_000_000)
    ),
    "a bomb": png_chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(bytes(50_000_000), 9)),
    "a bomb of XMP": png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(50_000_000), 9)),
    "a long profile": png_chunk(
        b"iCCP", b"icc\0\0" + zlib.compress(np.random.default_rng(0).bytes(5_000_000))
    ),
    "a bomb of a profile": png_chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(500_000_000), 9)),
    "a broken profile": png_chunk(b"iCCP", b"icc\0\0" + zlib.compress(b"profile" * 99)),
    "a profile that is not compressed": png_chunk(b"iCCP", b"icc\0\0" + bytes(99)),
    "a wrong checksum": png_chunk(b"tEXt", b"Comment\0hello")[:-1] + b"?",
    "a wrong checksum of a profile": png_chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(99)))[:-1] + b"?",
    "a wrong checksum of transparency": png_chunk(b"tRNS", bytes(6))[:-1] + b"?",
    "a resolution of one byte": png_chunk(b"pHYs", b"1"),
    "no gamma": png_chunk(b"gAMA", b""),
    "broken EXIF": png_chunk(b"eXIf", b"II*\0" + b"\xff" * 40),
    "a text without a keyword": png_chunk(b"iTXt", b"XML:com.adobe.xmp\0"),
    "a frame of an animation": png_chunk(b"fcTL", bytes(3)),
    "an unknown chunk": png_chunk(b"abCd", bytes(3)),
}


@pytest.mark.parametrize("bad", BAD_CHUNKS)
@pytest.mark.parametrize("after", [False, True])
def test_whole_pixels_are_read_whatever_the_metadata(bad: str, after: bool) -> None:
    photo = decode_image(png_with(BAD_CHUNKS[bad], after=after))
    assert photo.warning is None
    assert photo.pixels.tobytes() == draw_scene().tobytes()


def test_an_orientation_is_found_beside_bad_metadata() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    raw = b"\n" + b"exif\n%8d\n" % len(exif.tobytes()) + exif.tobytes().hex().encode() + b"\n"
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/></x:xmpmeta>'
    told = [
        png_chunk(b"eXIf", exif.tobytes()[6:]),
        png_chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(raw)),
        png_chunk(b"tEXt", b"Raw profile type exif\0" + raw),
        png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
    ]
    for chunk in told:
        for after in (False, True):
            file = png_with(BAD_CHUNKS["a long compressed text"], chunk, after=after)
            assert decode_image(file).pixels.size == (64, 96)


@pytest.mark.parametrize("chunk", [b"IHDR", b"IDAT"])
def test_a_wrong_checksum_of_pixels_is_damage(chunk: bytes) -> None:
    file = bytearray(encode(draw_scene(), "PNG"))
    start = file.index(chunk)
    length = int.from_bytes(file[start - 4 : start], "big")
    file[start + 4 + length] ^= 1
    with pytest.raises(ImageDecodeError, match=f"wrong checksum of its {chunk.decode()}"):
        decode_image(bytes(file))


def test_a_png_of_a_million_chunks_is_refused() -> None:
    pixels = png_chunk(b"IDAT", zlib.compress(bytes(4 * 13)))
    with pytest.raises(ImageError, match="chunks"):
        decode_image(png_bytes(4, 4, png_chunk(b"abCd", b"") * 1_000_001, pixels))


def test_the_texts_of_a_png_by_pillow_change_nothing(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "x" * 3_000_000, zip=True)
    info.add_itxt("Title", "ein Bild", lang="de")
    buffer = io.BytesIO()
    draw_scene().save(buffer, "PNG", pnginfo=info, dpi=(300, 300), icc_profile=b"none")
    assert corners(decode_image(buffer.getvalue()).pixels) == corners(draw_scene())
