"""The text decoder: self-attention over the words so far, cross-attention to the region tokens, MLP.

Queries come from the text; keys and values both come from the region tokens (Vaswani et al. 2017, §3.2.3) and
are computed once per image. ``B`` images, ``N`` rows of text per image (beams, or captions in training),
``T`` tokens, ``R`` region tokens, ``D`` channels, ``d`` channels of a head, ``V`` words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captioner.linear import ACTIVATIONS, Activation, Linear, PackedWeights, attention, linear

__all__ = ["CrossCache", "DecoderConfig", "KVCache", "TextDecoder"]

Norm = Literal["pre", "post"]


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The text decoder; defaults are our own model's.

    Attributes:
        vocab_size: words, special tokens included.
        width: channels of a text token.
        layers: blocks of self-attention, cross-attention and MLP.
        heads: attention heads; ``width / heads`` channels each.
        mlp_width: hidden units of each MLP.
        max_positions: longest sequence in tokens.
        region_width: channels of a region token.
        norm: layer norm before each sublayer and at the end ("pre", GPT-2) or after each ("post", BERT).
        padding_id: a token without a position, for which the table of positions begins with a row (RoBERTa).
        embedding_scale: what word embeddings are multiplied by, where they go in and not where they score.
        embedding_norm: layer norm after the embeddings (BERT, BART).
        head_transform: dense layer, activation and layer norm before the output (BERT).
        activation: of each MLP and of ``head_transform``: "gelu", its approximations "gelu_tanh" (GPT-2) and
            "quick_gelu", "relu" or "silu".
        output_bias: a bias for each word of the output.
        eps: epsilon of the layer norms.
        dropout: probability with which training drops a channel.

    Raises:
        ValueError: a choice is unknown.
    """

    vocab_size: int
    width: int
    layers: int
    heads: int
    mlp_width: int
    max_positions: int
    region_width: int
    norm: Norm = "pre"
    padding_id: int | None = None
    embedding_scale: float = 1.0
    embedding_norm: bool = False
    head_transform: bool = False
    activation: Activation = "gelu"
    output_bias: bool = True
    eps: float = 1e-5
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.norm not in get_args(Norm) or self.activation not in get_args(Activation):
            raise ValueError(f"unknown norm {self.norm!r} or activation {self.activation!r}")


class KVCache:
    """Keys and values of the text so far, in buffers whose shapes never change: ``(B, heads, slots, d)``.

    The rows of an image share its buffer. The prompt's slots come first and every row sees them; each later
    token takes one slot for each row, and a row sees those of its own history. So a beam that goes on from
    another one takes over what that one sees, and no key or value is ever copied.

    The cache is an argument of the decoder, never its state, so threads can share one model.

    Args:
        config: the decoder's.
        images: ``B``.
        rows: ``N`` rows of text of each image after the prompt.
        prompt: tokens that all rows begin with.
        length: tokens of a row that fit, the prompt's included.
        like: gives device and dtype.

    Attributes:
        tokens: of each row so far.
        mask: ``(B, N, slots)``, what attention adds to its scores: 0 where a row sees a slot, else -inf.
    """

    ROUND = 8
    """Slots that attention reads are a multiple of it, as the fused kernels of a GPU want their masks."""

    def __init__(
        self, config: DecoderConfig, *, images: int, rows: int, prompt: int, length: int, like: Tensor
    ) -> None:
        slots = self._rounded(prompt + (length - prompt) * rows)
        shape = (config.layers, 2, images, config.heads, slots, config.width // config.heads)
        self.buffer = like.new_zeros(shape)
        self.mask = like.new_full((images, rows, slots), -torch.inf)
        self.mask[..., :prompt].fill_(0)
        self.itself = like.new_full((rows, rows), -torch.inf).fill_diagonal_(0)
        self.prompt, self.tokens = prompt, 0

    def _rounded(self, slots: int) -> int:
        return -(-slots // self.ROUND) * self.ROUND

    def place(self, rows: int, count: int) -> tuple[slice, int, Tensor]:
        """Give slots to tokens: the prompt's all at once (one row), then one token for each row.

        Returns:
            The slots of the tokens, how many slots attention reads, and its mask, which broadcasts to
            ``(B, heads, rows * count, slots read)``.
        """
        start, self.tokens = self.tokens, self.tokens + count
        if start < self.prompt:
            assert (rows, start, count) == (1, 0, self.prompt), "the whole prompt, as one row"
            causal = self.mask.new_full((count, count), -torch.inf).triu_(1)
            return slice(0, count), count, causal
        assert (rows, count) == (self.mask.shape[1], 1), "one token for each row"
        first = self.prompt + (start - self.prompt) * rows
        taken, read = slice(first, first + rows), self._rounded(first + rows)
        self.mask[..., taken] = self.itself
        return taken, read, self.mask[:, None, :, :read]

    def update(self, layer: int, slots: slice, read: int, keys_values: Tensor) -> tuple[Tensor, Tensor]:
        """Write keys and values ``(2, B, heads, n, d)``; return those of all the slots to read."""
        self.buffer[layer, :, :, :, slots] = keys_values
        keys, values = self.buffer[layer, :, :, :, :read]
        return keys, values

    def follow(self, parents: Tensor) -> None:
        """Row ``n`` of image ``b`` goes on from its image's row ``parents[b, n]``."""
        self.mask = self.mask.gather(1, parents[..., None].expand_as(self.mask))

    def keep(self, images: Tensor) -> None:
        """Keep the given images ``(B',)`` alone."""
        self.buffer = self.buffer.index_select(2, images)
        self.mask = self.mask.index_select(0, images)


CrossCache = list[tuple[Tensor, Tensor]]
"""Each layer's keys and values of the region tokens, ``(B, heads, R, d)``."""


class SelfAttention(nn.Module):
    """Self-attention with fused projections; causal over text, unmasked over region tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"{heads} heads do not divide a width of {width}")
        self.heads = heads
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)

    def project(self, x: Tensor) -> Tensor:
        """``(rows, T, D)`` -> queries, keys and values ``(3, rows, heads, T, d)``."""
        out: Tensor = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return out

    def forward(self, x: Tensor, *, causal: bool) -> Tensor:
        q, k, v = self.project(x)
        if not causal:
            return self.merge(attention(q, k, v))
        return self.merge(F.scaled_dot_product_attention(q, k, v, is_causal=True))

    def cached(self, x: Tensor, cache: KVCache, layer: int, slots: slice, read: int, mask: Tensor) -> Tensor:
        projected = self.project(x)
        keys, values = cache.update(layer, slots, read, projected[1:])
        return self.merge(F.scaled_dot_product_attention(projected[0], keys, values, attn_mask=mask))

    def merge(self, attended: Tensor) -> Tensor:
        out: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return out


class CrossAttention(nn.Module):
    """Queries from the text, keys and values from the region tokens; nothing of the image is tiled."""

    def __init__(self, width: int, region_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = Linear(width, width)
        self.kv = Linear(region_width, 2 * width)
        self.out = Linear(width, width)

    def keys_values(self, region_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, R, D)`` -> keys and values ``(B, heads, R, d)``."""
        k, v = self.kv(region_tokens).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return k, v

    def forward(
        self, x: Tensor, keys: Tensor, values: Tensor, *, weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """``x (B, N*T, D)`` -> the same shape, and on request the weights ``(B, N*T, R)``, mean over heads.

        The rows of text of one image are query rows against that image's one set of keys.
        """
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, N*T, d)
        if not weights:
            attended = attention(q, keys, values)
            return self.out(attended.transpose(1, 2).flatten(2)), None
        scaled = q * q.shape[-1] ** -0.5  # before the product, which could leave float16's range
        probs = (scaled @ keys.transpose(-1, -2)).float().softmax(-1)
        attended = probs.to(values.dtype) @ values
        return self.out(attended.transpose(1, 2).flatten(2)), probs.mean(1)


class _Activated(nn.Module):
    """An activation by its name."""

    def __init__(self, activation: Activation) -> None:
        super().__init__()
        self.function = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class MLP(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, width: int, hidden: int, activation: Activation = "gelu") -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, width)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.fc1(x, activation=self.activation))
        return out


class DecoderBlock(nn.Module):
    """Self-attention over the text, cross-attention to the regions, MLP; pre- or post-norm."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.pre = config.norm == "pre"
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(config.width, eps=config.eps) for _ in range(3))
        self.self_attention = SelfAttention(config.width, config.heads)
        self.cross_attention = CrossAttention(config.width, config.region_width, config.heads)
        self.mlp = MLP(config.width, config.mlp_width, config.activation)
        self.dropout = nn.Dropout(config.dropout)

    def residual(self, x: Tensor, update: Tensor, norm: nn.LayerNorm) -> Tensor:
        x = x + (self.dropout(update) if self.training else update)  # a decode step has time for no idle call
        return x if self.pre else norm(x)


class TextDecoder(nn.Module):
    """Words so far and region tokens -> hidden states, from which :meth:`logits` scores the next word."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.word_embedding = nn.Embedding(config.vocab_size, config.width)
        unplaced = 0 if config.padding_id is None else 1
        self.position_embedding = nn.Embedding(unplaced + config.max_positions, config.width)
        self.embedding_norm = nn.LayerNorm(config.width, eps=config.eps) if config.embedding_norm else None
        self.dropout = nn.Dropout(config.dropout)
        blocks = nn.ModuleList(DecoderBlock(config) for _ in range(config.layers))
        self.blocks = cast("list[DecoderBlock]", blocks)  # a ModuleList has no type for what it holds
        self.final_norm = nn.LayerNorm(config.width, eps=config.eps) if config.norm == "pre" else None
        self.transform = (
            nn.Sequential(
                Linear(config.width, config.width),
                _Activated(config.activation),
                nn.LayerNorm(config.width, eps=config.eps),
            )
            if config.head_transform
            else None
        )
        self.output_bias = nn.Parameter(torch.zeros(config.vocab_size)) if config.output_bias else None
        self._packed_output = PackedWeights()

    def cross_cache(self, region_tokens: Tensor) -> CrossCache:
        """Each layer's keys and values of the region tokens ``(B, R, D)``; computed once per image."""
        return [block.cross_attention.keys_values(region_tokens) for block in self.blocks]

    def forward(
        self,
        input_ids: Tensor,
        cross: CrossCache,
        *,
        cache: KVCache | None = None,
        weights: bool = False,
    ) -> tuple[Tensor, list[Tensor]]:
        """Hidden states of the given tokens.

        Args:
            input_ids: ``(B, N, T)`` integers; padding may only stand at the end of a row.
            cross: from :meth:`cross_cache`, for the same ``B`` images.
            cache: keys and values of the rows' earlier tokens; these tokens' are added to it. It takes the
                prompt as one row of each image, then one token for each of its ``N`` rows at a time.
            weights: also return each layer's cross-attention ``(B, N, T, R)`` (float32, mean over heads),
                which switches the fused kernels off.
        """
        batch, rows, length = input_ids.shape
        start = 0 if cache is None else cache.tokens
        x = self.word_embedding(input_ids)
        if self.config.embedding_scale != 1:
            x = x * self.config.embedding_scale
        x = x + self._positions(input_ids, start)
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        x = self.dropout(x).flatten(1, 2)  # (B, N*T, D)
        if cache is not None:
            places = cache.place(rows, length)
        maps = []
        for layer, block in enumerate(self.blocks):
            y = block.norm1(x) if block.pre else x
            if cache is None:
                y = block.self_attention(y.view(batch * rows, length, -1), causal=True).view_as(x)
            else:
                y = block.self_attention.cached(y, cache, layer, *places)
            x = block.residual(x, y, block.norm1)
            y = block.norm2(x) if block.pre else x
            y, attention = block.cross_attention(y, *cross[layer], weights=weights)
            x = block.residual(x, y, block.norm2)
            x = block.residual(x, block.mlp(block.norm3(x) if block.pre else x), block.norm3)
            if attention is not None:
                maps.append(attention.view(batch, rows, length, -1))
        if self.final_norm is not None:
            x = self.final_norm(x)
        return x.view(batch, rows, length, -1), maps

    def _positions(self, input_ids: Tensor, start: int) -> Tensor:
        """What is added to word embeddings, which broadcasts to ``(B, N, T, D)``."""
        table, unplaced = self.position_embedding.weight, self.config.padding_id
        if unplaced is None:
            return table[start : start + input_ids.shape[-1]]
        placed = table[1:][start : start + input_ids.shape[-1]]
        return torch.where((input_ids == unplaced)[..., None], table[0], placed)

    def logits(self, hidden: Tensor) -> Tensor:
        """``(…, D)`` -> ``(…, V)``; the output matrix is the word embedding's (Press and Wolf 2017)."""
        if self.transform is not None:
            hidden = self.transform(hidden)
        return linear(hidden, self.word_embedding.weight, self.output_bias, packed=self._packed_output)
