"""The service in front of a model on another server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from images import draw_noise, encode
from model_servers import ModelServer, describe, model_server
from problems import check_problem

from captioner import Captioner
from captioner.runners import Address
from captioner.runners.address import RemoteSettings
from captioner.runners.remote import RemoteRunner

PHOTOS = [encode(draw_noise(60 + seed, 50, seed=seed), "PNG") for seed in range(6)]


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with model_server() as found:
        yield found


def remote(server: ModelServer, **settings: Any) -> Captioner:
    how = RemoteSettings(**{"backoff_s": 0.001, "attempts": 2, **settings})
    return Captioner(RemoteRunner(Address.parse(server.openai), how), name="made/up")


@pytest.fixture(autouse=True)
def _straight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def ask(client: httpx.Client, photo: bytes, **options: Any) -> httpx.Response:
    return client.post("/v1/captions", files={"image": ("a.png", photo)}, data=options)


def expected(model: Captioner, photo: bytes) -> str:
    return describe(model.prepare(photo).content)


def test_it_says_where_photos_go_and_what_it_cannot_give(serve, server: ModelServer):
    with serve(remote(server)) as client:
        (model,) = client.get("/v1/models").json()["data"]
        assert model["sends_photos_to"] == f"127.0.0.1:{server.port}"
        assert (model["device"], model["dtype"], model["parameters"]) == (None, None, None)
        assert model["gives"]["attention"] is None
        assert "does not tell" in model["reasons"]["attention"]
        assert model["gives"]["instructions"] is True
        assert server.bodies == [], "nothing is sent before somebody wants a caption"


def test_captions_and_streams_are_the_servers(serve, server: ModelServer):
    model = remote(server)
    with serve(model) as client:
        caption = ask(client, PHOTOS[0], attention=True, instruction="Briefly.").json()["captions"][0]
        assert caption["caption"] == expected(model, PHOTOS[0])
        assert "attention" not in caption["words"][0]
        events = client.post("/v1/captions/stream", files={"image": ("a.png", PHOTOS[0])}).text
        assert events.count("event: text") > 3
        assert '"caption": "a photo 60' in events
        check_problem(ask(client, PHOTOS[0], num_beams=3), 400)


def test_a_photo_that_the_server_refuses_spoils_no_others(serve, server: ModelServer):
    model = remote(server)
    bad = expected(model, PHOTOS[2])
    server.fault = lambda text, attempt: "500" if text == bad else None
    with serve(model, batch_window_ms=300) as client:
        files = [("image", (f"{number}.png", photo)) for number, photo in enumerate(PHOTOS)]
        problem = check_problem(client.post("/v1/captions", files=files), 502)
        assert "500" in problem["detail"]
        for photo in PHOTOS[:2]:
            assert ask(client, photo).json()["captions"][0]["caption"] == expected(model, photo)


def test_a_server_that_is_away_for_a_while_ends_nothing(serve, server: ModelServer):
    model = remote(server)
    with serve(model) as client:
        server.fault = lambda text, attempt: "503"
        response = ask(client, PHOTOS[0])
        check_problem(response, 503)
        assert response.headers["Retry-After"]
        events = client.post("/v1/captions/stream", files={"image": ("a.png", PHOTOS[0])})
        check_problem(events, 503)
        server.fault = lambda text, attempt: None
        assert client.get("/healthz").status_code == 200
        assert ask(client, PHOTOS[0]).json()["captions"][0]["caption"] == expected(model, PHOTOS[0])


def test_several_requests_go_out_together(serve, server: ModelServer):
    """The server answers none of them before all of them are there."""
    model = remote(server, parallel=6, timeout_s=30)
    server.together = threading.Barrier(6)
    with serve(model) as client, ThreadPoolExecutor(6) as pool:
        for caption in (ask, stream):
            answers = list(pool.map(caption, [client] * 6, PHOTOS))
            assert [answer.status_code for answer in answers] == [200] * 6
            assert all(
                expected(model, photo) in answer.text for photo, answer in zip(PHOTOS, answers, strict=True)
            )
        assert server.most == 6


def stream(client: httpx.Client, photo: bytes) -> httpx.Response:
    return client.post("/v1/captions/stream", files={"image": ("a.png", photo)})


def test_no_more_go_out_than_are_allowed(serve, server: ModelServer):
    server.delay = 0.02
    with serve(remote(server, parallel=2)) as client, ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda photo: ask(client, photo, do_sample=True, alternatives=3), PHOTOS))
        assert [answer.status_code for answer in answers] == [200] * 6
        assert server.most == 2
        assert "captioner_queue_depth 0.0" in client.get("/metrics").text


def test_what_nobody_waits_for_any_more_is_not_asked(serve, server: ModelServer):
    model = remote(server, parallel=1, timeout_s=30)
    server.together = threading.Barrier(2)
    with serve(model, request_timeout_s=1) as client, ThreadPoolExecutor(6) as pool:
        first, second = (pool.submit(ask, client, photo) for photo in PHOTOS[:2])
        for answer in (first, second):
            check_problem(answer.result(), 503)  # too late
        assert len(server.bodies) == 1
        server.together.abort()  # the server fails on the first, which nobody waits for
        server.together = threading.Barrier(1)
        assert ask(client, PHOTOS[2]).json()["captions"][0]["caption"] == expected(model, PHOTOS[2])
        asked = {photo: server.asked[expected(model, photo)] for photo in PHOTOS[:2]}
        assert sorted(asked.values())[0] == 0
        assert 'captioner_images_total{model="made/up",outcome="dropped"} 2.0' in client.get("/metrics").text


@pytest.mark.parametrize("path", ["/v1/captions", "/v1/captions?partial=true", "/v1/captions/stream"])
@pytest.mark.parametrize("alternatives", [0, 2])
def test_a_request_whose_client_has_left_is_broken_off(
    serve, server: ModelServer, path: str, alternatives: int
):
    """The server says nothing for as long as it is asked, so only the closed connection can end it."""
    model = remote(server, parallel=1, timeout_s=600)
    server.fault = lambda text, attempt: "silent"
    how = {"do_sample": True, "alternatives": alternatives} if alternatives else {}
    with serve(model, request_timeout_s=600) as client:
        with pytest.raises(httpx.ReadTimeout):
            client.post(path, files={"image": ("a.png", PHOTOS[0])}, data=how, timeout=1)
        assert server.left.wait(60), "the model's server would go on"
        server.fault = lambda text, attempt: None
        assert ask(client, PHOTOS[1]).json()["captions"][0]["caption"] == expected(model, PHOTOS[1])
        metrics = client.get("/metrics").text
        assert 'captioner_images_total{model="made/up",outcome="dropped"} 1.0' in metrics
        assert 'captioner_images_total{model="made/up",outcome="failed"} 0.0' in metrics


def test_a_request_whose_time_is_over_is_broken_off(serve, server: ModelServer):
    server.fault = lambda text, attempt: "silent"
    with serve(remote(server, timeout_s=600), request_timeout_s=1) as client:
        check_problem(ask(client, PHOTOS[0]), 503)
        assert server.left.wait(60), "the model's server would go on"


def test_what_waits_to_be_sent_again_holds_nobody_up(serve, server: ModelServer):
    """The first client leaves while its photo waits for another attempt, on the only connection."""
    model = remote(server, parallel=1, backoff_s=60, attempts=20)
    bad = expected(model, PHOTOS[0])
    server.fault = lambda text, attempt: "500" if text == bad else None
    with serve(model, request_timeout_s=600) as client:
        with pytest.raises(httpx.ReadTimeout):
            client.post("/v1/captions", files={"image": ("a.png", PHOTOS[0])}, timeout=1)
        answer = client.post("/v1/captions", files={"image": ("b.png", PHOTOS[1])}, timeout=25)
        assert answer.json()["captions"][0]["caption"] == expected(model, PHOTOS[1])


def test_a_stream_whose_client_has_left_is_broken_off(serve, server: ModelServer):
    server.fault = lambda text, attempt: "endless stream"
    with serve(remote(server)) as client:
        with client.stream("POST", "/v1/captions/stream", files={"image": ("a.png", PHOTOS[0])}) as answer:
            assert next(answer.iter_lines())
        assert server.left.wait(60), "the model's server would write on"


def test_no_request_chooses_the_address(serve, server: ModelServer):
    with serve(remote(server)) as client:
        body = {"model": server.openai, "messages": [{"role": "user", "content": "hello"}]}
        check_problem(client.post("/v1/chat/completions", json=body), 404)
        check_problem(client.get(f"/v1/models/{server.openai}"), 404)
    assert server.bodies == []
