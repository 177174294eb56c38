"""What a run learns from: photos, their captions, and what is known of both before it begins."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from captioner.checkpoint import Checkpoint
from captioner.errors import OptionsError
from captioner.generation import DecodeRules
from captioner.model import CaptionModel
from captioner.regions import Tags, photo_features
from captioner.training.cache import ActivationCache
from captioner.training.consensus import check_consensus, expected_from, leave_one_out
from captioner.training.data import CaptionSet
from captioner.training.options import Progress, TrainingOptions, TrainingSet
from captioner.training.rewards import References, Rewards, consensus_sets
from captioner.training.scst import SelfCritic
from captioner.training.text import KnownPhotos, TextLines
from captioner.training.words import content_tokens, fit_word_head, word_shares

__all__ = ["Seen", "Sources", "look_at"]

Report = Callable[[Progress], None]
Lines = Sequence[Sequence[str]]


class Seen(NamedTuple):
    """What the encoder sees in the photos of a set as they are: what the word head reads, and class tags.

    On the CPU, ``(photos, C)`` and ``(photos, 8)``; the tags are None for a model that has none.
    """

    features: Tensor
    classes: Tags | None


@torch.inference_mode()
def look_at(model: CaptionModel, cache: ActivationCache, stages: int) -> Seen:
    """Look at the photos whose activations after so many stages are in ``cache``."""
    model.eval()
    device = next(model.parameters()).device
    tags = model.regions.tags if model.regions else None
    features, classes = [], []
    for part in cache.parts(0):
        view = part.to(device)
        seen = model.feature_map(model.backbone.run(view.activations, stages))
        features.append(photo_features(seen, view.colours).cpu())
        if tags is not None:
            classes.append(tags.find_classes(seen).to("cpu"))
    return Seen(torch.cat(features), Tags.stack(classes) if classes else None)


class Sources:
    """The photo sets and texts of a run.

    Args:
        checkpoint: of the model that learns.
        sets: the main set and others.
        texts: captions without photos.
        options: of the run.
        output: the run's folder.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        sets: Sequence[TrainingSet],
        texts: Lines,
        options: TrainingOptions,
        output: Path,
    ) -> None:
        self.checkpoint, self.model, self.options = checkpoint, checkpoint.model, options
        self.parts, self.texts, self.output = sets, texts, output
        self.tags = self.model.regions.tags if self.model.regions else None
        self.stages = min(options.frozen_stages, self.model.backbone.num_stages)
        self.content = content_tokens(checkpoint.tokenizer)
        self.sets = [
            CaptionSet.build(
                part.source.coco,
                checkpoint.tokenizer,
                cache,
                photos_per_batch=part.per_batch,
                max_words=options.max_words,
                content=self.content if options.rare_words else None,
                narratives=part.narratives,
            )
            for part, cache in zip(sets, self._caches(self.stages), strict=True)
        ]
        self._seen: list[Seen] = []

    @property
    def has_word_head(self) -> bool:
        """Whether the model is told of words."""
        return self.tags is not None and self.tags.word_head is not None

    def check(self, word_tags_from: Checkpoint | None) -> None:
        """Raise DataError or OptionsError for what would fail later on."""
        options = self.options
        if options.consensus:
            joined = consensus_sets(self._references())
            check_consensus(sum(len(self.sets[number]) for number in joined))
        if self.has_word_head and options.epochs and options.backbone_rate > 0:
            raise OptionsError(
                "word tags are made of the backbone's features, which are to stay: add --backbone-rate 0"
            )
        if self.texts and not self.has_word_head:
            raise OptionsError("captions without photos are learned from word tags: add --word-tags")
        if word_tags_from is not None and not self.has_word_head:
            raise OptionsError("--word-tags-from is for models with word tags: add --word-tags")
        if options.text_epochs and not self.texts:
            raise OptionsError("--text-epochs needs captions: add --text")
        if options.grid_dropout and self.tags is None:
            raise OptionsError("a model without tags has nothing but the grid: leave --grid-dropout out")
        if options.word_loss and not options.backbone_rate:
            raise OptionsError("--word-loss trains the backbone: leave it out, or --backbone-rate 0")

    def _caches(self, stages: int, *, name: str = "") -> list[ActivationCache]:
        """For the activations of each set: all views of it, or for another model, which has a name, one."""
        crop = self.options.smallest_crop
        kind = f"{name}{stages}" if crop == ActivationCache.smallest_crop else f"{name}{stages}-{crop}"
        shades = self.model.regions.shades if self.model.regions else 0
        folder = self.output / "activations" / kind
        return [
            ActivationCache(folder, part.source.name, 1 if name else part.views, shades, crop)
            for part in self.parts
        ]

    def build_caches(self, report: Report) -> None:
        """Compute the cached activations that are missing."""
        self._build(self.checkpoint, [group.cache for group in self.sets], self.stages, report)

    def _build(
        self, checkpoint: Checkpoint, caches: Sequence[ActivationCache], stages: int, report: Report
    ) -> None:
        model = checkpoint.model.eval()
        for part, cache in zip(self.parts, caches, strict=True):
            files = part.source.files()
            for view in range(cache.views):
                begun = time.perf_counter()
                for done in cache.build(view, files, checkpoint.processor, model, stages):
                    speed = done / (time.perf_counter() - begun)
                    news = Progress(
                        phase="cache", epoch=view + 1, step=done, steps=len(files), images_per_second=speed
                    )
                    report(news)

    def seen(self) -> list[Seen]:
        """What the encoder sees in the photos of each set; kept, so ask once the encoder is to stay."""
        if not self._seen:
            self._seen = [look_at(self.model, group.cache, self.stages) for group in self.sets]
        return self._seen

    def fit_word_tags(
        self, word_tags_from: Checkpoint | None, report: Report
    ) -> tuple[list[Tags], TextLines | None]:
        """Fit the word head to the photos; the word tags of each set, and the texts with tags like theirs."""
        assert self.tags is not None
        earlier = None
        if word_tags_from is not None:
            model = word_tags_from.model.to(next(self.model.parameters()).device)
            stages = min(self.options.frozen_stages, model.backbone.num_stages)
            caches = self._caches(stages, name="earlier")
            self._build(word_tags_from, caches, stages, report)
            earlier = [look_at(model, cache, stages).features for cache in caches]
        features = [photos.features for photos in self.seen()]
        token_ids = [group.token_ids for group in self.sets]
        answers = fit_word_head(self.tags, features, token_ids, earlier=earlier)
        word_tags = [self.tags.likely_words(part.to(self.tags.word_prior)) for part in answers]
        return word_tags, self._text_lines(answers) if self.texts else None

    def _text_lines(self, answers: Sequence[Tensor]) -> TextLines:
        assert self.tags is not None
        captioned = [number for number, group in enumerate(self.sets) if not group.narratives]
        words = self.tags.head_words[self.tags.classes :].tolist()
        classes = [self.seen()[number].classes for number in captioned]
        photos = KnownPhotos(
            torch.cat([word_shares(self.sets[number].token_ids, words) for number in captioned]),
            torch.cat([answers[number] for number in captioned]),
            Tags.stack([found for found in classes if found is not None]),
        )
        return TextLines(self.texts, photos, self.tags, self.checkpoint.tokenizer, self.options.max_words)

    def make_critic(self) -> SelfCritic:
        """What rewards captions; made once the encoder no longer changes."""
        options, tokenizer = self.options, self.checkpoint.tokenizer
        references = self._references()
        rewards = Rewards(
            references,
            tokenizer,
            options,
            alike=self._alike(references) if options.consensus else (),
            texts=[[tokenizer.encode(text) for text in line] for line in self.texts],
        )
        config = tokenizer.config
        rules = DecodeRules(
            prompt_ids=config.start_ids,
            eos_id=config.eos_id,
            pad_id=config.pad_id,
            bad_words_ids=config.bad_words_ids,
        )
        return SelfCritic(rewards, rules, options.scst_beams, options.max_words)

    def _references(self) -> list[References]:
        """All captions, uncut."""
        encode = self.checkpoint.tokenizer.encode
        return [
            References(
                [[encode(text) for text in texts] for _, texts in part.source.coco.pairs()], part.narratives
            )
            for part in self.parts
        ]

    def _alike(self, references: Sequence[References]) -> list[Tensor | None]:
        """How the captions of each set's photos follow from those of the photos that make the consensus."""
        joined = consensus_sets(references)
        known = torch.cat([self.seen()[number].features for number in joined])
        parts = torch.split(leave_one_out(known), [len(self.sets[number]) for number in joined])
        alike: list[Tensor | None] = [None] * len(references)
        for number, weights in zip(joined, parts, strict=True):
            alike[number] = weights
        for number, part in enumerate(references):
            if part.narratives:
                alike[number] = expected_from(self.seen()[number].features, known)
        return alike
