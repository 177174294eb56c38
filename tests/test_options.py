"""Options: what is refused and why, and how a user's and the model's own become those of a search."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from typing import Any

import pytest

from captioner.errors import OptionsError
from captioner.options import GenerationOptions, SearchOptions


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_beams": 0}, "num_beams must be a whole number from 1 to 64, not 0"),
        ({"num_beams": 65}, "num_beams must be a whole number from 1 to 64, not 65"),
        ({"num_beams": 2.0}, "num_beams must be a whole number"),
        ({"num_beams": True}, "num_beams must be a whole number"),
        ({"num_beams": "3"}, "num_beams must be a whole number from 1 to 64, not '3'"),
        ({"max_length": 0}, "max_length must be a whole number from 1"),
        ({"max_length": 1025}, "max_length .* to 1024, not 1025"),
        ({"min_length": -1}, "min_length must be a whole number from 0"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size"),
        ({"length_penalty": 11}, "length_penalty must be a number from -10 to 10, not 11"),
        ({"length_penalty": math.nan}, "length_penalty .* not nan"),
        ({"length_penalty": "long"}, "length_penalty .* not 'long'"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be a number from 0.1 to 10, not 0.0"),
        ({"do_sample": True, "temperature": 0.0}, "temperature must be a number from 0.01 to 100"),
        ({"do_sample": True, "temperature": math.inf}, "temperature .* not inf"),
        ({"do_sample": True, "top_k": -1}, "top_k must be a whole number from 0"),
        ({"do_sample": True, "top_p": 0}, "top_p must be a number from 0.001 to 1, not 0"),
        ({"do_sample": True, "top_p": 1.5}, "top_p must be a number from 0.001 to 1, not 1.5"),
        ({"do_sample": True, "seed": -1}, "seed must be a whole number from 0"),
        ({"do_sample": True, "seed": 2**63}, "seed must be a whole number from 0"),
        ({"do_sample": True, "alternatives": 64}, "alternatives must be a whole number from 0 to 63"),
        ({"do_sample": 1}, "do_sample must be True or False, not 1"),
        ({"detail": "short"}, "detail must be brief, detailed or full, not 'short'"),
        ({"min_confidence": 1.5}, "min_confidence must be a number from 0 to 1, not 1.5"),
        ({"json_schema": "["}, "json_schema must be a JSON object as a text"),
        ({"json_schema": "[]"}, "json_schema must be a JSON object as a text"),
        ({"json_schema": {}}, "json_schema must be a JSON object as a text"),
        ({"json_schema": "{}", "hedge": True}, "hedge cannot shorten an answer in JSON"),
        ({"hedge": 1}, "hedge must be True or False, not 1"),
        ({"attention": "yes"}, "attention must be True or False, not 'yes'"),
        ({"early_stopping": "never"}, "early_stopping must be True or False, not 'never'"),
        ({"prompt": 5}, "prompt must be a text, not 5"),
        ({"stop": (".", "")}, "stop must be a tuple of texts, none of them empty"),
        ({"instruction": "a" * 4001}, "instruction must have 4000 characters at most, not 4001"),
        ({"bad_words": "dog"}, "bad_words must be a tuple of words"),
        ({"bad_words": ["dog"]}, "bad_words must be a tuple of words"),
        ({"bad_words": ("dog", " ")}, "bad_words .* none of them empty"),
        ({"min_length": 9, "max_length": 8}, "min_length 9 is more than max_length 8: lower .* or raise"),
        (
            {"temperature": 0.7},
            "temperature 0.7 has no effect without do_sample: set do_sample=True or leave",
        ),
        ({"top_k": 5}, "top_k 5 has no effect without do_sample"),
        ({"top_p": 0.9}, "top_p 0.9 has no effect without do_sample"),
        ({"seed": 0}, "seed 0 has no effect without do_sample"),
        (
            {"num_beams": 3, "alternatives": 3},
            "alternatives 3 needs num_beams 4 or more, not 3: raise num_beams or lower",
        ),
        ({"num_beams": 1, "alternatives": 1}, "alternatives 1 needs num_beams 2 or more, not 1"),
    ],
)
def test_what_cannot_be_is_refused_and_said_why(options: dict[str, Any], words: str):
    with pytest.raises(OptionsError, match=words):
        SearchOptions(**options)
    with pytest.raises(OptionsError, match=words):
        GenerationOptions(**{"do_sample": False, **options})
    with pytest.raises(OptionsError, match=words):
        GenerationOptions(**options).resolve(GenerationOptions(do_sample=False))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 64, "alternatives": 63, "early_stopping": True, "attention": True},
        {"num_beams": 1, "max_length": 1, "min_length": 1},
        {"length_penalty": -10, "repetition_penalty": 10, "no_repeat_ngram_size": 16},
        {"bad_words": ("dog", "hot dog"), "prompt": "a photo of"},
        {"do_sample": True, "temperature": 0.01, "top_k": 1, "top_p": 0.001, "seed": 2**63 - 1},
        {"do_sample": True, "alternatives": 63},
        {"do_sample": True, "num_beams": 5, "early_stopping": True},  # a model's defaults and --sample
    ],
)
def test_what_can_be_is_taken_and_compares_by_value(options: dict[str, Any]):
    assert len({SearchOptions(**options), SearchOptions(**options)}) == 1
    assert GenerationOptions(**options).resolve(GenerationOptions()) == SearchOptions(**options)


OWN: dict[str, Any] = {
    "num_beams": 5,
    "max_length": 16,
    "min_length": 4,
    "length_penalty": 0.5,
    "repetition_penalty": 1.2,
    "no_repeat_ngram_size": 2,
    "bad_words": ("dog",),
    "stop": (".",),
    "prompt": "a photo of",
    "instruction": "What is this?",
    "detail": "full",
    "do_sample": True,
    "temperature": 0.9,
    "top_k": 50,
    "top_p": 0.9,
    "seed": 3,
    "alternatives": 2,
    "attention": True,
    "early_stopping": True,
    "min_confidence": 0.3,
    "hedge": True,
    "json_schema": "",
}
"""A model's own setting of every option, none of them the default."""

OTHER: dict[str, Any] = {
    "num_beams": 7,
    "max_length": 20,
    "min_length": 0,
    "length_penalty": 1.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "bad_words": (),
    "stop": (),
    "prompt": "",
    "instruction": "Who is this?",
    "detail": "brief",
    "do_sample": False,
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "seed": 0,
    "alternatives": 1,
    "attention": False,
    "early_stopping": False,
    "min_confidence": 0.0,
    "hedge": False,
    "json_schema": '{"type": "object"}',
}
"""What a user may ask of that model instead: neutral values count as well as any."""


def test_both_kinds_of_options_have_the_same_fields():
    names = [field.name for field in fields(GenerationOptions)]
    assert names == [field.name for field in fields(SearchOptions)] == list(OWN) == list(OTHER)
    assert set(GenerationOptions().given()) == set()


def test_what_is_not_given_is_the_models_own():
    own = GenerationOptions(**OWN)
    assert GenerationOptions().resolve(own) == SearchOptions(**OWN)
    assert GenerationOptions().resolve(GenerationOptions()) == SearchOptions()


@pytest.mark.parametrize("name", [name for name in OWN if name not in ("do_sample", "json_schema")])
def test_an_option_changes_nothing_but_itself(name: str):
    resolved = GenerationOptions(**{name: OTHER[name]}).resolve(GenerationOptions(**OWN))
    assert resolved == SearchOptions(**{**OWN, name: OTHER[name]})
    assert getattr(resolved, name) != OWN[name]


def test_the_models_options_of_sampling_count_for_sampling_alone():
    search = {
        name: OWN[name] for name in OWN if name not in ("do_sample", "temperature", "top_k", "top_p", "seed")
    }
    assert GenerationOptions(do_sample=False).resolve(GenerationOptions(**OWN)) == SearchOptions(**search)
    own = GenerationOptions(top_p=0.9, num_beams=5)
    assert GenerationOptions().resolve(own) == SearchOptions(num_beams=5)
    drawn = GenerationOptions(do_sample=True, temperature=0.7).resolve(own)
    assert drawn == SearchOptions(num_beams=5, do_sample=True, temperature=0.7, top_p=0.9)
    with pytest.raises(OptionsError, match=r"temperature 0\.7 has no effect"):
        GenerationOptions(temperature=0.7).resolve(own)


@pytest.mark.parametrize(
    ("given", "own", "expected"),
    [
        ({"alternatives": 7}, {"num_beams": 5}, {"num_beams": 8, "alternatives": 7}),
        ({"alternatives": 3}, {"num_beams": 5}, {"num_beams": 5, "alternatives": 3}),
        ({"alternatives": 7, "do_sample": True}, {}, {"alternatives": 7, "do_sample": True}),
        ({"num_beams": 1}, {"num_beams": 5, "alternatives": 4}, {"num_beams": 1, "alternatives": 0}),
        ({"max_length": 5}, {"min_length": 8}, {"max_length": 5, "min_length": 5}),
        ({"max_length": 9}, {"min_length": 8}, {"max_length": 9, "min_length": 8}),
        ({"json_schema": "{}"}, {"hedge": True}, {"json_schema": "{}"}),
        ({"hedge": True}, {}, {"hedge": True, "min_confidence": 0.5}),
        ({"hedge": True}, {"min_confidence": 0.7}, {"hedge": True, "min_confidence": 0.7}),
    ],
)
def test_what_is_not_given_gives_way_to_what_is(
    given: dict[str, Any], own: dict[str, Any], expected: dict[str, Any]
):
    assert GenerationOptions(**given).resolve(GenerationOptions(**own)) == SearchOptions(**expected)


def test_what_is_given_does_not_give_way():
    with pytest.raises(OptionsError, match="min_length 20 is more than max_length 16"):
        GenerationOptions(min_length=20).resolve(GenerationOptions(max_length=16))
    with pytest.raises(OptionsError, match="alternatives 3 needs num_beams 4 or more, not 2"):
        GenerationOptions(num_beams=2, alternatives=3).resolve(GenerationOptions())


def test_resolved_options_are_ready_for_json():
    assert json.loads(json.dumps(SearchOptions(**OWN).to_dict())) == {
        **OWN,
        "bad_words": ["dog"],
        "stop": ["."],
    }
