"""Hugging Face checkpoints -> ours: BLIP, Florence-2, and ViT encoders with GPT-2 decoders.

Of `transformers` only its configuration classes are used here, which know the defaults that a ``config.json``
leaves out. Weights are read from safetensors alone, under the names that they have on disk, which all
versions of `transformers` share.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from captioner.checkpoint import Checkpoint, check_tensors, save_checkpoint
from captioner.convert.files import (
    fetch,
    generation_defaults,
    image_settings,
    read_json,
    read_tensors,
    read_tokenizer,
)
from captioner.convert.florence2 import florence2_shape
from captioner.convert.shape import Shape, activation, one_id
from captioner.convert.tensors import BLIP, VIT_GPT2, our_tensors
from captioner.decoder import DecoderConfig
from captioner.errors import CheckpointError
from captioner.image import ImageProcessor
from captioner.model import ModelConfig, model_without_weights
from captioner.tokenizer import CaptionTokenizer
from captioner.vision import BackboneConfig

__all__ = ["convert", "is_hugging_face", "read_hugging_face"]

SUPPORTED = (
    "BlipForConditionalGeneration (such as Salesforce/blip-image-captioning-base), "
    "Florence2ForConditionalGeneration (such as florence-community/Florence-2-base) and "
    "VisionEncoderDecoderModel with a ViT encoder and a GPT-2 decoder (such as "
    "nlpconnect/vit-gpt2-image-captioning)"
)

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
RESAMPLE: dict[int, Literal["bilinear", "bicubic"]] = {2: "bilinear", 3: "bicubic"}


def convert(source: str | os.PathLike[str], destination: Path) -> Checkpoint:
    """Write a Hugging Face checkpoint in our format, in the number type that it has.

    Args:
        source: a directory, or a model of the hub as ``owner/name`` or ``owner/name@revision``, which is
            downloaded where the hub's cache lacks it.
        destination: a directory that does not exist or is empty.

    Raises:
        CheckpointError: it cannot be fetched, as :func:`read_hugging_face`, or the destination has files.
    """
    if destination.exists() and any(destination.iterdir()):
        raise CheckpointError(f"{destination} is not empty: give a new directory to write to")
    directory = fetch(source)
    checkpoint = read_hugging_face(directory, name=None if Path(source).is_dir() else str(source))
    dtype = checkpoint.model.decoder.word_embedding.weight.dtype
    save_checkpoint(checkpoint, destination, dtype=dtype)
    return checkpoint


def is_hugging_face(directory: Path) -> bool:
    """Whether a directory holds a Hugging Face checkpoint rather than one of ours."""
    path = directory / "config.json"
    return path.is_file() and "model_type" in read_json(path)


def read_hugging_face(directory: Path, *, name: str | None = None) -> Checkpoint:
    """Read a Hugging Face checkpoint, whose captions will be those of ``transformers``' ``generate``.

    Settings of ``generation_config.json`` become the model's own defaults, but for ``repetition_penalty``,
    which means something else here.

    Args:
        directory: of the checkpoint, as :func:`fetch` gives it.
        name: what to call it; None for the directory's own.

    Returns:
        A checkpoint on the CPU, in the number type of its files.

    Raises:
        CheckpointError: it cannot be read, or is of a kind that is not supported.
    """
    raw, image = read_json(directory / "config.json"), image_settings(directory)
    generation = read_json(directory / "generation_config.json", optional=True)
    with _refusing(directory, name):
        shape = _shape(raw, generation, image)
    tokenizer = _tokenizer(directory, shape)
    config = _asking(shape, tokenizer)
    with _refusing(directory, name):
        model = model_without_weights(config)
    tensors = our_tensors(read_tensors(directory), shape.names, config)
    check_tensors(directory, model.state_dict(), tensors)
    model.load_state_dict(tensors, assign=True)
    return Checkpoint(
        model=model.eval().requires_grad_(False),
        tokenizer=tokenizer,
        processor=_processor(directory, shape, image),
        description=f"{name or directory.resolve().name}, converted from Hugging Face ({raw['model_type']})",
        generation={**shape.generation, **generation_defaults(generation, config.decoder.max_positions)},
    )


@contextmanager
def _refusing(directory: Path, name: str | None) -> Iterator[None]:
    """Say whose configuration it is that is not supported or damaged."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(
            f"{name or directory} cannot be converted: {error}. Supported: {SUPPORTED}."
        ) from error
    except Exception as error:  # a wrong value may reach any constructor, and each fails in its own way
        raise CheckpointError(f"{directory / 'config.json'} does not describe a model: {error!r}") from error


def _tokenizer(directory: Path, shape: Shape) -> CaptionTokenizer:
    return read_tokenizer(
        directory,
        start_ids=shape.start_ids,
        eos_id=shape.eos_id,
        pad_id=shape.pad_id,
        counted_start=shape.counted_start,
        forced_end=shape.forced_end,
    )


def _asking(shape: Shape, tokenizer: CaptionTokenizer) -> ModelConfig:
    """The network with its questions as token ids."""
    if shape.model.question is None:
        return shape.model
    token_ids = {detail: tuple(tokenizer.encode(text)) for detail, text in shape.questions.items()}
    return replace(shape.model, question=replace(shape.model.question, token_ids=token_ids))


def _shape(raw: Mapping[str, Any], generation: Mapping[str, Any], image: Mapping[str, Any]) -> Shape:
    """Raises CheckpointError, with a phrase, for what is not supported, and anything for what is damaged."""
    kind, architectures = raw.get("model_type"), raw.get("architectures")
    if kind == "blip" and "BlipForConditionalGeneration" in (
        architectures or ["BlipForConditionalGeneration"]
    ):
        return _blip_shape(raw)
    if kind == "florence2":
        return florence2_shape(raw, generation, image)
    if kind == "vision-encoder-decoder":
        parts = tuple(raw[part]["model_type"] for part in ("encoder", "decoder"))
        if parts == ("vit", "gpt2"):
            return _vit_gpt2_shape(raw, generation)
        raise CheckpointError(f"its encoder is {parts[0]!r} and its decoder {parts[1]!r}")
    raise CheckpointError(f"it is {' or '.join(architectures or [repr(kind)])}")


def _blip_shape(raw: Mapping[str, Any]) -> Shape:
    from transformers import BlipConfig

    config: Any = BlipConfig.from_dict(dict(raw))
    vision, text = config.vision_config, config.text_config
    if text.hidden_act != "gelu":  # which is that of the output's transformation, too
        raise CheckpointError(f"its decoder's activation is {text.hidden_act!r}")
    decoder = DecoderConfig(
        vocab_size=text.vocab_size,
        width=text.hidden_size,
        layers=text.num_hidden_layers,
        heads=text.num_attention_heads,
        mlp_width=text.intermediate_size,
        max_positions=text.max_position_embeddings,
        region_width=vision.hidden_size,
        norm="post",
        embedding_norm=True,
        head_transform=True,
        eps=text.layer_norm_eps,
    )
    return Shape(
        model=ModelConfig(backbone=_vit(vision), regions=None, decoder=decoder),
        names=BLIP,
        start_ids=(text.bos_token_id,),
        eos_id=text.sep_token_id,
        pad_id=text.pad_token_id,
        image={"image_mean": CLIP_MEAN, "image_std": CLIP_STD, "resample": 3},
    )


def _vit_gpt2_shape(raw: Mapping[str, Any], generation: Mapping[str, Any]) -> Shape:
    from transformers import VisionEncoderDecoderConfig

    config: Any = VisionEncoderDecoderConfig.from_dict(dict(raw))
    vision, text = config.encoder, config.decoder
    if text.scale_attn_by_inverse_layer_idx or not text.scale_attn_weights:
        raise CheckpointError("its decoder scales attention in an unusual way")
    decoder = DecoderConfig(
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

    def token_id(name: str) -> int | None:
        return one_id(name, generation.get(name), raw.get(name), getattr(text, name, None))

    start, eos, pad = (token_id(f"{name}_token_id") for name in ("decoder_start", "eos", "pad"))
    start = token_id("bos_token_id") if start is None else start
    if start is None or eos is None:
        raise CheckpointError("it has no decoder_start_token_id or no eos_token_id")
    return Shape(
        model=ModelConfig(backbone=_vit(vision), regions=None, decoder=decoder),
        names=VIT_GPT2,
        start_ids=(start,),
        eos_id=eos,
        pad_id=eos if pad is None else pad,
        image={"image_mean": (0.5,) * 3, "image_std": (0.5,) * 3, "resample": 2},
    )


def _vit(config: Any) -> BackboneConfig:
    """The backbone that a ``ViTConfig`` or a ``BlipVisionConfig`` describes."""
    if config.hidden_act != "gelu":
        raise CheckpointError(f"its encoder's activation is {config.hidden_act!r}")
    if not isinstance(config.image_size, int) or not isinstance(config.patch_size, int):
        raise CheckpointError(
            f"its images are {config.image_size} and its patches {config.patch_size} pixels"
        )
    options = {
        "patch_size": config.patch_size,
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "mlp_width": config.intermediate_size,
        "eps": config.layer_norm_eps,
    }
    return BackboneConfig(kind="vit", image_size=config.image_size, width=config.hidden_size, options=options)


def _processor(directory: Path, shape: Shape, image: Mapping[str, Any]) -> ImageProcessor:
    settings = {**shape.image, **image}
    side = shape.model.backbone.image_size
    usual = {"do_resize": True, "do_rescale": True, "do_normalize": True, "do_center_crop": False}
    odd = [key for key, value in usual.items() if settings.get(key, value) != value]
    if settings.get("size", side) not in (side, {"height": side, "width": side}):
        odd.append("size")
    if settings["resample"] not in RESAMPLE:
        odd.append("resample")
    if not math.isclose(settings.get("rescale_factor", 1 / 255), 1 / 255):
        odd.append("rescale_factor")
    if odd:
        values = ", ".join(f"{key} {settings[key]}" for key in odd)
        raise CheckpointError(
            f"the image processor of {directory} has {values}, which is not supported: "
            f"photos are squashed to {side} × {side} pixels and normalised"
        )
    return ImageProcessor(
        size=side,
        mean=tuple(settings["image_mean"]),
        std=tuple(settings["image_std"]),
        resample=RESAMPLE[settings["resample"]],
    )
