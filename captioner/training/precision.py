"""Which number type and kernels a training step uses: whatever is fastest on the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from captioner.training.options import Precision

__all__ = ["depthwise_in_float32", "fast_step"]


def faster_in_bfloat16(device: torch.device) -> bool:
    """With AVX-512's bfloat16 instructions, or AMX, a product takes a quarter of the time; without, twice."""
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return device.type == "cuda"


@contextmanager
def fast_step(device: torch.device, precision: Precision) -> Iterator[None]:
    """Compute in the given precision, under autocast, and on a CPU with unfused attention.

    For the few dozen tokens of a caption a CPU takes longer over the gradient of fused attention than over
    three plain products.
    """
    enabled = precision == "bfloat16" or (precision == "auto" and faster_in_bfloat16(device))
    attention = sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
    with torch.autocast(device.type, torch.bfloat16, enabled=enabled), attention:
        yield


def depthwise_in_float32(backbone: nn.Module) -> None:
    """Keep depthwise convolutions out of a CPU's autocast: their gradient takes up to ten times as long."""

    def as_float32(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        return (inputs[0].float(),)

    for module in backbone.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            module.register_forward_pre_hook(as_float32)
            module.forward = torch.autocast("cpu", enabled=False)(module.forward)  # type: ignore[method-assign]
