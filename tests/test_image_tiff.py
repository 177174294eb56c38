"""TIFF: the pixels that tifffile reads, or a refusal that names the kind; the largest image of a file."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
import tifffile
from images import CORNERS, corners, draw_noise, draw_scene, encode
from PIL import Image
from tiffs import Kind, every_kind

from captioner.errors import ImageDecodeError, ImageError, ImageSizeError, ImageTypeError
from captioner.image import decode_image

ALWAYS_READ = {  # with any byte order, compression, predictor, tiles and planes
    *(
        (photometric, "u", bits, ())
        for photometric in ("minisblack", "miniswhite")
        for bits in (1, 2, 4, 8, 16, 32)
    ),
    *((photometric, "i", bits, ()) for photometric in ("minisblack", "miniswhite") for bits in (8, 16, 32)),
    *((photometric, "f", bits, ()) for photometric in ("minisblack", "miniswhite") for bits in (32, 64)),
    *(("rgb", "u", bits, extra) for bits in (8, 16) for extra in ((), ("unassalpha",), ("assocalpha",))),
    *(("separated", "u", bits, ()) for bits in (8, 16)),
    ("palette", "u", 8, ()),
    ("ycbcr", "u", 8, ()),
}


def tolerance(kind: Kind) -> float:
    """Levels by which rounding may differ: of 16 bits the decoder keeps the high ones, before it computes."""
    if kind.bits == 16 and kind.photometric in ("rgb", "separated"):
        return {"assocalpha": 3.0, "unassalpha": 2.0}.get(kind.extra[0] if kind.extra else "", 2.0)
    if kind.photometric == "cielab":
        return 8.0  # Little CMS interpolates between few steps
    return 1.01 if kind.extra or kind.photometric == "ycbcr" else 0.51


def decoded(file: bytes) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.asarray(decode_image(file).pixels).astype(float)


def pages(*images: tuple[Any, dict[str, Any]], order: str = "<", bigtiff: bool = False) -> bytes:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer, byteorder=order, bigtiff=bigtiff) as writer:
        for values, options in images:
            writer.write(np.asarray(values), metadata=None, **{"photometric": "rgb", **options})
    return buffer.getvalue()


def test_every_kind_is_read_as_tifffile_reads_it_or_refused_by_name() -> None:
    read, refused = 0, []
    for kind in every_kind():
        file = kind.write(kind.draw())
        try:
            pixels = decoded(file)
        except ImageTypeError as error:
            refused.append((kind, error.reason))
            continue
        expected = kind.to_rgb(kind.read(file))
        assert expected is not None, f"{kind} was read, and nobody knows whether rightly"
        assert np.nanmax(np.abs(pixels - expected)) <= tolerance(kind), kind
        read += 1
    assert read > 900
    for kind, reason in refused:
        assert f"{kind.bits}-bit" in reason, kind
        assert (kind.photometric, kind.format, kind.bits, kind.extra) not in ALWAYS_READ, kind


@pytest.mark.parametrize("orientation", range(1, 9))
def test_any_orientation_of_any_layout_is_turned_upright(orientation: int) -> None:
    turn = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}.get(orientation)  # back to how it is stored
    scene = draw_scene()
    stored = np.asarray(scene if turn is None else scene.transpose(Image.Transpose(turn)))
    wide, plane = stored.astype(np.uint16) * 257, {"planarconfig": "separate"}
    tag = {"extratags": [(274, "H", 1, orientation, True)]}
    for values, options in ((stored, {}), (wide, {}), (np.moveaxis(wide, 2, 0), plane)):
        for min_side in (None, 16):
            photo = decode_image(pages((values, options | tag)), min_side=min_side)
            assert (photo.width, photo.height, photo.pixels.width > photo.pixels.height) == (96, 64, True)
            np.testing.assert_allclose(corners(photo.pixels), CORNERS, atol=1)


@pytest.mark.parametrize("compression", ["group3", "group4", "tiff_ccitt"])
def test_bilevel_compressions_are_read_as_pillow_reads_them(compression: str) -> None:
    page = draw_noise(70, 40).convert("1")
    for image in (page, page.point(lambda level: 255 - level)):
        file = encode(image, "TIFF", compression=compression)
        assert np.array_equal(decoded(file), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(
    "compression", ["jpeg", "tiff_lzw", "tiff_adobe_deflate", "lzma", "zstd", "packbits"]
)
@pytest.mark.parametrize("mode", ["L", "RGB", "YCbCr"])
def test_compressions_are_read_as_pillow_reads_them(compression: str, mode: str) -> None:
    file = encode(draw_scene().convert(mode), "TIFF", compression=compression)
    with Image.open(io.BytesIO(file)) as expected:
        assert np.array_equal(decoded(file), np.asarray(expected.convert("RGB")))


def test_bits_in_the_reverse_order_are_turned_round() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    turned = np.packbits(np.unpackbits(values[..., None], axis=-1)[..., ::-1], axis=-1)[..., 0]
    file = pages((turned, {"photometric": "minisblack", "extratags": [(65000, "H", 1, 2, True)]}))
    file = file.replace(struct.pack("<H", 65000), struct.pack("<H", 266))  # tifffile writes no fill order
    assert np.array_equal(tifffile.imread(io.BytesIO(file)), values)
    assert np.array_equal(decoded(file)[..., 0], values)


def test_palettes_of_few_bits_and_of_eight_bit_colours_are_read() -> None:
    for bits in (1, 2, 4):
        indices = Image.new("P", (40, 30))
        indices.putdata([index % (1 << bits) for index in range(1200)])
        colours = np.random.default_rng(bits).integers(0, 256, (1 << bits, 3), dtype=np.uint8)
        indices.putpalette(colours.tobytes())
        file = encode(indices, "TIFF", bits=bits)
        with Image.open(io.BytesIO(file)) as expected:
            assert np.array_equal(decoded(file), np.asarray(expected.convert("RGB")))
    dim = np.random.default_rng(0).integers(0, 256, (3, 256), dtype=np.uint16)  # no level is above 255
    file = pages((np.arange(256, dtype=np.uint8)[None], {"photometric": "palette", "colormap": dim}))
    assert np.array_equal(decoded(file)[0], dim.T)


@pytest.mark.parametrize(
    ("values", "options", "name"),
    [
        (np.zeros((4, 4, 3), np.float32), {}, "3 × 32-bit float, RGB"),
        (np.zeros((3, 4, 4), np.uint32), {"planarconfig": "separate"}, "3 × 32-bit unsigned, RGB, in planes"),
        (np.zeros((4, 4), np.float16), {"photometric": "minisblack"}, "1 × 16-bit float, grey"),
        (
            np.zeros((4, 4), np.complex64),
            {"photometric": "minisblack"},
            "1 × 64-bit of an unknown number type",
        ),
        (
            np.zeros((4, 4), np.uint8),
            {"photometric": "mask"},
            "1 × 8-bit unsigned, photometric interpretation 4",
        ),
        (
            np.zeros((16, 16, 3), np.uint8),
            {"compression": "jpeg2000"},
            "3 × 8-bit unsigned, RGB, compression 34712",
        ),
    ],
)
def test_what_is_not_read_is_named(values: Any, options: dict[str, Any], name: str) -> None:
    with pytest.raises(
        ImageTypeError, match=rf"x\.tif: is a TIFF of a kind that is not read \({name}"
    ) as caught:
        decode_image(pages((values, options)), name="x.tif")
    assert "8-bit RGB" in caught.value.reason


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bigtiff", [False, True])
def test_the_largest_full_image_stands_for_the_file(order: str, bigtiff: bool) -> None:
    scene, small, other = draw_scene(), draw_noise(48, 32), draw_noise(96, 64)
    full, reduced = {"subfiletype": 0}, {"subfiletype": 1}
    files = [
        [(small, reduced), (scene, full)],
        [(small, full), (scene, full)],
        [(small, {**reduced, "subifds": 1}), (scene, full)],
        [(draw_noise(192, 128), reduced), (scene, full)],
        [(np.ones((128, 192), bool), {"subfiletype": 4, "photometric": "mask"}), (scene, full)],
        [(scene, full), (other, full)],  # of equal pages the first
    ]
    for images in files:
        photo = decode_image(pages(*images, order=order, bigtiff=bigtiff))
        assert (photo.width, photo.height) == (96, 64)
        np.testing.assert_allclose(corners(photo.pixels), CORNERS)
    with pytest.raises(ImageSizeError, match="96 × 64"):
        decode_image(pages(*files[0]), max_pixels=96 * 64 - 1)


def test_a_thumbnail_never_stands_in_for_a_photo_that_is_not_read() -> None:
    with pytest.raises(ImageTypeError, match="float"):
        decode_image(pages((draw_scene(), {"subfiletype": 1}), (np.zeros((99, 99, 3), np.float32), {})))


def test_directories_that_go_in_circles_or_nowhere_end() -> None:
    file = bytearray(pages((draw_scene(), {}), (draw_scene(), {})))
    first = struct.unpack_from("<I", file, 4)[0]
    entries = struct.unpack_from("<H", file, first)[0]
    following = first + 2 + 12 * entries
    for target in (first, 0, 0xFFFFFFF0, len(file) - 1):
        file[following : following + 4] = struct.pack("<I", target)
        np.testing.assert_allclose(corners(decode_image(bytes(file)).pixels), CORNERS)


def test_a_file_of_nothing_but_directories_is_soon_refused() -> None:
    many = b"".join(struct.pack("<HI", 0, 8 + 6 * (index + 1)) for index in range(200_000))
    wide = b"".join(
        struct.pack("<H", 60_000) + bytes(12 * 60_000) + struct.pack("<I", 8 + 720_006 * (index + 1))
        for index in range(20)
    )
    for body in (many, wide):
        with pytest.raises(ImageError):
            decode_image(b"II*\0" + struct.pack("<I", 8) + body)


def test_a_cut_tiff_is_damaged() -> None:
    for compression in (None, "deflate", "lzw"):
        file = pages((draw_noise(64, 48), {"compression": compression}))
        with pytest.raises(ImageDecodeError, match="truncated or damaged"):
            decode_image(file[: len(file) * 2 // 3])
