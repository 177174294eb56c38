"""What captions get right: content words, colours and people, counted by hand."""

from __future__ import annotations

import pytest

from captioner.content import COLOURS, FUNCTION_WORDS, PEOPLE, content_words, words_of
from captioner.evaluation.correctness import correctness, said_by, share_right


def test_words_come_without_punctuation_case_and_possessives():
    assert words_of("A man’s T-shirt, and the dog's (red) ball!") == [
        *("a", "man", "t-shirt", "and", "the", "dog", "red", "ball")
    ]
    assert words_of("") == words_of(" ... ") == []


def test_content_words_are_all_but_those_that_hold_a_sentence_together():
    text = "two dogs are running through the tall grass next to a woman who has a red hat"
    assert content_words(text) == ["two", "dogs", "running", "tall", "grass", "woman", "red", "hat"]
    assert content_words("it is in the") == []


def test_colours_and_people_are_content_words():
    assert FUNCTION_WORDS.isdisjoint(COLOURS | PEOPLE)
    assert COLOURS.isdisjoint(PEOPLE)


REFERENCES = {
    "dog": ["A brown dog runs.", "The dog's in tall grass"],
    "street": ["A red bus on the street", "a bus and two cars"],
    "beach": ["A woman at the beach."],
}


def test_a_word_is_right_if_some_reference_says_it_in_the_same_form():
    found = correctness(
        REFERENCES,
        {
            "dog": "a black dog runs through grass",  # 3 of 4; 0 of 1 colours
            "street": "a man on a red bus near cars",  # 3 of 4; 1 of 1 colours; a person invented
            "beach": "two women at the beach",  # 1 of 3: the plural is another word
        },
    )
    assert found.content_right == pytest.approx(100 * 7 / 11)
    assert found.colours_right == pytest.approx(100 * 1 / 2)
    assert found.people_invented == pytest.approx(100 * 1 / 2)  # of the dog and the street


def test_nothing_to_count_is_none():
    found = correctness({"beach": REFERENCES["beach"]}, {"beach": "it is"})
    assert found.to_dict() == {"content_right": None, "colours_right": None, "people_invented": None}
    assert share_right("it is", REFERENCES["beach"]) is None


def test_a_caption_has_a_share_of_its_own():
    assert share_right("a brown dog in the snow", REFERENCES["dog"]) == pytest.approx(2 / 3)
    assert said_by(REFERENCES["beach"]) == {"a", "woman", "at", "the", "beach"}
