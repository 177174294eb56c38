"""Hostile and damaged files: each raises an ImageError that names it, and nothing else."""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
import tracemalloc
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from images import damage, draw_noise, draw_scene, encode, encode_all, png_bytes, png_chunk
from PIL import Image

from captioner.errors import ImageDecodeError, ImageError, ImageSizeError, ImageTypeError
from captioner.image import decode_image

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow warns of damaged metadata

ENCODED = encode_all(draw_scene())
ANNOUNCED = 50_000
BMP_INFO = struct.pack("<IiiHHIIiiII", 40, ANNOUNCED, ANNOUNCED, 1, 24, 0, 0, 0, 0, 0, 0)
WEBP_CANVAS = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (16_000).to_bytes(3, "little") * 2
HUGE = {
    "png": png_bytes(ANNOUNCED, ANNOUNCED, png_chunk(b"IDAT", zlib.compress(bytes(1000)))),
    "jpeg": ENCODED["jpeg"].replace(struct.pack(">HH", 64, 96), struct.pack(">HH", ANNOUNCED, ANNOUNCED)),
    "gif": ENCODED["gif"].replace(struct.pack("<HH", 96, 64), struct.pack("<HH", ANNOUNCED, ANNOUNCED), 1),
    "gif with an absurd frame": ENCODED["gif"].replace(b",\0\0\0\0", b",\xff\xff\xff\xff", 1),
    "bmp": b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + BMP_INFO,
    "webp": b"RIFF" + struct.pack("<I", 22) + b"WEBP" + WEBP_CANVAS,
    "tiff": encode(Image.new("1", (20_000, 20_000)), "TIFF", compression="group4"),
}


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_bytes(b"")
    refused = {
        tmp_path: "is a directory",
        tmp_path / "pipe": "not a regular file",
        Path("/dev/zero"): "not a regular file",
        tmp_path / "missing.jpg": "No such file",
        tmp_path / "file" / "below.jpg": "Not a directory",
        tmp_path / "loop": "cannot be read",
        tmp_path / ("x" * 300): "cannot be read",
        tmp_path / "nul\0.jpg": "cannot be read",
        tmp_path / "file": "is empty",
    }
    for path, reason in refused.items():
        with pytest.raises(ImageError, match=reason) as caught:
            decode_image(path)
        assert caught.value.file == str(path)


def test_a_file_of_too_many_bytes_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "sparse.jpg", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ImageSizeError, match="1099512 MB"):
        decode_image(tmp_path / "sparse.jpg")


@pytest.mark.parametrize("kind", HUGE)
def test_an_announced_size_over_the_limit_is_refused_unread(kind: str) -> None:
    with pytest.raises(ImageSizeError, match=r"huge\.img: is too large"):
        decode_image(HUGE[kind], name="huge.img")


@pytest.mark.parametrize("kind", ENCODED)
def test_the_limit_holds_for_every_format(kind: str) -> None:
    assert decode_image(ENCODED[kind], max_pixels=96 * 64).width == 96
    with pytest.raises(ImageSizeError, match="96 × 64"):
        decode_image(ENCODED[kind], max_pixels=96 * 64 - 1)
    with pytest.raises(ImageSizeError):
        decode_image(draw_scene(), max_pixels=96 * 64 - 1)


def test_the_process_wide_limit_of_pillow_plays_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in ("jpeg", "png", "bmp", "heic", "avif"):
            assert decode_image(ENCODED[kind]).width == 96


@pytest.mark.parametrize("kind", ["zTXt", "iTXt"])
@pytest.mark.parametrize("after", [False, True])
def test_a_compressed_text_bomb_does_no_harm(kind: str, after: bool) -> None:
    head = {"zTXt": b"Raw profile type exif\0\0", "iTXt": b"XML:com.adobe.xmp\0\1\0\0\0"}[kind]
    bomb = png_chunk(kind.encode(), head + zlib.compress(bytes(50_000_000), 9))
    pixels = png_chunk(b"IDAT", zlib.compress(bytes(4 * 13)))
    tracemalloc.start()
    photo = decode_image(png_bytes(4, 4, *((pixels, bomb) if after else (bomb, pixels))))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert photo.pixels.size == (4, 4)
    assert most < 10_000_000


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "PostScript"),
        (b"%PDF-1.7\n", "PDF"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b'\xef\xbb\xbf\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b"<!DOCTYPE html><title>404</title>", "web page"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", "video"),
        (b"RIFF\0\0\0\0WAVEfmt ", "not an image"),
        (b"a photo, honestly", "not an image"),
        (b"\0", "not an image"),
    ],
)
def test_what_is_no_photograph_is_named(data: bytes, kind: str) -> None:
    with pytest.raises(ImageTypeError, match=f"upload: .*{kind}.*JPEG") as caught:
        decode_image(data, name="upload")
    assert "\n" not in str(caught.value)


def test_neither_ghostscript_nor_heif_is_in_reach_of_an_import() -> None:
    script = (
        "import sys; from captioner.errors import ImageError; from captioner.image import decode_image\n"
        "try: decode_image(b'%!PS-Adobe-3.0 EPSF-3.0\\n%%BoundingBox: 0 0 9 9\\n')\n"
        "except ImageError: print({'PIL.EpsImagePlugin', 'pillow_heif'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"


@pytest.mark.parametrize("kind", ENCODED)
def test_a_truncated_file_is_refused(kind: str) -> None:
    noise = encode_all(draw_noise(64, 48))[kind]
    # of what can be read as far as it goes, and of further frames, there must be less; see test_image_cut.py
    some = kind in ("mpo", "animated gif", "multi-page tiff") or any(
        end in kind for end in ("jpeg", "png", "webp")
    )
    first = {"animated webp": 0.15, "animated png": 0.15, "progressive jpeg": 0.04}.get(
        kind, 0.25 if some else 0.9
    )
    for share in (0.0, 0.01, first / 2, first):
        with pytest.raises((ImageDecodeError, ImageTypeError), match=r"cut\.img: "):
            decode_image(noise[: int(len(noise) * share)], name="cut.img")
    with pytest.raises(ImageDecodeError, match=r"cut\.img: is (empty|truncated)"):
        decode_image(noise[: int(len(noise) * first)], name="cut.img")


def test_a_tiff_with_offsets_outside_the_file_is_refused() -> None:
    tiff = bytearray(ENCODED["tiff"])
    tiff[4:8] = struct.pack("<I", 0xFFFFFF00)
    with pytest.raises(ImageDecodeError):
        decode_image(bytes(tiff))


def test_thousands_of_damaged_files_raise_nothing_but_image_errors(capfd: pytest.CaptureFixture[str]) -> None:
    generator = random.Random(20)
    seeds = [
        *encode_all(draw_noise(20, 14)).values(),
        encode(Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 900), "PNG"),
        encode(Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)), "TIFF"),
        encode(draw_noise(16, 16), "TIFF", compression="packbits"),
    ]
    magics = [seed[:12] for seed in seeds]
    files = [damage(seed, generator) for seed in seeds for _ in range(180)]
    files += [magic + generator.randbytes(generator.randrange(300)) for magic in magics for _ in range(20)]
    files += [generator.randbytes(generator.randrange(100)) for _ in range(100)]
    messages = []
    for file in files:
        try:
            photo = decode_image(file, name="x", max_pixels=250_000, min_side=generator.choice((None, 8)))
        except ImageError as error:
            messages.append(str(error))
        else:
            assert photo.pixels.mode == "RGB"
            assert photo.width * photo.height <= 250_000
    assert 0.5 < len(messages) / len(files) < 0.9
    assert all(message.startswith("x: is ") for message in messages)
    assert capfd.readouterr() == ("", "")


def segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def jpeg_of_scans(scans: int, *, side: int = 64) -> bytes:
    """A grey progressive JPEG of equally many scans, each of which goes over all blocks with a few bits."""
    tables = segment(0xDB, bytes([0, *[1] * 64])) + segment(0xC4, bytes([0x00, 1, *[0] * 15, 0]))
    tables += segment(
        0xC4, bytes([0x10, 1, *[0] * 15, 0xE0])
    )  # one code: a long run of blocks without detail
    frame = segment(0xC2, struct.pack(">BHHBBBB", 8, side, side, 1, 1, 0x11, 0))
    first = segment(0xDA, bytes([1, 1, 0, 0, 0, 0])) + bytes((side // 8) ** 2 // 8)
    later = segment(0xDA, bytes([1, 1, 0, 1, 63, 0])) + bytes(2)
    return b"\xff\xd8" + tables + frame + first + later * (scans - 1) + b"\xff\xd9"


def test_a_jpeg_that_keeps_a_program_busy_is_refused() -> None:
    """32 MB of such scans, of 50 million pixels, take libjpeg 15 minutes, and the others Pillow one."""
    many, plain = jpeg_of_scans(1000), encode(draw_scene(), "JPEG", progressive=True)
    hostile = {
        "scans": many,
        "segments": plain[:2] + segment(0xE5, b"") * 20_000 + plain[2:],
        "padding": plain[:2] + b"\xff" * 100_000 + plain[2:],
        "escaped": plain[:2] + b"\xff\0" * 100_000 + plain[2:],
        "nothing else": plain[:2] + b"\xff" * 100_000,
    }
    for name, data in hostile.items():
        with pytest.raises(
            ImageDecodeError, match="has more than 100 scans, 10000 segments or 64 KB"
        ) as caught:
            decode_image(data, name=name)
        assert caught.value.file == name


def test_what_only_looks_like_it_is_read() -> None:
    assert decode_image(jpeg_of_scans(100)).pixels.size == (64, 64)
    many, plain = jpeg_of_scans(1000), encode(draw_scene(), "JPEG", progressive=True)
    for name, behind in {"a film": random.Random(0).randbytes(1 << 20), "a JPEG": many}.items():
        assert decode_image(plain + behind).width == 96, f"{name} behind a photo is none of it"
    metadata = segment(0xE5, many[:60_000]) + segment(0xE5, bytes(60_000)) * 1000
    assert decode_image(plain[:2] + metadata + plain[2:]).width == 96, "nor is what stands in its metadata"
