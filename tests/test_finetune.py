"""Fine-tuning: any model on our own loop goes on from where it is, and its result loads everywhere."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface import save_blip, save_florence2, save_git, save_vit_gpt2
from pairs import save as save_pair
from safetensors import safe_open
from safetensors.torch import load_file
from test_training import COLOURS, OPTIONS, photo_set
from tiny import tiny_checkpoint

from captioner import GenerationOptions, load
from captioner.calibration import FEATURES, Calibration
from captioner.checkpoint import load_checkpoint, read_config, save_checkpoint, write_calibration
from captioner.cli import main
from captioner.convert import convert
from captioner.errors import CheckpointError, OptionsError
from captioner.evaluation.twin import build_twin
from captioner.options import SearchOptions
from captioner.training.finetune import finished_checkpoint, unknown_words
from captioner.training.labels import IGNORE, Labels, mirrored
from captioner.training.options import TrainingOptions, TrainingSet
from captioner.training.sources import Sources
from captioner.training.state import TrainingState
from captioner.training.train import train

SAVE: dict[str, Callable[[Path], Any]] = {
    "blip": save_blip,
    "vit_gpt2": save_vit_gpt2,
    "florence2": save_florence2,
    "swin_roberta": lambda folder: save_pair(folder, "swin", "roberta"),
}
RECIPE = ["--epochs", 30, "--learning-rate", 1e-2, "--photos", 4, "--views", 1]
LORA = ["--lora", 4, "--epochs", 12, "--learning-rate", 2e-2, "--photos", 4, "--views", 1]


def command(folder: Path, start: object, *more: object, name: str = "out") -> list[str]:
    """The command that fine-tunes a model on plain red and green photos."""
    photos = folder / "photos"
    if not photos.exists():
        photo_set(photos)
    sets = ["--images", photos, "--train", photos / "captions.json", "--val", photos / "captions.json"]
    rest = [*sets, "--output", folder / name, "--device", "cpu", "--precision", "float32"]
    return [str(each) for each in ("train", "--init", start, *rest, *more)]


def exchanged(folder: Path) -> None:
    """What was said of red photos is said of green ones, and the other way round."""
    path = folder / "photos" / "captions.json"
    red, green = COLOURS.values()
    data = json.loads(path.read_text())
    for each in data["annotations"]:
        each["caption"] = {red: green, green: red}[each["caption"]]
    path.write_text(json.dumps(data))


def says(folder: Path, model: Path) -> list[str]:
    """What a model says of the first four photos."""
    files = [folder / "photos" / f"{number}.png" for number in range(4)]
    captions = load(model, device="cpu").caption(files, GenerationOptions(max_length=30))
    return [caption.caption for caption in captions]


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module", params=SAVE)
def tuned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of others in ``start``, the photos, and what it was fine-tuned to in ``out``."""
    folder = tmp_path_factory.mktemp(request.param)
    SAVE[request.param](folder / "start")
    assert main(command(folder, folder / "start", *RECIPE)) == 0
    return folder


def test_models_of_others_learn_to_say_what_people_say(tuned: Path) -> None:
    assert says(tuned, tuned / "out") == [*COLOURS.values()] * 2
    records = log(tuned / "out")
    assert [record["epoch"] for record in records] == list(range(31)), "it is judged before it is trained"
    assert records[0]["phase"] == "start"
    assert records[0]["cider"] < records[-1]["cider"]


def test_what_comes_of_them_is_of_the_same_kind(tuned: Path, tmp_path: Path) -> None:
    """And the encoder is left alone."""
    convert(tuned / "start", tmp_path / "converted")
    before, after = read_config(tmp_path / "converted"), read_config(tuned / "out")
    assert "converted" in before.pop("description")
    assert after.pop("description") == "fine-tuned from start"
    assert before == after
    weights, tensors = (
        load_checkpoint(path, device=torch.device("cpu"), dtype=torch.float16).model.state_dict()
        for path in (tmp_path / "converted", tuned / "out")
    )
    moved = {name.split(".")[0] for name in weights if not torch.equal(weights[name], tensors[name])}
    assert moved == {name.split(".")[0] for name in weights} - {"backbone"}


def test_transformers_says_the_same_with_the_weights(tuned: Path) -> None:
    model = load(tuned / "out", device="cpu")
    assert model.checkpoint is not None
    if model.checkpoint.model.config.backbone.kind == "transformers":
        pytest.skip("it has no twin")
    twin = build_twin(model.checkpoint)
    options = SearchOptions(num_beams=2, max_length=20)
    pixels = model.checkpoint.processor.normalize(
        torch.stack([model.prepare(tuned / "photos" / f"{n}.png").content for n in (0, 1)]), torch.float32
    )
    with torch.inference_mode():
        found = twin.search(twin.encode(pixels), options)
    assert [model.checkpoint.tokenizer.decode(ids) for ids in found] == [*COLOURS.values()]


def test_lora_trains_little_and_leaves_a_plain_checkpoint(tuned: Path, tmp_path: Path) -> None:
    photo_set(tmp_path / "photos")
    exchanged(tmp_path)
    assert main(command(tmp_path, tuned / "out", *LORA)) == 0
    first, *others = (record["cider"] for record in log(tmp_path / "out"))
    assert first + 200 < max(others)
    before, after = (load_file(path / "model.safetensors") for path in (tuned / "out", tmp_path / "out"))
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(not name.startswith("backbone.") and before[name].ndim == 2 for name in moved)
    assert not any("embedding" in name for name in moved)
    with safe_open(tmp_path / "out" / "state.safetensors", "pt") as state:
        assert all(".lora_" in name for name in state.keys() if name.startswith("model."))  # noqa: SIM118
    mean = ["average", "-o", tmp_path / "mean", tuned / "out", tmp_path / "out"]
    assert main([*map(str, mean)]) == 0, "it is a model like any other"
    assert says(tmp_path, tmp_path / "mean")


def test_rewards_are_for_any_vocabulary(tuned: Path, tmp_path: Path) -> None:
    recipe = [
        "--epochs",
        0,
        "--scst-epochs",
        2,
        "--scst-rate",
        1e-4,
        "--views",
        1,
        "--content-precision",
        0.4,
    ]
    assert main(command(tmp_path, tuned / "out", *recipe)) == 0
    assert [record["phase"] for record in log(tmp_path / "out")] == ["start", "scst", "scst"]
    assert says(tmp_path, tmp_path / "out") == [*COLOURS.values()] * 2, "it says the best already"


def test_the_encoder_of_others_can_be_trained(tuned: Path, tmp_path: Path) -> None:
    one_stage = (
        load_checkpoint(
            tuned / "out", device=torch.device("cpu"), dtype=torch.float32
        ).model.backbone.num_stages
        == 1
    )
    recipe = ["--epochs", 1, "--views", 1, "--learning-rate", 1e-3, "--backbone-rate", 0.5, "--lora", 2]
    stages = 0 if one_stage else 2
    assert main(command(tmp_path, tuned / "out", *recipe, "--frozen-stages", stages)) == 0
    weights = load_file(tmp_path / "out" / "state.safetensors")
    trained = {name.split(".lora_")[0] for name in weights if name.startswith("model.backbone.")}
    layers = {f"model.backbone.blocks.1.{layer}" for layer in ("qkv", "out", "fc1", "fc2")}
    assert trained
    assert one_stage or trained == layers, "of the second of two blocks"


@pytest.mark.slow
def test_killed_and_resumed_is_as_if_undisturbed(tmp_path: Path) -> None:
    save_vit_gpt2(tmp_path / "start")
    recipe = [*LORA[:3], 3, *LORA[4:], "--scst-epochs", 2, "--scst-mean", 0.75, "--scst-rate", 1e-3]
    assert main(command(tmp_path, tmp_path / "start", *recipe, name="whole")) == 0
    again = command(tmp_path, tmp_path / "start", *recipe)
    code = "import sys; from captioner.cli import main; sys.exit(main(sys.argv[1:]))"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    for epochs in (1, 4):  # done before it is killed, in each phase
        with subprocess.Popen([sys.executable, "-c", code, *again], env=environment) as killed:
            path = tmp_path / "out" / "metrics.jsonl"
            while killed.poll() is None and not (path.exists() and len(log(path.parent)) > epochs):
                time.sleep(0.01)
            killed.send_signal(signal.SIGKILL)
    assert main(again) == 0
    assert log(tmp_path / "out") == log(tmp_path / "whole")
    ours, theirs = (load_file(tmp_path / name / "state.safetensors") for name in ("out", "whole"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    models = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "whole")]
    assert models[0] == models[1]


def our_model(folder: Path, *, seed: int = 2) -> Path:
    """A model of ours with a calibration; its vocabulary has no unicorn."""
    flat = {"bias": 0.0, **dict.fromkeys(FEATURES, 0.0)}
    save_checkpoint(tiny_checkpoint(seed=seed), folder)
    write_calibration(folder, Calibration(content_words=flat, function_words=flat, independence=1.0))
    return folder


def test_a_calibration_does_not_outlive_its_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = our_model(tmp_path / "start")
    assert main(command(tmp_path, start, *RECIPE[:1], 1, *RECIPE[2:])) == 0
    assert f"captioner calibrate --model {tmp_path / 'out'}" in capsys.readouterr().err
    assert load_checkpoint(start, device=torch.device("cpu"), dtype=torch.float32).calibration is not None
    assert "calibration" not in read_config(tmp_path / "out")
    caption = load(tmp_path / "out", device="cpu").caption([tmp_path / "photos" / "0.png"])[0]
    assert not caption.calibrated


def test_words_that_it_cannot_say_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = our_model(tmp_path / "start")
    photo_set(tmp_path / "photos")
    path = tmp_path / "photos" / "captions.json"
    path.write_text(path.read_text().replace("a brown dog", "A unicorn's dog"))
    assert main(command(tmp_path, start, "--epochs", 1, "--views", 1)) == 0
    assert "has no tokens for 1 words of the captions and will not learn to say them: unicorn (16)" in (
        capsys.readouterr().err
    )
    save_vit_gpt2(tmp_path / "gpt2")
    tokenizer = finished_checkpoint(str(tmp_path / "gpt2")).tokenizer
    assert unknown_words(tokenizer, ["Ein Einhorn, 一角獣"]) == Counter(), "bytes spell everything"


def test_what_gets_no_better_stays_as_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = our_model(tmp_path / "start")
    assert main(command(tmp_path, start, "--epochs", 1, "--views", 1, "--learning-rate", 0)) == 0
    assert f"no epoch was better than {start} as it was" in capsys.readouterr().err
    before, after = (load_file(path / "model.safetensors") for path in (start, tmp_path / "out"))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_word_tags_stay_unless_they_are_to_be_fitted(tmp_path: Path) -> None:
    start = tiny_checkpoint(seed=2, words=3)
    assert start.model.regions is not None
    assert start.model.regions.tags is not None
    start.model.regions.tags.head_words[10:] = torch.tensor(
        [start.tokenizer.token_id(word) for word in ("ball", "dog", "grass")]
    )
    config = start.model.config
    start.model.config = replace(config, backbone=replace(config.backbone, mirror=True))
    save_checkpoint(start, tmp_path / "start", dtype=torch.float32)
    assert main(command(tmp_path, tmp_path / "start", "--epochs", 1)) == 0
    assert main(command(tmp_path, tmp_path / "start", "--epochs", 0, "--word-tags", name="fitted")) == 0
    before, kept, fitted = (
        load_file(tmp_path / name / "model.safetensors") for name in ("start", "out", "fitted")
    )
    head = "regions.tags.word_head.weight"
    assert torch.equal(kept[head], before[head].half())
    assert fitted["regions.tags.word_prior"].tolist() == [0.5] * 3
    others = [name for name in before if "word_head" not in name and "word_prior" not in name]
    assert all(torch.equal(fitted[name], before[name].to(fitted[name].dtype)) for name in others)
    model = load(tmp_path / "fitted", device="cpu")
    assert model.checkpoint is not None
    assert model.checkpoint.model.regions is not None
    red, green = (model.prepare(tmp_path / "photos" / f"{n}.png").content for n in (0, 1))
    pixels = model.checkpoint.processor.normalize(torch.stack([red, green]), torch.float32)
    with torch.inference_mode():
        seen = model.checkpoint.model.features(pixels)
        shares = model.checkpoint.model.regions.tags.word_head(seen.mean((2, 3)))
    torch.testing.assert_close(shares, torch.tensor([[1.0, 0, 0], [0, 1, 1]]), atol=0.3, rtol=0)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--width", 64], "--width is for a new model, but --init names one: leave out either"),
        (["--layers", 2], "--layers is for a new model"),
        (["--backbone", "default"], "--backbone is for a new model"),
        (["--epochs", 0], "there is nothing to train"),
        (["--word-tags"], "this model has no word tags to fit"),
        (["--word-tags-from", "default"], "add --word-tags"),
        (["--token-dropout", 0.2], "leave --token-dropout out"),
        (["--tag-swap", 0.2], "leave --tag-swap out"),
        (["--backbone-rate", 0.1], "add --frozen-stages with a smaller number"),
        (["--photos", 17], "a batch takes 17 photos, but there are 16"),
    ],
)
def test_a_mistake_is_one_line(
    more: list[Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_vit_gpt2(tmp_path / "start")
    capsys.readouterr()
    assert main(command(tmp_path, tmp_path / "start", *more)) in (1, 2)
    said = capsys.readouterr()
    assert message in said.err
    assert len(said.err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_models_that_another_library_runs_are_refused(tmp_path: Path) -> None:
    save_git(tmp_path / "git")
    for name in (str(tmp_path / "git"), "http://localhost:1/v1#x"):
        with pytest.raises(OptionsError, match="only models that run on Captioner's own decoder"):
            finished_checkpoint(name)
    save_checkpoint(tiny_checkpoint(), tmp_path / "ours")
    options = TrainingOptions(lora=2)
    sets = [TrainingSet(source=photo_set(tmp_path / "photos"), per_batch=2)]
    sources = Sources(finished_checkpoint(str(tmp_path / "ours")), sets, (), options, tmp_path)
    with pytest.raises(OptionsError, match="no linear layers for LoRA"):
        sources.check(None)


def test_a_state_belongs_to_the_weights_that_stay(tmp_path: Path) -> None:
    options = replace(OPTIONS, lora=2, backbone_rate=0.0)
    state = TrainingState(tiny_checkpoint(seed=1).model, options, tmp_path)
    state.save()
    TrainingState(tiny_checkpoint(seed=1).model, options, tmp_path).load()
    with pytest.raises(CheckpointError, match="weights that are not trained differ"):
        TrainingState(tiny_checkpoint(seed=3).model, options, tmp_path).load()


def test_activations_are_those_of_this_encoder_and_these_photos(tmp_path: Path) -> None:
    photos = photo_set(tmp_path / "photos", count=4)
    options = replace(OPTIONS, backbone_rate=0.0)

    def folder(seed: int) -> Path:
        sets = [TrainingSet(source=photos, per_batch=2)]
        return Sources(tiny_checkpoint(seed=seed), sets, (), options, tmp_path).sets[0].cache.folder

    assert folder(1) == folder(1)
    assert folder(1) != folder(2)
    before = folder(1)
    (tmp_path / "photos" / "3.png").write_bytes((tmp_path / "photos" / "3.png").read_bytes() + b"more")
    assert folder(1) != before


def test_dropout_is_the_models_unless_given(tmp_path: Path) -> None:
    save_checkpoint(tiny_checkpoint(), tmp_path)
    assert finished_checkpoint(str(tmp_path)).model.decoder.dropout.p == 0
    other = finished_checkpoint(str(tmp_path), dropout=0.25).model
    assert other.decoder.dropout.p == 0.25
    assert other.config.decoder.dropout == 0, "only while it is trained"


def test_the_last_steps_are_averaged_each_alike(tmp_path: Path) -> None:
    options = replace(OPTIONS, epochs=0, scst_epochs=2, scst_mean=0.5, backbone_rate=0.0)
    state = TrainingState(tiny_checkpoint().model, options, tmp_path)
    name, parameter = next(iter(state.trained.items()))
    seen = []
    for epoch in range(2):
        state.epoch = epoch
        for step in range(3):
            state.set_rate(step, 3)
            state.update((parameter * (step + 1)).sum(), in_mean=state.in_mean(step, 3))
            seen.append(parameter.detach().clone())
    torch.testing.assert_close(state.average[name], torch.stack(seen[3:]).mean(0))
    assert not torch.allclose(state.average[name], torch.stack(seen[2:]).mean(0))


class TestLabels:
    """What is read and what is to be said next, for each kind of vocabulary."""

    @pytest.mark.parametrize("kind", SAVE)
    def test_the_end_is_learned_though_it_may_be_the_padding(self, kind: str, tmp_path: Path) -> None:
        SAVE[kind](tmp_path)
        tokenizer = finished_checkpoint(str(tmp_path)).tokenizer
        labels, end = Labels(tokenizer, 40), tokenizer.config.eos_id
        long, short = (labels.sequence(text) for text in ("a brown dog runs", "a dog"))
        assert long[0] == tokenizer.config.start_ids[0]
        captions = labels.pack([[long, short]])
        assert captions.input_ids[0, 0].tolist() == long[:-1]
        given = len(tokenizer.config.start_ids)
        first = [IGNORE] * (given - 1)
        assert captions.targets[0, 0].tolist() == [*first, *long[given:]]
        rest = [IGNORE] * (len(long) - len(short))
        assert captions.targets[0, 1].tolist() == [*first, *short[given:], *rest]
        assert short[-1] == end

    @pytest.mark.parametrize("kind", SAVE)
    def test_a_prompt_is_read_and_not_learned(self, kind: str, tmp_path: Path) -> None:
        SAVE[kind](tmp_path)
        tokenizer = finished_checkpoint(str(tmp_path)).tokenizer
        labels = Labels(tokenizer, 40, "a woman in")
        ids = labels.sequence("a black coat")
        assert tokenizer.decode(ids) == "a woman in a black coat"
        assert labels.sequence("a woman in a black coat") == ids, "it need not be said twice"
        targets = labels.pack([[ids]]).targets[0, 0]
        said = targets[targets != IGNORE].tolist()
        assert tokenizer.decode(said) == "a black coat"
        assert said[-1] == tokenizer.config.eos_id
        assert ids[: len(labels.prompt_ids)] == list(labels.prompt_ids)

    def test_what_is_longer_is_cut_and_has_no_end(self) -> None:
        tokenizer = tiny_checkpoint().tokenizer
        cut = Labels(tokenizer, 3).sequence("a brown dog runs")
        assert tokenizer.decode(cut) == "a brown dog"
        assert tokenizer.config.eos_id not in cut

    def test_sides_are_exchanged_in_the_mirror(self) -> None:
        assert mirrored("Left of a bright, upright lamp: the right-hand door") == (
            "Right of a bright, upright lamp: the left-hand door"
        )


def test_a_prompt_of_the_models_own_is_part_of_training(tmp_path: Path) -> None:
    photos = photo_set(tmp_path / "photos")
    start = replace(tiny_checkpoint(seed=2), generation={"num_beams": 2, "max_length": 12, "prompt": "a"})
    options = replace(OPTIONS, epochs=16, frozen_epochs=0, scst_epochs=1, backbone_rate=0.0)
    sets = [TrainingSet(source=photos, per_batch=2, views=1)]
    train(start, sets, photos, tmp_path / "out", options=options, report=lambda news: None)
    assert says(tmp_path, tmp_path / "out") == [*COLOURS.values()] * 2
