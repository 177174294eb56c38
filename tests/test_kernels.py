"""The convolutions of a GPU are the ordinary ones. Where there is no GPU, Triton's interpreter runs them."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F

from captioner.convolution import SameConv2d, gpu_kernels

LAYERS = [  # channels in and out, kernel, stride, groups, height and width
    (3, 32, 3, 2, 1, 16, 17),
    (16, 24, 1, 1, 1, 9, 7),
    (40, 80, 1, 1, 1, 5, 5),
    (24, 24, 3, 1, 24, 9, 9),
    (24, 24, 3, 2, 24, 10, 11),
    (40, 40, 5, 1, 40, 10, 7),
    (24, 24, 5, 2, 24, 11, 10),
]


def check(device: str, dtype: torch.dtype, tolerance: float) -> None:
    """Each kind of kernel against the ordinary convolution in float32."""
    kernels = import_module("captioner.kernels")
    torch.manual_seed(0)
    for into, out_of, kernel, stride, groups, *size in LAYERS:
        convolution = SameConv2d(into, out_of, kernel, stride, groups=groups).requires_grad_(False)
        x = 4 * torch.randn(2, into, *size)
        expected = convolution(x)  # with gradients, and so the ordinary one
        assert convolution._has_kernel(relu6=True)
        convolution.to(device, dtype)
        x = x.to(device, dtype)

        def same(found: torch.Tensor, expected: torch.Tensor) -> None:
            torch.testing.assert_close(found.float().cpu(), expected, rtol=tolerance, atol=tolerance)

        with torch.inference_mode():
            same(convolution._on_gpu(kernels, x, True, None), F.relu6(expected))
            if kernel == 1:
                skip = torch.randn_like(expected).contiguous(memory_format=torch.channels_last)
                same(convolution._on_gpu(kernels, x, False, None), expected)
                same(convolution._on_gpu(kernels, x, False, skip.to(device, dtype)), expected + skip)


def test_the_kernels_are_the_ordinary_convolutions_in_the_interpreter():
    pytest.importorskip("triton")
    code = "import torch, test_kernels; test_kernels.check('cpu', torch.float32, 1e-5)"
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.path.dirname(__file__)}
    environment["OMP_NUM_THREADS"] = "1"  # each of its operations is tiny
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_kernels_are_the_ordinary_convolutions_on_a_gpu(dtype: torch.dtype):
    assert gpu_kernels(torch.device("cuda", 0), dtype) is not None
    check("cuda", dtype, 0.05)


@pytest.mark.parametrize(
    "convolution",
    [
        SameConv2d(12, 16, 1),  # not by eights
        SameConv2d(16, 16, 1, 2),
        SameConv2d(16, 16, 3, groups=2),
        SameConv2d(16, 32, 3, groups=16),
        SameConv2d(16, 16, 7, groups=16),
        SameConv2d(3, 24, 3, 2),
    ],
)
def test_other_convolutions_have_no_kernel(convolution: SameConv2d):
    assert not convolution._has_kernel(relu6=True)


def test_where_the_kernels_do_not_run_the_log_says_so_once(caplog: pytest.LogCaptureFixture):
    gpu_kernels.cache_clear()
    with caplog.at_level(logging.INFO, "captioner"):
        assert gpu_kernels(torch.device("cpu"), torch.float16) is None
        assert gpu_kernels(torch.device("cpu"), torch.float16) is None
        assert gpu_kernels(torch.device("cpu"), torch.float32) is None
    assert len(caplog.records) == 1
