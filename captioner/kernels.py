"""A GPU's convolutions with bias, ReLU6 and skip connection in one kernel each, written in Triton.

After a convolution of cuDNN, torch reads and writes the whole result again to add the bias, once more for a
ReLU6, and once more for a skip connection. On an H100 that takes two thirds of EfficientNet-Lite's time.

Images are channels-last, ``(B, C, H, W)``. Numbers of channels are multiples of 8, so that every access is 16
bytes wide. Sums are float32. Triton compiles each kernel when a machine first needs it, in a second or two,
and keeps it in a folder of its own.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["depthwise", "pointwise", "stem"]


def pointwise(x: Tensor, weight: Tensor, bias: Tensor, *, relu6: bool, skip: Tensor | None) -> Tensor:
    """A 1 × 1 convolution, which is a product of matrices with a pixel in each row.

    Args:
        x: ``(B, in, H, W)``.
        weight: ``(out, in, 1, 1)``.
        bias: ``(out,)``.
        relu6: end with a ReLU6.
        skip: ``(B, out, H, W)`` to add before that.

    Returns:
        ``(B, out, H, W)``.
    """
    batch, into, height, width = x.shape
    out_of, pixels = len(weight), batch * height * width
    result = _like(x, out_of, height, width)
    block = 128, 32, 4  # pixels, channels, warps: the best of eight for EfficientNet-Lite2 on an H100
    if out_of > 48:
        block = 256, 64, 8
    grid = (triton.cdiv(pixels, block[0]) * triton.cdiv(out_of, block[1]),)
    with torch.cuda.device_of(x):
        _pointwise[grid](
            x, weight, bias, result if skip is None else skip, result, pixels, into // 8, out_of // 8,
            RELU6=relu6, SKIP=skip is not None, PIXELS=block[0], OUT=block[1], IN=32, num_warps=block[2],
        )  # fmt: skip
    return result


def depthwise(x: Tensor, weight: Tensor, bias: Tensor, *, stride: int, before: list[int]) -> Tensor:
    """A convolution of each channel by itself, 3 × 3 or 5 × 5, and a ReLU6.

    Args:
        x: ``(B, C, H, W)``.
        weight: ``(kernel, kernel, 1, C)``.
        bias: ``(C,)``.
        stride: 1 or 2.
        before: rows of zeros above and columns left of the image; below and right, as many as it takes.

    Returns:
        ``(B, C, ceil(H / stride), ceil(W / stride))``.
    """
    batch, channels, height, width = x.shape
    rows, columns = -(-height // stride), -(-width // stride)
    result = _like(x, channels, rows, columns)
    strips = batch * triton.cdiv(rows, 4) * columns
    grid = (triton.cdiv(strips, 32), triton.cdiv(channels, 32))
    with torch.cuda.device_of(x):
        _depthwise[grid](
            x, weight, bias, result, strips, height, width, channels // 8, rows, columns, *before,
            STRIDE=stride, KERNEL=len(weight), STRIPS=32, CHANNELS=32, num_warps=4,
        )  # fmt: skip
    return result


def stem(x: Tensor, weight: Tensor, bias: Tensor, *, stride: int, before: list[int]) -> Tensor:
    """A convolution of a photo's three colours, and a ReLU6.

    Args:
        x: ``(B, 3, H, W)``.
        weight: ``(kernel, kernel, 3, out)``, where ``out`` is a power of 2.
        bias: ``(out,)``.
        stride: of the kernel.
        before: as for :func:`depthwise`.

    Returns:
        ``(B, out, ceil(H / stride), ceil(W / stride))``.
    """
    batch, _, height, width = x.shape
    rows, columns = -(-height // stride), -(-width // stride)
    result = _like(x, len(bias), rows, columns)
    pixels = batch * rows * columns
    with torch.cuda.device_of(x):
        _stem[(triton.cdiv(pixels, 128),)](
            x, weight, bias, result, pixels, height, width, rows, columns, *before,
            STRIDE=stride, KERNEL=len(weight), OUT=len(bias), PIXELS=128, num_warps=4,
        )  # fmt: skip
    return result


def _like(x: Tensor, channels: int, rows: int, columns: int) -> Tensor:
    shape = (len(x), channels, rows, columns)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


@triton.jit(do_not_specialize=["pixels", "eighths_in", "eighths_out"])
def _pointwise(
    image, weight, bias, skip, result, pixels, eighths_in, eighths_out,
    RELU6: tl.constexpr, SKIP: tl.constexpr, PIXELS: tl.constexpr, OUT: tl.constexpr, IN: tl.constexpr,
):  # fmt: skip
    into, out_of = eighths_in * 8, eighths_out * 8
    blocks = tl.cdiv(out_of, OUT)  # those of the same pixels follow each other, and find them in the cache
    pixel = tl.program_id(0) // blocks * PIXELS + tl.arange(0, PIXELS)
    channel = tl.program_id(0) % blocks * OUT + tl.arange(0, OUT)
    row = pixel.to(tl.int64)[:, None]
    is_pixel, is_channel = (pixel < pixels)[:, None], (channel < out_of)[None, :]
    total = tl.zeros((PIXELS, OUT), tl.float32)
    for start in range(0, into, IN):
        source = start + tl.arange(0, IN)
        from_image = image + row * into + source[None, :]
        from_weight = weight + channel[None, :] * into + source[:, None]
        left = tl.load(from_image, mask=is_pixel & (source < into)[None, :], other=0.0)
        right = tl.load(from_weight, mask=is_channel & (source < into)[:, None], other=0.0)
        total = tl.dot(left, right, total, input_precision="ieee")
    total += tl.load(bias + channel, mask=channel < out_of, other=0.0).to(tl.float32)[None, :]
    place = row * out_of + channel[None, :]
    if SKIP:
        total += tl.load(skip + place, mask=is_pixel & is_channel, other=0.0).to(tl.float32)
    if RELU6:
        total = tl.minimum(tl.maximum(total, 0.0), 6.0)
    tl.store(result + place, total.to(result.dtype.element_ty), mask=is_pixel & is_channel)


@triton.jit(do_not_specialize=["strips", "height", "width", "eighths", "rows", "columns", "above", "left"])
def _depthwise(
    image, weight, bias, result, strips, height, width, eighths, rows, columns, above, left,
    STRIDE: tl.constexpr, KERNEL: tl.constexpr, STRIPS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    # A strip is four rows of the result in one column: they have most of their input in common.
    channels = eighths * 8
    strip = tl.program_id(0) * STRIPS + tl.arange(0, STRIPS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    high = tl.cdiv(rows, 4)
    column, top = strip % columns, strip // columns % high * 4
    photo = (strip // columns // high).to(tl.int64)
    is_channel = channel < channels
    total0 = tl.zeros((STRIPS, CHANNELS), tl.float32)
    total0 += tl.load(bias + channel, mask=is_channel, other=0.0).to(tl.float32)[None, :]
    total1, total2, total3 = total0, total0, total0
    for j in tl.static_range(KERNEL):
        x = column * STRIDE - left + j
        is_column = (strip < strips) & (x >= 0) & (x < width)
        weight0 = tl.load(weight + j * channels + channel, mask=is_channel, other=0.0)
        weight1 = tl.load(weight + (KERNEL + j) * channels + channel, mask=is_channel, other=0.0)
        weight2 = tl.load(weight + (2 * KERNEL + j) * channels + channel, mask=is_channel, other=0.0)
        weight3, weight4 = weight2, weight2
        if KERNEL == 5:
            weight3 = tl.load(weight + (3 * KERNEL + j) * channels + channel, mask=is_channel, other=0.0)
            weight4 = tl.load(weight + (4 * KERNEL + j) * channels + channel, mask=is_channel, other=0.0)
        weights = (weight0, weight1, weight2, weight3, weight4)
        for i in tl.static_range(3 * STRIDE + KERNEL):  # a row of the input, and what it adds to each row
            y = top * STRIDE - above + i
            source = image + ((photo * height + y) * width + x)[:, None] * channels + channel[None, :]
            there = (is_column & (y >= 0) & (y < height))[:, None] & is_channel[None, :]
            value = tl.load(source, mask=there, other=0.0).to(tl.float32)
            if i < KERNEL:
                total0 += value * weights[i].to(tl.float32)[None, :]
            if i >= STRIDE and i < STRIDE + KERNEL:
                total1 += value * weights[i - STRIDE].to(tl.float32)[None, :]
            if i >= 2 * STRIDE and i < 2 * STRIDE + KERNEL:
                total2 += value * weights[i - 2 * STRIDE].to(tl.float32)[None, :]
            if i >= 3 * STRIDE:
                total3 += value * weights[i - 3 * STRIDE].to(tl.float32)[None, :]
    for i in tl.static_range(4):
        total = (total0, total1, total2, total3)[i]
        place = result + ((photo * rows + top + i) * columns + column)[:, None] * channels + channel[None, :]
        there = ((strip < strips) & (top + i < rows))[:, None] & is_channel[None, :]
        tl.store(place, tl.minimum(tl.maximum(total, 0.0), 6.0).to(result.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=["pixels", "height", "width", "rows", "columns", "above", "left"])
def _stem(
    image, weight, bias, result, pixels, height, width, rows, columns, above, left,
    STRIDE: tl.constexpr, KERNEL: tl.constexpr, OUT: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    channel = tl.arange(0, OUT)
    column, row = pixel % columns, pixel // columns % rows
    photo = (pixel // columns // rows).to(tl.int64)
    total = tl.zeros((PIXELS, OUT), tl.float32) + tl.load(bias + channel).to(tl.float32)[None, :]
    for i in tl.static_range(KERNEL):
        y = row * STRIDE - above + i
        for j in tl.static_range(KERNEL):
            x = column * STRIDE - left + j
            there = (pixel < pixels) & (y >= 0) & (y < height) & (x >= 0) & (x < width)
            for colour in tl.static_range(3):
                source = image + ((photo * height + y) * width + x) * 3 + colour
                value = tl.load(source, mask=there, other=0.0).to(tl.float32)
                factor = tl.load(weight + ((i * KERNEL + j) * 3 + colour) * OUT + channel)
                total += value[:, None] * factor.to(tl.float32)[None, :]
    total = tl.minimum(tl.maximum(total, 0.0), 6.0)
    place = result + pixel.to(tl.int64)[:, None] * OUT + channel[None, :]
    tl.store(place, total.to(result.dtype.element_ty), mask=(pixel < pixels)[:, None])
