"""Convolutions at the speed that a CPU or a GPU has.

In inference a convolution and its ReLU6, or the sum with a skip connection, are one call: on a CPU of
oneDNN, on a GPU in half precision of :mod:`captioner.kernels`. Weights are laid out once for all calls, and
no image is copied where one side needs more padding than the other. The operators of oneDNN called here are
those that ``torch.compile`` puts in place of convolutions. Elsewhere, and in training, torch's ordinary
convolution runs.

OpenVINO runs the same network a little faster; ``docs/explanation/cost.md`` says by how much, and why it is
not used.
"""

from __future__ import annotations

import functools
import logging
import math
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captioner.linear import PackedWeights, runs_plain_inference

__all__ = ["SameConv2d", "fuses"]

logger = logging.getLogger(__name__)

RELU6 = ("hardtanh", [0.0, 6.0], "")
NOTHING: tuple[str, list[float], str] = ("none", [], "")


@functools.cache
def fuses(dtype: torch.dtype, onednn: Any = torch.ops.mkldnn) -> bool:
    """Whether processor and torch have the fused convolutions here; if not, the log says so once.

    Args:
        dtype: of images and weights.
        onednn: where the operators are.
    """
    try:
        if dtype != torch.float32 and not (dtype == torch.bfloat16 and onednn._is_mkldnn_bf16_supported()):
            raise RuntimeError(f"not in {dtype} on this processor")
        with torch.inference_mode():
            image, weight = torch.ones(1, 1, 2, 2, dtype=dtype), torch.ones(1, 1, 1, 1, dtype=dtype)
            packed = onednn._reorder_convolution_weight(weight, [0, 0], [1, 1], [1, 1], 1, [1, 1, 2, 2])
            like = (None, [0, 0], [1, 1], [1, 1], 1)
            result = onednn._convolution_pointwise(image, packed, *like, *RELU6)
            onednn._convolution_pointwise.binary(result, image, packed, *like, "add", 1.0, None, [], None)
    except (AttributeError, RuntimeError) as error:
        logger.info("the image encoder is slower here, without fused convolutions: %s", error)
        return False
    return True


@functools.cache
def gpu_kernels(device: torch.device, dtype: torch.dtype) -> ModuleType | None:
    """:mod:`captioner.kernels`, where they run on a GPU; if not, the log says so once.

    Args:
        device: of images and weights.
        dtype: of images and weights.
    """
    if dtype not in (torch.float16, torch.bfloat16):  # float32 is there for those who want it exact
        return None
    try:
        kernels = import_module("captioner.kernels")
        with torch.inference_mode():
            image, weight = torch.ones(2, 8, 8, 1, 1, dtype=dtype, device=device)
            kernels.pointwise(image, weight, weight[:, 0, 0, 0].clone(), relu6=True, skip=None)
    except Exception as error:  # no Triton, no C compiler for it, an old GPU: each raises something else
        logger.info("the image encoder is slower on %s, without fused convolutions: %s", device, error)
        return None
    return kernels


class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's SAME padding: of an odd padding, right and bottom get the surplus."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._packed = PackedWeights()

    def forward(self, x: Tensor, *, relu6: bool = False, skip: Tensor | None = None) -> Tensor:
        """``(B, in, H, W)`` -> ``(B, out, ceil(H/stride), ceil(W/stride))``.

        Args:
            x: the images.
            relu6: end with a ReLU6; not together with ``skip``.
            skip: added to the result, whose shape it has.
        """
        assert not relu6 or skip is None
        if runs_plain_inference(x, self.weight) and fuses(x.dtype):
            return self._fused(x, relu6, skip)
        if runs_plain_inference(x, self.weight, device="cuda"):
            kernels = gpu_kernels(x.device, x.dtype)
            if kernels is not None and self._has_kernel(relu6):
                return self._on_gpu(kernels, x, relu6, skip)
        before, after = self._padding(x.shape[-2:])
        if before == after:
            y = F.conv2d(x, self.weight, self.bias, self.stride, before, 1, self.groups)
        else:
            x = F.pad(x, (before[1], after[1], before[0], after[0]))
            y = F.conv2d(x, self.weight, self.bias, self.stride, 0, 1, self.groups)
        if relu6:
            return F.relu6(y)
        return y if skip is None else y + skip

    def _padding(self, size: torch.Size) -> tuple[list[int], list[int]]:
        """Rows above and columns left of images of that size, then rows below and columns right of them."""
        step, kernel = self.stride[0], self.kernel_size[0]
        missing = [max((math.ceil(side / step) - 1) * step + kernel - side, 0) for side in size]
        return [pad // 2 for pad in missing], [pad - pad // 2 for pad in missing]

    def _fused(self, x: Tensor, relu6: bool, skip: Tensor | None) -> Tensor:
        onednn = torch.ops.mkldnn
        weight, padding = self._packed.get(self.weight, x.shape[-2:], lambda: self._pack(x))
        common = (weight, self.bias, padding, self.stride, [1, 1], self.groups)
        if skip is None:
            y: Tensor = onednn._convolution_pointwise(x, *common, *(RELU6 if relu6 else NOTHING))
        else:
            y = onednn._convolution_pointwise.binary(x, skip, *common, "add", 1.0, None, [], None)
        return y

    def _has_kernel(self, relu6: bool) -> bool:
        """Whether it is of one of the kinds that :mod:`captioner.kernels` has."""
        size, stride, wide = self.kernel_size[0], self.stride[0], self.out_channels % 8 == 0
        if size == 1:
            return stride == self.groups == 1 and wide and self.in_channels % 8 == 0
        if self.in_channels == 3:
            return relu6 and self.groups == 1 and self.out_channels.bit_count() == 1
        alone = self.groups == self.in_channels == self.out_channels
        return relu6 and alone and wide and size in (3, 5) and stride in (1, 2)

    def _on_gpu(self, kernels: ModuleType, x: Tensor, relu6: bool, skip: Tensor | None) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        if self.kernel_size[0] == 1:
            y: Tensor = kernels.pointwise(x, self.weight, self.bias, relu6=relu6, skip=skip)
            return y
        # kernels read the weights of neighbouring channels together
        weight = self._packed.get(
            self.weight, "gpu", lambda: self.weight.detach().permute(2, 3, 1, 0).contiguous()
        )
        kind = kernels.depthwise if self.groups > 1 else kernels.stem
        y = kind(x, weight, self.bias, stride=self.stride[0], before=self._padding(x.shape[-2:])[0])
        return y

    def _pack(self, x: Tensor) -> tuple[Tensor, list[int]]:
        """The weights for images of such a size, and the padding on both sides.

        A kernel whose padding differs from side to side grows by zeros where there is less of it.
        """
        before, after = self._padding(x.shape[-2:])
        rows, columns = (more - less for more, less in zip(after, before, strict=True))
        weight = self.weight.detach()
        if rows or columns:
            weight = F.pad(weight, (columns, 0, rows, 0))
        shape = list(x.shape)
        pack = torch.ops.mkldnn._reorder_convolution_weight
        return pack(weight, after, self.stride, [1, 1], self.groups, shape), after
