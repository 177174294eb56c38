"""``captioner train`` as it is typed: a whole run in miniature, its resumption, and mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from images import draw_noise
from safetensors.torch import save_file

import captioner
from captioner.cli import main
from captioner.training import words
from captioner.training.initial import EFFICIENTNET_LITE2, class_words, initial_checkpoint
from captioner.vision import BackboneConfig, build_backbone

CAPTIONS = ["a brown dog runs", "two men ride bikes"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Six photos and their captions, and a backbone as scripts/imagenet_weights.py writes it, untrained."""
    images, annotations = [], []
    for number in range(6):
        draw_noise(40, 30, seed=number).save(tmp_path / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png"})
        annotations += [{"image_id": number, "caption": CAPTIONS[number % 2]}] * 2
    (tmp_path / "captions.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    config = BackboneConfig(kind="efficientnet_lite", image_size=288, width=1280, options=EFFICIENTNET_LITE2)
    torch.manual_seed(0)
    tensors = {f"backbone.{name}": value for name, value in build_backbone(config).state_dict().items()}
    tensors["regions.tags.classifier.weight"] = torch.randn(1000, 1280)
    tensors["regions.tags.classifier.bias"] = torch.zeros(1000)
    save_file(tensors, tmp_path / "backbone.safetensors")
    return tmp_path


def command(data: Path, *more: str) -> list[str]:
    argv = ["train", "--images", str(data), "--output", str(data / "out"), "--device", "cpu", *more]
    argv += ["--train", str(data / "captions.json"), "--val", str(data / "captions.json")]
    return [*argv, "--backbone", str(data / "backbone.safetensors")]


SMALL = [
    *("--epochs", "1", "--frozen-epochs", "0", "--scst-epochs", "1", "--views", "1"),
    *("--photos", "3", "--width", "64", "--layers", "1", "--tag-swap", "0.5"),
]


@pytest.mark.slow
def test_a_run_ends_with_a_model_and_its_curve(data: Path, capsys: pytest.CaptureFixture[str]):
    assert main(command(data, *SMALL, "--description", "a small one")) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{data / 'out'}\t{data / 'out' / 'curve.png'}\n"
    said = captured.err.splitlines()
    assert [line.split(":")[0] for line in said] == ["epoch 1", "self-critical epoch 2"]
    assert all("images/s" in line and "cider" in line and "loss" in line for line in said)
    model = captioner.load(data / "out", device="cpu")
    assert model.description == "a small one"
    (caption,) = model.caption([data / "0.png"])
    assert set(caption.caption.split()) <= {*" ".join(CAPTIONS).split(), *class_words()}

    before = (data / "out" / "metrics.jsonl").read_text()
    assert main(command(data, *SMALL)) == 0, "again: there is nothing left to do"
    assert (data / "out" / "metrics.jsonl").read_text() == before
    capsys.readouterr()
    assert main(command(data, *SMALL, "--width", "128")) == 1
    assert "is the state of another model" in capsys.readouterr().err


def test_a_new_model_with_word_tags_has_the_words_of_many_photos(data: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(words, "FEWEST_PHOTOS", 3)
    captions = [[CAPTIONS[number % 2]] * 2 for number in range(6)] + [["a cat", "a cat"]] * 2
    checkpoint = initial_checkpoint(
        captions, data / "backbone.safetensors", description="", word_tags=True, width=64, layers=1
    )
    tags, tokenizer = checkpoint.model.regions.tags, checkpoint.tokenizer
    assert checkpoint.model.config.regions.words == 7
    said = [tokenizer.decode([token]) for token in tags.head_words[1000:].tolist()]
    assert said == ["bikes", "brown", "dog", "men", "ride", "runs", "two"]
    assert tags.word_head.weight.shape == (7, 1280 + 4**3), "it reads features and colours"


def test_words_of_texts_are_known_if_they_occur_often(data: Path):
    captions, texts = [[CAPTIONS[0]] * 2] * 6, [["a green quetzal"]] * 11 + [["a green tree"]]
    tokenizer = initial_checkpoint(
        captions, data / "backbone.safetensors", description="", texts=texts, width=64, layers=1
    ).tokenizer
    assert tokenizer.token_id("green") is not None
    assert tokenizer.token_id("quetzal") is None, "eleven times"
    assert tokenizer.token_id("brown") is not None


@pytest.mark.parametrize(
    ("damage", "more", "message"),
    [
        ("captions.json", [], "cannot be read"),
        ("backbone.safetensors", SMALL, "holds no backbone"),
        ("3.png", SMALL, "1 photos are missing"),
        (None, ["--photos", "7"], "a batch takes 7 photos, but there are 6"),
        (None, ["--extra-images", "."], "go together"),
        (None, ["--extra-photos", "3"], "a number for each set"),
        (None, ["--narratives-images", "."], "go together"),
        (None, [*SMALL, "--text", "captions.json"], "captions.json: "),
        (None, [*SMALL, "--text-epochs", "1"], "add --text"),
        (None, [*SMALL, "--device", "toaster"], "unknown device"),
        (None, [*SMALL, "--word-tags"], "no word is in the captions of 20 photos"),
        (None, ["--init", "default"], "leave out either"),
    ],
)
def test_a_mistake_is_one_line(
    damage: str | None, more: list[str], message: str, data: Path, capsys: pytest.CaptureFixture[str]
):
    if damage:
        (data / damage).unlink()
    assert main(command(data, *more)) in (1, 2)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert message in captured.err
