"""Averages of models, and the epochs of a run to average."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from images import draw_noise
from test_training import OPTIONS, epochs, run
from tiny import tiny_checkpoint, tiny_vit_checkpoint

from captioner.calibration import FEATURES, Calibration
from captioner.checkpoint import load_checkpoint, save_checkpoint, write_calibration
from captioner.cli import main
from captioner.errors import CheckpointError, OptionsError
from captioner.load import load
from captioner.runners import CheckpointRunner
from captioner.training.average import average
from captioner.training.initial import pointer_channels

CPU = torch.device("cpu")


def models(folder: Path, count: int = 2) -> list[Path]:
    """Models of one architecture and vocabulary with weights of their own."""
    for seed in range(count):
        save_checkpoint(tiny_checkpoint(seed=seed), folder / str(seed), dtype=torch.float32)
    return [folder / str(seed) for seed in range(count)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder, device=CPU, dtype=torch.float32).model.state_dict()


def test_each_counts_as_much_as_it_is_said_to(tmp_path: Path):
    a, b = models(tmp_path)
    of_a, of_b = weights(a), weights(b)
    mean = average([(a, 3.0), (b, 1.0)], description="both").model.state_dict()
    for name, value in mean.items():
        expected = 0.75 * of_a[name] + 0.25 * of_b[name]
        torch.testing.assert_close(value, expected.to(value.dtype))
    alone = average([(b, 0.5)])
    assert all(torch.equal(value, of_b[name]) for name, value in alone.model.state_dict().items())
    assert alone.tokenizer.is_same(tiny_checkpoint().tokenizer)


def test_a_calibration_belongs_to_the_weights_that_it_was_fitted_to(tmp_path: Path):
    flat = {"bias": 0.0, **dict.fromkeys(FEATURES, 0.0)}
    calibration = Calibration(content_words=flat, function_words=flat, independence=1.0)
    (folder,) = models(tmp_path, 1)
    write_calibration(folder, calibration)
    assert load_checkpoint(folder, device=CPU, dtype=torch.float32).calibration == calibration
    assert average([(folder, 1.0)]).calibration is None


def test_the_pointers_output_can_be_scaled(tmp_path: Path):
    (folder,) = models(tmp_path, 1)
    scaled, before = average([(folder, 1.0)], pointer=0.5).model, weights(folder)
    channels = pointer_channels(scaled)
    assert 0 < channels < scaled.config.decoder.width
    changed = [name for name, value in scaled.state_dict().items() if not torch.equal(value, before[name])]
    last = scaled.config.decoder.layers - 1
    assert changed == [f"decoder.blocks.{last}.cross_attention.out.weight"]
    out, old = scaled.state_dict()[changed[0]], before[changed[0]]
    assert torch.equal(out[:, :channels], 0.5 * old[:, :channels])
    assert torch.equal(out[:, channels:], old[:, channels:])


def test_photos_can_be_seen_larger_and_in_the_mirror(tmp_path: Path):
    (folder,) = models(tmp_path, 1)
    save_checkpoint(average([(folder, 1.0)], image_size=96, mirror=True), tmp_path / "after")
    for kwargs in ({}, {"image_size": 96}, {"mirror": True}):  # what is not said stays as it is
        after = average([(tmp_path / "after", 1.0)], **kwargs)
        assert after.model.config.backbone.mirror
        assert after.model.config.backbone.image_size == after.processor.size == 96
    tiny, back = tiny_checkpoint(), average([(tmp_path / "after", 1.0)], image_size=64, mirror=False)
    assert back.model.config == tiny.model.config
    assert back.processor == tiny.processor
    captioner = load(tmp_path / "after", device="cpu")
    prepared = captioner.prepare(draw_noise(96, 96))
    assert CheckpointRunner(captioner.checkpoint).encode([prepared]).grid == (3, 3)
    x = torch.rand(1, 3, 96, 96)
    turned = captioner.checkpoint.model.features(x.flip(3)).flip(3)
    torch.testing.assert_close(turned, captioner.checkpoint.model.features(x))


def test_a_vit_sees_photos_as_it_was_trained_to(tmp_path: Path):
    vit = tiny_vit_checkpoint()
    save_checkpoint(vit, tmp_path)
    assert average([(tmp_path, 1.0)], image_size=64, mirror=False).processor == vit.processor
    for kwargs in ({"image_size": 96}, {"mirror": True}):
        with pytest.raises(OptionsError, match="a ViT sees photos in the size it was trained with"):
            average([(tmp_path, 1.0)], **kwargs)


def test_only_models_of_one_origin_have_a_mean(tmp_path: Path):
    (a,) = models(tmp_path, 1)
    save_checkpoint(tiny_checkpoint(words=4), tmp_path / "other")
    with pytest.raises(CheckpointError, match="differ in more than their weights"):
        average([(a, 1.0), (tmp_path / "other", 1.0)])
    tagged = tiny_checkpoint()
    tagged.model.regions.tags.head_words[0] += 1
    save_checkpoint(tagged, tmp_path / "tagged")
    with pytest.raises(CheckpointError, match="differ in more than their weights"):
        average([(a, 1.0), (tmp_path / "tagged", 1.0)])
    for weight in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(OptionsError, match="more than 0"):
            average([(a, weight)])
    with pytest.raises(OptionsError, match="at least one"):
        average([])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    a, _ = models(tmp_path)
    monkeypatch.setenv("CAPTIONER_WEIGHTS", str(tmp_path))
    output = tmp_path / "mean"
    command = ["average", str(a), "1=3", "--output", str(output), "--description", "m"]
    assert main([*command, "--pointer", "0.7", "--image-size", "96", "--mirror"]) == 0
    assert capsys.readouterr().out == f"{output}\n"
    expected = average([(a, 1.0), (tmp_path / "1", 3.0)], pointer=0.7).model.state_dict()
    torch.testing.assert_close(weights(output), expected, rtol=1e-3, atol=1e-3)
    written = load_checkpoint(output, device=CPU, dtype=torch.float32)
    assert (written.description, written.processor.size) == ("m", 96)
    assert written.model.config.backbone.mirror
    for wrong, message in (
        ("1=much", "'much' is no number"),
        ("2", "is not a checkpoint"),
        ("1=0", "more than 0"),
    ):
        assert main(["average", wrong, "--output", str(output)]) in (1, 2)
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line


def test_a_run_keeps_its_epochs_if_asked(tmp_path: Path):
    run(tmp_path, options=replace(OPTIONS, epochs=2, frozen_epochs=2, scst_epochs=1, keep_epochs=True))
    kept = {folder.name: weights(folder) for folder in (tmp_path / "out" / "epochs").iterdir()}
    assert set(kept) == {"1", "2", "3"}
    ciders = [epoch["cider"] for epoch in epochs(tmp_path)]
    best = str(1 + ciders.index(max(ciders)))
    assert all(torch.equal(value, kept[best][name]) for name, value in weights(tmp_path / "out").items())
    assert not torch.equal(
        kept["1"]["decoder.word_embedding.weight"], kept["2"]["decoder.word_embedding.weight"]
    )
