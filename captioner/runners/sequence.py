"""Models whose decoder is not of our shape, GIT and Florence-2, run by `transformers`.

GIT attends to photo and text at once, and Florence-2's encoder mixes the photo with its
question: neither has a map of the photo for each word, so words come without attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from captioner.convert.files import generation_defaults, read_json, read_tokenizer, weight_files
from captioner.generation import DecodeRules, SearchOptions
from captioner.image import ImageProcessor, PixelBox
from captioner.runners.base import UNASKED, Lacks, PreparedImage, WrittenCaption
from captioner.runners.library import LibraryRunner, check_fit, refusing_damage
from captioner.runners.quiet import quiet_transformers
from captioner.runners.search import Task, search
from captioner.runners.text import normalized, prompt_of, stops_at, written

__all__ = ["SequenceRunner", "is_sequence_model", "read_sequence_model"]

CLASSES = {"git": "GitForCausalLM", "florence2": "Florence2ForConditionalGeneration"}
TASK = "<CAPTION>"
"""What Florence-2 is asked; its processor makes a sentence of it."""


def is_sequence_model(directory: Path) -> bool:
    """Whether a directory holds a Hugging Face checkpoint that is run here."""
    return read_json(directory / "config.json").get("model_type") in CLASSES


def read_sequence_model(
    directory: Path, *, name: str, device: torch.device, dtype: torch.dtype
) -> SequenceRunner:
    """Read a Hugging Face checkpoint of GIT or Florence-2.

    Raises:
        CheckpointError: a file is missing or damaged, or the weights do not fit the configuration.
    """
    library: Any = import_module("transformers")
    weight_files(directory)  # refuses a pickle with a better word than transformers has for it
    kind = read_json(directory / "config.json")["model_type"]
    settings = read_json(directory / "generation_config.json", optional=True)
    with refusing_damage(directory):
        with quiet_transformers():
            network, report = getattr(library, CLASSES[kind]).from_pretrained(
                directory, dtype=dtype, use_safetensors=True, output_loading_info=True
            )
            processor = library.AutoProcessor.from_pretrained(directory, trust_remote_code=False)
        question = processor(text=TASK, images=Image.new("RGB", (64, 64))) if kind == "florence2" else None
    check_fit(report, directory)
    return SequenceRunner(
        network.to(device).eval().requires_grad_(False),
        directory,
        _processor(processor.image_processor),
        description=f"{name}, run by transformers ({kind})",
        settings=settings,
        question=question and question["input_ids"][0],
    )


class SequenceRunner(LibraryRunner):
    """Runs a network with the search of `transformers`.

    Args:
        network: in eval mode.
        directory: where its tokenizer is.
        processor: pixels to ``pixel_values``.
        description: one line on the model.
        settings: its ``generation_config.json``.
        question: token ids that an encoder reads beside the photo, or None.
    """

    lacks = Lacks(
        attention="its decoder reads photo and text in one sequence",
        instructions=UNASKED,
    )
    checkpoint = None

    def __init__(
        self,
        network: Any,
        directory: Path,
        processor: ImageProcessor,
        *,
        description: str,
        settings: dict[str, Any],
        question: Sequence[int] | None,
    ) -> None:
        super().__init__(network)
        library: Any = import_module("transformers")
        special = network.generation_config
        start = (special.bos_token_id,)
        if question is not None:
            start = tuple(
                token
                for token in (special.decoder_start_token_id, special.forced_bos_token_id)
                if token is not None
            )
        self.description, self.min_side = description, processor.size
        self._positions = network.config.get_text_config(decoder=True).max_position_embeddings
        self.generation = generation_defaults(settings, self._positions)
        self._question, self._processor = question, processor
        self._tokenizer = read_tokenizer(
            directory, start_ids=start, eos_id=special.eos_token_id, pad_id=special.pad_token_id
        )
        # nothing is searched for that no option asked for
        network.generation_config = library.GenerationConfig()

    def prepare(self, pixels: Image.Image, box: PixelBox | None = None) -> Tensor:
        """``(3, H, W)`` uint8."""
        return self._processor(pixels, box)

    def _caption(
        self, images: Sequence[PreparedImage], options: SearchOptions, rules: DecodeRules, streamer: Any
    ) -> list[list[WrittenCaption]]:
        prompt = prompt_of(self._tokenizer, rules)
        task = Task(
            network=self._network,
            inputs=self._inputs(normalized(images, self._processor, self.device, self.dtype), rules),
            given=len(rules.prompt_ids),
            options=options,
            rules=rules,
            eos_ids=(rules.eos_id,),
            stopped=stops_at(self._tokenizer, options),
        )
        return [
            [written(self._tokenizer, prompt, hypothesis, stop=options.stop) for hypothesis in hypotheses]
            for hypotheses in search(task, streamer=streamer)
        ]

    def _inputs(self, pixel_values: Tensor, rules: DecodeRules) -> dict[str, Tensor]:
        """The photo, what the caption begins with, and the question where there is one."""

        def rows(ids: Sequence[int]) -> Tensor:
            return torch.tensor(ids, device=pixel_values.device).expand(len(pixel_values), -1)

        prompt = rows(rules.prompt_ids)
        if self._question is None:
            return {
                "pixel_values": pixel_values,
                "input_ids": prompt,
                "attention_mask": torch.ones_like(prompt),
            }
        question = rows(self._question)
        return {
            "pixel_values": pixel_values,
            "input_ids": question,
            "attention_mask": torch.ones_like(question),
            "decoder_input_ids": prompt,
        }


@dataclass(frozen=True)
class _Processor(ImageProcessor):
    """Resizes and crops as the checkpoint's own image processor does."""

    theirs: Any = None

    def __call__(self, pixels: Image.Image, box: PixelBox | None = None) -> Tensor:
        if box is not None:
            left, top, right, bottom = map(round, box)
            pixels = pixels.crop((left, top, right, bottom))
        found = self.theirs(pixels, return_tensors="pt", do_rescale=False, do_normalize=False)
        values: Tensor = found["pixel_values"][0]
        return values


def _processor(theirs: Any) -> _Processor:
    size = theirs.size
    side = size["shortest_edge"] or min(size["height"], size["width"])
    return _Processor(side, tuple(theirs.image_mean), tuple(theirs.image_std), theirs=theirs)
