"""A finished model to go on from, on other photos and captions (fine-tuning).

Whatever runs on our own loop will do. Its tokenizer, configuration, image processor and settings stay.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from torch import nn

from captioner.checkpoint import Checkpoint
from captioner.content import words_of
from captioner.errors import OptionsError
from captioner.load import load
from captioner.tokenizer import CaptionTokenizer

__all__ = ["finished_checkpoint", "unknown_words"]


def finished_checkpoint(name: str, *, description: str = "", dropout: float | None = None) -> Checkpoint:
    """The model of that name, on the CPU in float32.

    Args:
        name: as :func:`~captioner.load.load` takes it.
        description: of what comes of it; "" for one that names the model.
        dropout: in the decoder and region encoder while it is trained; None for what its configuration says.

    Raises:
        CheckpointError: there is no such model, or it is damaged.
        OptionsError: it does not run on our own loop.
    """
    model = load(name, device="cpu", dtype="float32")
    checkpoint = model.checkpoint
    if checkpoint is None:
        raise OptionsError(
            f"{name} cannot be trained here: only models that run on Captioner's own decoder can, such as "
            "the shipped one, BLIP, ViT-GPT2 and Florence-2"
        )
    if dropout is not None:
        for part in (checkpoint.model.regions, checkpoint.model.decoder):
            for module in part.modules() if part is not None else ():
                if isinstance(module, nn.Dropout):
                    module.p = dropout
    return replace(checkpoint, description=description or f"fine-tuned from {model.name}")


def unknown_words(tokenizer: CaptionTokenizer, captions: Iterable[str]) -> Counter[str]:
    """The words of captions that a model has no tokens for, and how often each occurs."""
    unknown = tokenizer.config.unk_id
    if unknown in (-1, tokenizer.config.eos_id):  # byte pairs spell everything
        return Counter()
    counts = Counter(word for caption in captions for word in words_of(caption))
    return Counter({word: count for word, count in counts.items() if unknown in tokenizer.encode(word)})
