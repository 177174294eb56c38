"""The measurements of a benchmark: each is a median of runs on drawn photos."""

from __future__ import annotations

import io
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from itertools import cycle, islice
from typing import Any

import numpy as np
import torch
from PIL import Image

from captioner.captioner import Captioner, PreparedImage
from captioner.decoder import TextDecoder
from captioner.evaluation.twin import Twin
from captioner.options import SearchOptions
from captioner.runners import CheckpointRunner
from captioner.runners.text import normalized

__all__ = ["Comparison", "Measurements", "Parts", "Stages", "Step", "bare_products"]

_PHOTOS = 8  # different ones, taken in turn
_WARM_UP = 2  # runs that are not counted: a GPU records what comes for the second time


@dataclass(frozen=True, kw_only=True)
class Stages:
    """Where the time of one photo goes, in milliseconds: medians.

    Attributes:
        prepare: its bytes to ``pixel_values``.
        encode: the image encoder.
        search: the decode loop, from region tokens to token ids.
    """

    prepare: float
    encode: float
    search: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One batch size, run by us and by `transformers` in turn.

    Attributes:
        batch_size: photos in the batch.
        images_per_second: ours, from ``pixel_values`` to token ids; by the median time.
        transformers_images_per_second: theirs.
        ratio: ours / theirs; above 1 where ours is faster.
        encode_ms: our image encoder's part of the batch's time, median.
        transformers_encode_ms: theirs; None where ours runs before their search.
        search_ms: our search's part, from region tokens to token ids.
        transformers_search_ms: theirs.
        search_ratio: theirs / ours; above 1 where ours is faster.
        same: the share of captions with the same token ids, in 0…1.
    """

    batch_size: int
    images_per_second: float
    transformers_images_per_second: float
    ratio: float
    encode_ms: float
    transformers_encode_ms: float | None
    search_ms: float
    transformers_search_ms: float
    search_ratio: float
    same: float


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of the search: the next token of all beams of a batch, in milliseconds: medians.

    Attributes:
        step: what it takes, over a search in which no caption ends early.
        products: what its bare matrix products take: the decoder's linear layers, in turns with the search.
            No search is faster than that.
        ratio: step / products.
    """

    step: float
    products: float
    ratio: float


@dataclass(frozen=True)
class Parts:
    """What a runner does for a batch, to be run as often as it is timed.

    Attributes:
        encode: the image encoder, from prepared photos to region tokens.
        search: the decode loop, from region tokens to the token ids of each caption.
        own_encoder: False where `transformers` has no such encoder, and ``encode`` is ours.
    """

    encode: Callable[[], Any]
    search: Callable[[], list[list[int]]]
    own_encoder: bool = True


class Measurements:
    """A captioner under the stopwatch.

    Args:
        captioner: what to measure.
        options: of all searches.
        repeats: how often each time is taken.
    """

    def __init__(self, captioner: Captioner, options: SearchOptions, repeats: int) -> None:
        self.captioner, self.options, self.repeats = captioner, options, repeats
        self.files = [_photo(seed) for seed in range(_PHOTOS)]
        self.prepared = [captioner.prepare(file) for file in self.files]
        # what runs the parts one by one
        self.runner = None if captioner.checkpoint is None else CheckpointRunner(captioner.checkpoint)
        if self._on_gpu():
            torch.cuda.reset_peak_memory_stats(captioner.device)

    def _on_gpu(self) -> bool:
        return self.captioner.device.type == "cuda"

    def device_name(self) -> str:
        if self._on_gpu():
            return torch.cuda.get_device_name(self.captioner.device)
        return self.captioner.sends_photos_to or self.captioner.device.type

    def batch(self, size: int) -> list[PreparedImage]:
        return list(islice(cycle(self.prepared), size))

    def seconds(self, run: Callable[[], Any]) -> float:
        """The time of one run, the device's work included."""
        begun = time.perf_counter()
        run()
        if self._on_gpu():
            torch.cuda.synchronize(self.captioner.device)
        return time.perf_counter() - begun

    def in_turns(self, *runs: Callable[[], Any]) -> dict[Callable[[], Any], float]:
        """Milliseconds of each, medians; in turns, so that whatever else the machine does slows all."""
        different = tuple(dict.fromkeys(runs))
        for run in different * _WARM_UP:
            self.seconds(run)
        times = [[self.seconds(run) for run in different] for _ in range(self.repeats)]
        medians = (1000 * statistics.median(each) for each in zip(*times, strict=True))
        return dict(zip(different, medians, strict=True))

    def milliseconds(self, run: Callable[[], Any]) -> float:
        """Likewise of one."""
        return self.in_turns(run)[run]

    def one_photo(self) -> tuple[list[float], Stages | None]:
        """Milliseconds of each photo, and its stages where they can be told apart."""
        captioner, photos = self.captioner, cycle(self.files)

        def caption() -> None:
            captioner.caption_prepared([captioner.prepare(next(photos))], self.options)

        for _ in range(_WARM_UP):
            self.seconds(caption)
        latency = [1000 * self.seconds(caption) for _ in range(max(self.repeats, _PHOTOS))]
        if self.runner is None:
            return latency, None
        ours = self.ours(1, self.options)
        return latency, Stages(
            prepare=self.milliseconds(lambda: captioner.prepare(next(photos))),
            encode=self.milliseconds(ours.encode),
            search=self.milliseconds(ours.search),
        )

    def images_per_second(self, size: int) -> float:
        batch = self.batch(size)
        return 1000 * size / self.milliseconds(lambda: self.captioner.caption_prepared(batch, self.options))

    def tokens(self, size: int) -> tuple[float, float] | tuple[None, None]:
        """Tokens of a caption, and tokens per second of the decode loop alone."""
        if self.runner is None:
            return None, None
        search = self.ours(size, self.options).search
        count = sum(map(len, search()))
        return count / size, 1000 * count / self.milliseconds(search)

    def step(self, size: int) -> Step:
        """One step of the search for a batch."""
        options = replace(self.options, min_length=self.options.max_length)
        search, products = self.ours(size, options).search, self.products(size)
        times = self.in_turns(search, products)
        step = times[search] / self.steps()
        return Step(step=step, products=times[products], ratio=step / times[products])

    def steps(self) -> int:
        """How many a search takes in which no caption ends early."""
        return self._known_runner().rules(self.options).steps(self.options)

    def products(self, size: int) -> Callable[[], None]:
        """The bare matrix products of a step for a batch."""
        rows = self.options.num_beams if not self.options.do_sample else 1 + self.options.alternatives
        return bare_products(self._known_runner().checkpoint.model.decoder, size * rows)

    def ours(self, size: int, options: SearchOptions, *, grammar: bool = True) -> Parts:
        """A batch on our own encoder and decode loop.

        Args:
            size: photos.
            options: of the search.
            grammar: with the rules for parts of speech, if the model has any.
        """
        runner, batch = self._known_runner(), self.batch(size)
        rules = runner.rules(options)
        rules = rules if grammar else replace(rules, classes=None)
        encoded = runner.encode(batch).region_tokens

        def search() -> list[list[int]]:
            found = runner.search(encoded, options, rules)
            return [list(hypotheses[0].token_ids) for hypotheses in found]

        return Parts(encode=lambda: runner.encode(batch), search=search)

    def theirs(self, twin: Twin, size: int, options: SearchOptions, ours: Parts) -> Parts:
        """The same batch on its twin, and on our encoder where it has none."""
        runner = self._known_runner()
        pixel_values = normalized(self.batch(size), runner.checkpoint.processor, runner.device, runner.dtype)
        encoded = twin.encode(pixel_values) if twin.has_encoder else ours.encode().region_tokens
        return Parts(
            encode=(lambda: twin.encode(pixel_values)) if twin.has_encoder else ours.encode,
            search=lambda: twin.search(encoded, options),
            own_encoder=twin.has_encoder,
        )

    def _known_runner(self) -> CheckpointRunner:
        assert self.runner is not None, "another library runs this model as a whole"
        return self.runner

    def peak_memory(self) -> float:
        if self._on_gpu():
            return torch.cuda.max_memory_allocated(self.captioner.device) / 1e6
        if sys.platform == "win32":
            return 0.0
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6

    def compare(self, twin: Twin, size: int) -> Comparison:
        """Ours and theirs in turns, from prepared pixels to token ids, encoder and search apart."""
        ours = self.ours(size, self.options, grammar=False)  # of which theirs knows nothing
        theirs = self.theirs(twin, size, self.options, ours)
        same = sum(a == b for a, b in zip(ours.search(), theirs.search(), strict=True)) / size
        times = self.in_turns(ours.encode, theirs.encode, ours.search, theirs.search)
        mine, other = (times[parts.encode] + times[parts.search] for parts in (ours, theirs))
        return Comparison(
            batch_size=size,
            images_per_second=1000 * size / mine,
            transformers_images_per_second=1000 * size / other,
            ratio=other / mine,
            encode_ms=times[ours.encode],
            transformers_encode_ms=times[theirs.encode] if theirs.own_encoder else None,
            search_ms=times[ours.search],
            transformers_search_ms=times[theirs.search],
            search_ratio=times[theirs.search] / times[ours.search],
            same=same,
        )


def bare_products(decoder: TextDecoder, rows: int) -> Callable[[], None]:
    """The matrix products of a step for so many rows of text, and nothing else."""
    x = decoder.word_embedding.weight.new_zeros(1, rows, decoder.config.width)

    @torch.inference_mode()
    def run() -> None:
        for block in decoder.blocks:
            for layer in (block.self_attention.qkv, block.self_attention.out):
                layer(x)
            for layer in (block.cross_attention.q, block.cross_attention.out):
                layer(x)
            block.mlp.fc2(block.mlp.fc1(x))
        decoder.logits(x)

    return run


@cache
def _photo(seed: int) -> bytes:
    """A JPEG of 640 × 480 pixels, smooth with some grain, as photographs are."""
    draw = np.random.default_rng(seed)
    coarse = Image.fromarray(draw.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((640, 480), Image.Resampling.BICUBIC), dtype=np.float32)
    grain = draw.normal(0, 6, smooth.shape)
    buffer = io.BytesIO()
    Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
