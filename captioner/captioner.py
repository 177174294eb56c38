"""Images in, captions out: the one seam that the command line, the service, batches and evaluation use."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
from PIL.Image import Image

from captioner.caption import Caption
from captioner.checkpoint import Checkpoint
from captioner.compose import compose
from captioner.errors import CheckpointError, OptionsError, PartialError, RemoteError
from captioner.image import ImageSource, decode_image
from captioner.options import GenerationOptions, SearchOptions
from captioner.runners import Lacks, PreparedImage, Progress, Runner, WrittenCaption
from captioner.runners.base import IsWanted, always

__all__ = ["Captioner", "PreparedImage", "StreamEvent"]


@dataclass(frozen=True)
class StreamEvent:
    """A step of :meth:`Captioner.stream`.

    Attributes:
        text: what the caption so far goes on with; nothing can change it any more.
        caption: the whole caption with the last event, else None.
    """

    text: str
    caption: Caption | None = None


class Captioner:
    """A loaded model that captions photographs. Stateless in use: threads can share one.

    Args:
        runner: what runs the model.
        name: shown in every caption.

    Attributes:
        default_options: what the model captions by where nothing is asked for.

    Raises:
        CheckpointError: the model's own settings of generation are not valid.
    """

    def __init__(self, runner: Runner, *, name: str) -> None:
        self._runner, self.name = runner, name
        try:
            self._own_options = GenerationOptions(**runner.generation)
            self.default_options = self.resolve()
        except (TypeError, OptionsError) as error:
            raise CheckpointError(f"the generation defaults of {name} do not fit: {error}") from error

    @property
    def description(self) -> str:
        """One line on the model."""
        return self._runner.description

    @property
    def lacks(self) -> Lacks:
        """What the model cannot give, and why."""
        return self._runner.lacks

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The model in our own format; None where it has another shape."""
        return self._runner.checkpoint

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self._runner.device

    @property
    def sends_photos_to(self) -> str | None:
        """The server that photos are sent to; None where all is done in this process."""
        return self._runner.sends_photos_to

    @property
    def parallel(self) -> int:
        """How many calls at a time are of use: more than one where a server computes."""
        return self._runner.parallel

    @property
    def dtype(self) -> torch.dtype | None:
        """The number type it computes in; None where it runs on a server."""
        return self._runner.dtype

    @property
    def parameters(self) -> int | None:
        """How many weights the model has; None where it runs on a server."""
        return self._runner.parameters

    @property
    def weight_bytes(self) -> int:
        """The memory that its weights take in this process."""
        return self._runner.weight_bytes

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move the model to a device and a number type; nothing may be using it."""
        self._runner.to(device, dtype)

    def warm_up_sizes(self, max_batch: int) -> list[int]:
        """The sizes of the batches that make the model as fast as it gets for 1…max_batch photos."""
        return self._runner.warm_up_sizes(max_batch)

    def resolve(self, options: GenerationOptions | SearchOptions | None = None) -> SearchOptions:
        """All options of a search: what is not given is the model's own. Complete ones stay as they are.

        Raises:
            OptionsError: they contradict each other.
        """
        if isinstance(options, SearchOptions):
            return options
        return (options or GenerationOptions()).resolve(self._own_options)

    def prepare(
        self, image: ImageSource, *, name: str | None = None, max_pixels: int | None = None
    ) -> PreparedImage:
        """Decode and resize one photo: CPU work that any thread may do.

        Args:
            image: a path, a file's bytes, a PIL image or a uint8 array.
            name: shown as the caption's ``file`` and in errors; a path's is the path.
            max_pixels: limit on the photo's pixels; None for the library's own.

        Raises:
            ImageError: the photo cannot be used.
        """
        limit = {} if max_pixels is None else {"max_pixels": max_pixels}
        photo = decode_image(image, name=name, min_side=self._runner.min_side, **limit)
        content = self._runner.prepare(photo.pixels, photo.box)
        return PreparedImage(content, photo.width, photo.height, photo.file, photo.warning)

    def caption(
        self,
        images: Iterable[ImageSource],
        options: GenerationOptions | SearchOptions | None = None,
        *,
        batch_size: int = 32,
    ) -> list[Caption]:
        """Caption photos, in order.

        Args:
            images: paths, bytes, PIL images or uint8 arrays; read one batch ahead at most.
            options: what is not given in them is as the model's own settings say.
            batch_size: photos in one forward pass.

        Raises:
            ImageError: a photo cannot be used; use :meth:`prepare` to go on past such.
            OptionsError: the options do not suit this model.
            TypeError: ``images`` is a single photo.
        """
        if isinstance(images, str | bytes | os.PathLike | Image) or getattr(images, "ndim", 4) < 4:
            raise TypeError("give a list of images, also for a single one")
        if batch_size < 1:
            raise OptionsError(f"batch_size must be at least 1, not {batch_size}")
        options = self.resolve(options)
        source, captions = iter(images), []
        while batch := [self.prepare(image) for image in islice(source, batch_size)]:
            captions += self.caption_prepared(batch, options)
        return captions

    def caption_prepared(
        self,
        images: Sequence[PreparedImage],
        options: GenerationOptions | SearchOptions | None = None,
        *,
        is_wanted: IsWanted = always,
    ) -> list[Caption]:
        """Caption prepared photos in one batch.

        Args:
            images: the photos.
            options: as for :meth:`caption`.
            is_wanted: whether somebody still waits for the captions; asked often, from several threads.

        Raises:
            OptionsError: the options do not suit this model.
            NotWantedError: nobody waits any more, so the work was broken off.
            PartialError: the model is on a server, and not all photos have a caption.
        """
        options = self.resolve(options)
        found = self.write_prepared(images, options, is_wanted=is_wanted)
        results = [
            written if isinstance(written, RemoteError) else self._caption(image, written, options)
            for image, written in zip(images, found, strict=True)
        ]
        captions = [result for result in results if isinstance(result, Caption)]
        if len(captions) < len(results):
            raise PartialError(results)
        return captions

    def write_prepared(
        self,
        images: Sequence[PreparedImage],
        options: GenerationOptions | SearchOptions | None = None,
        *,
        is_wanted: IsWanted = always,
    ) -> Sequence[Sequence[WrittenCaption] | RemoteError]:
        """All captions of prepared photos as the model wrote them, with what decoding knows of their words.

        Raises:
            OptionsError: the options do not suit this model.
            NotWantedError: see :meth:`caption_prepared`.
        """
        if not images:
            return []
        options = self.resolve(options)
        self._check_lacks(options)
        return self._runner.caption(images, _wide_enough(options), is_wanted=is_wanted)

    def stream(
        self, image: ImageSource, options: GenerationOptions | SearchOptions | None = None
    ) -> Iterator[StreamEvent]:
        """Caption one photo, giving words as soon as they are decided; the last event has the whole caption.

        Raises:
            ImageError: the photo cannot be used.
            OptionsError: the options do not suit this model.
        """
        return self.stream_prepared(self.prepare(image), options)

    def stream_prepared(
        self,
        image: PreparedImage,
        options: GenerationOptions | SearchOptions | None = None,
        *,
        is_wanted: IsWanted = always,
    ) -> Iterator[StreamEvent]:
        """:meth:`stream` for a prepared photo; ``is_wanted`` as for :meth:`caption_prepared`."""
        options = self.resolve(options)
        self._check_lacks(options)
        steps = self._runner.stream(image, _wide_enough(options), is_wanted=is_wanted)
        return self._events(steps, image, options)

    def _events(
        self, steps: Iterator[Progress], image: PreparedImage, options: SearchOptions
    ) -> Iterator[StreamEvent]:
        sent = ""
        for step in steps:
            if step.captions:
                caption = self._caption(image, step.captions, options)
                text = caption.caption.removeprefix(sent)
            elif options.hedge:  # what is sure of it is known at its end
                continue
            else:  # the last word may still grow
                caption, text = None, step.text[len(sent) : step.text.rfind(" ") + 1]
            if text or caption:
                sent += text
                yield StreamEvent(text, caption)

    def check_options(self, options: GenerationOptions | SearchOptions) -> None:
        """Raise OptionsError where the model cannot do what the options say.

        Attention is no such case: where there is none, words come without.
        """
        options = self.resolve(options)
        self._check_lacks(options)
        self._runner.check_options(options)

    def _check_lacks(self, options: SearchOptions) -> None:
        if options.seed is not None and self.lacks.seeds:
            raise OptionsError(f"{self.name} takes no seed, since {self.lacks.seeds}: leave it out")
        if options.stop and self.lacks.stops:
            raise OptionsError(f"{self.name} takes no stop texts: {self.lacks.stops}; leave them out")
        if options.json_schema and self.lacks.schemas:
            raise OptionsError(f"{self.name} gives no answers in JSON: {self.lacks.schemas}")
        if options.instruction and self.lacks.instructions:
            raise OptionsError(
                f"{self.name} cannot be asked: {self.lacks.instructions}; leave out instruction"
            )
        if options.detail and self.lacks.details:
            instead = "leave it out" if self.lacks.instructions else "ask for it by instruction"
            raise OptionsError(f"{self.name} takes no detail, since {self.lacks.details}: {instead}")
        if options.num_beams > 1 and not options.do_sample and self.lacks.beams:
            raise OptionsError(
                f"{self.name} has no beam search, since {self.lacks.beams}: set num_beams to 1"
            )

    def _caption(
        self, image: PreparedImage, found: Sequence[WrittenCaption], options: SearchOptions
    ) -> Caption:
        calibration = self.checkpoint.calibration if self.checkpoint else None
        return compose(image, found, options, model=self.name, calibration=calibration)


def _wide_enough(options: SearchOptions) -> SearchOptions:
    """To shorten captions, all that a search finds is looked at."""
    if options.hedge and not options.do_sample:
        return replace(options, alternatives=options.num_beams - 1)
    return options
