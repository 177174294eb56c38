"""Tags and captions that speak of something else together, so that the decoder learns to say what a tag says.

Few photographs of a small set show zebras or espresso, and a decoder that only ever read of dogs and people
takes tags for context. Where a caption says a class tag's word, the word of a class drawn at random replaces
it in tags and captions alike: what the caption says can then be known from the tag, whatever the class.
"""

from __future__ import annotations

import torch
from torch import Tensor

from captioner.regions import TagTokens
from captioner.tokenizer import CaptionTokenizer
from captioner.training.labels import IGNORE, Captions

__all__ = ["TagSwap"]


class TagSwap:
    """Swaps the tag word of some photos.

    Args:
        tags: the model's, with the word of each.
        tokenizer: whose ids these are.
        share: of the photos whose captions say a class tag's word.
    """

    def __init__(self, tags: TagTokens, tokenizer: CaptionTokenizer, share: float) -> None:
        self.tags, self.share = tags, share
        self.words = tags.head_words.where(tags.head_words != tokenizer.config.unk_id, -1)  # -1: none
        self.classes = (self.words[: tags.classes] >= 0).nonzero()[:, 0].tolist()
        a, an = tokenizer.token_id("a"), tokenizer.token_id("an")
        self.article = {
            word: (an, a) if tokenizer.decode([word])[0] in "aeiou" else (a, an)
            for word in set(self.words[self.classes].tolist())
            if a is not None and an is not None
        }

    def __call__(self, captions: Captions, tags: Tensor) -> tuple[Captions, Tensor]:
        """Copies of photos' captions and of their tags ``(B, n)``, with some photos' words swapped."""
        tags, inputs, targets = tags.clone(), captions.input_ids.clone(), captions.targets.clone()
        counts = (targets != IGNORE).any(2).sum(1).tolist()
        for i in (torch.rand(len(tags)) < self.share).nonzero()[:, 0].tolist():
            words = self.words[tags[i]]
            named = words[: TagTokens.CLASSES]
            said = (inputs[i, :, :, None] == named).any(1).sum(0)  # how many captions say each one's word
            if int(said.max()) < min(2, counts[i]):
                continue
            old = int(named[said.argmax()])
            other = self.classes[int(torch.randint(len(self.classes), ()))]
            new = int(self.words[other])
            if not (inputs[i] == new).any():
                tags[i, words == old] = other
                self._replace(inputs[i], old, new)
                self._replace(targets[i], old, new)
        return Captions(inputs, targets), tags

    def _replace(self, ids: Tensor, old: int, new: int) -> None:
        """In ``(N, T)``, in place, with the article that the new word asks for."""
        found = ids == old
        ids[found] = new
        if new in self.article:
            right, wrong = self.article[new]
            before = ids[:, :-1]
            before[found[:, 1:] & (before == wrong)] = right
