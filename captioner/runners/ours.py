"""Every checkpoint whose decoder cross-attends to region tokens, on our own decode loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, repeat

import torch
import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor

from captioner.attention import token_maps
from captioner.checkpoint import Checkpoint
from captioner.generation import Decided, DecodeRules, Hypothesis, SearchOptions, generate, stream
from captioner.image import PixelBox
from captioner.model import EncodedImages
from captioner.recording import CudaGraphs, RecordedModel
from captioner.runners.base import (
    PLAIN,
    UNASKED,
    IsWanted,
    Lacks,
    NetworkRunner,
    PreparedImage,
    Progress,
    WrittenCaption,
    always,
    check_wanted,
)
from captioner.runners.text import decode_rules, normalized, prompt_of, written

__all__ = ["CheckpointRunner"]


class CheckpointRunner(NetworkRunner):
    """Runs the model of a checkpoint.

    Args:
        checkpoint: the model, its tokenizer and its image processor; kept as the attribute of this name.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint.model)
        self.checkpoint = checkpoint
        self.description, self.generation = checkpoint.description, checkpoint.generation
        self.min_side = checkpoint.processor.shown
        self.lacks = Lacks(
            stops="its captions end by themselves, with a token", instructions=UNASKED, schemas=PLAIN
        )
        if checkpoint.model.question is not None:
            self.lacks = replace(self.lacks, details=None)
        self._tokenizer, self._decoder = checkpoint.tokenizer, checkpoint.model.decoder
        self._recorded: RecordedModel | None = None
        self._record()

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move the model."""
        super().to(device, dtype)
        self._record()

    def _record(self) -> None:
        """On a GPU the model is recorded as it runs."""
        self._recorded, device = None, self.device
        if device.type == "cuda":
            # as the images are: else each convolution would turn its weights round
            self.checkpoint.model.backbone.to(memory_format=torch.channels_last)
            self._recorded = RecordedModel(self.checkpoint.model, CudaGraphs(device))

    def warm_up_sizes(self, max_batch: int) -> list[int]:
        """Where it is recorded, each power of 2 twice, since that is when a size is recorded."""
        if self._recorded is None:
            return super().warm_up_sizes(max_batch)
        powers = range((max_batch - 1).bit_length() + 1)
        return [min(1 << power, max_batch) for power in powers for _ in range(2)]

    def prepare(self, pixels: Image, box: PixelBox | None = None) -> Tensor:
        """``(3, size, size)`` uint8."""
        return self.checkpoint.processor(pixels, box)

    def check_options(self, options: SearchOptions) -> None:
        """Raises OptionsError: see :meth:`rules`."""
        self.rules(options)

    def rules(self, options: SearchOptions) -> DecodeRules:
        """The token ids of what the options say in words; errors are those of ``text.decode_rules``."""
        return decode_rules(self._tokenizer, options, self._decoder.config.max_positions)

    @torch.inference_mode()
    def encode(self, images: Sequence[PreparedImage], *, detail: str = "") -> EncodedImages:
        """Prepared photos, one at least, through the image encoder, for captions of a detail."""
        model, processor = self._recorded or self.checkpoint.model, self.checkpoint.processor
        at_once = self.checkpoint.model.photos_at_once(self.device, self.dtype) or len(images)
        parts = []
        for start in range(0, len(images), at_once):
            pixel_values = normalized(images[start : start + at_once], processor, self.device, self.dtype)
            parts.append(model.encode(pixel_values, detail=detail))
        return EncodedImages.join(parts)

    @torch.inference_mode()
    def search(
        self, region_tokens: Tensor, options: SearchOptions, rules: DecodeRules
    ) -> list[list[Hypothesis]]:
        """Captions of encoded photos as token ids: see :func:`~captioner.generation.generate`."""
        if self._recorded is not None:
            return self._recorded.generate(region_tokens, options, rules)
        return generate(self._decoder, region_tokens, options, rules)

    @torch.inference_mode()
    def caption(
        self, images: Sequence[PreparedImage], options: SearchOptions, *, is_wanted: IsWanted = always
    ) -> list[list[WrittenCaption]]:
        """See :class:`~captioner.runners.base.Runner`; it looks once, between encoder and search."""
        rules = self.rules(options)
        encoded = self.encode(images, detail=options.detail)
        check_wanted(is_wanted)
        found = self.search(encoded.region_tokens, options, rules)
        return self._written(encoded, found, options, rules)

    def stream(
        self, image: PreparedImage, options: SearchOptions, *, is_wanted: IsWanted = always
    ) -> Iterator[Progress]:
        """See :class:`~captioner.runners.base.Runner`."""
        rules = self.rules(options)
        encoded = self.encode([image], detail=options.detail)
        return self._progress(
            stream(self._decoder, encoded.region_tokens, options, rules), encoded, options, rules
        )

    def _progress(
        self, steps: Iterator[Decided], encoded: EncodedImages, options: SearchOptions, rules: DecodeRules
    ) -> Iterator[Progress]:
        token_ids, captions = list(prompt_of(self._tokenizer, rules)), list[WrittenCaption]()
        while True:
            with torch.inference_mode():  # anew for each step: a generator must not leak it into its caller
                step = next(steps, None)
                if step is None:
                    return
                token_ids += step.token_ids
                if step.hypotheses:
                    (captions,) = self._written(encoded, [list(step.hypotheses)], options, rules)
                text = captions[0].text if captions else self._tokenizer.decode(token_ids)
            yield Progress(text, tuple(captions))

    def _written(
        self,
        encoded: EncodedImages,
        found: Sequence[Sequence[Hypothesis]],
        options: SearchOptions,
        rules: DecodeRules,
    ) -> list[list[WrittenCaption]]:
        maps: list[list[Tensor]] = [[]] * len(found)
        if options.attention:
            shown = [hypotheses if options.hedge else hypotheses[:1] for hypotheses in found]  # hedged: any
            texts = [[hypothesis.token_ids for hypothesis in hypotheses] for hypotheses in shown]
            looked = token_maps(self._decoder, encoded, rules.prompt_ids, texts, rules.pad_id)
            maps = [[self._on_whole_photo(attention) for attention in of_image] for of_image in looked]
        prompt, tags = prompt_of(self._tokenizer, rules), self.checkpoint.model.tag_scores(encoded)
        return [
            [
                written(self._tokenizer, prompt, hypothesis, tags=said, maps=attention)
                for hypothesis, attention in zip(hypotheses, chain(of_image, repeat(None)), strict=False)
            ]
            for hypotheses, of_image, said in zip(found, maps, tags, strict=True)
        ]

    def _on_whole_photo(self, attention: Tensor) -> Tensor:
        """A map ``(tokens, h, w)`` of the middle of a photo, with cells of no weight where it was cut off."""
        processor = self.checkpoint.processor
        cells = processor.margin * attention.shape[-1] // processor.size  # the converter takes whole ones
        return F.pad(attention, (cells,) * 4) if cells else attention
