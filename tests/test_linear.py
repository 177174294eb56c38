"""The linear layer: torch's own result, whichever library computes it."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from captioner.linear import ACTIVATIONS, Activation, Linear, attention, linear


@pytest.mark.parametrize("shape", [(5,), (1, 5), (3, 5), (0, 5), (2, 3, 5), (2, 1, 4, 5), (300, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [True, False])
@torch.inference_mode()
def test_it_gives_what_torch_gives(shape: tuple[int, ...], dtype: torch.dtype, bias: bool):
    torch.manual_seed(0)
    x, weight = torch.randn(shape, dtype=dtype), torch.randn(7, 5, dtype=dtype)
    shift = torch.randn(7, dtype=dtype) if bias else None
    torch.testing.assert_close(linear(x, weight, shift), F.linear(x, weight, shift))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_an_activation_follows_it(activation: Activation, dtype: torch.dtype):
    torch.manual_seed(0)
    layer, x = Linear(5, 7).to(dtype), torch.randn(3, 5, dtype=dtype)
    expected = ACTIVATIONS[activation](F.linear(x.double(), layer.weight.double(), layer.bias.double()))
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 0.03, torch.float16: 0.01}[dtype]
    for inference in (True, False):
        with torch.inference_mode(inference):
            found = layer(x, activation=activation)
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_new_weights_are_used_at_once(dtype: torch.dtype):
    torch.manual_seed(0)
    layer, x = Linear(5, 7).to(dtype), torch.randn(3, 5, dtype=dtype)

    def change_in_place() -> None:
        with torch.no_grad():
            layer.weight += 1  # as an optimizer does

    def change_data() -> None:
        layer.weight.data = torch.randn_like(layer.weight)  # as averaging does

    def load() -> None:
        layer.load_state_dict({name: value + 1 for name, value in layer.state_dict().items()}, assign=True)

    for change in (lambda: None, change_in_place, change_data, load, lambda: layer.to(torch.float64)):
        change()
        rows = x.to(layer.weight.dtype)
        with torch.inference_mode():
            torch.testing.assert_close(layer(rows), F.linear(rows, layer.weight, layer.bias))


def test_a_layer_that_has_run_can_be_copied_and_trained():
    torch.manual_seed(0)
    layer, x = Linear(5, 7), torch.randn(3, 5)
    with torch.inference_mode():
        expected = layer(x)
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        twin.weight += 1
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), expected)
        assert not torch.allclose(twin(x), expected, atol=0.1)
    twin(x).sum().backward()
    assert twin.weight.grad is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_is_torchs_own(dtype: torch.dtype):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, tokens, 8, dtype=dtype) for tokens in (5, 7, 7))
    expected = F.scaled_dot_product_attention(q.float(), k.float(), v.float())
    tolerance = 0.03 if dtype == torch.bfloat16 else 1e-5
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            found = attention(q, k, v)
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), expected, rtol=0, atol=tolerance)
