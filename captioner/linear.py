"""Linear layers at the speed that a CPU has.

On a CPU torch gives products of float32 matrices to MKL. On AMD processors that is half as fast as oneDNN,
which torch has as well and uses for its other number types; for the few rows of a decode step it is up to
five times slower. The operator called here is the one that ``torch.compile`` puts in place of linear layers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Linear", "linear"]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x (…, in)``, ``weight (out, in)``, ``bias (out,)`` -> ``(…, out)``, as ``F.linear``."""
    if (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_grad_enabled()  # the operator has no derivative
        and not torch.is_autocast_enabled("cpu")  # nor does it know autocast's number type
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # a build without oneDNN lacks it
    ):
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return out
    return F.linear(x, weight, bias)


class Linear(nn.Linear):
    """``nn.Linear`` by :func:`linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)
