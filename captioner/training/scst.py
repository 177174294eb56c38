"""Self-critical sequence training (Rennie et al. 2017) on CIDEr.

The baseline of a sample is the mean reward of the photo's other samples (Luo 2020): no further decode.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from captioner.coco import CocoCaptions
from captioner.evaluation.metrics import CiderScorer
from captioner.generation import DecodeRules, GenerationOptions, generate
from captioner.model import CaptionModel
from captioner.tokenizer import CaptionTokenizer
from captioner.training.data import IGNORE, Batch

__all__ = ["SelfCritic"]

EOS_WORD = "<eos>"


class SelfCritic:
    """Samples captions, scores them by CIDEr against the photo's own captions, and makes the better likelier.

    The end token counts as a word of both. Captions that break off, by their length or on a word that none
    ends with, get no reward at all: CIDEr alone pays for "in front of a red and", whose n-grams before the
    last are worth more than the one that such an end spoils.

    Args:
        coco: the main photo set, photos in the order of the batches' indices.
        tokenizer: turns its captions into the words that are compared.
        rules: of decoding.
        samples: captions for each photo, at least 2.
        max_words: longest sample.
    """

    def __init__(
        self,
        coco: CocoCaptions,
        tokenizer: CaptionTokenizer,
        rules: DecodeRules,
        samples: int,
        max_words: int,
    ) -> None:
        self.rules, self.samples, self.max_words = rules, samples, max_words
        self.eos = tokenizer.config.eos_id
        self.never_last = set(tokenizer.config.never_last_ids)
        references = {
            index: [[*map(str, tokenizer.encode(text)), EOS_WORD] for text in coco.captions[image.id]]
            for index, image in enumerate(coco.images)
        }
        self.scorer = CiderScorer(references)

    def loss(self, model: CaptionModel, batch: Batch, region_tokens: Tensor) -> Tensor:
        """Policy-gradient loss of ``samples`` captions for each photo of the batch."""
        sampled = self._sample(model, region_tokens)
        rewards = torch.tensor(
            [
                [self._reward(photo, ids) for ids in captions]
                for photo, captions in zip(batch.photos, sampled, strict=True)
            ],
            device=region_tokens.device,
        )  # (B, samples)
        baseline = (rewards.sum(1, keepdim=True) - rewards) / (self.samples - 1)
        start = self.rules.prompt_ids
        longest = max(len(ids) for captions in sampled for ids in captions)
        shape = (*rewards.shape, len(start) + longest)
        tokens = torch.full(shape, self.rules.pad_id, dtype=torch.int64, device=region_tokens.device)
        targets = torch.full_like(tokens, IGNORE)
        for i, captions in enumerate(sampled):
            for j, ids in enumerate(captions):
                whole = torch.tensor([*start, *ids], device=tokens.device)
                tokens[i, j, : len(whole)] = whole
                targets[i, j, len(start) - 1 : len(whole) - 1] = whole[len(start) :]
        hidden, _ = model.decoder(tokens[:, :, :-1], model.decoder.cross_cache(region_tokens))
        known = targets[:, :, :-1] != IGNORE
        nll = F.cross_entropy(
            model.decoder.logits(hidden[known]).float(), targets[:, :, :-1][known], reduction="none"
        )
        advantage = (rewards - baseline)[:, :, None].expand(known.shape)[known]
        return (advantage * nll).mean()

    def _sample(self, model: CaptionModel, region_tokens: Tensor) -> list[list[tuple[int, ...]]]:
        options = GenerationOptions(
            do_sample=True, num_beams=1, alternatives=self.samples - 1, max_length=self.max_words + 1
        )
        model.eval()
        with torch.no_grad():
            found = generate(model.decoder, region_tokens.detach(), options, self.rules)
        model.train()
        return [[hypothesis.token_ids for hypothesis in image] for image in found]

    def _reward(self, photo: int, ids: tuple[int, ...]) -> float:
        if ids[-1] != self.eos or (len(ids) > 1 and ids[-2] in self.never_last):
            return 0.0
        words = [EOS_WORD if token == self.eos else str(token) for token in ids]
        return self.scorer.score(photo, words)
