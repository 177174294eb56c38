"""What BLIP's and ViT-GPT2's tensors are called on disk and here, read in both directions.

In a pair of names ``#`` is a layer, ``*`` weight and bias, and where theirs has ``{a,b}`` ours is the
concatenation of a and b along the first dimension.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from captioner.errors import CheckpointError
from captioner.model import CaptionModel, ModelConfig

__all__ = ["BLIP", "VIT_GPT2", "our_tensors", "their_tensors"]

_BLIP_ENCODER = {
    "class_token": "embeddings.class_embedding",
    "position": "embeddings.position_embedding",
    "patch_embed.*": "embeddings.patch_embedding.*",
    "blocks.#.norm1.*": "encoder.layers.#.layer_norm1.*",
    "blocks.#.qkv.*": "encoder.layers.#.self_attn.qkv.*",
    "blocks.#.out.*": "encoder.layers.#.self_attn.projection.*",
    "blocks.#.norm2.*": "encoder.layers.#.layer_norm2.*",
    "blocks.#.fc1.*": "encoder.layers.#.mlp.fc1.*",
    "blocks.#.fc2.*": "encoder.layers.#.mlp.fc2.*",
    "norm.*": "post_layernorm.*",
}
_BLIP_DECODER = {
    "word_embedding.weight": "bert.embeddings.word_embeddings.weight",
    "position_embedding.weight": "bert.embeddings.position_embeddings.weight",
    "embedding_norm.*": "bert.embeddings.LayerNorm.*",
    "blocks.#.self_attention.qkv.*": "bert.encoder.layer.#.attention.self.{query,key,value}.*",
    "blocks.#.self_attention.out.*": "bert.encoder.layer.#.attention.output.dense.*",
    "blocks.#.norm1.*": "bert.encoder.layer.#.attention.output.LayerNorm.*",
    "blocks.#.cross_attention.q.*": "bert.encoder.layer.#.crossattention.self.query.*",
    "blocks.#.cross_attention.kv.*": "bert.encoder.layer.#.crossattention.self.{key,value}.*",
    "blocks.#.cross_attention.out.*": "bert.encoder.layer.#.crossattention.output.dense.*",
    "blocks.#.norm2.*": "bert.encoder.layer.#.crossattention.output.LayerNorm.*",
    "blocks.#.mlp.fc1.*": "bert.encoder.layer.#.intermediate.dense.*",
    "blocks.#.mlp.fc2.*": "bert.encoder.layer.#.output.dense.*",
    "blocks.#.norm3.*": "bert.encoder.layer.#.output.LayerNorm.*",
    "transform.0.*": "cls.predictions.transform.dense.*",
    "transform.2.*": "cls.predictions.transform.LayerNorm.*",
    "output_bias": "cls.predictions.bias",
}
_VIT = {
    "class_token": "embeddings.cls_token",
    "position": "embeddings.position_embeddings",
    "patch_embed.*": "embeddings.patch_embeddings.projection.*",
    "blocks.#.norm1.*": "encoder.layer.#.layernorm_before.*",
    "blocks.#.qkv.*": "encoder.layer.#.attention.attention.{query,key,value}.*",
    "blocks.#.out.*": "encoder.layer.#.attention.output.dense.*",
    "blocks.#.norm2.*": "encoder.layer.#.layernorm_after.*",
    "blocks.#.fc1.*": "encoder.layer.#.intermediate.dense.*",
    "blocks.#.fc2.*": "encoder.layer.#.output.dense.*",
    "norm.*": "layernorm.*",
}
_GPT2 = {
    "word_embedding.weight": "transformer.wte.weight",
    "position_embedding.weight": "transformer.wpe.weight",
    "blocks.#.norm1.*": "transformer.h.#.ln_1.*",
    "blocks.#.self_attention.qkv.*": "transformer.h.#.attn.c_attn.*",
    "blocks.#.self_attention.out.*": "transformer.h.#.attn.c_proj.*",
    "blocks.#.norm2.*": "transformer.h.#.ln_cross_attn.*",
    "blocks.#.cross_attention.q.*": "transformer.h.#.crossattention.q_attn.*",
    "blocks.#.cross_attention.kv.*": "transformer.h.#.crossattention.c_attn.*",
    "blocks.#.cross_attention.out.*": "transformer.h.#.crossattention.c_proj.*",
    "blocks.#.norm3.*": "transformer.h.#.ln_2.*",
    "blocks.#.mlp.fc1.*": "transformer.h.#.mlp.c_fc.*",
    "blocks.#.mlp.fc2.*": "transformer.h.#.mlp.c_proj.*",
    "final_norm.*": "transformer.ln_f.*",
    "output_bias": "lm_head.bias",
}
BLIP = {f"backbone.{ours}": f"vision_model.{theirs}" for ours, theirs in _BLIP_ENCODER.items()} | {
    f"decoder.{ours}": f"text_decoder.{theirs}" for ours, theirs in _BLIP_DECODER.items()
}
VIT_GPT2 = {f"backbone.{ours}": f"encoder.{theirs}" for ours, theirs in _VIT.items()} | {
    f"decoder.{ours}": f"decoder.{theirs}" for ours, theirs in _GPT2.items()
}

_TIED = {
    "text_decoder.cls.predictions.decoder.weight": "text_decoder.bert.embeddings.word_embeddings.weight",
    "text_decoder.cls.predictions.decoder.bias": "text_decoder.cls.predictions.bias",
    "decoder.lm_head.weight": "decoder.transformer.wte.weight",
}
_UNUSED = re.compile(
    r".*(\.position_ids|\.pooler\.dense\.(weight|bias)|(\.attn|\.crossattention)\.(masked_)?bias)"
)


def our_tensors(
    theirs: Mapping[str, Tensor], names: Mapping[str, str], config: ModelConfig
) -> dict[str, Tensor]:
    """Tensors by our names; those that have none keep theirs, so that a strict check will name them.

    Raises:
        CheckpointError: the output layer is not tied to the word embedding.
    """
    theirs = dict(theirs)
    for copy, original in _TIED.items():
        if copy in theirs and not theirs[copy].equal(theirs.setdefault(original, theirs[copy])):
            raise CheckpointError(f"{copy} differs from {original}: an untied output layer is not supported")
        theirs.pop(copy, None)
    _fold_projection(theirs)
    ours: dict[str, Tensor] = {}
    for name, sources in _pairs(names, config):
        parts = [theirs.pop(source) for source in sources if source in theirs]
        if len(parts) == len(sources):
            parts = [part.T if _is_transposed(sources[0], part) else part for part in parts]
            ours[name] = torch.cat(parts).contiguous()
        elif name.endswith(".qkv.bias"):  # a ViT may go without
            weight = ours[name.replace("bias", "weight")]
            ours[name] = weight.new_zeros(len(weight))
    return ours | {name: tensor for name, tensor in theirs.items() if not _UNUSED.fullmatch(name)}


def their_tensors(model: CaptionModel) -> dict[str, Tensor]:
    """The way back: weights under the names that `transformers` has for them on disk.

    Those of the decoder always have such names, those of the encoder where it is a bare ViT. The output
    layer's weight is left out, since it is the word embedding.
    """
    names = BLIP if model.config.decoder.norm == "post" else VIT_GPT2
    bare_vit = model.config.backbone.kind == "vit" and model.config.regions is None
    theirs: dict[str, Tensor] = {}
    ours = model.state_dict()
    for name, sources in _pairs(names, model.config):
        if name in ours and (bare_vit or name.startswith("decoder.")):
            for source, part in zip(sources, ours[name].chunk(len(sources)), strict=True):
                theirs[source] = part.T.contiguous() if _is_transposed(source, part) else part
    return theirs


def _pairs(names: Mapping[str, str], config: ModelConfig) -> Iterator[tuple[str, list[str]]]:
    """The name of each of our tensors with theirs."""
    layers = {"backbone": config.backbone.options.get("layers", 0), "decoder": config.decoder.layers}
    for ours, theirs in names.items():
        for layer in range(layers[ours.split(".")[0]]) if "#" in ours else [0]:
            for kind in ("weight", "bias") if ours.endswith("*") else [""]:
                mine, other = (name.replace("#", str(layer)).replace("*", kind) for name in (ours, theirs))
                head, _, tail = other.partition("{")
                choices, _, end = tail.partition("}")
                yield mine, [head + choice + end for choice in choices.split(",")]


def _is_transposed(name: str, tensor: Tensor) -> bool:
    """GPT-2's linear layers are stored as weights of a convolution of width 1."""
    return name.startswith("decoder.transformer.h.") and tensor.ndim == 2


def _fold_projection(theirs: dict[str, Tensor]) -> None:
    """Where encoder and decoder differ in width, let keys and values do what a layer between them did."""
    if "enc_to_dec_proj.weight" not in theirs:
        return
    weight, bias = (theirs.pop(f"enc_to_dec_proj.{kind}").double() for kind in ("weight", "bias"))
    for name in [name for name in theirs if name.endswith(".crossattention.c_attn.weight")]:
        matrix, shift = theirs[name], theirs[name.replace("weight", "bias")]
        theirs[name] = (weight.T @ matrix.double()).to(matrix.dtype)
        theirs[name.replace("weight", "bias")] = (shift + bias @ matrix.double()).to(shift.dtype)
