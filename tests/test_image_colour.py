"""Colour profiles: what colours the pixels of a photo are, not only what numbers."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
from images import CORNERS, corners, draw_noise, draw_scene, encode
from PIL import Image, ImageCms

from captioner.image import decode_image
from captioner.image.colour import MAX_PROFILE_BYTES, to_rgb

ADOBE = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
PROPHOTO = ((0.7977, 0.2880, 0.0), (0.1352, 0.7119, 0.0), (0.0313, 0.0001, 0.8249))


def fixed(number: float) -> bytes:
    return struct.pack(">i", round(number * 65536))


def profile(primaries: tuple[tuple[float, ...], ...], gamma: float, space: bytes = b"RGB ") -> bytes:
    """An ICC profile: of grey where there are no primaries."""
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    white = b"".join(map(fixed, (0.9642, 1, 0.8249)))
    text = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"made\0" + b"\0" * 79
    tags = {b"desc": text, b"cprt": b"text\0\0\0\0none\0\0\0\0", b"wtpt": b"XYZ \0\0\0\0" + white}
    for letter, primary in zip((b"r", b"g", b"b"), primaries, strict=False):
        tags[letter + b"XYZ"] = b"XYZ \0\0\0\0" + b"".join(map(fixed, primary))
        tags[letter + b"TRC"] = curve
    if not primaries:
        tags[b"kTRC"] = curve
    table, body, start = b"", b"", 132 + 12 * len(tags)
    for key, value in tags.items():
        table += key + struct.pack(">II", start + len(body), len(value))
        body += value
    size = start + len(body)
    head = struct.pack(">I4sI4s4s4s", size, b"lcms", 0x02100000, b"mntr", space, b"XYZ ")
    head += struct.pack(">6H", 2024, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + white
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def smooth() -> Image.Image:
    return draw_noise(12, 8).resize((96, 64), Image.Resampling.BICUBIC)


def turned(image: Image.Image, icc: bytes) -> Image.Image:
    """The same colours as the numbers of a profile."""
    target = ImageCms.ImageCmsProfile(io.BytesIO(icc))
    found = ImageCms.profileToProfile(image, ImageCms.createProfile("sRGB"), target, renderingIntent=1)
    assert found is not None
    found.info.clear()  # Pillow would write the profile into every file
    return found


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF", "HEIC"])
@pytest.mark.parametrize("gamut", [ADOBE, PROPHOTO], ids=["adobe", "prophoto"])
def test_a_profile_is_converted_to_srgb(format: str, gamut: tuple[tuple[float, ...], ...]) -> None:
    icc = profile(gamut, 2.2)
    scene = draw_scene()
    options: dict[str, Any] = {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}}.get(format, {"quality": 95})
    file = encode(turned(scene, icc), format, icc_profile=icc, **options)
    for min_side in (None, 16):
        pixels = decode_image(file, min_side=min_side).pixels
        np.testing.assert_allclose(corners(pixels), CORNERS, atol=4 if format in ("PNG", "TIFF") else 12)
    without = decode_image(encode(turned(scene, icc), format, **options)).pixels
    assert np.abs(np.array(corners(without)) - CORNERS).max() > 20


def test_a_conversion_is_as_exact_as_eight_bits_are() -> None:
    scene, icc = smooth(), profile(ADOBE, 2.2)
    file = encode(turned(scene, icc), "PNG", icc_profile=icc)
    difference = np.abs(np.asarray(decode_image(file).pixels).astype(int) - np.asarray(scene))
    assert difference.mean() < 0.5
    assert np.percentile(difference, 99) <= 2


def test_palettes_grey_and_transparent_images_have_profiles_too() -> None:
    icc = profile(ADOBE, 2.2)
    file = encode(turned(draw_scene(), icc).quantize(16), "PNG", icc_profile=icc)
    np.testing.assert_allclose(corners(decode_image(file).pixels), CORNERS, atol=6)
    clear = turned(draw_scene(), icc).convert("RGBA")
    clear.paste((0, 0, 0, 0), (0, 0, 48, 32))
    pixels = decode_image(encode(clear, "PNG", icc_profile=icc)).pixels
    np.testing.assert_allclose(corners(pixels), ((255,) * 3, *CORNERS[1:]), atol=4)

    linear = profile((), 1.0, b"GRAY")
    levels = Image.fromarray(np.full((8, 8), 55, np.uint8))  # 0.2157 of the light: 128 in sRGB
    seen = {"PNG": decode_image(encode(levels, "PNG", icc_profile=linear)).pixels.getpixel((4, 4))}
    alpha = levels.convert("LA")
    seen["LA"] = decode_image(encode(alpha, "PNG", icc_profile=linear)).pixels.getpixel((4, 4))
    wide = Image.fromarray(np.full((8, 8), 55 * 257, np.uint16))
    seen["16 bits"] = decode_image(encode(wide, "PNG", icc_profile=linear)).pixels.getpixel((4, 4))
    seen["TIFF"] = decode_image(encode(levels, "TIFF", icc_profile=linear)).pixels.getpixel((4, 4))
    for kind, pixel in seen.items():
        np.testing.assert_allclose(pixel, (128, 128, 128), atol=1, err_msg=kind)


def test_a_profile_that_is_srgb_changes_nothing() -> None:
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    noise = draw_noise(32, 32)
    assert decode_image(encode(noise, "PNG", icc_profile=icc)).pixels.tobytes() == noise.tobytes()


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_broken_profile_or_one_of_other_colours_is_ignored(mode: str) -> None:
    good = profile(ADOBE, 2.2)
    image = draw_noise(16, 16).convert(mode)
    plain = image.convert("RGB").tobytes()
    broken = [b"", b"icc", bytes(200), good[:150], good[:60], good[:128] + b"\xff" * 100]
    others = [good] if mode != "RGB" else [profile((), 1.0, b"GRAY"), profile(ADOBE, 2.2, b"CMYK")]
    for icc in (*broken, *others, good + bytes(MAX_PROFILE_BYTES)):
        assert to_rgb(image, icc=icc).tobytes() == plain
        if mode == "CMYK":
            continue
        assert decode_image(encode(image, "PNG", icc_profile=icc)).pixels.tobytes() == plain


def test_profiles_damaged_at_random_are_harmless() -> None:
    generator = np.random.default_rng(1)
    good = np.frombuffer(profile(ADOBE, 2.2), np.uint8)
    image = draw_noise(8, 8)
    for _ in range(300):
        bad = good.copy()
        places = generator.integers(0, len(bad), generator.integers(1, 12))
        bad[places] = generator.integers(0, 256, len(places))
        assert to_rgb(image, icc=bad.tobytes()).size == (8, 8)
