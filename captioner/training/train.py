"""`captioner train`: text alone, then cross-entropy, then self-critical training; resumable after a kill.

Each epoch ends with a validation, by the captions that its checkpoint would give a user, and one atomically
replaced ``state.safetensors``, so that a run that was killed goes on from its last finished epoch. The best
weights by validation CIDEr are kept.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch

from captioner.captioner import Captioner
from captioner.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from captioner.evaluation.evaluate import evaluate
from captioner.image import decode_image
from captioner.load import resolve_dtype
from captioner.runners import CheckpointRunner
from captioner.training.data import Batch, batches
from captioner.training.lora import merged
from captioner.training.options import PhotoSet, Progress, TrainingOptions, TrainingSet
from captioner.training.precision import fast_step
from captioner.training.sources import Report, Sources
from captioner.training.state import TrainingState
from captioner.training.step import Step, Text
from captioner.training.text import TextLines
from captioner.training.word_loss import WordLoss

__all__ = ["train"]

TEXT_BATCHES = 4  # lines in a step on text alone, of those beside photos
TEXT_CAPTIONS = 3  # of a line in a step; of more, the photos would have the same share again


class Trainer:
    """A run: the model's state, what it learns from, and how."""

    def __init__(self, checkpoint: Checkpoint, sources: Sources, output: Path) -> None:
        self.checkpoint, self.sources, self.model = checkpoint, sources, checkpoint.model
        self.options = options = sources.options
        word_loss = None
        if options.word_loss:
            sets, width = sources.sets, self.model.config.backbone.width
            token_ids, narratives = [s.token_ids for s in sets], [s.narratives for s in sets]
            word_loss = WordLoss(width, token_ids, narratives, sources.content)
            word_loss.to(next(self.model.parameters()).device)
        self.state = TrainingState(self.model, options, output, helper=word_loss)
        self.step = Step(checkpoint, self.state, word_loss)
        self.text: TextLines | None = None

    def epoch(self) -> Iterator[Progress]:
        """Train for one epoch, telling of each step."""
        options, state, model = self.options, self.state, self.model
        torch.manual_seed(options.seed + state.epoch)
        state.train_backbone(state.tunes_backbone)
        model.train()
        model.decoder.train(state.phase != "scst")
        steps, total, begun = self._steps(), 0.0, time.perf_counter()
        for step, (parts, text) in enumerate(self._batches(steps), 1):
            state.set_rate(step - 1, steps)
            with fast_step(self.step.device, options.precision):
                loss = self.step.loss(parts, text)
            state.update(loss, in_mean=state.in_mean(step - 1, steps))
            total += loss.item()
            items = sum(len(part.photos) for part in parts) or TEXT_BATCHES * options.text_photos
            yield Progress(
                phase=state.phase,
                epoch=state.epoch + 1,
                step=step,
                steps=steps,
                images_per_second=step * items / (time.perf_counter() - begun),
                loss=total / step,
            )

    def _steps(self) -> int:
        if self.state.phase == "text":
            assert self.text is not None
            return max(1, len(self.text) // (TEXT_BATCHES * self.options.text_photos))
        return len(self.sources.sets[0]) // self.sources.sets[0].photos_per_batch

    def _batches(self, steps: int) -> Iterator[tuple[list[Batch], Text | None]]:
        """A batch of each photo set, none in an epoch on text alone, and the text beside them, if any."""
        options, phase = self.options, self.state.phase
        seed = options.seed + self.state.epoch
        told = phase == "scst" or (self.state.tunes_backbone and options.word_loss > 0)
        sets = [group for group in self.sources.sets if told or not group.narratives]
        photos: Iterator[list[Batch]] = iter([[]] * steps)
        if phase != "text":
            photos = batches(sets, self.sources.labels, seed=seed)
        if self.text is None:
            yield from ((parts, None) for parts in photos)
            return
        size = options.text_photos * (TEXT_BATCHES if phase == "text" else 1)
        most = 1 if phase == "scst" else TEXT_CAPTIONS
        yield from zip(photos, self.text.batches(size, most=most, seed=seed), strict=False)

    def conclude(self, last: Progress, validation: PhotoSet) -> Progress:
        """Judge an epoch and save the state: the news of its last step, with its scores."""
        state, scores = self.state, self.validate(validation)
        state.history.append({"epoch": state.epoch, "phase": last.phase, "loss": last.loss, **scores})
        state.save()
        return replace(last, scores=scores)

    def validate(self, photos: PhotoSet) -> dict[str, float | None]:
        """Scores of the averaged weights, by the captions that their checkpoint gives; the best are kept.

        They are written, with float16 weights, and read back: a checkpoint that is kept has exactly the score
        it was chosen for, on the same device. Of epochs with the same CIDEr, the first is kept.
        """
        keep, state = self.options.keep_epochs, self.state
        written = state.output / "epochs" / str(state.epoch) if keep else state.output / "candidate"
        state.exchange_weights()
        model = merged(self.model) if self.options.lora else self.model
        checkpoint = replace(self.checkpoint, model=model, calibration=None)  # which other weights had
        save_checkpoint(checkpoint, written)
        device = self.step.device
        dtype = resolve_dtype("auto", device)
        runner = CheckpointRunner(load_checkpoint(written, device=device, dtype=dtype))
        captioner = Captioner(runner, name=state.output.name)
        scores = evaluate(captioner, photos.images, photos.coco, meteor=False).scores
        if scores.cider > state.best:
            state.best = scores.cider
            save_checkpoint(checkpoint, state.output)
        if not keep:
            shutil.rmtree(written)
        state.exchange_weights()
        return scores.to_dict()


def check_readable(photos: PhotoSet) -> None:
    """Raise DataError or ImageError for a photo that would end the run at its first validation."""
    with ThreadPoolExecutor(2) as pool:
        for _ in pool.map(lambda file: decode_image(file).file, photos.files()):
            pass


def train(
    checkpoint: Checkpoint,
    train_sets: Sequence[TrainingSet],
    validation: PhotoSet,
    output: Path,
    *,
    options: TrainingOptions,
    report: Report,
    texts: Sequence[Sequence[str]] = (),
    word_tags_from: Checkpoint | None = None,
    is_finished: bool = False,
    fit_word_tags: bool = True,
) -> int:
    """Train ``checkpoint.model``; resume what ``output`` holds.

    Args:
        checkpoint: the model as it is at first.
        train_sets: the main set, whose style the captions are to have, and others.
        validation: what the best weights are chosen with.
        output: the run's folder.
        options: how to train.
        report: called after each step.
        texts: captions of photos that are not there, a line for each.
        word_tags_from: where the backbone has been trained on these photos, the model from before: its
            features, not those of the backbone, say what word tags the training photos have.
        is_finished: the model has been trained before: it is judged first, and kept where it is the best.
        fit_word_tags: fit the word head of a model that has one to the training photos; else it stays.

    Returns:
        The epoch whose weights are kept, from 1; 0 where none was better than the model as it was at first.

    Raises:
        DataError, ImageError: photos cannot be read, or are too few or too many for what is asked.
        OptionsError: the options do not fit the model.
        CheckpointError: ``output`` holds the run of another model.
    """
    sources = Sources(checkpoint, train_sets, texts, options, output)
    sources.check(word_tags_from, fits=is_finished and fit_word_tags)
    trainer = Trainer(checkpoint, sources, output)
    state = trainer.state
    output.mkdir(parents=True, exist_ok=True)
    state.load()
    if state.history and state.epoch == state.epochs:
        return state.kept
    check_readable(validation)
    sources.build_caches(report)
    if sources.has_word_head:
        trainer.step.word_tags, trainer.text = sources.word_tags(word_tags_from, report, fit=fit_word_tags)
    if is_finished and not state.history:
        begun = Progress(phase="start", epoch=0, step=0, steps=0, images_per_second=0.0)
        report(trainer.conclude(begun, validation))
    while state.epoch < state.epochs:
        if state.phase == "scst" and trainer.step.critic is None:
            trainer.step.critic = sources.make_critic()
        last = None
        for last in trainer.epoch():
            report(last)
        assert last is not None
        state.epoch += 1
        report(trainer.conclude(last, validation))
    return state.kept
