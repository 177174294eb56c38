"""Ollama's API by its own package, and as PhotoPrism uses it; names that clients insist on."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import ollama
import openai
import pytest
from model_servers import describe, model_server
from problems import check_problem
from standins import CrashingOnRequests
from tiny import tiny_captioner

from captioner import Caption, Captioner
from captioner.runners import Address
from captioner.runners.remote import RemoteRunner


def expected(photo: bytes, **options: Any) -> Caption:
    captioner = tiny_captioner()
    return captioner.caption([photo], replace(captioner.default_options, **options))[0]


@pytest.fixture
def client_of_ollama(client: httpx.Client) -> Iterator[ollama.Client]:
    found = ollama.Client(host=str(client.base_url), trust_env=False)
    yield found
    found._client.close()


def test_generate(client_of_ollama: ollama.Client, photo: bytes):
    answer = client_of_ollama.generate("tiny", "What is it?", images=[photo])
    assert answer.response == expected(photo).caption
    assert (answer.model, answer.done, answer.done_reason) == ("tiny", True, "length")
    assert answer.eval_count == 12


def test_generate_in_pieces(client_of_ollama: ollama.Client, photo: bytes):
    options = {"num_predict": 8, "temperature": 0}
    *pieces, last = client_of_ollama.generate("tiny:latest", images=[photo], stream=True, options=options)
    assert "".join(piece.response or "" for piece in pieces) == expected(photo, max_length=8).caption
    assert (last.response, last.done, last.eval_count) == ("", True, 8)
    assert not any(piece.done for piece in pieces)


def test_chat(client_of_ollama: ollama.Client, photo: bytes):
    earlier = [
        {"role": "user", "content": "And this?", "images": [b"not a photo"]},
        {"role": "assistant", "content": "a dog"},
    ]
    messages = [*earlier, {"role": "user", "content": "What is it?", "images": [photo]}]
    answer = client_of_ollama.chat("tiny", messages)
    assert answer.message.content == expected(photo).caption
    assert answer.message.role == "assistant"
    pieces = list(client_of_ollama.chat("default", messages, stream=True))
    assert "".join(piece.message.content or "" for piece in pieces) == expected(photo).caption
    assert pieces[-1].done


def test_asynchronous(client: httpx.Client, photo: bytes):
    async def ask() -> list[Any]:
        found = ollama.AsyncClient(host=str(client.base_url), trust_env=False)
        return await asyncio.gather(*(found.generate("tiny", images=[photo]) for _ in range(4)))

    assert {answer.response for answer in asyncio.run(ask())} == {expected(photo).caption}


def test_sampling_and_stop_texts(client_of_ollama: ollama.Client, photo: bytes):
    drawn = {"temperature": 1.5, "top_p": 0.9, "seed": -3}
    answer = client_of_ollama.generate("tiny", images=[photo], options=drawn)
    assert (
        answer.response == expected(photo, do_sample=True, temperature=1.5, top_p=0.9, seed=2**63 - 3).caption
    )
    whole = expected(photo).caption
    stop = whole.split()[3]
    answer = client_of_ollama.generate("tiny", images=[photo], options={"stop": [stop]})
    assert answer.response == whole[: whole.find(stop)]
    pieces = client_of_ollama.generate("tiny", images=[photo], options={"stop": [stop]}, stream=True)
    assert "".join(piece.response or "" for piece in pieces) == answer.response


def test_models(client_of_ollama: ollama.Client):
    assert [model.model for model in client_of_ollama.list().models] == ["tiny"]
    shown = client_of_ollama.show("tiny")
    assert shown.capabilities == ["completion", "vision"]
    assert shown.details is not None
    assert shown.details.family == "captioner"
    with pytest.raises(ollama.ResponseError, match="'tiny', not 'llava'") as raised:
        client_of_ollama.show("llava")
    assert raised.value.status_code == 404


def test_the_version_is_ours(client: httpx.Client):
    assert client.get("/api/version").json()["version"][0].isdigit()


def test_a_request_without_photo_and_prompt_is_how_clients_load_a_model(client_of_ollama: ollama.Client):
    assert client_of_ollama.generate("tiny").done_reason == "load"
    assert client_of_ollama.chat("tiny").done_reason == "load"


def test_curl_as_ollama_documents_it(client: httpx.Client, photo: bytes):
    """`curl -d` calls any body a form, and Ollama takes it for JSON all the same."""
    images = [base64.b64encode(photo).decode()]
    bodies: dict[str, dict[str, Any]] = {
        "/api/generate": {"images": images},
        "/api/chat": {"messages": [{"role": "user", "images": images}]},
        "/api/show": {},
    }
    for path, body in bodies.items():
        command = ["curl", "--noproxy", "*", "-sS", f"{client.base_url}{path}", "-d", "@-"]
        text = json.dumps({"model": "tiny", "stream": False, **body})
        answer = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60).stdout
        assert ("model_info" if path == "/api/show" else expected(photo).caption) in answer, answer
    problem = client.post("/api/generate", files={"image": ("a.jpg", photo)})
    assert "not valid JSON" in check_problem(problem, 400)["detail"]


def test_photoprism(client: httpx.Client, photo: bytes):
    """A caption as PhotoPrism asks for one, with the options that it sends by default."""
    body = {
        "model": "tiny:latest",
        "prompt": "Create a caption that describes the main content in one or two sentences.",
        "stream": False,
        "options": {
            "temperature": 0.1,
            "top_k": 40,
            "top_p": 0.9,
            "seed": 3,
            "num_ctx": 4096,
            "stop": ["\n\n"],
        },
        "images": [base64.b64encode(photo).decode()],
    }
    answer = client.post("/api/generate", json=body).json()
    drawn = {"do_sample": True, "temperature": 0.1, "top_p": 0.9, "seed": 3}
    assert answer["response"] == expected(photo, **drawn).caption
    assert (answer["model"], answer["done"]) == ("tiny:latest", True)


@pytest.mark.parametrize(
    ("change", "status", "text"),
    [
        ({"model": "llava"}, 404, "'tiny', not 'llava'"),
        ({"images": []}, 400, "there is no photo"),
        ({"images": ["#"]}, 400, "base64"),
        ({"images": [base64.b64encode(b"hello").decode()]}, 415, "not an image"),
        ({"format": "json"}, 400, "plain sentence"),
        ({"format": {"type": "object"}}, 400, "plain sentence"),
        ({"options": {"temperature": -1}}, 400, "temperature"),
        ({"images": "x"}, 400, "images"),
    ],
    ids=str,
)
def test_what_cannot_be_followed(
    change: dict[str, Any], status: int, text: str, client: httpx.Client, photo: bytes
):
    body = {"model": "tiny", "prompt": "x", "images": [base64.b64encode(photo).decode()], "stream": False}
    problem = check_problem(client.post("/api/generate", json={**body, **change}), status)
    assert text in problem["detail"]


def test_the_package_shows_what_is_wrong(client_of_ollama: ollama.Client):
    with pytest.raises(ollama.ResponseError, match="not an image"):
        client_of_ollama.generate("tiny", images=[base64.b64encode(b"hello").decode()])


def test_a_stream_that_fails_midway_is_an_error(serve, photo: bytes):
    with serve(CrashingOnRequests()) as client:
        found = ollama.Client(host=str(client.base_url), trust_env=False)
        options = {"temperature": 0.1, "num_predict": 8}
        with pytest.raises(ollama.ResponseError, match="the model failed"):
            list(found.generate("tiny", images=[photo], stream=True, options=options))


def test_clients_may_insist_on_a_name(serve, photo: bytes):
    with serve(model_aliases="gpt-4o, llava") as client:
        found = ollama.Client(host=str(client.base_url), trust_env=False)
        assert [model.model for model in found.list().models] == ["tiny", "gpt-4o", "llava"]
        answer = found.generate("llava:latest", images=[photo])
        assert (answer.model, answer.response) == ("llava:latest", expected(photo).caption)
        with openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="x", max_retries=0) as other:
            assert [model.id for model in other.models.list()] == ["tiny", "gpt-4o", "llava"]
            assert other.models.retrieve("gpt-4o").id == "gpt-4o"
            url = f"data:image/jpeg;base64,{base64.b64encode(photo).decode()}"
            content: Any = [{"type": "image_url", "image_url": {"url": url}}]
            chat = other.chat.completions.create(
                model="gpt-4o", messages=[{"role": "user", "content": content}]
            )
            assert chat.choices[0].message.content == expected(photo).caption


def test_a_model_that_can_be_asked_reads_the_prompt(serve, photo: bytes, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with model_server() as server:
        model = Captioner(RemoteRunner(Address.parse(server.openai)), name="asked")
        with serve(model) as client:
            found = ollama.Client(host=str(client.base_url), trust_env=False)
            answer = found.generate("asked", "Name the colours.", images=[photo])
            assert answer.response == describe(model.prepare(photo).content)
            found.chat("asked", [{"role": "user", "content": "Who is it?", "images": [photo]}])
            with openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="x") as other:
                url = f"data:image/jpeg;base64,{base64.b64encode(photo).decode()}"
                content: Any = [
                    {"type": "text", "text": "Where is it?"},
                    {"type": "image_url", "image_url": {"url": url}},
                ]
                other.chat.completions.create(model="asked", messages=[{"role": "user", "content": content}])
        asked = [body["messages"][0]["content"][1]["text"] for body in server.bodies]
        assert asked == ["Name the colours.", "Who is it?", "Where is it?"]


def test_the_lines_are_json_and_not_cached(client: httpx.Client, photo: bytes):
    body = {"model": "tiny", "images": [base64.b64encode(photo).decode()]}
    response = client.post("/api/generate", json=body)
    assert response.headers["content-type"].startswith("application/x-ndjson")
    assert response.headers["cache-control"] == "no-store"
    assert all(json.loads(line)["model"] == "tiny" for line in response.text.splitlines())
