"""Between options and text on one side and token ids on the other, for runners that have a tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from captioner.calibration import WordSignals
from captioner.errors import OptionsError
from captioner.generation import DecodeRules, Hypothesis, SearchOptions, check_positions
from captioner.image import ImageProcessor
from captioner.model import TagScores
from captioner.runners.base import PreparedImage, WrittenCaption
from captioner.tokenizer import CaptionTokenizer, TokenSpan

__all__ = ["decode_rules", "normalized", "prompt_of", "written"]

NO_TAGS = TagScores(words={}, classes={})


def decode_rules(tokenizer: CaptionTokenizer, options: SearchOptions, positions: int) -> DecodeRules:
    """The token ids of what the options say in words.

    Args:
        tokenizer: the model's.
        options: the texts.
        positions: of the decoder.

    Raises:
        OptionsError: a word is unknown, or the text could get longer than the model has positions for.
    """
    config = tokenizer.config
    prompt = tokenizer.encode(options.prompt.strip())
    if not {config.unk_id, config.eos_id, *config.never_ids}.isdisjoint(prompt):
        raise OptionsError(f"the prompt {options.prompt!r} has words that this model does not know")
    # A byte-pair vocabulary spells a word differently at the start of a caption and after a space
    spellings = [before + word.strip() for word in options.bad_words for before in ("", " ")]
    bad_words = {tuple(tokenizer.encode(spelling)) for spelling in spellings}
    known = [ids for ids in bad_words if ids and config.unk_id not in ids]
    rules = DecodeRules(
        prompt_ids=(*config.start_ids, *prompt),
        eos_id=config.eos_id,
        pad_id=config.pad_id,
        bad_words_ids=(*config.bad_words_ids, *known),
        classes=config.classes,
    )
    check_positions(options, rules, positions)
    return rules


def prompt_of(tokenizer: CaptionTokenizer, rules: DecodeRules) -> tuple[int, ...]:
    """The token ids of the prompt's text, without those that every caption starts with."""
    return rules.prompt_ids[len(tokenizer.config.start_ids) :]


def written(
    tokenizer: CaptionTokenizer,
    prompt: Sequence[int],
    hypothesis: Hypothesis,
    *,
    tags: TagScores = NO_TAGS,
    maps: Tensor | None = None,
) -> WrittenCaption:
    """A hypothesis as text; ``prompt`` holds the token ids of the text before it."""
    token_ids, start = [*prompt, *hypothesis.token_ids], len(prompt)
    words = [
        TokenSpan(span.text, max(0, span.start - start), span.stop - start)
        for span in tokenizer.words(token_ids)
        if span.stop > start  # else it is a word of the prompt
    ]
    signals = [_signals(span, hypothesis, tags) for span in words]
    return WrittenCaption(tokenizer.decode(token_ids), hypothesis.logprobs, words, signals, maps)


def _signals(span: TokenSpan, hypothesis: Hypothesis, tags: TagScores) -> WordSignals:
    tokens = hypothesis.token_ids[span.start : span.stop]
    return WordSignals(
        text=span.text,
        logprob=sum(hypothesis.logprobs[span.start : span.stop]),
        token_id=max(tokens),
        word_tag=max(tags.words.get(token, 0.0) for token in tokens),
        class_tag=max(tags.classes.get(token, 0.0) for token in tokens),
    )


def normalized(
    images: Sequence[PreparedImage], processor: ImageProcessor, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """The photos ``(B, 3, size, size)`` as a network takes them, on its device."""
    pixels = torch.stack([image.content for image in images])
    if device.type == "cuda":
        pixels = pixels.pin_memory().to(device, non_blocking=True)
    return processor.normalize(pixels.to(device), dtype)
