"""Options: what is refused, and that the error says which option it is and what to do."""

from __future__ import annotations

import math
from typing import Any

import pytest

from captioner.errors import OptionsError
from captioner.options import GenerationOptions


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_beams": 0}, "num_beams must be a whole number from 1 to 64, not 0"),
        ({"num_beams": 65}, "num_beams must be a whole number from 1 to 64, not 65"),
        ({"num_beams": 2.0}, "num_beams must be a whole number"),
        ({"num_beams": True}, "num_beams must be a whole number"),
        ({"num_beams": "3"}, "num_beams must be a whole number from 1 to 64, not '3'"),
        ({"num_beams": None}, "num_beams must be a whole number"),
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
        ({"attention": "yes"}, "attention must be True or False, not 'yes'"),
        ({"early_stopping": "never"}, "early_stopping must be True or False, not 'never'"),
        ({"prompt": None}, "prompt must be a text, not None"),
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
        ({"alternatives": 3}, "alternatives 3 needs num_beams 4 or more, not 3: raise num_beams or lower"),
        ({"num_beams": 1, "alternatives": 1}, "alternatives 1 needs num_beams 2 or more, not 1"),
    ],
)
def test_what_cannot_be_is_refused_and_said_why(options: dict[str, Any], words: str):
    with pytest.raises(OptionsError, match=words):
        GenerationOptions(**options)


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
    assert len({GenerationOptions(**options), GenerationOptions(**options)}) == 1
