"""The untrained model: its tag words."""

from __future__ import annotations

from importlib import resources

from timm.data import ImageNetInfo

from captioner.tokenizer import train_word_tokenizer
from captioner.training.initial import FEW, head_word_ids

LINES = resources.files("captioner.training").joinpath("imagenet_words.txt").read_text("utf-8").splitlines()
NAMES = [line.split("\t")[0] for line in LINES]


def test_each_class_of_imagenet_has_its_line():
    info = ImageNetInfo("imagenet-1k")
    assert [info.index_to_description(index).lower().split(", ")[0] for index in range(1000)] == NAMES


def test_a_tag_is_the_most_telling_word_that_captions_know():
    captions = (
        ["a cup of coffee"] * FEW  # espresso: "coffee"
        + ["a taxi"] * (FEW - 1)  # cab: "taxi cab car", of which only "car" is used enough
        + ["a car"] * FEW
        + ["a van"] * 5  # ambulance: "ambulance van", neither used enough
        + ["an ambulance"] * 4
        + ["a pizza"] * 3  # too few for the vocabulary
    )
    tokenizer = train_word_tokenizer(captions)
    ids = head_word_ids(captions, tokenizer).tolist()
    words = {name: tokenizer.decode([token]) for name, token in zip(NAMES, ids, strict=True)}
    assert (words["espresso"], words["cab"], words["ambulance"]) == ("coffee", "car", "van")
    assert ids[NAMES.index("pizza")] == ids[NAMES.index("guillotine")] == tokenizer.config.unk_id
