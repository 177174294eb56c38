"""Items to records: what an engine is, and the work on one batch that every engine does alike."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Protocol

import torch

from captioner.batch.items import Item
from captioner.batch.records import Record, caption_record, error_record, image_error_record
from captioner.caption import Caption
from captioner.captioner import Captioner, PreparedImage
from captioner.errors import CaptionerError, ImageError, PartialError, RemoteUnavailableError
from captioner.load import is_out_of_memory
from captioner.options import GenerationOptions

__all__ = ["MAX_FAILURES", "BatchCaptioner", "Engine", "Prepared"]

Prepared = PreparedImage | ImageError
"""A photograph that is ready for the model, or why it cannot be used."""

MAX_FAILURES = 8
"""Of the model, in a row, before a batch ends: by then it is not the photographs' fault."""


class Engine(Protocol):
    """Whatever turns items into records: threads of this process, or a cluster."""

    def run(self, items: Iterable[Item]) -> Generator[list[Record]]:
        """A record for each item, in any order, in lists as they are done.

        It takes ``items`` as it goes, a bounded number ahead, in the caller's thread. Closing the generator
        abandons what is under way.

        Raises:
            CaptionerError: it cannot go on; what it has given stands.
        """


class BatchCaptioner:
    """Captions batches on one device, in smaller pieces where its memory is too small.

    Args:
        captioner: the model.
        options: what is not given in them is as the model's own settings say.

    Raises:
        OptionsError: the options do not suit the model.
    """

    def __init__(self, captioner: Captioner, options: GenerationOptions | None = None) -> None:
        self.captioner = captioner
        self.options = captioner.resolve(options)
        captioner.check_options(self.options)  # what is wrong with them is known before anything is written
        self.max_batch: int | None = None
        """Photographs that fit into memory together, once a larger batch did not; None before."""
        self.stopped: CaptionerError | None = None
        """Why nothing more can be captioned; None where it can."""
        self._failures = 0  # of the model, in a row

    def prepare(self, item: Item) -> Prepared:
        """Read, decode and resize one photograph: work for any thread."""
        try:
            return self.captioner.prepare(item.source(), name=item.key)
        except ImageError as error:
            return error.with_traceback(None)  # it would keep the decoder's buffers alive

    def records(self, items: Sequence[Item], prepared: Sequence[Prepared]) -> list[Record]:
        """Caption one batch, and give the records of its items in their order.

        Once ``stopped`` is set, photographs that have no record are left for another run.

        Raises:
            CaptionerError: the model failed on photograph after photograph.
        """
        found: dict[str, Record] = {}
        good: list[tuple[Item, PreparedImage]] = []
        for item, image in zip(items, prepared, strict=True):
            if isinstance(image, ImageError):
                found[item.key] = image_error_record(item.key, image)
            else:
                good.append((item, image))
        for record in self._caption(good):
            found[record["file"]] = record
        return [found[item.key] for item in items if item.key in found]

    def _caption(self, batch: Sequence[tuple[Item, PreparedImage]]) -> Iterator[Record]:
        limit = self.max_batch or max(1, len(batch))
        for start in range(0, len(batch), limit):
            yield from self._caption_at_once(batch[start : start + limit])

    def _caption_at_once(self, batch: Sequence[tuple[Item, PreparedImage]]) -> Iterator[Record]:
        """Caption a batch in one pass; if that fails, its halves, until what fails is alone."""
        try:
            captions = self.captioner.caption_prepared([image for _, image in batch], self.options)
        except Exception as error:
            if isinstance(error, PartialError):
                yield from self._partial(batch, error)
                return
            problem, no_memory = " ".join(str(error).split())[:200], is_out_of_memory(error)
        else:
            self._failures = 0
            for (item, _), caption in zip(batch, captions, strict=True):
                yield caption_record(item.key, caption)
            return
        # outside of the except clause: its traceback holds on to the tensors that did not fit
        if no_memory and self.captioner.device.type == "cuda":
            torch.cuda.empty_cache()
        if len(batch) == 1:
            yield self._failed(batch[0][0], problem, "memory" if no_memory else "model")
            return
        middle = len(batch) // 2
        if no_memory:
            self.max_batch = middle
        yield from self._caption(batch[:middle])
        yield from self._caption(batch[middle:])

    def _partial(self, batch: Sequence[tuple[Item, PreparedImage]], error: PartialError) -> Iterator[Record]:
        """What a server captioned, and why not the rest, unless that is no photograph's fault."""
        captioned = len(error.results) - len(error.errors)
        self._failures = 0 if captioned else self._failures + len(error.errors)
        down = next((item for item in error.errors if isinstance(item, RemoteUnavailableError)), None)
        if down or self._failures > MAX_FAILURES:
            self.stopped = down or error
        for (item, _), result in zip(batch, error.results, strict=True):
            if isinstance(result, Caption):
                yield caption_record(item.key, result)
            elif self.stopped is None:
                yield error_record(item.key, str(result), "remote")

    def _failed(self, item: Item, problem: str, kind: str) -> Record:
        self._failures += 1
        if self._failures > MAX_FAILURES:
            raise CaptionerError(f"the model failed on {self._failures} photographs in a row: {problem}")
        reason = "needs more memory than there is" if kind == "memory" else f"the model failed: {problem}"
        return error_record(item.key, reason, kind)
