"""Answers in JSON of models that `transformers` searches."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import vlm
from images import draw_noise

import captioner
from captioner import Captioner, GenerationOptions, OptionsError
from captioner.cli import main
from captioner.runners.json_answers import no_schemas

PHOTOS = [draw_noise(60 + 9 * seed, 40, seed=seed) for seed in range(3)]
KINDS = ["cat", "dog", "a bird — 鳥"]
SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": KINDS},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "sure": {"type": "boolean"},
        "words": {"type": "array", "items": {"type": "string", "maxLength": 3}, "maxItems": 2},
    },
    "required": ["kind", "count", "sure", "words"],
    "additionalProperties": False,
}
SEARCHES: dict[str, dict[str, Any]] = {
    "greedy": {"num_beams": 1},
    "beams": {"num_beams": 3, "alternatives": 1},
    "samples": {"do_sample": True, "alternatives": 2, "seed": 1, "temperature": 3.0},
}


@pytest.fixture(scope="module", params=["qwen2_5_vl", "paligemma", "blip_2"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Captioner:
    """Byte-pair vocabularies of both kinds, of bytes and of characters with bytes to fall back to."""
    return load(tmp_path_factory.mktemp("vlm") / request.param)


def load(folder: Path) -> Captioner:
    vlm.FAMILIES[folder.name](folder)
    return captioner.load(folder, device="cpu")


def asked(schema: Any = SCHEMA, **options: Any) -> GenerationOptions:
    return GenerationOptions(**{"max_length": 120, "json_schema": json.dumps(schema), **options})


def check(text: str) -> None:
    found = json.loads(text)
    assert found.keys() == SCHEMA["properties"].keys()
    assert found["kind"] in KINDS
    assert 0 <= found["count"] <= 99
    assert isinstance(found["sure"], bool)
    assert len(found["words"]) <= 2
    assert all(len(word) <= 3 for word in found["words"])


@pytest.mark.parametrize("search", SEARCHES)
def test_every_answer_is_of_the_schema(model: Captioner, search: str):
    options = asked(**SEARCHES[search])
    together = model.caption(PHOTOS, options)
    for photo, caption in zip(PHOTOS, together, strict=True):
        assert len(caption.alternatives) == options.alternatives or search == "greedy"
        for each in (caption, *caption.alternatives):
            check(each.caption)
            assert each.logprob is not None
            assert each.logprob < 0, "the model's own, and not that of what was left to choose from"
        assert caption.finished
        assert caption.words == ()
        (alone,) = model.caption([photo], options)
        assert [each.caption for each in (alone, *alone.alternatives)] == [
            each.caption for each in (caption, *caption.alternatives)
        ]


@pytest.mark.parametrize("search", ["greedy", "beams"])
def test_a_stream_adds_up_to_the_answer(model: Captioner, search: str):
    options = asked(**SEARCHES[search])
    (whole,) = model.caption(PHOTOS[:1], options)
    events = list(model.stream(PHOTOS[0], options))
    assert "".join(event.text for event in events) == whole.caption
    assert len(events) > 3 or search == "beams"


def test_a_beam_search_finds_all_that_a_small_schema_allows(model: Captioner):
    options = asked({"enum": [7, "seven", None, [7]]}, num_beams=8, alternatives=7)
    (caption,) = model.caption(PHOTOS[:1], options)
    found = {each.caption for each in (caption, *caption.alternatives)}
    assert found == {"7", '"seven"', "null", "[7]"}


def test_what_the_length_cuts_off_is_not_finished(model: Captioner):
    (caption,) = model.caption(PHOTOS[:1], asked(max_length=5))
    assert not caption.finished
    assert '{"kind": "'.startswith(caption.caption)


def test_stop_texts_and_maps_do_no_harm(model: Captioner):
    (caption,) = model.caption(PHOTOS[:1], asked(attention=True, stop=(', "count"',)))
    assert json.loads(caption.caption + "}")["kind"] in KINDS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (asked({"type": "foo"}), "json_schema cannot be followed: Invalid type: foo"),
        (asked({"not": {"type": "string"}}), 'cannot be followed: Unimplemented keys: ["not"]'),
        (asked({"$ref": "https://example.org/schema"}), "cannot be followed: "),
        (asked({"type": "string", "enum": []}), "Unsatisfiable"),
        (asked({"maximum": float("nan")}), "json_schema is not JSON"),
        (asked({"enum": ["x" * 40_000]}), "32000 characters at most"),
        (asked(prompt="a"), "takes no prompt"),
        (asked(bad_words=("a",), min_length=3), "takes no bad_words or min_length"),
        (asked(no_repeat_ngram_size=2), "takes no no_repeat_ngram_size"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_followed_is_refused_with_the_call(
    model: Captioner, options: GenerationOptions, message: str
):
    photo = model.prepare(PHOTOS[0])
    for call in (
        lambda: model.check_options(options),
        lambda: model.caption_prepared([photo], options),
        lambda: model.stream_prepared(photo, options),
    ):
        with pytest.raises(OptionsError) as refusal:
            call()
        assert message in str(refusal.value)


def test_a_schema_that_is_deep_or_wide_ends_nothing(model: Captioner):
    deep: Any = {"type": "string"}
    for _ in range(300):
        deep = {"type": "object", "properties": {"a": deep}, "required": ["a"]}
    with pytest.raises(OptionsError, match="recursion limit"):
        model.check_options(asked(deep))
    wide = {"enum": [f"{number}" for number in range(3000)]}
    (caption,) = model.caption(PHOTOS[:1], asked(wide))
    assert json.loads(caption.caption) in wide["enum"]


def test_other_requests_of_other_schemas_do_not_disturb(model: Captioner):
    """Searches share the tokenizer of the model, and nothing else."""
    first = list(model.stream(PHOTOS[0], asked()))
    steps = model.stream(PHOTOS[0], asked())
    events = [next(steps)]
    for event in steps:
        events.append(event)
        model.caption(PHOTOS[1:2], asked({"enum": ["other"]}))
    assert events == first


def test_the_package_that_is_missing_is_named():
    assert no_schemas() is None
    reason = no_schemas(needs="no_such_package")
    assert reason == "no_such_package is not installed: pip install 'captioner[json]'"


def test_the_command_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    load(tmp_path / "qwen2_5_vl")
    PHOTOS[0].save(tmp_path / "a.png")
    argv = ["caption", str(tmp_path / "a.png"), "--model", str(tmp_path / "qwen2_5_vl")]
    assert main([*argv, "--json-schema", json.dumps(SCHEMA), "--max-length", "120"]) == 0
    check(capsys.readouterr().out.rstrip("\n").partition("\t")[2])
    assert main([*argv, "--json-schema", '{"type": "foo"}']) == 2
    assert "--json-schema cannot be followed: Invalid type" in capsys.readouterr().err
    assert main(["models", str(tmp_path / "qwen2_5_vl")]) == 0
    assert "schemas\tyes" in capsys.readouterr().out


def test_weights_of_half_precision_do_not_let_anything_else_through(tmp_path: Path):
    model = load(tmp_path / "qwen2_5_vl")
    model.to(torch.device("cpu"), torch.bfloat16)
    for caption in model.caption(PHOTOS, replace(asked(), num_beams=2)):
        check(caption.caption)
