"""GIT, run by `transformers`: its decoder attends to photo and text in one sequence.

So it has no map of the photo for each word, and words come without attention.
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
from captioner.quiet import quiet_transformers
from captioner.runners.base import PLAIN, UNASKED, IsWanted, Lacks, PreparedImage, WrittenCaption
from captioner.runners.library import LibraryRunner, check_fit, refusing_damage
from captioner.runners.search import Task, search
from captioner.runners.text import normalized, prompt_of, stops_at, written

__all__ = ["SequenceRunner", "is_sequence_model", "read_sequence_model"]


def is_sequence_model(directory: Path) -> bool:
    """Whether a directory holds a Hugging Face checkpoint that is run here."""
    return read_json(directory / "config.json").get("model_type") == "git"


def read_sequence_model(
    directory: Path, *, name: str, device: torch.device, dtype: torch.dtype
) -> SequenceRunner:
    """Read a Hugging Face checkpoint of GIT.

    Raises:
        CheckpointError: a file is missing or damaged, or the weights do not fit the configuration.
    """
    library: Any = import_module("transformers")
    weight_files(directory)  # says what is missing in fewer words than transformers
    settings = read_json(directory / "generation_config.json", optional=True)
    with refusing_damage(directory), quiet_transformers():
        network, report = library.GitForCausalLM.from_pretrained(
            directory, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
        processor = library.AutoProcessor.from_pretrained(directory, trust_remote_code=False)
    check_fit(report, directory)
    return SequenceRunner(
        network.to(device).eval().requires_grad_(False),
        directory,
        _processor(processor.image_processor),
        description=f"{name}, run by transformers (git)",
        settings=settings,
    )


class SequenceRunner(LibraryRunner):
    """Runs a network with the search of `transformers`.

    Args:
        network: in eval mode.
        directory: where its tokenizer is.
        processor: pixels to ``pixel_values``.
        description: one line on the model.
        settings: its ``generation_config.json``.
    """

    lacks = Lacks(
        attention="its decoder reads photo and text in one sequence",
        instructions=UNASKED,
        schemas=PLAIN,
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
    ) -> None:
        super().__init__(network)
        library: Any = import_module("transformers")
        special = network.generation_config
        self.description, self.min_side = description, processor.size
        self._positions = network.config.get_text_config(decoder=True).max_position_embeddings
        self.generation = generation_defaults(settings, self._positions)
        self._processor = processor
        self._tokenizer = read_tokenizer(
            directory,
            start_ids=(special.bos_token_id,),
            eos_id=special.eos_token_id,
            pad_id=special.pad_token_id,
        )
        # nothing is searched for that no option asked for
        network.generation_config = library.GenerationConfig()

    def prepare(self, pixels: Image.Image, box: PixelBox | None = None) -> Tensor:
        """``(3, H, W)`` uint8."""
        return self._processor(pixels, box)

    def _caption(
        self,
        images: Sequence[PreparedImage],
        options: SearchOptions,
        rules: DecodeRules,
        is_wanted: IsWanted,
        streamer: Any,
    ) -> list[list[WrittenCaption]]:
        prompt = prompt_of(self._tokenizer, rules)
        begun = torch.tensor(rules.prompt_ids, device=self.device).expand(len(images), -1)
        task = Task(
            network=self._network,
            inputs={
                "pixel_values": normalized(images, self._processor, self.device, self.dtype),
                "input_ids": begun,
                "attention_mask": torch.ones_like(begun),
            },
            given=len(rules.prompt_ids),
            options=options,
            rules=rules,
            eos_ids=(rules.eos_id,),
            stopped=stops_at(self._tokenizer, options),
            is_wanted=is_wanted,
        )
        return [
            [written(self._tokenizer, prompt, hypothesis, stop=options.stop) for hypothesis in hypotheses]
            for hypotheses in search(task, streamer=streamer)
        ]


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
