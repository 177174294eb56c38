"""The command ``captioner train``."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from captioner.commandline import complain, telling
from captioner.errors import OptionsError
from captioner.training.offered import setting, takes_training_options
from captioner.training.options import PhotoSet, TrainingOptions, TrainingSet

if TYPE_CHECKING:
    from captioner.checkpoint import Checkpoint

__all__ = ["train"]


@takes_training_options
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
    init: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Fine-tune this model, with its vocabulary: a name, a directory or a model of the hub that "
            "runs on Captioner's own decoder.",
        ),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            help="The image encoder of a new model: another model's name or directory, or a file that "
            "scripts/imagenet_weights.py wrote.",
            show_default="default",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    description: Annotated[str, typer.Option(help="Description for `captioner models`.")] = "",
    width: Annotated[
        int | None,
        setting("Channels of a new model's text and region tokens; a multiple of 64.", usual=384, min=64),
    ] = None,
    layers: Annotated[
        int | None, setting("Number of blocks of a new model's decoder.", usual=3, min=1)
    ] = None,
    dropout: Annotated[
        float | None,
        setting(
            "Dropout in the decoder and region encoder.", usual=0.3, tuned="the model's", min=0, max=0.95
        ),
    ] = None,
    word_tags: Annotated[
        bool,
        setting(
            "Tell the decoder which words captions of such a photo use. With --init: fit what tells it to "
            "these photos."
        ),
    ] = False,
    views: Annotated[
        int | None, setting("Number of augmented views of each photo.", usual=4, tuned=2, min=1)
    ] = None,
    extra_views: Annotated[
        int, setting("Number of augmented views of each photo of the further sets.", usual=2, min=1)
    ] = 2,
    photos: Annotated[
        int | None,
        setting(
            "Photos per batch, each with all its captions; fewer if there are not as many.",
            usual=20,
            tuned=8,
            min=1,
        ),
    ] = None,
    extra_photos: Annotated[
        list[int] | None,
        setting("Photos of a further set per batch, 10 if not given; one for each set, in their order."),
    ] = None,
    narratives_photos: Annotated[
        int, setting("Photos with a long description beside a batch.", usual=10, min=1)
    ] = 10,
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
    """Train a captioning model, or fine-tune one. If a run is stopped, the same command continues it."""
    if find_spec("matplotlib") is None:
        raise OptionsError(
            "training draws its learning curve with matplotlib: pip install 'captioner[train]'"
        )
    if word_tags_from is not None and not word_tags:
        raise OptionsError("--word-tags-from says how word tags are fitted: add --word-tags")
    import torch

    from captioner.load import resolve_device
    from captioner.memory import keep_freed_memory
    from captioner.training.bar import Bar
    from captioner.training.curve import plot_curve
    from captioner.training.finetune import finished_checkpoint
    from captioner.training.text import read_texts
    from captioner.training.train import train as run

    tuned = init is not None
    main = _photos("main", images, train)
    per_batch = photos or min(8 if tuned else 20, len(main.coco.images))
    sets = [
        TrainingSet(source=main, per_batch=per_batch, views=views or (2 if tuned else 4)),
        *_extra_sets(extra_images or [], extra_train or [], extra_photos or [], extra_views),
        *_narratives(narratives_images, narratives_train, narratives_photos, extra_views),
    ]
    validation = _photos("validation", val_images or images, val)
    texts = [line for file in text or [] for line in read_texts(file)]
    torch.manual_seed(options.seed)
    if init is None:
        checkpoint = _new(
            sets, texts, backbone, description, word_tags, width=width, layers=layers, dropout=dropout
        )
    else:
        _refuse_with_init(backbone=backbone, width=width, layers=layers)
        with telling():
            checkpoint = finished_checkpoint(init, description=description, dropout=dropout)
        _tell_of_unknown_words(checkpoint, sets, init)
    checkpoint.model.to(resolve_device(device))
    earlier = None if word_tags_from is None else finished_checkpoint(word_tags_from)
    keep_freed_memory(all_of_it=True)  # after models were loaded, which asks for less
    with Bar() as bar:
        kept = run(
            checkpoint,
            sets,
            validation,
            output,
            options=options,
            texts=texts,
            word_tags_from=earlier,
            is_finished=tuned,
            fit_word_tags=word_tags or not tuned,
            report=bar.report,
        )
    print(f"{output}\t{plot_curve(output)}")
    if tuned and not kept and options.all_epochs:
        complain(f"no epoch was better than {init} as it was, and that is what {output} holds")
    if checkpoint.calibration is not None:
        complain(
            f"the calibration of {init} was dropped, since it does not hold for other weights: "
            f"run captioner calibrate --model {output}"
        )


def _new(
    sets: Sequence[TrainingSet],
    texts: Sequence[Sequence[str]],
    backbone: str | None,
    description: str,
    word_tags: bool,
    *,
    width: int | None,
    layers: int | None,
    dropout: float | None,
) -> Checkpoint:
    """An untrained model for these captions."""
    from captioner.load import model_directory
    from captioner.training.initial import initial_checkpoint

    captioned = [part.source.coco for part in sets if not part.narratives]
    given = {"width": width, "layers": layers, "dropout": dropout}
    return initial_checkpoint(
        [texts for coco in captioned for _, texts in coco.pairs()],
        model_directory(backbone or "default"),
        description=description,
        word_tags=word_tags,
        texts=texts,
        **{name: value for name, value in given.items() if value is not None},  # type: ignore[arg-type]
    )


def _refuse_with_init(**given: object) -> None:
    """Raise OptionsError for an option that is about a new model."""
    for name, value in given.items():
        if value is not None:
            raise OptionsError(f"--{name} is for a new model, but --init names one: leave out either")


def _tell_of_unknown_words(checkpoint: Checkpoint, sets: Sequence[TrainingSet], name: str) -> None:
    from captioner.training.finetune import unknown_words

    captioned = [part.source.coco for part in sets if not part.narratives]
    captions = [caption for coco in captioned for _, texts in coco.pairs() for caption in texts]
    unknown = unknown_words(checkpoint.tokenizer, captions)
    if unknown:
        most = ", ".join(f"{word} ({count})" for word, count in unknown.most_common(10))
        complain(
            f"{name} has no tokens for {len(unknown)} words of the captions and will not learn to say them: "
            f"{most}{', …' if len(unknown) > 10 else ''}"
        )


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


def _narratives(images: Path | None, captions: Path | None, photos: int, views: int) -> list[TrainingSet]:
    """The set with long descriptions, if there is one. Raises OptionsError where half of it is missing."""
    if (images is None) != (captions is None):
        raise OptionsError("--narratives-images and --narratives-train go together")
    if images is None or captions is None:
        return []
    source = _photos("narratives", images, captions)
    return [TrainingSet(source=source, per_batch=photos, views=views, narratives=True)]
