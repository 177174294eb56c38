"""Convolutions with TensorFlow's padding: fused on a CPU, equal to torch's ordinary ones."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captioner.convolution import SameConv2d, fuses


def ordinary(convolution: SameConv2d, x: Tensor) -> Tensor:
    """What the ordinary path gives: the one that has a derivative."""
    with torch.enable_grad():
        return convolution(x).detach()


@pytest.mark.parametrize("size", [(8, 8), (9, 9), (8, 11)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("groups", [1, 4])
def test_a_fused_convolution_is_the_ordinary_one(
    size: tuple[int, int], stride: int, kernel: int, groups: int
):
    torch.manual_seed(0)
    convolution = SameConv2d(4, 8, kernel, stride, groups=groups).requires_grad_(False)
    x = 4 * torch.randn(2, 4, *size)
    expected = ordinary(convolution, x)
    skip = torch.randn_like(expected)
    with torch.inference_mode():
        torch.testing.assert_close(convolution(x), expected)
        torch.testing.assert_close(convolution(x, relu6=True), F.relu6(expected))
        torch.testing.assert_close(convolution(x, skip=skip), expected + skip)


@torch.inference_mode()
def test_same_padding_gives_the_surplus_to_the_right_and_bottom():
    torch.manual_seed(0)
    convolution = SameConv2d(1, 1, 3, 2)
    image = torch.randn(1, 1, 4, 4)
    expected = F.conv2d(F.pad(image, (0, 1, 0, 1)), convolution.weight, convolution.bias, stride=2)
    torch.testing.assert_close(convolution(image), expected)


def test_what_a_fused_convolution_is_given_stays_as_it_was():
    torch.manual_seed(0)
    convolution = SameConv2d(4, 4, 3).requires_grad_(False)
    x, skip = torch.randn(2, 1, 4, 8, 8).contiguous(memory_format=torch.preserve_format)
    before = x.clone(), skip.clone()
    with torch.inference_mode():
        convolution(x, skip=skip)
    assert torch.equal(x, before[0])
    assert torch.equal(skip, before[1])


def test_new_weights_are_used_at_once():
    torch.manual_seed(0)
    convolution = SameConv2d(2, 2, 3, 2)
    x = torch.randn(1, 2, 8, 8)

    def check() -> Tensor:
        with torch.inference_mode():
            result = convolution(x.to(convolution.weight.dtype)).float()
        torch.testing.assert_close(
            result, ordinary(convolution, x.to(convolution.weight.dtype)).float(), rtol=0.02, atol=0.02
        )
        return result

    results = [check()]
    with torch.no_grad():
        convolution.weight += 1  # as an optimizer does
    results.append(check())
    convolution.weight.data = torch.randn_like(convolution.weight)  # as averaging does
    results.append(check())
    convolution.load_state_dict(
        {name: value + 1 for name, value in convolution.state_dict().items()}, assign=True
    )
    results.append(check())
    for place, result in enumerate(results):
        assert not any(torch.allclose(result, other, atol=0.1) for other in results[:place])
    convolution.to(torch.bfloat16)
    check()


def test_a_convolution_that_has_run_can_be_copied_and_trained():
    torch.manual_seed(0)
    convolution, x = SameConv2d(2, 2, 3), torch.randn(1, 2, 8, 8)
    with torch.inference_mode():
        expected = convolution(x)
    twin = copy.deepcopy(convolution)
    assert twin.state_dict().keys() == {"weight", "bias"}
    twin(x).sum().backward()
    assert twin.weight.grad is not None
    with torch.inference_mode():
        torch.testing.assert_close(twin(x), expected)


@torch.inference_mode()
def test_images_of_several_sizes_and_number_types():
    torch.manual_seed(0)
    network = nn.Sequential(SameConv2d(3, 4, 3, 2), SameConv2d(4, 4, 5, 2, groups=4))
    for side in (32, 31, 32, 17):
        x = torch.randn(2, 3, side, side)
        torch.testing.assert_close(network(x).shape[-1], -(-side // 4))
        torch.testing.assert_close(network(x)[:1], network(x[:1]))
    half = copy.deepcopy(network).bfloat16()
    torch.testing.assert_close(half(x.bfloat16()).float(), network(x), rtol=0.05, atol=0.05)


class NoOneDNN:
    """A build of torch without the fused convolutions."""


class OldProcessor:
    """One that has no bfloat16."""

    def _is_mkldnn_bf16_supported(self) -> bool:
        return False


@pytest.mark.parametrize(("onednn", "dtype"), [(NoOneDNN(), torch.float32), (OldProcessor(), torch.bfloat16)])
def test_where_there_are_no_fused_convolutions_the_log_says_so_once(
    onednn: object, dtype: torch.dtype, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.INFO, "captioner"):
        assert not fuses(dtype, onednn)
        assert not fuses(dtype, onednn)
    assert len(caplog.records) == 1
