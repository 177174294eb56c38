"""A checkpoint directory: what goes in comes out, and every kind of damage is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_checkpoint
from torch import Tensor

from captioner.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from captioner.errors import CheckpointError

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_checkpoint(tiny_checkpoint(), tmp_path / "tiny", dtype=torch.float32)
    return tmp_path / "tiny"


def load(folder: Path) -> Checkpoint:
    return load_checkpoint(folder, device=CPU, dtype=torch.float32)


def test_what_was_saved_is_loaded(folder: Path):
    saved, loaded = tiny_checkpoint(), load(folder)
    assert loaded.model.config == saved.model.config
    expected, found = saved.model.state_dict(), loaded.model.state_dict()
    assert expected.keys() == found.keys()
    assert all(found[name].equal(tensor) for name, tensor in expected.items())
    assert loaded.processor == saved.processor
    assert loaded.tokenizer.config == saved.tokenizer.config
    assert loaded.tokenizer.encode("a brown dog") == saved.tokenizer.encode("a brown dog")
    assert loaded.description == "a tiny model for tests"
    assert loaded.generation == {"num_beams": 2, "max_length": 12}
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("wanted", [torch.float32, torch.float16, torch.bfloat16])
def test_number_types_on_disk_and_in_memory_are_chosen_apart(
    stored: torch.dtype, wanted: torch.dtype, tmp_path: Path
):
    checkpoint = tiny_checkpoint()
    save_checkpoint(checkpoint, tmp_path, dtype=stored)
    on_disk = load_file(tmp_path / "model.safetensors")
    loaded = load_checkpoint(tmp_path, device=CPU, dtype=wanted).model.state_dict()
    for name, tensor in checkpoint.model.state_dict().items():
        if tensor.is_floating_point():
            assert on_disk[name].dtype == stored
            assert loaded[name].equal(tensor.to(stored).to(wanted))
        else:
            assert loaded[name].equal(tensor), "ids are no weights"


def test_nothing_but_the_three_files_is_left(folder: Path):
    save_checkpoint(tiny_checkpoint(seed=1), folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert load(folder).model.decoder.word_embedding.weight[0, 0] != 0


def test_who_may_read_one_file_may_read_all(folder: Path):
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1


def test_a_save_that_fails_leaves_the_old_checkpoint(folder: Path):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "model.safetensors.partial").mkdir()  # so that writing the new weights fails
    with pytest.raises(Exception, match="directory"):
        save_checkpoint(tiny_checkpoint(), folder, dtype=torch.float32)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_a_text_in_another_script_survives(folder: Path):
    text = (folder / "config.json").read_text().replace("a tiny model for tests", "ein Modell für 写真")
    (folder / "config.json").write_bytes(text.encode())
    assert load(folder).description == "ein Modell für 写真"


def drop_file(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def cut_file(name: str, size: int) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:size])

    return cut


def set_config(*keys: str, value: Any) -> Callable[[Path], None]:
    """Change a value deep in ``config.json``; ``...`` drops it."""

    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        place = config
        for key in keys[:-1]:
            place = place[key]
        if value is ...:
            del place[keys[-1]]
        else:
            place[keys[-1]] = value
        (folder / "config.json").write_text(json.dumps(config))

    return change


def set_tensor(name: str, change: Callable[[Tensor | None], Tensor | None]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        tensor = change(tensors.pop(name, None))
        if tensor is not None:
            tensors[name] = tensor
        save_file(tensors, folder / "model.safetensors")

    return rewrite


WEIGHT = "decoder.blocks.0.mlp.fc1.weight"
DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "no config": (drop_file("config.json"), r"config\.json missing"),
    "no weights": (drop_file("model.safetensors"), r"model\.safetensors missing"),
    "no tokenizer": (drop_file("tokenizer.json"), r"tokenizer\.json missing"),
    "cut config": (cut_file("config.json", 40), r"config\.json is damaged"),
    "empty config": (cut_file("config.json", 0), r"config\.json is damaged"),
    "binary config": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe{}"), r"config\.json is damaged"),
    "a list for a config": (lambda f: (f / "config.json").write_text("[1]"), r"config\.json is damaged"),
    "no format": (set_config("format", value=...), r"config\.json is damaged"),
    "a later format": (set_config("format", value=2), "format 2; this version reads format 1"),
    "cut weights": (cut_file("model.safetensors", 5000), r"model\.safetensors is damaged"),
    "empty weights": (cut_file("model.safetensors", 0), r"model\.safetensors is damaged"),
    "cut tokenizer": (cut_file("tokenizer.json", 100), r"tokenizer\.json is damaged"),
    "no backbone": (set_config("model", "backbone", value=...), "does not describe a model"),
    "an unknown backbone": (set_config("model", "backbone", "kind", value="swin"), "'swin'"),
    "an unknown key": (set_config("model", "decoder", "colour", value=1), "colour"),
    "a text for a number": (set_config("model", "decoder", "width", value="wide"), "does not describe"),
    "a negative number": (set_config("model", "decoder", "width", value=-16), "does not describe"),
    "a list for a mapping": (set_config("tokenizer", value=[1]), "does not describe"),
    "heads that do not divide": (set_config("model", "decoder", "heads", value=3), "3 heads do not divide"),
    "region heads that do not divide": (
        set_config("model", "regions", "heads", value=3),
        "3 heads do not divide",
    ),
    "an unknown norm": (set_config("model", "decoder", "norm", value="sandwich"), "sandwich"),
    "another width": (set_config("model", "decoder", "mlp_width", value=31), r"\(32, 16\), not \(31, 16\)"),
    "more layers": (set_config("model", "decoder", "layers", value=3), r"blocks\.2\..* is missing.*\d+ more"),
    "fewer layers": (set_config("model", "decoder", "layers", value=1), r"blocks\.1\..* is unknown"),
    "no image processor": (set_config("image", value=None), "does not describe"),
    "an impossible image": (set_config("image", "std", value=[0, 1, 1]), "std"),
    "another image size": (set_config("image", "size", value=96), "96 pixels for a backbone that takes 64"),
    "no start": (set_config("tokenizer", "start_ids", value=[]), "token ids"),
    "an end beyond the vocabulary": (set_config("tokenizer", "eos_id", value=5000), "token ids"),
    "a word less": (set_tensor("decoder.word_embedding.weight", lambda t: t[:-1]), "embedding.* shape"),
    "a missing tensor": (set_tensor(WEIGHT, lambda _: None), f"{WEIGHT} is missing"),
    "an unknown tensor": (set_tensor("extra", lambda _: torch.ones(1)), "extra is unknown"),
    "a transposed tensor": (set_tensor(WEIGHT, lambda t: t.T.contiguous()), r"\(16, 32\), not \(32, 16\)"),
    "whole numbers for weights": (set_tensor(WEIGHT, lambda t: t.int()), r"holds torch\.int32, not torch\.f"),
    "fractions for ids": (
        set_tensor("regions.tags.head_words", lambda t: t.to(torch.float32)),
        r"holds torch\.float32, not torch\.int64",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named(damage: str, folder: Path):
    harm, reason = DAMAGE[damage]
    harm(folder)
    with pytest.raises(CheckpointError, match=reason) as error:
        load(folder)
    assert str(folder) in str(error.value)


def test_a_tokenizer_with_more_words_than_the_model_is_refused(folder: Path):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["zebra"] = len(vocabulary)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(
        CheckpointError, match=rf"{len(vocabulary)} tokens, the model only {len(vocabulary) - 1}"
    ):
        load(folder)


def test_a_directory_without_a_checkpoint_says_what_to_give(tmp_path: Path):
    with pytest.raises(CheckpointError, match="`captioner train`"):
        load(tmp_path)
