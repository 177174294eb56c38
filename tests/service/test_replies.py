"""Answers in JSON, as clients of OpenAI and Ollama ask for them: filled, passed on, or refused."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx
import ollama
import openai
import pytest
import vlm
from model_servers import ModelServer, describe, in_form, model_server
from problems import check_problem
from pydantic import BaseModel, ConfigDict, Field
from tiny import tiny_captioner, tiny_checkpoint

from captioner import Caption, Captioner, StreamEvent, load
from captioner.runners import Address, CheckpointRunner
from captioner.runners.remote import RemoteRunner


class Alt(BaseModel):
    """What a program wants that shows photos."""

    alt_text: str


class Count(BaseModel):
    """What a program wants that counts."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["cat", "dog"]
    count: Annotated[int, Field(ge=0, le=99)]


LABELS: dict[str, Any] = {
    "type": "object",
    "properties": {"labels": {"type": "array", "items": {"type": "string"}}},
    "required": ["labels"],
    "additionalProperties": False,
}
LOOSE = {"type": "object", "properties": {"labels": {"type": "string"}}}


def chat_of(photo: bytes) -> list[Any]:
    url = f"data:image/jpeg;base64,{base64.b64encode(photo).decode()}"
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]


def input_of(photo: bytes) -> list[Any]:
    url = f"data:image/jpeg;base64,{base64.b64encode(photo).decode()}"
    return [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]


class Ending(Captioner):
    """Ends its captions itself, which the tiny model never does."""

    def __init__(self) -> None:
        super().__init__(CheckpointRunner(tiny_checkpoint()), name="tiny")

    def caption_prepared(self, *given: Any, **options: Any) -> list[Caption]:
        return [replace(caption, finished=True) for caption in super().caption_prepared(*given, **options)]

    def stream_prepared(self, *given: Any, **options: Any) -> Iterator[StreamEvent]:
        for event in super().stream_prepared(*given, **options):
            yield replace(event, caption=event.caption and replace(event.caption, finished=True))


@pytest.fixture
def found(client: httpx.Client) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="any", max_retries=0) as found:
        yield found


@pytest.fixture
def ending(serve) -> Iterator[httpx.Client]:
    with serve(Ending()) as client:
        yield client


def test_a_caption_fills_the_one_text_of_a_schema(ending: httpx.Client, photo: bytes):
    caption, client = tiny_captioner().caption([photo])[0].caption, ending
    found = openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="any", max_retries=0)
    answer = found.chat.completions.parse(model="tiny", messages=chat_of(photo), response_format=Alt)
    assert answer.choices[0].message.parsed == Alt(alt_text=caption)
    with found.chat.completions.stream(model="tiny", messages=chat_of(photo), response_format=Alt) as stream:
        texts = [event.delta for event in stream if event.type == "content.delta"]
    assert json.loads("".join(texts)) == {"alt_text": caption}
    assert len(texts) > 4
    response = found.responses.parse(model="tiny", input=input_of(photo), text_format=Alt)
    assert response.output_parsed == Alt(alt_text=caption)
    with found.responses.stream(model="tiny", input=input_of(photo), text_format=Alt) as events:
        assert events.get_final_response().output_parsed == Alt(alt_text=caption)
    tool, schema = ollama.Client(host=str(client.base_url), trust_env=False), Alt.model_json_schema()
    text = tool.generate("tiny", images=[photo], format=schema).response
    assert Alt.model_validate_json(text) == Alt(alt_text=caption)
    pieces = tool.chat("tiny", [{"role": "user", "images": [photo]}], format=schema, stream=True)
    assert json.loads("".join(piece.message.content or "" for piece in pieces)) == {"alt_text": caption}


def test_a_caption_that_is_cut_is_whole_json(found: openai.OpenAI, photo: bytes):
    answer = found.chat.completions.create(
        model="tiny",
        messages=chat_of(photo),
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "alt", "schema": Alt.model_json_schema()},
        },
        max_tokens=3,
        n=2,
    )
    for choice in answer.choices:
        assert len(json.loads(choice.message.content or "")["alt_text"].split()) <= 3
        assert choice.finish_reason == "length"


def with_property(name: str = "caption", /, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {name: {"type": "string", **more}}, "required": [name]}


@pytest.mark.parametrize(
    ("schema", "fits"),
    [
        (with_property("caption"), True),
        (with_property("altText", title="Alt"), True),
        (with_property("Image-Description"), True),
        ({**with_property(), "additionalProperties": False, "title": "X"}, True),
        ({"type": "object", "properties": {"n": {"type": "integer"}, "text": {"type": "string"}}}, True),
        (with_property("name_of_the_dog"), False),
        (with_property("caption", enum=["a dog"]), False),
        (with_property("caption", pattern="^A"), False),
        (with_property("caption", maxLength=5), False),
        ({**with_property(), "required": ["caption", "mood"]}, False),
        ({**with_property(), "minProperties": 2}, False),
        (LABELS, False),
        ({"type": "object"}, False),
        ({"type": "array", "items": {"type": "string"}}, False),
        ({}, False),
    ],
    ids=str,
)
def test_which_schemas_a_caption_fills(
    schema: dict[str, Any], fits: bool, client: httpx.Client, photo: bytes
):
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    answer = client.post("/v1/chat/completions", json={"messages": chat_of(photo), "response_format": form})
    if fits:
        (value,) = json.loads(answer.json()["choices"][0]["message"]["content"]).values()
        assert value == tiny_captioner().caption([photo])[0].caption
    else:
        problem = check_problem(answer, 400)
        assert problem["detail"] == (
            "tiny cannot answer in this JSON, since it writes a plain sentence; it can fill an object whose "
            "one required text is called caption, alt or description"
        )


@pytest.mark.parametrize("form", [{"type": "json_object"}, {"type": "json_schema"}, {"type": "yaml"}])
def test_forms_that_no_caption_has(form: dict[str, Any], client: httpx.Client, photo: bytes):
    body = {"messages": chat_of(photo), "response_format": form}
    check_problem(client.post("/v1/chat/completions", json=body), 400)
    body = {"input": input_of(photo), "text": {"format": form}}
    check_problem(client.post("/v1/responses", json=body), 400)


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with model_server() as found:
        yield found


@pytest.mark.parametrize("kind", ["openai", "ollama"])
def test_a_model_on_a_server_gets_the_schema(serve, server: ModelServer, kind: str, photo: bytes):
    model = Captioner(RemoteRunner(Address.parse(getattr(server, kind))), name="far")
    expected = in_form(describe(model.prepare(photo).content), True)
    with serve(model) as client, openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="x") as found:
        assert client.get("/v1/models/far").json()["gives"]["schemas"] is True
        tool = ollama.Client(host=str(client.base_url), trust_env=False)
        form: Any = {"type": "json_schema", "json_schema": {"name": "labels", "schema": LABELS}}
        create = found.chat.completions.create
        answer = create(model="far", messages=chat_of(photo), response_format=form)
        assert answer.choices[0].message.content == expected, "as it came, with its white space"
        chunks = create(model="far", messages=chat_of(photo), response_format=form, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected
        assert tool.generate("far", images=[photo], format=LABELS).response == expected
        text: Any = {"format": {"type": "json_schema", "name": "labels", "schema": LOOSE}}
        assert found.responses.create(model="far", input=input_of(photo), text=text).output_text == expected
        assert tool.generate("far", images=[photo], format="json").response == expected
        assert tool.generate("far", images=[photo]).response == json.loads(expected)["said"]
        problem = client.post(
            "/v1/chat/completions",
            json={"messages": chat_of(photo), "response_format": form, "hedge": True},
        )
        assert "hedge" in check_problem(problem, 400)["detail"]
    asked = [body.get("response_format" if kind == "openai" else "format") for body in server.bodies]
    if kind == "ollama":
        assert asked == [LABELS, LABELS, LABELS, LOOSE, {"type": "object"}, None]
    else:
        schemas = [item and item.get("json_schema") for item in asked]
        strict = {"name": "answer", "schema": LABELS, "strict": True}
        loose = {"name": "answer", "schema": LOOSE, "strict": False}
        assert schemas == [strict, strict, strict, loose, None, None]
        assert asked[4] == {"type": "json_object"}
    limits = [body.get("max_tokens") or body["options"]["num_predict"] for body in server.bodies]
    assert limits == [1024] * 5 + [128]


def test_a_vision_language_model_is_held_to_the_schema(serve, photo: bytes, tmp_path: Path):
    vlm.FAMILIES["qwen2_5_vl"](tmp_path)
    model = load(tmp_path, device="cpu")
    with serve(model) as client, openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="x") as found:
        assert client.get("/v1/models").json()["data"][0]["gives"]["schemas"] is True
        tool = ollama.Client(host=str(client.base_url), trust_env=False)
        schema = Count.model_json_schema()
        form: Any = {"type": "json_schema", "json_schema": {"name": "count", "schema": schema}}
        create = found.chat.completions.create
        answer = create(model=model.name, messages=chat_of(photo), response_format=form)
        expected = Count.model_validate_json(answer.choices[0].message.content or "")
        assert answer.choices[0].finish_reason == "stop"
        chunks = create(model=model.name, messages=chat_of(photo), response_format=form, stream=True)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert Count.model_validate_json(text) == expected
        response = found.responses.parse(model=model.name, input=input_of(photo), text_format=Count)
        assert isinstance(response.output_parsed, Count)
        text = tool.generate(model.name, images=[photo], format=schema).response
        assert isinstance(Count.model_validate_json(text), Count)
        form["json_schema"]["schema"] = {"type": "object", "not": {}}
        body = {"messages": chat_of(photo), "response_format": form}
        for stream in (False, True):
            problem = client.post("/v1/chat/completions", json={**body, "stream": stream})
            assert "Unimplemented keys" in check_problem(problem, 400)["detail"]


def test_an_answer_that_is_no_json_is_asked_for_again(serve, server: ModelServer, photo: bytes, monkeypatch):
    monkeypatch.setenv("CAPTIONER_REMOTE_BACKOFF_S", "0")
    monkeypatch.setenv("CAPTIONER_REMOTE_ATTEMPTS", "2")
    server.plain = True
    with serve(Captioner(RemoteRunner(Address.parse(server.ollama)), name="far")) as client:
        tool = ollama.Client(host=str(client.base_url), trust_env=False)
        with pytest.raises(ollama.ResponseError, match="not what its API says"):
            tool.generate("far", images=[photo], format=LABELS)
        assert len(server.bodies) == 2
        server.finish = "length"
        answer = tool.generate("far", images=[photo], format=LABELS)
        assert (answer.done_reason, answer.response[:7]) == ("length", "a photo"), "cut off, so as it is"
