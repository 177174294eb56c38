"""The same weights run by `transformers`, to measure against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from captioner.checkpoint import Checkpoint
from captioner.convert import is_bare_vit, their_tensors
from captioner.decoder import DecoderConfig
from captioner.errors import OptionsError
from captioner.generation import SearchOptions
from captioner.model import ModelConfig
from captioner.quiet import quiet_transformers
from captioner.tokenizer import TokenizerConfig

__all__ = ["Twin", "build_twin", "check_twin"]

_UNKNOWN = ("do_sample", "repetition_penalty", "prompt", "bad_words")
"""Options that a twin's search does not take: the library has none such, or means something else by it."""


@dataclass(frozen=True)
class Twin:
    """A model of `transformers` with our weights.

    Attributes:
        scope: which part of our model it stands for, as a phrase.
        has_encoder: whether its encoder is its own, not ours.
        encode: ``pixel_values`` normalised ``(B, 3, H, W)`` -> region tokens ``(B, R, D)``.
        search: region tokens and options -> the token ids of each caption, without the start token, the end
            token included.
    """

    scope: str
    has_encoder: bool
    encode: Callable[[Tensor], Tensor]
    search: Callable[[Tensor, SearchOptions], list[list[int]]]


def check_twin(checkpoint: Checkpoint, options: SearchOptions) -> None:
    """Say before the work what would make a comparison impossible.

    Raises:
        OptionsError: no twin of this shape can be built, or none can search by these options.
    """
    _kind(checkpoint.model.config)
    unknown = [name for name in _UNKNOWN if getattr(options, name) != getattr(SearchOptions, name)]
    if unknown:
        raise OptionsError(
            f"captions with {' and '.join(unknown)} cannot be compared to those of `transformers`: "
            "leave out the comparison"
        )


def build_twin(checkpoint: Checkpoint) -> Twin:
    """Build the twin on the checkpoint's own device and in its number type.

    A BLIP's, a ViT-GPT2's and a Florence-2's is the whole model. Any other pre-norm decoder's is GPT-2 with
    cross-attention; `transformers` has no such encoder, so ours runs before it.

    Raises:
        OptionsError: no twin of this shape can be built.
    """
    model, config, special = checkpoint.model, checkpoint.model.config, checkpoint.tokenizer.config
    kind = _kind(config)
    is_blip, is_florence = kind == "blip", kind == "florence2"
    whole = is_bare_vit(config) or is_florence
    like = model.decoder.word_embedding.weight
    with quiet_transformers():
        network = _NETWORKS[kind](config, special, their_tensors(model))
    network = network.eval().requires_grad_(False).to(like.device, like.dtype)

    @torch.inference_mode()
    def encode(pixel_values: Tensor) -> Tensor:
        if not whole:
            return model.encode(pixel_values).region_tokens
        if model.question is not None:
            return _photo_and_question(network, pixel_values, model.question.token_ids())
        vision = network.vision_model if is_blip else network.encoder
        tokens: Tensor = vision(pixel_values)[0]
        return tokens

    @torch.inference_mode()
    def search(region_tokens: Tensor, options: SearchOptions) -> list[list[int]]:
        from transformers.modeling_outputs import BaseModelOutput

        if is_blip:  # as its own `generate` does after its encoder
            start = torch.full((len(region_tokens), 1), special.start_ids[0], device=region_tokens.device)
            inputs: dict[str, Any] = {
                "input_ids": start,
                "encoder_hidden_states": region_tokens,
                "encoder_attention_mask": torch.ones(region_tokens.shape[:2], device=start.device).long(),
                "eos_token_id": special.eos_id,
                "pad_token_id": special.pad_id,
            }
        else:
            inputs = {"encoder_outputs": BaseModelOutput(region_tokens)}
        if is_florence:
            inputs["forced_eos_token_id"] = special.forced_end
        with quiet_transformers():  # which warns of a missing mask where the padding is the end token
            rows = (network.text_decoder if is_blip else network).generate(
                **inputs,
                num_beams=options.num_beams,
                max_new_tokens=options.max_length,
                min_new_tokens=max(0, options.min_length - 1),  # theirs does not count the end token
                length_penalty=options.length_penalty,
                early_stopping=options.early_stopping or "never",  # else they stop on a guess
                no_repeat_ngram_size=options.no_repeat_ngram_size,
                bad_words_ids=[list(ids) for ids in special.bad_words_ids] or None,
                do_sample=False,
            )
        return [_until(row[len(special.start_ids) :], special.eos_id) for row in rows.tolist()]

    scope = "the whole model" if whole else "the decoder, after our encoder"
    return Twin(scope, whole, encode, search)


def _kind(config: ModelConfig) -> str:
    """Which network of `transformers` is the model's twin, as a key of ``_NETWORKS``."""
    if config.question is not None:
        return "florence2"
    if config.decoder.norm == "pre":
        return "vision-encoder-decoder"
    if is_bare_vit(config) and _is_bert(config.decoder):
        return "blip"
    raise OptionsError(
        "the benchmark cannot build a model of this shape in `transformers`: leave out the comparison"
    )


def _is_bert(decoder: DecoderConfig) -> bool:
    whole = decoder.embedding_norm and decoder.head_transform
    return whole and decoder.padding_id is None and decoder.activation == "gelu"


def _until(ids: list[int], eos_id: int) -> list[int]:
    return ids[: ids.index(eos_id) + 1] if eos_id in ids else ids


def _vit_settings(config: ModelConfig) -> dict[str, Any]:
    options = config.backbone.options
    return {
        "hidden_size": config.backbone.width,
        "num_hidden_layers": options["layers"],
        "num_attention_heads": options["heads"],
        "intermediate_size": options["mlp_width"],
        "layer_norm_eps": options.get("eps", 1e-6),
        "image_size": config.backbone.image_size,
        "patch_size": options["patch_size"],
    }


def _blip(config: ModelConfig, special: TokenizerConfig, tensors: dict[str, Tensor]) -> Any:
    from transformers import BlipConfig, BlipForConditionalGeneration

    decoder = config.decoder
    text = {
        "vocab_size": decoder.vocab_size,
        "hidden_size": decoder.width,
        "num_hidden_layers": decoder.layers,
        "num_attention_heads": decoder.heads,
        "intermediate_size": decoder.mlp_width,
        "max_position_embeddings": decoder.max_positions,
        "layer_norm_eps": decoder.eps,
        "bos_token_id": special.start_ids[0],
        "sep_token_id": special.eos_id,
        "pad_token_id": special.pad_id,
    }
    settings = BlipConfig(text_config=text, vision_config=_vit_settings(config))
    return BlipForConditionalGeneration.from_pretrained(None, config=settings, state_dict=tensors)


def _florence2(config: ModelConfig, special: TokenizerConfig, tensors: dict[str, Tensor]) -> Any:
    from transformers import Florence2Config, Florence2ForConditionalGeneration

    decoder, question = config.decoder, config.question
    assert question is not None
    text = {
        "model_type": "bart",
        "vocab_size": decoder.vocab_size,
        "d_model": decoder.width,
        "max_position_embeddings": decoder.max_positions,
        "activation_function": _activation(decoder),
        "scale_embedding": decoder.embedding_scale != 1,
    }
    for side, part in (("encoder", question), ("decoder", decoder)):
        text |= {f"{side}_layers": part.layers, f"{side}_attention_heads": part.heads}
        text |= {f"{side}_ffn_dim": part.mlp_width}
    settings = Florence2Config(text_config=text, vision_config=dict(config.backbone.options["config"]))
    network = Florence2ForConditionalGeneration.from_pretrained(None, config=settings, state_dict=tensors)
    found = network.generation_config
    found.decoder_start_token_id, *forced = special.start_ids
    found.forced_bos_token_id = forced[0] if forced else None
    found.eos_token_id, found.pad_token_id = special.eos_id, special.pad_id
    return network


def _photo_and_question(network: Any, pixel_values: Tensor, question: Tensor) -> Tensor:
    """What Florence-2's own encoder makes of photos ``(B, 3, H, W)`` and one question ``(Q,)``."""
    photo = network.get_image_features(pixel_values).pooler_output
    words = network.get_input_embeddings()(question).expand(len(photo), -1, -1)
    encoder = network.model.language_model.encoder
    tokens: Tensor = encoder(inputs_embeds=torch.cat([photo, words], dim=1)).last_hidden_state
    return tokens


def _activation(decoder: DecoderConfig) -> str:
    return "gelu_new" if decoder.activation == "gelu_tanh" else decoder.activation


def _vision_encoder_decoder(config: ModelConfig, special: TokenizerConfig, tensors: dict[str, Tensor]) -> Any:
    from transformers import GPT2Config, VisionEncoderDecoderConfig, VisionEncoderDecoderModel, ViTConfig

    decoder, bare_vit = config.decoder, is_bare_vit(config)
    nothing = {"hidden_size": decoder.region_width, "num_hidden_layers": 0, "num_attention_heads": 1}
    settings = VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        ViTConfig(**(_vit_settings(config) if bare_vit else nothing)),
        GPT2Config(
            vocab_size=decoder.vocab_size,
            n_embd=decoder.width,
            n_layer=decoder.layers,
            n_head=decoder.heads,
            n_inner=decoder.mlp_width,
            n_positions=decoder.max_positions,
            activation_function=_activation(decoder),
            layer_norm_epsilon=decoder.eps,
            bos_token_id=special.start_ids[0],
            eos_token_id=special.eos_id,
        ),
    )
    settings.decoder.cross_attention_hidden_size = decoder.region_width  # so that it projects nothing
    settings.decoder_start_token_id = special.start_ids[0]
    settings.eos_token_id, settings.pad_token_id = special.eos_id, special.pad_id
    wide = {
        name: tensors.pop(name) for name in list(tensors) if name.endswith("crossattention.c_attn.weight")
    }
    bias = tensors.pop("decoder.lm_head.bias", None)
    network = VisionEncoderDecoderModel.from_pretrained(None, config=settings, state_dict=tensors)
    for (
        name,
        tensor,
    ) in wide.items():  # GPT-2 knows no region tokens of another width than its own, but takes them
        network.get_submodule(name.removesuffix(".weight")).weight = nn.Parameter(tensor)
    if bias is not None:  # nor has its output layer a bias
        network.decoder.lm_head.bias = nn.Parameter(bias)
    return network


_NETWORKS = {
    "blip": _blip,
    "florence2": _florence2,
    "vision-encoder-decoder": _vision_encoder_decoder,
}
