"""Images in, captions out: the one seam that the command line, the service, batches and evaluation use."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor, nn

from captioner.attention import as_region_map, attention_box, token_maps
from captioner.caption import Alternative, Caption, Word
from captioner.checkpoint import Checkpoint
from captioner.errors import CheckpointError, OptionsError
from captioner.generation import (
    Decided,
    DecodeRules,
    GenerationOptions,
    Hypothesis,
    check_positions,
    generate,
    stream,
)
from captioner.image import ImageProcessor, ImageSource, decode_image
from captioner.model import EncodedImages
from captioner.tokenizer import CaptionTokenizer

__all__ = ["Captioner", "PreparedImage", "StreamEvent"]


@dataclass(frozen=True)
class PreparedImage:
    """A photo after all work that needs no model, ready for a batch.

    Attributes:
        pixel_values: ``(3, size, size)`` uint8 on the CPU.
        width: pixels of the upright original.
        height: likewise.
        file: its path or name, if it has one.
    """

    pixel_values: Tensor
    width: int
    height: int
    file: str | None


@dataclass(frozen=True)
class StreamEvent:
    """A step of :meth:`Captioner.stream`.

    Attributes:
        text: what the caption so far goes on with; nothing can change it any more.
        caption: the whole caption with the last event, else None.
    """

    text: str
    caption: Caption | None = None


class Captioner:
    """A loaded model that captions photographs. Stateless in use: threads can share one.

    Args:
        checkpoint: the model, its tokenizer and its image processor; kept as the attribute of this name.
        name: shown in every caption.
    """

    def __init__(self, checkpoint: Checkpoint, *, name: str) -> None:
        self.checkpoint = checkpoint
        self._model = checkpoint.model
        self._describe(
            checkpoint.model,
            checkpoint.tokenizer,
            checkpoint.processor,
            name=name,
            description=checkpoint.description,
            generation=checkpoint.generation,
            positions=checkpoint.model.decoder.config.max_positions,
        )

    def _describe(
        self,
        network: nn.Module,
        tokenizer: CaptionTokenizer,
        processor: ImageProcessor,
        *,
        name: str,
        description: str,
        generation: Mapping[str, Any],
        positions: int,
    ) -> None:
        """Set what does not depend on who runs the network."""
        self._network, self._tokenizer, self._processor = network, tokenizer, processor
        self.name, self.description, self._positions = name, description, positions
        try:
            self.default_options = GenerationOptions(**generation)
        except (TypeError, OptionsError) as error:
            raise CheckpointError(f"the generation defaults of {name} do not fit: {error}") from error

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return next(self._network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The number type it computes in."""
        return next(self._network.parameters()).dtype

    @property
    def parameters(self) -> int:
        """How many weights the model has."""
        return sum(parameter.numel() for parameter in self._network.parameters())

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move the model to a device and a number type; nothing may be using it."""
        self._network.to(device, dtype)

    def prepare(
        self, image: ImageSource, *, name: str | None = None, max_pixels: int | None = None
    ) -> PreparedImage:
        """Decode and resize one photo: CPU work that any thread may do.

        Args:
            image: a path, a file's bytes, a PIL image or a uint8 array.
            name: shown as the caption's ``file`` and in errors; a path's is the path.
            max_pixels: limit on the photo's pixels; None for the library's own.

        Raises:
            ImageError: the photo cannot be used.
        """
        limit = {} if max_pixels is None else {"max_pixels": max_pixels}
        photo = decode_image(image, name=name, min_side=self._processor.size, **limit)
        return PreparedImage(self._processor(photo.pixels), photo.width, photo.height, photo.file)

    def caption(
        self,
        images: Iterable[ImageSource],
        options: GenerationOptions | None = None,
        *,
        batch_size: int = 32,
    ) -> list[Caption]:
        """Caption photos, in order.

        Args:
            images: paths, bytes, PIL images or uint8 arrays; read one batch ahead at most.
            options: None for the model's own defaults.
            batch_size: photos in one forward pass.

        Raises:
            ImageError: a photo cannot be used; use :meth:`prepare` to go on past such.
            OptionsError: the options do not suit this model.
            TypeError: ``images`` is a single photo.
        """
        if isinstance(images, str | bytes | os.PathLike | Image) or getattr(images, "ndim", 4) < 4:
            raise TypeError("give a list of images, also for a single one")
        if batch_size < 1:
            raise OptionsError(f"batch_size must be at least 1, not {batch_size}")
        source, captions = iter(images), []
        while batch := [self.prepare(image) for image in islice(source, batch_size)]:
            captions += self.caption_prepared(batch, options)
        return captions

    @torch.inference_mode()
    def caption_prepared(
        self, images: Sequence[PreparedImage], options: GenerationOptions | None = None
    ) -> list[Caption]:
        """Caption prepared photos in one batch. Raises OptionsError if the options do not suit this model."""
        if not images:
            return []
        options = self.default_options if options is None else options
        rules = self.decode_rules(options)
        encoded = self.encode(images)
        found = generate(self._model.decoder, encoded.region_tokens, options, rules)
        return self._captions(images, encoded, found, options, rules)

    def stream(self, image: ImageSource, options: GenerationOptions | None = None) -> Iterator[StreamEvent]:
        """Caption one photo, giving words as soon as they are decided; the last event has the whole caption.

        Raises:
            ImageError: the photo cannot be used.
            OptionsError: the options do not suit this model.
        """
        return self.stream_prepared(self.prepare(image), options)

    def stream_prepared(
        self, image: PreparedImage, options: GenerationOptions | None = None
    ) -> Iterator[StreamEvent]:
        """:meth:`stream` for a prepared photo."""
        options = self.default_options if options is None else options
        rules = self.decode_rules(options)
        encoded = self.encode([image])
        steps = stream(self._model.decoder, encoded.region_tokens, options, rules)
        return self._events(steps, image, encoded, options, rules)

    def _events(
        self,
        steps: Iterator[Decided],
        image: PreparedImage,
        encoded: EncodedImages,
        options: GenerationOptions,
        rules: DecodeRules,
    ) -> Iterator[StreamEvent]:
        token_ids, sent = list(self._prompt(rules)), ""
        for step in steps:
            with torch.inference_mode():  # anew for each step: a generator must not leak it into its caller
                token_ids += step.token_ids
                text = self._tokenizer.decode(token_ids)
                if step.hypotheses:
                    found = [list(step.hypotheses)]
                    (caption,) = self._captions([image], encoded, found, options, rules)
                    yield_text = caption.caption.removeprefix(sent)
                else:  # the last word may still grow
                    caption, yield_text = None, text[len(sent) : text.rfind(" ") + 1]
            if yield_text or caption:
                sent += yield_text
                yield StreamEvent(yield_text, caption)

    def decode_rules(self, options: GenerationOptions) -> DecodeRules:
        """The token ids of what the options say in words.

        Raises:
            OptionsError: a word is unknown, or the text could get longer than this model has positions for.
        """
        tokenizer, config = self._tokenizer, self._tokenizer.config
        prompt = tokenizer.encode(options.prompt.strip())
        if not {config.unk_id, config.eos_id, *config.never_ids}.isdisjoint(prompt):
            raise OptionsError(f"the prompt {options.prompt!r} has words that {self.name} does not know")
        # A byte-pair vocabulary spells a word differently at the start of a caption and after a space
        spellings = [before + word.strip() for word in options.bad_words for before in ("", " ")]
        bad_words = {tuple(tokenizer.encode(spelling)) for spelling in spellings}
        known = [ids for ids in bad_words if ids and config.unk_id not in ids]
        rules = DecodeRules(
            prompt_ids=(*config.start_ids, *prompt),
            eos_id=config.eos_id,
            pad_id=config.pad_id,
            bad_words_ids=(*config.bad_words_ids, *known),
        )
        check_positions(options, rules, self._positions)
        return rules

    def _prompt(self, rules: DecodeRules) -> tuple[int, ...]:
        """The token ids of the prompt's text."""
        return rules.prompt_ids[len(self._tokenizer.config.start_ids) :]

    @torch.inference_mode()
    def encode(self, images: Sequence[PreparedImage]) -> EncodedImages:
        """Prepared photos, one at least, through the image encoder."""
        return self._model.encode(self._pixel_values(images))

    def _pixel_values(self, images: Sequence[PreparedImage]) -> Tensor:
        """The batch ``(B, 3, size, size)`` as the network takes it, on its device."""
        pixels = torch.stack([image.pixel_values for image in images])
        if self.device.type == "cuda":
            pixels = pixels.pin_memory().to(self.device, non_blocking=True)
        return self._processor.normalize(pixels.to(self.device), self.dtype)

    def _captions(
        self,
        images: Sequence[PreparedImage],
        encoded: EncodedImages,
        found: Sequence[Sequence[Hypothesis]],
        options: GenerationOptions,
        rules: DecodeRules,
    ) -> list[Caption]:
        maps: Sequence[Tensor | None] = [None] * len(images)
        if options.attention:
            best = [hypotheses[0].token_ids for hypotheses in found]
            maps = token_maps(self._model.decoder, encoded, rules.prompt_ids, best, rules.pad_id)
        prompt = self._prompt(rules)
        return [
            self._caption(image, hypotheses, prompt, attention)
            for image, hypotheses, attention in zip(images, found, maps, strict=True)
        ]

    def _caption(
        self,
        image: PreparedImage,
        hypotheses: Sequence[Hypothesis],
        prompt: tuple[int, ...],
        maps: Tensor | None,
    ) -> Caption:
        best, *others = [
            Alternative(
                caption=self._tokenizer.decode([*prompt, *hypothesis.token_ids]),
                confidence=_confidence(hypothesis.logprobs),
                logprob=sum(hypothesis.logprobs),
            )
            for hypothesis in hypotheses
        ]
        return Caption(
            file=image.file,
            model=self.name,
            width=image.width,
            height=image.height,
            caption=best.caption,
            confidence=best.confidence,
            logprob=best.logprob,
            words=tuple(self._words(image, hypotheses[0], prompt, maps)),
            alternatives=tuple(others),
        )

    def _words(
        self, image: PreparedImage, hypothesis: Hypothesis, prompt: tuple[int, ...], maps: Tensor | None
    ) -> Iterator[Word]:
        for span in self._tokenizer.words([*prompt, *hypothesis.token_ids]):
            start, stop = max(0, span.start - len(prompt)), span.stop - len(prompt)
            if stop <= 0:
                continue  # a word of the prompt
            logprobs = hypothesis.logprobs[start:stop]
            word = Word(text=span.text, logprob=sum(logprobs), confidence=_confidence(logprobs))
            if maps is not None:
                attention = maps[start:stop].mean(0)  # sums to 1, as its tokens' do
                box = attention_box(attention, width=image.width, height=image.height)
                word = replace(word, attention=as_region_map(attention), box=box)
            yield word


def _confidence(logprobs: Sequence[float]) -> float:
    """exp(mean log-prob); 1 for nothing."""
    return math.exp(sum(logprobs) / len(logprobs)) if logprobs else 1.0
