"""OpenAI's Responses API by the package openai."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest
from standins import CrashingOnRequests
from tiny import tiny_captioner

from captioner import Caption


def expected(photo: bytes, **options: Any) -> Caption:
    captioner = tiny_captioner()
    return captioner.caption([photo], replace(captioner.default_options, **options))[0]


@pytest.fixture
def openai_client(client: httpx.Client) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="any", max_retries=0) as found:
        yield found


def input_of(photo: bytes) -> list[Any]:
    url = f"data:image/jpeg;base64,{base64.b64encode(photo).decode()}"
    content = [
        {"type": "input_text", "text": "What is it?"},
        {"type": "input_image", "image_url": url, "detail": "auto"},
    ]
    return [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}]


def test_a_response(openai_client: openai.OpenAI, photo: bytes):
    answer = openai_client.responses.create(model="tiny", input=input_of(photo))
    assert answer.output_text == expected(photo).caption
    assert (answer.model, answer.status) == ("tiny", "incomplete")  # the tiny model never ends by itself
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.usage is not None
    assert answer.usage.output_tokens == 12
    short = openai_client.responses.create(
        model="default", input=input_of(photo), max_output_tokens=5, temperature=1.5, top_p=0.9
    )
    assert short.usage is not None
    assert short.usage.output_tokens == 5


def test_a_stream(openai_client: openai.OpenAI, photo: bytes):
    events = list(openai_client.responses.create(model="tiny", input=input_of(photo), stream=True))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == expected(photo).caption
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events if event.type != "response.output_text.delta"]
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    assert events[-1].response.output_text == expected(photo).caption


def test_the_packages_own_stream_adds_up(openai_client: openai.OpenAI, photo: bytes):
    with openai_client.responses.stream(model="tiny", input=input_of(photo)) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
    assert text == expected(photo).caption


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"model": "gpt-4o"}, openai.NotFoundError, "'tiny', not 'gpt-4o'"),
        ({"input": "Hello"}, openai.BadRequestError, "no photo"),
        ({"input": input_of(b"a")}, openai.APIStatusError, "not an image"),
        ({"tools": [{"type": "web_search"}]}, openai.BadRequestError, "tools"),
        ({"text": {"format": {"type": "json_object"}}}, openai.BadRequestError, "plain sentence"),
        ({"previous_response_id": "resp_1"}, openai.BadRequestError, "previous_response_id"),
        ({"temperature": 3}, openai.BadRequestError, "temperature"),
    ],
    ids=str,
)
def test_errors_say_what_is_wrong(
    openai_client: openai.OpenAI,
    photo: bytes,
    change: dict[str, Any],
    error: type[openai.APIStatusError],
    text: str,
):
    with pytest.raises(error) as raised:
        openai_client.responses.create(**{"model": "tiny", "input": input_of(photo), **change})
    assert text in raised.value.message


def test_a_stream_that_fails_midway_is_an_error(serve, photo: bytes):
    with serve(CrashingOnRequests()) as client:
        url = f"{client.base_url}/v1"
        with openai.OpenAI(base_url=url, api_key="x", max_retries=0) as found:
            stream = found.responses.create(
                model="tiny", input=input_of(photo), stream=True, temperature=0.1, max_output_tokens=8
            )
            *_, last = stream
            assert last.type == "error"
            assert "the model failed" in last.message
