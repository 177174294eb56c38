"""Convolutions at the speed that a CPU has.

In inference on a CPU a convolution and its ReLU6, or the sum with a skip connection, are one call of oneDNN.
Its weights are laid out once for all calls, and padding one side more than the other copies no image.
The operators called here are those that ``torch.compile`` puts in place of convolutions. Elsewhere, and in
training, torch's ordinary convolution runs.

In OpenVINO the same network takes a quarter (float32) or a fifth (bfloat16) less time still on one core of an
AMD EPYC with AVX-512. But tracing and conversion take seconds at each start, and it has threads of its own.
"""

from __future__ import annotations

import functools
import logging
import math
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
