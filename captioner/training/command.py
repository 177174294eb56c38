"""The commands ``captioner train`` and ``captioner average``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields, replace
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer

from captioner.errors import OptionsError
from captioner.training.options import Offered, PhotoSet, TrainingOptions, TrainingSet

__all__ = ["average", "train"]


def _setting(help_text: str, **bounds: Any) -> Any:
    return typer.Option(help=help_text, rich_help_panel="Recipe", **bounds)


def _takes_training_options(command: Callable[..., None]) -> Callable[..., None]:
    """Let the command line offer what TrainingOptions marks; the command gets them all as ``options``."""
    own = inspect.signature(command, eval_str=True)
    added, marked = [], get_type_hints(TrainingOptions, include_extras=True)
    for field in fields(TrainingOptions):
        kind = get_type_hints(TrainingOptions)[field.name]
        for mark in get_args(marked[field.name]):
            if isinstance(mark, Offered):
                setting = _setting(mark.help, min=mark.min, max=mark.max)
                parameter = inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY)
                added.append(parameter.replace(default=field.default, annotation=Annotated[kind, setting]))

    @wraps(command)
    def run(**given: Any) -> None:
        recipe = {each.name: given.pop(each.name) for each in added}
        command(**given, options=TrainingOptions(**recipe))

    kept = [each for name, each in own.parameters.items() if name != "options"]
    run.__signature__ = own.replace(parameters=[*kept, *added])  # type: ignore[attr-defined]
    return run


@_takes_training_options
def train(
    images: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the photographs.")],
    train: Annotated[Path, typer.Option(metavar="COCO.json", help="Captions to learn from.")],
    val: Annotated[Path, typer.Option(metavar="COCO.json", help="Captions to choose the best weights with.")],
    output: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Where the checkpoint goes; an unfinished run there continues."),
    ],
    *,
    val_images: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the validation photographs, if it is another."),
    ] = None,
    extra_images: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Folder of a further set of photographs; may be repeated."),
    ] = None,
    extra_train: Annotated[
        list[Path] | None, typer.Option(metavar="COCO.json", help="Captions of that set; one for each.")
    ] = None,
    narratives_images: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of photographs with a long description each."),
    ] = None,
    narratives_train: Annotated[
        Path | None, typer.Option(metavar="COCO.json", help="The descriptions: a list of words, no style.")
    ] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help='Captions of photographs that you do not have: JSON Lines with {"captions": […]}, also '
            "gzipped; may be repeated.",
        ),
    ] = None,
    backbone: Annotated[
        str,
        typer.Option(help="A model's name or directory, or a file that scripts/imagenet_weights.py wrote."),
    ] = "default",
    start: Annotated[
        str | None,
        typer.Option("--from", metavar="MODEL", help="Continue from a complete model with its vocabulary."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    description: Annotated[str, typer.Option(help="Description for `captioner models`.")] = "",
    width: Annotated[int, _setting("Channels of text and region tokens; a multiple of 64.")] = 384,
    layers: Annotated[int, _setting("Number of blocks of the decoder.")] = 3,
    dropout: Annotated[float, _setting("Dropout in the decoder and region encoder.")] = 0.3,
    word_tags: Annotated[
        bool, _setting("Tell the decoder which words captions of such a photo use.")
    ] = False,
    views: Annotated[int, _setting("Number of augmented views of each photo.", min=1)] = 4,
    extra_views: Annotated[
        int, _setting("Number of augmented views of each photo of the further sets.", min=1)
    ] = 2,
    photos: Annotated[int, _setting("Photos per batch, each with all its captions.", min=1)] = 20,
    extra_photos: Annotated[
        list[int] | None,
        _setting("Photos of a further set per batch, 10 if not given; one for each set, in their order."),
    ] = None,
    narratives_photos: Annotated[int, _setting("Photos with a long description beside a batch.", min=1)] = 10,
    word_tags_from: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="With --word-tags, for a --backbone that was trained on these photographs: the model that "
            "its training began with.",
        ),
    ] = None,
    options: TrainingOptions,
) -> None:
    """Train a captioning model. If a run is stopped, the same command continues it."""
    if find_spec("matplotlib") is None:
        raise OptionsError(
            "training draws its learning curve with matplotlib: pip install 'captioner[train]'"
        )
    if word_tags and start is not None:
        raise OptionsError("a model that --from names has word tags or none: leave --word-tags out")
    import torch

    from captioner.checkpoint import Checkpoint, load_checkpoint
    from captioner.load import model_directory, resolve_device
    from captioner.memory import keep_freed_memory
    from captioner.training.bar import Bar
    from captioner.training.curve import plot_curve
    from captioner.training.initial import initial_checkpoint
    from captioner.training.text import read_texts
    from captioner.training.train import train as run

    def load_whole(name: str) -> Checkpoint:
        return load_checkpoint(model_directory(name), device=torch.device("cpu"), dtype=torch.float32)

    keep_freed_memory(all_of_it=True)
    if (narratives_images is None) != (narratives_train is None):
        raise OptionsError("--narratives-images and --narratives-train go together")
    extra = _extra_sets(extra_images or [], extra_train or [], extra_photos or [], extra_views)
    sets = [TrainingSet(source=_photos("main", images, train), per_batch=photos, views=views), *extra]
    if narratives_images is not None and narratives_train is not None:
        source = _photos("narratives", narratives_images, narratives_train)
        sets.append(
            TrainingSet(source=source, per_batch=narratives_photos, views=extra_views, narratives=True)
        )
    validation = _photos("validation", val_images or images, val)
    texts = [line for file in text or [] for line in read_texts(file)]
    torch.manual_seed(options.seed)
    if start is None:
        captioned = [part.source.coco for part in sets if not part.narratives]
        checkpoint = initial_checkpoint(
            [texts for coco in captioned for _, texts in coco.pairs()],
            model_directory(backbone),
            description=description,
            word_tags=word_tags,
            texts=texts,
            width=width,
            layers=layers,
            dropout=dropout,
        )
    else:
        checkpoint = load_whole(start)  # whose calibration is that of the weights before
        checkpoint = replace(checkpoint, description=description, calibration=None)
    checkpoint.model.to(resolve_device(device))
    with Bar() as bar:
        run(
            checkpoint,
            sets,
            validation,
            output,
            options=options,
            texts=texts,
            word_tags_from=None if word_tags_from is None else load_whole(word_tags_from),
            report=bar.report,
        )
    print(f"{output}\t{plot_curve(output)}")


def _photos(name: str, images: Path, captions: Path) -> PhotoSet:
    from captioner.coco import CocoCaptions

    return PhotoSet(name=name, images=images, coco=CocoCaptions.from_file(captions))


def _extra_sets(images: list[Path], captions: list[Path], photos: list[int], views: int) -> list[TrainingSet]:
    """The further sets. Raises OptionsError where it is not clear what belongs together."""
    if len(images) != len(captions):
        raise OptionsError("--extra-images and --extra-train go together: give both for each set")
    if len(photos) not in (0, len(images)):
        raise OptionsError("--extra-photos: give a number for each set, or none at all")
    names = ["extra", *(f"extra{number}-" for number in range(2, len(images) + 1))]
    return [
        TrainingSet(source=_photos(name, folder, file), per_batch=size, views=views)
        for name, folder, file, size in zip(
            names, images, captions, photos or [10] * len(images), strict=False
        )
    ]


def average(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where the checkpoint goes.")],
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL[=WEIGHT]...", help="Directories or names, and the share of each; default: 1."
        ),
    ],
    pointer: Annotated[
        float, typer.Option(min=0, help="Factor on the words that the decoder copies from the tags.")
    ] = 1.0,
    image_size: Annotated[
        int | None,
        typer.Option(
            metavar="PIXELS",
            min=32,
            max=1024,
            help="Size at which the model sees photos; default: as before.",
        ),
    ] = None,
    mirror: Annotated[
        bool | None,
        typer.Option(
            "--mirror/--no-mirror", help="Also look at the mirror image of each photo; default: as before."
        ),
    ] = None,
    description: Annotated[str, typer.Option(help="Description for `captioner models`.")] = "",
) -> None:
    """Average the weights of models that were trained from one: epochs of a run, or several runs."""
    from captioner.checkpoint import save_checkpoint
    from captioner.load import model_directory
    from captioner.training.average import average as run

    counted = []
    for text in models:
        name, _, weight = text.rpartition("=") if "=" in text else (text, "", "1")
        try:
            counted.append((model_directory(name), float(weight)))
        except ValueError:
            raise OptionsError(f"{text}: {weight!r} is no number: write MODEL or MODEL=0.5") from None
    mean = run(counted, pointer=pointer, image_size=image_size, mirror=mirror, description=description)
    save_checkpoint(mean, output)
    print(output)
