"""The untrained model: our architecture around ImageNet weights, with a vocabulary from the captions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from captioner.checkpoint import Checkpoint, load_checkpoint
from captioner.decoder import DecoderConfig
from captioner.errors import CheckpointError
from captioner.image import ImageProcessor
from captioner.model import CaptionModel, ModelConfig, RegionConfig
from captioner.tokenizer import CaptionTokenizer, train_word_tokenizer
from captioner.vision import BackboneConfig

__all__ = ["initial_checkpoint"]

FEW = 8
"""A word in fewer captions than this is learned badly: a more usual one takes its place as a tag."""

EFFICIENTNET_LITE2 = {"widths": [16, 24, 48, 88, 120, 208, 352], "repeats": [1, 3, 3, 4, 4, 5, 1], "stem": 32}


def initial_checkpoint(
    captions: Sequence[str],
    backbone: Path,
    *,
    description: str,
    image_size: int = 288,
    width: int = 384,
    region_layers: int = 1,
    layers: int = 3,
    dropout: float = 0.3,
    max_positions: int = 48,
) -> Checkpoint:
    """A model with a trained backbone and an untrained rest.

    Args:
        captions: all training captions; words that occur four times make the vocabulary.
        backbone: a checkpoint directory to take it from, or a file of ``scripts/imagenet_weights.py``.
        description: for ``captioner models``.
        image_size: side of the square input in pixels.
        width: channels of text and region tokens, a multiple of 64.
        region_layers: self-attention layers over the region tokens.
        layers: decoder blocks.
        dropout: in both.
        max_positions: longest sequence in tokens.

    Raises:
        CheckpointError: the backbone's weights cannot be read or do not fit.
    """
    tokenizer = train_word_tokenizer(captions)
    heads, mlp_width = width // 64, 4 * width
    config = ModelConfig(
        backbone=BackboneConfig(
            kind="efficientnet_lite", image_size=image_size, width=1280, options=EFFICIENTNET_LITE2
        ),
        regions=RegionConfig(
            width=width, layers=region_layers, heads=heads, mlp_width=mlp_width, dropout=dropout, classes=1000
        ),
        decoder=DecoderConfig(
            vocab_size=tokenizer.vocab_size,
            width=width,
            layers=layers,
            heads=heads,
            mlp_width=mlp_width,
            max_positions=max_positions,
            region_width=width,
            dropout=dropout,
        ),
    )
    model = CaptionModel(config)
    _load_partly(model, read_backbone(backbone), backbone)
    assert model.regions is not None
    assert model.regions.tags is not None
    model.regions.tags.head_words = head_word_ids(captions, tokenizer)
    processor = ImageProcessor(size=image_size, mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
    return Checkpoint(model=model, tokenizer=tokenizer, processor=processor, description=description)


def read_backbone(source: Path) -> dict[str, Tensor]:
    """Weights of the backbone and of its classifier."""
    if source.is_dir():
        old = load_checkpoint(source, device=torch.device("cpu"), dtype=torch.float32)
        if old.model.regions is None or old.model.regions.tags is None:
            raise CheckpointError(f"{source} has no classifier, which the tag tokens need")
        kept = ("backbone.", "regions.tags.classifier.")
        return {name: value for name, value in old.model.state_dict().items() if name.startswith(kept)}
    try:
        with safe_open(source, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{source} holds no backbone ({error}): give a checkpoint directory, "
            "or a file that scripts/imagenet_weights.py wrote"
        ) from error


def _load_partly(model: CaptionModel, tensors: dict[str, Tensor], source: Path) -> None:
    try:
        unknown = model.load_state_dict(tensors, strict=False).unexpected_keys
    except RuntimeError as error:
        raise CheckpointError(f"{source} does not fit EfficientNet-Lite2: {error}") from error
    missing = [name for name in model.backbone.state_dict() if f"backbone.{name}" not in tensors]
    if unknown or missing:
        raise CheckpointError(
            f"{source} does not fit EfficientNet-Lite2: unknown {unknown[:3]}, missing {missing[:3]}"
        )


def head_word_ids(captions: Sequence[str], tokenizer: CaptionTokenizer) -> Tensor:
    """For each ImageNet class the id of the word that captions use for it, of the unknown word if none.

    ``imagenet_words.txt`` has a class a line: its name, a tab, and words from the most telling to the most
    general. The first that enough captions use is taken, else the most frequent of those that any uses.
    """
    counts = Counter(token for caption in captions for token in set(tokenizer.encode(caption)))
    lines = resources.files(__package__).joinpath("imagenet_words.txt").read_text("utf-8").splitlines()
    ids = []
    for line in lines:
        words = line.partition("\t")[2].split()
        known = [token for word in words if (token := tokenizer.token_id(word)) is not None]
        frequent = (token for token in known if counts[token] >= FEW)
        rest = max(known, key=lambda token: counts[token], default=tokenizer.config.unk_id)
        ids.append(next(frequent, rest))
    return torch.tensor(ids)
