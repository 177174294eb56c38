"""Where a decoder looked that reads photo and text in one sequence: the attention to the photo's tokens.

A fused kernel keeps no attention weights, so a second view of the network, of the same memory, computes them
step by step ("eager"). Each generated token has the weights of the query that predicted it: the mean over all
heads and the middle half of the layers, where such models look at what they are about to say.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Weights", "eager_view", "recorded"]

_RECORDER: ContextVar[Weights | None] = ContextVar("recorder", default=None)


class Weights:
    """Attention weights of a batch as they come, mean over heads.

    Attributes:
        steps: for each layer, and for each step in it, ``(B, keys)`` of the last query, on the CPU.
    """

    def __init__(self) -> None:
        self.steps: dict[int, list[Tensor]] = {}

    def add(self, layer: int, weights: Tensor) -> None:
        """One layer's weights ``(B, heads, queries, keys)``."""
        self.steps.setdefault(layer, []).append(weights[:, :, -1].float().mean(1).cpu())

    def on(self, image: int, places: Tensor, steps: int, given: int) -> Tensor:
        """The weights of one image's photo tokens, mean over the middle layers.

        Args:
            image: its row.
            places: where its photo's tokens stand ``(n,)``.
            steps: tokens of its caption.
            given: tokens before it.

        Returns:
            ``(steps, n)``.
        """
        layers = [self.steps[layer] for layer in sorted(self.steps)]
        edge = len(layers) // 4
        middle = layers[edge : len(layers) - edge]
        found = torch.zeros(steps, len(places))
        for layer in middle:
            for step in range(steps):
                row = layer[step][image]
                missing = given + step - len(row)  # keys that left the window of a layer
                inside = places >= missing
                found[step, inside] += row[places[inside] - missing]
        return found / max(1, len(middle))


def eager_view(network: nn.Module) -> Any:
    """The same weights as another network whose attention can be watched; the two share their memory."""
    shared: dict[int, Any] = {id(item): item for item in (*network.parameters(), *network.buffers())}
    view: Any = copy.deepcopy(network, shared)
    view.set_attn_implementation("eager")
    decoder = view.get_decoder()
    layers = [module for module in decoder.modules() if type(module).__name__.endswith("Attention")]
    for number, layer in enumerate(layers):
        layer.register_forward_hook(_hook(number))
    return view


@contextmanager
def recorded() -> Iterator[Weights]:
    """The weights of what views compute in this thread meanwhile."""
    weights = Weights()
    token = _RECORDER.set(weights)
    try:
        yield weights
    finally:
        _RECORDER.reset(token)


def _hook(number: int) -> Any:
    def hook(module: nn.Module, given: Any, output: Any) -> None:
        recorder = _RECORDER.get()
        if recorder is not None and isinstance(output, Sequence) and isinstance(output[1], Tensor):
            recorder.add(number, output[1])

    return hook
