"""Training: it learns, resumes after a kill to the very same end, and rewards what it says it rewards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from tiny import tiny_checkpoint, tiny_vit_checkpoint

from captioner.checkpoint import Checkpoint
from captioner.cli import main
from captioner.coco import CocoCaptions
from captioner.errors import DataError, ImageError, OptionsError
from captioner.evaluation.evaluate import evaluate
from captioner.load import load
from captioner.model import CaptionModel
from captioner.regions import RegionEncoder, Tags, TagTokens
from captioner.runners import CheckpointRunner
from captioner.training import sources as sources_module
from captioner.training.cache import ActivationCache, augment
from captioner.training.consensus import check_consensus, leave_one_out
from captioner.training.curve import plot_curve
from captioner.training.data import CaptionSet, batches
from captioner.training.labels import IGNORE, Labels
from captioner.training.options import PhotoSet, Progress, TrainingOptions, TrainingSet
from captioner.training.rewards import References, Rewards
from captioner.training.scst import SelfCritic
from captioner.training.sources import Sources
from captioner.training.state import TrainingState
from captioner.training.swap import TagSwap
from captioner.training.train import train
from captioner.training.word_loss import WordLoss

COLOURS = {"red": "a red ball on the beach", "green": "a brown dog runs through the green grass"}
OPTIONS = TrainingOptions(
    epochs=10,
    frozen_epochs=2,
    scst_epochs=2,
    max_words=8,
    learning_rate=1e-2,
    scst_beams=3,
    precision="float32",
)


def photo_set(folder: Path, *, count: int = 16, captions: int = 2) -> PhotoSet:
    """Plain red and green photos, with a caption for each colour, twice or more often."""
    folder.mkdir(exist_ok=True)
    images, annotations = [], []
    for number in range(count):
        colour, caption = list(COLOURS.items())[number % 2]
        picture = Image.new("RGB", (64, 48), colour)
        ImageDraw.Draw(picture).ellipse((number, 5, number + 20, 25), fill="white")
        picture.save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png"})
        annotations += [{"image_id": number, "caption": caption}] * captions
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return PhotoSet(name="main", images=folder, coco=CocoCaptions.from_file(folder / "captions.json"))


def run(
    folder: Path,
    *,
    options: TrainingOptions = OPTIONS,
    reports: list[Progress] | None = None,
    start: Checkpoint | None = None,
    more: Sequence[TrainingSet] = (),
    texts: Sequence[Sequence[str]] = (),
) -> None:
    """A whole training run on the photos; the subprocess of the kill test calls it too."""
    photos = photo_set(folder / "photos")
    validation = PhotoSet(name="validation", images=photos.images, coco=photos.coco)
    sets = [
        TrainingSet(source=photos, per_batch=2, views=2),
        TrainingSet(source=replace(photos, name="extra"), per_batch=1, views=2),
        *more,
    ]
    seen = reports if reports is not None else []
    start = start or tiny_checkpoint(seed=2)  # whose untrained backbone tells red from green
    train(start, sets, validation, folder / "out", options=options, report=seen.append, texts=texts)


def epochs(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "out" / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    run(folder)
    return folder


def test_it_learns_to_tell_the_photos_apart(finished: Path) -> None:
    model = load(finished / "out", device="cpu")
    captions = [c.caption for c in model.caption([finished / "photos" / f"{n}.png" for n in range(4)])]
    assert captions == [*COLOURS.values()] * 2
    log = epochs(finished)
    assert [record["phase"] for record in log] == ["xe"] * 10 + ["scst"] * 2
    assert log[9]["loss"] < log[0]["loss"] / 2


def cider(folder: Path, checkpoint: Path) -> float:
    """What ``captioner evaluate`` says of a checkpoint, on the photos of a run."""
    coco = CocoCaptions.from_file(folder / "photos" / "captions.json")
    return evaluate(load(checkpoint, device="cpu"), folder / "photos", coco, meteor=False).scores.cider


def test_the_best_epoch_is_kept(finished: Path) -> None:
    assert cider(finished, finished / "out") == max(record["cider"] for record in epochs(finished))
    assert not (finished / "out" / "candidate").exists()


def test_an_epoch_is_judged_by_the_captions_that_its_checkpoint_gives(tmp_path: Path) -> None:
    """Though training may know other weights, activations and options than those of the checkpoint."""
    start = tiny_checkpoint(seed=2)
    start.model.config = replace(
        start.model.config, backbone=replace(start.model.config.backbone, mirror=True)
    )
    start = replace(start, generation={"num_beams": 1, "max_length": 4})
    run(tmp_path, options=replace(OPTIONS, epochs=4, scst_epochs=1, keep_epochs=True), start=start)
    log = epochs(tmp_path)
    checkpoints = [tmp_path / "out" / "epochs" / str(number) for number in range(1, 6)]
    assert [record["cider"] for record in log] == [cider(tmp_path, path) for path in checkpoints]
    assert cider(tmp_path, tmp_path / "out") == max(record["cider"] for record in log)


def test_a_photo_that_cannot_be_validated_is_found_before_anything_is_trained(tmp_path: Path) -> None:
    photos, broken = photo_set(tmp_path / "photos"), photo_set(tmp_path / "broken")
    (broken.images / "3.png").write_bytes(b"no photo")
    reports: list[Progress] = []
    with pytest.raises(ImageError, match=r"3\.png"):
        train(
            tiny_checkpoint(),
            [TrainingSet(source=photos, per_batch=2)],
            broken,
            tmp_path / "out",
            options=OPTIONS,
            report=reports.append,
        )
    assert reports == []


def test_killed_and_resumed_is_as_if_undisturbed(tmp_path: Path, finished: Path) -> None:
    code = "from pathlib import Path; import sys; from test_training import run; run(Path(sys.argv[1]))"
    paths = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
    command = [sys.executable, "-c", code, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    state = tmp_path / "out" / "state.safetensors"
    with subprocess.Popen(command, env=environment) as killed:
        while killed.poll() is None and not state.exists():
            time.sleep(0.01)
        killed.send_signal(signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL
    before = len(epochs(tmp_path)) if (tmp_path / "out" / "metrics.jsonl").exists() else 0
    assert before < len(epochs(finished))
    subprocess.run(command, env=environment, check=True)
    assert epochs(tmp_path)[-1] == epochs(finished)[-1]
    ours, theirs = (load_file(folder / "out" / "state.safetensors") for folder in (tmp_path, finished))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_it_also_computes_in_bfloat16(tmp_path: Path, finished: Path) -> None:
    options = replace(OPTIONS, epochs=2, frozen_epochs=1, scst_epochs=1, precision="bfloat16")
    run(tmp_path, options=options)
    frozen, tuned, critic = epochs(tmp_path)
    assert frozen["loss"] == pytest.approx(epochs(finished)[0]["loss"], rel=0.05)
    assert tuned["loss"] < frozen["loss"]
    assert critic["phase"] == "scst"
    weights = load_file(tmp_path / "out" / "state.safetensors")
    assert all(value.isfinite().all() for value in weights.values())


def test_self_critical_training_sees_all_region_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares: list[float] = []
    forward = RegionEncoder.forward

    def spy(encoder: RegionEncoder, *inputs: Any, **more: Any) -> torch.Tensor:
        if encoder.training:
            shares.append(encoder.token_dropout)
        return forward(encoder, *inputs, **more)

    monkeypatch.setattr(RegionEncoder, "forward", spy)
    run(tmp_path, options=replace(OPTIONS, epochs=1, scst_epochs=1, token_dropout=0.25))
    assert shares == [0.25] * 8 + [0.0] * 8, "8 steps of each epoch"


def test_the_grid_can_be_left_out_but_where_captions_are_rewarded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone: list[float] = []
    tags_alone = RegionEncoder.tags_alone

    def spy(encoder: RegionEncoder, *inputs: Any) -> torch.Tensor:
        alone.append(encoder.token_dropout)
        return tags_alone(encoder, *inputs)

    monkeypatch.setattr(RegionEncoder, "tags_alone", spy)
    run(tmp_path, options=replace(OPTIONS, epochs=1, scst_epochs=1, grid_dropout=1.0, token_dropout=0.5))
    assert alone == [0.25] * 8, "half as many tags are dropped as other tokens"


def test_what_has_no_tags_keeps_its_grid(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint()
    config = checkpoint.model.config
    assert config.regions is not None
    bare = CaptionModel(replace(config, regions=replace(config.regions, classes=0)))
    with pytest.raises(OptionsError, match="leave --grid-dropout out"):
        run(tmp_path, options=replace(OPTIONS, grid_dropout=0.5), start=replace(checkpoint, model=bare))


def test_tags_are_swapped_but_those_whose_captions_are_rewarded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swapped: list[int] = []
    monkeypatch.setattr(
        TagSwap,
        "__call__",
        lambda _, captions, classes: (swapped.append(len(classes)), (captions, classes))[1],
    )
    run(tmp_path, options=replace(OPTIONS, epochs=1, scst_epochs=1, tag_swap=0.5))
    assert swapped == [2, 1] * 8 + [1] * 8, "of 2 main photos and 1 extra a step, first both, then the extra"


def test_a_finished_run_has_nothing_left_to_do(finished: Path) -> None:
    before = epochs(finished)
    reports: list[Progress] = []
    run(finished, reports=reports)
    assert reports == []
    assert epochs(finished) == before


def test_the_curve_is_drawn(finished: Path) -> None:
    with Image.open(plot_curve(finished / "out")) as picture:
        assert picture.size == (1080, 480)


def test_views() -> None:
    picture = Image.new("RGB", (60, 40), "red")
    picture.paste("blue", (0, 0, 30, 40))
    assert augment(picture, view=0, seed="a") is picture
    assert augment(picture, view=1, seed="a").getpixel((59, 0)) == (0, 0, 255)
    cropped = augment(picture, view=2, seed="a")
    assert 0.55 < cropped.width * cropped.height / (60 * 40) <= 1.0
    assert cropped.tobytes() == augment(picture, view=2, seed="a").tobytes()
    assert cropped.tobytes() != augment(picture, view=2, seed="b").tobytes()
    views = [augment(picture, view=2, seed=str(seed), smallest_crop=0.2) for seed in range(20)]
    areas = [view.width * view.height / (60 * 40) for view in views]
    assert 0.15 < min(areas) < 0.5 < max(areas) <= 1


def test_mirrored_views_exchange_left_and_right(tmp_path: Path) -> None:
    tokenizer = tiny_checkpoint().tokenizer
    photos = photo_set(tmp_path / "photos", count=2)
    coco = CocoCaptions(photos.coco.images, dict.fromkeys((0, 1), ("the left side of a unicorn",)))
    cache = ActivationCache(tmp_path, "x", 2)
    group = CaptionSet.build(coco, Labels(tokenizer, 5), cache, photos_per_batch=1)
    (ids, *_), (turned, *_) = group.token_ids[0], group.mirrored[0]
    assert tokenizer.decode(ids) == "the left side of a"
    unknown = tokenizer.config.unk_id
    assert turned == [ids[0], ids[1], unknown, *ids[3:]], "right is no word of this vocabulary"


def test_targets_leave_out_padding_and_unknown_words(tmp_path: Path) -> None:
    import numpy as np

    tokenizer = tiny_checkpoint().tokenizer
    photos = photo_set(tmp_path / "photos", count=2)
    texts = {0: ("a unicorn runs",), 1: ("a brown dog runs through the green grass",)}
    cache = ActivationCache(tmp_path, "x", 1)
    np.save(cache.path(0), np.zeros((2, 3, 3, 4), dtype=np.float16))
    labels = Labels(tokenizer, 4)
    group = CaptionSet.build(CocoCaptions(photos.coco.images, texts), labels, cache, photos_per_batch=2)
    (parts,) = batches([group], labels, seed=0)
    (batch,) = parts
    by_photo = dict(zip(batch.photos, batch.captions.targets[:, 0].tolist(), strict=True))
    a, runs, brown, dog = (tokenizer.token_id(word) for word in ("a", "runs", "brown", "dog"))
    assert by_photo[0] == [a, IGNORE, runs, tokenizer.config.eos_id]
    assert by_photo[1] == [a, brown, dog, runs]  # cut after four words, so it has no end
    assert batch.view.activations.shape == (2, 4, 3, 3)
    assert batch.view.colours is None


def test_it_goes_on_from_a_whole_model(finished: Path, tmp_path: Path) -> None:
    photos, output = finished / "photos", tmp_path / "further"
    arguments = ["--images", photos, "--train", photos / "captions.json", "--val", photos / "captions.json"]
    recipe = ["--epochs", 0, "--scst-epochs", 1, "--views", 1, "--photos", 4, "--scst-rate", 1e-6]
    recipe += ["--keep-epochs"]
    command = ["train", *arguments, "--init", finished / "out", "--output", output, *recipe]
    assert main([*map(str, command)]) == 0
    _, record = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    epoch = output / "epochs" / "1"
    assert record["cider"] == cider(finished, epoch)
    before, after = (load_file(path / "model.safetensors") for path in (finished / "out", epoch))
    assert before.keys() == after.keys()
    changes = [(after[name].float() - before[name].float()).abs().max().item() for name in before]
    assert 0 < max(changes) < 1e-3, "four steps of 1e-6 each, and the rounding to float16"
    assert (output / "tokenizer.json").read_bytes() == (finished / "out" / "tokenizer.json").read_bytes()


def reward(photos: PhotoSet, text: str, *, ended: bool = True, **options: Any) -> float:
    """What a caption of the first photo is worth."""
    tokenizer = tiny_checkpoint().tokenizer
    references = References([[tokenizer.encode(text) for text in texts] for _, texts in photos.coco.pairs()])
    alike = options.pop("alike", None)
    rewards = Rewards([references], tokenizer, TrainingOptions(**options), alike=[alike])
    end = [tokenizer.config.eos_id] if ended else []
    (worth,) = rewards((0, 0), [(*tokenizer.encode(text), *end)])
    return worth


def test_captions_that_break_off_get_no_reward(tmp_path: Path) -> None:
    photos = photo_set(tmp_path / "photos", count=2)
    whole = reward(photos, COLOURS["red"])
    assert whole > reward(photos, "a red ball on the grass") > 0
    assert reward(photos, COLOURS["red"], ended=False) == 0, "it has no end"
    assert reward(photos, "a red ball on the") == 0, "it ends on an article"


def test_what_is_expected_of_a_photo_is_what_the_others_let_one_expect() -> None:
    torch.manual_seed(0)
    features, known = torch.randn(6, 8), torch.randn(6)
    scaled = torch.nn.functional.normalize((features - features.mean(0)) / (features.std(0) + 1e-3))
    kernel = torch.exp(3 * (scaled @ scaled.T - 1))
    expected = leave_one_out(features, sharpness=3, ridge=0.2) @ known
    for photo in range(6):
        others = [other for other in range(6) if other != photo]
        inverse = torch.linalg.inv(kernel[others][:, others] + 0.2 * torch.eye(5))
        weights = kernel[photo, others] @ inverse
        weights = weights + (1 - weights.sum()) / 5
        torch.testing.assert_close(expected[photo], weights @ known[others], rtol=1e-4, atol=1e-5)


def test_photos_that_look_alike_tell_most_of_one_another() -> None:
    torch.manual_seed(0)
    kinds = torch.randn(2, 8)
    weights = leave_one_out(kinds[[0, 1, 0, 1, 0, 1]] + 0.1 * torch.randn(6, 8))
    assert weights.diagonal().tolist() == [0] * 6
    torch.testing.assert_close(weights.sum(1), torch.ones(6))
    assert (weights[::2, ::2].sum(1) > 0.6).all()
    assert (weights[1::2, 1::2].sum(1) > 0.6).all()


@pytest.mark.parametrize("photos", [1, 20_001])
def test_a_consensus_needs_others_but_not_all_the_world(photos: int) -> None:
    with pytest.raises(DataError, match="leave --consensus out"):
        check_consensus(photos)
    check_consensus(2)
    check_consensus(20_000)


def test_what_a_consensus_cannot_compare_is_said_before_anything_is_trained(tmp_path: Path) -> None:
    one = photo_set(tmp_path / "photos", count=1)
    options = replace(OPTIONS, consensus=1.0)
    sets = [TrainingSet(source=one, per_batch=1)]
    with pytest.raises(DataError, match="not 1: leave --consensus out"):
        train(tiny_checkpoint(), sets, one, tmp_path / "out", options=options, report=print)
    assert not (tmp_path / "out").exists()


def test_what_other_photos_suggest_is_rewarded(tmp_path: Path) -> None:
    photos = photo_set(tmp_path / "photos", count=4)
    red, green = COLOURS["red"], COLOURS["green"]
    alike = torch.zeros(4, 4)
    alike[0] = torch.tensor([0, 0.25, 0.75, 0])  # photo 0 is red: 1 is green, 2 red
    rules: dict[str, Any] = {"alike": alike, "consensus": 2}
    assert reward(photos, green) == 0
    agreed = reward(photos, green, **rules)
    assert 0.9 < agreed / (10 * 2 * 0.25) <= 1, "all but the end, which the reward does not ask for"
    assert 0.9 < (reward(photos, red, **rules) - reward(photos, red)) / (10 * 2 * 0.75) <= 1
    assert reward(photos, "children play", **rules) == 0, "which no caption of them says"
    assert reward(photos, green, ended=False, **rules) == 0, "it has no end"


def test_self_critical_training_asks_the_other_photos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[torch.Tensor] = []
    monkeypatch.setattr(sources_module, "leave_one_out", lambda f: asked.append(leave_one_out(f)) or asked[0])
    run(tmp_path, options=replace(OPTIONS, epochs=1, scst_epochs=2, consensus=1.0))
    assert [tuple(weights.shape) for weights in asked] == [(16, 16)], "once, not in each epoch"


WORDS = ("ball", "beach", "dog", "grass")


def with_word_tags(*, colours: int = 0) -> Checkpoint:
    """A tiny model that is to know four words; its untrained backbone tells red from green."""
    checkpoint = tiny_checkpoint(seed=2, words=len(WORDS), colours=colours)
    tags = checkpoint.model.regions.tags
    tags.head_words[tags.classes :] = torch.tensor([checkpoint.tokenizer.token_id(word) for word in WORDS])
    return checkpoint


def test_word_tags_are_fitted_then_learned_from_as_the_other_photos_tell_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tags] = []
    forward = TagTokens.forward

    def spy(tokens: TagTokens, tags: Tags, *inputs: Any) -> torch.Tensor:
        if tokens.training:
            seen.append(tags)
        return forward(tokens, tags, *inputs)

    monkeypatch.setattr(TagTokens, "forward", spy)
    start = with_word_tags()
    options = replace(OPTIONS, epochs=1, scst_epochs=1, backbone_rate=0.0)
    run(tmp_path, options=options, start=start)
    assert [tags.tags.shape for tags in seen] == [(3, 8 + 4)] * 16, "2 main photos and 1 extra a step"
    found = start.model.regions.tags.likely_words(torch.zeros(1, 4)).tags
    assert all(set(row[8:].tolist()) == set(found[0].tolist()) for tags in seen for row in tags.tags)
    model = load(tmp_path / "out", device="cpu")
    head = model.checkpoint.model.regions.tags
    assert head.word_head.weight.abs().max() > 0
    assert head.word_prior.tolist() == [0.5] * 4
    red = CheckpointRunner(model.checkpoint).encode([model.prepare(tmp_path / "photos" / "0.png")])
    assert red.region_tokens.shape[1] == 4 + 8 + 4


def test_word_tags_need_a_backbone_that_stays_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(OptionsError, match="add --backbone-rate 0"):
        run(tmp_path, start=with_word_tags())
    assert not (tmp_path / "out").exists()


def test_a_class_token_is_no_part_of_a_mean_feature(tmp_path: Path) -> None:
    whole = replace(OPTIONS, backbone_rate=0.0, frozen_stages=99)
    photos = TrainingSet(source=photo_set(tmp_path / "photos", count=2), per_batch=2, views=1)
    sources = Sources(tiny_vit_checkpoint(), [photos], (), whole, tmp_path)
    sources.build_caches(lambda progress: None)
    (part,) = sources.sets[0].cache.parts(0)
    assert part.activations.shape == (2, 1 + 16, 24)
    (seen,) = sources.seen()
    torch.testing.assert_close(seen.features, part.activations[:, 1:].float().mean(1))


TEXTS = [("a red ball on the beach", "two children play with a red ball"), ("a dog in the grass",)] * 6
EVERYTHING = replace(
    OPTIONS,
    text_epochs=1,
    epochs=1,
    scst_epochs=1,
    text_photos=3,
    backbone_rate=0.0,
    token_dropout=0.3,
    grid_dropout=0.5,
    tag_swap=0.5,
    rare_words=True,
    consensus=1.0,
    content_precision=0.4,
    people_penalty=0.5,
    repeat_penalty=0.3,
)


class InterruptedRunError(Exception):
    """Somebody stops the run at the end of an epoch."""


def everything(folder: Path, *, stop: bool = False) -> list[Progress]:
    """A run that uses all there is: captions of many people, of one, narratives, and text without photos."""
    (folder / "out").parent.mkdir(exist_ok=True)
    many = photo_set(folder / "many", count=6, captions=5)
    narratives = photo_set(folder / "narratives", count=4, captions=1)
    more = [
        TrainingSet(source=replace(many, name="many"), per_batch=2, views=1),
        TrainingSet(source=replace(narratives, name="told"), per_batch=1, views=1, narratives=True),
    ]
    reports: list[Progress] = []

    class Reports(list[Progress]):
        def append(self, news: Progress) -> None:
            reports.append(news)
            if stop and news.scores is not None:
                raise InterruptedRunError

    run(
        folder,
        options=EVERYTHING,
        start=with_word_tags(colours=2),
        more=more,
        texts=TEXTS,
        reports=Reports(),
    )
    return reports


def test_all_that_there_is_to_learn_from_takes_part_and_survives_interruptions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[list[int]] = []
    loss = SelfCritic.loss
    monkeypatch.setattr(
        SelfCritic,
        "loss",
        lambda critic, model, photos, tokens: (
            searched.append([number for number, _ in photos]),
            loss(critic, model, photos, tokens),
        )[1],
    )
    reports = everything(tmp_path / "whole")
    steps = [news for news in reports if news.phase != "cache" and news.scores is None]
    phases = [news.phase for news in steps]
    assert phases == ["text"] * 1 + ["xe"] * 8 + ["scst"] * 8, "12 lines a step on text alone"
    assert all(news.loss is not None for news in steps)
    assert searched == [[0, 0, 2, 2, 3]] * 8, "not the set with two captions a photo"
    for _ in range(3):
        with pytest.raises(InterruptedRunError):
            everything(tmp_path / "stopped", stop=True)
    everything(tmp_path / "stopped")
    ours, theirs = (load_file(tmp_path / x / "out" / "state.safetensors") for x in ("whole", "stopped"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    head = load(tmp_path / "whole" / "out", device="cpu").checkpoint.model.regions.tags.word_head
    assert head.weight.shape == (len(WORDS), 24 + 8)
    assert head.weight[:, 24:].abs().max() > 0, "it reads colours"


@pytest.mark.parametrize(
    ("change", "texts", "message"),
    [
        ({}, TEXTS, "add --word-tags"),
        ({"text_epochs": 1}, [], "add --text"),
    ],
)
def test_text_needs_tags_and_epochs_on_text_need_text(
    change: dict[str, Any], texts: list[tuple[str, ...]], message: str, tmp_path: Path
) -> None:
    with pytest.raises(OptionsError, match=message):
        run(tmp_path, options=replace(OPTIONS, **change), texts=texts)
    assert not (tmp_path / "out").exists()


def test_a_batch_takes_no_more_photos_than_there_are(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a batch takes 5 photos, but there are 4"):
        TrainingSet(source=photo_set(tmp_path / "photos", count=4), per_batch=5)


def test_colours_are_kept_beside_the_activations(tmp_path: Path) -> None:
    photos = TrainingSet(source=photo_set(tmp_path / "photos", count=2), per_batch=2, views=2)
    start = tiny_checkpoint(seed=2, colours=2)
    sources = Sources(start, [photos], (), OPTIONS, tmp_path)
    sources.build_caches(lambda progress: None)
    cache = sources.sets[0].cache
    (part,) = cache.parts(1)
    assert part.colours is not None
    assert part.colours.shape == (2, 8, 2, 2)
    torch.testing.assert_close(part.colours.float().sum(1), torch.ones(2, 2, 2), rtol=1e-2, atol=1e-2)
    red, green = part.colours.float().mean((2, 3))
    assert red.argmax() == 4, "red, no green, no blue"
    assert green[4] < 0.2
    sources.build_caches(lambda progress: pytest.fail("nothing is missing"))
    cache.colours_path(0).unlink()
    sources.build_caches(lambda progress: None)
    assert cache.colours_path(0).exists(), "a run of a model without colours leaves activations alone"


def test_the_whole_encoder_is_trained_on_captions_and_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[list[int]] = []
    forward = WordLoss.forward
    monkeypatch.setattr(
        WordLoss,
        "forward",
        lambda loss, features, photos: (
            told.append([number for number, _ in photos]),
            forward(loss, features, photos),
        )[1],
    )
    options = replace(
        OPTIONS,
        epochs=2,
        frozen_epochs=1,
        scst_epochs=0,
        frozen_stages=0,
        backbone_rate=0.2,
        word_loss=0.3,
        smallest_crop=0.4,
    )
    narratives = photo_set(tmp_path / "narratives", count=4, captions=1)
    told_too = TrainingSet(source=replace(narratives, name="told"), per_batch=1, views=1, narratives=True)
    start = tiny_checkpoint(seed=2)
    before = {name: value.clone() for name, value in start.model.state_dict().items()}
    run(tmp_path, options=options, start=start, more=[told_too])
    assert told == [[0, 1, 2]] * 8, "in the epoch that trains the encoder, narratives too"
    after = start.model.state_dict()
    assert not torch.equal(before["backbone.stem.weight"], after["backbone.stem.weight"])
    assert torch.equal(before["regions.tags.classifier.weight"], after["regions.tags.classifier.weight"])
    assert not any("helper" in name for name in load_file(tmp_path / "out" / "model.safetensors"))
    state = TrainingState(start.model, options, tmp_path)
    lower, upper = (start.model.backbone.stage_parameters(stage)[0] for stage in (0, 4))
    rates = {id(p): group["rate"] for group in state.optimizer.param_groups for p in group["params"]}
    assert (rates[id(lower)], rates[id(upper)]) == (0.05, 0.2)


def test_word_tags_can_be_those_of_an_earlier_encoder(tmp_path: Path) -> None:
    options = replace(OPTIONS, epochs=1, scst_epochs=0, backbone_rate=0.0)
    photos = TrainingSet(source=photo_set(tmp_path / "photos"), per_batch=2, views=1)
    start, earlier = with_word_tags(colours=2), tiny_checkpoint(seed=5)
    sources = Sources(start, [photos], (), options, tmp_path)
    sources.build_caches(lambda progress: None)
    (own,), _ = sources.word_tags(None, lambda progress: None)
    (theirs,), _ = sources.word_tags(earlier, lambda progress: None)
    assert own.tags.shape == theirs.tags.shape == (16, 4)
    assert not torch.allclose(own.scores.sort(1).values, theirs.scores.sort(1).values)
    plain = Sources(tiny_checkpoint(), [photos], (), options, tmp_path)
    with pytest.raises(OptionsError, match="add --word-tags"):
        plain.check(earlier)
