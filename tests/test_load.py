"""Finding a model by name or path, and the device and number type it runs in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from images import draw_noise
from tiny import tiny_captioner, tiny_checkpoint

import captioner
from captioner import CheckpointError, DeviceError, NamedModel, OptionsError, list_models, named_models
from captioner.checkpoint import save_checkpoint
from captioner.load import resolve_device, resolve_dtype


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of two models, a damaged one and other things, as $CAPTIONER_WEIGHTS."""
    folder = tmp_path / "weights"
    save_checkpoint(tiny_checkpoint(seed=0), folder / "one", dtype=torch.float32)
    save_checkpoint(tiny_checkpoint(seed=1), folder / "two")
    save_checkpoint(tiny_checkpoint(), folder / "broken")
    (folder / "broken" / "model.safetensors").unlink()
    (folder / "README.md").touch()
    monkeypatch.setenv("CAPTIONER_WEIGHTS", str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


def test_models_are_listed_with_what_is_known_of_them(weights: Path):
    models = {model.name: model for model in list_models()}
    assert {"one", "two"} <= models.keys()
    assert "broken" not in models
    one = models["one"]
    assert one.path == weights / "one"
    assert one.description == "a tiny model for tests"
    assert one.megabytes == pytest.approx((weights / "one" / "model.safetensors").stat().st_size / 1e6)
    assert one.megabytes > 1.5 * models["two"].megabytes, "float32 and float16"


def test_a_model_is_loaded_by_name_or_path(weights: Path):
    photos = [draw_noise(50, 40, seed=seed) for seed in range(3)]
    expected = [caption.words for caption in tiny_captioner(seed=0).caption(photos)]
    for given in (
        "one",
        weights / "one",
        str(weights / "one"),
        Path("weights/one"),
        "weights/../weights/one",
    ):
        model = captioner.load(given, device="cpu")
        assert model.name == "one"
        assert model.description == "a tiny model for tests"
        assert [caption.words for caption in model.caption(photos)] == expected
    assert captioner.load("two", device="cpu").caption(photos)[0].words != expected[0]


def test_a_first_caption_imports_nothing_that_it_does_not_need(weights: Path, photo_path: Path):
    program = (
        "import sys, captioner; before = 'torch' in sys.modules\n"
        "[caption] = captioner.load('one', device='cpu').caption([sys.argv[1]])\n"
        "slow = {'httpx', 'scipy', 'sympy', 'timm', 'torch._dynamo', 'torchvision', 'transformers'}\n"
        "print(before, len(caption.words) > 0, slow & sys.modules.keys())"
    )
    command = [sys.executable, "-c", program, str(photo_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "False True set()\n"


def test_a_folder_of_the_same_name_does_not_hide_a_model(weights: Path):
    Path("one").mkdir()
    assert captioner.load("one", device="cpu").name == "one"
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        captioner.load("./one", device="cpu")


@pytest.mark.parametrize("name", ["three", "weights/three", "./three", "/nowhere/three", "../three", ""])
def test_an_unknown_name_says_what_there_is_and_asks_no_network(name: str, weights: Path):
    with pytest.raises(CheckpointError) as error:
        captioner.load(name, device="cpu")
    message = str(error.value)
    assert "is not a checkpoint" in message or "hub gives" not in message
    assert name == "" or ("one, two" in message and repr(name) in message)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_number_type_captions_with_maps_and_alternatives(dtype: str, weights: Path):
    model = captioner.load("two", device="cpu", dtype=dtype)
    assert str(model.dtype) == f"torch.{dtype}"
    photos = [draw_noise(50, 40, seed=seed) for seed in range(3)]
    options = captioner.GenerationOptions(num_beams=3, alternatives=2, max_length=8, attention=True)
    for caption in model.caption(photos, options):
        assert caption.caption
        assert caption.logprob < 0
        assert len(caption.alternatives) == 2
        for word in caption.words:
            assert word.attention is not None
            assert sum(map(sum, word.attention)) == pytest.approx(1, abs=1e-3)


def test_a_model_tells_its_device_type_and_size(weights: Path):
    model = captioner.load("one", device="cpu")
    assert (model.device, model.dtype) == (torch.device("cpu"), torch.float32)
    assert model.parameters == sum(parameter.numel() for parameter in tiny_checkpoint().model.parameters())


def test_devices():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type in ("cpu", "cuda", "mps")
    for nonsense in ("toaster", "cpu:x", ""):
        with pytest.raises(DeviceError, match="use auto, cpu, cuda, cuda:N or mps"):
            resolve_device(nonsense)
    with pytest.raises(DeviceError, match="no meta"):
        resolve_device("meta")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(weights: Path):
    for device in ("cuda", "cuda:1"):
        with pytest.raises(DeviceError, match="no cuda: use --device cpu or auto"):
            captioner.load("one", device=device)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_captions_as_the_cpu_does(weights: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.backends.cudnn.allow_tf32", False)  # whose 10 bits random weights magnify
    photos = [draw_noise(50, 40, seed=seed) for seed in range(8)]
    on_cpu, on_gpu = (captioner.load("one", device=d, dtype="float32") for d in ("cpu", "cuda"))
    assert on_gpu.device.type == "cuda"
    assert [c.caption for c in on_gpu.caption(photos)] == [c.caption for c in on_cpu.caption(photos)]
    with pytest.raises(DeviceError, match="CUDA devices"):
        resolve_device("cuda:99")


def test_number_types():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert resolve_dtype("auto", cpu) == torch.float32
    assert resolve_dtype("auto", gpu) == torch.float16
    assert resolve_dtype("bfloat16", gpu) == torch.bfloat16
    assert resolve_dtype("auto", gpu, vision_language=True) == torch.bfloat16
    assert resolve_dtype("int4", cpu, vision_language=True) == torch.float32
    with pytest.raises(DeviceError, match="int4 is for vision-language models"):
        resolve_dtype("int4", cpu)
    with pytest.raises(DeviceError, match="use auto, float32, float16, bfloat16"):
        resolve_dtype("int8", cpu)


def test_defaults_of_generation_that_do_not_fit_are_an_error_of_the_checkpoint(weights: Path):
    checkpoint = tiny_checkpoint()
    for bad in ({"num_beams": 0}, {"beams": 3}, {"bad_words": "dog"}):
        checkpoint.generation.clear()
        checkpoint.generation.update(bad)
        save_checkpoint(checkpoint, weights / "odd")
        with pytest.raises(CheckpointError, match="generation defaults of odd do not fit"):
            captioner.load("odd", device="cpu")
    checkpoint.generation.clear()
    checkpoint.generation["bad_words"] = ("dog",)
    save_checkpoint(checkpoint, weights / "odd")
    assert captioner.load("odd", device="cpu").default_options.bad_words == ("dog",)


def test_several_models_have_names(weights: Path, monkeypatch: pytest.MonkeyPatch):
    places = [
        "one",
        "my=two",
        f"{weights / 'two'}",
        "blip=Salesforce/blip-image-captioning-large@main",
        "microsoft/git-base",
        "http://gpu:8000/v1#org/vlm",
        "far=ollama://gpu#llava:7b",
        "https://api.example.org/v1#a=b",
    ]
    assert [(model.name, model.place, model.sends_photos_to) for model in named_models(places)] == [
        ("one", "one", None),
        ("my", "two", None),
        ("two", f"{weights / 'two'}", None),
        ("blip", "Salesforce/blip-image-captioning-large@main", None),
        ("microsoft/git-base", "microsoft/git-base", None),
        ("org/vlm", "http://gpu:8000/v1#org/vlm", "gpu:8000"),
        ("far", "ollama://gpu#llava:7b", "gpu:11434"),
        ("a=b", "https://api.example.org/v1#a=b", "api.example.org"),
    ]
    assert named_models(["one"]) == (NamedModel(name="one", place="one"),)
    assert captioner.load("one").name == "one"
    with pytest.raises(OptionsError, match="two models are called 'two'"):
        named_models(["two", str(weights / "two")])
    for wrong in ("three", "x=three", f"{weights}/three", "http://gpu/v1", "a=http://#x"):
        with pytest.raises(CheckpointError):
            named_models([wrong])
