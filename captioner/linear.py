"""Linear layers with their activations, and attention without a mask, at the speed that a CPU has.

On a CPU torch gives products of float32 matrices to MKL. On AMD processors that is half as fast as oneDNN,
which torch has as well and uses for its other number types; for the few rows of a decode step it is up to
five times slower. The operator called here is the one that ``torch.compile`` puts in place of linear layers
and the activation after them.

In bfloat16 torch's fused attention is slower than in float32 there; the products by themselves are faster.
For one to five words against BLIP's 577 regions they take a fifth to a half of its time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "Linear",
    "PackedWeights",
    "attention",
    "linear",
    "runs_plain_inference",
    "version_of",
]

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "silu"]


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": _quick_gelu,
    "relu": F.relu,
    "silu": F.silu,
}

_FUSED: dict[str | None, tuple[str, list[float], str]] = {  # what oneDNN calls them: it has no quick_gelu
    None: ("none", [], ""),
    "gelu": ("gelu", [], "none"),
    "gelu_tanh": ("gelu", [], "tanh"),
    "relu": ("relu", [], ""),
    "silu": ("swish", [], ""),
}

PACKED_SIZE = 2_000_000
"""Layers of at most so many weights have them laid out for oneDNN once, which costs their memory again. With
a few rows that saves a third of the time. BLIP's larger layers would make a step 7 % faster, for 450 MB.
"""


def version_of(weight: Tensor) -> int:
    """A number that grows with each change in place; of inference tensors, which have none, 0."""
    return 0 if weight.is_inference() else weight._version


class PackedWeights:
    """A layer's weights laid out for oneDNN: made when first needed, and again when they have changed.

    They are no part of a model's state: a copy starts without them.
    """

    def __init__(self) -> None:
        self._made: tuple[Hashable, Tensor, Any] | None = None  # one value, since threads can share a model

    def get(self, weight: Tensor, purpose: Hashable, make: Callable[[], Any]) -> Any:
        """What ``make`` gives for the weights as they are now and for that purpose."""
        key = (weight.data_ptr(), version_of(weight), weight.dtype, purpose)
        made = self._made
        if made is None or made[0] != key:
            # with the weights themselves, so that no others can come to lie at their address
            made = self._made = (key, weight.detach(), make())
        return made[2]

    def __reduce__(self) -> tuple[type[PackedWeights], tuple[()]]:
        return PackedWeights, ()


def runs_plain_inference(x: Tensor, weight: Tensor, *, device: str = "cpu") -> bool:
    """Whether a layer is at work on such a device for which fused operators are meant."""
    return (
        x.device.type == device
        and x.dtype == weight.dtype
        and not torch.is_grad_enabled()  # the operators have no derivative
        and not torch.is_autocast_enabled(device)  # nor do they know autocast's number type
    )


@functools.cache
def _has_operator(dtype: torch.dtype) -> bool:
    """Whether a processor and a build of torch have the operator for a number type."""
    onednn = torch.ops.mkldnn
    if not hasattr(onednn, "_linear_pointwise"):  # a build without oneDNN lacks it
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and onednn._is_mkldnn_bf16_supported())


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: Activation | None = None,
    packed: PackedWeights | None = None,
) -> Tensor:
    """``x (…, in)``, ``weight (out, in)``, ``bias (out,)`` -> ``(…, out)``, as ``F.linear``.

    Args:
        x: the rows.
        weight: the layer's.
        bias: likewise.
        activation: what follows it.
        packed: where weights are kept as oneDNN wants them; None to lay them out each time.
    """
    fused = runs_plain_inference(x, weight) and _has_operator(x.dtype)
    if activation is not None and not (fused and activation in _FUSED):
        return ACTIVATIONS[activation](linear(x, weight, bias, packed=packed))
    if not fused:
        return F.linear(x, weight, bias)
    onednn = torch.ops.mkldnn
    if packed is not None:
        weight = packed.get(weight, None, lambda: onednn._reorder_linear_weight(weight.detach(), 32))
    out: Tensor = onednn._linear_pointwise(x, weight, bias, *_FUSED[activation])
    return out


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Unmasked attention, ``(B, heads, n, d)`` each, as ``F.scaled_dot_product_attention``."""
    if q.dtype == torch.bfloat16 and runs_plain_inference(q, k) and _has_operator(q.dtype):
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        attended: Tensor = scores.softmax(-1) @ v
        return attended
    return F.scaled_dot_product_attention(q, k, v)


class Linear(nn.Linear):
    """``nn.Linear`` by :func:`linear`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._packed = PackedWeights()

    def forward(self, x: Tensor, *, activation: Activation | None = None) -> Tensor:
        weight = self.weight
        packed = self._packed if weight.numel() <= PACKED_SIZE else None
        return linear(x, weight, self.bias, activation=activation, packed=packed)
