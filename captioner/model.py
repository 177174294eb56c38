"""The captioning model: image encoder -> region tokens -> text decoder that cross-attends to them.

One architecture serves every checkpoint of this shape (our own, BLIP, ViT-GPT2, Florence-2); configuration
says what differs. ``B`` images, ``R`` region tokens, ``C`` channels of the backbone, ``D`` of a region token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from captioner.decoder import DecoderConfig, TextDecoder
from captioner.question import QuestionConfig, QuestionEncoder
from captioner.regions import RegionConfig, RegionEncoder, Tags, TagScores, region_colours
from captioner.vision import BackboneConfig, build_backbone

__all__ = [
    "CaptionModel",
    "EncodedImages",
    "ModelConfig",
    "model_without_weights",
]

CPU_IMAGES = 2
"""Images in float32 that pass at once through a backbone's stages with large maps on a CPU; in bfloat16,
twice as many. More of them outgrow its cache, and come in blocks that are fresh memory each time: of 32 at
once, each takes three times as long.
"""

CPU_GROUP = 4
"""So many times as many pass at once through the other stages and the region encoder, since the products of
few small maps are too small to be fast.
"""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything that :class:`CaptionModel` needs to be built, as it stands in ``config.json``.

    Between backbone and decoder there is a region encoder, a question encoder, or nothing.
    """

    backbone: BackboneConfig
    regions: RegionConfig | None
    decoder: DecoderConfig
    question: QuestionConfig | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelConfig:
        """The inverse of :meth:`to_dict`. Raises TypeError or KeyError where keys are missing or unknown."""
        unknown = set(data) - {field.name for field in fields(cls)}
        if unknown:
            raise TypeError(f"unknown keys {sorted(unknown)}")
        regions, question = data["regions"], data.get("question")
        return cls(
            backbone=BackboneConfig(**data["backbone"]),
            regions=None if regions is None else RegionConfig(**regions),
            decoder=DecoderConfig(**data["decoder"]),
            question=None if question is None else QuestionConfig.from_dict(question),
        )


@dataclass(frozen=True)
class EncodedImages:
    """Images after the encoder, once for any number of decoding passes.

    Attributes:
        region_tokens: ``(B, R, D)``: ``prefix`` tokens of the whole photo (a ViT's class token, the mean of
            all features), the grid row by row, then tag tokens or those of the question.
        grid: rows and columns of the grid.
        prefix: how many tokens come before the grid.
        tags: what the tag tokens stand for; None for a model without.
    """

    region_tokens: Tensor
    grid: tuple[int, int]
    prefix: int
    tags: Tags | None = None

    def grid_slice(self) -> slice:
        """Where the grid's tokens stand among the region tokens."""
        return slice(self.prefix, self.prefix + self.grid[0] * self.grid[1])

    @classmethod
    def join(cls, parts: Sequence[EncodedImages]) -> EncodedImages:
        """All images of several, one at least."""
        if len(parts) == 1:
            return parts[0]
        tokens = torch.cat([part.region_tokens for part in parts])
        tags = [part.tags for part in parts if part.tags is not None]
        return replace(parts[0], region_tokens=tokens, tags=Tags.stack(tags) if tags else None)

    def first(self, count: int) -> EncodedImages:
        """The first images, in memory of their own."""
        tags = None if self.tags is None else Tags(*(tensor[:count].clone() for tensor in self.tags))
        return replace(self, region_tokens=self.region_tokens[:count].clone(), tags=tags)


class CaptionModel(nn.Module):
    """Backbone, region encoder and text decoder, built with random weights from a configuration."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = build_backbone(config.backbone)
        self.regions = RegionEncoder(config.backbone.width, config.regions) if config.regions else None
        self.question = QuestionEncoder(config.backbone.width, config.question) if config.question else None
        self.decoder = TextDecoder(config.decoder)
        for part in (self.regions, self.question, self.decoder):
            if part is not None:
                part.apply(_initialise)

    def encode(
        self,
        x: Tensor,
        *,
        detail: str = "",
        start: int = 0,
        colours: Tensor | None = None,
        tags: Tags | None = None,
    ) -> EncodedImages:
        """Normalised pixel values ``(B, 3, H, W)`` -> region tokens.

        A model with a question encoder asks for captions of a ``detail``, by default of its first one; others
        take none. The rest is for training: ``x`` is then what the backbone's stages below ``start`` gave,
        ``colours`` are those of :func:`region_colours`, and the tag tokens are those of ``tags`` instead of
        what the features say.
        """
        features = self.backbone.run(x, start) if start or self.training else self.features(x)
        regions = self.feature_map(features)
        grid = (regions.shape[2], regions.shape[3])
        if self.regions is not None:
            if colours is None and self.regions.shades:
                colours = region_colours(x, grid, self.regions.shades)
            if tags is None and self.regions.tags is not None:
                tags = self.regions.tags.find(regions, colours)
            words = self.decoder.word_embedding
            return EncodedImages(self.regions(regions, words, colours=colours, tags=tags), grid, 0, tags)
        if self.question is not None:
            tokens = self.question(regions, self.decoder.word_embedding, detail=detail)
            return EncodedImages(tokens, grid, self.question.prefix)
        if features.ndim == 4:
            features = features.flatten(2).transpose(1, 2)
        return EncodedImages(features, grid, self.backbone.prefix)

    def tag_scores(self, encoded: EncodedImages) -> list[TagScores]:
        """What the tags of each image say; nothing where the model has none."""
        if encoded.tags is None or self.regions is None or self.regions.tags is None:
            return [TagScores({}, {})] * len(encoded.region_tokens)
        return self.regions.tags.by_word(encoded.tags)

    def photos_at_once(self, device: torch.device, dtype: torch.dtype) -> int | None:
        """How many photos a CPU encodes fastest together; None on other devices, for as many as there are."""
        if device.type != "cpu":
            return None
        looks = 2 if self.config.backbone.mirror else 1
        group = 1 if self.backbone.large_maps is None else CPU_GROUP
        return max(1, group * _cpu_images(dtype) // looks)

    def features(self, x: Tensor) -> Tensor:
        """Normalised pixel values ``(B, 3, H, W)`` -> what the backbone gives.

        Where its configuration says ``mirror``, that is the mean of what it sees in a photo and, turned back,
        in its mirror image (test-time augmentation, Krizhevsky et al. 2012), at the price of a second look.
        """
        if not self.config.backbone.mirror:
            return self._run(x)
        photos, mirrored = self._run(torch.cat([x, x.flip(3)])).chunk(2)
        return (photos + mirrored.flip(3)) / 2

    def _run(self, x: Tensor) -> Tensor:
        """The backbone; on a CPU with fewer images at once where its maps are large."""
        large = self.backbone.large_maps
        if x.device.type != "cpu" or large is None:
            return self.backbone.run(x)
        maps = [self.backbone.run(part, 0, large) for part in torch.split(x, _cpu_images(x.dtype))]
        return self.backbone.run(torch.cat(maps), large)

    def feature_map(self, features: Tensor) -> Tensor:
        """What the backbone gives, ``(B, C, h, w)`` or ``(B, tokens, C)``, as a map, without class tokens."""
        if features.ndim == 4:
            return features
        patches = features[:, self.backbone.prefix :].transpose(1, 2)
        side = round(patches.shape[2] ** 0.5)
        return patches.reshape(len(patches), -1, side, side)


def _cpu_images(dtype: torch.dtype) -> int:
    return CPU_IMAGES * torch.float32.itemsize // dtype.itemsize


def model_without_weights(config: ModelConfig) -> CaptionModel:
    """A model on the meta device, which takes its weights by ``load_state_dict(…, assign=True)``."""
    with torch.device("meta"), _Unfilled():
        return CaptionModel(config)


class _Unfilled(TorchFunctionMode):
    """Random initialisation does nothing. On the meta device it would first import torch's compiler, which
    takes as long as importing all the rest of torch."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == nn.init.__name__:
            return kwargs["tensor"]
        return func(*args, **kwargs)


def _initialise(module: nn.Module) -> None:
    """GPT-2's initialisation; residual branches are not scaled, since the model is shallow."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
