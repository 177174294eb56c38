"""Vision-language models, which write what they are asked for, run by `transformers`.

Whatever its `AutoModelForImageTextToText` loads without code of a repository: asked by the chat template
where the model has one, else by a plain question. Words have maps of the photo where its tokens make a grid.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from PIL import Image as PILImage
from PIL.Image import Image, Resampling
from torch import Tensor

from captioner.convert.files import read_json, weight_files
from captioner.errors import CheckpointError, DeviceError
from captioner.generation import DecodeRules, Hypothesis, SearchOptions
from captioner.image import PixelBox
from captioner.quiet import quiet_transformers
from captioner.runners.base import IsWanted, Lacks, PreparedImage, WrittenCaption
from captioner.runners.grid import no_grid, photo_grids, photo_places, untiled
from captioner.runners.instruction import DEFAULT_INSTRUCTION
from captioner.runners.int4 import check_int4, how_to_load, lay_out
from captioner.runners.json_answers import JsonAnswers, no_schemas
from captioner.runners.library import LibraryRunner, check_fit, refusing_damage
from captioner.runners.search import Task, force, search
from captioner.runners.text import cut_at_stop, prompt_of, stops_at, written
from captioner.runners.watch import eager_view, recorded
from captioner.tokenizer import CaptionTokenizer, TokenizerConfig

__all__ = ["VisionLanguageRunner", "is_vision_language", "read_vision_language"]

MAX_SIDE = 1280
"""Pixels of a photo's longer side at most: some models make a token of every 28 × 28, without a limit."""

POSITIONS = 1 << 20
"""More than any text that can be asked for: how many a photo leaves of a model's own is not known before."""

ON_OUR_LOOP = ("blip", "florence2", "vision-encoder-decoder")
"""What `transformers` counts among these models too."""

QUESTIONS = {"paligemma": ("<image>caption en", "<image>{}"), "blip-2": ("", "Question: {} Answer:")}
"""What models without a chat template are asked by default, and how they want an instruction put."""


def is_vision_language(directory: Path) -> bool:
    """Whether a directory holds a Hugging Face checkpoint that is run here."""
    kind = read_json(directory / "config.json").get("model_type")
    known: Any = import_module("transformers.models.auto.modeling_auto")
    return kind not in ON_OUR_LOOP and kind in known.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


def read_vision_language(
    directory: Path, *, name: str, device: torch.device, dtype: torch.dtype, int4: bool = False
) -> VisionLanguageRunner:
    """Read a Hugging Face checkpoint of a vision-language model.

    Args:
        directory: where it is.
        name: what to call it.
        device: where it runs.
        dtype: what it computes in.
        int4: whether the text decoder's weights are kept in 4 bits.

    Raises:
        DeviceError: 4 bits are asked for and cannot be used.
        CheckpointError: a file is missing or damaged, or the weights do not fit the configuration.
    """
    library: Any = import_module("transformers")
    weight_files(directory)  # says what is missing in fewer words than transformers
    if int4:
        check_int4(device)
    with refusing_damage(directory):
        with quiet_transformers():
            more = how_to_load(directory, device, dtype) if int4 else {}
            network, report = library.AutoModelForImageTextToText.from_pretrained(
                directory,
                dtype=dtype,
                use_safetensors=True,
                output_loading_info=True,
                trust_remote_code=False,
                **more,
            )
            processor = library.AutoProcessor.from_pretrained(directory, trust_remote_code=False)
        backend = processor.tokenizer.backend_tokenizer
        check_fit(report, directory)
        network = network.to(device).eval().requires_grad_(False)
        if int4:
            lay_out(network)
        how = f"{network.config.model_type}{', weights in 4 bits' if int4 else ''}"
        return VisionLanguageRunner(
            network, processor, backend, description=f"{name}, run by transformers ({how})"
        )


class VisionLanguageRunner(LibraryRunner):
    """Runs a vision-language model.

    Args:
        network: in eval mode.
        processor: its processor of `transformers`.
        backend: its tokenizer, of the library `tokenizers`.
        description: one line on the model.
    """

    generation = {"num_beams": 1, "max_length": 128}  # noqa: RUF012 - never changed
    checkpoint = None
    min_side = MAX_SIDE
    _positions = POSITIONS

    def __init__(self, network: Any, processor: Any, backend: Any, *, description: str) -> None:
        super().__init__(network)
        self.description, self._processor, self._config = description, processor, network.config
        processor.tokenizer.padding_side = "left"  # so that all rows of a batch go on at the same place
        self._eos_ids = _eos_ids(network.generation_config, processor.tokenizer)
        pad_id = processor.tokenizer.pad_token_id
        if pad_id is None:
            pad_id = self._eos_ids[0]
            processor.tokenizer.pad_token_id = pad_id
        backend.add_special_tokens(
            [backend.id_to_token(token) for token in self._eos_ids]
        )  # no text of theirs
        config = TokenizerConfig(
            start_ids=(pad_id,),  # stands for all that comes before a caption
            eos_id=self._eos_ids[0],
            pad_id=pad_id,
            unk_id=-1,
            never_ids=(),
        )
        self._tokenizer = CaptionTokenizer(backend, config)
        network.generation_config = import_module("transformers").GenerationConfig()
        self._view: Any = None
        self._lock = threading.Lock()
        self._untiled = untiled(processor.image_processor)
        self._json = JsonAnswers(backend, self._eos_ids)
        self.lacks = Lacks(attention=self._no_maps(), schemas=no_schemas())

    @property
    def parameters(self) -> int:
        """How many weights it has, each in however few bits."""
        network: Any = self._network
        return int(network.num_parameters())

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move the network. Raises DeviceError where its weights are in 4 bits."""
        if getattr(self._network, "is_loaded_in_4bit", False):
            raise DeviceError("weights in 4 bits stay where they were loaded: load the model anew")
        super().to(device, dtype)
        self._view = None

    def rules(self, options: SearchOptions) -> DecodeRules:
        """Those of all models; OptionsError also where a JSON schema cannot be followed."""
        if options.json_schema:
            self._json.start(options)
        return super().rules(options)

    def prepare(self, pixels: Image, box: PixelBox | None = None) -> Image:
        """The photo, at most ``MAX_SIDE`` pixels a side."""
        left, top, right, bottom = box = box or (0.0, 0.0, *pixels.size)
        scale = min(1.0, MAX_SIDE / max(right - left, bottom - top))
        size = (max(1, round(scale * (right - left))), max(1, round(scale * (bottom - top))))
        return pixels.resize(size, Resampling.BICUBIC, box=box)

    def _caption(
        self,
        images: Sequence[PreparedImage],
        options: SearchOptions,
        rules: DecodeRules,
        is_wanted: IsWanted,
        streamer: Any,
    ) -> list[list[WrittenCaption]]:
        prompt = prompt_of(self._tokenizer, rules)
        photos = [image.content for image in images]
        inputs = self._inputs(photos, options.instruction, prompt)
        encoder_decoder = self._config.get_text_config().is_encoder_decoder
        task = Task(
            network=self._network,
            inputs=inputs,
            given=1 if encoder_decoder else inputs["input_ids"].shape[1],
            options=options,
            rules=rules,
            eos_ids=self._eos_ids,
            stopped=stops_at(self._tokenizer, options),
            is_wanted=is_wanted,
            held=self._json.start(options) if options.json_schema else None,
        )
        found = search(task, streamer=streamer)
        if options.json_schema:
            return [[self._answer(hypothesis, options) for hypothesis in each] for each in found]
        maps: Sequence[Tensor | None] = [None] * len(images)
        if options.attention and not self.lacks.attention:
            best = [hypotheses[0] for hypotheses in found]
            maps = self._maps(task, best, photos, prompt)
        return [
            [
                written(
                    self._tokenizer,
                    prompt,
                    hypothesis,
                    maps=None if rank else attention,
                    stop=options.stop,
                )
                for rank, hypothesis in enumerate(hypotheses)
            ]
            for hypotheses, attention in zip(found, maps, strict=True)
        ]

    def _answer(self, hypothesis: Hypothesis, options: SearchOptions) -> WrittenCaption:
        """An answer in JSON, which has no words."""
        text = cut_at_stop(self._tokenizer.decode(hypothesis.token_ids), options.stop)
        return WrittenCaption(text, hypothesis.logprobs, (), finished=hypothesis.finished)

    def _inputs(
        self, photos: list[Image], instruction: str, prompt: Sequence[int] = (), *, whole: bool = False
    ) -> dict[str, Any]:
        """What ``generate`` takes, on the device: photos, the question, and what captions begin with.

        ``whole`` leaves photos in one piece that the model would see in tiles, if its processor can.
        """
        processor, how = self._processor, {"padding": True, **(self._untiled if whole else {})}
        if getattr(processor, "chat_template", None):
            thinks = "enable_thinking" in str(processor.chat_template)
            found = processor.apply_chat_template(
                [_chat(photo, instruction or DEFAULT_INSTRUCTION) for photo in photos],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                processor_kwargs=how,
                **({"enable_thinking": False} if thinks else {}),
            )
        else:
            default, put = QUESTIONS.get(self._config.model_type, (DEFAULT_INSTRUCTION, "{}"))
            text = put.format(instruction) if instruction else default
            pictures = [[photo] for photo in photos]
            found = processor(images=pictures, text=[text] * len(photos), return_tensors="pt", **how)
        inputs: dict[str, Any] = {
            name: value.to(self.device, self.dtype if value.is_floating_point() else None)
            for name, value in found.items()
            if isinstance(value, Tensor) and name != "labels"
        }
        return _with_prompt(inputs, prompt) if prompt else inputs

    def _no_maps(self) -> str | None:
        """Why words have no maps: what the model says of itself, or what becomes of a photo."""
        reason = no_grid(self._config, self._processor.image_processor)
        if reason is None:
            photo = PILImage.new("RGB", (96, 48), "white")
            _, (grid,) = self._grids(self._inputs([photo], "", whole=True))
            reason = None if grid else "the tokens of a photo make no grid"
        return reason

    def _grids(self, inputs: dict[str, Any]) -> tuple[list[Tensor], list[tuple[int, int] | None]]:
        """Where each photo's tokens stand in its row, and the grid that they make."""
        places = photo_places(self._config, inputs["input_ids"])
        counts = [len(place) for place in places]
        return places, photo_grids(self._config, self._processor.image_processor, inputs, counts)

    def _maps(
        self, task: Task, best: Sequence[Hypothesis], photos: list[Image], prompt: Sequence[int]
    ) -> list[Tensor | None]:
        """Where the network looked for each token of each caption; None for photos without a grid.

        Of a photo that it saw in tiles, that is where it looks for the same words in the whole photo.
        """
        inputs = task.inputs
        places, grids = self._grids(inputs)
        if self._untiled and None in grids:
            inputs = self._inputs(photos, task.options.instruction, prompt, whole=True)
            places, grids = self._grids(inputs)
        if not any(grids):
            return [None] * len(best)
        with self._lock:
            if self._view is None:
                self._view = eager_view(self._network)
            view = self._view
        given = inputs["input_ids"].shape[1]
        watched = replace(task, network=view, inputs=inputs, given=given)
        with recorded() as weights:
            force(watched, [hypothesis.token_ids for hypothesis in best])
        found: list[Tensor | None] = []
        for image, (hypothesis, place, grid) in enumerate(zip(best, places, grids, strict=True)):
            if grid is None:
                found.append(None)
                continue
            attention = weights.on(image, place, len(hypothesis.token_ids), given)
            total = attention.sum(-1, keepdim=True).clamp_min(torch.finfo(attention.dtype).tiny)
            found.append((attention / total).view(-1, *grid))
        return found


def _chat(photo: Image, instruction: str) -> list[dict[str, Any]]:
    content = [{"type": "image", "image": photo}, {"type": "text", "text": instruction}]
    return [{"role": "user", "content": content}]


def _with_prompt(inputs: dict[str, Any], prompt: Sequence[int]) -> dict[str, Any]:
    """The same, where the answer has begun with these token ids."""
    rows, device = len(inputs["input_ids"]), inputs["input_ids"].device
    begun = torch.tensor(prompt, device=device).expand(rows, -1)
    more = {"input_ids": begun, "attention_mask": torch.ones_like(begun)}
    more |= {name: torch.zeros_like(begun) for name in ("token_type_ids", "mm_token_type_ids")}
    return {
        name: torch.cat([value, more[name].to(value.dtype)], dim=1) if name in more else value
        for name, value in inputs.items()
    }


def _eos_ids(settings: Any, tokenizer: Any) -> tuple[int, ...]:
    """The ids that end a text, by the model's settings of generation and its tokenizer."""
    given = settings.eos_token_id
    ids = list(given) if isinstance(given, list | tuple) else [given]
    found = [token for token in (*ids, tokenizer.eos_token_id) if token is not None]
    if not found:
        raise CheckpointError("the checkpoint names no token that ends a text: set eos_token_id")
    return tuple(dict.fromkeys(found))
