"""What one step of training makes smaller: captions by cross-entropy, rewards, and the classes of before."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captioner.checkpoint import Checkpoint
from captioner.model import CaptionModel
from captioner.regions import Tags
from captioner.training.cache import View
from captioner.training.data import Batch
from captioner.training.labels import IGNORE, Captions
from captioner.training.precision import depthwise_in_float32
from captioner.training.scst import SelfCritic
from captioner.training.state import TrainingState
from captioner.training.swap import TagSwap
from captioner.training.word_loss import WordLoss

__all__ = ["Step", "cross_entropy"]

Text = tuple[Tags, Captions]


def cross_entropy(
    model: CaptionModel, captions: Captions, region_tokens: Tensor, *, label_smoothing: float
) -> Tensor:
    """Mean negative log-likelihood of photos' captions given their region tokens."""
    cross = model.decoder.cross_cache(region_tokens)
    hidden, _ = model.decoder(captions.input_ids, cross)
    known = captions.targets != IGNORE
    logits = model.decoder.logits(hidden[known])
    return F.cross_entropy(logits.float(), captions.targets[known], label_smoothing=label_smoothing)


def class_drift(classifier: nn.Module, features: Tensor, original: Tensor) -> Tensor:
    """KL divergence of the classes of feature maps ``(B, C, h, w)`` from what the original features gave."""
    now, before = (classifier(x.mean((2, 3))).float().log_softmax(-1) for x in (features, original))
    return F.kl_div(now, before, reduction="batchmean", log_target=True)


class Step:
    """The loss of a step, in whatever phase the run is.

    Attributes:
        word_tags: of each photo set, where the model has any.
        critic: rewards captions, once self-critical training has begun.
    """

    def __init__(self, checkpoint: Checkpoint, state: TrainingState, word_loss: WordLoss | None) -> None:
        self.model, self.state, self.options = checkpoint.model, state, state.options
        self.detail = str(checkpoint.generation.get("detail", ""))
        self.word_loss = word_loss
        self.device = next(self.model.parameters()).device
        backbone = self.model.backbone
        self.tags = self.model.regions.tags if self.model.regions else None
        drifts = self.tags is not None and self.options.backbone_rate > 0
        self.original = copy.deepcopy(backbone) if drifts else None
        if self.device.type == "cpu":  # after the copy, whose forward methods would else be this model's
            depthwise_in_float32(backbone)
        self.swap = None
        if self.tags is not None and self.options.tag_swap:
            self.swap = TagSwap(self.tags, checkpoint.tokenizer, self.options.tag_swap)
        self.word_tags: list[Tags] = []
        self.critic: SelfCritic | None = None

    def loss(self, parts: Sequence[Batch], text: Text | None) -> Tensor:
        """Of the photos of a step, a batch of each set, and the text beside them.

        The first set counts by cross-entropy, or by the rewards of its captions. So do photos of other sets
        that have captions enough to be rewarded; the others count by their share of captions, always by
        cross-entropy, as the text does. Without photos the text is all there is.
        """
        if not parts:
            assert text is not None
            return self._text_loss(text)
        searched, learned = self._divide(parts)
        ordered = [*searched, *learned]
        view = View.join([part.view.to(self.device) for part in ordered])
        features = self.model.backbone.run(view.activations, self.state.frozen_stages)
        tags, captions = self._tags(features, ordered, len(searched))
        tokens = torch.split(
            self._encode(features, view.colours, tags), [len(part.photos) for part in ordered]
        )
        terms = []
        if searched:
            assert self.critic is not None
            rewarded = [(part.group, photo) for part in searched for photo in part.photos]
            terms.append(self.critic.loss(self.model, rewarded, torch.cat(tokens[: len(searched)])))
            whole = len(rewarded) * self.options.scst_beams
        else:
            whole = captions[0].number
        for part, theirs, seen in list(zip(ordered, captions, tokens, strict=True))[len(searched) :]:
            if part.narratives:
                continue  # they are no sentences to learn
            terms.append(theirs.number / whole * self._cross_entropy(theirs, seen))
        if text is not None:
            share = self.options.text_weight * text[1].number / whole
            terms.append(share * self._text_loss(text))
        if self.state.tunes_backbone and self.tags is not None:
            terms.append(self.options.classes_weight * self._drift(view, features))
        if self.state.tunes_backbone and self.word_loss is not None:
            photos = [(part.group, part.photos) for part in ordered]
            seen = self.model.feature_map(features)
            terms.append(self.options.word_loss * self.word_loss(seen, photos))
        return sum(terms[1:], terms[0])

    def _text_loss(self, text: Text) -> Tensor:
        """Cross-entropy of captions without photos."""
        tags, captions = text
        tokens = self._tags_alone(tags.to(self.device))
        return self._cross_entropy(captions.to(self.device), tokens)

    def _divide(self, parts: Sequence[Batch]) -> tuple[list[Batch], list[Batch]]:
        """Photos whose captions are searched and rewarded, and photos whose own are learned."""
        if self.state.phase != "scst":
            return [], list(parts)
        assert self.critic is not None
        searched: list[Batch] = []
        learned: list[Batch] = []
        for part in parts:
            is_rewarded = [self.critic.rewards.covers((part.group, photo)) for photo in part.photos]
            for kept, chosen in ((searched, True), (learned, False)):
                places = [place for place, rewarded in enumerate(is_rewarded) if rewarded == chosen]
                if places:
                    kept.append(part.pick(places) if len(places) < len(part.photos) else part)
        return searched, learned

    def _tags(
        self, features: Tensor, parts: Sequence[Batch], searched: int
    ) -> tuple[Tags | None, list[Captions]]:
        """The photos' tags, and their captions: word tags as the other photos tell them, some words swapped.

        None stands for the tags that the model finds by itself.
        """
        captions = [part.captions.to(self.device) for part in parts]
        if self.swap is None and not self.word_tags:
            return None, captions
        assert self.tags is not None
        found = self.tags.find_classes(self.model.feature_map(features))
        if self.word_tags:
            words = [self.word_tags[part.group].pick(part.photos) for part in parts]
            found = found.join(Tags.stack(words))
        if self.swap is not None:
            split = list(torch.split(found.tags, [len(part.photos) for part in parts]))
            for index in range(searched, len(parts)):  # rewards are for photos' own captions
                captions[index], split[index] = self.swap(captions[index], split[index])
            found = found._replace(tags=torch.cat(split))
        return found, captions

    def _encode(self, features: Tensor, colours: Tensor | None, tags: Tags | None) -> Tensor:
        """Region tokens; in cross-entropy training some are left out, and sometimes the whole grid."""
        model, share = self.model, self.options.grid_dropout
        if self.state.phase == "xe" and share and float(torch.rand(())) < share:
            assert self.tags is not None
            return self._tags_alone(tags or self.tags.find(model.feature_map(features), colours))
        self._drop_tokens(self.options.token_dropout)
        stages = model.backbone.num_stages
        encoded = model.encode(features, detail=self.detail, start=stages, colours=colours, tags=tags)
        return encoded.region_tokens

    def _tags_alone(self, tags: Tags) -> Tensor:
        """Tokens of tags without a grid, of which half as many are left out: there are few."""
        assert self.model.regions is not None
        self._drop_tokens(self.options.token_dropout / 2)
        return self.model.regions.tags_alone(tags, self.model.decoder.word_embedding)

    def _drop_tokens(self, share: float) -> None:
        if self.model.regions is not None:
            self.model.regions.token_dropout = 0.0 if self.state.phase == "scst" else share

    def _cross_entropy(self, captions: Captions, tokens: Tensor) -> Tensor:
        return cross_entropy(self.model, captions, tokens, label_smoothing=self.options.label_smoothing)

    def _drift(self, view: View, features: Tensor) -> Tensor:
        assert self.original is not None
        assert self.tags is not None
        with torch.no_grad():
            original = self.original.run(view.activations, self.state.frozen_stages)
        return class_drift(self.tags.classifier, features, original)
