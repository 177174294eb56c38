"""Which number type a training step computes in."""

from __future__ import annotations

import torch

__all__ = ["mixed_precision"]


def mixed_precision(device: torch.device) -> torch.autocast:
    """Autocast to bfloat16 where the device multiplies matrices faster in it.

    GPUs do, and CPUs with AMX tiles; with AVX-512 alone a bfloat16 product takes twice as long as in float32.
    """
    enabled = torch.cpu._is_amx_tile_supported() if device.type == "cpu" else device.type == "cuda"
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)
