"""`captioner train`: cross-entropy, then self-critical training, resumable after a kill.

Each epoch ends with a validation, by the captions that its checkpoint would give a user, and one atomically
replaced ``state.safetensors``, so that a run that was killed goes on from its last finished epoch. The best
weights by validation CIDEr are kept.
"""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from captioner.captioner import Captioner
from captioner.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from captioner.coco import CocoCaptions
from captioner.errors import CheckpointError, OptionsError
from captioner.evaluation.evaluate import evaluate
from captioner.generation import DecodeRules
from captioner.image import decode_image
from captioner.load import resolve_dtype
from captioner.model import CaptionModel, Tags
from captioner.runners import CheckpointRunner
from captioner.training.data import IGNORE, ActivationCache, Batch, CaptionSet, batches
from captioner.training.options import PhotoSet, Progress, TrainingOptions
from captioner.training.precision import depthwise_in_float32, fast_step
from captioner.training.scst import SelfCritic, check_consensus, leave_one_out
from captioner.training.swap import TagSwap
from captioner.training.words import fit_word_head

__all__ = ["cross_entropy", "train"]


def cross_entropy(
    model: CaptionModel, batch: Batch, region_tokens: Tensor, *, label_smoothing: float
) -> Tensor:
    """Mean negative log-likelihood of the batch's captions given its photos' region tokens."""
    cross = model.decoder.cross_cache(region_tokens)
    hidden, _ = model.decoder(batch.input_ids, cross)
    known = batch.targets != IGNORE
    logits = model.decoder.logits(hidden[known])
    return F.cross_entropy(logits.float(), batch.targets[known], label_smoothing=label_smoothing)


def class_drift(classifier: nn.Module, features: Tensor, original: Tensor) -> Tensor:
    """KL divergence of the classes of feature maps ``(B, C, h, w)`` from what the original features gave."""
    now, before = (classifier(x.mean((2, 3))).float().log_softmax(-1) for x in (features, original))
    return F.kl_div(now, before, reduction="batchmean", log_target=True)


class Trainer:
    """The mutable state of a run: weights, their average, optimiser, and where it stands."""

    def __init__(self, checkpoint: Checkpoint, options: TrainingOptions, output: Path) -> None:
        self.checkpoint, self.options, self.output = checkpoint, options, output
        self.model = checkpoint.model
        self.device = next(self.model.parameters()).device
        self.original = copy.deepcopy(self.model.backbone) if options.backbone_rate > 0 else None
        if self.device.type == "cpu":  # after the copy, whose forward methods would else be this model's
            depthwise_in_float32(self.model.backbone)
        self.frozen_stages = min(options.frozen_stages, self.model.backbone.num_stages)
        self.upper_stages = self.model.backbone.stage_parameters(self.frozen_stages)
        self.trained = self._trained()
        self.optimizer = torch.optim.AdamW(
            self._groups(), lr=options.learning_rate, betas=(0.9, 0.98), fused=True
        )
        self.average = {name: value.detach().clone() for name, value in self.trained.items()}
        self.epoch, self.step, self.best = 0, 0, -1.0
        self.history: list[dict[str, Any]] = []
        config = checkpoint.tokenizer.config
        self.tags = self.model.regions.tags if self.model.regions else None
        self.has_word_head = self.tags is not None and self.tags.word_head is not None
        if self.has_word_head and options.epochs and options.backbone_rate > 0:
            raise OptionsError(
                "word tags are made of the backbone's features, which are to stay: add --backbone-rate 0"
            )
        self.swap = None
        if self.tags is not None and options.tag_swap:
            self.swap = TagSwap(self.tags, checkpoint.tokenizer, options.tag_swap)
        self.word_tags: list[Tags] = []  # of each photo set, where the model has any
        self.features: dict[ActivationCache, Tensor] = {}  # of the photo sets that were asked for
        self.rules = DecodeRules(
            prompt_ids=config.start_ids,
            eos_id=config.eos_id,
            pad_id=config.pad_id,
            bad_words_ids=config.bad_words_ids,
        )

    def _trained(self) -> dict[str, nn.Parameter]:
        """All but what the backbone's features are read by, and those of its stages that stay as they are."""
        free = {id(p) for p in self.upper_stages} if self.options.backbone_rate > 0 else set()
        fixed = {id(p) for p in self.model.backbone.parameters()} - free
        for name, parameter in self.model.named_parameters():
            is_reader = "classifier" in name or "word_head" in name
            parameter.requires_grad_(id(parameter) not in fixed and not is_reader)
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def _groups(self) -> list[dict[str, Any]]:
        upper, options = {id(p) for p in self.upper_stages}, self.options
        groups: dict[tuple[float, float], list[Tensor]] = {}
        for parameter in self.trained.values():
            rate = options.backbone_rate if id(parameter) in upper else 1.0
            decay = options.weight_decay if parameter.ndim >= 2 else 0.0
            groups.setdefault((rate, decay), []).append(parameter)
        return [{"params": ps, "rate": rate, "weight_decay": decay} for (rate, decay), ps in groups.items()]

    @property
    def tunes_backbone(self) -> bool:
        """Whether this epoch trains the backbone's upper stages."""
        options = self.options
        return options.backbone_rate > 0 and options.frozen_epochs <= self.epoch < options.epochs

    @property
    def phase(self) -> str:
        return "xe" if self.epoch < self.options.epochs else "scst"

    def set_rate(self, steps_per_epoch: int) -> None:
        """Linear warm-up over half an epoch, cosine to 2 %; then constant in self-critical training."""
        options = self.options
        if self.phase == "scst":
            rate = options.scst_rate
        else:
            warm = min(1.0, (self.step + 1) / max(1, steps_per_epoch // 2))
            done = self.step / max(1, steps_per_epoch * options.epochs)
            rate = (
                options.learning_rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))
            )
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate"]

    def update(self, loss: Tensor) -> None:
        """One optimiser step, and the average follows."""
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        decay = min(self.options.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_([*self.average.values()], [*self.trained.values()], 1 - decay)

    def exchange_weights(self) -> None:
        """Swap the weights with their average; twice is as before."""
        for name, parameter in self.trained.items():
            parameter.data, self.average[name] = self.average[name], parameter.data

    def save_state(self) -> None:
        """Write everything a resumed run needs, in one file that is replaced at once."""
        tensors = {f"model.{name}": parameter.detach() for name, parameter in self.trained.items()}
        tensors |= {f"average.{name}": value for name, value in self.average.items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": value for key, value in state.items()}
        where = {name: getattr(self, name) for name in ("epoch", "step", "best", "history")}
        partial = self.output / "state.safetensors.partial"
        save_file(
            {name: value.contiguous() for name, value in tensors.items()}, partial, {"run": json.dumps(where)}
        )
        os.replace(partial, self.output / "state.safetensors")
        self.write_history()

    def write_history(self) -> None:
        """``metrics.jsonl``, a line an epoch; the state has it all, so a kill in between loses nothing."""
        lines = [json.dumps(record) + "\n" for record in self.history]
        (self.output / "metrics.jsonl").write_text("".join(lines))

    def load_state(self) -> None:
        """Go on from a saved state, where there is one. Raises CheckpointError if it is another model's."""
        path = self.output / "state.safetensors"
        if not path.exists():
            return
        targets = {f"model.{name}": parameter.data for name, parameter in self.trained.items()}
        targets |= {f"average.{name}": value for name, value in self.average.items()}
        state: dict[int, dict[str, Tensor]] = {}
        with safe_open(path, "pt") as file:
            where = json.loads(file.metadata()["run"])
            for key in file.keys():  # noqa: SIM118 - not a dictionary
                tensor = file.get_tensor(key)
                if key.startswith("optimizer."):
                    _, index, part = key.split(".")
                    state.setdefault(int(index), {})[part] = tensor
                elif key in targets and targets[key].shape == tensor.shape:
                    targets[key].copy_(tensor)
                else:
                    raise CheckpointError(
                        f"{path} is the state of another model ({key} differs): "
                        "give the options it began with, or another --output"
                    )
        self.optimizer.load_state_dict(
            {"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]}
        )
        for name, value in where.items():
            setattr(self, name, value)
        self.write_history()

    def validate(self, photos: PhotoSet) -> dict[str, float | None]:
        """Scores of the averaged weights, by the captions that their checkpoint gives; the best are kept.

        They are written, with float16 weights, and read back: a checkpoint that is kept has exactly the score
        it was chosen for, on the same device. Of epochs with the same CIDEr, the first is kept.
        """
        keep = self.options.keep_epochs
        written = self.output / "epochs" / str(self.epoch) if keep else self.output / "candidate"
        self.exchange_weights()
        save_checkpoint(self.checkpoint, written)
        dtype = resolve_dtype("auto", self.device)
        runner = CheckpointRunner(load_checkpoint(written, device=self.device, dtype=dtype))
        captioner = Captioner(runner, name=self.output.name)
        scores = evaluate(captioner, photos.images, photos.coco, meteor=False).scores
        if scores.cider > self.best:
            self.best = scores.cider
            save_checkpoint(self.checkpoint, self.output)
        if not keep:
            shutil.rmtree(written)
        self.exchange_weights()
        return scores.to_dict()

    def mean_features(self, cache: ActivationCache) -> Tensor:
        """``(photos, C)`` of a photo set as it is, on the CPU; kept, so ask once the encoder is to stay."""
        if cache not in self.features:
            model = self.model.eval()
            with torch.inference_mode():
                found = (model.backbone.run(x.to(self.device), self.frozen_stages) for x in cache.parts(0))
                means = [model.feature_map(x).mean((2, 3)).cpu() for x in found]
            self.features[cache] = torch.cat(means)
        return self.features[cache]

    def fit_word_tags(self, sets: Sequence[CaptionSet]) -> None:
        """Fit the word head to photos whose word tags are then known."""
        assert self.tags is not None
        features = [self.mean_features(group.cache) for group in sets]
        self.word_tags = fit_word_head(self.tags, features, [group.token_ids for group in sets])

    def self_critic(self, coco: CocoCaptions, cache: ActivationCache) -> SelfCritic:
        """What rewards captions of the main photo set; made once the encoder no longer changes."""
        options = self.options
        return SelfCritic(
            coco,
            self.checkpoint.tokenizer,
            self.rules,
            options.scst_beams,
            options.max_words,
            alike=leave_one_out(self.mean_features(cache)) if options.consensus else None,
            consensus=options.consensus,
        )


def check_readable(photos: PhotoSet) -> None:
    """Raise DataError or ImageError for a photo that would end the run at its first validation."""
    with ThreadPoolExecutor(2) as pool:
        for _ in pool.map(lambda file: decode_image(file).file, photos.files()):
            pass


def build_caches(
    sets: list[PhotoSet], views: list[int], trainer: Trainer, report: Callable[[Progress], None]
) -> list[ActivationCache]:
    """Compute the cached activations that are missing."""
    caches = []
    model, stages = trainer.model, trainer.frozen_stages
    folder = trainer.output / "activations" / str(stages)
    for photo_set, count in zip(sets, views, strict=True):
        cache = ActivationCache(folder, photo_set.name, count)
        files = photo_set.files()
        for view in range(count):
            begun = time.perf_counter()
            for done in cache.build(view, files, trainer.checkpoint.processor, model.backbone.eval(), stages):
                speed = done / (time.perf_counter() - begun)
                report(
                    Progress(
                        phase="cache", epoch=view + 1, step=done, steps=len(files), images_per_second=speed
                    )
                )
        caches.append(cache)
    return caches


def train(
    checkpoint: Checkpoint,
    train_sets: list[PhotoSet],
    validation: PhotoSet,
    output: Path,
    *,
    options: TrainingOptions,
    report: Callable[[Progress], None],
) -> None:
    """Train ``checkpoint.model`` on a main and at most one extra photo set; resume what ``output`` holds."""
    if options.consensus:
        check_consensus(len(train_sets[0].coco.images))
    trainer = Trainer(checkpoint, options, output)
    output.mkdir(parents=True, exist_ok=True)
    trainer.load_state()
    check_readable(validation)
    views = [options.views, options.extra_views][: len(train_sets)]
    caches = build_caches(train_sets, views, trainer, report)
    sizes = (options.photos, options.extra_photos)
    sets = [
        CaptionSet.build(
            s.coco, checkpoint.tokenizer, cache, photos_per_batch=size, max_words=options.max_words
        )
        for s, cache, size in zip(train_sets, caches, sizes, strict=False)
    ]
    critic, epochs = None, options.epochs + options.scst_epochs
    if trainer.has_word_head and trainer.epoch < epochs:
        trainer.fit_word_tags(sets)
    while trainer.epoch < epochs:
        last = None
        if trainer.phase == "scst" and critic is None:
            critic = trainer.self_critic(train_sets[0].coco, caches[0])
        for last in _epoch(trainer, sets, critic):
            report(last)
        trainer.epoch += 1
        scores = trainer.validate(validation)
        assert last is not None
        trainer.history.append({"epoch": trainer.epoch, "phase": last.phase, "loss": last.loss, **scores})
        trainer.save_state()
        report(Progress(**{**asdict(last), "scores": scores}))


def _epoch(trainer: Trainer, sets: list[CaptionSet], critic: SelfCritic | None) -> Iterator[Progress]:
    options = trainer.options
    config = trainer.checkpoint.tokenizer.config
    steps = len(sets[0]) // options.photos
    total, begun = 0.0, time.perf_counter()
    torch.manual_seed(options.seed + trainer.epoch)
    for parameter in trainer.upper_stages:
        parameter.requires_grad_(trainer.tunes_backbone)
    model, is_xe = trainer.model.train(), trainer.phase == "xe"
    model.decoder.train(is_xe)
    if model.regions:
        model.regions.token_dropout = options.token_dropout if is_xe else 0.0
    stream = batches(sets, pad_id=config.pad_id, unk_id=config.unk_id, seed=options.seed + trainer.epoch)
    for step, parts in enumerate(stream, 1):
        trainer.set_rate(steps)
        with fast_step(trainer.device, options.precision):
            loss = _loss(trainer, tuple(part.to(trainer.device) for part in parts), critic)
        trainer.update(loss)
        total += loss.item()
        speed = step * sum(len(part.photos) for part in parts) / (time.perf_counter() - begun)
        yield Progress(
            phase=trainer.phase,
            epoch=trainer.epoch + 1,
            step=step,
            steps=steps,
            images_per_second=speed,
            loss=total / step,
        )


def _loss(trainer: Trainer, parts: Sequence[Batch], critic: SelfCritic | None) -> Tensor:
    """What a step makes smaller: the extra set counts by its share of captions, always by cross-entropy.

    The main set counts by cross-entropy too, or by the rewards of a ``critic``.
    """
    options, model = trainer.options, trainer.model
    activations = torch.cat([part.activations.float() for part in parts])
    features = model.backbone.run(activations, trainer.frozen_stages)
    tags, parts = _tags(trainer, features, parts, critic)
    encoded = model.encode(features, start=model.backbone.num_stages, tags=tags).region_tokens
    main_tokens, *extra_tokens = _split(encoded, parts)
    main, *extra = parts
    if critic is not None:
        loss = critic.loss(model, main, main_tokens)
    else:
        loss = cross_entropy(model, main, main_tokens, label_smoothing=options.label_smoothing)
    for part, tokens in zip(extra, extra_tokens, strict=True):
        share = part.targets.shape[:2].numel() / main.targets.shape[:2].numel()
        loss = loss + share * cross_entropy(model, part, tokens, label_smoothing=options.label_smoothing)
    if trainer.tunes_backbone and trainer.tags is not None:
        assert trainer.original is not None
        with torch.no_grad():
            original = trainer.original.run(activations, trainer.frozen_stages)
        drift = class_drift(trainer.tags.classifier, features, original)
        loss = loss + options.classes_weight * drift
    return loss


def _tags(
    trainer: Trainer, features: Tensor, parts: Sequence[Batch], critic: SelfCritic | None
) -> tuple[Tags | None, Sequence[Batch]]:
    """The photos' tags, and their batches: word tags as the other photos tell them, some words swapped.

    None stands for the tags that the model finds by itself.
    """
    if trainer.swap is None and not trainer.word_tags:
        return None, parts
    assert trainer.tags is not None
    found = trainer.tags.find_classes(trainer.model.feature_map(features))
    if trainer.word_tags:
        words = [tags.pick(part.photos) for tags, part in zip(trainer.word_tags, parts, strict=True)]
        found = found.join(Tags(*map(torch.cat, zip(*words, strict=True))))
    if trainer.swap is not None:
        parts, split = list(parts), _split(found.tags, parts)
        for index in range(len(parts)):
            if index > 0 or critic is None:  # rewards are for the main photos' own captions
                parts[index], split[index] = trainer.swap(parts[index], split[index])
        found = found._replace(tags=torch.cat(split))
    return found, parts


def _split(values: Tensor, parts: Sequence[Batch]) -> list[Tensor]:
    """What is known of all photos of a step, part by part."""
    return list(torch.split(values, [len(part.photos) for part in parts]))
