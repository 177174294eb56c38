"""Well-known captioners at their true size with random weights, to measure speed without a download."""

from __future__ import annotations

from dataclasses import replace

import torch
from tokenizers import Tokenizer, models

from captioner.checkpoint import Checkpoint
from captioner.decoder import DecoderConfig
from captioner.errors import OptionsError
from captioner.image import ImageProcessor
from captioner.model import CaptionModel, ModelConfig
from captioner.tokenizer import CaptionTokenizer, TokenizerConfig
from captioner.vision import BackboneConfig

__all__ = ["random_checkpoint"]

_GPT2 = DecoderConfig(
    vocab_size=50257,
    width=768,
    layers=12,
    heads=12,
    mlp_width=3072,
    max_positions=1024,
    region_width=768,
    activation="gelu_tanh",
    output_bias=False,
)
_BERT = replace(
    _GPT2,
    vocab_size=30524,
    max_positions=512,
    norm="post",
    embedding_norm=True,
    head_transform=True,
    activation="gelu",
    output_bias=True,
    eps=1e-12,
)
_DECODERS = {"blip-base": _BERT, "vit-gpt2": _GPT2}
_IMAGE_SIZES = {"blip-base": 384, "vit-gpt2": 224}
_IDS = {"blip-base": (30522, 102, 0), "vit-gpt2": (50256, 50256, 50256)}  # start, end, padding


def random_checkpoint(name: str) -> Checkpoint:
    """A model of the size of BLIP-base or ViT-GPT2 with random weights, and 20 tokens in every caption.

    Args:
        name: ``blip-base`` (Li et al. 2022) or ``vit-gpt2``.

    Raises:
        OptionsError: the name is another one.
    """
    if name not in _DECODERS:
        raise OptionsError(f"no architecture {name!r}: give one of {', '.join(_DECODERS)}")
    size, (start, end, pad) = _IMAGE_SIZES[name], _IDS[name]
    options = {"patch_size": 16, "layers": 12, "heads": 12, "mlp_width": 3072}
    torch.manual_seed(0)
    model = CaptionModel(
        ModelConfig(
            backbone=BackboneConfig(kind="vit", image_size=size, width=768, options=options),
            regions=None,
            decoder=_DECODERS[name],
        )
    )
    config = TokenizerConfig(start_ids=(start,), eos_id=end, pad_id=pad, unk_id=-1, never_ids=())
    no_words = Tokenizer(models.WordLevel({"<unk>": 0}, "<unk>"))
    return Checkpoint(
        model=model.eval().requires_grad_(False),
        tokenizer=CaptionTokenizer(no_words, config),
        processor=ImageProcessor(size=size, mean=(0.5,) * 3, std=(0.5,) * 3),
        description=f"{name} with random weights",
        generation={"num_beams": 3, "max_length": 20, "min_length": 20},
    )
