"""A real model in miniature, with random weights, for tests that need one but not its captions."""

from __future__ import annotations

from dataclasses import replace

import torch

from captioner.captioner import Captioner
from captioner.checkpoint import Checkpoint
from captioner.decoder import DecoderConfig
from captioner.image import ImageProcessor
from captioner.model import CaptionModel, ModelConfig
from captioner.regions import RegionConfig
from captioner.runners import CheckpointRunner
from captioner.tokenizer import train_word_tokenizer
from captioner.vision import BackboneConfig

SENTENCES = (
    "a brown dog runs through the green grass",
    "two children play with a red ball on the beach",
    "the man's white cat sleeps on the left side of a blue sofa",
    "a woman in a black coat walks down a busy street",
)


def tiny_checkpoint(*, seed: int = 0, words: int = 0, colours: int = 0) -> Checkpoint:
    """A 40,000-weight model of our architecture over 30-odd words, the same for the same seed."""
    torch.manual_seed(seed)
    tokenizer = train_word_tokenizer(SENTENCES, min_count=1)
    config = ModelConfig(
        backbone=BackboneConfig(
            kind="efficientnet_lite",
            image_size=64,
            width=24,
            options={"widths": [4, 4, 8, 8, 8, 12, 16], "repeats": [1] * 7, "stem": 4},
        ),
        regions=RegionConfig(
            width=16, layers=1, heads=2, mlp_width=32, classes=10, words=words, colours=colours
        ),
        decoder=DecoderConfig(
            vocab_size=tokenizer.vocab_size,
            width=16,
            layers=2,
            heads=2,
            mlp_width=32,
            max_positions=48,
            region_width=16,
        ),
    )
    model = CaptionModel(config)
    for (
        name,
        parameter,
    ) in model.named_parameters():  # far from uniform, so that captions differ between photos
        if parameter.ndim == 4:
            torch.nn.init.kaiming_normal_(parameter)
        if parameter.ndim == 2:
            parameter.data *= 20 if "cross" in name or "position" in name or "project" in name else 8
    processor = ImageProcessor(size=64, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    return Checkpoint(
        model=model.eval().requires_grad_(False),
        tokenizer=tokenizer,
        processor=processor,
        description="a tiny model for tests",
        generation={"num_beams": 2, "max_length": 12},
    )


def tiny_vit_checkpoint() -> Checkpoint:
    """The same around a ViT of 16 patches and a class token."""
    tiny = tiny_checkpoint()
    options = {"patch_size": 16, "layers": 1, "heads": 2, "mlp_width": 32}
    vit = BackboneConfig(kind="vit", image_size=64, width=24, options=options)
    return replace(tiny, model=CaptionModel(replace(tiny.model.config, backbone=vit)))


def tiny_captioner(*, seed: int = 0) -> Captioner:
    """The model of :func:`tiny_checkpoint`, ready to use on the CPU."""
    return Captioner(CheckpointRunner(tiny_checkpoint(seed=seed)), name="tiny")
