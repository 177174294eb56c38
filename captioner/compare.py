"""Photographs captioned by several models, side by side: ``captioner caption --compare``."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captioner.caption import Caption
from captioner.commandline import complain, one_line
from captioner.errors import CaptionerError, ImageError, PartialError
from captioner.load import NamedModel
from captioner.memory import free_unloaded

if TYPE_CHECKING:
    from captioner.captioner import Captioner, PreparedImage
    from captioner.options import GenerationOptions, SearchOptions

__all__ = ["Comparison", "caption_paths", "compare", "print_comparison", "write_comparison"]

Result = Caption | CaptionerError
"""A caption, or why there is none."""


@dataclass(frozen=True)
class Comparison:
    """What the models say of one photograph.

    Attributes:
        file: its path.
        results: of each model, by its name, in order.
    """

    file: str
    results: dict[str, Result]

    @property
    def error(self) -> ImageError | None:
        """What is wrong with the photograph itself, so that no model could caption it."""
        found = list(self.results.values())
        first = found[0]
        return (
            first
            if isinstance(first, ImageError) and not any(isinstance(r, Caption) for r in found)
            else None
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: ``file``, and ``captions``, of which each has a ``model``; or ``error``."""
        if self.error is not None:
            return {"file": self.file, "error": self.error.reason}
        captions = [
            result.to_dict() if isinstance(result, Caption) else {"model": name, "error": _reason(result)}
            for name, result in self.results.items()
        ]
        return {"file": self.file, "captions": captions}


def compare(
    models: Sequence[NamedModel],
    load: Callable[[str], Captioner],
    paths: Sequence[str],
    options: GenerationOptions,
    *,
    batch_size: int,
) -> list[Comparison]:
    """Have each model caption all photographs; one is loaded at a time, so that the largest alone must fit.

    A model that cannot be loaded, or not do what the options say, has that as its result for each photograph.

    Args:
        models: at least one.
        load: loads what a model has as its place.
        paths: of the photographs.
        options: for all models.
        batch_size: photographs in one forward pass.
    """
    results: list[dict[str, Result]] = [{} for _ in paths]
    for model in models:
        count = f"{len(paths)} photograph{'' if len(paths) == 1 else 's'}"
        print(f"captioner: {model.name} captions {count}", file=sys.stderr, flush=True)
        for of_photo, result in zip(results, _results(model, load, paths, options, batch_size), strict=True):
            of_photo[model.name] = result
        free_unloaded()
    return [Comparison(path, of_photo) for path, of_photo in zip(paths, results, strict=True)]


def print_comparison(comparison: Comparison, *, as_json: bool) -> bool:
    """The photograph and below it each model's caption, or a JSON object; whether all went well."""
    errors = {name: result for name, result in comparison.results.items() if not isinstance(result, Caption)}
    if comparison.error is not None:
        complain(f"{comparison.file}: {comparison.error.reason}")
    else:
        for name, error in errors.items():
            complain(f"{comparison.file}: {name}: {_reason(error)}")
    if as_json:
        print(json.dumps(comparison.to_dict(), ensure_ascii=False), flush=True)
    elif comparison.error is None:
        print(one_line(comparison.file))
        width = max(map(len, comparison.results))
        for name, result in comparison.results.items():
            print(f"  {one_line(name):{width}}  {_shown(result)}", flush=True)
    return not errors


def write_comparison(path: str | os.PathLike[str], comparisons: Sequence[Comparison]) -> None:
    """The same as a page; errors are those of :func:`~captioner.report.write_report`."""
    from captioner.report import write_report

    write_report(path, ((comparison.file, comparison.to_dict()) for comparison in comparisons))


def caption_paths(captioner: Captioner, paths: Sequence[str], options: SearchOptions) -> list[Result]:
    """A caption for each path, in one batch."""
    prepared = [_prepare(captioner, path) for path in paths]
    good = [image for image in prepared if not isinstance(image, ImageError)]
    try:
        captions = iter(captioner.caption_prepared(good, options) if good else ())
    except PartialError as error:
        captions = iter(error.results)
    return [image if isinstance(image, ImageError) else next(captions) for image in prepared]


def _results(
    model: NamedModel,
    load: Callable[[str], Captioner],
    paths: Sequence[str],
    options: GenerationOptions,
    batch_size: int,
) -> list[Result]:
    """A function of its own, so that nothing holds on to the model when the next one is loaded."""
    try:
        captioner = load(model.place)
        captioner.name = model.name
        resolved = captioner.resolve(options)
        captioner.check_options(resolved)
        found: list[Result] = []
        for start in range(0, len(paths), batch_size):
            found += caption_paths(captioner, paths[start : start + batch_size], resolved)
        return found
    except CaptionerError as error:
        return [error] * len(paths)


def _prepare(captioner: Captioner, path: str) -> PreparedImage | ImageError:
    if Path(path).is_dir():
        return ImageError(path, "is a folder; caption what is in it with `captioner batch`")
    try:
        return captioner.prepare(path)
    except ImageError as error:
        return error


def _reason(error: CaptionerError) -> str:
    return error.reason if isinstance(error, ImageError) else str(error)


def _shown(result: Result) -> str:
    if not isinstance(result, Caption):
        return "   —  (no caption)"
    percent = "" if result.confidence is None else f"{result.confidence:.0%}"
    return f"{percent:>4}  {result.caption}{'  (not sure)' if result.uncertain else ''}"
