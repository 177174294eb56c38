"""Hugging Face checkpoints -> ours: BLIP, Florence-2 and VisionEncoderDecoderModels.

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
from captioner.convert.encoder_decoder import bert, encoder_decoder_shape, vit
from captioner.convert.files import (
    generation_defaults,
    image_settings,
    read_json,
    read_tensors,
    read_tokenizer,
)
from captioner.convert.florence2 import florence2_shape
from captioner.convert.shape import Shape
from captioner.convert.tensors import BLIP, our_tensors
from captioner.errors import CheckpointError
from captioner.hub import fetch, is_local, with_safetensors
from captioner.image import ImageProcessor
from captioner.model import ModelConfig, model_without_weights
from captioner.tokenizer import CaptionTokenizer

__all__ = ["convert", "is_hugging_face", "read_hugging_face"]

SUPPORTED = (
    "BlipForConditionalGeneration (such as Salesforce/blip-image-captioning-base), "
    "Florence2ForConditionalGeneration (such as florence-community/Florence-2-base) and "
    "VisionEncoderDecoderModel with a ViT, DeiT, BEiT or Swin encoder and a GPT-2, BERT or RoBERTa decoder "
    "(such as nlpconnect/vit-gpt2-image-captioning)"
)

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
RESAMPLE: dict[int, Literal["bilinear", "bicubic"]] = {2: "bilinear", 3: "bicubic"}


def convert(source: str | os.PathLike[str], destination: Path) -> Checkpoint:
    """Write a Hugging Face checkpoint in our format, in the number type that it has.

    Args:
        source: a directory, or a model of the hub, which is downloaded where the cache lacks it.
        destination: a directory that does not exist or is empty.

    Raises:
        CheckpointError: it cannot be fetched, as :func:`read_hugging_face`, or the destination has files.
    """
    if destination.exists() and any(destination.iterdir()):
        raise CheckpointError(f"{destination} is not empty: give a new directory to write to")
    path, name = Path(source), os.fspath(source)
    if is_local(path):
        checkpoint = read_hugging_face(with_safetensors(path), name=path.resolve().name)
    else:
        checkpoint = read_hugging_face(fetch(name), name=name)
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
        directory: of the checkpoint, with its weights in safetensors.
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
    tensors = read_tensors(directory)
    with _refusing(directory, name):
        tensors = shape.renamed(tensors)
    tensors = our_tensors(tensors, shape.names, config)
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
        return encoder_decoder_shape(raw, generation)
    raise CheckpointError(f"it is {' or '.join(architectures or [repr(kind)])}")


def _blip_shape(raw: Mapping[str, Any]) -> Shape:
    from transformers import BlipConfig

    config: Any = BlipConfig.from_dict(dict(raw))
    vision, text = config.vision_config, config.text_config
    return Shape(
        model=ModelConfig(backbone=vit(vision), regions=None, decoder=bert(text, vision)),
        names=BLIP,
        start_ids=(text.bos_token_id,),
        eos_id=text.sep_token_id,
        pad_id=text.pad_token_id,
        image={"image_mean": CLIP_MEAN, "image_std": CLIP_STD, "resample": 3},
    )


def _processor(directory: Path, shape: Shape, image: Mapping[str, Any]) -> ImageProcessor:
    settings = {**shape.image, **image}
    side, cell = shape.model.backbone.image_size, shape.model.backbone.options.get("patch_size")
    usual = {"do_resize": True, "do_rescale": True, "do_normalize": True}
    odd = [key for key, value in usual.items() if settings.get(key, value) != value]
    shown, margin = _square_side(settings.get("size", side)), 0
    if settings.get("do_center_crop"):
        margin = ((shown or 0) - side) // 2
        if _square_side(settings.get("crop_size")) != side or not cell or margin % cell:
            odd.append("do_center_crop")
    if shown != side + 2 * margin or margin < 0:
        odd.append("size")
    if settings["resample"] not in RESAMPLE:
        odd.append("resample")
    if not math.isclose(settings.get("rescale_factor", 1 / 255), 1 / 255):
        odd.append("rescale_factor")
    if odd:
        values = ", ".join(f"{key} {settings[key]}" for key in odd)
        raise CheckpointError(
            f"the image processor of {directory} has {values}, which is not supported: "
            f"photos are squashed to {side} × {side} pixels and normalised; a crop may cut off no more than "
            "whole cells of a ViT's grid"
        )
    return ImageProcessor(
        size=side,
        mean=tuple(settings["image_mean"]),
        std=tuple(settings["image_std"]),
        resample=RESAMPLE[settings["resample"]],
        margin=margin,
    )


def _square_side(size: Any) -> int | None:
    """The side that an image processor's size says; None where that is no square."""
    if isinstance(size, Mapping):
        return (
            size.get("height")
            if size.keys() == {"height", "width"} and size["height"] == size["width"]
            else None
        )
    return size if isinstance(size, int) else None
