"""Evaluation: the metrics of a model's captions over a captions file, and what is said of bad photos."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from images import draw_noise
from tiny import tiny_captioner, tiny_checkpoint

from captioner import Captioner, DataError, GenerationOptions, OptionsError
from captioner.checkpoint import save_checkpoint
from captioner.cli import main
from captioner.coco import CocoCaptions
from captioner.content import content_words
from captioner.evaluation.evaluate import EvaluationResult, evaluate
from captioner.evaluation.metrics import score

GREEDY = GenerationOptions(num_beams=1, max_length=9)


@pytest.fixture(scope="module")
def model() -> Captioner:
    return tiny_captioner()


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    (tmp_path / "more").mkdir()
    paths = [tmp_path / ("more" if seed % 2 else "") / f"{seed}.png" for seed in range(7)]
    for seed, path in enumerate(paths):
        draw_noise(60 + seed, 50, seed=seed).save(path)
    return paths


def captions_file(folder: Path, photos: list[Path], captions: list[list[str]]) -> Path:
    images = [
        {"id": f"photo {number}", "file_name": str(path.relative_to(folder))}
        for number, path in enumerate(photos)
    ]
    annotations = [
        {"image_id": image["id"], "caption": text}
        for image, texts in zip(images, captions, strict=True)
        for text in texts
    ]
    path = folder / "captions.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    return path


def test_captions_are_judged_by_those_of_their_own_photo(
    model: Captioner, photos: list[Path], tmp_path: Path
):
    """A model whose own captions are the references is perfect; with the next photo's it is not."""
    own = [caption.caption for caption in model.caption(photos, GREEDY)]
    assert len(set(own)) > 3
    coco = CocoCaptions.from_file(captions_file(tmp_path, photos, [[text, "a dog"] for text in own]))
    steps: list[tuple[int, int]] = []
    result = evaluate(
        model,
        tmp_path,
        coco,
        options=GREEDY,
        batch_size=3,
        meteor=False,
        progress=lambda done, of: steps.append((done, of)),
    )
    assert result.scores.bleu_4 == pytest.approx(100, abs=1e-4)
    assert result.scores.rouge_l == pytest.approx(100, abs=1e-4)
    assert [caption.caption for caption in result.captions.values()] == own
    assert list(result.captions) == [f"photo {number}" for number in range(7)]
    assert [caption.file for caption in result.captions.values()] == [str(path) for path in photos]
    assert result.images == 7
    assert result.images_per_second > 0
    assert steps == [(3, 7), (6, 7), (7, 7)]
    shifted = [[text] for text in [*own[1:], own[0]]]
    other = evaluate(
        model,
        tmp_path,
        CocoCaptions.from_file(captions_file(tmp_path, photos, shifted)),
        options=GREEDY,
        meteor=False,
    )
    assert other.scores.bleu_4 < 99
    references = {f"photo {number}": texts for number, texts in enumerate(shifted)}
    hypotheses = {f"photo {number}": text for number, text in enumerate(own)}
    assert other.scores == score(references, hypotheses, meteor=False)


def test_the_first_photos_are_enough_if_told_so(model: Captioner, photos: list[Path], tmp_path: Path):
    coco = CocoCaptions.from_file(captions_file(tmp_path, photos, [["a dog runs"]] * 7))
    photos[5].unlink()
    result = evaluate(model, tmp_path, coco, limit=3, options=GREEDY, meteor=False)
    assert list(result.captions) == ["photo 0", "photo 1", "photo 2"]
    assert result.images == 3
    data = result.to_dict()
    assert data["images"] == 3
    assert data["meteor"] is None
    assert json.loads(json.dumps(data)) == data


def test_the_models_own_defaults_hold_without_options(model: Captioner, photos: list[Path], tmp_path: Path):
    coco = CocoCaptions.from_file(captions_file(tmp_path, photos, [["a dog runs"]] * 7))
    result = evaluate(model, tmp_path, coco, meteor=False)
    assert [c.caption for c in result.captions.values()] == [c.caption for c in model.caption(photos)]


def test_missing_photos_are_counted_before_any_work(model: Captioner, photos: list[Path], tmp_path: Path):
    coco = CocoCaptions.from_file(captions_file(tmp_path, photos, [["a dog runs"]] * 7))
    for photo in photos[:5]:
        photo.unlink()
    steps: list[int] = []
    with pytest.raises(
        DataError, match=r"missing: .*0\.png; .*1\.png; .*2\.png and 2 more\. Is .* their folder"
    ):
        evaluate(model, tmp_path, coco, progress=lambda done, _: steps.append(done))
    assert steps == []


def test_photos_that_cannot_be_read_are_named(model: Captioner, photos: list[Path], tmp_path: Path):
    coco = CocoCaptions.from_file(captions_file(tmp_path, photos, [["a dog runs"]] * 7))
    photos[4].write_bytes(photos[4].read_bytes()[:90])
    photos[5].write_text("not a photo")
    with pytest.raises(DataError, match=r"cannot be read: .*4\.png: .*damaged.*5\.png: is not an image"):
        evaluate(model, tmp_path, coco, options=GREEDY, batch_size=3)


@pytest.mark.parametrize("wrong", [{"limit": 0}, {"batch_size": 0}, {"limit": -1}])
def test_nothing_is_not_a_number_of_photos(
    wrong: dict[str, int], model: Captioner, photos: list[Path], tmp_path: Path
):
    coco = CocoCaptions.from_file(captions_file(tmp_path, photos, [["a dog runs"]] * 7))
    with pytest.raises(OptionsError, match="at least 1"):
        evaluate(model, tmp_path, coco, **wrong)


def test_a_result_is_rounded_for_print(model: Captioner, photos: list[Path], tmp_path: Path):
    coco = CocoCaptions.from_file(captions_file(tmp_path, photos, [["a dog runs"]] * 7))
    result: EvaluationResult = evaluate(model, tmp_path, coco, options=GREEDY, meteor=False)
    assert all(value is None or value == round(value, 3) for value in result.to_dict().values())


@pytest.fixture
def no_java(monkeypatch: pytest.MonkeyPatch) -> None:
    """METEOR is not measured: to start Java takes longer than all the rest."""
    monkeypatch.setenv("PATH", "")


@pytest.fixture
def command(photos: list[Path], tmp_path: Path) -> list[str]:
    save_checkpoint(tiny_checkpoint(), tmp_path / "tiny", dtype=torch.float32)
    coco = captions_file(tmp_path, photos, [["a dog runs", "two children play"]] * 7)
    model = ["--model", str(tmp_path / "tiny"), "--device", "cpu"]
    return ["evaluate", "--images", str(tmp_path), "--captions", str(coco), *model]


@pytest.mark.usefixtures("no_java")
def test_the_command_prints_the_metrics(command: list[str], capsys: pytest.CaptureFixture[str]):
    assert main([*command, "--beams", "1", "--limit", "3"]) == 0
    output = capsys.readouterr()
    lines = dict(line.split("\t") for line in output.out.splitlines())
    assert [
        name for name in lines if name in ("CIDEr", "content words right %", "ECE of captions", "images")
    ] == [
        "CIDEr",
        "content words right %",
        "ECE of captions",
        "images",
    ]
    assert [name for name in lines if name.startswith("BLEU")] == [f"BLEU-{n}" for n in range(1, 5)]
    assert 0 <= float(lines["ECE of words"]) <= 1
    assert lines["images"] == "3"
    assert output.err == ""


def test_predictions_that_could_not_be_written_are_refused_before_the_work(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main([*command, "--predictions", str(tmp_path / "none" / "p.jsonl")]) == 2
    assert "the predictions' folder does not exist" in capsys.readouterr().err


def test_figures_are_printed_also_where_predictions_cannot_be_written(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main([*command, "--predictions", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert "images\t" in out
    assert err.startswith(f"captioner: {tmp_path}: ")


def test_the_command_gives_json_and_predictions(
    command: list[str],
    model: Captioner,
    photos: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    target = tmp_path / "predictions.jsonl"
    assert main([*command, "--json", "--beams", "3", "--predictions", str(target)]) == 0
    data = json.loads(capsys.readouterr().out)
    options = GenerationOptions(num_beams=3, max_length=12)
    coco = CocoCaptions.from_file(tmp_path / "captions.json")
    expected = evaluate(model, tmp_path, coco, options=options, meteor=False).to_dict()
    unlike = {"images_per_second": 0, "meteor": None}
    assert {**data, **unlike} == {"model": "tiny", **expected, **unlike}
    assert (data["meteor"] is not None) == bool(shutil.which("java") and find_spec("pycocoevalcap"))
    lines = [json.loads(line) for line in target.read_text().splitlines()]
    assert [line["image_id"] for line in lines] == [f"photo {number}" for number in range(7)]
    assert [line["caption"] for line in lines] == [c.caption for c in model.caption(photos, options)]
    assert [line["file"] for line in lines] == [str(photo) for photo in photos]


@pytest.mark.usefixtures("no_java")
def test_the_command_draws_how_far_confidences_can_be_believed(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    plot = tmp_path / "plot.png"
    assert main([*command, "--json", "--limit", "3", "--plot", str(plot)]) == 0
    assert json.loads(capsys.readouterr().out)["word_ece"] is not None
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert main([*command, "--plot", str(tmp_path / "plot.pdf")]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == "captioner: a diagram is a .png file: 'plot.pdf' is not\n"


@pytest.mark.usefixtures("no_java")
def test_the_command_plays_the_pointing_game(
    command: list[str],
    model: Captioner,
    photos: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    """With every word of a caption an object that fills its photo, each word hits."""
    said = model.caption(photos[:1], GenerationOptions(num_beams=1))[0].words
    names = sorted({word.text for word in said if content_words(word.text)})
    assert names
    objects = {
        "images": [{"id": 1, "file_name": photos[0].name, "width": 60, "height": 50}],
        "annotations": [
            {"image_id": 1, "category_id": number, "bbox": [0, 0, 60, 50]} for number in range(len(names))
        ],
        "categories": [{"id": number, "name": name} for number, name in enumerate(names)],
    }
    boxes = tmp_path / "instances.json"
    boxes.write_text(json.dumps(objects))
    assert main([*command, "--json", "--beams", "1", "--limit", "1", "--boxes", str(boxes)]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["pointing_nouns"] == sum(word.text in names for word in said)
    assert data["pointing_hit"] == data["pointing_centre"] == data["pointing_random"] == 100


def test_the_command_names_bad_photos_and_fails(
    command: list[str], photos: list[Path], capsys: pytest.CaptureFixture[str]
):
    photos[2].write_text("no photo")
    assert main(command) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("captioner: photos cannot be read: ")
    assert str(photos[2]) in output.err
    assert len(output.err.splitlines()) == 1
