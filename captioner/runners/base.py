"""The seam between a captioner and what runs its model: what each runner takes, gives and tells of itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from PIL.Image import Image
from torch import Tensor, nn

from captioner.calibration import WordSignals
from captioner.checkpoint import Checkpoint
from captioner.errors import NotWantedError, RemoteError
from captioner.generation import SearchOptions
from captioner.image import PixelBox
from captioner.tokenizer import TokenSpan

__all__ = [
    "PLAIN",
    "UNASKED",
    "IsWanted",
    "Lacks",
    "NetworkRunner",
    "PreparedImage",
    "Progress",
    "Runner",
    "WrittenCaption",
    "always",
    "check_wanted",
]


UNASKED = "it was trained to caption photos, not to follow instructions"
PLAIN = "it writes a plain sentence"

IsWanted = Callable[[], bool]
"""Whether somebody still waits for the captions: asked often, from several threads, so it takes no time."""


def always() -> bool:
    """Of work that is never broken off."""
    return True


def check_wanted(is_wanted: IsWanted) -> None:
    """Raise NotWantedError where nobody waits any more."""
    if not is_wanted():
        raise NotWantedError("nobody waits for these captions any more")


@dataclass(frozen=True)
class PreparedImage:
    """A photo after all work that needs no model, ready for a batch.

    Attributes:
        content: what the runner made of its pixels; for models on our own loop ``(3, size, size)`` uint8
            on the CPU.
        width: pixels of the upright original.
        height: likewise.
        file: its path or name, if it has one.
        warning: what is missing of the photo; None where nothing is.
    """

    content: Any
    width: int
    height: int
    file: str | None
    warning: str | None = None


@dataclass(frozen=True, kw_only=True)
class Lacks:
    """What a runner cannot give, as the reason why; None for what it can.

    Attributes:
        attention: for each word, a map of the photo.
        streaming: words before the caption is whole; else it comes in one piece.
        seeds: the same samples again.
        beams: a beam search.
        stops: an end before the texts of ``GenerationOptions.stop``.
        instructions: captions as ``GenerationOptions.instruction`` asks for them.
        details: captions of each ``GenerationOptions.detail``; few models were trained for that.
        schemas: answers in JSON, as ``GenerationOptions.json_schema`` wants them.
    """

    attention: str | None = None
    streaming: str | None = None
    seeds: str | None = None
    beams: str | None = None
    stops: str | None = None
    instructions: str | None = None
    details: str | None = "it was not trained for captions of several kinds"
    schemas: str | None = None

    def to_dict(self) -> dict[str, str | None]:
        """The reasons by name."""
        return asdict(self)


@dataclass(frozen=True)
class WrittenCaption:
    """A caption as a runner wrote it.

    Attributes:
        text: all of it, the prompt included.
        logprobs: natural log-probabilities of the generated tokens, the end token included; None where a
            server tells none.
        words: the words that the model wrote, each with its range of ``logprobs``, empty where unknown.
        signals: what decoding knows of each of the words; empty where that is nothing but log-probs.
        maps: ``(tokens, h, w)`` float32 on the CPU, where the model looked for each token; or None.
        finished: whether the model ended it; False where ``max_length`` cut it off, None where a server does
            not say.
    """

    text: str
    logprobs: Sequence[float] | None
    words: Sequence[TokenSpan]
    signals: Sequence[WordSignals] = ()
    maps: Tensor | None = None
    finished: bool | None = None


@dataclass(frozen=True)
class Progress:
    """How far a stream is.

    Attributes:
        text: the caption so far, which nothing can change any more but that its last word may grow.
        captions: at the end all captions, best first; empty before.
    """

    text: str
    captions: tuple[WrittenCaption, ...] = ()


class Runner(Protocol):
    """A model, and all that is particular to how it is run. Stateless in use: threads can share one."""

    @property
    def description(self) -> str:
        """One line on the model."""

    @property
    def generation(self) -> Mapping[str, Any]:
        """The model's own settings, by the names of :class:`~captioner.options.GenerationOptions`."""

    @property
    def lacks(self) -> Lacks:
        """What it cannot give."""

    @property
    def min_side(self) -> int | None:
        """Pixels that a photo's shorter side needs; a larger one may be decoded smaller. None for all."""

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The model in our own format; None where it has another shape."""

    @property
    def sends_photos_to(self) -> str | None:
        """The server that photos are sent to; None where all is done in this process."""

    @property
    def device(self) -> torch.device:
        """Where this process computes."""

    @property
    def parallel(self) -> int:
        """How many calls at a time it is made for; they are safe, but of no use, above that."""

    @property
    def dtype(self) -> torch.dtype | None:
        """In which number type; None where another computer knows."""

    @property
    def parameters(self) -> int | None:
        """How many weights the model has; None likewise."""

    @property
    def weight_bytes(self) -> int:
        """The memory that they take in this process."""

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move the model to a device and a number type; nothing may be using it."""

    def warm_up_sizes(self, max_batch: int) -> list[int]:
        """The sizes of the batches that make it as fast as it gets for 1…max_batch photos, in their order."""

    def prepare(self, pixels: Image, box: PixelBox | None = None) -> Any:
        """An upright RGB photo as :attr:`PreparedImage.content`: work for any thread.

        ``box`` is the part of ``pixels`` to take, :attr:`captioner.image.Photo.box`.
        """

    def check_options(self, options: SearchOptions) -> None:
        """Raise OptionsError where the options do not suit the model; ``lacks`` is not looked at here."""

    def caption(
        self, images: Sequence[PreparedImage], options: SearchOptions, *, is_wanted: IsWanted = always
    ) -> Sequence[Sequence[WrittenCaption] | RemoteError]:
        """For each photo of a batch 1 + alternatives captions, best first, or fewer where fewer exist.

        Where a server is asked, a photo may have an error in place of its captions. Maps come with the first
        caption of each, where the options ask for attention and the runner can give it.
        Errors are those of :meth:`check_options`, and NotWantedError soon after nobody wants the captions.
        """

    def stream(
        self, image: PreparedImage, options: SearchOptions, *, is_wanted: IsWanted = always
    ) -> Iterator[Progress]:
        """:meth:`caption` for one photo, step by step; errors of the options come with the call."""


class NetworkRunner:
    """What runners have in common whose model is a network in this process.

    Args:
        network: in eval mode.
    """

    sends_photos_to = None
    parallel = 1

    def __init__(self, network: nn.Module) -> None:
        self._network = network

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self._network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The number type that it computes in."""
        return next(each.dtype for each in self._network.parameters() if each.is_floating_point())

    @property
    def parameters(self) -> int:
        """How many weights it has."""
        return sum(parameter.numel() for parameter in self._network.parameters())

    @property
    def weight_bytes(self) -> int:
        """The memory that they take, in however few bits each."""
        return sum(parameter.nbytes for parameter in self._network.parameters())

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move it."""
        self._network.to(device, dtype)

    def warm_up_sizes(self, max_batch: int) -> list[int]:
        """The smallest batch, which takes what is set up once; elsewhere than on a CPU the memory of the
        largest as well."""
        return [1] if self.device.type == "cpu" else [1, max_batch]
