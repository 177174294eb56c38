"""A GPU's work recorded once and replayed: a CUDA graph starts thousands of kernels in one call.

A photo's way through encoder and search is some thousand small kernels. To start them one by one takes longer
than they run. Their shapes and their order depend on nothing but the batch size and the options, so each such
case is recorded when it comes for the second time: the encoder as one graph, the search as one for every few
steps, between which the host asks whether all captions are done. What is recorded is the very code that runs
elsewhere. Where recording fails, or the first replay does not give what that code gives, that code runs.
"""

from __future__ import annotations

import copy
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Protocol

import torch
from torch import Tensor

from captioner.generation import PATIENCE, DecodeRules, Hypothesis, SearchOptions, generate, start_search
from captioner.linear import version_of
from captioner.model import CaptionModel, EncodedImages
from captioner.search import Search

__all__ = ["CudaGraphs", "Graphs", "RecordedModel"]

logger = logging.getLogger(__name__)

KEPT = 24
"""Recordings that are kept, which is enough for batches up to 32 with three kinds of options. Their memory is
common, but for what goes in and comes out.
"""


class Graphs(Protocol):
    """Records work on a device."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record what ``work`` does to tensors; the result does it again, to the same tensors.

        All that one object has recorded shares memory: a replay overwrites what another one gave.

        Raises:
            RuntimeError: it cannot be recorded.
        """


class CudaGraphs:
    """CUDA graphs that share memory.

    Args:
        device: of the tensors.
    """

    def __init__(self, device: torch.device) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """See :class:`Graphs`."""
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(self._stream.device)
        with torch.cuda.stream(self._stream):
            graph.capture_begin(self._pool, capture_error_mode="thread_local")  # other threads may go on
            try:
                work()
            finally:
                graph.capture_end()
        return graph.replay


class _RecordedEncoder:
    """The image encoder for batches of one size."""

    def __init__(
        self, model: CaptionModel, pixel_values: Tensor, detail: str, images: int, graphs: Graphs
    ) -> None:
        self.pixel_values = pixel_values.new_zeros(images, *pixel_values.shape[1:])
        _fill(self.pixel_values, pixel_values)

        def work() -> None:
            self.encoded = model.encode(self.pixel_values, detail=detail)

        self.replay = graphs.record(work)

    def __call__(self, pixel_values: Tensor) -> EncodedImages:
        _fill(self.pixel_values, pixel_values)
        self.replay()
        return self.encoded.first(len(pixel_values))


class _RecordedSearch:
    """The search for batches of one size with the same options.

    Images that are done stay in the batch, where nothing changes their captions any more.
    """

    def __init__(self, search: Search, region_tokens: Tensor, graphs: Graphs) -> None:
        self.region_tokens = region_tokens
        self.parts: list[tuple[Callable[[], None], Search]] = []
        for start in range(0, search.steps, PATIENCE):
            steps = min(PATIENCE, search.steps - start)

            def work(start: int = start, steps: int = steps) -> None:
                if start == 0:
                    search.begin(region_tokens)
                for _ in range(steps):
                    search.step()

            replay = graphs.record(work)
            self.parts.append((replay, copy.copy(search)))  # which keeps the tensors that it has by then

    def __call__(self, region_tokens: Tensor) -> list[list[Hypothesis]]:
        _fill(self.region_tokens, region_tokens)
        for replay, search in self.parts:
            replay()
            if search.length == search.steps or search.done.all():
                break
        return search.hypotheses()[: len(region_tokens)]


class RecordedModel:
    """A model's encoder and search, recorded and replayed; the results are those of the model itself.

    Threads can share it: while one replays, others run the model as it is. So does sampling, whose random
    numbers would be recorded with the rest.

    Args:
        model: in eval mode.
        graphs: what records.
    """

    def __init__(self, model: CaptionModel, graphs: Graphs) -> None:
        self.model = model
        self._graphs = graphs
        self._recordings: OrderedDict[Hashable, _RecordedEncoder | _RecordedSearch | None] = OrderedDict()
        self._seen: set[Hashable] = set()
        self._parameters = [module._parameters for module in model.modules()]  # ten times as quick
        self._versions: list[tuple[int, int]] = []
        self._weights: list[Tensor] = []
        self._lock = threading.Lock()

    @torch.inference_mode()
    def encode(self, pixel_values: Tensor, *, detail: str = "") -> EncodedImages:
        """:meth:`CaptionModel.encode`."""
        images = _bucket(len(pixel_values))
        key = ("encode", images, pixel_values.shape[1:], pixel_values.dtype, detail)
        if not self._lock.acquire(blocking=False):
            return self.model.encode(pixel_values, detail=detail)
        try:

            def record() -> _RecordedEncoder:
                recorded = _RecordedEncoder(self.model, pixel_values, detail, images, self._graphs)
                others = pixel_values.flip(-1)
                _check_encoder(recorded(others), self.model.encode(others, detail=detail))
                return recorded

            found = self._find(key, record)
            assert not isinstance(found, _RecordedSearch)
            return self.model.encode(pixel_values, detail=detail) if found is None else found(pixel_values)
        finally:
            self._lock.release()

    @torch.inference_mode()
    def generate(
        self, region_tokens: Tensor, options: SearchOptions, rules: DecodeRules
    ) -> list[list[Hypothesis]]:
        """:func:`~captioner.generation.generate`."""
        decoder, images = self.model.decoder, _bucket(len(region_tokens))
        if options.do_sample or not self._lock.acquire(blocking=False):
            return generate(decoder, region_tokens, options, rules)
        try:
            kind = region_tokens.shape[1:], region_tokens.dtype
            key = ("search", images, *kind, _deciding(options), rules)

            def record() -> _RecordedSearch:
                tokens = region_tokens.new_zeros(images, *region_tokens.shape[1:])
                _fill(tokens, region_tokens)
                search = start_search(decoder, tokens, options, rules)
                recorded = _RecordedSearch(search, tokens, self._graphs)
                others = -region_tokens  # whose captions are other ones
                _check_search(recorded(others), generate(decoder, others, options, rules))
                return recorded

            found = self._find(key, record)
            assert not isinstance(found, _RecordedEncoder)
            if found is None:
                return generate(decoder, region_tokens, options, rules)
            return found(region_tokens)
        finally:
            self._lock.release()

    def _find(
        self, key: Hashable, record: Callable[[], _RecordedEncoder | _RecordedSearch]
    ) -> _RecordedEncoder | _RecordedSearch | None:
        """The recording of a case that is not new; None where there is none."""
        self._check_weights()
        if key in self._recordings:
            self._recordings.move_to_end(key)
            return self._recordings[key]
        if key not in self._seen:  # the first time chooses kernels, which a recording must not do
            self._seen.add(key)
            return None
        try:
            self._recordings[key] = record()
        except RuntimeError as error:
            if None not in self._recordings.values():
                logger.warning("work on %s is slower, as it cannot be recorded: %s", self._device(), error)
            self._recordings[key] = None
        if len(self._recordings) > KEPT:
            self._recordings.popitem(last=False)
        return self._recordings[key]

    def _check_weights(self) -> None:
        """Forget recordings of weights that lie elsewhere now or have changed, since kernels pack some."""
        weights = [weight for each in self._parameters for weight in each.values() if weight is not None]
        versions = [(weight.data_ptr(), version_of(weight)) for weight in weights]
        if versions != self._versions:
            self._recordings.clear()
            self._seen.clear()
            self._versions = versions
            # kept, so that no others can come to lie at their addresses
            self._weights = [weight.detach() for weight in weights]

    def _device(self) -> torch.device:
        return next(self.model.parameters()).device


def _check_encoder(replayed: EncodedImages, plain: EncodedImages) -> None:
    """Raise RuntimeError where a replay gives other region tokens than the model, rounding aside."""
    difference = (replayed.region_tokens - plain.region_tokens).float().norm()
    if not difference <= 0.05 * plain.region_tokens.float().norm():  # NaN is not, either
        raise RuntimeError("what was recorded gives other region tokens")


def _check_search(replayed: list[list[Hypothesis]], plain: list[list[Hypothesis]]) -> None:
    """Raise RuntimeError where a replay gives other captions than the search; rounding may change a few."""
    same = sum(one[0].token_ids == other[0].token_ids for one, other in zip(replayed, plain, strict=True))
    if same < 0.75 * len(plain):
        raise RuntimeError(f"what was recorded gives {len(plain) - same} other captions of {len(plain)}")


def _deciding(options: SearchOptions) -> SearchOptions:
    """Those of the options that a search reads which does not sample; its texts stand in the rules."""
    return SearchOptions(
        num_beams=options.num_beams,
        max_length=options.max_length,
        min_length=options.min_length,
        length_penalty=options.length_penalty,
        repetition_penalty=options.repetition_penalty,
        no_repeat_ngram_size=options.no_repeat_ngram_size,
        alternatives=options.alternatives,
        early_stopping=options.early_stopping,
    )


def _bucket(images: int) -> int:
    """The next power of 2: batches of all sizes up to it share a recording."""
    return 1 << (images - 1).bit_length()


def _fill(batch: Tensor, images: Tensor) -> None:
    """Put images into a batch with more places, and the first one into those that are left."""
    batch[: len(images)] = images
    batch[len(images) :] = images[:1]
