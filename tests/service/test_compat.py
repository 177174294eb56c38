"""Clients that others wrote, against a running server: the packages openai and huggingface_hub."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from images import draw_noise, encode
from model_servers import model_server
from problems import check_problem
from scripted import ScriptedCaptioner
from standins import CrashingOnRequests
from tiny import tiny_captioner, tiny_checkpoint

from captioner import Caption, Captioner, GenerationOptions
from captioner.runners import Address, CheckpointRunner
from captioner.runners.remote import RemoteRunner
from service.replies import certain_length


def expected(photo: bytes, **options: Any) -> Caption:
    captioner = tiny_captioner()
    return captioner.caption([photo], replace(captioner.default_options, **options))[0]


def image_part(data: bytes) -> dict[str, Any]:
    url = f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
    return {"type": "image_url", "image_url": {"url": url, "detail": "auto"}}


def chat_of(*contents: Any) -> list[Any]:
    return [{"role": "user", "content": content} for content in contents]


def forms_of(photo: bytes) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The same request in the forms of OpenAI's chat completions and Responses, and of Ollama."""
    url, data = image_part(photo)["image_url"]["url"], base64.b64encode(photo).decode()
    response = {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]}
    return {"messages": chat_of([image_part(photo)])}, response, {"model": "default", "images": [data]}


@pytest.fixture
def chat(photo: bytes) -> list[Any]:
    """What somebody asks who has a photo."""
    question = {"type": "text", "text": "What is in this photo?"}
    return [{"role": "system", "content": "Be brief."}, *chat_of([question, image_part(photo)])]


def test_a_photo_of_true_size(client_of_openai: openai.OpenAI, client: httpx.Client):
    photo = encode(draw_noise(640, 480), "JPEG", quality=90)
    assert len(photo) > 100_000
    messages = chat_of([image_part(photo)])
    answer = client_of_openai.chat.completions.create(model="tiny", messages=messages)
    assert answer.choices[0].message.content == expected(photo).caption
    body = {"images": [{"url": image_part(photo)["image_url"]["url"]}]}
    assert client.post("/v1/captions", json=body).json()["captions"][0]["caption"] == expected(photo).caption


@pytest.fixture
def client_of_openai(client: httpx.Client) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="any", max_retries=0) as found:
        yield found


def test_openai_completion(client_of_openai: openai.OpenAI, chat: list[Any], photo: bytes):
    answer = client_of_openai.chat.completions.create(
        model="tiny", messages=chat, max_tokens=300, temperature=0
    )
    caption = expected(photo)
    (choice,) = answer.choices
    assert choice.message.content == caption.caption
    assert choice.message.role == "assistant"
    assert answer.model == "tiny"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12
    assert choice.finish_reason == "length"  # the tiny model never ends by itself


@pytest.mark.parametrize("finish", ["stop", "length"])
def test_every_form_says_what_ended_a_caption(serve, photo: bytes, finish: str):
    with model_server(finish=finish) as server:
        model = Captioner(RemoteRunner(Address.parse(server.openai)), name="asked")
        with serve(model) as client:
            chat, response, generate = forms_of(photo)
            chat["max_tokens"] = response["max_output_tokens"] = 2
            generate["options"] = {"num_predict": 2}

            def asked(path: str, body: dict[str, Any], **more: Any) -> str:
                answer = client.post(path, json={**body, **more})
                assert answer.status_code == 200
                return answer.text

            for stream in (False, True):
                text = asked("/v1/chat/completions", chat, stream=stream)
                assert f'"finish_reason":"{finish}"' in text.replace(": ", ":")
                text = asked("/v1/responses", response, stream=stream)
                cut = '"status":"incomplete"' in text.replace(": ", ":")
                assert cut == (finish == "length")
                text = asked("/api/generate", generate, stream=stream)
                assert f'"done_reason":"{finish}"' in text.replace(": ", ":")


def test_openai_marks_and_shortens_what_is_not_sure(
    client_of_openai: openai.OpenAI, chat: list[Any], photo: bytes
):
    create = client_of_openai.chat.completions.create
    (choice,) = create(model="tiny", messages=chat, extra_body={"min_confidence": 0.99}).choices
    assert choice.model_extra is not None
    assert choice.model_extra["uncertain"] is True
    assert choice.model_extra["confidence"] == expected(photo).to_dict()["confidence"]
    *_, last = create(model="tiny", messages=chat, extra_body={"hedge": True}, stream=True)
    hedged = expected(photo, hedge=True, min_confidence=0.5)
    assert last.choices[0].model_extra == {
        name: value
        for name, value in {"uncertain": False, **hedged.to_dict()}.items()
        if name in ("confidence", "calibrated", "uncertain", "unhedged")
    }
    answer = create(model="tiny", messages=chat, extra_body={"hedge": True})
    assert answer.choices[0].message.content == hedged.caption
    with pytest.raises(openai.BadRequestError, match="min_confidence"):
        create(model="tiny", messages=chat, extra_body={"min_confidence": 2})
    assert create(model="tiny", messages=chat).choices[0].model_extra == {}


def test_every_form_asks_for_a_detail(serve, client: httpx.Client, photo: bytes):
    chat, response, generate = forms_of(photo)
    wanted = {"detail": "full"}
    knows = ScriptedCaptioner()
    with serve(knows) as other:
        for path, body in {
            "/v1/chat/completions": {**chat, **wanted},
            "/v1/responses": {**response, **wanted},
            "/api/generate": {**generate, "stream": False, "options": wanted},
        }.items():
            assert other.post(path, json=body).status_code == 200
            assert knows.options[-1].detail == "full"
            refused = client.post(path, json=body)
            assert refused.status_code == 400
            assert "takes no detail" in refused.text


def test_openai_several_choices(client_of_openai: openai.OpenAI, chat: list[Any], photo: bytes):
    answer = client_of_openai.chat.completions.create(
        model="default", messages=chat, n=3, max_completion_tokens=5
    )
    caption = expected(photo, max_length=5, alternatives=2, num_beams=3)
    texts = [choice.message.content for choice in answer.choices]
    assert texts == [caption.caption, *(item.caption for item in caption.alternatives)]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]


def test_openai_sampling(client_of_openai: openai.OpenAI, chat: list[Any], photo: bytes):
    answer = client_of_openai.chat.completions.create(
        model="tiny", messages=chat, temperature=1.5, top_p=0.9, seed=-3
    )
    options = {"do_sample": True, "temperature": 1.5, "top_p": 0.9, "seed": 2**63 - 3}
    assert answer.choices[0].message.content == expected(photo, **options).caption


def test_openai_stream(client_of_openai: openai.OpenAI, chat: list[Any], photo: bytes):
    chunks = list(
        client_of_openai.chat.completions.create(
            model="tiny", messages=chat, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == expected(photo).caption
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 12
    assert len({chunk.id for chunk in chunks}) == 1


def test_openai_asynchronous(client: httpx.Client, chat: list[Any], photo: bytes):
    async def ask() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{client.base_url}/v1", api_key="any") as found:
            calls = [found.chat.completions.create(model="tiny", messages=chat) for _ in range(5)]
            return await asyncio.gather(*calls)

    captions = {answer.choices[0].message.content for answer in asyncio.run(ask())}
    assert captions == {expected(photo).caption}


def test_openai_takes_the_last_photo(client_of_openai: openai.OpenAI, chat: list[Any]):
    unlike = image_part(b"not a photo")
    messages = [*chat_of([unlike]), {"role": "assistant", "content": "a dog"}, *chat, *chat_of("And now?")]
    assert client_of_openai.chat.completions.create(model="tiny", messages=messages).choices


def test_openai_models(client_of_openai: openai.OpenAI):
    assert [model.id for model in client_of_openai.models.list()] == ["tiny"]
    assert client_of_openai.models.retrieve("tiny").owned_by == "captioner"


def test_openai_key(serve, chat: list[Any]):
    with serve(api_keys="right") as client:
        url = f"{client.base_url}/v1"
        assert openai.OpenAI(base_url=url, api_key="right").models.list().data
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=url, api_key="wrong").models.list()


@pytest.mark.parametrize(
    ("request_", "error", "text"),
    [
        ({"model": "gpt-4o"}, openai.NotFoundError, "'tiny', not 'gpt-4o'"),
        ({"messages": []}, openai.BadRequestError, "messages"),
        ({"messages": chat_of("Hello")}, openai.BadRequestError, "no photo"),
        ({"messages": chat_of([image_part(b"a"), image_part(b"b")])}, openai.BadRequestError, "one photo"),
        ({"messages": chat_of([image_part(b"a")])}, openai.APIStatusError, "not an image"),
        (
            {"messages": chat_of([{"type": "image_url", "image_url": {"url": "https://example.org/a.jpg"}}])},
            openai.BadRequestError,
            "no URLs",
        ),
        ({"messages": chat_of([{"type": "input_audio", "input_audio": {}}])}, openai.BadRequestError, "type"),
        ({"temperature": 3}, openai.BadRequestError, "temperature"),
        ({"n": 40}, openai.BadRequestError, "16 beams"),
        ({"n": 2, "stream": True}, openai.BadRequestError, "stream"),
        ({"max_tokens": 0}, openai.BadRequestError, "max_tokens"),
        ({"response_format": {"type": "json_object"}}, openai.BadRequestError, "plain sentence"),
        ({"logprobs": True}, openai.BadRequestError, "logprobs"),
        (
            {"tools": [{"type": "function", "function": {"name": "f"}}]},
            openai.BadRequestError,
            "tools",
        ),
    ],
    ids=str,
)
def test_openai_errors_say_what_is_wrong(
    client_of_openai: openai.OpenAI,
    chat: list[Any],
    request_: dict[str, Any],
    error: type[openai.APIStatusError],
    text: str,
):
    with pytest.raises(error) as raised:
        client_of_openai.chat.completions.create(**{"model": "tiny", "messages": chat, **request_})
    assert text in raised.value.message


def test_openai_fields_without_effect(client_of_openai: openai.OpenAI, chat: list[Any], photo: bytes):
    answer = client_of_openai.chat.completions.create(
        model="tiny",
        messages=chat,
        frequency_penalty=1,
        user="me",
        response_format={"type": "text"},
    )
    assert answer.choices[0].message.content == expected(photo).caption


def test_openai_stops(client_of_openai: openai.OpenAI, chat: list[Any], photo: bytes):
    create = client_of_openai.chat.completions.create
    caption = expected(photo).caption
    _, second, third, *_ = caption.split()
    within = f"{second[-1]} {third[:2]}"  # from one word into the next
    for stop, text in {
        second: caption[: caption.index(second)],
        within: caption[: caption.index(within)],
        ".": caption,
        caption[0]: "",
    }.items():
        for given in (stop, ["never said", stop]):
            (choice,) = create(model="tiny", messages=chat, stop=given).choices
            assert choice.message.content == text
            assert choice.finish_reason == ("stop" if stop in caption else "length")
            chunks = [
                chunk.choices[0] for chunk in create(model="tiny", messages=chat, stop=given, stream=True)
            ]
            assert "".join(chunk.delta.content or "" for chunk in chunks) == text
            assert chunks[-1].finish_reason == choice.finish_reason


def test_what_may_be_the_beginning_of_a_stop_is_held_back():
    assert certain_length("a dog in the", ["the sea"], ended=False) == len("a dog in ")
    assert certain_length("a dog in the", ["the sea"], ended=True) == len("a dog in the")
    assert certain_length("a dog in the sea", ["the sea", "in the s"], ended=False) == len("a dog ")
    assert certain_length("a dog", [], ended=False) == len("a dog")


def test_the_models_own_settings_of_sampling_count(serve, chat: list[Any], photo: bytes):
    checkpoint = tiny_checkpoint()
    checkpoint.generation["top_k"] = 1  # so that the likeliest word is always drawn
    model = Captioner(CheckpointRunner(checkpoint), name="tiny")
    likeliest = model.caption([photo], GenerationOptions(num_beams=1))[0].caption
    with serve(model) as client:
        for given in ({"temperature": 1}, {"temperature": 2, "top_p": 1}, {"top_p": 0.99}):
            answer = client.post("/v1/chat/completions", json={"messages": chat, **given}).json()
            assert answer["choices"][0]["message"]["content"] == likeliest
        body = {"images": [base64.b64encode(photo).decode()], "do_sample": True, "top_k": 0, "seed": 3}
        (caption,) = client.post("/v1/captions", json=body).json()["captions"]
        assert caption["caption"] != likeliest, "what is asked for counts more"


def test_a_stream_that_fails_midway_is_an_error(serve, photo: bytes):
    with serve(CrashingOnRequests()) as client:
        url = f"{client.base_url}/v1"
        messages = chat_of([image_part(photo)])
        with openai.OpenAI(base_url=url, api_key="x", max_retries=0) as found:
            stream = found.chat.completions.create(
                model="tiny", messages=messages, stream=True, max_tokens=8, temperature=0.1
            )
            with pytest.raises(openai.APIError, match="the model failed"):
                list(stream)
        body = {"images": [{"base64": base64.b64encode(photo).decode()}], "num_beams": 1}
        text = client.post("/v1/captions/stream", json=body).text
        assert text.split("\n\n")[-2].startswith("event: error\ndata: {")


@pytest.mark.parametrize("path", ["", "/", "/image-to-text"])
def test_hugging_face(client: httpx.Client, photo: bytes, photo_path: Path, path: str):
    url = f"{client.base_url}".rstrip("/") + path
    assert InferenceClient(model=url).image_to_text(photo).generated_text == expected(photo).caption
    assert InferenceClient().image_to_text(photo_path, model=url).generated_text == expected(photo).caption


def test_hugging_face_asynchronous(client: httpx.Client, photo: bytes):
    answer = asyncio.run(AsyncInferenceClient(model=f"{client.base_url}").image_to_text(photo))
    assert answer.generated_text == expected(photo).caption


@pytest.mark.parametrize("stream", [False, True])
def test_hugging_face_chat(client: httpx.Client, chat: list[Any], photo: bytes, stream: bool):
    found = InferenceClient(f"{client.base_url}")
    if stream:
        chunks = found.chat_completion(messages=chat, stream=True)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    else:
        text = found.chat_completion(messages=chat).choices[0].message.content or ""
    assert text == expected(photo).caption


def test_hugging_face_errors_say_what_is_wrong(client: httpx.Client):
    with pytest.raises(HfHubHTTPError, match="not an image") as raised:
        InferenceClient(model=f"{client.base_url}").image_to_text(b"not a photo")
    assert raised.value.response.status_code == 415


def test_hugging_face_json(client: httpx.Client, photo: bytes):
    inputs = base64.b64encode(photo).decode()
    body = {"inputs": inputs, "parameters": {"max_new_tokens": 4, "alternatives": 1}}
    caption = expected(photo, max_length=4, alternatives=1)
    texts = [caption.caption, caption.alternatives[0].caption]
    answer = client.post("/image-to-text", json=body).json()
    assert answer == [{"generated_text": text} for text in texts]
    for wrong in ({}, {"inputs": "#"}, {"inputs": inputs, "parameters": {"beams": 3}}):
        check_problem(client.post("/image-to-text", json=wrong), 400)
