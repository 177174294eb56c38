"""Photographs of every format, upright and in the right colours; pixel values; boxes."""

from __future__ import annotations

import io
import json
import random
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from images import (
    CORNERS,
    corners,
    draw_noise,
    draw_scene,
    encode,
    encode_all,
    png_chunk,
)
from PIL import Image, ImageCms

from captioner.errors import (
    CheckpointError,
    ImageDecodeError,
    ImageTypeError,
    OptionsError,
)
from captioner.image import ImageProcessor, decode_image, region_box

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
    assert photo.pixels.size == ((96, 64) if min_side is None else (24, 16))
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
    assert (photo.width, photo.height, photo.pixels.size) == (960, 640, (96, 64))
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


@pytest.mark.parametrize(("min_side", "size"), [(250, (375, 250)), (251, (750, 500)), (1500, (3000, 2000))])
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
    photo = decode_image(ENCODED[kind], min_side=31)
    assert (photo.width, photo.height, photo.pixels.size) == (96, 64, (48, 32))
    assert_scene(photo.pixels, tolerance=25)


def test_no_side_falls_under_min_side() -> None:
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
            assert min(pixels.size) >= min(min_side, width, height)
            assert min(pixels.size) < 2 * min_side or pixels.size == (width, height)
            assert abs(pixels.width / width - pixels.height / height) <= 1 / min(width, height)


def test_min_side_below_one_is_an_option_error() -> None:
    with pytest.raises(OptionsError, match="min_side"):
        decode_image(ENCODED["png"], min_side=0)


def test_a_heic_thumbnail_stands_in_only_when_it_is_large_enough() -> None:
    file = encode(draw_scene(768, 512), "HEIC", thumbnails=[96])
    assert decode_image(file, min_side=64).pixels.size == (96, 64)
    photo = decode_image(file, min_side=65)
    assert (photo.pixels.size, photo.width, photo.height) == ((110, 74), 768, 512)


# --- ImageProcessor, region_box -----------------------------------------------------------------------------

PROCESSOR = ImageProcessor(size=32, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
def test_the_processor_squashes_the_whole_photo(resample: Any) -> None:
    processor = ImageProcessor(size=32, mean=(0.5,) * 3, std=(0.5,) * 3, resample=resample)
    values = processor(draw_scene(200, 50))
    assert (values.dtype, tuple(values.shape), values.is_contiguous()) == (torch.uint8, (3, 32, 32), True)
    assert corners(Image.fromarray(values.permute(1, 2, 0).numpy())) == CORNERS
    noise = draw_noise(90, 70)
    expected = np.asarray(noise.resize((32, 32), Image.Resampling[resample.upper()]))
    assert np.array_equal(processor(noise).permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float16, 2e-3), (torch.bfloat16, 1e-2)]
)
def test_normalize_is_the_formula_for_every_byte(dtype: torch.dtype, tolerance: float) -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(2, 3, 1, 1)
    values = PROCESSOR.normalize(levels, dtype)
    assert (values.dtype, values.shape) == (dtype, levels.shape)
    mean, std = np.array(PROCESSOR.mean)[:, None, None], np.array(PROCESSOR.std)[:, None, None]
    expected = (levels.double().numpy() / 255 - mean) / std
    np.testing.assert_allclose(values.double().numpy(), expected, rtol=tolerance, atol=tolerance)


def test_the_processor_survives_json() -> None:
    data = json.loads(json.dumps(PROCESSOR.to_dict()))
    assert ImageProcessor.from_dict(data) == PROCESSOR
    for wrong in ({"size": 32}, {**data, "crop": 1}, {**data, "mean": 0.5}):
        with pytest.raises(CheckpointError, match="image processor"):
            ImageProcessor.from_dict(wrong)


@pytest.mark.parametrize(
    "change", [{"size": 0}, {"std": (0.0, 1.0, 1.0)}, {"mean": (0.5,)}, {"resample": "nearest"}]
)
def test_the_processor_refuses_options_out_of_range(change: dict[str, Any]) -> None:
    with pytest.raises(OptionsError):
        ImageProcessor.from_dict({**PROCESSOR.to_dict(), **change})


def test_region_boxes_are_in_pixels_of_the_upright_image() -> None:
    assert region_box((0, 0, 9, 9), (9, 9), width=640, height=480) == (0, 0, 640, 480)
    assert region_box((2, 1, 4, 3), (4, 8), width=800, height=400) == (100, 200, 300, 400)
    assert region_box((1, 1, 2, 2), (3, 3), width=100, height=10) == (33, 3, 67, 7)


def test_region_boxes_cover_every_pixel_and_are_never_empty() -> None:
    for width, height in ((1, 1), (3, 7), (100, 31)):
        covered = np.zeros((height, width), bool)
        for row in range(9):
            for column in range(6):
                cell = (row, column, row + 1, column + 1)
                left, top, right, bottom = region_box(cell, (9, 6), width=width, height=height)
                assert 0 <= left < right <= width
                assert 0 <= top < bottom <= height
                covered[top:bottom, left:right] = True
        assert covered.all()
