"""The state of a training run: its phases and their learning rates."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import tiny_checkpoint

from captioner.training.options import TrainingOptions
from captioner.training.state import TrainingState

STEPS = 10


def state(**options: float) -> TrainingState:
    model = tiny_checkpoint().model
    recipe = {"text_epochs": 2, "epochs": 2, "frozen_epochs": 1, "scst_epochs": 1, **options}
    return TrainingState(model, TrainingOptions(**recipe), Path())  # type: ignore[arg-type]


def rates(run: TrainingState, epoch: int) -> list[float]:
    """The decoder's learning rate in each step of an epoch, as a share of the highest."""
    run.epoch, found = epoch, []
    for step in range(STEPS):
        run.set_rate(step, STEPS)
        found.append(max(group["lr"] for group in run.optimizer.param_groups) / run.options.learning_rate)
    return found


def test_text_comes_before_captions_and_captions_before_rewards():
    run = state()
    phases, tuned = [], []
    for epoch in range(run.epochs):
        run.epoch = epoch
        phases.append(run.phase)
        tuned.append(run.tunes_backbone)
    assert phases == ["text", "text", "xe", "xe", "scst"]
    assert tuned == [False, False, False, True, False]


def test_each_phase_warms_up_and_only_that_of_photos_cools_down():
    run = state()
    text, more, captions, last, rewards = (rates(run, epoch) for epoch in range(run.epochs))
    assert text == pytest.approx([0.2, 0.4, 0.6, 0.8, *[1.0] * 6])
    assert more == pytest.approx([1.0] * 10)
    assert captions[0] == pytest.approx(0.2)
    assert max(captions) == captions[4] > captions[9] > last[0] > last[9]
    assert 0.02 < last[9] < 0.05
    assert rewards == pytest.approx([run.options.scst_rate / run.options.learning_rate] * 10)
