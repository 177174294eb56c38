"""The command ``captioner train``: options, progress bar, and what is said at the end."""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from captioner.errors import DataError, OptionsError
from captioner.training.options import PhotoSet, Precision, Progress, TrainingOptions

__all__ = ["average", "train"]


def _setting(help_text: str, **bounds: Any) -> Any:
    return typer.Option(help=help_text, rich_help_panel="Recipe", **bounds)


def train(
    images: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the photographs.")],
    train: Annotated[Path, typer.Option(metavar="COCO.json", help="Captions to learn from.")],
    val: Annotated[Path, typer.Option(metavar="COCO.json", help="Captions to choose the best weights with.")],
    output: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Where the checkpoint goes; an unfinished run there continues."),
    ],
    val_images: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the validation photographs, if it is another."),
    ] = None,
    extra_images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of a second set of photographs.")
    ] = None,
    extra_train: Annotated[
        Path | None, typer.Option(metavar="COCO.json", help="Captions of the second set.")
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
    token_dropout: Annotated[
        float,
        _setting("Share of the region tokens that each step of cross-entropy leaves out.", min=0, max=0.95),
    ] = TrainingOptions.token_dropout,
    consensus: Annotated[
        float,
        _setting("How much agreement with the captions of similar photos counts in the reward.", min=0),
    ] = TrainingOptions.consensus,
    word_tags: Annotated[
        bool, _setting("Tell the decoder which words captions of such a photo use.")
    ] = False,
    tag_swap: Annotated[
        float,
        _setting("Share of photos whose tag word is replaced in both tags and captions.", min=0, max=1),
    ] = TrainingOptions.tag_swap,
    epochs: Annotated[int, _setting("Passes of cross-entropy training.")] = TrainingOptions.epochs,
    frozen_epochs: Annotated[
        int, _setting("How many of these, from the first, do not train the backbone.")
    ] = TrainingOptions.frozen_epochs,
    scst_epochs: Annotated[
        int, _setting("Passes of self-critical training after them.")
    ] = TrainingOptions.scst_epochs,
    learning_rate: Annotated[
        float, _setting("Highest learning rate of cross-entropy training.")
    ] = TrainingOptions.learning_rate,
    backbone_rate: Annotated[
        float, _setting("Factor on the learning rate for the backbone's upper stages; 0 freezes them.")
    ] = TrainingOptions.backbone_rate,
    scst_rate: Annotated[
        float, _setting("Learning rate of self-critical training.")
    ] = TrainingOptions.scst_rate,
    frozen_stages: Annotated[
        int,
        _setting(
            "How many of the backbone's stages, from the first, stay fixed. Their output is kept on disk."
        ),
    ] = TrainingOptions.frozen_stages,
    views: Annotated[int, _setting("Number of augmented views of each photo.")] = TrainingOptions.views,
    extra_views: Annotated[
        int, _setting("Number of augmented views of each photo of the second set.")
    ] = TrainingOptions.extra_views,
    photos: Annotated[
        int, _setting("Photos per batch, each with all its captions.")
    ] = TrainingOptions.photos,
    extra_photos: Annotated[
        int, _setting("Photos of the second set per batch.")
    ] = TrainingOptions.extra_photos,
    max_words: Annotated[
        int, _setting("Captions are cut after this many words.")
    ] = TrainingOptions.max_words,
    keep_epochs: Annotated[
        bool, _setting("Also keep the weights of each epoch, in OUTPUT/epochs, for `captioner average`.")
    ] = TrainingOptions.keep_epochs,
    precision: Annotated[
        Precision, _setting("Number type of the arithmetic; auto uses the faster one.")
    ] = TrainingOptions.precision,
    seed: Annotated[int, _setting("Seed of all random numbers.")] = TrainingOptions.seed,
) -> None:
    """Train a captioning model. If a run is stopped, the same command continues it."""
    if find_spec("matplotlib") is None:
        raise OptionsError(
            "training draws its learning curve with matplotlib: pip install 'captioner[train]'"
        )
    if (extra_images is None) != (extra_train is None):
        raise OptionsError("--extra-images and --extra-train go together")
    if word_tags and start is not None:
        raise OptionsError("a model that --from names has word tags or none: leave --word-tags out")
    import torch

    from captioner.checkpoint import load_checkpoint
    from captioner.coco import CocoCaptions
    from captioner.load import model_directory, resolve_device
    from captioner.memory import keep_freed_memory
    from captioner.training.curve import plot_curve
    from captioner.training.initial import initial_checkpoint
    from captioner.training.train import train as run

    keep_freed_memory(all_of_it=True)
    sets = [PhotoSet(name="main", images=images, coco=CocoCaptions.from_file(train))]
    if extra_images is not None and extra_train is not None:
        sets.append(PhotoSet(name="extra", images=extra_images, coco=CocoCaptions.from_file(extra_train)))
    validation = PhotoSet(name="validation", images=val_images or images, coco=CocoCaptions.from_file(val))
    _check_sizes(sets, [photos, extra_photos])
    torch.manual_seed(seed)
    if start is None:
        checkpoint = initial_checkpoint(
            [texts for photo_set in sets for _, texts in photo_set.coco.pairs()],
            model_directory(backbone),
            description=description,
            word_tags=word_tags,
            width=width,
            layers=layers,
            dropout=dropout,
        )
    else:
        whole = load_checkpoint(model_directory(start), device=torch.device("cpu"), dtype=torch.float32)
        checkpoint = replace(whole, description=description, calibration=None)  # of the weights before
    checkpoint.model.to(resolve_device(device))
    options = TrainingOptions(
        token_dropout=token_dropout,
        tag_swap=tag_swap,
        consensus=consensus,
        epochs=epochs,
        frozen_epochs=frozen_epochs,
        scst_epochs=scst_epochs,
        learning_rate=learning_rate,
        backbone_rate=backbone_rate,
        scst_rate=scst_rate,
        frozen_stages=frozen_stages,
        views=views,
        extra_views=extra_views,
        photos=photos,
        extra_photos=extra_photos,
        max_words=max_words,
        keep_epochs=keep_epochs,
        precision=precision,
        seed=seed,
    )
    with _Bar() as bar:
        run(checkpoint, sets, validation, output, options=options, report=bar.report)
    print(f"{output}\t{plot_curve(output)}")


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


def _check_sizes(sets: list[PhotoSet], sizes: list[int]) -> None:
    for photo_set, size in zip(sets, sizes, strict=False):
        if size > len(photo_set.coco.images):
            raise DataError(
                f"a batch takes {size} photos, but there are {len(photo_set.coco.images)}: take fewer"
            )


class _Bar:
    """A progress bar on a terminal, a line now and then elsewhere; both on stderr."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.console = Console(stderr=True)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[state]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.progress.add_task("", total=None, state="")

    def __enter__(self) -> _Bar:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def report(self, news: Progress) -> None:
        name = {"cache": "view", "xe": "epoch", "scst": "self-critical epoch"}[news.phase]
        loss = "" if news.loss is None else f"loss {news.loss:.3f}  "
        state = f"{loss}{news.images_per_second:.1f} images/s"
        if news.step == 1 or self.progress.tasks[0].total != news.steps:
            self.progress.reset(self.task, total=news.steps)
        self.progress.update(self.task, description=f"{name} {news.epoch}", completed=news.step, state=state)
        if news.scores is not None:
            scores = "  ".join(
                f"{key} {value:.1f}" for key, value in news.scores.items() if value is not None
            )
            self.console.print(f"{name} {news.epoch}: {state}  {scores}", highlight=False, soft_wrap=True)
        elif not self.console.is_terminal and news.step % 100 == 0:
            print(f"{name} {news.epoch} {news.step}/{news.steps} {state}", file=sys.stderr, flush=True)
