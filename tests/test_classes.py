"""Word classes: what captions teach of a vocabulary, and that a checkpoint keeps it."""

from __future__ import annotations

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from images import draw_noise
from tiny import tiny_checkpoint

from captioner import Captioner, GenerationOptions
from captioner.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from captioner.runners import CheckpointRunner
from captioner.tokenizer import CaptionTokenizer, TokenizerConfig, WordClasses, train_word_tokenizer
from captioner.training.classes import with_word_classes

ROOT = Path(__file__).parents[1]

CAPTIONS = [
    *[f"a {colour} dog runs in the {place}" for colour in ("red", "black") for place in ("park", "field")],
    *("the parked car is near a red and black house", "a lit up street at night", "a dog is in a park"),
    *("the top of a house", "a girl's dog", "a man dressed in black", "the man is in a park"),
] * 30


def words(tokenizer: CaptionTokenizer, ids: tuple[int, ...]) -> set[str]:
    return {tokenizer.decode([token]) for token in ids}


def learned() -> tuple[CaptionTokenizer, WordClasses]:
    tokenizer = with_word_classes(train_word_tokenizer(CAPTIONS), CAPTIONS)
    assert tokenizer.config.classes is not None
    return tokenizer, tokenizer.config.classes


def test_modifiers_are_what_needs_a_noun():
    tokenizer, classes = learned()
    assert words(tokenizer, classes.modifiers) == {"red", "black", "parked", "lit"}
    assert words(tokenizer, classes.determiners) == {"a", "the"}
    assert words(tokenizer, classes.conjunctions) == {"and"}
    assert {"in", "is", "at", "of"} <= words(tokenizer, classes.closing)
    assert "top" not in words(tokenizer, classes.closing)


def test_all_but_content_words_may_be_said_twice():
    tokenizer, classes = learned()
    repeatable = words(tokenizer, classes.repeatable)
    assert {"a", "the", "in", "is", "and", "'s"} <= repeatable
    assert repeatable.isdisjoint({"dog", "red", "runs", "park", "parked"})
    config = tokenizer.config
    assert {config.eos_id, config.pad_id, config.unk_id, *config.start_ids} <= set(classes.repeatable)


def test_the_vocabulary_stays_and_learning_again_changes_nothing():
    tokenizer, _ = learned()
    assert tokenizer.encode("a red dog") == train_word_tokenizer(CAPTIONS).encode("a red dog")
    assert with_word_classes(tokenizer, CAPTIONS).config == tokenizer.config


def test_word_classes_go_through_json():
    config = learned()[0].config
    assert TokenizerConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert TokenizerConfig.from_dict(json.loads(json.dumps(TokenizerConfig().to_dict()))) == TokenizerConfig()


def test_captions_say_no_content_word_twice():
    photos = [draw_noise(40 + n, 30, seed=n) for n in range(4)]
    checkpoint = tiny_checkpoint()
    tokens = range(4, checkpoint.tokenizer.vocab_size)
    options = GenerationOptions(num_beams=3, max_length=8)
    before = [caption.caption for caption in captioner_of(checkpoint).caption(photos, options)]
    assert any(len(set(text.split())) < len(text.split()) for text in before)
    classes = WordClasses(
        determiners=(), modifiers=(), conjunctions=(), closing=(), repeatable=tuple({0, 1, 2, 3})
    )
    assert len(tokens) > 8
    config = replace(checkpoint.tokenizer.config, classes=classes)
    model = captioner_of(replace(checkpoint, tokenizer=checkpoint.tokenizer.with_config(config)))
    for photo, caption in zip(photos, model.caption(photos, options), strict=True):
        texts = [caption.caption]
        (*_, last) = model.stream(photo, options)
        assert last.caption is not None
        texts.append(last.caption.caption)
        for text in texts:
            assert len(set(text.split())) == len(text.split())


def captioner_of(checkpoint: Checkpoint) -> Captioner:
    return Captioner(CheckpointRunner(checkpoint), name="tiny")


def test_the_script_writes_them_into_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    checkpoint = tiny_checkpoint()
    save_checkpoint(checkpoint, tmp_path / "tiny")
    (tmp_path / "more.jsonl").write_text(json.dumps({"captions": CAPTIONS}) + "\n")
    annotations = [{"image_id": 1, "caption": caption} for caption in CAPTIONS]
    (tmp_path / "coco.json").write_text(json.dumps({"images": [], "annotations": annotations}))
    arguments = [tmp_path / "tiny", tmp_path / "more.jsonl", tmp_path / "coco.json"]
    monkeypatch.setattr(sys, "argv", ["word_classes.py", *map(str, arguments)])
    runpy.run_path(str(ROOT / "scripts" / "word_classes.py"), run_name="__main__")
    assert "modifiers" in capsys.readouterr().out
    read = load_checkpoint(tmp_path / "tiny", device=torch.device("cpu"), dtype=torch.float32)
    assert read.tokenizer.config == with_word_classes(checkpoint.tokenizer, CAPTIONS * 2).config


@pytest.mark.parametrize(
    ("caption", "faults"),
    [
        ("a red dog runs in the park", set()),
        ("a dog runs near a dog", {"repeated word"}),
        ("a dog in front of a parked", {"phrase without its noun"}),
        ("the lit up at night", {"phrase without its noun"}),
        ("a man dressed in black", set()),
        ("a red and black is in the park", {"phrase without its noun"}),
        ("a dog runs in the", {"cut off"}),
    ],
)
def test_faults_are_found(caption: str, faults: set[str]):
    script = runpy.run_path(str(ROOT / "scripts" / "sentence_faults.py"))
    assert script["faults"](caption, learned()[0]) == faults
