"""Confidence: what is made of signals, what a fit finds in made-up captions, and the command that fits."""

from __future__ import annotations

import json
import math
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from images import draw_noise
from tiny import tiny_captioner, tiny_checkpoint

from captioner import load
from captioner.calibration import FEATURES, Calibration, WordSignals, features
from captioner.captioner import Captioner
from captioner.checkpoint import load_checkpoint, save_checkpoint, write_calibration
from captioner.cli import main
from captioner.errors import CheckpointError
from captioner.evaluation.calibrate import Judged, cross_validate, fit_calibration, judge
from captioner.runners import CheckpointRunner

FLAT = {"bias": 0.0, **dict.fromkeys(FEATURES, 0.0)}
CALIBRATION = Calibration(
    content_words={**FLAT, "bias": 1.0, "logprob": 0.5, "word_tag": 2.0},
    function_words={**FLAT, "bias": 3.0},
    independence=0.5,
)


def word(text: str, logprob: float = -1.0, **tags: float) -> WordSignals:
    return WordSignals(text=text, logprob=logprob, token_id=7, **tags)


def test_features_are_those_of_the_word_and_of_its_caption():
    words = [word("a", -0.1), word("dog", -0.5, word_tag=0.64, class_tag=0.25), word("runs", -1.5)]
    rows = features(words, [-0.1, -0.5, -1.5, -0.3])
    assert [dict(zip(FEATURES, row, strict=True)) for row in rows][1] == pytest.approx(
        {
            "logprob": -0.5,
            "word_tag": 0.8,
            "tagged": 1.0,
            "class_tag": 0.5,
            "rank": math.log(8),
            "caption": -0.6,
            "length": 2.0,
            "caption_tags": 0.4,
        }
    )
    assert rows[2][:3] == (-1.5, 0.0, 0.0)


def test_words_are_weighed_by_their_kind():
    words = [word("a", -9.0), word("dog", -1.0, word_tag=0.25)]
    function, content = CALIBRATION.words(words, [-9.0, -1.0])
    assert function == pytest.approx(1 / (1 + math.exp(-3)))
    assert content == pytest.approx(1 / (1 + math.exp(-(1 - 0.5 + 2 * 0.5))))


@pytest.mark.parametrize(("independence", "expected"), [(1.0, 0.4), (0.0, 0.5), (0.5, math.sqrt(0.2))])
def test_a_caption_lies_between_the_product_and_the_least_of_its_words(independence: float, expected: float):
    calibration = replace(CALIBRATION, independence=independence)
    assert calibration.caption([0.8, 0.5]) == pytest.approx(expected)
    assert calibration.caption([0.8]) == pytest.approx(0.8)
    assert calibration.caption([]) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"independence": 1.5},
        {"independence": "much"},
        {"content_words": {"bias": 0.0}},
        {"content_words": {**FLAT, "luck": 1.0}},
        {"function_words": {**FLAT, "rank": None}},
        {"function_words": {**FLAT, "rank": math.inf}},
    ],
)
def test_other_numbers_are_refused(change: dict[str, Any]):
    with pytest.raises(ValueError, match=r"independence must|weigh"):
        Calibration.from_dict({**CALIBRATION.to_dict(), **change})


def test_a_checkpoint_keeps_it(tmp_path: Path):
    save_checkpoint(tiny_checkpoint(), tmp_path / "tiny")
    before = (tmp_path / "tiny" / "model.safetensors").read_bytes()
    write_calibration(tmp_path / "tiny", CALIBRATION)
    loaded = load_checkpoint(tmp_path / "tiny", device=torch.device("cpu"), dtype=torch.float32)
    assert loaded.calibration == CALIBRATION
    assert (tmp_path / "tiny" / "model.safetensors").read_bytes() == before
    save_checkpoint(loaded, tmp_path / "again")
    assert (tmp_path / "again" / "config.json").read_text() == (tmp_path / "tiny" / "config.json").read_text()
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    config["calibration"]["independence"] = 2
    (tmp_path / "again" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"config\.json.*independence must be from 0 to 1"):
        load_checkpoint(tmp_path / "again", device=torch.device("cpu"), dtype=torch.float32)


def test_captions_say_whether_they_are_calibrated():
    photo = draw_noise(50, 50, seed=1)
    plain = tiny_captioner().caption([photo])[0]
    checkpoint = replace(tiny_checkpoint(), calibration=CALIBRATION)
    rated = Captioner(CheckpointRunner(checkpoint), name="tiny").caption([photo])[0]
    assert (plain.calibrated, rated.calibrated) == (False, True)
    assert (rated.caption, rated.logprob) == (plain.caption, plain.logprob)
    assert [word.logprob for word in rated.words] == [word.logprob for word in plain.words]
    assert plain.words[0].confidence == pytest.approx(math.exp(plain.words[0].logprob))
    assert rated.words[0].confidence != plain.words[0].confidence
    assert 0 < rated.confidence < 1


def test_tags_reach_the_words_that_they_name():
    """The model's tags of a photo: a word that is one has its score, as the region tokens were told it."""
    runner = CheckpointRunner(tiny_checkpoint(words=6))
    tags = runner.checkpoint.model.regions
    assert tags is not None
    assert tags.tags is not None
    tags.tags.head_words[:] = torch.arange(4, 4 + len(tags.tags.head_words))
    captioner = Captioner(runner, name="tiny")
    photo = captioner.prepare(draw_noise(50, 50, seed=1))
    encoded = runner.encode([photo])
    assert encoded.tags is not None
    (scores,) = runner.checkpoint.model.tag_scores(encoded)
    named = set(tags.tags.head_words[encoded.tags.tags[0]].tolist())
    assert set(scores.words) | set(scores.classes) == named
    ((written, *_),) = captioner.write_prepared([photo])
    for signals in written.signals:
        assert signals.word_tag == scores.words.get(signals.token_id, 0.0)
        assert signals.class_tag == scores.classes.get(signals.token_id, 0.0)


def made_up(count: int, *, references: int = 5, seed: int = 0) -> list[Judged]:
    """Captions of "the dog red" whose content words are right with a known probability, independently."""
    draw = random.Random(seed)
    captions = []
    for _ in range(count):
        logprobs = [draw.uniform(-3, 0) for _ in range(3)]
        words = [word(text, p) for text, p in zip(("the", "dog", "red"), logprobs, strict=True)]
        right = [True, *(draw.random() < 1 / (1 + math.exp(-(1 + p))) for p in logprobs[1:])]
        captions.append(Judged(words, logprobs, right, references))
    return captions


def test_a_fit_finds_the_probabilities_that_made_the_captions():
    calibration = fit_calibration(made_up(4000))
    for logprob in (-2.5, -1.0, -0.2):
        _, found, _ = calibration.words([word("the"), word("dog", logprob), word("red")], [-1.5] * 3)
        assert found == pytest.approx(1 / (1 + math.exp(-(1 + logprob))), abs=0.04)
    assert calibration.independence > 0.8
    assert calibration.words([word("the", -1.0)], [-1.0])[0] > 0.95


def test_words_that_are_right_together_are_not_independent():
    together = [replace(caption, right=[True, *[caption.right[1]] * 2]) for caption in made_up(2000)]
    assert fit_calibration(together).independence < 0.4


def test_the_number_of_references_does_not_change_what_confidence_means():
    """With one reference fewer words are right: fitted together, confidence is still that of five."""
    five, one = made_up(3000), made_up(3000, references=1, seed=1)
    fewer = [
        replace(each, right=[right and n % 2 == 0 for right in each.right]) for n, each in enumerate(one)
    ]
    signals = [word("the"), word("dog", -1.0), word("red")]
    alone = fit_calibration(five).words(signals, [-1.5] * 3)[1]
    joint = fit_calibration([*five, *fewer]).words(signals, [-1.5] * 3)[1]
    naive = fit_calibration([replace(each, references=5) for each in (*five, *fewer)])
    assert joint == pytest.approx(alone, abs=0.04)
    assert naive.words(signals, [-1.5] * 3)[1] < alone - 0.08


def test_held_out_halves_judge_each_other():
    scores = cross_validate([made_up(1500), made_up(600, seed=5)])
    assert len(scores) == 2
    for found in scores:
        assert found.words is not None
        assert found.words.ece < 0.06
        assert found.words.auroc is not None
        assert found.words.auroc > 0.6


def test_photos_with_one_reference_are_not_judged_beside_others():
    many, one = made_up(200), made_up(200, references=1)
    judged, left = cross_validate([many, one])
    assert judged.words is not None
    assert left.to_dict() == dict.fromkeys(left.to_dict())
    (alone,) = cross_validate([one])
    assert alone.words is not None


def test_a_word_is_right_if_a_reference_says_it():
    captioner = tiny_captioner()
    ((written, *_),) = captioner.write_prepared([captioner.prepare(draw_noise(50, 50, seed=1))])
    assert all(judge(written, [written.text]).right)
    assert not any(judge(written, ["xyz"]).right)
    assert judge(written, ["xyz", "abc"]).references == 2


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    save_checkpoint(tiny_checkpoint(), tmp_path / "tiny", dtype=torch.float32)
    images, annotations = [], []
    for number in range(100):
        draw_noise(40, 40, seed=number).save(tmp_path / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png"})
        annotations += [{"image_id": number, "caption": text} for text in ("a brown dog runs", "a red ball")]
    (tmp_path / "captions.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    photos = ["--images", str(tmp_path), "--captions", str(tmp_path / "captions.json")]
    return ["calibrate", *photos, "--device", "cpu"]


def test_the_command_writes_into_a_directory(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    tiny = tmp_path / "tiny"
    weights = (tiny / "model.safetensors").read_bytes()
    assert main([*command, "--model", str(tiny)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{tmp_path / 'captions.json'}: fitted to other photographs"
    assert lines[1].startswith("ECE of words\t0.")
    assert lines[-1] == f"written to\t{tiny}"
    assert (tiny / "model.safetensors").read_bytes() == weights
    caption = load(tiny, device="cpu").caption([tmp_path / "0.png"])[0]
    assert caption.calibrated


def test_the_command_makes_a_copy_of_a_named_model(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    named = tmp_path / "weights"
    shutil.copytree(tmp_path / "tiny", named / "small")
    monkeypatch.setenv("CAPTIONER_WEIGHTS", str(named))
    assert main([*command, "--model", "small"]) == 2
    assert "give --output DIR for a calibrated copy" in capsys.readouterr().err
    twice = [*command, *command[1:5], "--model", "small", "--output", str(tmp_path / "new"), "--json"]
    assert main(twice) == 0
    data = json.loads(capsys.readouterr().out)
    assert [each["captions"] for each in data["held_out"]] == [str(tmp_path / "captions.json")] * 2
    copy = load_checkpoint(tmp_path / "new", device=torch.device("cpu"), dtype=torch.float32)
    assert copy.calibration is not None
    assert copy.calibration.to_dict() == data["calibration"]
    assert "calibration" not in json.loads((named / "small" / "config.json").read_text())
    assert main(twice) == 2
    assert "is there already: give a new directory" in capsys.readouterr().err


def test_the_command_wants_enough_photographs_and_pairs(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    tiny = ["--model", str(tmp_path / "tiny")]
    assert main([*command, *tiny, "--limit", "99"]) == 1
    assert "99 photos are too few" in capsys.readouterr().err
    assert main([*command, *tiny, "--images", str(tmp_path)]) == 2
    assert "once for each photo set, not 2 and 1 times" in capsys.readouterr().err
