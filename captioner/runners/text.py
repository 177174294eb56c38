"""Between options and text on one side and token ids on the other, for runners that have a tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from captioner.calibration import WordSignals
from captioner.errors import OptionsError
from captioner.generation import DecodeRules, Hypothesis, SearchOptions, check_positions
from captioner.image import ImageProcessor
from captioner.regions import TagScores
from captioner.runners.base import PreparedImage, Progress, WrittenCaption
from captioner.runners.search import streams, tokens_in_steps
from captioner.tokenizer import CaptionTokenizer, TokenSpan

__all__ = ["cut_at_stop", "decode_rules", "normalized", "progress", "prompt_of", "stops_at", "written"]

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
        counted_start=config.counted_start,
        forced_end=config.forced_end,
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
    stop: Sequence[str] = (),
) -> WrittenCaption:
    """A hypothesis as text, up to the first of ``stop``; ``prompt`` has the ids of the text before it."""
    token_ids, start = [*prompt, *hypothesis.token_ids], len(prompt)
    text = cut_at_stop(tokenizer.decode(token_ids), stop)
    spans = tokenizer.words(token_ids)
    if stop:
        spans = [replace(span, text=word) for span, word in zip(spans, text.split(), strict=False)]
    words = [
        TokenSpan(span.text, max(0, span.start - start), span.stop - start)
        for span in spans
        if span.stop > start  # else it is a word of the prompt
    ]
    signals = [_signals(span, hypothesis, tags) for span in words]
    return WrittenCaption(text, hypothesis.logprobs, words, signals, maps, hypothesis.finished)


def _signals(span: TokenSpan, hypothesis: Hypothesis, tags: TagScores) -> WordSignals:
    tokens = hypothesis.token_ids[span.start : span.stop]
    return WordSignals(
        text=span.text,
        logprob=sum(hypothesis.logprobs[span.start : span.stop]),
        token_id=max(tokens),
        word_tag=max(tags.words.get(token, 0.0) for token in tokens),
        class_tag=max(tags.classes.get(token, 0.0) for token in tokens),
    )


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """The text before the first of the texts that end it."""
    places = [text.find(each) for each in stop]
    return text[: min((place for place in places if place >= 0), default=len(text))].rstrip()


def stops_at(tokenizer: CaptionTokenizer, options: SearchOptions) -> Callable[[list[int]], bool]:
    """Whether generated token ids hold one of the texts before which a caption ends."""

    def stopped(token_ids: list[int]) -> bool:
        text = tokenizer.decode(token_ids)
        return any(each in text for each in options.stop)

    return stopped


def progress(
    tokenizer: CaptionTokenizer,
    prompt: Sequence[int],
    options: SearchOptions,
    run: Callable[[Any], Sequence[WrittenCaption]],
) -> Iterator[Progress]:
    """The stream of one photo's caption, where `transformers` searches for it.

    Args:
        tokenizer: the model's.
        prompt: token ids of the text before what is generated.
        options: of the search; where its tokens are not certain at once, all comes in one step.
        run: does the search, given the streamer of ``generate`` or None.
    """
    if not streams(options):
        captions = run(None)
        yield Progress(captions[0].text, tuple(captions))
        return
    token_ids, held = list(prompt), max(map(len, options.stop), default=1) - 1
    for item in tokens_in_steps(run):
        if isinstance(item, Tensor):
            token_ids.append(int(item[0]))
            text = cut_at_stop(tokenizer.decode(token_ids), options.stop)
            yield Progress(text[: len(text) - held])  # what is held may be the start of a text that ends it
        else:
            yield Progress(item[0].text, tuple(item))


def normalized(
    images: Sequence[PreparedImage], processor: ImageProcessor, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """The photos ``(B, 3, size, size)`` as a network takes them, on its device."""
    photos = [image.content for image in images]
    pinned = device.type == "cuda"  # from such memory a GPU copies while the processor goes on
    pixels = torch.empty(len(photos), *photos[0].shape, dtype=photos[0].dtype, pin_memory=pinned)
    torch.stack(photos, out=pixels)
    return processor.normalize(pixels.to(device, non_blocking=pinned), dtype)
