"""Photographs of every format, upright and in the right colours; pixel values; boxes."""

from __future__ import annotations

import io
import random
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from images import (
    CORNERS,
    corners,
    draw_scene,
    encode,
    encode_all,
    png_chunk,
)
from PIL import Image, ImageCms

from captioner.errors import ImageDecodeError, ImageTypeError, OptionsError
from captioner.image import decode_image

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow warns of damaged metadata

ENCODED = encode_all(draw_scene())
TURNED_BY = {  # how a camera stores a scene that the EXIF orientation puts upright again
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def assert_scene(image: Image.Image, tolerance: int = 12) -> None:
    assert image.mode == "RGB"
    np.testing.assert_allclose(corners(image), CORNERS, atol=tolerance)


def grey_levels(source: Any) -> list[int]:
    return np.asarray(decode_image(source).pixels)[0, :, 0].tolist()


# --- formats, modes, orientation ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ENCODED)
def test_every_format_decodes_to_the_upright_scene(kind: str) -> None:
    photo = decode_image(ENCODED[kind])
    assert (photo.width, photo.height, photo.file) == (96, 64, None)
    assert photo.pixels.size == (96, 64)
    assert_scene(photo.pixels, tolerance=25 if "palette" in kind else 12)


@pytest.mark.parametrize("orientation", TURNED_BY)
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIC"])
@pytest.mark.parametrize("min_side", [None, 16])
def test_exif_orientation_is_applied_once(format: str, orientation: int, min_side: int | None) -> None:
    turn = TURNED_BY[orientation]
    stored = draw_scene() if turn is None else draw_scene().transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo = decode_image(encode(stored, format, exif=exif.tobytes()), min_side=min_side)
    assert (photo.width, photo.height) == (96, 64)
    assert photo.pixels.size == ((96, 64) if min_side is None else (48, 32))
    assert_scene(photo.pixels, tolerance=25)


def test_pixels_keep_no_metadata_and_no_file() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for format in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIC"):
        pixels = decode_image(encode(draw_scene(), format, exif=exif.tobytes())).pixels
        assert type(pixels) is Image.Image
        assert pixels.info == dict(pixels.getexif()) == {}


@pytest.mark.parametrize("exif", [b"II*\0" + b"\xff" * 40, b"II*\0", b"JUNK", b""])
def test_damaged_exif_does_not_spoil_a_photo(exif: bytes) -> None:
    for format in ("JPEG", "PNG", "WEBP"):
        file = encode(draw_scene(), format, quality=90, exif=b"Exif\0\0" + exif)
        assert_scene(decode_image(file).pixels)


@pytest.mark.parametrize("kind", ["heic", "avif"])
def test_a_file_of_the_general_brand_is_what_its_compatible_brands_say(kind: str) -> None:
    file = ENCODED[kind].replace(b"ftyp" + kind.encode(), b"ftypmif1", 1)
    assert file != ENCODED[kind]
    assert_scene(decode_image(file).pixels)


def test_transparency_is_composed_on_white() -> None:
    clear = Image.new("RGBA", (4, 4), (200, 0, 0, 0))
    half = Image.new("RGBA", (4, 4), (200, 0, 0, 127))
    for format, options in (("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})):
        assert decode_image(encode(clear, format, **options)).pixels.getpixel((1, 1)) == (255, 255, 255)
        red, green, blue = decode_image(encode(half, format, **options)).pixels.getpixel((1, 1))
        assert abs(red - 228) <= 1
        assert green == blue == 128
    assert decode_image(clear.convert("RGBa")).pixels.getpixel((1, 1)) == (255, 255, 255)
    assert decode_image(clear.convert("LA")).pixels.getpixel((1, 1)) == (255, 255, 255)
    assert decode_image(np.asarray(clear)).pixels.getpixel((1, 1)) == (255, 255, 255)


def test_a_transparent_palette_entry_or_colour_is_white() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    files = [
        encode(palette, "PNG", transparency=0),
        encode(palette, "PNG", transparency=bytes([0, 255])),
        encode(palette, "GIF", transparency=0),
        encode(palette.convert("RGB"), "PNG", transparency=(10, 20, 30)),
    ]
    for file in files:
        assert np.asarray(decode_image(file).pixels).tolist() == [[[255, 255, 255], [200, 100, 50]]]


def test_an_animation_is_its_first_frame() -> None:
    other = draw_scene().transpose(Image.Transpose.ROTATE_180)
    for format in ("GIF", "PNG", "WEBP", "TIFF"):
        file = encode(draw_scene(), format, save_all=True, append_images=[other])
        assert Image.open(io.BytesIO(file)).n_frames == 2
        assert_scene(decode_image(file).pixels)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB", "HSV"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    colour = (200, 60, 30)
    image = Image.new("RGB", (8, 8), colour)
    expected = {"1": (255,) * 3, "L": (98,) * 3, "P": (204, 51, 51)}.get(mode, colour)
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(image, *profiles, outputMode="LAB")
    elif mode == "1":
        image = Image.new("1", (8, 8), 1)
    else:
        image = image.convert(mode)
    files = [encode(image, "TIFF")] if mode != "HSV" else []
    files += [encode(image, "JPEG", quality=100)] if mode in {"CMYK", "YCbCr"} else []
    for source in (image, *files):
        np.testing.assert_allclose(decode_image(source).pixels.getpixel((4, 4)), expected, atol=3)


def test_sixteen_bit_grey_is_scaled_to_its_white() -> None:
    levels = np.arange(256, dtype=np.uint16)[None]
    for format in ("PNG", "TIFF"):
        assert grey_levels(encode(Image.fromarray(levels * 257), format)) == list(range(256))
        assert grey_levels(encode(Image.fromarray(levels), format)) == list(range(256))
    twelve_bit = np.array([[0, 2048, 4095]], np.uint16)
    assert grey_levels(Image.fromarray(twelve_bit)) == [0, 128, 255]
    assert grey_levels(Image.fromarray((levels * 257).astype(">u2"))) == list(range(256))


def test_integer_and_float_grey_are_scaled_to_their_range() -> None:
    assert grey_levels(Image.fromarray(np.array([[0, 32768, 65535]], np.int32))) == [0, 128, 255]
    assert grey_levels(Image.fromarray(np.array([[-1000, 0, 1000]], np.int32))) == [0, 128, 255]
    assert grey_levels(Image.fromarray(np.array([[0, 0.5, 0.25]], np.float32))) == [0, 128, 64]
    assert grey_levels(Image.fromarray(np.array([[0, 51, 255]], np.float32))) == [0, 51, 255]
    assert grey_levels(Image.fromarray(np.array([[np.nan, np.inf, 1]], np.float32))) == [0, 0, 255]
    assert grey_levels(Image.fromarray(np.full((1, 2), 3e38, np.float32))) == [0, 0]


def test_sixteen_bit_colour_keeps_its_high_byte() -> None:
    row = b"\0" + struct.pack(">HHH", 0xC800, 0x3C00, 0x1E00)
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0))
    file = b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(row)) + png_chunk(b"IEND", b"")
    assert decode_image(file).pixels.getpixel((0, 0)) == (200, 60, 30)


# --- sources ------------------------------------------------------------------------------------------------


def test_every_kind_of_source_gives_the_same_photo(tmp_path: Path) -> None:
    path = tmp_path / "scene.jpeg"  # the content names the format, not the suffix
    path.write_bytes(ENCODED["png"])
    scene = draw_scene()
    for source in (str(path), path, ENCODED["png"], scene, np.asarray(scene)):
        photo = decode_image(source)
        assert photo.pixels.tobytes() == scene.tobytes()
        assert photo.file == (str(path) if isinstance(source, str | Path) else None)
    assert decode_image(scene, name="image 3").file == "image 3"
    assert corners(decode_image(np.asarray(scene.convert("L"))).pixels) == corners(scene.convert("L"))


def test_the_callers_image_is_left_alone() -> None:
    given = Image.open(io.BytesIO(encode(draw_scene(960, 640), "JPEG", quality=90)))
    photo = decode_image(given, min_side=64)
    assert given.size == (960, 640)
    given.close()
    assert (photo.width, photo.height, photo.pixels.size) == (960, 640, (192, 128))
    scene = draw_scene()
    pixels = decode_image(scene).pixels
    scene.paste((0, 0, 0), (0, 0, 96, 64))
    assert_scene(pixels)
    array = np.zeros((4, 4), np.uint8)
    pixels = decode_image(array).pixels
    array[:] = 255
    assert pixels.getpixel((0, 0)) == (0, 0, 0)


@pytest.mark.parametrize("shape", [(4,), (3, 5, 5), (1, 4, 4, 3)])
def test_an_array_of_another_shape_or_type_is_refused(shape: tuple[int, ...]) -> None:
    for array in (np.zeros(shape, np.uint8), np.zeros((4, 4, 3), np.float32)):
        with pytest.raises(ImageTypeError, match="give uint8 of shape"):
            decode_image(array)


def test_an_empty_array_and_a_wrong_type_are_refused() -> None:
    for empty in (np.zeros((0, 4, 3), np.uint8), np.zeros((4, 0), np.uint8), Image.new("RGB", (0, 4))):
        with pytest.raises(ImageDecodeError, match="empty: "):
            decode_image(empty)
    with pytest.raises(ImageTypeError, match="image 2: is of type int"):
        decode_image(3, name="image 2")  # type: ignore[arg-type]


def test_threads_decode_as_one_does() -> None:
    files = [file for file in ENCODED.values() for _ in range(4)]
    alone = [decode_image(file).pixels.tobytes() for file in files]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda file: decode_image(file).pixels.tobytes(), files))
    assert together == alone


# --- large images -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("min_side", "size"), [(125, (375, 250)), (126, (750, 500)), (750, (3000, 2000))])
def test_a_large_jpeg_is_decoded_by_dct_scaling(min_side: int, size: tuple[int, int]) -> None:
    file = encode(draw_scene(3000, 2000), "JPEG", quality=80)
    photo = decode_image(file, min_side=min_side)
    assert (photo.width, photo.height) == (3000, 2000)
    assert photo.pixels.size == size
    with Image.open(io.BytesIO(file)) as expected:
        expected.draft(None, size)
        assert photo.pixels.tobytes() == expected.tobytes()
    assert_scene(photo.pixels)


@pytest.mark.parametrize("kind", ["png", "palette png", "gif", "webp", "tiff", "bmp", "heic", "avif"])
def test_other_large_images_are_reduced(kind: str) -> None:
    photo = decode_image(ENCODED[kind], min_side=15)
    assert (photo.width, photo.height, photo.pixels.size) == (96, 64, (48, 32))
    assert_scene(photo.pixels, tolerance=25)


def test_no_side_falls_under_twice_min_side() -> None:
    generator = random.Random(0)
    for _ in range(40):
        width, height, min_side = (
            generator.randint(1, 400),
            generator.randint(1, 400),
            generator.randint(1, 90),
        )
        scene = Image.new("RGB", (width, height))
        for source in (scene, encode(scene, "JPEG"), encode(scene, "PNG")):
            pixels = decode_image(source, min_side=min_side).pixels
            assert min(pixels.size) >= min(2 * min_side, width, height)
            assert min(pixels.size) < 4 * min_side or pixels.size == (width, height)
            assert abs(pixels.width / width - pixels.height / height) <= 1 / min(width, height)


def test_min_side_below_one_is_an_option_error() -> None:
    with pytest.raises(OptionsError, match="min_side"):
        decode_image(ENCODED["png"], min_side=0)


def test_a_heic_thumbnail_stands_in_only_when_it_is_large_enough() -> None:
    file = encode(draw_scene(768, 512), "HEIC", thumbnails=[96])
    assert decode_image(file, min_side=32).pixels.size == (96, 64)
    photo = decode_image(file, min_side=33)
    assert (photo.pixels.size, photo.width, photo.height) == ((110, 74), 768, 512)


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", TURNED_BY)
def test_the_box_is_what_the_photo_fills(format: str, orientation: int) -> None:
    width, height, min_side = 203, 131, 8
    turn = TURNED_BY[orientation]
    photo = draw_scene(width, height)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = encode(photo if turn is None else photo.transpose(turn), format, exif=exif.tobytes())
    reduced = decode_image(file, min_side=min_side)
    left, top, right, bottom = reduced.box
    factor = 8
    assert reduced.pixels.size == (-(-width // factor), -(-height // factor))
    assert (right - left, bottom - top) == (width / factor, height / factor)
    lost = reduced.pixels.width - width / factor, reduced.pixels.height - height / factor
    at_left, at_top = orientation in (2, 3, 6, 7), orientation in (3, 4, 7, 8)
    assert (left, top) == (lost[0] * at_left, lost[1] * at_top)
    assert decode_image(file).box == (0, 0, width, height)
