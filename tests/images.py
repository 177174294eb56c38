"""Test images of every format that is read, drawn in memory."""

from __future__ import annotations

import io
import random
import struct
import zlib
from typing import Any

import numpy as np
import pillow_heif
from PIL import Image

CORNERS = ((220, 40, 30), (40, 180, 60), (30, 60, 210), (230, 220, 60))
"""Colours of a scene's quarters: top left, top right, bottom left, bottom right."""


def draw_scene(width: int = 96, height: int = 64) -> Image.Image:
    """Four quarters in four colours: any turn or mirroring shows."""
    scene = Image.new("RGB", (width, height))
    for index, colour in enumerate(CORNERS):
        left, top = index % 2 * (width // 2), index // 2 * (height // 2)
        scene.paste(colour, (left, top, width if left else width // 2, height if top else height // 2))
    return scene


def corners(image: Image.Image) -> tuple[tuple[int, ...], ...]:
    """The colours in the middle of an image's quarters, in the order of CORNERS."""
    rgb = image.convert("RGB")
    places = [(x * rgb.width // 4, y * rgb.height // 4) for y in (1, 3) for x in (1, 3)]
    return tuple(rgb.getpixel(place) for place in places)


def draw_noise(width: int, height: int, *, seed: int = 0) -> Image.Image:
    """Random RGB pixels: what compresses worst."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encode(image: Image.Image, format: str, **options: Any) -> bytes:
    """The bytes of a file; HEIC without registering anything with Pillow."""
    buffer = io.BytesIO()
    if format == "HEIC":
        pillow_heif.from_pillow(image).save(buffer, **options)
    else:
        image.copy().save(
            buffer, format, **options
        )  # Pillow keeps a JPEG's settings on the image that it saved
    return buffer.getvalue()


def encode_all(image: Image.Image) -> dict[str, bytes]:
    """An RGB image in every format that is read, by name; in several variants where decoders differ."""

    def two_frames() -> dict[str, Any]:
        return {"save_all": True, "append_images": [image.transpose(Image.Transpose.ROTATE_180)]}

    return {
        "jpeg": encode(image, "JPEG", quality=90),
        "progressive jpeg": encode(image, "JPEG", quality=90, progressive=True),
        "cmyk jpeg": encode(image.convert("CMYK"), "JPEG", quality=95),
        "mpo": encode(image, "MPO", quality=90, **two_frames()),
        "png": encode(image, "PNG"),
        "palette png": encode(image.quantize(16), "PNG"),
        "animated png": encode(image, "PNG", **two_frames()),
        "webp": encode(image, "WEBP", quality=90),
        "lossless webp": encode(image, "WEBP", lossless=True),
        "animated webp": encode(image, "WEBP", quality=90, **two_frames()),
        "gif": encode(image, "GIF"),
        "animated gif": encode(image, "GIF", **two_frames()),
        "bmp": encode(image, "BMP"),
        "tiff": encode(image, "TIFF"),
        "lzw tiff": encode(image, "TIFF", compression="tiff_lzw"),
        "jpeg tiff": encode(image, "TIFF", compression="jpeg", quality=90),
        "multi-page tiff": encode(image, "TIFF", compression="tiff_adobe_deflate", **two_frames()),
        "heic": encode(image, "HEIC", quality=90),
        "avif": encode(image, "AVIF", quality=90, speed=10),
    }


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """A PNG chunk with its length and its checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_bytes(width: int, height: int, *chunks: bytes) -> bytes:
    """An 8-bit RGB PNG of any announced size, made of ready chunks, with no pixels of its own."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + png_chunk(b"IEND", b"")


def damage(data: bytes, generator: random.Random) -> bytes:
    """Damage a file in the ways that find bugs: cut, flip, overwrite, drop, repeat, extreme numbers."""
    damaged = bytearray(data)
    for _ in range(generator.choice((1, 1, 2, 4, 16))):
        # half of the damage goes to the first bytes, where the headers are
        end = min(len(damaged), 200) if generator.random() < 0.5 else len(damaged)
        at = generator.randrange(end) if end else 0
        length = generator.randint(1, 40)
        match generator.randrange(6):
            case 0:
                del damaged[at:]
            case 1:
                damaged[at : at + 1] = bytes([generator.randrange(256)])
            case 2:
                damaged[at : at + length] = generator.randbytes(length)
            case 3:
                del damaged[at : at + length]
            case 4:
                damaged[at:at] = damaged[at : at + length]
            case 5:
                extreme = generator.choice((0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF))
                damaged[at : at + 4] = struct.pack(generator.choice(("<I", ">I")), extreme)
    return bytes(damaged)
