"""Pixel values: those of the checkpoint's own processor; boxes of regions."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from images import CORNERS, corners, draw_noise, draw_scene, encode
from PIL import Image
from transformers import BlipImageProcessor, ViTImageProcessor

from captioner.errors import CheckpointError, OptionsError
from captioner.image import ImageProcessor, decode_image, region_box

PROCESSOR = ImageProcessor(size=32, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
def test_the_processor_squashes_the_whole_photo(resample: Any) -> None:
    processor = ImageProcessor(size=32, mean=(0.5,) * 3, std=(0.5,) * 3, resample=resample)
    values = processor(draw_scene(200, 50))
    assert (values.dtype, tuple(values.shape), values.is_contiguous()) == (torch.uint8, (3, 32, 32), True)
    assert corners(Image.fromarray(values.permute(1, 2, 0).numpy())) == CORNERS
    noise = draw_noise(90, 70)
    expected = np.asarray(noise.resize((32, 32), Image.Resampling[resample.upper()])).astype(int)
    for box in (None, (0, 0, 90, 70), (0, 0, 90, 69.9999)):  # the last one is Pillow's on every machine
        assert abs(processor(noise, box).permute(1, 2, 0).numpy() - expected).max() <= 2  # each pass rounds


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


# --- the same pixels as transformers ------------------------------------------------------------------------

THEIRS = {"bilinear": ViTImageProcessor, "bicubic": BlipImageProcessor}
SIZES = [(80, 80), (512, 512), (640, 427), (427, 640), (1001, 667), (1203, 805), (91, 1500), (2003, 1501)]
LARGEST = 0.12
"""Of all values in -1…1; noise is the worst there is."""


@pytest.mark.parametrize("resample", THEIRS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_pixel_values_are_those_of_transformers(resample: Any, size: tuple[int, int], format: str) -> None:
    side = 80
    processor = ImageProcessor(side, (0.5,) * 3, (0.5,) * 3, resample)
    theirs = THEIRS[resample](size={"height": side, "width": side}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    noise = draw_noise(*size)
    file = encode(noise, format, quality=95)
    photo = decode_image(file, min_side=side)
    values = processor.normalize(processor(photo.pixels, photo.box)[None], torch.float32)
    expected = theirs(decode_image(file).pixels, return_tensors="pt")["pixel_values"]
    difference = (values - expected).abs()
    assert difference.max() < LARGEST
    assert difference.mean() < LARGEST / 5
    if min(size) < 4 * side and format == "PNG":  # nothing was reduced, and both round once
        assert difference.max() <= 2.1 / 127.5


@pytest.mark.parametrize("shift", [(0, 0), (3, 1), (7, 5)])
def test_edges_stay_where_they_are(shift: tuple[int, int]) -> None:
    """Where a size is no multiple of the factor, the last column and row must not be stretched."""
    width, height = 800 + shift[0], 640 + shift[1]
    bars = np.zeros((height, width, 3), np.uint8)
    bars[:, width * 3 // 4 :] = 255
    bars[height * 3 // 4 :] ^= 255
    processor = ImageProcessor(size=40, mean=(0.5,) * 3, std=(0.5,) * 3)
    for format in ("PNG", "JPEG"):
        file = encode(Image.fromarray(bars), format, quality=95)
        photo, whole = decode_image(file, min_side=40), decode_image(file)
        assert photo.pixels.width < width // 4
        ours, best = (processor(each.pixels, each.box).float() / 127.5 for each in (photo, whole))
        assert (ours - best).abs().max() < 0.1
