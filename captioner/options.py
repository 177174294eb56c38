"""How captions are searched for: every choice, its range, and which choices contradict each other.

A user's :class:`GenerationOptions` say what is to differ from the model's own settings.
:meth:`GenerationOptions.resolve` is the one place where both become the complete :class:`SearchOptions`, by
which every search goes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from captioner.errors import OptionsError

__all__ = ["DEFAULT_LENGTH_PENALTY", "DETAILS", "SURE", "GenerationOptions", "SearchOptions"]

DEFAULT_LENGTH_PENALTY = 1.0
DETAILS = ("brief", "detailed", "full")
"""How much a caption tells: a sentence, a few, or a paragraph."""

MAX_TEXT = 4000
SURE = 0.5
"""The least confidence of what ``hedge`` says, and where it begins if ``min_confidence`` is not given."""

_INTEGERS = {
    "num_beams": (1, 64),
    "max_length": (1, 1024),
    "min_length": (0, 1024),
    "no_repeat_ngram_size": (0, 16),
    "top_k": (0, 1_000_000),
    "alternatives": (0, 63),
    "seed": (0, 2**63 - 1),
}
_NUMBERS = {
    "length_penalty": (-10.0, 10.0),
    "repetition_penalty": (0.1, 10.0),
    "temperature": (0.01, 100.0),
    "top_p": (0.001, 1.0),
    "min_confidence": (0.0, 1.0),
}
_FLAGS = ("do_sample", "attention", "early_stopping", "hedge")
_SAMPLING = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": None}
"""Options of sampling alone, and the values that leave the model's probabilities as they are."""


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """The options of one search, all of them set; :class:`GenerationOptions` tells what they mean.

    Only ``seed`` may be None: samples are then drawn anew each time. The defaults are those of a model that
    has no settings of its own.

    Raises:
        OptionsError: a value is out of range or contradicts another one.
    """

    num_beams: int = 3
    max_length: int = 24
    min_length: int = 0
    length_penalty: float = DEFAULT_LENGTH_PENALTY
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    bad_words: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()
    prompt: str = ""
    instruction: str = ""
    detail: str = ""
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    alternatives: int = 0
    attention: bool = False
    early_stopping: bool = False
    min_confidence: float = 0.0
    hedge: bool = False
    json_schema: str = ""

    def __post_init__(self) -> None:
        values = asdict(self)
        if self.seed is None:
            del values["seed"]
        _check(values)

    def to_dict(self) -> dict[str, Any]:
        """The options as JSON-ready data."""
        return {**asdict(self), "bad_words": list(self.bad_words), "stop": list(self.stop)}


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """How to search for captions. An option that is left out, or None, keeps the model's own setting.

    Attributes:
        num_beams: 1…64 beams; 1 is greedy search. Sampling ignores it and early_stopping.
        max_length: 1…1024 generated tokens, with the end token but without the prompt.
        min_length: 0…max_length, counted in the same way.
        length_penalty: -10…10; a caption's score is its summed log-prob / generated tokens ** length_penalty,
            so larger values favour longer captions, and 0 compares plain log-probs.
        repetition_penalty: 0.1…10; log-probs of words that the caption already has are multiplied by it.
        no_repeat_ngram_size: 0…16; no sequence of this many tokens occurs twice in a caption; 0 allows all.
        bad_words: words or phrases that no caption contains.
        stop: texts before which a caption ends; for models run by `transformers` or on a server.
        prompt: text that every caption begins with.
        instruction: what to ask of a model that follows instructions, up to 4000 characters; "" for its own.
        detail: "brief", "detailed" or "full", for a model that was trained to write captions of each; "" for
            its own.
        do_sample: draw words at random instead of searching for the best caption.
        temperature: 0.01…100; below 1 draws likely words more often. Sampling only, as are the next three.
        top_k: draw only from this many likeliest words; 0 draws from all.
        top_p: 0.001…1; draw from the fewest words whose probabilities sum to it.
        seed: 0…2**63-1. The same seed gives an image the same samples, alone or in any batch and at any place
            in it, since the images of a batch share their random numbers. None draws anew each time, from
            torch's global generator.
        alternatives: how many more captions to give, best first: at most num_beams - 1, or 0…63 samples.
        attention: add to each word where the model looked.
        early_stopping: end a beam search once num_beams captions are finished, even if a beam that goes on
            could still do better.
        min_confidence: 0…1; a caption of less confidence is marked as uncertain.
        hedge: shorten such a caption to a phrase of at least this confidence, and at least 0.5, if it holds
            one. Without min_confidence, all captions below 0.5. A caption with a prompt stays whole.
        json_schema: the JSON schema of the answer, as a text; for vision-language models and those
            on a server.

    Raises:
        OptionsError: a value is out of range or contradicts another one that is given.
    """

    num_beams: int | None = None
    max_length: int | None = None
    min_length: int | None = None
    length_penalty: float | None = None
    repetition_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    bad_words: tuple[str, ...] | None = None
    stop: tuple[str, ...] | None = None
    prompt: str | None = None
    instruction: str | None = None
    detail: str | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    alternatives: int | None = None
    attention: bool | None = None
    early_stopping: bool | None = None
    min_confidence: float | None = None
    hedge: bool | None = None
    json_schema: str | None = None

    def __post_init__(self) -> None:
        _check(self.given())

    def given(self) -> dict[str, Any]:
        """The options that are set, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def resolve(self, own: GenerationOptions) -> SearchOptions:
        """All options of a search: these, then the model's own, then the defaults of :class:`SearchOptions`.

        What is not given gives way to what is: num_beams rises with alternatives, and the model's own
        min_length, alternatives or hedge never stand against a smaller max_length or num_beams or a schema.
        The model's own temperature, top_k, top_p and seed count for sampling only.

        Args:
            own: the model's settings.

        Raises:
            OptionsError: options contradict each other.
        """
        given = self.given()
        options = {**own.given(), **given}
        sampling = options.get("do_sample", SearchOptions.do_sample)
        if not sampling:
            options = {name: options[name] for name in options if name in given or name not in _SAMPLING}
        if "max_length" in given and "min_length" not in given:
            options["min_length"] = min(options.get("min_length", 0), given["max_length"])
        if not sampling and "num_beams" in given and "alternatives" not in given:
            options["alternatives"] = min(options.get("alternatives", 0), given["num_beams"] - 1)
        if not sampling and "num_beams" not in given:
            beams, others = options.get("num_beams", SearchOptions.num_beams), options.get("alternatives", 0)
            options["num_beams"] = max(beams, others + 1)
        if given.get("json_schema") and "hedge" not in given:
            options["hedge"] = False
        if options.get("hedge"):
            options.setdefault("min_confidence", SURE)
        return SearchOptions(**options)


def _check(values: Mapping[str, Any]) -> None:
    """Raise OptionsError for what is wrong with options by name, as far as that can be known from them."""
    for name, value in values.items():
        _check_value(name, value)
    if values.get("json_schema") and values.get("hedge"):
        raise OptionsError("hedge cannot shorten an answer in JSON: leave out hedge or json_schema")
    low, high = values.get("min_length"), values.get("max_length")
    if low is not None and high is not None and low > high:
        raise OptionsError(
            f"min_length {low} is more than max_length {high}: lower min_length or raise max_length"
        )
    if values.get("do_sample") is not False:  # sampling, or whatever the model does by itself
        return
    for name, neutral in _SAMPLING.items():
        if values.get(name, neutral) != neutral:
            raise OptionsError(
                f"{name} {values[name]} has no effect without do_sample: "
                f"set do_sample=True or leave {name} out"
            )
    others, beams = values.get("alternatives"), values.get("num_beams")
    if others is not None and beams is not None and others > beams - 1:
        raise OptionsError(
            f"alternatives {others} needs num_beams {others + 1} or more, not {beams}: "
            "raise num_beams or lower alternatives"
        )


def _check_value(name: str, value: object) -> None:
    if name in _INTEGERS:
        _check_integer(name, value, *_INTEGERS[name])
    elif name in _NUMBERS:
        _check_number(name, value, *_NUMBERS[name])
    elif name in _FLAGS:
        if not isinstance(value, bool):
            raise OptionsError(f"{name} must be True or False, not {value!r}")
    elif name in ("prompt", "instruction"):
        if not isinstance(value, str):
            raise OptionsError(f"{name} must be a text, not {value!r}")
        if len(value) > MAX_TEXT:
            raise OptionsError(f"{name} must have {MAX_TEXT} characters at most, not {len(value)}")
    elif name == "detail":
        if value not in ("", *DETAILS):
            raise OptionsError(f"detail must be brief, detailed or full, not {value!r}")
    elif name == "json_schema":
        _check_schema(value)
    elif name == "stop":
        if not isinstance(value, tuple) or not all(isinstance(text, str) and text for text in value):
            raise OptionsError(f"stop must be a tuple of texts, none of them empty, not {value!r}")
    elif not isinstance(value, tuple) or not all(isinstance(word, str) and word.strip() for word in value):
        raise OptionsError(f"bad_words must be a tuple of words, none of them empty, not {value!r}")


def _check_schema(value: object) -> None:
    if value == "":
        return
    try:
        schema = json.loads(value) if isinstance(value, str) else None
    except (ValueError, RecursionError):
        schema = None
    if not isinstance(schema, dict):
        raise OptionsError(f"json_schema must be a JSON object as a text, not {str(value)[:40]!r}")


def _check_integer(name: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise OptionsError(f"{name} must be a whole number from {low} to {high}, not {value!r}")


def _check_number(name: str, value: object, low: float, high: float) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not low <= value <= high:  # type: ignore[arg-type, operator]
        raise OptionsError(f"{name} must be a number from {low:g} to {high:g}, not {value!r}")
