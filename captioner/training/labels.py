"""Captions as texts -> the token ids that the decoder reads, and those that it is to say next.

They are what generation goes by: the same start tokens, the prompt that the model's own settings have, and
the end token, which may be the one that also starts and pads (GPT-2).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from captioner.tokenizer import CaptionTokenizer

__all__ = ["IGNORE", "Captions", "Labels", "mirrored"]

IGNORE = -100
"""Target of padding, of the prompt, and of words outside the vocabulary."""

OTHER_SIDE = {"left": "right", "right": "left", "Left": "Right", "Right": "Left"}
_SIDE = re.compile(r"\b(?:left|right|Left|Right)\b")


class Captions(NamedTuple):
    """Captions of ``B`` photos, up to ``N`` of each; rows without one are padding throughout.

    ``input_ids (B, N, T)`` int64, start token first; ``targets`` alike: the next token, or ``IGNORE``.
    """

    input_ids: Tensor
    targets: Tensor

    @property
    def number(self) -> int:
        """How many captions there are."""
        return int((self.targets != IGNORE).any(2).sum())

    def to(self, device: torch.device) -> Captions:
        """The same on a device."""
        return Captions(self.input_ids.to(device), self.targets.to(device))

    def pick(self, photos: list[int]) -> Captions:
        """Those of some photos."""
        return Captions(self.input_ids[photos], self.targets[photos])


@dataclass(frozen=True)
class Labels:
    """How a run writes captions as token ids.

    Attributes:
        tokenizer: of the model.
        max_words: captions are cut after so many tokens; the prompt's do not count.
        prompt: text that all captions begin with, which is not learned.
    """

    tokenizer: CaptionTokenizer
    max_words: int
    prompt: str = ""

    @cached_property
    def prompt_ids(self) -> tuple[int, ...]:
        """What all captions begin with, the start token first."""
        return (*self.tokenizer.config.start_ids, *self.tokenizer.encode(self.prompt.strip()))

    def words(self, caption: str) -> list[int]:
        """The tokens of a caption after the prompt, with which it may begin itself, without an end token."""
        given = list(self.prompt_ids[len(self.tokenizer.config.start_ids) :])
        ids = self.tokenizer.encode(caption.strip())
        if given and ids[: len(given)] != given:
            return self.tokenizer.encode(f" {caption.strip()}")  # byte pairs know the space
        return ids[len(given) :]

    def sequence(self, caption: str, *, whole: bool = False) -> list[int]:
        """The token ids of a caption; one that is cut has no end token."""
        words, most = self.words(caption), None if whole else self.max_words
        end = [self.tokenizer.config.eos_id] if most is None or len(words) <= most else []
        return [*self.prompt_ids, *words[:most], *end]

    def pack(self, captions: Sequence[Sequence[Sequence[int]]]) -> Captions:
        """The token ids of each photo's captions, in one rectangle."""
        config, given = self.tokenizer.config, len(self.prompt_ids)
        rows, longest = max(map(len, captions)), max(len(ids) for photo in captions for ids in photo)
        padded = torch.full((len(captions), rows, longest), config.pad_id, dtype=torch.int64)
        targets = torch.full_like(padded, IGNORE)
        for i, photo in enumerate(captions):
            for j, ids in enumerate(photo):
                padded[i, j, : len(ids)] = torch.tensor(ids)
                targets[i, j, given : len(ids)] = padded[i, j, given : len(ids)]
        if config.unk_id != config.eos_id:
            targets[targets == config.unk_id] = IGNORE
        return Captions(padded[:, :, :-1].contiguous(), targets[:, :, 1:].contiguous())


def mirrored(caption: str) -> str:
    """What a caption says of the photo's mirror image."""
    return _SIDE.sub(lambda side: OTHER_SIDE[side[0]], caption)
