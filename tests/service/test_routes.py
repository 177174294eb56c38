"""The service's own routes, against what the library gives for the same photos."""

from __future__ import annotations

import base64
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx
import pytest
from huggingface import save_florence2
from images import draw_noise, encode
from problems import check_problem
from prometheus_client.parser import text_string_to_metric_families
from standins import Held
from tiny import tiny_captioner

import captioner
from captioner import Caption


def expected(photo: bytes, name: str, **options: Any) -> dict[str, Any]:
    """What the library says."""
    captioner = tiny_captioner()
    prepared = captioner.prepare(photo, name=name)
    return captioner.caption_prepared([prepared], replace(captioner.default_options, **options))[0].to_dict()


def as_json(*photos: bytes, **options: Any) -> dict[str, Any]:
    return {"images": [{"base64": base64.b64encode(photo).decode()} for photo in photos], **options}


def test_a_form_is_captioned(client: httpx.Client, photo: bytes):
    response = client.post("/v1/captions", files={"image": ("ball.jpg", photo)})
    assert response.status_code == 200
    assert response.json() == {"model": "tiny", "captions": [expected(photo, "ball.jpg")]}


def test_json_is_captioned(client: httpx.Client, photo: bytes):
    response = client.post("/v1/captions", json=as_json(photo))
    assert response.json() == {"model": "tiny", "captions": [expected(photo, "image 1")]}


def test_a_data_uri_and_a_name(client: httpx.Client, photo: bytes):
    uri = f"data:image/jpeg;base64,{base64.b64encode(photo).decode()}"
    response = client.post("/v1/captions", json={"images": [{"url": uri, "name": "a.jpg"}]})
    assert response.json()["captions"] == [expected(photo, "a.jpg")]


def test_several_photos_come_back_in_order(client: httpx.Client):
    photos = {f"{n}.png": encode(draw_noise(50 + n, 40, seed=n), "PNG") for n in range(9)}
    files = [("image", item) for item in photos.items()]
    captions = client.post("/v1/captions", files=files).json()["captions"]
    assert [(item["file"], item["width"]) for item in captions] == [(f"{n}.png", 50 + n) for n in range(9)]
    alone = [expected(photo, name) for name, photo in photos.items()]
    assert [item["caption"] for item in captions] == [each["caption"] for each in alone]
    for item, each in zip(captions, alone, strict=True):  # a batch may round otherwise in the last place
        assert item["logprob"] == pytest.approx(each["logprob"], abs=1e-3)
        assert [word["text"] for word in item["words"]] == [word["text"] for word in each["words"]]


@pytest.fixture(scope="module")
def florence(tmp_path_factory: pytest.TempPathFactory) -> captioner.Captioner:
    """A model that takes a detail."""
    folder = tmp_path_factory.mktemp("florence")
    save_florence2(folder)
    return captioner.load(folder, device="cpu")


def test_requests_for_several_details_at_a_time_each_get_theirs(serve, florence: captioner.Captioner):
    photos = [encode(draw_noise(50, 40, seed=seed), "PNG") for seed in range(3)]

    def ask(client: httpx.Client, photo: bytes, detail: str | None) -> dict[str, Any]:
        data = {"max_length": "8", "attention": "true"} | ({"detail": detail} if detail else {})
        return client.post("/v1/captions", files={"image": photo}, data=data).json()["captions"][0]

    jobs = [(photo, detail) for photo in photos for detail in (None, "brief", "detailed", "full")]
    with serve(florence, batch_window_ms=50) as client, ThreadPoolExecutor(len(jobs)) as pool:
        answers = list(pool.map(lambda job: ask(client, *job), jobs))
        (model,) = client.get("/v1/models").json()["data"]
    assert (model["gives"]["details"], model["default_options"]["detail"]) == (True, "brief")
    for (photo, detail), answer in zip(jobs, answers, strict=True):
        options = captioner.GenerationOptions(detail=detail, max_length=8, attention=True)
        (alone,) = florence.caption([photo], options)
        assert answer["caption"] == alone.caption
        assert answer["logprob"] == pytest.approx(alone.logprob, abs=1e-3)
    assert len({round(answer["logprob"], 2) for answer in answers}) == 9


def test_a_model_of_one_kind_of_caption_refuses_a_detail(client: httpx.Client, photo: bytes):
    response = client.post("/v1/captions", files={"image": photo}, data={"detail": "full"})
    check_problem(response, 400)
    assert "tiny takes no detail, since it was not trained for captions of several kinds" in response.text
    (model,) = client.get("/v1/models").json()["data"]
    assert model["gives"]["details"] is None
    assert "several kinds" in model["reasons"]["details"]
    assert client.post("/v1/captions", files={"image": photo}, data={"detail": "long"}).status_code == 400


MANY_OPTIONS = {
    "num_beams": 5,
    "alternatives": 4,
    "max_length": 9,
    "min_length": 2,
    "length_penalty": 0.5,
    "early_stopping": True,
    "repetition_penalty": 1.5,
    "no_repeat_ngram_size": 3,
    "bad_words": ["dog", "cat"],
    "prompt": "a woman",
    "attention": True,
}


@pytest.mark.parametrize("form", [True, False], ids=["form", "json"])
def test_every_option_arrives(client: httpx.Client, photo: bytes, form: bool):
    if form:
        response = client.post("/v1/captions", files={"image": ("image 1", photo)}, data=MANY_OPTIONS)
    else:
        response = client.post("/v1/captions", json=as_json(photo, **MANY_OPTIONS))
    caption = response.json()["captions"][0]
    assert caption == expected(photo, "image 1", **{**MANY_OPTIONS, "bad_words": ("dog", "cat")})
    assert caption["caption"].startswith("a woman ")
    assert len(caption["alternatives"]) == 4
    assert sum(map(sum, caption["words"][0]["attention"])) == pytest.approx(1, abs=1e-3)


def test_drawn_words_can_be_drawn_again(client: httpx.Client, photo: bytes):
    options = {"do_sample": True, "temperature": 0.7, "top_k": 9, "top_p": 0.8, "seed": 7}
    response = client.post("/v1/captions", json=as_json(photo, **options))
    assert response.json()["captions"] == [expected(photo, "image 1", **options)]


def test_alternatives_raise_the_beams(client: httpx.Client, photo: bytes):
    caption = client.post("/v1/captions", json=as_json(photo, alternatives=3)).json()["captions"][0]
    assert caption == expected(photo, "image 1", alternatives=3, num_beams=4)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"num_beams": 0}, "num_beams"),
        ({"num_beams": 65}, "num_beams"),
        ({"num_beams": 17}, "16 beams"),
        ({"num_beams": "3"}, "num_beams"),
        ({"num_beams": 2.5}, "num_beams"),
        ({"alternatives": 16}, "16 beams"),
        ({"alternatives": 3, "num_beams": 2}, "alternatives"),
        ({"max_length": 1000}, "max_length"),
        ({"min_length": 9, "max_length": 5}, "min_length"),
        ({"temperature": 0.5}, "do_sample"),
        ({"do_sample": True, "temperature": 0}, "temperature"),
        ({"top_p": float("nan"), "do_sample": True}, "top_p"),
        ({"attention": "perhaps"}, "attention"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": "x" * 301}, "prompt"),
        ({"prompt": "zebra"}, "zebra"),
        ({"bad_words": [""]}, "bad_words"),
        ({"bad_words": ["  "]}, "bad_words"),
        ({"bad_words": ["a"] * 65}, "bad_words"),
        ({"colour": "red"}, "colour"),
        ({"images": []}, "images"),
        ({"images": [{}]}, "images"),
        ({"images": [{"base64": "x", "url": "y"}]}, "images"),
        ({"images": [{"path": "/etc/passwd"}]}, "images"),
    ],
    ids=str,
)
def test_options_that_cannot_be_followed(
    client: httpx.Client, photo: bytes, options: dict[str, Any], word: str
):
    body = json.dumps({**as_json(photo), **options})
    response = client.post("/v1/captions", content=body, headers={"Content-Type": "application/json"})
    problem = check_problem(response, 400)
    assert word in problem["detail"]


@pytest.mark.parametrize(
    ("data", "status", "kind"),
    [
        (b"", 422, "image-damaged"),
        (b"hello", 415, "image-type"),
        (b"%PDF-1.7", 415, "image-type"),
        (b"<svg></svg>", 415, "image-type"),
        (b"\xff\xd8\xff\xe0", 422, "image-damaged"),
    ],
)
def test_photos_that_cannot_be_used(client: httpx.Client, data: bytes, status: int, kind: str):
    for response in (
        client.post("/v1/captions", files={"image": ("a.jpg", data)}),
        client.post("/v1/captions/stream", files={"image": ("a.jpg", data)}),
        client.post("/image-to-text", content=data),
    ):
        assert check_problem(response, status)["type"].endswith(kind)


@pytest.mark.parametrize("path", ["/v1/captions", "/v1/captions/stream", "/v1/chat/completions"])
@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"", "application/json", 400),
        (b"[]", "application/json", 400),
        (b'{"images": [{"base64": "\xff"}]}', "application/json", 400),
        (b'{"images": [{"base64": "####"}]}', "application/json", 400),
        (b'{"images": [{"url": "data:image/png;base64,####"}]}', "application/json", 400),
        (b'{"images": [{"url": "data:image/png;base64"}]}', "application/json", 400),
        (b"a=1", "application/x-www-form-urlencoded", 415),
        (b"photo", "text/plain", 415),
        (b"photo", "", 415),
    ],
)
def test_bodies_that_cannot_be_read(client: httpx.Client, path: str, body: bytes, kind: str, status: int):
    check_problem(client.post(path, content=body, headers={"Content-Type": kind}), status)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--x--\r\n",
        b"nothing of a form",
        b"--x\r\n\r\nno name\r\n--x--\r\n",
        b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\na text\r\n--x--\r\n',
        b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na dog\r\n--x--\r\n',
        b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\ncut of',
        b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n' + b"x" * 20_000 + b"\r\n--x--\r\n",
        b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n' * 200 + b"--x--\r\n",
    ],
)
def test_forms_that_are_none(client: httpx.Client, body: bytes):
    for kind in ("multipart/form-data; boundary=x", "multipart/form-data"):
        check_problem(client.post("/v1/captions", content=body, headers={"Content-Type": kind}), 400)


def test_too_many_photos(client: httpx.Client, photo: bytes):
    files = [("image", (f"{n}", photo)) for n in range(65)]
    check_problem(client.post("/v1/captions", files=files), 400)
    check_problem(client.post("/v1/captions/stream", files=files[:2]), 400)
    check_problem(client.post("/v1/captions", json=as_json(*[photo] * 65)), 400)


def events(response: httpx.Response) -> list[tuple[str, Any]]:
    """The names and data of server-sent events."""
    found = []
    for block in response.text.removesuffix("\n\n").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        found.append((fields["event"], json.loads(fields["data"])))
    return found


def test_a_stream_has_the_words_and_then_the_caption(client: httpx.Client, photo: bytes):
    files = {"image": ("ball.jpg", photo)}
    response = client.post("/v1/captions/stream", files=files, data={"num_beams": 1, "attention": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    *texts, (kind, caption) = events(response)
    assert kind == "caption"
    assert caption == expected(photo, "ball.jpg", num_beams=1, attention=True)
    assert {name for name, _ in texts} == {"text"}
    assert len(texts) > 1
    assert "".join(data["text"] for _, data in texts) == caption["caption"]


def test_a_stream_that_cannot_begin_has_a_status(client: httpx.Client, photo: bytes):
    files = {"image": ("ball.jpg", photo)}
    check_problem(client.post("/v1/captions/stream", files=files, data={"max_length": 1000}), 400)


def test_a_full_queue_says_when_to_come_back(serve, photo: bytes):
    captioner = Held()
    with serve(captioner, queue_size=1) as client:
        answers = []
        with httpx.stream("POST", f"{client.base_url}/v1/captions/stream", files={"image": photo}) as busy:
            assert busy.status_code == 200
            for path in ("/v1/captions", "/v1/captions/stream", "/image-to-text"):
                answers.append(client.post(path, files={"image": ("a", photo)}))
            captioner.go.set()
        for answer in answers:
            check_problem(answer, 429)
            assert int(answer.headers["retry-after"]) >= 1


def test_too_slow_is_503(serve, photo: bytes):
    captioner = Held()
    with serve(captioner, request_timeout_s=1.5) as client:
        answer = client.post("/v1/captions", files={"image": ("a", photo)})
        captioner.go.set()
        check_problem(answer, 503)
        assert int(answer.headers["retry-after"]) >= 1


def test_the_model_is_listed(client: httpx.Client):
    models = client.get("/v1/models").json()
    assert models["object"] == "list"
    (model,) = models["data"]
    assert (model["id"], model["object"], model["device"]) == ("tiny", "model", "cpu")
    assert model["default_options"]["num_beams"] == 2
    assert (model["max_beams"], model["max_upload_bytes"], model["max_pixels"]) == (16, 32e6, 50e6)
    assert client.get("/v1/models/tiny").json() == model
    assert client.get("/v1/models/default").json() == model
    check_problem(client.get("/v1/models/gpt/4"), 404)


def test_health_and_readiness(serve):
    with serve() as client:
        assert client.get("/healthz").json() == {"status": "alive"}
        assert client.get("/readyz").json() == {"status": "ready"}


def test_not_ready_before_it_is_warm(serve, photo: bytes):
    class Cold(Held):
        def caption_prepared(self, *given: Any, **options: Any) -> list[Caption]:
            assert self.go.wait(30)
            return super().caption_prepared(*given, **options)

    captioner = Cold()
    with serve(captioner, ready=False) as client:
        assert client.get("/healthz").status_code == 200
        answers = [client.get("/readyz"), client.post("/v1/captions", files={"image": ("a", photo)})]
        captioner.go.set()
        for answer in answers:
            check_problem(answer, 503)
            assert answer.headers["retry-after"] == "1"


def metric(client: httpx.Client, name: str, **labels: str) -> float:
    families = text_string_to_metric_families(client.get("/metrics").text)
    found = [
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == name and sample.labels == labels
    ]
    return found[0] if found else 0.0


def test_metrics_count(serve, photo: bytes):
    with serve() as client:
        files = [("image", ("a", photo))] * 3
        before = metric(client, "captioner_images_total", outcome="captioned", model="tiny")
        client.post("/v1/captions", files=files, data={"num_beams": 1})
        client.post("/v1/captions", files={"image": ("a", b"nothing")})
        client.get("/no/such/path")
        assert metric(client, "captioner_images_total", outcome="captioned", model="tiny") - before == 3
        route = {"route": "/v1/captions"}
        assert metric(client, "captioner_http_requests_total", **route, status="200") == 1
        assert metric(client, "captioner_http_requests_total", **route, status="415") == 1
        assert metric(client, "captioner_http_requests_total", route="unknown", status="404") == 1
        assert metric(client, "captioner_http_request_seconds_count", **route) == 2
        assert metric(client, "captioner_tokens_total", model="tiny") > 3
        assert metric(client, "captioner_batch_size_sum", model="tiny") == before + 3
        assert metric(client, "captioner_accepted_images") == 0


def test_unknown_paths_and_methods(client: httpx.Client):
    check_problem(client.get("/no/such/path"), 404)
    answer = client.put("/v1/captions")
    check_problem(answer, 405)
    assert answer.headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("/docs/", "../docs"),
        ("/v1/captions/", "../captions"),
        ("/v1/captions/?partial=true", "../captions?partial=true"),
        ("/static", "static/"),
    ],
)
def test_a_slash_too_many_or_too_few_leads_to_the_right_path_below_any_proxy(
    client: httpx.Client, path: str, place: str
):
    """Neither a proxy's name nor its scheme nor its prefix is known here."""
    headers = {"Host": "localhost", "X-Forwarded-Host": "captions.example"}
    answer = client.request("POST" if "captions" in path else "GET", path, headers=headers)
    assert (answer.status_code, answer.headers["Location"]) == (307, place)


def test_models_with_a_slash_behind_are_all_models(client: httpx.Client):
    assert client.get("/v1/models/").json() == client.get("/v1/models").json()
