"""How captions are searched for: every choice, its range, and which choices contradict each other."""

from __future__ import annotations

import math
from dataclasses import dataclass

from captioner.errors import OptionsError

__all__ = ["DEFAULT_LENGTH_PENALTY", "GenerationOptions"]

DEFAULT_LENGTH_PENALTY = 1.0

_INTEGERS = {
    "num_beams": (1, 64),
    "max_length": (1, 1024),
    "min_length": (0, 1024),
    "no_repeat_ngram_size": (0, 16),
    "top_k": (0, 1_000_000),
    "alternatives": (0, 63),
}
_NUMBERS = {
    "length_penalty": (-10.0, 10.0),
    "repetition_penalty": (0.1, 10.0),
    "temperature": (0.01, 100.0),
    "top_p": (0.001, 1.0),
}
_FLAGS = ("do_sample", "attention", "early_stopping")


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """How captions are searched for.

    Attributes:
        num_beams: 1…64 beams; 1 is greedy search. Without effect on sampling, as is early_stopping.
        max_length: 1…1024 generated tokens, the end token included, the prompt not.
        min_length: 0…max_length, counted likewise.
        length_penalty: -10…10; a caption's score is its summed log-prob / generated tokens ** length_penalty,
            so larger values favour longer captions, and 0 compares plain log-probs.
        repetition_penalty: 0.1…10; log-probs of words that the caption already has are multiplied by it.
        no_repeat_ngram_size: 0…16; no run of so many tokens occurs twice in a caption; 0 allows all.
        bad_words: words or phrases that no caption contains.
        prompt: text that every caption begins with.
        do_sample: draw words at random instead of searching for the best caption.
        temperature: 0.01…100; below 1 draws likely words more often. Sampling only, as are the next three.
        top_k: draw from this many best words only; 0 draws from all.
        top_p: 0.001…1; draw from the fewest words whose probabilities sum to it.
        seed: 0…2**63-1. The same seed gives an image the same samples, alone or in any batch and at any place
            in it, since the images of a batch share their random numbers. None draws anew each time, from
            torch's global generator.
        alternatives: further captions wanted, best first: at most num_beams - 1, or 0…63 samples.
        attention: tell for each word where the model looked.
        early_stopping: end a beam search once num_beams captions are finished, even if a beam that goes on
            could still do better.

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
    prompt: str = ""
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    alternatives: int = 0
    attention: bool = False
    early_stopping: bool = False

    def __post_init__(self) -> None:
        for name, (low, high) in _INTEGERS.items():
            _check_integer(name, getattr(self, name), low, high)
        for name, bounds in _NUMBERS.items():
            _check_number(name, getattr(self, name), *bounds)
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise OptionsError(f"{name} must be True or False, not {getattr(self, name)!r}")
        if self.seed is not None:
            _check_integer("seed", self.seed, 0, 2**63 - 1)
        if not isinstance(self.prompt, str):
            raise OptionsError(f"prompt must be a text, not {self.prompt!r}")
        if not isinstance(self.bad_words, tuple) or not all(
            isinstance(word, str) and word.strip() for word in self.bad_words
        ):
            raise OptionsError(
                f"bad_words must be a tuple of words, none of them empty, not {self.bad_words!r}"
            )
        self._check_contradictions()

    def _check_contradictions(self) -> None:
        if self.min_length > self.max_length:
            raise OptionsError(
                f"min_length {self.min_length} is more than max_length {self.max_length}: "
                "lower min_length or raise max_length"
            )
        if self.do_sample:
            return
        for name, neutral in {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": None}.items():
            if getattr(self, name) != neutral:
                raise OptionsError(
                    f"{name} {getattr(self, name)} has no effect without do_sample: "
                    f"set do_sample=True or leave {name} out"
                )
        if self.alternatives > self.num_beams - 1:
            raise OptionsError(
                f"alternatives {self.alternatives} needs num_beams {self.alternatives + 1} or more, "
                f"not {self.num_beams}: raise num_beams or lower alternatives"
            )


def _check_integer(name: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise OptionsError(f"{name} must be a whole number from {low} to {high}, not {value!r}")


def _check_number(name: str, value: object, low: float, high: float) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not low <= value <= high:  # type: ignore[arg-type, operator]
        raise OptionsError(f"{name} must be a number from {low:g} to {high:g}, not {value!r}")
