"""Feature map and a question about the photo -> region tokens, by a text encoder over both (Florence-2).

Photo and question are one sequence to the encoder, so what it makes of a photo depends on what is asked. The
architecture is that of Florence-2 (Xiao et al. 2024): a BART encoder (Lewis et al. 2020) behind the vision
tower. ``B`` images, ``C`` channels of the backbone, ``D`` of a region token, ``Q`` tokens of the question.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from captioner.decoder import MLP, SelfAttention
from captioner.linear import Activation, Linear

__all__ = ["QuestionConfig", "QuestionEncoder"]


@dataclass(frozen=True, kw_only=True)
class QuestionConfig:
    """The encoder of photo and question.

    Attributes:
        width: channels of a region token, and of a word embedding.
        layers: blocks of self-attention and MLP.
        heads: attention heads of each.
        mlp_width: hidden units of each MLP.
        max_positions: tokens of photo and question together at most.
        max_grid: rows and columns of the feature map at most.
        frames: photos of one sequence for which there are positions; only the first is used.
        token_ids: by the name of each detail that can be asked for, the question's tokens; the first is the
            default.
        embedding_scale: what word embeddings are multiplied by.
        activation: of each MLP.
    """

    width: int
    layers: int
    heads: int
    mlp_width: int
    max_positions: int
    max_grid: int
    frames: int
    token_ids: Mapping[str, tuple[int, ...]]
    embedding_scale: float = 1.0
    activation: Activation = "gelu"

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> QuestionConfig:
        """From what JSON makes of its fields. Raises TypeError or KeyError as for missing or unknown ones."""
        return cls(**{**data, "token_ids": {name: tuple(ids) for name, ids in data["token_ids"].items()}})


class QuestionLayer(nn.Module):
    """A transformer layer with its norms after each sublayer."""

    def __init__(self, config: QuestionConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(config.width, config.heads)
        self.norm1 = nn.LayerNorm(config.width)
        self.mlp = MLP(config.width, config.mlp_width, config.activation)
        self.norm2 = nn.LayerNorm(config.width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x, causal=False))
        out: Tensor = self.norm2(x + self.mlp(x))
        return out


class QuestionEncoder(nn.Module):
    """The mean of the photo's features, then each of them, then the question: encoded together.

    Attributes:
        prefix: tokens before the grid's: the mean.
    """

    prefix = 1

    def __init__(self, features: int, config: QuestionConfig) -> None:
        super().__init__()
        self.config = config
        self.rows = nn.Embedding(config.max_grid, features // 2)
        self.columns = nn.Embedding(config.max_grid, features - features // 2)
        self.register_buffer("frames", torch.zeros(config.frames, features))
        self.frames: Tensor
        self.project = Linear(features, config.width, bias=False)
        self.project_norm = nn.LayerNorm(config.width)
        self.positions = nn.Embedding(config.max_positions, config.width)
        self.norm = nn.LayerNorm(config.width)
        layers = nn.ModuleList(QuestionLayer(config) for _ in range(config.layers))
        self.layers = cast("list[QuestionLayer]", layers)  # a ModuleList has no type for what it holds
        for name, ids in config.token_ids.items():  # with values also where weights have none yet
            self.register_buffer(f"ask_{name}", torch.tensor(ids, device="cpu"), persistent=False)

    def forward(self, features: Tensor, word_embedding: nn.Embedding, *, detail: str = "") -> Tensor:
        """``(B, C, h, w)`` -> ``(B, 1 + h*w + Q, D)``; ``detail`` is one of the configuration's, or empty."""
        words = word_embedding(self.token_ids(detail)) * self.config.embedding_scale
        tokens = torch.cat([self.photo_tokens(features), words.expand(len(features), -1, -1)], dim=1)
        tokens = self.norm(tokens + self.positions.weight[: tokens.shape[1]])
        for layer in self.layers:
            tokens = layer(tokens)
        final: Tensor = tokens
        return final

    def token_ids(self, detail: str = "") -> Tensor:
        """The question ``(Q,)`` of a detail, by default the first one's."""
        question: Tensor = getattr(self, f"ask_{detail or next(iter(self.config.token_ids))}")
        return question

    def photo_tokens(self, features: Tensor) -> Tensor:
        """``(B, C, h, w)`` -> ``(B, 1 + h*w, D)``."""
        height, width = features.shape[-2:]
        across, down = self.columns.weight[None, :width], self.rows.weight[:height, None]
        places = torch.cat([across.expand(height, -1, -1), down.expand(-1, width, -1)], dim=-1)  # (h, w, C)
        tokens = features.flatten(2).transpose(1, 2) + places.flatten(0, 1) + self.frames[0]
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], dim=1)
        out: Tensor = self.project_norm(self.project(tokens))
        return out
