"""Several models' captions of the same photographs: on the terminal, as JSON and as a page."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import Any

import pytest
from images import draw_noise
from tiny import tiny_captioner, tiny_checkpoint

from captioner.captioner import Captioner
from captioner.checkpoint import save_checkpoint
from captioner.cli import main
from captioner.errors import CheckpointError


class Loads:
    """Tiny models by the folder's name, and how many of them are there at a time."""

    def __init__(self) -> None:
        self.living: list[weakref.ref[Captioner]] = []
        self.most = 0

    def __call__(self, place: str, /, *, device: str, dtype: str) -> Captioner:
        if Path(place).name == "broken":
            raise CheckpointError("broken is damaged")
        self.most = max(self.most, 1 + sum(model() is not None for model in self.living))
        model = tiny_captioner(seed=int(Path(place).name[-1]))
        self.living.append(weakref.ref(model))
        return model


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Photographs, and folders for models."""
    monkeypatch.chdir(tmp_path)
    for name in ("m0", "m1", "broken"):
        (tmp_path / name).mkdir()
    for number in range(3):
        draw_noise(60 + number, 50, seed=number).save(tmp_path / f"{number}.png")
    return tmp_path


def expected(seed: int, name: str) -> Any:
    model = tiny_captioner(seed=seed)
    model.name = "own" if seed else "m0"
    return model.caption([name])[0]


PHOTOS = ["0.png", "1.png", "2.png"]


def test_captions_stand_side_by_side(folder: Path, capsys: pytest.CaptureFixture[str]):
    loads = Loads()
    assert main(["caption", "--compare", "m0, own=m1", "--batch-size", "2", *PHOTOS], load=loads) == 0
    out, err = capsys.readouterr()
    lines = []
    for photo in PHOTOS:
        lines.append(photo)
        for seed, name in enumerate(("m0", "own")):
            caption = expected(seed, photo)
            lines.append(f"  {name:3}  {f'{caption.confidence:.0%}':>4}  {caption.caption}")
    assert out.splitlines() == lines
    assert "own captions 3 photographs" in err
    assert loads.most == 1, "one model is loaded at a time"


def test_json_has_all_captions_of_a_photo_on_a_line(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["caption", "--compare", "m0,own=m1", "--json", *PHOTOS], load=Loads()) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert found == [
        {"file": photo, "captions": [expected(seed, photo).to_dict() for seed in (0, 1)]} for photo in PHOTOS
    ]


def test_what_goes_wrong_is_told_and_the_rest_is_there(folder: Path, capsys: pytest.CaptureFixture[str]):
    (folder / "1.png").write_text("no photograph")
    arguments = ["caption", "--compare", "m0,broken", *PHOTOS]
    assert main(arguments, load=Loads()) == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[::3] == ["0.png", "2.png"]
    assert out.splitlines()[2] == "  broken     —  (no caption)"
    assert "captioner: 0.png: broken: broken is damaged" in err
    assert err.count("1.png: ") == 1
    assert main([*arguments, "--json"], load=Loads()) == 1
    first, second, _ = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["captions"] == [
        expected(0, "0.png").to_dict(),
        {"model": "broken", "error": "broken is damaged"},
    ]
    assert second.keys() == {"file", "error"}


def test_options_hold_for_all_and_one_that_cannot_follow_says_so(
    folder: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["--max-length", "4", "--stop", "dog"]
    assert main(["caption", "--compare", "m0", *words[:2], "--json", "0.png"], load=Loads()) == 0
    (caption,) = json.loads(capsys.readouterr().out)["captions"]
    assert len(caption["caption"].split()) <= 4
    assert main(["caption", "--compare", "m0,own=m1", *words, "0.png"], load=Loads()) == 1
    assert "own takes no stop texts" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--compare", "m0,m0"], "two models are called 'm0'"),
        (["--compare", "m0,nothing"], "no model 'nothing'"),
        (["--compare", "m0,"], "names a model of no name"),
        (["--compare", "m0", "--model", "m1"], "--compare goes with neither"),
        (["--compare", "m0", "--heatmap", "x.png"], "--compare goes with neither"),
        (["--compare", "m0", "--report", "x.txt"], "a report is an .html file"),
        (["--report", "x.html"], "--report goes with --compare"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_loaded(
    arguments: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
):
    loads = Loads()
    assert main(["caption", *arguments, "0.png"], load=loads) in (1, 2)
    out, err = capsys.readouterr()
    assert (out, loads.living) == ("", [])
    assert message in err


def test_a_page_shows_them_side_by_side(folder: Path):
    (folder / "1.png").write_text("no photograph")
    arguments = ["caption", "--compare", "m0,own=m1,broken", "--report", "page.html", *PHOTOS]
    assert main(arguments, load=Loads()) == 1
    page = (folder / "page.html").read_text(encoding="utf-8")
    figures = page.split('<script type="text/html"')[1:]
    assert len(figures) == 3
    for seed, name in enumerate(("m0", "own")):
        percent = f"{expected(seed, '0.png').confidence:.0%}"
        assert f'<p class="by">{name} · {percent} confident</p>' in figures[0]
    assert figures[0].count("data-map=") == sum(len(expected(seed, "0.png").words) for seed in (0, 1))
    assert '<p class="error">broken: broken is damaged</p>' in figures[0]
    assert "not an image" in figures[1]


def test_real_models_are_loaded_by_path(folder: Path, capsys: pytest.CaptureFixture[str]):
    for seed in (0, 1):
        save_checkpoint(tiny_checkpoint(seed=seed), folder / f"real{seed}")
    assert main(["caption", "--compare", "real0,real1", "--json", "0.png"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [caption["model"] for caption in found["captions"]] == ["real0", "real1"]
