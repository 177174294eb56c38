"""The command line, with a fake captioner where a model would only cost time."""

from __future__ import annotations

import json
import os
import random
import runpy
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import FakeCaptioner
from images import damage, draw_noise, draw_scene, encode_all
from tiny import tiny_checkpoint

from captioner import SearchOptions, list_models, load
from captioner.caption import Caption
from captioner.checkpoint import save_checkpoint
from captioner.cli import main
from captioner.errors import CheckpointError, ImageError
from captioner.image import Photo, decode_image


class Loads:
    """A loader that gives one captioner, and remembers what it was asked for."""

    def __init__(self, captioner: Any) -> None:
        self.captioner = captioner
        self.asked: list[tuple[str, str, str]] = []

    def __call__(self, name_or_path: str, /, *, device: str, dtype: str) -> Any:
        self.asked.append((name_or_path, device, dtype))
        return self.captioner


@pytest.fixture
def fake() -> FakeCaptioner:
    return FakeCaptioner()


def run(fake: FakeCaptioner, *argv: str | Path) -> int:
    return main([str(argument) for argument in argv], load=Loads(fake))


def script(argv: str, *arguments: str | Path) -> list[str]:
    """The command line in a process of its own, with a fake; ``argv`` is an expression of ``sys.argv``."""
    program = (
        f"import sys; sys.path.append({str(Path(__file__).parent)!r})\n"
        "from captioner.cli import main; from fakes import FakeCaptioner\n"
        f"sys.exit(main({argv}, load=lambda name, **_: FakeCaptioner()))"
    )
    return [sys.executable, "-c", program, *map(str, arguments)]


def is_photo(data: bytes) -> bool:
    try:
        decode_image(data)
    except ImageError:
        return False
    return True


@pytest.fixture
def folder(tmp_path: Path, photo_path: Path) -> Path:
    """One good photograph, and things that are none."""
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "cut.jpg").write_bytes(photo_path.read_bytes()[:400])
    (tmp_path / "album").mkdir()
    return tmp_path


def test_a_line_for_each_photo(fake, photo_path, capsys):
    assert run(fake, "caption", photo_path, photo_path) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{photo_path}\ta photo 120 wide and 80 high\n" * 2
    assert captured.err == ""


def test_bad_files_are_reported_and_passed_over(fake, folder, capsys):
    names = ["empty.jpg", "ball.jpg", "notes.txt", "missing.jpg", "cut.jpg", "ball.jpg", "album"]
    assert run(fake, "caption", "--batch-size", "3", *[folder / name for name in names]) == 1
    captured = capsys.readouterr()
    assert [line.split("\t")[0] for line in captured.out.splitlines()] == [str(folder / "ball.jpg")] * 2
    complaints = captured.err.splitlines()
    bad = ["empty.jpg", "notes.txt", "missing.jpg", "cut.jpg", "album"]
    assert [line.split(": ")[:2] for line in complaints] == [
        ["captioner", str(folder / name)] for name in bad
    ]
    assert "captioner batch" in complaints[-1]
    assert fake.batches == [1, 1]


def test_json_has_every_caption_and_every_error(fake, folder, capsys):
    assert (
        run(fake, "caption", "--json", "--alternatives", "2", folder / "notes.txt", folder / "ball.jpg") == 1
    )
    error, record = map(json.loads, capsys.readouterr().out.splitlines())
    assert error.keys() == {"file", "error"}
    assert error["file"] == str(folder / "notes.txt")
    assert Caption.from_dict(record).caption == "a photo 120 wide and 80 high"
    assert [item["caption"] for item in record["alternatives"]] == ["another 0", "another 1"]
    assert "attention" not in record["words"][0]


def test_json_has_the_attention_on_request(fake, photo_path, capsys):
    assert run(fake, "caption", "--json", "--attention", photo_path) == 0
    word = json.loads(capsys.readouterr().out)["words"][0]
    assert word["attention"][0] == [1, 0, 0, 0, 0, 0, 0]
    assert word["box"] == [0, 0, 17, 11]


def test_json_has_the_resolved_options_on_request(fake, photo_path, capsys):
    assert run(fake, "caption", "--json", "--show-options", "--alternatives", "4", photo_path) == 0
    shown = json.loads(capsys.readouterr().out)["options"]
    assert shown == replace(fake.default_options, num_beams=5, alternatives=4).to_dict()
    assert (fake.default_options.num_beams, shown["max_length"]) == (4, 12)
    assert run(fake, "caption", "--json", photo_path) == 0
    assert "options" not in json.loads(capsys.readouterr().out)


def test_defaults_are_the_models(fake, photo_path):
    assert run(fake, "caption", photo_path) == 0
    assert run(fake, "caption", "--min-length", "3", photo_path) == 0
    assert fake.options == [fake.default_options, replace(fake.default_options, min_length=3)]


def test_every_option_arrives(fake, photo_path):
    search = "--beams 5 --alternatives 4 --max-length 9 --min-length 2 --length-penalty 0.5 --early-stopping"
    rules = "--repetition-penalty 1.5 --no-repeat-ngram 3 --bad-word dog --bad-word cat --attention"
    rules += " --min-confidence 0.3 --hedge"
    texts = ("--prompt", "a photo of", "--instruction", "What is this?", "--stop", ".", "--detail", "full")
    assert run(fake, "caption", *search.split(), *rules.split(), *texts, photo_path) == 0
    draw = "--sample --temperature 0.7 --top-k 9 --top-p 0.8 --seed 1"
    assert run(fake, "caption", *draw.split(), photo_path) == 0
    assert run(fake, "caption", "--json-schema", "{}", photo_path) == 0
    searched, drawn, in_json = fake.options
    assert in_json == replace(fake.default_options, json_schema="{}")
    assert searched == SearchOptions(
        num_beams=5,
        alternatives=4,
        max_length=9,
        min_length=2,
        length_penalty=0.5,
        early_stopping=True,
        repetition_penalty=1.5,
        no_repeat_ngram_size=3,
        bad_words=("dog", "cat"),
        attention=True,
        min_confidence=0.3,
        hedge=True,
        prompt="a photo of",
        instruction="What is this?",
        stop=(".",),
        detail="full",
    )
    draw_options = {"do_sample": True, "temperature": 0.7, "top_k": 9, "top_p": 0.8, "seed": 1}
    assert drawn == replace(fake.default_options, **draw_options)
    changed = {
        field.name
        for field in fields(searched)
        for options in fake.options
        if getattr(options, field.name) != field.default
    }
    assert changed == {field.name for field in fields(searched)}, "an option that this test forgot"


def test_the_model_is_loaded_as_asked(fake, photo_path):
    load = Loads(fake)
    assert main(["caption", str(photo_path)], load=load) == 0
    argv = ["caption", "--model", "m", "--device", "cpu", "--dtype", "float16", str(photo_path)]
    assert main(argv, load=load) == 0
    assert load.asked == [("default", "auto", "auto"), ("m", "cpu", "float16")]


@pytest.mark.parametrize(
    "argv",
    [
        ["caption"],
        ["caption", "--beams", "three", "a.jpg"],
        ["caption", "--batch-size", "0", "a.jpg"],
        ["caption", "--heatmap", "map.gif", "a.jpg"],
        ["caption", "--heatmap", "no/such/folder/map.png", "a.jpg"],
        ["caption", "--no-such-option", "a.jpg"],
        ["no-such-command"],
    ],
)
def test_wrong_usage_is_refused_before_a_model_is_loaded(argv: Sequence[str], fake, capsys):
    load = Loads(fake)
    assert main(argv, load=load) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err
    assert load.asked == []


def test_options_out_of_range_are_wrong_usage(fake, photo_path, capsys):
    assert run(fake, "caption", "--beams", "0", photo_path) == 2
    assert capsys.readouterr().err.startswith("captioner: --beams ")


def test_errors_name_options_as_the_command_line_does(fake, photo_path, capsys):
    for argv, said in (
        (["--temperature", "0.5"], "temperature 0.5 has no effect without --sample: set --sample or leave"),
        (["--min-length", "9", "--max-length", "3"], "--min-length 9 is more than --max-length 3"),
        (["--no-repeat-ngram", "-1"], "--no-repeat-ngram must be"),
        (["--bad-word", ""], "--bad-word must be"),
    ):
        assert run(fake, "caption", *argv, photo_path) == 2
        assert capsys.readouterr().err.startswith(f"captioner: {said}")


def test_an_error_of_the_library_is_one_line(photo_path, capsys):
    def refuse(name_or_path: str, /, *, device: str, dtype: str) -> Any:
        raise CheckpointError(f"there is no model {name_or_path!r}")

    assert main(["caption", "--model", "x", str(photo_path)], load=refuse) == 1
    assert capsys.readouterr().err == "captioner: there is no model 'x'\n"


def test_an_error_of_the_system_names_the_file(photo_path, capsys):
    def fail(name_or_path: str, /, *, device: str, dtype: str) -> Any:
        raise PermissionError(13, "Permission denied", "tab\there")

    assert main(["caption", str(photo_path)], load=fail) == 1
    assert capsys.readouterr().err == "captioner: tab\\there: Permission denied\n"


def test_heatmaps_are_written(fake, folder, capsys):
    files = {folder / "map.png": b"\x89PNG", folder / "map.html": b"<!doctype html>"}
    flags = [flag for file in files for flag in ("--heatmap", file)]
    assert run(fake, "caption", *flags, folder / "ball.jpg", folder / "empty.jpg") == 1
    said = capsys.readouterr().err
    for file, magic in files.items():
        assert file.read_bytes().startswith(magic)
        assert str(file) in said
    assert fake.options[0].attention


def test_no_heatmap_of_nothing(fake, folder):
    assert run(fake, "caption", "--heatmap", folder / "map.png", folder / "empty.jpg") == 1
    assert not (folder / "map.png").exists()


def test_heatmap_that_cannot_be_written_is_one_line(fake, photo_path, tmp_path, capsys):
    (tmp_path / "map.png").mkdir()
    assert run(fake, "caption", "--heatmap", tmp_path / "map.png", photo_path) == 1
    assert capsys.readouterr().err.startswith("captioner: ")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux takes any bytes as a file name")
def test_any_file_name_stays_on_its_line(fake, photo_path, capsys):
    name = os.fsdecode(os.fsencode(photo_path.parent) + b"/a\tb\nc\xff\x1b.jpg")
    photo_path.rename(name)
    assert run(fake, "caption", name) == 0
    assert run(fake, "caption", name, "--json") == 0
    assert run(fake, "caption", f"{name}.missing") == 1
    captured = capsys.readouterr()
    line, record = captured.out.splitlines()
    assert line.split("\t") == [rf"{photo_path.parent}/a\tb\nc\udcff\x1b.jpg", "a photo 120 wide and 80 high"]
    assert json.loads(record)["file"] == name
    assert len(captured.err.splitlines()) == 1


@pytest.mark.filterwarnings("ignore:::PIL")
def test_malformed_files_by_the_hundred(tmp_path):
    """In a process of its own, since the C libraries write past Python's stderr."""
    generator, paths = random.Random(3), []
    files = list(encode_all(draw_noise(24, 16)).items())
    while len(paths) < 400:
        kind, whole = generator.choice(files)
        data = generator.choice(
            [damage(whole, generator), whole[: generator.randrange(200)], generator.randbytes(99)]
        )
        if not is_photo(data):
            paths.append(tmp_path / f"{len(paths)} {kind}.jpg")
            paths[-1].write_bytes(data)
    done = subprocess.run(script("['caption', *sys.argv[1:]]", *paths), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert [line.split(": ")[:2] for line in done.stderr.splitlines()] == [
        ["captioner", str(path)] for path in paths
    ]


def test_ctrl_c_ends_quietly(photo_path, capsys):
    class Interrupted(FakeCaptioner):
        def caption_prepared(self, images: Sequence[Photo], options: SearchOptions) -> list[Caption]:
            raise KeyboardInterrupt

    assert run(Interrupted(), "caption", photo_path) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_reader_that_goes_away_ends_quietly(photo_path):
    command = script("['caption', *sys.argv[1:] * 3000]", photo_path)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(str(photo_path))
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert process.returncode != 0


def test_the_package_can_be_run_as_a_program(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["captioner", "--version"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("captioner", run_name="__main__")
    assert (end.value.code, capsys.readouterr().out) == (0, f"captioner {version('captioner')}\n")


def test_help_and_version_need_no_torch():
    script = (
        "import sys; from captioner.cli import main\n"
        "codes = [main(['--help']), main(['caption', '--help']), main(['--version'])]\n"
        "print(codes, sorted({'PIL', 'numpy', 'torch', 'transformers'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == [f"captioner {version('captioner')}", "[0, 0, 0] []"]


def test_a_model_of_ours_gives_everything(tmp_path, capsys):
    save_checkpoint(tiny_checkpoint(), tmp_path / "tiny")
    assert main(["models", str(tmp_path / "tiny")]) == 0
    head, *gives = capsys.readouterr().out.splitlines()
    assert head == "tiny\ta tiny model for tests"
    *able, stops, asked, detail, schema = gives
    assert stops.startswith("stops\tno\t")
    assert able == [f"{name}\tyes" for name in ("attention", "streaming", "seeds", "beams")]
    assert asked.startswith("instructions\tno\tit was trained to caption photos")
    assert detail.startswith("details\tno\tit was not trained for")
    assert schema == "schemas\tno\tit writes a plain sentence"


def test_models_are_those_of_the_library(capsys):
    assert main(["models"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    expected = [[model.name, str(model.path), model.description] for model in list_models()]
    assert [[name, path, description] for name, _, path, description in lines] == expected


def test_a_real_model_end_to_end(photo_path, tmp_path, capsys):
    save_checkpoint(tiny_checkpoint(), tmp_path / "tiny")
    argv = ["caption", "--model", str(tmp_path / "tiny"), "--device", "cpu", "--json", "--attention"]
    assert main([*argv, "--alternatives", "1", "--heatmap", str(tmp_path / "map.png"), str(photo_path)]) == 0
    model = load(tmp_path / "tiny", device="cpu")
    options = replace(model.default_options, alternatives=1, attention=True)
    [expected] = model.caption([photo_path], options)
    assert json.loads(capsys.readouterr().out) == expected.to_dict()
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


def test_captions_that_are_not_sure_are_marked_or_shortened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    save_checkpoint(tiny_checkpoint(), tmp_path / "tiny", dtype=torch.float32)
    draw_scene().save(tmp_path / "a.png")
    command = ["caption", str(tmp_path / "a.png"), "--model", str(tmp_path / "tiny"), "--device", "cpu"]
    assert main([*command, "--min-confidence", "1"]) == 0
    path, caption, mark = capsys.readouterr().out.removesuffix("\n").split("\t")
    assert (path, mark) == (str(tmp_path / "a.png"), "not sure")
    assert main([*command, "--json", "--hedge", "--min-confidence", "0.0001"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["caption"] == caption
    assert "uncertain" not in data
    assert main([*command, "--min-confidence", "2"]) == 2
    assert "--min-confidence must be a number from 0 to 1" in capsys.readouterr().err
