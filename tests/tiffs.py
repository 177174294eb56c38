"""TIFFs of every kind that is read or refused, written by tifffile, and the RGB that they stand for."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

HEIGHT, WIDTH = 37, 53
TYPES = {"u": np.uint64, "i": np.int64, "f": np.float64}


@dataclass(frozen=True)
class Kind:
    """A kind of TIFF.

    Attributes:
        photometric: as tifffile calls it.
        format: "u", "i" or "f".
        bits: of a sample.
        extra: what further samples are, as tifffile calls it.
        planes: whether each sample is in a plane of its own.
        order: "<" or ">".
        compression: as tifffile calls it, or None.
        tiled: whether it is in tiles rather than in strips.
        predictor: whether differences are compressed.
    """

    photometric: str
    format: str
    bits: int
    extra: tuple[str, ...] = ()
    planes: bool = False
    order: str = "<"
    compression: str | None = None
    tiled: bool = False
    predictor: bool = False

    @property
    def samples(self) -> int:
        """Of a pixel."""
        colours = {"rgb": 3, "separated": 4, "ycbcr": 3, "cielab": 3}.get(self.photometric, 1)
        return colours + len(self.extra)

    def draw(self) -> npt.NDArray[Any]:
        """Random samples that span the range, ``(H, W)`` or ``(H, W, samples)``."""
        generator = np.random.default_rng(self.bits)
        shape = (HEIGHT, WIDTH, self.samples) if self.samples > 1 else (HEIGHT, WIDTH)
        if self.format == "f":
            return generator.random(shape).astype(f"f{self.bits // 8}")
        low = -(1 << self.bits - 1) if self.format == "i" else 0
        high = low + (1 << self.bits) - 1
        values = generator.integers(low, high, shape, dtype=TYPES[self.format], endpoint=True)
        values.flat[0], values.flat[1] = low, high
        if self.extra[:1] == ("assocalpha",):  # no colour is brighter than its alpha
            values[..., :-1] = np.minimum(values[..., :-1], values[..., -1:])
        return values.astype(f"{self.format}{1 << max(0, (self.bits - 1).bit_length() - 3)}")

    def write(self, values: npt.NDArray[Any], **options: Any) -> bytes:
        """A file of them."""
        if self.photometric == "palette":
            options["colormap"] = palette(self.bits)
        if self.samples > 1:
            options["planarconfig"] = "separate" if self.planes else "contig"
            options["extrasamples"] = self.extra or None
        if self.photometric == "ycbcr":
            options["subsampling"] = (1, 1)
        buffer = io.BytesIO()
        with tifffile.TiffWriter(buffer, byteorder=self.order) as writer:
            writer.write(
                np.moveaxis(values, 2, 0) if self.planes and self.samples > 1 else values,
                photometric=self.photometric,
                bitspersample=self.bits if self.bits < 8 or self.bits == 12 else None,
                compression=self.compression,
                predictor=self.predictor or None,
                tile=(16, 32) if self.tiled else None,
                rowsperstrip=None if self.tiled else 16,
                metadata=None,
                **options,
            )
        return buffer.getvalue()

    def read(self, file: bytes) -> npt.NDArray[Any]:
        """The samples as tifffile reads them, shaped as :meth:`draw` does."""
        values = tifffile.imread(io.BytesIO(file))
        return np.moveaxis(values, 0, 2) if self.planes and self.samples > 1 else values

    def to_rgb(self, values: npt.NDArray[Any]) -> npt.NDArray[np.float64] | None:
        """What samples stand for: ``(H, W, 3)`` in 0…255, on white; None or NaN where that is not agreed."""
        if self.photometric == "palette":
            colours: npt.NDArray[np.float64] = (palette(self.bits) >> 8)[:, values].transpose(1, 2, 0) * 1.0
            return colours
        if self.format == "u":
            levels = values * (255 / ((1 << self.bits) - 1))
        else:
            low = min(0.0, float(values.min()))
            levels = (values - low) * (255 / (float(values.max()) - low if low else 1.0))
        levels = levels.reshape(HEIGHT, WIDTH, -1).astype(np.float64)
        if self.photometric == "separated" and set(self.extra) <= {"unspecified"}:
            return (255 - levels[..., :3]) * (255 - levels[..., 3:4]) / 255
        if self.photometric == "ycbcr":
            luma, blue, red = levels[..., 0], levels[..., 1] - 128, levels[..., 2] - 128
            rgb = (luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue)
            return np.stack(rgb, 2).clip(0, 255)
        if self.photometric == "cielab" and (self.format, self.bits) == ("u", 8):
            return lab_to_rgb(values)
        if self.photometric not in ("minisblack", "miniswhite", "rgb"):
            return None
        known = 3 if self.photometric == "rgb" else 1
        colours, alpha = levels[..., :known], levels[..., known : known + 1] / 255
        if self.photometric == "miniswhite":
            colours = 255 - colours
        if self.extra[:1] == ("unassalpha",):
            colours = colours * alpha + 255 * (1 - alpha)
        if self.extra[:1] == ("assocalpha",):
            colours = colours + 255 * (1 - alpha)
        return np.repeat(colours, 3 // known, 2)


def palette(bits: int) -> npt.NDArray[np.uint16]:
    """Random colours, ``(3, 2 ** bits)``."""
    return np.random.default_rng(bits).integers(0, 1 << 16, (3, 1 << bits), dtype=np.uint16)


def lab_to_rgb(values: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """CIE Lab of white D50 as TIFF stores it, a and b signed, to sRGB; NaN at its edges and beyond."""
    lightness, (a, b) = values[..., 0] * (100 / 255), np.moveaxis(values[..., 1:].view(np.int8), 2, 0)
    y = (lightness + 16) / 116
    f = np.stack([y + a / 500, y, y - b / 200], 2)
    xyz = np.where(f > 6 / 29, f**3, (f - 4 / 29) * 3 * (6 / 29) ** 2) * [0.9642, 1, 0.8249]
    matrix = [  # of XYZ under D50, by Bradford
        [3.1338561, -1.6168667, -0.4906146],
        [-0.9787684, 1.9161415, 0.0334540],
        [0.0719453, -0.2289914, 1.4052427],
    ]
    linear = xyz @ np.array(matrix).T
    linear[((linear < 0.05) | (linear > 1)).any(-1)] = np.nan
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def every_kind() -> Iterator[Kind]:
    """Grey of every number type, palettes, and colours with every kind of further samples."""
    numbers = [
        *product("u", (1, 2, 4, 8, 12, 16, 32)),
        *product("i", (8, 16, 32)),
        *product("f", (16, 32, 64)),
    ]
    wide = [("u", 8), ("u", 16), ("u", 32), ("i", 8), ("i", 16), ("f", 16), ("f", 32)]
    further = [(), ("unspecified",), ("unassalpha",), ("assocalpha",), ("unspecified", "unspecified")]
    for order, (compression, predictor), tiled in product(
        "<>", ((None, False), ("deflate", True), ("lzw", False)), (False, True)
    ):
        stored = {"order": order, "compression": compression, "predictor": predictor, "tiled": tiled}
        for photometric, (format, bits) in product(("minisblack", "miniswhite"), numbers):
            if bits in (8, 16, 32) or not (compression or tiled):  # what tifffile writes
                yield Kind(photometric, format, bits, **stored)
        for bits in (8, 16):
            yield Kind("palette", "u", bits, **(stored | {"predictor": False}))
        colours = ("minisblack", "miniswhite", "rgb", "separated", "ycbcr", "cielab")
        for photometric, extra, planes, (format, bits) in product(colours, further, (False, True), wide):
            if photometric in ("rgb", "separated") or bool(extra) == (photometric[:3] == "min"):
                yield Kind(photometric, format, bits, extra, planes, **stored)
