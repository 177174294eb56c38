"""The measurements of a benchmark: each is a median of runs on drawn photos."""

from __future__ import annotations

import io
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
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

__all__ = ["Comparison", "Measurements", "Stages", "Step", "bare_products"]

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
        self.parts = None if captioner.checkpoint is None else CheckpointRunner(captioner.checkpoint)
        if self._on_gpu():
            torch.cuda.reset_peak_memory_stats(captioner.device)

    def _on_gpu(self) -> bool:
        return self.captioner.device.type == "cuda"

    def device_name(self) -> str:
        return torch.cuda.get_device_name(self.captioner.device) if self._on_gpu() else "cpu"

    def batch(self, size: int) -> list[PreparedImage]:
        return list(islice(cycle(self.prepared), size))

    def seconds(self, run: Callable[[], Any]) -> float:
        """The time of one run, the device's work included."""
        begun = time.perf_counter()
        run()
        if self._on_gpu():
            torch.cuda.synchronize(self.captioner.device)
        return time.perf_counter() - begun

    def median(self, run: Callable[[], Any]) -> float:
        for _ in range(_WARM_UP):
            self.seconds(run)
        return statistics.median(self.seconds(run) for _ in range(self.repeats))

    def one_photo(self) -> tuple[list[float], Stages | None]:
        """Milliseconds of each photo, and its stages where they can be told apart."""
        captioner, photos = self.captioner, cycle(self.files)

        def caption() -> None:
            captioner.caption_prepared([captioner.prepare(next(photos))], self.options)

        for _ in range(_WARM_UP):
            self.seconds(caption)
        latency = [1000 * self.seconds(caption) for _ in range(max(self.repeats, _PHOTOS))]
        parts = self.parts
        if parts is None:
            return latency, None
        encoded = parts.encode(self.prepared[:1]).region_tokens
        return latency, Stages(
            prepare=1000 * self.median(lambda: captioner.prepare(next(photos))),
            encode=1000 * self.median(lambda: parts.encode(self.prepared[:1])),
            search=1000 * self.median(lambda: _search(parts, encoded, self.options)),
        )

    def images_per_second(self, size: int) -> float:
        batch = self.batch(size)
        return size / self.median(lambda: self.captioner.caption_prepared(batch, self.options))

    def tokens(self, size: int) -> tuple[float, float] | tuple[None, None]:
        """Tokens of a caption, and tokens per second of the decode loop alone."""
        parts = self.parts
        if parts is None:
            return None, None
        encoded = parts.encode(self.batch(size)).region_tokens
        count = sum(map(len, _search(parts, encoded, self.options)))
        return count / size, count / self.median(lambda: _search(parts, encoded, self.options))

    def encode(self, size: int) -> float:
        """Milliseconds of the image encoder for a batch."""
        parts = self._known_parts()
        batch = self.batch(size)
        return 1000 * self.median(lambda: parts.encode(batch))

    def step(self, size: int) -> Step:
        """One step of the search for a batch."""
        parts = self._known_parts()
        length = self.options.max_length
        options = replace(self.options, min_length=length)
        encoded = parts.encode(self.batch(size)).region_tokens
        rows = options.num_beams if not options.do_sample else 1 + options.alternatives
        products = bare_products(parts.checkpoint.model.decoder, size * rows)
        runs: tuple[Callable[[], Any], ...] = (lambda: _search(parts, encoded, options), products)
        for run in runs * _WARM_UP:
            self.seconds(run)
        times = [[self.seconds(run) for run in runs] for _ in range(self.repeats)]
        search, bare = (1000 * statistics.median(each) for each in zip(*times, strict=True))
        return Step(step=search / length, products=bare, ratio=search / length / bare)

    def _known_parts(self) -> CheckpointRunner:
        assert self.parts is not None, "another library runs this model as a whole"
        return self.parts

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
        parts = self._known_parts()
        batch = self.batch(size)
        pixel_values = normalized(batch, parts.checkpoint.processor, parts.device, parts.dtype)
        with torch.inference_mode():
            encoded = parts.encode(batch).region_tokens
            theirs = twin.encode(pixel_values) if twin.has_encoder else encoded
            runs: list[Callable[[], Any]] = [
                lambda: parts.encode(batch),
                lambda: twin.encode(pixel_values) if twin.has_encoder else None,
                lambda: _search(parts, encoded, self.options, grammar=False),  # of which theirs knows nothing
                lambda: twin.search(theirs, self.options),
            ]
            ours, others = (runs[-2](), runs[-1]())
            for run in runs * _WARM_UP:
                self.seconds(run)
            times = [[self.seconds(run) for run in runs] for _ in range(self.repeats)]
        encode, their_encode, search, their_search = (
            1000 * statistics.median(each) for each in zip(*times, strict=True)
        )
        mine, other = encode + search, (their_encode if twin.has_encoder else encode) + their_search
        return Comparison(
            batch_size=size,
            images_per_second=1000 * size / mine,
            transformers_images_per_second=1000 * size / other,
            ratio=other / mine,
            encode_ms=encode,
            transformers_encode_ms=their_encode if twin.has_encoder else None,
            search_ms=search,
            transformers_search_ms=their_search,
            search_ratio=their_search / search,
            same=sum(a == b for a, b in zip(ours, others, strict=True)) / size,
        )


def _search(
    parts: CheckpointRunner, region_tokens: torch.Tensor, options: SearchOptions, *, grammar: bool = True
) -> list[list[int]]:
    """The token ids of the best captions."""
    rules = parts.rules(options)
    found = parts.search(region_tokens, options, rules if grammar else replace(rules, classes=None))
    return [list(hypotheses[0].token_ids) for hypotheses in found]


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


def _photo(seed: int) -> bytes:
    """A JPEG of 640 × 480 pixels, smooth with some grain, as photographs are."""
    draw = np.random.default_rng(seed)
    coarse = Image.fromarray(draw.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((640, 480), Image.Resampling.BICUBIC), dtype=np.float32)
    grain = draw.normal(0, 6, smooth.shape)
    buffer = io.BytesIO()
    Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
