"""Shorter phrases of a caption: grammatical, without what is in doubt, those that say most first."""

from __future__ import annotations

import pytest

from captioner.content import content_words
from captioner.hedge import phrases, text_of


def shorter(caption: str, *doubtful: str) -> list[str]:
    words = caption.split()
    at = {index for index, word in enumerate(words) if word.strip(".") in doubtful}
    return [text_of(phrase, caption) for phrase in phrases(words, doubtful=at)]


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        (
            "a woman standing in front of a brick wall",
            ["a brick wall", "a woman standing", "a woman"],
        ),
        (
            "a little boy in a pink shirt is running on the grass",
            [
                "a little boy in a pink shirt is running",
                "a little boy in a pink shirt",
                "a little boy",
                "a pink shirt",
            ],
        ),
        ("a group of people in a boat", ["a group of people", "a boat"]),
        ("a tennis player hits a ball", ["a tennis player", "a ball"]),
        ("a dog jumps over the fence", ["a dog"]),
        ("a large building with windows", ["a large building"]),
        ("two dogs", []),
        ("a man", []),
        ("", []),
    ],
)
def test_a_phrase_ends_where_it_may(caption: str, expected: list[str]):
    assert sorted(shorter(caption)) == sorted(expected)
    said = [len(content_words(text)) for text in shorter(caption)]
    assert said == sorted(said, reverse=True)


def test_of_phrases_that_say_as_much_the_shorter_one_comes_first():
    caption = "the front of a building with a sign in the snow"
    assert shorter(caption, "sign", "snow") == ["a building", "the front of a building"]


def test_no_phrase_has_a_word_that_is_in_doubt():
    assert shorter("a woman standing in front of a brick wall", "woman", "wall") == []
    assert shorter("a woman standing in front of a brick wall", "standing", "wall") == ["a woman"]
    assert shorter("a woman standing in front of a brick wall", "woman") == ["a brick wall"]


def test_a_noun_does_without_its_doubtful_adjectives():
    assert shorter("a very tall tower with smoke", "tall", "smoke") == ["a tower"]
    assert shorter("a very tall tower with smoke", "smoke") == ["a very tall tower"]
    assert shorter("a brown dog in the snow", "brown") == ["a dog in the snow", "a dog"]
    assert shorter("a black and white dog runs", "white") == ["a dog runs", "a dog"]
    assert shorter("two small brown birds", "brown") == ["two small birds"]
    assert shorter("the dog is brown", "brown") == ["the dog"]


def test_the_article_follows_the_word_after_it():
    assert shorter("a red airplane in the sky", "red") == ["an airplane in the sky", "an airplane"]
    assert shorter("an old train", "old") == ["a train"]
    assert shorter("an orange unicycle", "orange") == ["a unicycle"]
    assert shorter("An old man walks in the rain.", "old")[-1] == "A man."


def test_capitals_and_full_stops_are_those_of_the_caption():
    assert shorter("Two dogs play on the grass.", "grass") == ["Two dogs play."]
    assert shorter("Waves in front of a lighthouse.", "Waves") == ["A lighthouse."]
