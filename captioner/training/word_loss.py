"""A second task for the encoder in training: its mean feature is to tell which words the captions say.

Captions teach an encoder through a decoder, one word at a time. Which words people use of a photo is the same
knowledge without that detour: classification with many labels (Fang et al. 2015). Descriptions that are no
captions can take part in it.
"""

from __future__ import annotations

from collections.abc import Container, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captioner.training.words import word_shares

__all__ = ["WordLoss"]

FEWEST_PHOTOS = 8  # whose captions say a word that is to be told
DROPOUT = 0.2


class WordLoss(nn.Module):
    """A linear layer on the mean feature, and what it is to say of each photo.

    Args:
        channels: of a feature.
        captions: for each set and photo the token ids of the captions.
        narratives: of each set, whether its texts are long descriptions, which do not choose the words.
        content: tokens that say something of a photo.
    """

    def __init__(
        self,
        channels: int,
        captions: Sequence[Sequence[Sequence[Sequence[int]]]],
        narratives: Sequence[bool],
        content: Container[int],
    ) -> None:
        super().__init__()
        told = [part for part, is_narrative in zip(captions, narratives, strict=True) if not is_narrative]
        tokens = {token for part in captions for texts in part for ids in texts for token in ids}
        words = sorted(token for token in tokens if token in content)
        shares = torch.cat([word_shares(part, words) for part in told])
        known = (shares > 0).sum(0) >= FEWEST_PHOTOS
        self.words = [word for word, keep in zip(words, known.tolist(), strict=True) if keep]
        self.shares = [word_shares(part, self.words) for part in captions]
        self.head = nn.Linear(channels, len(self.words))
        nn.init.zeros_(self.head.weight)
        with torch.no_grad():
            self.head.bias.copy_(torch.logit(shares[:, known].mean(0).clamp(1e-4, 0.999)))

    def forward(self, features: Tensor, photos: Sequence[tuple[int, list[int]]]) -> Tensor:
        """Binary cross-entropy, summed over the words, of feature maps ``(B, C, h, w)``.

        ``photos`` are theirs: the number of a set and places in it, set by set.
        """
        said = torch.cat([self.shares[number][places] for number, places in photos]).to(features.device)
        logits = self.head(F.dropout(features.mean((2, 3)), DROPOUT, self.training)).float()
        return F.binary_cross_entropy_with_logits(logits, said, reduction="none").sum(1).mean()
