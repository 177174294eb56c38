"""What a record was made with, and how it is told that it is another thing now."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from captioner import SearchOptions
from captioner.batch.origin import made_with, what_changed
from captioner.hub import Hub


def changes(before: dict[str, Any], now: dict[str, Any]) -> str:
    return what_changed(json.dumps(before), json.dumps(now))


def test_only_options_that_are_not_usual_are_told():
    options = SearchOptions(num_beams=5, bad_words=("dog", "cat"))
    assert made_with("owner/name", SearchOptions()) == {}
    assert made_with("owner/name", options) == {"num_beams": 5, "bad_words": ["dog", "cat"]}


def test_every_option_that_decides_on_a_caption_counts():
    others: dict[str, Any] = {
        "bad_words": ("dog",),
        "stop": ("cat",),
        "seed": 1,
        "top_p": 0.5,
        "detail": "full",
        "json_schema": '{"type": "object"}',
    }
    for field in fields(SearchOptions):
        value: Any = others.get(field.name, field.default)
        if value == field.default:
            value = {bool: lambda old: not old, str: lambda _: "see"}.get(type(value), lambda old: old + 1)(
                value
            )
        given = {"do_sample": True, "num_beams": 9} | {field.name: value}
        options = SearchOptions(**given)
        assert made_with("none", options)[field.name] == json.loads(json.dumps(value))
        assert changes({}, made_with("none", options)).count(field.name) == 1


def test_weights_are_known_by_what_they_are(tmp_path: Path):
    def save(name: str, weights: bytes) -> str:
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(weights)
        (tmp_path / name / "README.md").write_text(name)
        return str(made_with(str(tmp_path / name), SearchOptions())["weights"])

    first = save("a", b"1")
    assert [len(first), save("b", b"1") == first] == [16, True]
    assert save("a", b"2") != first
    assert made_with(str(tmp_path), SearchOptions()) == {}


def test_a_model_of_the_hub_is_known_by_its_commit():
    shelf = Hub().shelf("owner/downloaded")
    commit = "0123456789abcdef" * 2 + "01234567"
    directory = shelf.folder / "snapshots" / commit
    directory.mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    with shelf.lock():
        shelf.write("main", commit, "safetensors", directory, ["config.json"])
    assert made_with("owner/downloaded", SearchOptions()) == {"weights": "0123456789abcdef"}
    (directory / "config.json").unlink()
    assert made_with("owner/downloaded", SearchOptions()) == {}


@pytest.mark.parametrize(
    ("before", "now", "change"),
    [
        ({"model": "a"}, {"model": "b"}, "model a, now b"),
        ({"model": "a", "weights": "1"}, {"model": "b"}, "model a, now b"),
        ({"model": "a", "weights": "1"}, {"model": "b", "weights": "1"}, ""),
        ({"model": "a", "weights": "1"}, {"model": "a", "weights": "2"}, "other weights"),
        ({"attention": True, "alternatives": 2}, {"alternatives": 1}, ""),  # more than is asked for
        ({}, {"attention": True}, "attention false, now true"),
        ({"an option of tomorrow": 1}, {}, ""),
    ],
)
def test_what_counts_as_a_change(before: dict[str, Any], now: dict[str, Any], change: str):
    assert changes(before, now) == change
