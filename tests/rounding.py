"""A pytest plugin that rounds as another CPU might: ``PYTHONPATH=tests pytest -p rounding``.

The last bits of a CPU's sums and products depend on its instructions and on the number of threads. This
plugin moves each float32 result of such an operation by up to four units in the last place (ULP), always
the same way for the same number. A test that passes only with one CPU's rounding fails here. ``ROUNDING=N``
draws another CPU. Other threads and processes are left as they are.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

SUMS = {
    getattr(torch.ops.aten, name)
    for name in (
        *("mm", "addmm", "bmm", "baddbmm", "linear", "convolution", "convolution_backward", "mean"),
        *("native_layer_norm", "native_batch_norm", "_softmax", "_log_softmax", "exp", "tanh", "gelu"),
        "_scaled_dot_product_flash_attention_for_cpu",
    )
}
DRAW = int(os.environ.get("ROUNDING", "1"))


class OtherRounding(TorchDispatchMode):
    """Moves what the operations in :data:`SUMS` give, the gradients of training included."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in SUMS:
            for tensor in result if isinstance(result, tuple | list) else (result,):
                if (
                    isinstance(tensor, Tensor)
                    and tensor.dtype == torch.float32
                    and tensor.device.type == "cpu"
                ):
                    move(tensor)
        return result


def move(tensor: Tensor) -> None:
    """Add -4 to 3 ULP to each number, in place, by a hash of its bits; zeros and infinities stay."""
    bits = tensor.view(torch.int32)
    ulps = (bits * 0x9E3779B1 + DRAW * 0x85EBCA6B) >> 29
    bits += torch.where(tensor.isfinite() & (tensor != 0), ulps, 0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Generator[None, object, object]:
    with OtherRounding():
        return (yield)
