"""Self-critical sequence training (Rennie et al. 2017) on CIDEr.

The captions that are compared are the beams of a beam search (Cornia et al. 2020), which are nearer to what
the model will say than random samples are; the baseline of each is the mean reward of the photo's others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from captioner.coco import CocoCaptions
from captioner.evaluation.metrics import CiderScorer
from captioner.generation import DecodeRules, GenerationOptions, generate
from captioner.model import CaptionModel
from captioner.tokenizer import CaptionTokenizer
from captioner.training.data import IGNORE, Batch

__all__ = ["SelfCritic", "find_neighbours"]

EOS_WORD = "<eos>"


def find_neighbours(features: Tensor, count: int = 60) -> list[dict[int, float]]:
    """For each photo of a set those that look most like it, itself left out, and how much each counts.

    Args:
        features: of the photos, ``(photos, C)``: those are alike whose cosine is large, once each channel is
            standardised.
        count: neighbours of each, or as many as there are.

    Returns:
        For each photo its neighbours' places in the set, with the squared cosines, scaled to a sum of 1.
    """
    scaled = F.normalize((features - features.mean(0)) / (features.std(0, correction=0) + 1e-3))
    neighbours = []
    for start in range(0, len(scaled), 1024):
        alike = scaled[start : start + 1024] @ scaled.T
        alike.diagonal(start).fill_(-1)
        cosines, photos = alike.topk(min(count, len(features) - 1))
        squares = cosines.clamp(min=1e-3).square()
        weights = squares / squares.sum(1, keepdim=True)
        neighbours += [
            dict(zip(*row, strict=True)) for row in zip(photos.tolist(), weights.tolist(), strict=True)
        ]
    return neighbours


class SelfCritic:
    """Searches captions, scores them by CIDEr against the photo's own, and makes the better likelier.

    What a photo's own captions say is known by heart from cross-entropy training, and a reward for it alone
    teaches little of photos that are new. So a caption can be rewarded for what it has in common with the
    captions of photos that look alike, too: the consensus of Devlin et al. 2015.

    The end token counts as a word of both. Captions that break off, by their length or on a word that none
    ends with, get no reward at all: CIDEr alone pays for "in front of a red and", whose n-grams before the
    last are worth more than the one that such an end spoils.

    Args:
        coco: the main photo set, photos in the order of the batches' indices.
        tokenizer: turns its captions into the words that are compared.
        rules: of decoding.
        num_beams: captions for each photo, at least 2.
        max_words: longest caption.
        neighbours: of each photo, by :func:`find_neighbours`, where ``consensus`` is not 0.
        consensus: weight of the mean CIDEr against the captions of the neighbours. Between the captions of a
            search it differs a third as much as that against the photo's own.
    """

    def __init__(
        self,
        coco: CocoCaptions,
        tokenizer: CaptionTokenizer,
        rules: DecodeRules,
        num_beams: int,
        max_words: int,
        *,
        neighbours: Sequence[Mapping[int, float]] = (),
        consensus: float = 0.0,
    ) -> None:
        self.rules, self.num_beams, self.max_words = rules, num_beams, max_words
        self.neighbours, self.consensus = neighbours, consensus
        self.eos = tokenizer.config.eos_id
        self.never_last = set(tokenizer.config.never_last_ids)
        references = {
            index: [[*map(str, tokenizer.encode(text)), EOS_WORD] for text in coco.captions[image.id]]
            for index, image in enumerate(coco.images)
        }
        self.scorer = CiderScorer(references)

    def loss(self, model: CaptionModel, batch: Batch, region_tokens: Tensor) -> Tensor:
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
        for i, (photo, captions) in enumerate(zip(batch.photos, found, strict=True)):
            rewards = torch.tensor(self._rewards(photo, captions))
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
        options = GenerationOptions(
            num_beams=self.num_beams, alternatives=self.num_beams - 1, max_length=self.max_words + 1
        )
        with torch.no_grad():
            found = generate(model.decoder, region_tokens.detach(), options, self.rules)
        return [[hypothesis.token_ids for hypothesis in image] for image in found]

    def _rewards(self, photo: int, captions: Sequence[tuple[int, ...]]) -> list[float]:
        # made anew in each epoch: some 5,000 n-grams a photo are too many to keep
        alike = self.scorer.mean_vector(self.neighbours[photo]) if self.consensus else None
        rewards = []
        for ids in captions:
            words = [EOS_WORD if token == self.eos else str(token) for token in ids]
            if words[-1] != EOS_WORD or (len(ids) > 1 and ids[-2] in self.never_last):
                rewards.append(0.0)
                continue
            rewards.append(self.scorer.score(photo, words))
            if alike is not None:
                rewards[-1] += self.consensus * self.scorer.agreement(alike, words[:-1])
        return rewards
