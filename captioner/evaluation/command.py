"""The command ``captioner evaluate``: its options, and what it prints."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from captioner.commandline import Device, Dtype, Model
from captioner.errors import OptionsError
from captioner.options import GenerationOptions

if TYPE_CHECKING:
    from captioner.evaluation.evaluate import EvaluationResult

__all__ = ["Beams", "Json", "evaluate", "print_figures", "progress_bar"]

Beams = Annotated[
    int | None, typer.Option("--beams", help="Beams of the search; default: the model's own setting.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def evaluate(
    ctx: typer.Context,
    images: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the photographs.")],
    captions: Annotated[Path, typer.Option(metavar="COCO.json", help="Captions that people wrote for them.")],
    model: Model = "default",
    device: Device = "auto",
    dtype: Dtype = "auto",
    num_beams: Beams = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first photographs.")] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="How many photographs go through the model together.")
    ] = 32,
    predictions: Annotated[
        Path | None, typer.Option(metavar="FILE.jsonl", help="Write the captions to this file, one per line.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png", help="Draw how often words and captions of each confidence are right."
        ),
    ] = None,
    boxes: Annotated[
        Path | None,
        typer.Option(
            metavar="COCO_INSTANCES.json", help="Boxes of objects: does attention point at what a noun names?"
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Judge a model's captions: BLEU, ROUGE-L, CIDEr, METEOR where there is Java, what is right, images/s.

    Right is a content word that some reference of the photograph says, and a caption all of whose content
    words are; people are invented where a caption has a person and no reference has. ECE, Brier score and
    AUROC tell how far confidences can be believed. With --boxes, attention plays the pointing game: how often
    is it strongest inside an object that the word names, beside the photo's centre and a cell at random.
    """
    from captioner.coco import CocoCaptions
    from captioner.evaluation.evaluate import evaluate as run
    from captioner.evaluation.pointing import ObjectBoxes
    from captioner.evaluation.reliability import check_plot_path

    if plot is not None:
        check_plot_path(plot)
    if predictions is not None and not predictions.absolute().parent.is_dir():
        raise OptionsError(f"the predictions' folder does not exist; make it first: {predictions.parent}")
    coco = CocoCaptions.from_file(captions)
    objects = None if boxes is None else ObjectBoxes.from_file(boxes)
    captioner = ctx.obj(model, device=device, dtype=dtype)
    if objects is not None and captioner.lacks.attention:
        raise OptionsError(
            f"--boxes needs attention, which {model} has not, since {captioner.lacks.attention}"
        )
    with progress_bar() as progress:
        result = run(
            captioner,
            images,
            coco,
            options=GenerationOptions(num_beams=num_beams),
            limit=limit,
            batch_size=batch_size,
            boxes=objects,
            progress=progress,
        )
    if as_json:
        print(json.dumps({"model": captioner.name, **result.to_dict()}))
    else:
        print_figures(result.to_dict())
    if predictions is not None:
        _write_predictions(predictions, result)
    if plot is not None:
        _plot(plot, result)


_TITLES = {
    "bleu_1": ("BLEU-1", ".1f"),
    "bleu_2": ("BLEU-2", ".1f"),
    "bleu_3": ("BLEU-3", ".1f"),
    "bleu_4": ("BLEU-4", ".1f"),
    "rouge_l": ("ROUGE-L", ".1f"),
    "cider": ("CIDEr", ".1f"),
    "meteor": ("METEOR", ".1f"),
    "content_right": ("content words right %", ".1f"),
    "colours_right": ("colour words right %", ".1f"),
    "people_invented": ("people invented %", ".1f"),
    "word_ece": ("ECE of words", ".3f"),
    "word_brier": ("Brier score of words", ".3f"),
    "word_auroc": ("AUROC of words", ".3f"),
    "caption_ece": ("ECE of captions", ".3f"),
    "caption_brier": ("Brier score of captions", ".3f"),
    "caption_auroc": ("AUROC of captions", ".3f"),
    "rank_correlation": ("rank correlation of confidence", ".3f"),
    "pointing_nouns": ("nouns that name an object", "d"),
    "pointing_hit": ("pointing game: attention %", ".1f"),
    "pointing_centre": ("pointing game: centre %", ".1f"),
    "pointing_random": ("pointing game: random cell %", ".1f"),
    "images": ("images", "d"),
    "images_per_second": ("images/s", ".1f"),
}
"""What a figure is called, and how it is printed."""


def print_figures(figures: Mapping[str, float | None]) -> None:
    """Print the figures that there are, one a line."""
    for name, value in figures.items():
        if value is not None:
            title, form = _TITLES[name]
            print(title, format(value, form), sep="\t")


@contextmanager
def progress_bar() -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr, where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("captioning"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _write_predictions(path: Path, result: EvaluationResult) -> None:
    """The ids of the captions file, with all that is known of the captions."""
    with path.open("w", encoding="utf-8") as file:
        for image_id, caption in result.captions.items():
            print(json.dumps({"image_id": image_id, **caption.to_dict()}, ensure_ascii=False), file=file)


def _plot(path: Path, result: EvaluationResult) -> None:
    from captioner.evaluation.reliability import plot_reliability

    found = {"Words": result.confidence.words, "Captions": result.confidence.captions}
    plot_reliability(path, {title: curve for title, curve in found.items() if curve is not None})
