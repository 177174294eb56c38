"""The untrained model: our architecture around ImageNet weights, with a vocabulary from the captions."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from captioner.checkpoint import Checkpoint, load_checkpoint
from captioner.decoder import DecoderConfig
from captioner.errors import CheckpointError, DataError
from captioner.image import ImageProcessor
from captioner.model import CaptionModel, ModelConfig
from captioner.regions import RegionConfig
from captioner.tokenizer import CaptionTokenizer, train_word_tokenizer
from captioner.training.classes import with_word_classes
from captioner.training.words import FEWEST_PHOTOS, caption_words
from captioner.vision import BackboneConfig

__all__ = ["initial_checkpoint", "pointer_channels"]

SAMPLING = {"top_k": 5, "top_p": 0.5}
"""A new model's own options, for sampling only: drawn from all words, captions make little sense."""

RARE_IN_CAPTIONS, RARE_IN_TEXTS = 4, 12  # how often a word must occur to be known
SHADES = 4  # of each of red, green and blue in the regions' colours
EFFICIENTNET_LITE2 = {"widths": [16, 24, 48, 88, 120, 208, 352], "repeats": [1, 3, 3, 4, 4, 5, 1], "stem": 32}


def initial_checkpoint(
    captions: Sequence[Sequence[str]],
    backbone: Path,
    *,
    description: str,
    word_tags: bool = False,
    texts: Sequence[Sequence[str]] = (),
    image_size: int = 288,
    width: int = 384,
    region_layers: int = 1,
    layers: int = 3,
    dropout: float = 0.3,
    max_positions: int = 48,
) -> Checkpoint:
    """A model with a trained backbone and an untrained rest.

    Args:
        captions: of each training photo; words that occur four times make the vocabulary.
        texts: of further photos that are not there; with them a word must occur twelve times in all.
        backbone: a checkpoint directory to take it from, or a file of ``scripts/imagenet_weights.py``.
        description: for ``captioner models``.
        word_tags: with a word head, which the training photos are then to fit (``words.py``).
        image_size: side of the square input in pixels.
        width: channels of text and region tokens, a multiple of 64.
        region_layers: self-attention layers over the region tokens.
        layers: decoder blocks.
        dropout: in both.
        max_positions: longest sequence in tokens.

    Raises:
        CheckpointError: the backbone's weights cannot be read or do not fit.
        DataError: word tags are wanted of captions that have too few words in common.
    """
    tag_words = class_words()
    spoken = [text for photo in (*captions, *texts) for text in photo]
    fewest = RARE_IN_TEXTS if texts else RARE_IN_CAPTIONS
    tokenizer = train_word_tokenizer(spoken, min_count=fewest, words=set(tag_words) - {""})
    tokenizer = with_word_classes(tokenizer, spoken)
    words = caption_words(captions, tokenizer) if word_tags else []
    if word_tags and not words:
        raise DataError(f"no word is in the captions of {FEWEST_PHOTOS} photos: leave --word-tags out")
    heads, mlp_width = width // 64, 4 * width
    config = ModelConfig(
        backbone=BackboneConfig(
            kind="efficientnet_lite", image_size=image_size, width=1280, options=EFFICIENTNET_LITE2
        ),
        regions=RegionConfig(
            width=width,
            layers=region_layers,
            heads=heads,
            mlp_width=mlp_width,
            dropout=dropout,
            classes=1000,
            words=len(words),
            colours=SHADES,
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
    model.regions.tags.head_words = tag_word_ids(tokenizer, [*tag_words, *words])
    assert model.regions.project_colours is not None
    nn.init.normal_(model.regions.project_colours.weight, std=0.1)  # as large as what the features give
    favour_copying(model)
    processor = ImageProcessor(size=image_size, mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
    return Checkpoint(
        model=model,
        tokenizer=tokenizer,
        processor=processor,
        description=description,
        generation=dict(SAMPLING),
    )


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


def class_words() -> list[str]:
    """For each ImageNet class the word of everyday English for it; empty where there is none."""
    lines = resources.files(__package__).joinpath("imagenet_words.txt").read_text("utf-8").splitlines()
    return [line.partition("\t")[2] for line in lines]


def tag_word_ids(tokenizer: CaptionTokenizer, words: Sequence[str]) -> Tensor:
    """The ids of tags' words: the unknown word's where a class has none."""
    ids = [tokenizer.token_id(word) for word in words]
    return torch.tensor([tokenizer.config.unk_id if token is None else token for token in ids])


def pointer_channels(model: CaptionModel) -> int:
    """How many channels the pointer has: those of the first half of the last cross-attention's heads."""
    heads, width = model.config.decoder.heads, model.config.decoder.width
    return heads // 2 * (width // heads)


def favour_copying(model: CaptionModel) -> None:
    """Let half of the heads of the last cross-attention start as a pointer that says the words of the tags.

    All tags share a mark, in channels that these heads do not copy, and their queries look for it; their
    values and their output pass on other channels, with the embedding of the tag's word, which is the
    output's too. What training then learns is when to attend to which tag, which serves all words: from
    random weights that does not come about in the epochs that small photo sets allow.
    """
    assert model.regions is not None
    assert model.regions.tags is not None
    attention = model.decoder.blocks[-1].cross_attention
    width = attention.out.weight.shape[0]
    size, copied = width // attention.heads, pointer_channels(model)
    nn.init.normal_(model.decoder.word_embedding.weight, std=width**-0.5)  # a norm of 1
    with torch.no_grad():
        for layer in model.regions.layers:  # which would else drown the words
            layer.attention.out.weight.zero_()
            layer.mlp.fc2.weight.zero_()
        mark = model.regions.tags.class_embedding.weight
        mark.zero_()
        mark[:, -size:] = 2 * size**-0.5  # a norm of 2
        for query in range(0, copied, size):  # the first channel of each of these heads
            attention.kv.weight[query, -size:] += 0.5 * size**-0.5
            attention.q.bias[query] = 5.0
        attention.kv.weight[width : width + copied] = torch.eye(copied, width)
        attention.out.weight[:, :copied] = 2.5 * torch.eye(width, copied)
