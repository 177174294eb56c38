"""The shape of Florence-2: its vision tower is that of `transformers`, all else runs on our own layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from captioner.convert.florence2_layout import has_own_layout, library_settings, library_tensors
from captioner.convert.shape import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Shape,
    activation,
    library_config,
    one_id,
    special_ids,
)
from captioner.convert.tensors import FLORENCE2
from captioner.decoder import DecoderConfig
from captioner.errors import CheckpointError
from captioner.model import ModelConfig
from captioner.question import QuestionConfig
from captioner.vision import BackboneConfig

__all__ = ["florence2_shape"]

QUESTIONS = {
    "brief": "<s>What does the image describe?</s>",
    "detailed": "<s>Describe in detail what is shown in the image.</s>",
    "full": "<s>Describe with a paragraph what is shown in the image.</s>",
}
"""What it was trained to be asked for its tasks <CAPTION>, <DETAILED_CAPTION> and <MORE_DETAILED_CAPTION>."""

LONGEST = 200
"""Tokens of a caption where the checkpoint sets no limit: more than the paragraphs that it writes."""


def florence2_shape(raw: Mapping[str, Any], generation: Mapping[str, Any], image: Mapping[str, Any]) -> Shape:
    """What a Florence-2 checkpoint is.

    Args:
        raw: its ``config.json``.
        generation: its ``generation_config.json``; empty where it has none.
        image: settings of its image processor.

    Raises:
        CheckpointError: with a phrase, for what is not supported.
        Exception: for what is damaged.
    """
    from transformers import Florence2Config

    own_layout = has_own_layout(raw)
    raw = library_settings(raw) if own_layout else raw
    config: Any = Florence2Config.from_dict(dict(raw))
    text, vision = config.text_config, config.vision_config
    if vision.projection_dim != text.d_model:
        raise CheckpointError(
            f"its photo tokens have {vision.projection_dim} channels and its words {text.d_model}"
        )
    acts = activation(text.activation_function, "text model")
    scale = float(text.d_model**0.5) if text.scale_embedding else 1.0
    model = ModelConfig(
        backbone=BackboneConfig(
            kind="transformers",
            image_size=_side(image),
            width=vision.embed_dim[-1],
            options={"config": library_config(vision)},
        ),
        regions=None,
        question=QuestionConfig(
            width=text.d_model,
            layers=text.encoder_layers,
            heads=text.encoder_attention_heads,
            mlp_width=text.encoder_ffn_dim,
            max_positions=text.max_position_embeddings,
            max_grid=vision.max_position_embeddings,
            frames=vision.max_temporal_embeddings,
            token_ids={},
            embedding_scale=scale,
            activation=acts,
        ),
        decoder=DecoderConfig(
            vocab_size=text.vocab_size,
            width=text.d_model,
            layers=text.decoder_layers,
            heads=text.decoder_attention_heads,
            mlp_width=text.decoder_ffn_dim,
            max_positions=text.max_position_embeddings,
            region_width=text.d_model,
            norm="post",
            embedding_scale=scale,
            embedding_norm=True,
            activation=acts,
            output_bias=False,
        ),
    )

    def token_id(name: str) -> int | None:
        # where there is a file for generation, nothing is forced that it does not name
        others = raw["text_config"].get(name), getattr(text, name, None)
        return one_id(
            name, generation.get(name), *(() if name.startswith("forced") and generation else others)
        )

    names = ("decoder_start", "bos", "eos", "pad", "forced_bos", "forced_eos")
    ids = {name: token_id(name) for name in (f"{name}_token_id" for name in names)}  # none may be several
    start, eos, pad = special_ids(ids.__getitem__)
    first, last = ids["forced_bos_token_id"], ids["forced_eos_token_id"]
    forced = () if first is None else (first,)
    return Shape(
        model=model,
        names=FLORENCE2,
        start_ids=(start, *forced),
        eos_id=eos,
        pad_id=pad,
        image={"image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD, "resample": 3},
        counted_start=len(forced),
        forced_end=last,
        questions=QUESTIONS,
        generation={
            "detail": next(iter(QUESTIONS)),
            "max_length": min(LONGEST, text.max_position_embeddings),
        },
        renamed=library_tensors if own_layout else dict,
    )


def _side(image: Mapping[str, Any]) -> int:
    size = image.get("size")
    if not isinstance(size, Mapping) or not size.get("height") or size["height"] != size.get("width"):
        raise CheckpointError(f"its image processor makes photos of the size {size}, not of a square's")
    return int(size["height"])
