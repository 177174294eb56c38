"""The shipped model: its size, its card, and captions of real photographs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors import safe_open
from skimage import data

import captioner
from captioner.tokenizer import DANGLING

WEIGHTS = Path(__file__).parents[1] / "weights" / "default"


@pytest.fixture(scope="module")
def model() -> captioner.Captioner:
    return captioner.load(WEIGHTS, device="cpu")


def test_it_is_small_and_in_half_precision() -> None:
    path = WEIGHTS / "model.safetensors"
    assert path.stat().st_size <= 60e6
    with safe_open(path, "pt") as file:
        kinds = {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118 - not a dictionary
    assert kinds <= {"F16", "I64"}


def test_its_card_has_its_numbers(model: captioner.Captioner) -> None:
    card = (WEIGHTS / "README.md").read_text()
    assert f"{model.parameters / 1e6:.1f} million weights" in card
    assert (
        f"{model.default_options.num_beams} beams, at most {model.default_options.max_length} tokens" in card
    )


def test_real_photographs_get_whole_sentences_alone_as_in_a_batch(model: captioner.Captioner) -> None:
    photos = [data.astronaut(), data.chelsea(), data.coffee(), data.rocket()]
    captions = [caption.caption for caption in model.caption(photos)]
    assert captions == [model.caption([photo])[0].caption for photo in photos]
    assert len(set(captions)) == len(photos)
    for caption in captions:
        words = caption.split()
        assert 4 <= len(words) <= model.default_options.max_length
        assert words[-1] not in DANGLING
    assert "cat" in captions[1]


def test_words_that_end_no_caption_are_in_its_configuration() -> None:
    config = json.loads((WEIGHTS / "config.json").read_text())["tokenizer"]
    vocabulary = json.loads((WEIGHTS / "tokenizer.json").read_text())["model"]["vocab"]
    assert set(config["never_last_ids"]) == {vocabulary[word] for word in DANGLING if word in vocabulary}
    modifiers = config["classes"]["modifiers"]
    assert {vocabulary[word] for word in ("red", "young", "large", "parked", "lit")} <= set(modifiers)
    assert {vocabulary[word] for word in ("dog", "man", "street", "cat")}.isdisjoint(modifiers)
