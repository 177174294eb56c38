"""Self-critical sequence training (Rennie et al. 2017).

The captions that are compared are the beams of a beam search (Cornia et al. 2020), which are nearer to what
the model will say than random samples are; the baseline of each is the mean reward of the photo's others.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from captioner.generation import DecodeRules, SearchOptions, generate
from captioner.model import CaptionModel
from captioner.training.labels import IGNORE
from captioner.training.rewards import Photo, Rewards

__all__ = ["SelfCritic"]


class SelfCritic:
    """Searches captions, and makes those likelier that have the better rewards.

    Args:
        rewards: of captions.
        rules: of decoding.
        num_beams: captions for each photo, at least 2.
        max_words: longest caption.
    """

    def __init__(self, rewards: Rewards, rules: DecodeRules, num_beams: int, max_words: int) -> None:
        self.rewards, self.rules = rewards, rules
        self.num_beams, self.max_words = num_beams, max_words

    def loss(self, model: CaptionModel, photos: Sequence[Photo], region_tokens: Tensor) -> Tensor:
        """Policy-gradient loss of the beams of each photo of the batch; the decoder in eval mode.

        It has no dropout, since the captions were found without it: the gradient would be mostly noise. The
        region tokens may have some: search and loss see the same ones.
        """
        found = self._search(model, region_tokens)
        start = self.rules.prompt_ids
        longest = max(len(ids) for captions in found for ids in captions)
        shape = (len(found), self.num_beams, len(start) + longest)
        tokens = torch.full(shape, self.rules.pad_id, dtype=torch.int64, device=region_tokens.device)
        targets = torch.full_like(tokens, IGNORE)
        advantage = torch.zeros(shape[:2], device=region_tokens.device)
        for i, (photo, captions) in enumerate(zip(photos, found, strict=True)):
            rewards = torch.tensor(self.rewards(photo, captions))
            count = len(captions)  # a mean over the others is one over all, scaled
            advantage[i, :count] = (rewards - rewards.mean()) * count / max(1, count - 1)
            for j, ids in enumerate(captions):
                whole = torch.tensor([*start, *ids], device=tokens.device)
                tokens[i, j, : len(whole)] = whole
                targets[i, j, len(start) - 1 : len(whole) - 1] = whole[len(start) :]
        hidden, _ = model.decoder(tokens[:, :, :-1], model.decoder.cross_cache(region_tokens))
        known = targets[:, :, :-1] != IGNORE
        nll = F.cross_entropy(
            model.decoder.logits(hidden[known]).float(), targets[:, :, :-1][known], reduction="none"
        )
        return (advantage[:, :, None].expand(known.shape)[known] * nll).mean()

    def _search(self, model: CaptionModel, region_tokens: Tensor) -> list[list[tuple[int, ...]]]:
        options = SearchOptions(
            num_beams=self.num_beams, alternatives=self.num_beams - 1, max_length=self.max_words + 1
        )
        with torch.no_grad():
            found = generate(model.decoder, region_tokens.detach(), options, self.rules)
        return [[hypothesis.token_ids for hypothesis in image] for image in found]
