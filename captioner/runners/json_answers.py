"""Answers in JSON from models that `transformers` searches: only tokens that a JSON schema allows are chosen.

`llguidance` says which these are, after each token of each row, as it does for OpenAI, vLLM and llama.cpp.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property, lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captioner.errors import OptionsError
from captioner.options import SearchOptions

__all__ = ["Held", "JsonAnswers", "no_schemas"]

LONGEST = 32_000
"""Characters of a schema: they are made ready within about a second, in which no other photo has a turn."""

FORM = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "coerce_one_of": True}
"""On one line, as Python writes it: a model that may write blanks anywhere may write nothing else."""


def no_schemas(*, needs: str = "llguidance") -> str | None:
    """Why no model is held to a schema here; None where the package that this needs is installed."""
    return None if find_spec(needs) else f"{needs} is not installed: pip install 'captioner[json]'"


class JsonAnswers:
    """The answers of one model in JSON.

    Args:
        backend: its tokenizer, of the library `tokenizers`.
        eos_ids: the tokens that end a text.
    """

    def __init__(self, backend: Any, eos_ids: Sequence[int]) -> None:
        self._backend, self._eos_ids = backend, eos_ids
        self._matcher = lru_cache(maxsize=8)(self._new_matcher)  # a schema is checked before it is used

    def start(self, options: SearchOptions) -> Held:
        """The state of a search for answers of a schema, before its first token.

        Raises:
            OptionsError: the schema is not valid or says what cannot be followed, or another option is
                against it.
        """
        against = {
            "prompt": options.prompt,
            "bad_words": options.bad_words,
            "no_repeat_ngram_size": options.no_repeat_ngram_size,
            "min_length": options.min_length,
        }
        asked = [name for name, value in against.items() if value]
        if asked:
            raise OptionsError(f"an answer in JSON takes no {' or '.join(asked)}: leave it out")
        if len(options.json_schema) > LONGEST:
            raise OptionsError(f"json_schema must have {LONGEST} characters at most")
        matcher = self._matcher(options.json_schema).deep_copy()  # which this search alone changes
        return Held(matcher, frozenset(self._eos_ids))

    def _new_matcher(self, schema: str) -> Any:
        kind = self._library.LLMatcher
        try:
            grammar = kind.grammar_from_json_schema(schema, overrides=FORM)
        except ValueError as error:  # Python's JSON has numbers that no other has
            raise OptionsError(f"json_schema is not JSON: {error}") from error
        matcher = kind(self._tokenizer, grammar)
        _check(matcher)
        return matcher

    @cached_property
    def _library(self) -> Any:
        return import_module("llguidance")

    @cached_property
    def _tokenizer(self) -> Any:
        settings = json.loads(self._backend.to_str()) | {"padding": None, "truncation": None}
        return self._library.LLTokenizer(json.dumps(settings), eos_token=list(self._eos_ids))


class Held:
    """Keeps the rows of one search to a schema.

    Args:
        start: llguidance's matcher before the first token.
        eos_ids: the tokens that end a text.
    """

    def __init__(self, start: Any, eos_ids: frozenset[int]) -> None:
        self._eos_ids = eos_ids
        self._matchers: dict[tuple[int, ...], Any] = {(): start}  # of the rows as they were a token ago

    def __call__(self, scores: Tensor, tokens: Tensor) -> Tensor:
        """Scores ``(rows, V)`` with -inf for what cannot come after the generated ``tokens (rows, t)``.

        Rows that have ended stay as they are. Raises OptionsError where the schema turns out too hard.
        """
        allowed = torch.zeros(scores.shape, dtype=torch.bool)
        found: dict[tuple[int, ...], Any] = {}
        for row, ids in enumerate(map(tuple, tokens.tolist())):
            if not self._eos_ids.isdisjoint(ids):
                allowed[row] = True
                continue
            if ids not in found:
                found[ids] = self._after(ids)
            bits = np.frombuffer(found[ids].compute_bitmask(), np.uint8)
            known = torch.from_numpy(np.unpackbits(bits, bitorder="little")[: scores.shape[1]])
            allowed[row, : len(known)] = known.bool()
        self._matchers = found
        return scores.masked_fill(~allowed.to(scores.device), -torch.inf)

    def _after(self, ids: tuple[int, ...]) -> Any:
        if not ids:
            return self._matchers[()]
        matcher = self._matchers[ids[:-1]].deep_copy()  # other beams may go on from there, too
        matcher.consume_token(ids[-1])
        _check(matcher)
        return matcher


def _check(matcher: Any) -> None:
    if matcher.is_error():
        reason = " ".join(matcher.get_error().split())[:200]
        raise OptionsError(f"json_schema cannot be followed: {reason}")
