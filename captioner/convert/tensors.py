"""What tensors of BLIP, Florence-2 and VisionEncoderDecoderModels are called on disk and here, both ways.

In a pair of names ``#`` is a layer, ``*`` weight and bias, and where theirs has ``{a,b}`` ours is the
concatenation of a and b along the first dimension. ``**`` is whatever comes after it, where a network of
`transformers` is run as it is. Of theirs with ``[n:]`` the first n rows are left out, which nothing reads.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from captioner.errors import CheckpointError
from captioner.model import CaptionModel, ModelConfig

__all__ = ["BLIP", "FLORENCE2", "encoder_decoder_names", "is_bare_vit", "our_tensors", "their_tensors"]

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
_BERT = {
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
_BART_DECODER = {
    "word_embedding.weight": "shared.weight",
    "position_embedding.weight": "decoder.embed_positions.weight[2:]",
    "embedding_norm.*": "decoder.layernorm_embedding.*",
    "blocks.#.self_attention.qkv.*": "decoder.layers.#.self_attn.{q_proj,k_proj,v_proj}.*",
    "blocks.#.self_attention.out.*": "decoder.layers.#.self_attn.out_proj.*",
    "blocks.#.norm1.*": "decoder.layers.#.self_attn_layer_norm.*",
    "blocks.#.cross_attention.q.*": "decoder.layers.#.encoder_attn.q_proj.*",
    "blocks.#.cross_attention.kv.*": "decoder.layers.#.encoder_attn.{k_proj,v_proj}.*",
    "blocks.#.cross_attention.out.*": "decoder.layers.#.encoder_attn.out_proj.*",
    "blocks.#.norm2.*": "decoder.layers.#.encoder_attn_layer_norm.*",
    "blocks.#.mlp.fc1.*": "decoder.layers.#.fc1.*",
    "blocks.#.mlp.fc2.*": "decoder.layers.#.fc2.*",
    "blocks.#.norm3.*": "decoder.layers.#.final_layer_norm.*",
}
_BART_ENCODER = {
    "positions.weight": "encoder.embed_positions.weight[2:]",
    "norm.*": "encoder.layernorm_embedding.*",
    "layers.#.attention.qkv.*": "encoder.layers.#.self_attn.{q_proj,k_proj,v_proj}.*",
    "layers.#.attention.out.*": "encoder.layers.#.self_attn.out_proj.*",
    "layers.#.norm1.*": "encoder.layers.#.self_attn_layer_norm.*",
    "layers.#.mlp.fc1.*": "encoder.layers.#.fc1.*",
    "layers.#.mlp.fc2.*": "encoder.layers.#.fc2.*",
    "layers.#.norm2.*": "encoder.layers.#.final_layer_norm.*",
}
_FLORENCE2_PROJECTOR = {
    "project.weight": "image_projection.weight",
    "project_norm.*": "image_proj_norm.*",
    "rows.weight": "image_position_embed.row_embeddings.weight",
    "columns.weight": "image_position_embed.column_embeddings.weight",
    "frames": "visual_temporal_embed.pos_idx_to_embed",
}
BLIP = {f"backbone.{ours}": f"vision_model.{theirs}" for ours, theirs in _BLIP_ENCODER.items()} | {
    f"decoder.{ours}": f"text_decoder.{theirs}" for ours, theirs in _BERT.items()
}
FLORENCE2 = (
    {"backbone.network.**": "model.vision_tower.**"}
    | {
        f"question.{ours}": f"model.multi_modal_projector.{theirs}"
        for ours, theirs in _FLORENCE2_PROJECTOR.items()
    }
    | {f"question.{ours}": f"model.language_model.{theirs}" for ours, theirs in _BART_ENCODER.items()}
    | {f"decoder.{ours}": f"model.language_model.{theirs}" for ours, theirs in _BART_DECODER.items()}
)

_ENCODERS = {
    "vit": _VIT,
    "deit": {**_VIT, "distillation_token": "embeddings.distillation_token"},
    "beit": {"network.**": "**"},
    "swin": {"network.**": "**"},
}


def encoder_decoder_names(encoder: str, decoder: str, *, padding_id: int | None = None) -> Mapping[str, str]:
    """Names of the tensors of a VisionEncoderDecoderModel.

    Args:
        encoder: its model type; the names of those that `transformers` runs are as in its network.
        decoder: likewise.
        padding_id: where the table of the decoder's positions begins to be read (RoBERTa).
    """
    texts = {"gpt2": _GPT2, "bert": _BERT, "roberta": _roberta(padding_id or 0)}[decoder]
    return {f"backbone.{ours}": f"encoder.{theirs}" for ours, theirs in _ENCODERS[encoder].items()} | {
        f"decoder.{ours}": f"decoder.{theirs}" for ours, theirs in texts.items()
    }


def _roberta(padding_id: int) -> dict[str, str]:
    """BERT's names but for those of the output."""
    names = {ours: theirs.replace("bert.", "roberta.") for ours, theirs in _BERT.items()}
    return names | {
        "position_embedding.weight": f"{names['position_embedding.weight']}[{padding_id}:]",
        "transform.0.*": "lm_head.dense.*",
        "transform.2.*": "lm_head.layer_norm.*",
        "output_bias": "lm_head.bias",
    }


_TIED = {
    "text_decoder.cls.predictions.decoder.weight": "text_decoder.bert.embeddings.word_embeddings.weight",
    "text_decoder.cls.predictions.decoder.bias": "text_decoder.cls.predictions.bias",
    "decoder.lm_head.weight": "decoder.transformer.wte.weight",
    "decoder.cls.predictions.decoder.weight": "decoder.bert.embeddings.word_embeddings.weight",
    "decoder.cls.predictions.decoder.bias": "decoder.cls.predictions.bias",
    "decoder.lm_head.decoder.weight": "decoder.roberta.embeddings.word_embeddings.weight",
    "decoder.lm_head.decoder.bias": "decoder.lm_head.bias",
    "lm_head.weight": "model.language_model.shared.weight",
    "model.language_model.encoder.embed_tokens.weight": "model.language_model.shared.weight",
    "model.language_model.decoder.embed_tokens.weight": "model.language_model.shared.weight",
}
_UNUSED = re.compile(
    r".*(\.position_ids|\.token_type_ids|\.pooler\.(dense|layernorm)\.(weight|bias)|(\.attn|\.crossattention)\.(masked_)?bias)"
)


_FROM_REGIONS = re.compile(r"\.crossattention\.(c_attn|self\.key|self\.value)\.weight$")


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
    _fold_token_types(theirs)
    ours: dict[str, Tensor] = {}
    for name, sources in _pairs(names, config, list(theirs)):
        parts = [theirs.pop(source.name)[source.start :] for source in sources if source.name in theirs]
        if len(parts) == len(sources):
            parts = [part.T if _is_transposed(sources[0].name, part) else part for part in parts]
            ours[name] = torch.cat(parts).contiguous()
        elif name.endswith(".qkv.bias") and (weight := ours.get(name.replace("bias", "weight"))) is not None:
            # a ViT may go without
            ours[name] = weight.new_zeros(len(weight))
    return ours | {name: tensor for name, tensor in theirs.items() if not _UNUSED.fullmatch(name)}


def their_tensors(model: CaptionModel) -> dict[str, Tensor]:
    """The way back: weights under the names that `transformers` has for them on disk.

    Those of the decoder always have such names, those of the encoder where it is a bare ViT or Florence-2's.
    The output layer's weight is left out, since it is the word embedding.
    """
    config, ours = model.config, model.state_dict()
    if config.question:
        names: Mapping[str, str] = FLORENCE2
    else:
        names = BLIP if config.decoder.norm == "post" else encoder_decoder_names("vit", "gpt2")
    whole = config.question is not None or is_bare_vit(config)
    theirs: dict[str, Tensor] = {}
    for name, sources in _pairs(names, config, list(ours)):
        if name in ours and (whole or name.startswith("decoder.")):
            for source, part in zip(sources, ours[name].chunk(len(sources)), strict=True):
                unread = part.new_zeros(source.start, *part.shape[1:])
                part = torch.cat([unread, part]) if source.start else part
                theirs[source.name] = part.T.contiguous() if _is_transposed(source.name, part) else part
    return theirs


def is_bare_vit(config: ModelConfig) -> bool:
    """Whether a model's image encoder is a ViT as `transformers` has it, and nothing else."""
    backbone = config.backbone
    return backbone.kind == "vit" and config.regions is None and not backbone.options.get("distilled")


class _Source(NamedTuple):
    """A tensor of theirs, and from which of its rows on it is one of ours."""

    name: str
    start: int

    @classmethod
    def parse(cls, text: str) -> _Source:
        name, _, start = text.removesuffix(":]").partition("[")
        return cls(name, int(start or 0))


def _pairs(
    names: Mapping[str, str], config: ModelConfig, present: Sequence[str]
) -> Iterator[tuple[str, list[_Source]]]:
    """The name of each of our tensors with theirs; ``present`` are those of either side."""
    layers = {
        "backbone": config.backbone.options.get("layers", 0),
        "question": config.question.layers if config.question else 0,
        "decoder": config.decoder.layers,
    }
    for ours, theirs in names.items():
        if ours.endswith("**"):
            heads = ours.removesuffix("**"), theirs.removesuffix("**")
            for tail in (
                name.removeprefix(head) for head in heads for name in present if name.startswith(head)
            ):
                yield heads[0] + tail, [_Source(heads[1] + tail, 0)]
            continue
        for layer in range(layers[ours.split(".")[0]]) if "#" in ours else [0]:
            for kind in ("weight", "bias") if ours.endswith("*") else [""]:
                mine, other = (name.replace("#", str(layer)).replace("*", kind) for name in (ours, theirs))
                head, _, tail = other.partition("{")
                choices, _, end = tail.partition("}")
                yield mine, [_Source.parse(head + choice + end) for choice in choices.split(",")]


def _is_transposed(name: str, tensor: Tensor) -> bool:
    """GPT-2's linear layers are stored as weights of a convolution of width 1."""
    return name.startswith("decoder.transformer.h.") and tensor.ndim == 2


def _fold_projection(theirs: dict[str, Tensor]) -> None:
    """Where encoder and decoder differ in width, let keys and values do what a layer between them did."""
    if "enc_to_dec_proj.weight" not in theirs:
        return
    weight, bias = (theirs.pop(f"enc_to_dec_proj.{kind}").double() for kind in ("weight", "bias"))
    for name in [name for name in theirs if _FROM_REGIONS.search(name)]:
        stored, shift = theirs[name], theirs[name.replace("weight", "bias")]
        matrix = stored.double() if name.endswith("c_attn.weight") else stored.double().T
        folded = weight.T @ matrix
        theirs[name] = (folded if name.endswith("c_attn.weight") else folded.T).to(stored.dtype)
        theirs[name.replace("weight", "bias")] = (shift + bias @ matrix).to(shift.dtype)


def _fold_token_types(theirs: dict[str, Tensor]) -> None:
    """Let BERT's positions say that every token is of the first type, as all of a caption are."""
    for name in [name for name in theirs if name.endswith(".token_type_embeddings.weight")]:
        positions = name.replace("token_type", "position")
        if positions in theirs:
            table = theirs[positions]
            theirs[positions] = (table.double() + theirs.pop(name)[0].double()).to(table.dtype)
