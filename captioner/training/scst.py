"""Self-critical sequence training (Rennie et al. 2017) on CIDEr.

The captions that are compared are the beams of a beam search (Cornia et al. 2020), which are nearer to what
the model will say than random samples are; the baseline of each is the mean reward of the photo's others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from captioner.coco import CocoCaptions
from captioner.errors import DataError
from captioner.evaluation.metrics import CiderScorer
from captioner.generation import DecodeRules, SearchOptions, generate
from captioner.model import CaptionModel
from captioner.tokenizer import CaptionTokenizer
from captioner.training.data import IGNORE, Batch

__all__ = ["SelfCritic", "check_consensus", "leave_one_out"]

EOS_WORD = "<eos>"
MOST_PHOTOS = 20_000  # whose pairs take 3 GB, some three times over


def check_consensus(photos: int) -> None:
    """Raise DataError where :func:`leave_one_out` cannot compare a set of so many photos."""
    if not 2 <= photos <= MOST_PHOTOS:
        raise DataError(
            f"a consensus compares each photo with every other, of 2 to {MOST_PHOTOS}, not {photos}: "
            "leave --consensus out"
        )


def leave_one_out(features: Tensor, *, sharpness: float = 2.0, ridge: float = 0.3) -> Tensor:
    """How a photo's captions follow from those of all other photos of a set that look like it.

    That is kernel ridge regression with the photo itself left out, for which there is a closed form: the
    prediction of anything that is known of all photos is the sum of what is known, weighted so.

    Args:
        features: of the photos, ``(photos, C)``: those are alike whose cosine is large, once each channel is
            standardised.
        sharpness: of the kernel, ``exp(sharpness * (cosine - 1))``.
        ridge: what is added to its diagonal.

    Returns:
        The weights ``(photos, photos)``, which may be negative: a row sums to 1, and has 0 for its own photo.
    """
    photos = len(features)
    scaled = F.normalize((features - features.mean(0)) / (features.std(0) + 1e-3)).double()
    kernel = (sharpness * (scaled @ scaled.T - 1)).exp_()
    kernel.diagonal().add_(ridge)
    inverse = torch.linalg.inv(kernel)
    weights = inverse / -inverse.diagonal()[:, None]
    weights.diagonal().zero_()
    weights += (1 - weights.sum(1, keepdim=True)) / (photos - 1)  # a prediction shrinks to the mean, not to 0
    weights.diagonal().zero_()
    result: Tensor = weights.float()
    return result


class SelfCritic:
    """Searches captions, scores them by CIDEr against the photo's own, and makes the better likelier.

    What a photo's own captions say is known by heart from cross-entropy training, and a reward for it alone
    teaches little of photos that are new. So a caption can be rewarded, too, for what it has in common with
    captions as all other photos let one expect them: a consensus (Devlin et al. 2015) by regression.

    The end token counts as a word of both. Captions that break off, by their length or on a word that none
    ends with, get no reward at all: CIDEr alone pays for "in front of a red and", whose n-grams before the
    last are worth more than the one that such an end spoils.

    Args:
        coco: the main photo set, photos in the order of the batches' indices.
        tokenizer: turns its captions into the words that are compared.
        rules: of decoding.
        num_beams: captions for each photo, at least 2.
        max_words: longest caption.
        alike: the weights of :func:`leave_one_out`, where ``consensus`` is not 0.
        consensus: weight of the CIDEr against the expected captions. Between the captions of a search it
            differs a third as much as that against the photo's own.
    """

    def __init__(
        self,
        coco: CocoCaptions,
        tokenizer: CaptionTokenizer,
        rules: DecodeRules,
        num_beams: int,
        max_words: int,
        *,
        alike: Tensor | None = None,
        consensus: float = 0.0,
    ) -> None:
        self.rules, self.num_beams, self.max_words = rules, num_beams, max_words
        self.alike, self.consensus = alike, consensus
        self.eos = tokenizer.config.eos_id
        self.never_last = set(tokenizer.config.never_last_ids)
        references = {
            index: [[*map(str, tokenizer.encode(text)), EOS_WORD] for text in coco.captions[image.id]]
            for index, image in enumerate(coco.images)
        }
        self.scorer = CiderScorer(references)
        self.index = _inverted(self.scorer, len(references)) if consensus else {}

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
        options = SearchOptions(
            num_beams=self.num_beams, alternatives=self.num_beams - 1, max_length=self.max_words + 1
        )
        with torch.no_grad():
            found = generate(model.decoder, region_tokens.detach(), options, self.rules)
        return [[hypothesis.token_ids for hypothesis in image] for image in found]

    def _rewards(self, photo: int, captions: Sequence[tuple[int, ...]]) -> list[float]:
        expected = cache(partial(self._expected, photo))  # captions of one search share most n-grams
        rewards = []
        for ids in captions:
            words = [EOS_WORD if token == self.eos else str(token) for token in ids]
            if words[-1] != EOS_WORD or (len(ids) > 1 and ids[-2] in self.never_last):
                rewards.append(0.0)
                continue
            rewards.append(self.scorer.score(photo, words))
            if self.consensus:
                rewards[-1] += self.consensus * self.scorer.agreement(expected, words[:-1])
        return rewards

    def _expected(self, photo: int, ngram: tuple[str, ...]) -> float:
        """What the other photos let one expect of an n-gram in a photo's captions."""
        assert self.alike is not None
        if ngram not in self.index:
            return 0.0
        photos, values = self.index[ngram]
        return float(self.alike[photo][photos] @ values)


def _inverted(scorer: CiderScorer[int], photos: int) -> dict[tuple[str, ...], tuple[Tensor, Tensor]]:
    """For each n-gram the photos whose captions have it, and what it has there in the mean vector."""
    lists: defaultdict[tuple[str, ...], list[tuple[int, float]]] = defaultdict(list)
    for photo in range(photos):
        for ngram, value in scorer.mean_vector(photo).items():
            lists[ngram].append((photo, value))
    index = {}
    for ngram, entries in lists.items():
        where, values = zip(*entries, strict=True)
        index[ngram] = torch.tensor(where), torch.tensor(values)
    return index
