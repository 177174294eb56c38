"""Feature map -> region tokens: the photo's regions with their colours, and tags that say what is in it.

``B`` images, ``C`` channels of the backbone, ``D`` of a region token, a grid of ``h`` rows and ``w`` columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captioner.decoder import MLP, SelfAttention
from captioner.linear import Linear

__all__ = [
    "RegionConfig",
    "RegionEncoder",
    "TagScores",
    "TagTokens",
    "Tags",
    "photo_features",
    "region_colours",
]


@dataclass(frozen=True, kw_only=True)
class RegionConfig:
    """How backbone features become region tokens; None in :class:`ModelConfig` passes them on as they are.

    Attributes:
        width: channels of a region token.
        layers: self-attention layers over the region tokens.
        heads: attention heads of each.
        mlp_width: hidden units of each MLP.
        dropout: probability with which training drops a channel.
        classes: ImageNet classes that the backbone's classifier knows; 0 for no tag tokens.
        words: caption words that the word head knows; 0 for no word tags. They need ``classes``.
        colours: shades of red, green and blue alike that a region's colours are told apart by; 0 for none.
    """

    width: int
    layers: int
    heads: int
    mlp_width: int
    dropout: float = 0.0
    classes: int = 0
    words: int = 0
    colours: int = 0


class RegionLayer(nn.Module):
    """A pre-norm transformer layer over region tokens."""

    def __init__(self, config: RegionConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width)
        self.attention = SelfAttention(config.width, config.heads)
        self.norm2 = nn.LayerNorm(config.width)
        self.mlp = MLP(config.width, config.mlp_width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x), causal=False))
        out: Tensor = x + self.dropout(self.mlp(self.norm2(x)))
        return out


class Tags(NamedTuple):
    """What a photo's tag tokens stand for, and how sure that is, 0 to 1; ``(B, n)`` alike.

    A tag is a class of the backbone's classifier, or, counted on from there, a word of the word head.
    """

    tags: Tensor
    scores: Tensor

    def join(self, others: Tags) -> Tags:
        """These tags of each photo, then the others."""
        return Tags(
            torch.cat([self.tags, others.tags], dim=1), torch.cat([self.scores, others.scores], dim=1)
        )

    def pick(self, photos: list[int]) -> Tags:
        """Those of some photos."""
        return Tags(self.tags[photos], self.scores[photos])

    @classmethod
    def stack(cls, parts: Sequence[Tags]) -> Tags:
        """Those of all photos of several."""
        return cls(torch.cat([part.tags for part in parts]), torch.cat([part.scores for part in parts]))

    def to(self, device: torch.device | str) -> Tags:
        """The same on a device."""
        return Tags(self.tags.to(device), self.scores.to(device))


def photo_features(features: Tensor, colours: Tensor | None) -> Tensor:
    """What the word head is told of a photo, ``(B, C)``: its mean feature; ``(B, C + K)`` with its colours.

    Of the colours' shares the square roots, by which a small red thing counts for more.
    """
    mean = features.mean((2, 3))
    if colours is None:
        return mean
    return torch.cat([mean, colours.mean((2, 3)).sqrt().to(mean)], dim=1)


def region_colours(pixel_values: Tensor, grid: tuple[int, int], shades: int) -> Tensor:
    """What colours each region has, which the last stage of a backbone no longer tells.

    A histogram over ``shades`` evenly spaced values of red, green and blue each, of the photo at a quarter of
    its size. A pixel between such values counts for those around it, by trilinear weights.

    Args:
        pixel_values: ``(B, 3, H, W)``, -1 for black and 1 for white.
        grid: rows and columns of regions.
        shades: of each of the three; the histogram has ``K = shades ** 3`` colours.

    Returns:
        ``(B, K, rows, columns)``, which sums to 1 over the colours.
    """
    small = F.avg_pool2d(pixel_values, 4)
    place = ((small + 1) * ((shades - 1) / 2)).clamp(0, shades - 1)
    values = torch.arange(shades, device=place.device)[:, None, None]
    red, green, blue = (1 - (place[:, :, None] - values).abs()).clamp(min=0).unbind(1)
    shares = red[:, :, None, None] * green[:, None, :, None] * blue[:, None, None, :]
    return F.adaptive_avg_pool2d(shares.flatten(1, 3), grid)


class TagScores(NamedTuple):
    """One photo's tags by the token id of their word, with the best score of each, 0 to 1.

    Attributes:
        words: of word tags.
        classes: of class tags.
    """

    words: dict[int, float]
    classes: dict[int, float]


class TagTokens(nn.Module):
    """The backbone's own ImageNet classes as extra region tokens (after Oscar, Li et al. 2020), and words.

    Classes are scored over the whole photo and over its four overlapping quarters, so that a small thing in
    a corner has its say. A tag token is the embedding of the class's head word ("tabby cat" -> "cat"), which
    is the decoder's own embedding of it, plus what training learned of the class.

    Word tags do the same for words that captions say and no class names ("kitchen", "running", "red"): those
    that the word head, a linear regression on the mean feature, finds most captions of the photo to say.
    """

    WHOLE, QUARTER = 4, 1  # class tags from the whole photo and from each quarter
    CLASSES = WHOLE + 4 * QUARTER
    WORDS = 12

    def __init__(self, features: int, config: RegionConfig) -> None:
        super().__init__()
        self.classes, tags = config.classes, config.classes + config.words
        self.classifier = Linear(features, config.classes)
        self.class_embedding = nn.Embedding(tags, config.width)
        self.score = nn.Parameter(torch.zeros(config.width))
        self.register_buffer("head_words", torch.zeros(tags, dtype=torch.int64))
        self.head_words: Tensor
        self.word_head = Linear(features + config.colours**3, config.words) if config.words else None
        if self.word_head is not None:
            self.word_score = nn.Parameter(torch.zeros(config.width))
            self.register_buffer("word_prior", torch.zeros(config.words))
            self.word_prior: Tensor

    def find(self, features: Tensor, colours: Tensor | None = None) -> Tags:
        """Feature map ``(B, C, h, w)`` -> the photo's class tags, then its word tags if there are any."""
        classes = self.find_classes(features)
        if self.word_head is None:
            return classes
        return classes.join(self.likely_words(self.word_head(photo_features(features, colours))))

    def find_classes(self, features: Tensor) -> Tags:
        """Feature map ``(B, C, h, w)`` -> the 8 likeliest classes of the whole and of its quarters."""
        size = tuple((2 * side + 1) // 3 for side in features.shape[-2:])
        stride = tuple(max(1, side - part) for side, part in zip(features.shape[-2:], size, strict=True))
        quarters = F.avg_pool2d(features, size, stride).flatten(2).transpose(1, 2)  # (B, 4, C)
        whole = features.mean((2, 3))
        top = self.classifier(whole).log_softmax(-1).topk(self.WHOLE)
        parts = self.classifier(quarters).log_softmax(-1).topk(self.QUARTER)
        classes = torch.cat([top.indices, parts.indices.flatten(1)], dim=1)
        return Tags(classes, torch.cat([top.values, parts.values.flatten(1)], dim=1).exp())

    def likely_words(self, shares: Tensor) -> Tags:
        """The share of a photo's captions that say each word, ``(B, words)`` -> its 12 word tags.

        They are those with the largest shares, less half of what photos in general have: that is no news.
        """
        words = (shares - 0.5 * self.word_prior).topk(min(self.WORDS, shares.shape[1])).indices
        return Tags(words + self.classes, shares.gather(1, words).clamp(min=0))

    def by_word(self, tags: Tags) -> list[TagScores]:
        """The tags of each photo by their words."""
        found = []
        words, is_class = self.head_words[tags.tags].tolist(), (tags.tags < self.classes).tolist()
        for photo in zip(words, is_class, tags.scores.tolist(), strict=True):
            scores = TagScores(words={}, classes={})
            for word, of_class, score in zip(*photo, strict=True):
                kind = scores.classes if of_class else scores.words
                kind[word] = max(score, kind.get(word, 0.0))
            found.append(scores)
        return found

    def forward(self, tags: Tags, word_embedding: nn.Embedding) -> Tensor:
        """Tags ``(B, n)`` -> tag tokens ``(B, n, D)``."""
        words = word_embedding(self.head_words[tags.tags])
        score: Tensor = self.score
        if self.word_head is not None:
            score = torch.where((tags.tags < self.classes)[..., None], score, self.word_score)
        tokens: Tensor = words + self.class_embedding(tags.tags) + tags.scores[..., None] * score
        return tokens


class RegionEncoder(nn.Module):
    """Feature map -> region tokens: projection, 2-D position, tag tokens, self-attention over all of them.

    Attributes:
        token_dropout: share of the tokens that a training step leaves out, for it to set (PatchDropout, Liu
            et al. 2023, but the same tokens of all its photos).
    """

    MAX_GRID = 32

    def __init__(self, features: int, config: RegionConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features)
        self.project = Linear(features, config.width)
        self.shades = config.colours
        self.project_colours = Linear(config.colours**3, config.width) if config.colours else None
        self.rows = nn.Embedding(self.MAX_GRID, config.width)
        self.columns = nn.Embedding(self.MAX_GRID, config.width)
        self.tags = TagTokens(features, config) if config.classes else None
        self.token_dropout = 0.0
        self.dropout = nn.Dropout(config.dropout)
        layers = nn.ModuleList(RegionLayer(config) for _ in range(config.layers))
        self.layers = cast("list[RegionLayer]", layers)  # a ModuleList has no type for what it holds
        self.final_norm = nn.LayerNorm(config.width)

    def forward(
        self,
        features: Tensor,
        word_embedding: nn.Embedding,
        *,
        colours: Tensor | None = None,
        tags: Tags | None = None,
    ) -> Tensor:
        """``(B, C, h, w)`` -> ``(B, h*w + tags, D)``.

        ``colours (B, K, h, w)`` are those of :func:`region_colours` where the configuration asks for them;
        ``tags`` are found in the features if not given.
        """
        height, width = features.shape[-2:]
        position = self.rows.weight[:height, None] + self.columns.weight[None, :width]  # (h, w, D)
        tokens = self.project(self.norm(features.flatten(2).transpose(1, 2))) + position.flatten(0, 1)
        if self.project_colours is not None:
            assert colours is not None
            tokens = tokens + self.project_colours(colours.to(features).flatten(2).transpose(1, 2))
        if self.tags is not None:
            tags = self.tags.find(features, colours) if tags is None else tags
            tokens = torch.cat([tokens, self.tags(tags, word_embedding)], dim=1)
        return self._refine(tokens)

    def tags_alone(self, tags: Tags, word_embedding: nn.Embedding) -> Tensor:
        """Tags ``(B, n)`` -> ``(B, n, D)``, as of photos of which nothing else is known."""
        assert self.tags is not None
        return self._refine(self.tags(tags, word_embedding))

    def _refine(self, tokens: Tensor) -> Tensor:
        """What the tokens become together; in training without those that are to be left out."""
        if self.training and self.token_dropout:
            kept = max(1, round(tokens.shape[1] * (1 - self.token_dropout)))
            tokens = tokens[:, torch.randperm(tokens.shape[1], device=tokens.device)[:kept]]
        tokens = self.dropout(tokens)
        for layer in self.layers:
            tokens = layer(tokens)
        final: Tensor = self.final_norm(tokens)
        return final
