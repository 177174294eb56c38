"""The shape of a VisionEncoderDecoderModel: one of four image encoders before one of three text decoders.

ViT and DeiT run on our own layers, BEiT and Swin as networks of `transformers`; all decoders on our own.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from captioner.convert.shape import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Shape,
    activation,
    library_config,
    one_id,
    special_ids,
)
from captioner.convert.tensors import encoder_decoder_names
from captioner.decoder import DecoderConfig
from captioner.errors import CheckpointError
from captioner.model import ModelConfig
from captioner.quiet import quiet_transformers
from captioner.vision import BackboneConfig, library_encoder

__all__ = ["bert", "encoder_decoder_shape", "vit"]

ENCODER = "encoder."

HALVES = (0.5, 0.5, 0.5)
BILINEAR, BICUBIC = 2, 3
IMAGES: dict[str, Mapping[str, Any]] = {
    "vit": {"image_mean": HALVES, "image_std": HALVES, "resample": BILINEAR},
    "deit": {"image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD, "resample": BICUBIC},
    "beit": {"image_mean": HALVES, "image_std": HALVES, "resample": BICUBIC},
    "swin": {"image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD, "resample": BICUBIC},
}
"""By the encoder, what the image processor does where its own file does not say."""


def encoder_decoder_shape(raw: Mapping[str, Any], generation: Mapping[str, Any]) -> Shape:
    """What a VisionEncoderDecoderModel is.

    Args:
        raw: its ``config.json``.
        generation: its ``generation_config.json``; empty where it has none.

    Raises:
        CheckpointError: with a phrase, for what is not supported.
        Exception: for what is damaged.
    """
    from transformers import VisionEncoderDecoderConfig

    kinds = tuple(raw[part]["model_type"] for part in ("encoder", "decoder"))
    if kinds[0] not in IMAGES or kinds[1] not in ("bert", "gpt2", "roberta"):
        raise CheckpointError(f"its encoder is {kinds[0]!r} and its decoder {kinds[1]!r}")
    config: Any = VisionEncoderDecoderConfig.from_dict(dict(raw))
    text = config.decoder
    decoder = _gpt2(text, config.encoder) if kinds[1] == "gpt2" else _checked_bert(text, config.encoder)

    def token_id(name: str) -> int | None:
        return one_id(name, generation.get(name), raw.get(name), getattr(text, name, None))

    start, eos, pad = special_ids(token_id)
    backbone = _encoder(config.encoder)
    return Shape(
        model=ModelConfig(backbone=backbone, regions=None, decoder=decoder),
        names=encoder_decoder_names(*kinds, padding_id=decoder.padding_id),
        start_ids=(start,),
        eos_id=eos,
        pad_id=pad,
        image=IMAGES[kinds[0]],
        renamed=partial(_in_library, backbone=backbone) if backbone.kind == "transformers" else dict,
    )


def _in_library(tensors: Mapping[str, Tensor], backbone: BackboneConfig) -> dict[str, Tensor]:
    """The tensors on disk, those of the encoder by the names that the network of `transformers` has for them.

    Between its versions, these names change.
    """
    network, settings, how = library_encoder(backbone.options["config"])
    inside = {
        name.removeprefix(ENCODER): tensor
        for name, tensor in tensors.items()
        if name.startswith(ENCODER) and not name.startswith(f"{ENCODER}pooler.")
    }
    with quiet_transformers():
        loaded, report = network.from_pretrained(
            None,
            config=settings,
            state_dict=dict(inside),
            dtype=next(iter(inside.values())).dtype,
            output_loading_info=True,
            **how,
        )
    found = {
        name: tensor for name, tensor in loaded.state_dict().items() if name not in report["missing_keys"]
    }
    found |= {name: inside[name] for name in report["unexpected_keys"]}  # for the strict check to name
    others = {name: tensor for name, tensor in tensors.items() if not name.startswith(ENCODER)}
    return others | {ENCODER + name: tensor for name, tensor in found.items()}


def _gpt2(text: Any, vision: Any) -> DecoderConfig:
    if text.scale_attn_by_inverse_layer_idx or not text.scale_attn_weights:
        raise CheckpointError("its decoder scales attention in an unusual way")
    return DecoderConfig(
        vocab_size=text.vocab_size,
        width=text.n_embd,
        layers=text.n_layer,
        heads=text.n_head,
        mlp_width=text.n_inner or 4 * text.n_embd,
        max_positions=text.n_positions,
        region_width=vision.hidden_size,
        activation=activation(text.activation_function, "decoder"),
        output_bias=False,
        eps=text.layer_norm_epsilon,
    )


def _checked_bert(text: Any, vision: Any) -> DecoderConfig:
    if getattr(text, "position_embedding_type", None) not in (None, "absolute"):
        raise CheckpointError(f"its decoder's positions are {text.position_embedding_type!r}")
    act = activation(text.hidden_act, "decoder")
    if text.model_type != "roberta":
        return bert(text, vision)
    if act != "gelu":
        raise CheckpointError(f"its decoder's activation is {act!r}, which its output's is not")
    return bert(text, vision, padding_id=text.pad_token_id)


def bert(text: Any, vision: Any, *, padding_id: int | None = None) -> DecoderConfig:
    """The decoder that a ``BertConfig``, a ``RobertaConfig`` or a ``BlipTextConfig`` describes."""
    return DecoderConfig(
        vocab_size=text.vocab_size,
        width=text.hidden_size,
        layers=text.num_hidden_layers,
        heads=text.num_attention_heads,
        mlp_width=text.intermediate_size,
        max_positions=text.max_position_embeddings - (0 if padding_id is None else padding_id + 1),
        region_width=vision.hidden_size,
        norm="post",
        padding_id=padding_id,
        embedding_norm=True,
        head_transform=True,
        activation=activation(text.hidden_act, "decoder"),
        eps=text.layer_norm_eps,
    )


def _encoder(config: Any) -> BackboneConfig:
    if config.model_type in ("vit", "deit"):
        return vit(config, distilled=config.model_type == "deit")
    _check_square(config)
    return BackboneConfig(
        kind="transformers",
        image_size=config.image_size,
        width=config.hidden_size,
        options={"config": library_config(config), "prefix": 1 if config.model_type == "beit" else 0},
    )


def vit(config: Any, *, distilled: bool = False) -> BackboneConfig:
    """The backbone that a ``ViTConfig``, a ``DeiTConfig`` or a ``BlipVisionConfig`` describes."""
    if config.hidden_act != "gelu":
        raise CheckpointError(f"its encoder's activation is {config.hidden_act!r}")
    _check_square(config)
    options = {
        "patch_size": config.patch_size,
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "mlp_width": config.intermediate_size,
        "eps": config.layer_norm_eps,
        **({"distilled": True} if distilled else {}),
    }
    return BackboneConfig(kind="vit", image_size=config.image_size, width=config.hidden_size, options=options)


def _check_square(config: Any) -> None:
    if not isinstance(config.image_size, int) or not isinstance(config.patch_size, int):
        raise CheckpointError(
            f"its images are {config.image_size} and its patches {config.patch_size} pixels"
        )
