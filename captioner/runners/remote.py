"""Models on a server that others wrote: photos go there as JPEGs of a bounded size, captions come back."""

from __future__ import annotations

import io
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import torch
from PIL.Image import Image

from captioner.errors import OptionsError, RemoteError, RemoteUnavailableError
from captioner.image import PixelBox
from captioner.options import SearchOptions
from captioner.runners.address import Address, RemoteSettings
from captioner.runners.base import IsWanted, Lacks, PreparedImage, Progress, WrittenCaption, always
from captioner.runners.http import Client, RefusedError
from captioner.runners.instruction import DEFAULT_INSTRUCTION
from captioner.runners.protocols import (
    Answer,
    OllamaProtocol,
    OpenAIProtocol,
    Question,
    ServerProtocol,
    answer_text,
    written_answer,
)

__all__ = ["RemoteRunner"]

T = TypeVar("T")
R = TypeVar("R")

JPEG_QUALITY = 90


class RemoteRunner:
    """Asks a server for captions, several at a time.

    Args:
        address: the server and its model.
        settings: how to talk to it; None for what the environment says.
    """

    lacks = Lacks(
        attention="the server does not tell where its model looked",
        beams="the server has no beam search to ask for; sample where you want alternatives",
    )
    generation = {"num_beams": 1, "max_length": 128}  # noqa: RUF012 - never changed
    checkpoint = None
    device = torch.device("cpu")  # which makes JPEGs
    dtype = None
    parameters = None
    weight_bytes = 0

    def __init__(self, address: Address, settings: RemoteSettings | None = None) -> None:
        self.address = address
        self.settings = settings or RemoteSettings.from_environment()
        self.min_side = self.settings.max_side
        self.sends_photos_to, self.parallel = address.host, self.settings.parallel
        self.description = f"{address.model}, run by the server {address.host}"
        self._client = Client(address, self.settings)
        self._protocol: ServerProtocol = OpenAIProtocol() if address.kind == "openai" else OllamaProtocol()
        self._wants_logprobs = True

    def __reduce__(self) -> tuple[Any, ...]:  # connections and locks stay where they are
        return RemoteRunner, (self.address, self.settings)

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Nothing: the model is elsewhere."""

    def warm_up_sizes(self, max_batch: int) -> list[int]:
        """None: its server is not asked before somebody wants something."""
        return []

    def prepare(self, pixels: Image, box: PixelBox | None = None) -> bytes:
        """A JPEG whose longer side has ``max_side`` pixels at most."""
        small, buffer = pixels.copy(), io.BytesIO()
        small.thumbnail((self.settings.max_side, self.settings.max_side))
        small.save(buffer, "JPEG", quality=JPEG_QUALITY)
        return buffer.getvalue()

    def check_options(self, options: SearchOptions) -> None:
        """Raises OptionsError for what no server's API has a field for."""
        unknown = {
            "prompt": options.prompt,
            "bad_words": options.bad_words,
            "no_repeat_ngram_size": options.no_repeat_ngram_size,
            "min_length": options.min_length,
        }
        asked = [name for name, value in unknown.items() if value]
        if asked:
            raise OptionsError(
                f"a model on a server takes no {' or '.join(asked)}: leave it out, or ask by an instruction"
            )

    def caption(
        self, images: Sequence[PreparedImage], options: SearchOptions, *, is_wanted: IsWanted = always
    ) -> list[list[WrittenCaption] | RemoteError]:
        """See :class:`~captioner.runners.base.Runner`."""
        self.check_options(options)
        stop, down = threading.Event(), list[RemoteUnavailableError]()

        def ask(work: tuple[PreparedImage, int]) -> WrittenCaption | RemoteError:
            image, number = work
            try:
                return self._ask(image, options, number, stop, is_wanted)
            except RemoteUnavailableError as error:
                down.append(error)
                stop.set()  # no other photo could do better
                return down[0]
            except RemoteError as error:
                return error

        rows = 1 + options.alternatives
        work = [(image, number) for image in images for number in range(rows)]
        found = _in_threads(ask, work, threads=self.settings.parallel)
        return [_of_one_photo(found[at : at + rows], options) for at in range(0, len(found), rows)]

    def stream(
        self, image: PreparedImage, options: SearchOptions, *, is_wanted: IsWanted = always
    ) -> Iterator[Progress]:
        """See :class:`~captioner.runners.base.Runner`; alternatives are asked for once the first is whole."""
        self.check_options(options)
        return self._progress(image, options, is_wanted)

    def _progress(
        self, image: PreparedImage, options: SearchOptions, is_wanted: IsWanted
    ) -> Iterator[Progress]:
        text, tokens, ended, finished = "", list[tuple[bytes, float]](), False, None
        is_json = bool(options.json_schema)
        body = self._body(image, options, 0, stream=True)
        for line in self._client.lines(self._protocol.path, body, is_wanted=is_wanted):
            piece = self._protocol.read_line(line)
            if piece is None:
                continue
            text, ended = text + piece.text, ended or piece.ended
            finished = finished if piece.finished is None else piece.finished
            tokens += piece.tokens or ()
            if piece.text:
                yield Progress(answer_text(text, is_json=is_json))
        if not ended:
            raise RemoteError(f"{self.address.host} broke off before the caption was whole")
        answer = Answer(text, tuple(tokens) or None, finished=finished)
        first = written_answer(answer, is_json=is_json)
        others = [
            self._ask(image, options, number, threading.Event(), is_wanted)
            for number in range(1, 1 + options.alternatives)
        ]
        yield Progress(first.text, (first, *others))  # what was sent stays the best one

    def _ask(
        self,
        image: PreparedImage,
        options: SearchOptions,
        number: int,
        stop: threading.Event,
        is_wanted: IsWanted,
    ) -> WrittenCaption:
        body, path = self._body(image, options, number, stream=False), self._protocol.path

        def read(data: dict[str, Any]) -> WrittenCaption:
            return written_answer(self._protocol.read(data), is_json=bool(options.json_schema))

        try:
            return self._client.post(path, body, read, stop=stop, is_wanted=is_wanted)
        except RefusedError as error:
            if "logprob" not in str(error).lower() or not body.pop("logprobs", False):
                raise
            self._wants_logprobs = False
            return self._client.post(path, body, read, stop=stop, is_wanted=is_wanted)

    def _body(
        self, image: PreparedImage, options: SearchOptions, number: int, *, stream: bool
    ) -> dict[str, Any]:
        question = Question(
            model=self.address.model,
            jpeg=image.content,
            instruction=options.instruction or DEFAULT_INSTRUCTION,
            options=options,
            number=number,
            stream=stream,
        )
        body = self._protocol.body(question)
        if not self._wants_logprobs:
            del body["logprobs"]
        return body


def _of_one_photo(
    found: Sequence[WrittenCaption | RemoteError], options: SearchOptions
) -> list[WrittenCaption] | RemoteError:
    """Its captions, best first where the server tells how likely they are; an error if there is none."""
    captions = [item for item in found if not isinstance(item, RemoteError)]
    if not captions:
        return next(item for item in found if isinstance(item, RemoteError))

    def score(caption: WrittenCaption) -> float:
        logprobs = caption.logprobs or ()
        return sum(logprobs) / float(max(1, len(logprobs)) ** options.length_penalty)

    return sorted(captions, key=score, reverse=True)


def _in_threads(work: Callable[[T], R], items: Sequence[T], *, threads: int) -> list[R]:
    """The result for each item, in order.

    The threads are daemons: whoever ends the process need not wait until a server has answered.
    """
    todo: queue.SimpleQueue[tuple[T, Future[R]]] = queue.SimpleQueue()
    futures = [Future[R]() for _ in items]
    for pair in zip(items, futures, strict=True):
        todo.put(pair)

    def run() -> None:
        while True:
            try:
                item, future = todo.get_nowait()
            except queue.Empty:
                return
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(work(item))
            except BaseException as error:
                future.set_exception(error)

    for _ in range(min(threads, len(items))):
        threading.Thread(target=run, name="remote", daemon=True).start()
    try:
        return [future.result() for future in futures]
    finally:
        for future in futures:
            future.cancel()
