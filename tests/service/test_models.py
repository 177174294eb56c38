"""Several models in one server: chosen by name, loaded when first asked for, unloaded for want of memory."""

from __future__ import annotations

import asyncio
import base64
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import ollama
import openai
import pytest
import torch
from huggingface_hub import InferenceClient
from model_servers import model_server
from problems import check_problem
from standins import Held
from tiny import tiny_captioner

from captioner import Captioner, CheckpointError, NamedModel, OptionsError
from captioner.runners import Address
from captioner.runners.remote import RemoteRunner
from service.app import create_app
from service.models import Models
from service.server import _settings as read_settings
from service.settings import Settings

NAMES = "zero=made/0, one=made/1, two=made/2"
SIZE = tiny_captioner().weight_bytes


class Shelf:
    """Loads ``made/N``, a tiny model of seed N.

    Attributes:
        loaded: what was loaded, in order.
        living: the models that were, which may be gone.
        go: clear it, and loading waits until it is set.
        wrong: what loading raises; each is raised once.
        special: models to give in place of tiny ones.
    """

    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.living: list[weakref.ref[Captioner]] = []
        self.go = threading.Event()
        self.go.set()
        self.wrong: list[Exception] = []
        self.special: dict[str, Captioner] = {}

    def __call__(self, place: str, /, *, device: str, dtype: str) -> Captioner:
        self.loaded.append(place)
        assert self.go.wait(30)
        if self.wrong and place != "made/0":
            raise self.wrong.pop()
        model = self.special.get(place) or tiny_captioner(seed=int(place[-1]))
        self.living.append(weakref.ref(model))
        return model

    def count(self) -> int:
        """Models that are still there."""
        return sum(model() is not None for model in self.living)


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


def expected(photo: bytes, seed: int) -> str:
    return tiny_captioner(seed=seed).caption([photo])[0].caption


def ask(client: httpx.Client, photo: bytes, model: str) -> httpx.Response:
    return client.post("/v1/captions", files={"image": ("a", photo)}, data={"model": model})


def until(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.01)


def loaded(client: httpx.Client) -> dict[str, bool]:
    return {model["id"]: model["loaded"] for model in client.get("/v1/models").json()["data"]}


def test_every_form_of_request_chooses_its_model(serve, shelf: Shelf, photo: bytes):
    data = base64.b64encode(photo).decode()
    url = {"url": f"data:image/jpeg;base64,{data}"}
    with serve(load=shelf, models=NAMES, model_aliases="gpt-4o,llava=one") as client:
        assert shelf.loaded == ["made/0"], "the others wait until somebody wants them"
        assert loaded(client) == dict(zero=True, one=False, two=False, **{"gpt-4o": True, "llava": False})
        captions = {name: expected(photo, seed) for seed, name in enumerate(("zero", "one", "two"))}
        assert len(set(captions.values())) == 3
        for name, caption in captions.items():
            answer = ask(client, photo, name).json()
            assert (answer["model"], answer["captions"][0]["model"]) == (name, name)
            assert answer["captions"][0]["caption"] == caption
            body = {"images": [{"base64": data}], "model": name}
            assert client.post("/v1/captions", json=body).json()["captions"][0]["caption"] == caption
            assert f'"caption": "{caption}"' in client.post("/v1/captions/stream", json=body).text
            assert client.post(f"/models/{name}", content=photo).json() == [{"generated_text": caption}]
            assert client.get(f"/v1/models/{name}").json()["id"] == name
        assert shelf.loaded == ["made/0", "made/1", "made/2"], "each of them once"

        with openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="x", max_retries=0) as found:
            content: Any = [{"type": "image_url", "image_url": url}]
            for name, caption in {"one": captions["one"], "gpt-4o": captions["zero"]}.items():
                messages: Any = [{"role": "user", "content": content}]
                answer = found.chat.completions.create(model=name, messages=messages)
                assert answer.choices[0].message.content == caption
                chunks = found.chat.completions.create(model=name, messages=messages, stream=True)
                assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == caption
            image: Any = [{"role": "user", "content": [{"type": "input_image", "image_url": url["url"]}]}]
            response = found.responses.create(model="two", input=image)
            assert (response.model, response.output_text) == ("two", captions["two"])
            with pytest.raises(
                openai.NotFoundError, match="'zero', 'one', 'two', 'gpt-4o', 'llava', not 'x'"
            ):
                found.responses.create(model="x", input=image)

        tool = ollama.Client(host=str(client.base_url), trust_env=False)
        assert [model.model for model in tool.list().models] == [*captions, "gpt-4o", "llava"]
        assert tool.generate("llava:latest", images=[photo]).response == captions["one"]
        assert tool.chat("two", [{"role": "user", "images": [photo]}]).message.content == captions["two"]
        assert tool.show("two").details is not None
        assert (
            InferenceClient(model=f"{client.base_url}/models/two").image_to_text(photo).generated_text
            == (captions["two"])
        )
        chat = InferenceClient(f"{client.base_url}/models/one").chat_completion(messages=messages)
        assert chat.choices[0].message.content == captions["one"]


def test_who_names_no_model_gets_the_first(serve, shelf: Shelf, photo: bytes):
    with serve(load=shelf, models=NAMES) as client:
        answer = client.post("/v1/captions", files={"image": ("a", photo)}).json()
        assert answer["model"] == "zero"
        assert ask(client, photo, "default").json()["model"] == "zero"
        assert client.post("/image-to-text", content=photo).json() == [{"generated_text": expected(photo, 0)}]
    with serve(load=shelf, models="zero=made/0, default=made/1") as client:
        assert ask(client, photo, "default").json()["captions"][0]["caption"] == expected(photo, 1)
        assert ask(client, photo, "").json()["model"] == "zero"


def test_a_request_cannot_bring_a_model(serve, shelf: Shelf, photo: bytes):
    with serve(load=shelf, models=NAMES) as client:
        for name in ("made/1", "/etc", "http://127.0.0.1:9/v1#x", "ollama://127.0.0.1#x", "one=made/1"):
            problem = check_problem(ask(client, photo, name), 404)
            assert "'zero', 'one', 'two'" in problem["detail"]
            check_problem(client.get(f"/v1/models/{name}"), 404)
        assert shelf.loaded == ["made/0"]


def test_a_client_of_ollama_loads_a_model_ahead(serve, shelf: Shelf):
    with serve(load=shelf, models=NAMES) as client:
        tool = ollama.Client(host=str(client.base_url), trust_env=False)
        assert tool.generate("one").done_reason == "load"
        assert loaded(client)["one"]


def test_the_longest_unused_is_unloaded_and_loaded_again(serve, shelf: Shelf, photo: bytes):
    with serve(load=shelf, models=NAMES, models_memory_mb=2.5 * SIZE / 1e6) as client:
        ask(client, photo, "one")
        ask(client, photo, "zero")
        assert ask(client, photo, "two").status_code == 200
        until(lambda: loaded(client) == {"zero": True, "one": False, "two": True})
        until(lambda: shelf.count() == 2)
        assert ask(client, photo, "one").json()["captions"][0]["caption"] == expected(photo, 1)
        until(lambda: loaded(client) == {"zero": False, "one": True, "two": True})
        assert shelf.loaded == ["made/0", "made/1", "made/2", "made/1"]
        about = client.get("/v1/models/zero").json()
        assert about["description"] == "a tiny model for tests", "it is still known"
        text = client.get("/metrics").text
        assert f'captioner_model_bytes{{model="two"}} {float(SIZE)}' in text
        assert 'captioner_model_bytes{model="zero"} 0.0' in text
        assert 'captioner_model_loads_total{model="one"} 2.0' in text
        assert 'captioner_images_total{model="two",outcome="captioned"} 2.0' in text  # one is the warm-up's


def test_a_first_model_that_was_given_is_gone_once_it_is_unloaded(shelf: Shelf):
    given = tiny_captioner(seed=0)
    settings = Settings(models="zero=made/0, same=made/0", models_memory_mb=0.5 * SIZE / 1e6)
    app, gone = create_app(settings, given, load=shelf), weakref.ref(given)
    del given

    async def test() -> None:
        async with app.router.lifespan_context(app):
            models = app.state.service.engine.models
            assert shelf.loaded == []
            async with models.use(models.find("same")) as other:
                assert other is not gone()
                assert other.name == "same"
            assert models.first.captioner is None
            async with asyncio.timeout(30):
                while gone() is not None:
                    await asyncio.sleep(0.01)
            async with models.use(models.first) as again:
                assert again.name == "zero"
        assert shelf.loaded == ["made/0", "made/0"]

    asyncio.run(test())


def test_one_that_is_too_large_alone_is_kept_until_another_is_wanted(serve, shelf: Shelf, photo: bytes):
    with serve(load=shelf, models=NAMES, models_memory_mb=0.5 * SIZE / 1e6) as client:
        ask(client, photo, "zero")
        ask(client, photo, "zero")
        assert shelf.loaded == ["made/0"]
        ask(client, photo, "one")
        until(lambda: loaded(client) == {"zero": False, "one": True, "two": False})


def test_none_is_unloaded_while_it_is_used(serve, shelf: Shelf, photo: bytes):
    held = shelf.special["made/1"] = Held()
    with (
        serve(load=shelf, models=NAMES, models_memory_mb=0.5 * SIZE / 1e6) as client,
        ThreadPoolExecutor() as pool,
    ):
        answer = pool.submit(ask, client, photo, "one")
        assert held.busy.wait(30)
        behind = pool.submit(ask, client, photo, "two")
        until(lambda: "made/2" in shelf.loaded)
        assert loaded(client)["one"]
        held.go.set()
        assert answer.result().json()["captions"][0]["model"] == "one"
        assert behind.result().status_code == 200
        until(lambda: loaded(client) == {"zero": False, "one": False, "two": True})


def test_requests_that_come_together_load_a_model_once(serve, shelf: Shelf, photo: bytes):
    with serve(load=shelf, models=NAMES) as client, ThreadPoolExecutor() as pool:
        shelf.go.clear()
        answers = [pool.submit(ask, client, photo, "one") for _ in range(4)]
        until(lambda: "made/1" in shelf.loaded)
        assert ask(client, photo, "zero").status_code == 200, "the others go on meanwhile"
        shelf.go.set()
        assert [answer.result().status_code for answer in answers] == [200] * 4
        assert shelf.loaded.count("made/1") == 1


def test_a_model_that_takes_too_long_goes_on_loading(serve, shelf: Shelf, photo: bytes):
    with serve(load=shelf, models=NAMES, request_timeout_s=0.5) as client:
        shelf.go.clear()
        check_problem(ask(client, photo, "one"), 503)
        shelf.go.set()
        until(lambda: loaded(client)["one"])
        assert shelf.loaded == ["made/0", "made/1"]


def test_what_is_loading_counts_as_accepted(serve, shelf: Shelf, photo: bytes):
    with serve(load=shelf, models=NAMES, queue_size=2) as client, ThreadPoolExecutor() as pool:
        shelf.go.clear()
        answers = [pool.submit(ask, client, photo, "one") for _ in range(2)]
        until(lambda: "captioner_accepted_images 2.0" in client.get("/metrics").text)
        check_problem(ask(client, photo, "zero"), 429)
        shelf.go.set()
        assert [answer.result().status_code for answer in answers] == [200] * 2


def test_the_end_waits_for_a_model_that_is_loading(serve, shelf: Shelf, photo: bytes):
    with ThreadPoolExecutor() as pool:
        with serve(load=shelf, models=NAMES) as client:
            shelf.go.clear()
            session = httpx.Client(base_url=client.base_url, timeout=60, trust_env=False)
            answer = pool.submit(ask, session, photo, "one")
            until(lambda: "made/1" in shelf.loaded)
            pool.submit(lambda: (time.sleep(0.3), shelf.go.set()))
        assert answer.result().json()["captions"][0]["caption"] == expected(photo, 1)
        session.close()


def test_a_model_that_cannot_be_loaded_is_its_own_requests_problem(serve, shelf: Shelf, photo: bytes):
    shelf.wrong.append(CheckpointError("/secret/place is damaged"))
    with serve(load=shelf, models=NAMES) as client:
        problem = check_problem(ask(client, photo, "one"), 503)
        assert problem["type"].endswith("model-unavailable")
        assert "secret" not in problem["detail"]
        assert ask(client, photo, "zero").status_code == 200
        assert ask(client, photo, "one").status_code == 200, "it is tried again"
        assert client.get("/healthz").status_code == 200


class Broken(Held):
    """Fails on every photo."""

    def caption_prepared(self, *args: Any, **options: Any) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


def test_a_model_that_fails_on_a_blank_photo_ends_nothing(serve, shelf: Shelf, photo: bytes):
    shelf.special["made/1"] = Broken()
    with serve(load=shelf, models=NAMES) as client:
        check_problem(ask(client, photo, "one"), 503)
        assert ask(client, photo, "zero").status_code == 200
        assert client.get("/healthz").status_code == 200


def test_memory_that_runs_out_while_loading_is_made(serve, shelf: Shelf, photo: bytes):
    with serve(load=shelf, models=NAMES) as client:
        ask(client, photo, "one")
        shelf.wrong.append(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."))
        assert ask(client, photo, "two").json()["captions"][0]["caption"] == expected(photo, 2)
        assert loaded(client) == {"zero": False, "one": False, "two": True}


def test_models_of_other_servers_are_named_before_anything_is_sent(serve, shelf: Shelf, photo: bytes):
    with model_server() as server:
        place = server.openai
        shelf.special[place] = Captioner(RemoteRunner(Address.parse(place)), name="made/up")
        with serve(load=shelf, models=f"zero=made/0, far={place}") as client:
            far = client.get("/v1/models/far").json()
            assert far["sends_photos_to"] == f"127.0.0.1:{server.port}"
            assert client.get("/v1/models/zero").json()["sends_photos_to"] is None
            assert server.bodies == []
            assert ask(client, photo, "zero").status_code == 200
            assert server.bodies == []
            assert ask(client, photo, "far").json()["captions"][0]["caption"].startswith("a photo 120 wide")
            assert len(server.bodies) == 1


def test_one_model_on_the_command_line_counts_more_than_several_in_a_variable(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("CAPTIONER_MODELS", "default, big=/data/my models/big\nfar=http://gpu/v1#a=b")
    places = ("default", "big=/data/my models/big", "far=http://gpu/v1#a=b")
    assert read_settings({}).places == places
    assert read_settings({"model": "blip"}).places == ("blip",)


@pytest.mark.parametrize("alias", ["one=zero", "x=four", "one"])
def test_aliases_that_fit_nothing(alias: str):
    choices = [NamedModel(name=name, place=f"made/{name}") for name in ("zero", "one")]
    with pytest.raises(OptionsError, match="alias"):
        Models(choices, lambda place: tiny_captioner(), aliases=[alias])
