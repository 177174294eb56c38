"""What a run learns from: photos, their captions, and what is known of both before it begins."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from captioner.checkpoint import Checkpoint
from captioner.errors import OptionsError
from captioner.generation import DecodeRules
from captioner.model import CaptionModel
from captioner.regions import Tags, photo_features
from captioner.training.cache import ActivationCache
from captioner.training.consensus import check_consensus, expected_from, leave_one_out
from captioner.training.data import CaptionSet
from captioner.training.digest import digest
from captioner.training.labels import Labels
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
    """Look at the photos whose activations after so many stages are in ``cache``.

    A model that looks at mirror images too does so here, where there is a mirrored view.
    """
    model.eval()
    device = next(model.parameters()).device
    tags = model.regions.tags if model.regions else None
    features, classes = [], []
    both = model.config.backbone.mirror and cache.views > 1
    for part, *mirror in zip(*(cache.parts(view) for view in range(2 if both else 1)), strict=True):
        view = part.to(device)
        seen = model.feature_map(model.backbone.run(view.activations, stages))
        for mirrored in mirror:
            other = model.feature_map(model.backbone.run(mirrored.to(device).activations, stages))
            seen = (seen + other.flip(3)) / 2
        features.append(photo_features(seen, view.colours).cpu())
        if tags is not None:
            classes.append(tags.find_classes(seen).to("cpu"))
    return Seen(torch.cat(features), Tags.stack(classes) if classes else None)


def labels_of(checkpoint: Checkpoint, max_words: int) -> Labels:
    """How captions are written for a model: with its prompt, and no longer than its positions allow."""
    prompt = str(checkpoint.generation.get("prompt", ""))
    given = len(Labels(checkpoint.tokenizer, max_words, prompt).prompt_ids)
    longest = checkpoint.model.config.decoder.max_positions - given  # the end token is never read
    return Labels(checkpoint.tokenizer, min(max_words, longest), prompt)


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
        self.stages = options.fixed_stages(self.model.backbone.num_stages)
        self.labels = labels_of(checkpoint, options.max_words)
        self.content = content_tokens(checkpoint.tokenizer)
        self.sets = [
            CaptionSet.build(
                part.source.coco,
                self.labels,
                cache,
                photos_per_batch=part.per_batch,
                content=self.content if options.rare_words else None,
                narratives=part.narratives,
            )
            for part, cache in zip(sets, self._caches(checkpoint, self.stages), strict=True)
        ]
        self._seen: list[Seen] = []

    @property
    def has_word_head(self) -> bool:
        """Whether the model is told of words."""
        return self.tags is not None and self.tags.word_head is not None

    def check(self, word_tags_from: Checkpoint | None, *, fits: bool = False) -> None:
        """Raise DataError or OptionsError for what would fail later on.

        ``fits`` says that the word head of a finished model is to be fitted, which may be all there is to do.
        """
        options = self.options
        if fits and not self.has_word_head:
            raise OptionsError("this model has no word tags to fit: leave --word-tags out")
        if not options.all_epochs and not fits:
            raise OptionsError("there is nothing to train: give --epochs or --scst-epochs")
        self._check_parts()
        if options.consensus:
            joined = consensus_sets(self._references())
            check_consensus(sum(len(self.sets[number]) for number in joined))
        if self.has_word_head and options.epochs and options.backbone_rate > 0:
            raise OptionsError(
                "word tags are made of the backbone's features, which are to stay: add --backbone-rate 0"
            )
        if self.texts and not self.has_word_head:
            raise OptionsError(
                "captions without photos are learned from word tags: add --word-tags, or leave --text out"
            )
        if word_tags_from is not None and not self.has_word_head:
            raise OptionsError("--word-tags-from is for models with word tags: add --word-tags")
        if options.text_epochs and not self.texts:
            raise OptionsError("--text-epochs needs captions: add --text")
        if options.word_loss and not options.backbone_rate:
            raise OptionsError("--word-loss trains the backbone: leave it out, or --backbone-rate 0")

    def _check_parts(self) -> None:
        """Raise OptionsError for an option that is about a part which the model does not have."""
        options, backbone = self.options, self.model.backbone
        layers = [module for module in backbone.modules() if isinstance(module, nn.Linear)]
        if options.lora and options.backbone_rate and not layers:
            raise OptionsError("the backbone has no linear layers for LoRA: add --backbone-rate 0")
        if options.epochs and options.backbone_rate and self.stages == backbone.num_stages:
            raise OptionsError(
                f"all {self.stages} stages of this backbone stay fixed, though --backbone-rate is to train "
                "it: add --frozen-stages with a smaller number, or --backbone-rate 0"
            )
        if options.grid_dropout and self.tags is None:
            raise OptionsError("a model without tags has nothing but the grid: leave --grid-dropout out")
        if options.tag_swap and self.tags is None:
            raise OptionsError("this model has no tags to swap: leave --tag-swap out")
        if options.token_dropout and self.model.regions is None:
            raise OptionsError("this model reads what its encoder gives: leave --token-dropout out")

    def _caches(
        self, checkpoint: Checkpoint, stages: int, *, most: int | None = None
    ) -> list[ActivationCache]:
        """For the activations of each set: its views, or at ``most`` so many of them.

        Their folder is named by all that they depend on, so that none is taken for those of another encoder
        or of other photos.
        """
        model, crop = checkpoint.model, self.options.smallest_crop
        shades = model.regions.shades if model.regions else 0
        upper = {id(parameter) for parameter in model.backbone.stage_parameters(stages)}
        fixed = [p for p in model.backbone.stage_parameters(0) if id(p) not in upper]
        encoder = digest(fixed, checkpoint.processor.to_dict(), stages, crop)
        caches = []
        for part in self.parts:
            names = [image.file_name for image in part.source.coco.images]
            photos = list(zip(names, [file.stat().st_size for file in part.source.files()], strict=True))
            folder = self.output / "activations" / digest((), encoder, photos)[:16]
            views = min(part.views, most or part.views)
            caches.append(ActivationCache(folder, part.source.name, views, shades, crop))
        return caches

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

    def word_tags(
        self, word_tags_from: Checkpoint | None, report: Report, *, fit: bool = True
    ) -> tuple[list[Tags], TextLines | None]:
        """The word tags of each set, and the texts with tags like theirs.

        ``fit`` fits the word head to these photos first; otherwise it stays, and says of them what it says of
        any.
        """
        assert self.tags is not None
        assert self.tags.word_head is not None
        earlier = None
        if word_tags_from is not None:
            model = word_tags_from.model.to(next(self.model.parameters()).device)
            stages = self.options.fixed_stages(model.backbone.num_stages)
            caches = self._caches(word_tags_from, stages, most=2 if model.config.backbone.mirror else 1)
            self._build(word_tags_from, caches, stages, report)
            earlier = [look_at(model, cache, stages).features for cache in caches]
        features = [photos.features for photos in self.seen()]
        if fit:
            token_ids = [group.token_ids for group in self.sets]
            answers = fit_word_head(self.tags, features, token_ids, earlier=earlier)
        else:
            with torch.no_grad():
                answers = [self.tags.word_head(part.to(self.tags.word_prior)).cpu() for part in features]
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
        return TextLines(self.texts, photos, self.tags, self.labels)

    def make_critic(self) -> SelfCritic:
        """What rewards captions; made once the encoder no longer changes."""
        options, tokenizer = self.options, self.checkpoint.tokenizer
        references = self._references()
        rewards = Rewards(
            references,
            tokenizer,
            options,
            alike=self._alike(references) if options.consensus else (),
            texts=[[self.labels.words(text) for text in line] for line in self.texts],
        )
        config = tokenizer.config
        rules = DecodeRules(
            prompt_ids=self.labels.prompt_ids,
            eos_id=config.eos_id,
            pad_id=config.pad_id,
            bad_words_ids=config.bad_words_ids,
        )
        return SelfCritic(rewards, rules, options.scst_beams, self.labels.max_words)

    def _references(self) -> list[References]:
        """All captions, uncut."""
        words = self.labels.words
        return [
            References(
                [[words(text) for text in texts] for _, texts in part.source.coco.pairs()], part.narratives
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
