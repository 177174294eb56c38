"""The linear layer: torch's own result, whichever library computes it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from captioner.linear import Linear, linear


@pytest.mark.parametrize("shape", [(5,), (1, 5), (3, 5), (0, 5), (2, 3, 5), (2, 1, 4, 5), (300, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [True, False])
@torch.inference_mode()
def test_it_gives_what_torch_gives(shape: tuple[int, ...], dtype: torch.dtype, bias: bool):
    torch.manual_seed(0)
    x, weight = torch.randn(shape, dtype=dtype), torch.randn(7, 5, dtype=dtype)
    shift = torch.randn(7, dtype=dtype) if bias else None
    torch.testing.assert_close(linear(x, weight, shift), F.linear(x, weight, shift))


@torch.inference_mode()
def test_inputs_need_not_be_contiguous():
    x, weight = torch.randn(4, 5, 3).transpose(1, 2), torch.randn(5, 7).T
    torch.testing.assert_close(linear(x, weight), F.linear(x, weight))
    torch.testing.assert_close(linear(x[:, ::2], weight), F.linear(x[:, ::2], weight))


def test_training_has_gradients_and_autocast_its_number_type():
    torch.manual_seed(0)
    ours, theirs = Linear(5, 7), nn.Linear(5, 7)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, 5)
    for layer in (ours, theirs):
        layer(x).square().sum().backward()
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)
    torch.testing.assert_close(ours.bias.grad, theirs.bias.grad)
    for grad in (True, False):
        with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(grad):
            assert ours(x).dtype == torch.bfloat16
