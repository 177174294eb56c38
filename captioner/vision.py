"""Image backbones: pixel values -> a map or sequence of features.

A backbone is a chain of stages. ``run(x, start, stop)`` executes a part of the chain, so that training can
keep the activations below its first trainable stage and never compute them again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from captioner.convolution import SameConv2d
from captioner.linear import Linear, attention

__all__ = [
    "Backbone",
    "BackboneConfig",
    "EfficientNetLite",
    "TimmBackbone",
    "TransformersBackbone",
    "VisionTransformer",
    "build_backbone",
    "library_encoder",
]


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """What distinguishes one backbone from another.

    Attributes:
        kind: ``efficientnet_lite`` and ``vit`` are built here; ``timm`` is any convolutional network of timm,
            ``transformers`` an encoder of that library.
        image_size: side of the square input in pixels.
        width: channels of the features that come out.
        options: arguments of the backbone's class, by name.
        mirror: whether each photo is also seen in the mirror, see :meth:`CaptionModel.features`.
    """

    kind: str
    image_size: int
    width: int
    options: Mapping[str, Any] = field(default_factory=dict)
    mirror: bool = False


class Backbone(nn.Module):
    """A chain of stages from ``(B, 3, H, W)`` to ``(B, C, h, w)`` or ``(B, prefix + h*w, C)``.

    Attributes:
        num_stages: how many stages the chain has.
        prefix: tokens before the grid's (1 where there is a class token); always 0 for feature maps.
        large_maps: how many of the first stages have much larger maps than the rest; None if all are alike.
    """

    num_stages: int
    prefix: int = 0
    large_maps: int | None = None

    def run(self, x: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        raise NotImplementedError  # pragma: no cover - abstract

    def stage_parameters(self, start: int) -> list[nn.Parameter]:
        """The parameters of the stages from ``start`` on."""
        raise NotImplementedError  # pragma: no cover - abstract


class InvertedResidual(nn.Module):
    """MobileNetV2's block (Sandler et al. 2018): widen, filter each channel, narrow without an activation."""

    def __init__(self, width_in: int, width_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = width_in * expansion
        self.expand = SameConv2d(width_in, hidden, 1) if expansion > 1 else None
        self.depthwise = SameConv2d(hidden, hidden, kernel, stride, groups=hidden)
        self.project = SameConv2d(hidden, width_out, 1)
        self.skip = stride == 1 and width_in == width_out

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else self.expand(x, relu6=True)
        out: Tensor = self.project(self.depthwise(y, relu6=True), skip=x if self.skip else None)
        return out


class EfficientNetLite(Backbone):
    """EfficientNet-Lite (Tan and Le 2019; the Lite variants drop squeeze-and-excitation and use ReLU6).

    Batch normalisation is folded into the convolutions, which are therefore biased: at inference the function
    is the same, and fine-tuning with frozen statistics is too. Memory format is channels-last throughout.
    Stages: the stem, the groups of blocks in order, the head; with 320-pixel input the features are 10×10.

    Args:
        widths: channels of each group of blocks.
        repeats: blocks in each group.
        stem: channels of the stem.
        head: channels that come out.
    """

    KERNELS = (3, 3, 5, 3, 5, 5, 3)
    STRIDES = (1, 2, 2, 2, 1, 2, 1)
    large_maps = 4  # down to an eighth of the photo's sides

    def __init__(self, *, widths: list[int], repeats: list[int], stem: int, head: int) -> None:
        super().__init__()
        self.stem = SameConv2d(3, stem, 3, 2)
        groups = []
        width_in = stem
        for index, (width, count) in enumerate(zip(widths, repeats, strict=True)):
            kernel, expansion = self.KERNELS[index], 1 if index == 0 else 6
            blocks = []
            for number in range(count):
                stride = self.STRIDES[index] if number == 0 else 1
                blocks.append(InvertedResidual(width_in, width, kernel, stride, expansion))
                width_in = width
            groups.append(nn.Sequential(*blocks))
        self.groups = nn.ModuleList(groups)
        self.head = SameConv2d(width_in, head, 1)
        self.num_stages = len(groups) + 2

    def run(self, x: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        stop = self.num_stages if stop is None else stop
        x = x.contiguous(memory_format=torch.channels_last)
        for stage in range(start, stop):
            if stage == 0:
                x = self.stem(x, relu6=True)
            elif stage == self.num_stages - 1:
                x = self.head(x, relu6=True)
            else:
                x = self.groups[stage - 1](x)
        return x

    def stage_parameters(self, start: int) -> list[nn.Parameter]:
        stages = [self.stem, *self.groups, self.head]
        return [parameter for stage in stages[start:] for parameter in stage.parameters()]


class ViTBlock(nn.Module):
    """A pre-norm transformer block with fused query, key and value projections."""

    def __init__(self, width: int, heads: int, mlp_width: int, eps: float) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"{heads} heads do not divide a width of {width}")
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.fc1 = Linear(width, mlp_width)
        self.fc2 = Linear(mlp_width, width)

    def forward(self, x: Tensor) -> Tensor:  # (B, tokens, width)
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = attention(q, k, v)  # (B, heads, tokens, d)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        out: Tensor = x + self.fc2(self.fc1(self.norm2(x), activation="gelu"))
        return out


class VisionTransformer(Backbone):
    """ViT (Dosovitskiy et al. 2021) with a class token. Stages: patch embedding, blocks, final norm.

    Attributes:
        prefix: its class token, and DeiT's distillation token.

    Args:
        image_size: side of the square input in pixels; a multiple of ``patch_size``.
        patch_size: side of a patch in pixels.
        width: channels of a token.
        layers: transformer blocks.
        heads: attention heads of a block.
        mlp_width: hidden units of a block's MLP.
        eps: epsilon of the layer norms.
        distilled: whether a second token follows the class token (DeiT, Touvron et al. 2021).
    """

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        width: int,
        layers: int,
        heads: int,
        mlp_width: int,
        eps: float = 1e-6,
        distilled: bool = False,
    ) -> None:
        super().__init__()
        self.prefix = 2 if distilled else 1
        self.patch_embed = nn.Conv2d(3, width, patch_size, patch_size)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.distillation_token = nn.Parameter(torch.zeros(1, 1, width)) if distilled else None
        tokens = self.prefix + (image_size // patch_size) ** 2
        self.position = nn.Parameter(torch.randn(1, tokens, width) * 0.02)
        self.blocks = nn.ModuleList(ViTBlock(width, heads, mlp_width, eps) for _ in range(layers))
        self.norm = nn.LayerNorm(width, eps=eps)
        self.num_stages = layers + 2

    def run(self, x: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        stop = self.num_stages if stop is None else stop
        for stage in range(start, stop):
            if stage == 0:
                tokens = self.patch_embed(x).flatten(2).transpose(1, 2)
                first = [token.expand(len(x), -1, -1) for token in self._first_tokens()]
                x = torch.cat([*first, tokens], dim=1) + self.position
            elif stage == self.num_stages - 1:
                x = self.norm(x)
            else:
                x = self.blocks[stage - 1](x)
        return x

    def stage_parameters(self, start: int) -> list[nn.Parameter]:
        embedding = [*self._first_tokens(), self.position, *self.patch_embed.parameters()]
        later = [*self.blocks, self.norm][max(start - 1, 0) :]
        return (embedding if start == 0 else []) + [p for stage in later for p in stage.parameters()]

    def _first_tokens(self) -> list[nn.Parameter]:
        second = self.distillation_token
        return [self.class_token] if second is None else [self.class_token, second]


class _OneNetwork(Backbone):
    """A network of a library, as one stage, whose first output is the features."""

    num_stages = 1
    network: nn.Module

    def run(self, x: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        features: Tensor = self.network(x)[0] if start == 0 and stop != 0 else x
        return features

    def stage_parameters(self, start: int) -> list[nn.Parameter]:
        return list(self.network.parameters()) if start == 0 else []


class TimmBackbone(_OneNetwork):
    """Any convolutional network of timm, as one stage; its last feature map comes out.

    Args:
        name: timm's name of the architecture, e.g. ``resnet50`` or ``convnext_tiny``.
        pretrained: let timm fetch its weights (training only; checkpoints bring their own).
    """

    def __init__(self, *, name: str, pretrained: bool = False) -> None:
        super().__init__()
        import timm  # here, since only checkpoints with such a backbone should pay for the import

        self.network = timm.create_model(name, pretrained=pretrained, features_only=True, out_indices=(-1,))


LIBRARY_ENCODERS: Mapping[str, tuple[str, str, dict[str, Any]]] = {
    "beit": ("BeitConfig", "BeitModel", {"add_pooling_layer": False}),
    "florence_vision": ("Florence2VisionConfig", "Florence2VisionBackbone", {}),
    "swin": ("SwinConfig", "SwinModel", {"add_pooling_layer": False}),
}
"""The encoders of `transformers` that are run: by model type their classes of configuration and network, and
what the latter is made with."""


def library_encoder(config: Mapping[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """The class of an encoder of `transformers`, its configuration, and what else it is made with."""
    library: Any = import_module("transformers")  # here, since its import takes seconds
    settings, network, how = LIBRARY_ENCODERS[config["model_type"]]
    return getattr(library, network), getattr(library, settings).from_dict(dict(config)), how


class TransformersBackbone(_OneNetwork):
    """An encoder of `transformers`, whose last hidden state comes out.

    Args:
        config: its configuration there, with its ``model_type``.
        prefix: tokens before the grid's, where it gives a sequence.

    Raises:
        ValueError: it is none of :data:`LIBRARY_ENCODERS`.
    """

    def __init__(self, *, config: Mapping[str, Any], prefix: int = 0) -> None:
        super().__init__()
        if config["model_type"] not in LIBRARY_ENCODERS:
            raise ValueError(f"unknown encoder of transformers {config['model_type']!r}")
        network, settings, how = library_encoder(config)
        with torch.device("cpu"):  # on the meta device, buffers that no file holds would have no values
            self.network = network(settings, **how)
        self.prefix = prefix


def build_backbone(config: BackboneConfig) -> Backbone:
    """The backbone that a configuration describes, with random weights."""
    if config.mirror and config.kind == "vit":
        raise ValueError("only a feature map can be turned, a ViT's tokens cannot: mirror must be false")
    options = dict(config.options)
    if config.kind == "efficientnet_lite":
        return EfficientNetLite(head=config.width, **options)
    if config.kind == "vit":
        return VisionTransformer(image_size=config.image_size, width=config.width, **options)
    if config.kind == "timm":
        return TimmBackbone(**options)
    if config.kind == "transformers":
        return TransformersBackbone(**options)
    raise ValueError(f"unknown backbone kind {config.kind!r}")
