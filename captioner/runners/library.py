"""What runners have in common whose network `transformers` loads and searches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from captioner.errors import CaptionerError, CheckpointError
from captioner.generation import DecodeRules, SearchOptions
from captioner.runners.base import (
    IsWanted,
    NetworkRunner,
    PreparedImage,
    Progress,
    WrittenCaption,
    always,
)
from captioner.runners.text import decode_rules, progress, prompt_of
from captioner.tokenizer import CaptionTokenizer

__all__ = ["LibraryRunner", "check_fit", "refusing_damage"]


class LibraryRunner(NetworkRunner):
    """A runner with the search of `transformers`, which a subclass sets up in :meth:`_caption`."""

    _tokenizer: CaptionTokenizer
    _positions: int

    def check_options(self, options: SearchOptions) -> None:
        """Raises OptionsError: see :meth:`rules`."""
        self.rules(options)

    def rules(self, options: SearchOptions) -> DecodeRules:
        """The token ids of what the options say in words; errors are those of ``text.decode_rules``."""
        return decode_rules(self._tokenizer, options, self._positions)

    @torch.inference_mode()
    def caption(
        self, images: Sequence[PreparedImage], options: SearchOptions, *, is_wanted: IsWanted = always
    ) -> list[list[WrittenCaption]]:
        """See :class:`~captioner.runners.base.Runner`; it looks after each token."""
        return self._caption(images, options, self.rules(options), is_wanted, None)

    def stream(
        self, image: PreparedImage, options: SearchOptions, *, is_wanted: IsWanted = always
    ) -> Iterator[Progress]:
        """See :class:`~captioner.runners.base.Runner`; a beam search comes in one step."""
        rules = self.rules(options)  # errors come with the call

        @torch.inference_mode()
        def run(streamer: Any) -> list[WrittenCaption]:
            return self._caption([image], options, rules, is_wanted, streamer)[0]

        return progress(self._tokenizer, prompt_of(self._tokenizer, rules), options, run)

    def _caption(
        self,
        images: Sequence[PreparedImage],
        options: SearchOptions,
        rules: DecodeRules,
        is_wanted: IsWanted,
        streamer: Any,
    ) -> list[list[WrittenCaption]]:
        """Captions of each photo, best first; ``streamer`` is that of ``generate`` or None."""
        raise NotImplementedError  # pragma: no cover - abstract


@contextmanager
def refusing_damage(directory: Path) -> Iterator[None]:
    """Turn whatever loading raises into a CheckpointError in one line."""
    try:
        yield
    except CaptionerError:
        raise
    except Exception as error:  # transformers raises whatever its parts make of damage
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{directory} cannot be loaded by transformers: {reason}") from error


def check_fit(report: Mapping[str, Any], directory: Path) -> None:
    """Raise CheckpointError where weights are missing or of another shape."""
    lacking = [*report["missing_keys"], *report["mismatched_keys"]]
    if lacking:
        raise CheckpointError(f"the weights of {directory} do not fit config.json: {lacking[:3]}")
