"""Florence-2 as Microsoft and most who fine-tuned it published it -> the layout that `transformers` has.

Those checkpoints bring their own code, which is never run: only names and settings differ. The names here are
those of the script by which `transformers` made its own checkpoints of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from captioner.errors import CheckpointError

__all__ = ["has_own_layout", "library_settings", "library_tensors"]

_PROJECTOR = "model.multi_modal_projector."
_NAMES = {
    r"language_model\.model\.": "model.language_model.",
    r"language_model\.lm_head\.": "lm_head.",
    r"image_projection$": f"{_PROJECTOR}image_projection.weight",
    r"image_pos_embed\.": f"{_PROJECTOR}image_position_embed.",
    r"(?=image_proj_norm\.|visual_temporal_embed\.)": _PROJECTOR,
    r"(?=vision_tower\.)": "model.",
}
"""How names begin, with what they begin with in `transformers`."""

_TOWER = {
    r"(?<=convs\.\d)\.proj\.": ".conv.",
    r"\.(conv\d)\.fn\.dw\.": r".\1.",
    r"\.(window_attn|channel_attn)\.norm\.": ".norm1.",
    r"\.(window_attn|channel_attn)\.fn\.": r".\1.",
    r"\.ffn\.norm\.": ".norm2.",
    r"\.ffn\.fn\.net\.": ".ffn.",
}
"""What differs within the names of the vision tower."""

SOURCES = ["spatial_avg_pool", "temporal_avg_pool"]
"""What the photo's tokens are made of: the mean of all places, then each place."""


def has_own_layout(raw: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` is that of such a checkpoint."""
    return bool(raw["text_config"].get("model_type") == "florence2_language")


def library_settings(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Its ``config.json`` as `transformers` would write it.

    Raises:
        CheckpointError: with a phrase, for what is not supported.
        Exception: for what is damaged.
    """
    vision = dict(raw["vision_config"])
    if vision.get("image_feature_source", SOURCES) != SOURCES:
        raise CheckpointError(f"its photo tokens are made of {vision['image_feature_source']}")
    vision |= {
        "model_type": "florence_vision",
        "embed_dim": vision["dim_embed"],
        "max_position_embeddings": vision["image_pos_embed"]["max_pos_embeddings"],
        "max_temporal_embeddings": vision["visual_temporal_embedding"]["max_temporal_embeddings"],
    }
    for name in ("dim_embed", "image_pos_embed", "visual_temporal_embedding", "image_feature_source"):
        vision.pop(name, None)
    text = {**raw["text_config"], "model_type": "bart"}
    return {"model_type": "florence2", "text_config": text, "vision_config": vision}


def library_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Its weights by the names of `transformers`; those that have none keep theirs.

    Raises:
        CheckpointError: the output layer has a bias.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name == "language_model.final_logits_bias":
            if tensor.any():
                raise CheckpointError(f"{name} is not zero: an output layer with a bias is not supported")
            continue
        renamed[_renamed(name)] = tensor.T if name == "image_projection" else tensor
    return renamed


def _renamed(name: str) -> str:
    if name.startswith("vision_tower."):
        for pattern, replacement in _TOWER.items():
            name = re.sub(pattern, replacement, name)
    for start, replacement in _NAMES.items():
        if re.match(start, name):
            return re.sub(start, replacement, name, count=1)
    return name
