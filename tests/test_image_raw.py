"""Cameras' RAW files and JPEG XL: read where their packages are installed, else refused with their names."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest
import tifffile
from images import CORNERS, corners, draw_noise, draw_scene, encode
from PIL import Image

from captioner.errors import ImageDecodeError, ImageError, ImageSizeError, ImageTypeError
from captioner.image import decode_image

MOSAIC = [(33421, "H", 2, (2, 2), True), (33422, "B", 4, (0, 1, 1, 2), True)]  # red, green / green, blue
DNG = [
    (50706, "B", 4, (1, 4, 0, 0), True),
    (50708, "s", 0, "Captioner Test", True),
    (50721, "2i", 9, (1, 1, 0, 1, 0, 1, 0, 1, 1, 1, 0, 1, 0, 1, 0, 1, 1, 1), True),  # XYZ as it is
    (50728, "2I", 3, (1, 1, 1, 1, 1, 1), True),
    (50778, "H", 1, 21, True),
]


def draw_mosaic(width: int = 192, height: int = 128) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """The scene as a sensor sees it: of each pixel one colour."""
    scene = np.asarray(draw_scene(width, height)).astype(np.uint16) * 257
    mosaic = scene[..., 1].copy()
    mosaic[::2, ::2], mosaic[1::2, 1::2] = scene[::2, ::2, 0], scene[1::2, 1::2, 2]
    return mosaic


def dng(preview: Image.Image | None, orientation: int = 1, width: int = 192, height: int = 128) -> bytes:
    """A DNG: its first image is the preview."""
    buffer = io.BytesIO()
    tags = [*DNG, (274, "H", 1, orientation, True)]
    raw: dict[str, Any] = {"photometric": 32803, "subfiletype": 0, "metadata": None}
    with tifffile.TiffWriter(buffer) as writer:
        if preview is not None:
            first = {
                "photometric": "rgb",
                "subfiletype": 1,
                "subifds": 1,
                "extratags": tags,
                "metadata": None,
            }
            writer.write(np.asarray(preview), **first)
            writer.write(draw_mosaic(width, height), extratags=MOSAIC, **raw)
        else:
            writer.write(draw_mosaic(width, height), extratags=[*MOSAIC, *tags], **raw)
    return buffer.getvalue()


def is_scene(pixels: Image.Image) -> bool:
    """Whether each quarter has its hue: a development has colours of its own."""
    seen = np.array(corners(pixels))
    return [int(colour.argmax()) for colour in seen[:3]] == [0, 1, 2] and bool(seen[3, :2].min() > seen[3, 2])


@pytest.mark.parametrize(
    "head",
    [
        b"FUJIFILMCCD-RAW 0201",
        b"IIRO\x08\0\0\0",
        b"IIRS\x08\0\0\0",
        b"MMOR\0\0\0\x08",
        b"IIU\0\x18\0\0\0",
        b"\0\0\0\x18ftypcrx \0\0\0\x01crx isom",
        b"II*\0\x10\0\0\0CR\x02\0",
    ],
)
def test_raw_files_are_known_by_their_first_bytes(head: bytes) -> None:
    with pytest.raises(
        ImageError, match=r"^x\.raw: is (a RAW file of a kind|truncated or damaged)"
    ) as caught:
        decode_image(head + bytes(64), name="x.raw")
    assert "\n" not in caught.value.reason


def test_without_the_package_one_line_says_what_to_install() -> None:
    script = (
        "import sys; sys.modules['rawpy'] = sys.modules['pillow_jxl'] = None\n"
        "from captioner.image import decode_image\n"
        "for line in sys.stdin:\n"
        "    try: decode_image(bytes.fromhex(line))\n"
        "    except Exception as error: print(type(error).__name__, error)\n"
    )
    files = [dng(draw_scene(24, 16)), b"FUJIFILMCCD-RAW", b"\xff\x0a" + bytes(20)]
    command = [sys.executable, "-c", script]
    run = subprocess.run(
        command, input="\n".join(map(bytes.hex, files)), capture_output=True, text=True, check=True
    )
    raw = "ImageTypeError image: is a camera's RAW file; to read it: pip install 'captioner[raw]'"
    jxl = "ImageTypeError image: is a JPEG XL image; to read it: pip install pillow-jxl-plugin"
    assert run.stdout.splitlines() == [raw, raw, jxl]


class TestRaw:
    @pytest.fixture(autouse=True)
    def _package(self) -> None:
        pytest.importorskip("rawpy")

    def test_a_small_preview_never_passes_for_the_photo(self) -> None:
        for file in (dng(draw_noise(24, 16)), dng(None)):
            photo = decode_image(file)
            assert (photo.width, photo.height, photo.pixels.size) == (192, 128, (96, 64))
            assert is_scene(photo.pixels)

    def test_a_preview_that_is_large_enough_is_taken(self) -> None:
        photo = decode_image(dng(draw_scene(96, 64)))
        assert (photo.width, photo.height, photo.pixels.size) == (192, 128, (96, 64))
        np.testing.assert_allclose(corners(photo.pixels), CORNERS)
        small = decode_image(dng(draw_scene(48, 32)), min_side=16)
        np.testing.assert_allclose(corners(small.pixels), CORNERS)
        assert small.pixels.size == (48, 32)

    @pytest.mark.parametrize("preview", [True, False])
    @pytest.mark.parametrize(("orientation", "turn"), [(3, 3), (6, 4), (8, 2)])
    def test_a_raw_photo_is_upright(self, orientation: int, turn: int, preview: bool) -> None:
        file = dng(draw_scene(96, 64) if preview else None, orientation)
        photo = decode_image(file)
        assert (photo.width, photo.height) == ((192, 128) if orientation == 3 else (128, 192))
        assert (photo.pixels.width > photo.pixels.height) == (orientation == 3)
        assert is_scene(photo.pixels.transpose(Image.Transpose({3: 3, 4: 2, 2: 4}[turn])))

    def test_a_preview_that_is_upright_already_stays_so(self) -> None:
        photo = decode_image(dng(draw_scene(64, 96), orientation=6))
        assert (photo.width, photo.height, photo.pixels.size) == (128, 192, (64, 96))
        np.testing.assert_allclose(corners(photo.pixels), CORNERS)

    def test_the_limit_holds_before_anything_is_developed(self) -> None:
        file = dng(draw_scene(24, 16))
        assert decode_image(file, max_pixels=192 * 128).width == 192
        with pytest.raises(ImageSizeError, match="192 × 128"):
            decode_image(file, max_pixels=192 * 128 - 1)

    def test_damage_is_an_image_error(self) -> None:
        file = dng(draw_scene(24, 16))
        generator = np.random.default_rng(0)
        for _ in range(60):
            bad = np.frombuffer(file, np.uint8)[: generator.integers(20, len(file))].copy()
            places = generator.integers(0, min(len(bad), 900), 6)
            bad[places] = generator.integers(0, 256, 6)
            with contextlib.suppress(ImageError):
                assert decode_image(bad.tobytes(), max_pixels=1_000_000).pixels.mode == "RGB"


class TestJpegXl:
    @pytest.fixture(autouse=True)
    def _package(self) -> None:
        pytest.importorskip("pillow_jxl")

    def encode(self, image: Image.Image, **options: Any) -> bytes:
        import pillow_jxl.JpegXLImagePlugin  # noqa: F401

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return encode(image, "JXL", **options)

    @pytest.mark.parametrize(
        ("width", "height"), [(96, 64), (64, 64), (97, 131), (9, 4000), (600, 400), (256, 192)]
    )
    @pytest.mark.parametrize("options", [{}, {"lossless": True}, {"use_container": True}])
    def test_jpeg_xl_is_read(self, width: int, height: int, options: dict[str, Any]) -> None:
        photo = decode_image(self.encode(draw_scene(width, height), **options))
        assert (photo.width, photo.height) == (width, height)
        if width > 9:
            np.testing.assert_allclose(corners(photo.pixels), CORNERS, atol=12)
        with pytest.raises(ImageSizeError, match=f"{width} × {height}"):
            decode_image(self.encode(draw_scene(width, height), **options), max_pixels=width * height - 1)

    def test_other_modes_are_read(self) -> None:
        noise = draw_noise(20, 12)
        for mode in ("L", "RGB"):
            image = noise.convert(mode)
            assert (
                decode_image(self.encode(image, lossless=True)).pixels.tobytes()
                == image.convert("RGB").tobytes()
            )
        clear = Image.new("RGBA", (8, 8), (200, 0, 0, 0))
        assert decode_image(self.encode(clear, lossless=True)).pixels.getpixel((4, 4)) == (255, 255, 255)

    def test_the_orientation_of_a_packed_jpeg_is_obeyed(self, tmp_path: Any) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        path = tmp_path / "x.jpg"
        draw_scene().transpose(Image.Transpose.ROTATE_90).save(path, "JPEG", quality=95, exif=exif.tobytes())
        with Image.open(path) as jpeg, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            buffer = io.BytesIO()
            jpeg.save(buffer, "JXL")
        photo = decode_image(buffer.getvalue())
        assert (photo.width, photo.height) == (96, 64)
        np.testing.assert_allclose(corners(photo.pixels), CORNERS, atol=12)

    def test_a_cut_file_is_damaged(self) -> None:
        file = self.encode(draw_noise(64, 48))
        for size in (len(file) // 2, 20, 4, 2):
            with pytest.raises(ImageDecodeError):
                decode_image(file[:size])
        with pytest.raises((ImageDecodeError, ImageTypeError)):
            decode_image(b"\x00\x00\x00\x0cJXL \r\n\x87\n" + bytes(40))
