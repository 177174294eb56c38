"""Models on servers: what is sent, what is made of the answers, and what goes wrong on the way."""

from __future__ import annotations

import base64
import gc
import io
import json
import math
import os
import pickle
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from images import draw_noise, draw_scene, encode
from model_servers import ModelServer, describe, model_server, pieces
from PIL import Image

import captioner
from captioner import (
    Captioner,
    CheckpointError,
    GenerationOptions,
    OptionsError,
    PartialError,
    RemoteError,
    RemoteUnavailableError,
)
from captioner.cli import main
from captioner.runners import Address
from captioner.runners.address import RemoteSettings
from captioner.runners.instruction import DEFAULT_INSTRUCTION
from captioner.runners.protocols import Answer, answer_text, written_answer
from captioner.runners.remote import RemoteRunner

QUICK = RemoteSettings(backoff_s=0.001, timeout_s=5)
NOBODY = RemoteRunner(Address.parse("http://nobody/v1#nothing"), QUICK)
PHOTOS = [draw_noise(60 + seed, 90 - seed, seed=seed) for seed in range(6)]


@pytest.fixture(autouse=True)
def _straight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests go to loopback, whatever proxy the machine has, and retries do not wait."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("CAPTIONER_REMOTE_BACKOFF_S", "0.001")


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with model_server() as found:
        yield found


def remote(address: str, **settings: Any) -> Captioner:
    where = Address.parse(address)
    return Captioner(RemoteRunner(where, replace(QUICK, **settings)), name=where.model)


def text_of(photo: Image.Image) -> str:
    """What a server says of it: JPEG is the same everywhere for the same pixels."""
    return describe(NOBODY.prepare(photo))


KINDS = ["openai", "ollama"]


@pytest.mark.parametrize("kind", KINDS)
def test_captions_words_and_confidences_are_the_servers(kind: str, server: ModelServer):
    model = captioner.load(getattr(server, kind))
    assert model.name == {"openai": "made/up", "ollama": "made-up:2b"}[kind]
    server.delay = 0.2  # long enough for requests to meet
    captions = model.caption(PHOTOS)
    for photo, caption in zip(PHOTOS, captions, strict=True):
        tokens = pieces(text_of(photo))
        total = sum(token["logprob"] for token in tokens)
        assert caption.caption == text_of(photo)
        assert caption.logprob == pytest.approx(total)
        assert caption.confidence == pytest.approx(math.exp(total / len(tokens)))
        assert [word.text for word in caption.words] == caption.caption.split()
        assert caption.words[0].logprob == pytest.approx(-0.01)  # "a" is in the first token, "a p"
        assert caption.words[1].logprob == pytest.approx(-0.01 - 0.02 - 0.03)  # "photo" in three
        assert (caption.width, caption.height) == photo.size
    assert 1 < server.most <= 8, "several at a time"


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_sent(kind: str, server: ModelServer):
    sampling = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 5, "seed": 3}
    options = GenerationOptions(instruction="Name the colours.", max_length=9, **sampling)
    remote(getattr(server, kind)).caption([draw_scene()], replace(options, repetition_penalty=1.2))
    remote(getattr(server, kind)).caption([draw_scene()])
    asked, default = server.bodies
    if kind == "openai":
        (message,) = asked.pop("messages")
        assert message["content"][1] == {"type": "text", "text": "Name the colours."}
        assert asked == {
            "model": "made/up",
            "max_tokens": 9,
            "temperature": 0.7,
            "top_p": 0.9,
            "top_k": 5,
            "seed": 3,
            "repetition_penalty": 1.2,
            "logprobs": True,
        }
        (message,) = default.pop("messages")
        assert message["content"][1]["text"] == DEFAULT_INSTRUCTION
        assert default == {"model": "made/up", "max_tokens": 128, "temperature": 0, "logprobs": True}
        return
    (message,) = asked.pop("messages")
    assert message["content"] == "Name the colours."
    assert asked.pop("options") == {
        "num_predict": 9,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 5,
        "seed": 3,
        "repeat_penalty": 1.2,
    }
    assert asked == {"model": "made-up:2b", "stream": False, "think": False, "logprobs": True}
    assert default["options"] == {"num_predict": 128, "temperature": 0}


def test_photos_go_as_jpegs_of_a_bounded_size(server: ModelServer, tmp_path: Path):
    large = draw_noise(1600, 1200, seed=1)
    turned = Image.Exif()
    turned[0x0112] = 6
    large.save(tmp_path / "turned.jpg", exif=turned)
    (caption,) = remote(server.openai, max_side=320).caption([tmp_path / "turned.jpg"])
    assert "240 wide and 320 high" in caption.caption, "upright, and smaller"
    assert (caption.width, caption.height) == (1200, 1600), "its own size is told"
    url = server.bodies[0]["messages"][0]["content"][0]["image_url"]["url"]
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as sent:
        assert not sent.getexif(), "nothing is sent of where and when"


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_adds_up_to_the_caption(kind: str, server: ModelServer):
    model = remote(getattr(server, kind))
    *events, last = model.stream(PHOTOS[0])
    (whole,) = model.caption(PHOTOS[:1])
    assert last.caption == whole
    assert "".join(event.text for event in [*events, last]) == whole.caption
    assert len(events) > 5
    assert server.bodies[0]["stream"] is True


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_that_breaks_off_is_an_error(kind: str):
    with model_server(fault=lambda text, attempt: "cut stream") as server:
        stream = remote(getattr(server, kind)).stream(PHOTOS[0])
        with pytest.raises(RemoteError, match="broke off"):
            list(stream)
        assert sum(server.asked.values()) == 1, "what was said cannot be taken back"


def test_a_stream_that_does_not_begin_is_asked_for_again():
    with model_server(fault=lambda text, attempt: "500" if attempt < 3 else None) as server:
        *_, last = remote(server.openai).stream(PHOTOS[0])
        assert last.caption is not None
        assert list(server.asked.values()) == [3]


@pytest.mark.parametrize("logprobs", ["no", "refuse"])
def test_without_log_probs_there_are_words_but_no_confidences(logprobs: str, tmp_path: Path):
    with model_server(logprobs=logprobs) as server:
        model = remote(server.openai, parallel=1)
        caption, _ = model.caption(PHOTOS[:2])
        *_, last = model.stream(PHOTOS[0])
    assert caption.caption == text_of(PHOTOS[0])
    assert last.caption == caption
    data = caption.to_dict()
    assert (data["confidence"], data["logprob"]) == (None, None)
    assert data["words"][0] == {"text": "a", "logprob": None, "confidence": None}
    assert captioner.Caption.from_dict(json.loads(json.dumps(data))) == caption
    if logprobs == "refuse":
        asked = [body.get("logprobs", False) for body in server.bodies]
        assert asked == [True, False, False, False], "once refused, they are not asked for again"


def test_alternatives_are_samples_best_first(server: ModelServer):
    options = GenerationOptions(do_sample=True, alternatives=3, seed=2**31 - 2)
    (caption,) = remote(server.openai).caption(PHOTOS[:1], options)
    assert len(caption.alternatives) == 3
    assert sorted(body["seed"] for body in server.bodies) == [0, 1, 2**31 - 2, 2**31 - 1]
    *_, last = remote(server.openai).stream(PHOTOS[0], options)
    assert len(last.caption.alternatives) == 3


TRANSIENT = ["429", "500", "503", "cut", "nonsense", "no JSON", "empty"]


@pytest.mark.parametrize("fault", TRANSIENT)
def test_what_may_pass_is_tried_again(fault: str):
    with model_server(fault=lambda text, attempt: fault if attempt < 3 else None) as server:
        (caption,) = remote(server.openai).caption(PHOTOS[:1])
        assert caption.caption == text_of(PHOTOS[0])
        assert server.asked == {caption.caption: 3}


@pytest.mark.slow
def test_a_slow_answer_is_not_waited_for():
    with model_server(fault=lambda text, attempt: "slow" if attempt == 1 else None) as server:
        (caption,) = remote(server.openai, timeout_s=1).caption(PHOTOS[:1])
        assert server.asked == {caption.caption: 2}


LASTING: dict[str, tuple[type[RemoteError], str]] = {
    "429": (RemoteUnavailableError, "429: made-up 429"),
    "503": (RemoteUnavailableError, "503"),
    "403": (RemoteUnavailableError, "CAPTIONER_REMOTE_KEY"),
    "302": (RemoteUnavailableError, "goes nowhere else"),
    "500": (RemoteError, "500: made-up 500"),
    "400": (RemoteError, "400"),
    "cut": (RemoteError, "broke off"),
    "nonsense": (RemoteError, "not what its API says"),
    "no JSON": (RemoteError, "not JSON"),
    "empty": (RemoteError, "answers with nothing"),
    "endless": (RemoteError, "without an end"),
    "refuse": (RemoteError, "refuses: no people"),
}


@pytest.mark.parametrize("fault", LASTING)
def test_what_lasts_is_an_error_of_that_photo(fault: str):
    bad = text_of(PHOTOS[2])
    with model_server(fault=lambda text, attempt: fault if text == bad else None) as server:
        with pytest.raises(PartialError, match="1 of 4 photographs") as raised:
            remote(server.openai, attempts=2, parallel=1).caption([*PHOTOS[:2], *PHOTOS[3:4], PHOTOS[2]])
        *captions, error = raised.value.results
        assert [caption.caption for caption in captions] == [text_of(PHOTOS[at]) for at in (0, 1, 3)]
        kind, message = LASTING[fault]
        assert message in str(error)
        assert isinstance(error, RemoteUnavailableError) == (kind is RemoteUnavailableError)
        assert max(server.asked.values()) <= 2
        once = {"403", "302", "400", "endless", "refuse"}
        assert server.asked[bad] == (1 if fault in once else 2), "what cannot pass is not tried again"


def test_nobody_there():
    with pytest.raises(PartialError) as raised:
        remote("http://127.0.0.1:9/v1#any", attempts=2).caption(PHOTOS[:3])
    assert all(isinstance(error, RemoteUnavailableError) for error in raised.value.results)
    assert "127.0.0.1:9 cannot be reached" in str(raised.value)


def test_a_server_that_wants_to_be_left_alone_for_long_is_given_up():
    with model_server(fault=lambda text, attempt: "429", retry_after="3600") as server:
        with pytest.raises(PartialError, match="wants no request for 3600 seconds"):
            remote(server.openai).caption(PHOTOS[:1])
        assert sum(server.asked.values()) == 1


def test_retry_after_is_waited_for():
    with model_server(fault=lambda text, attempt: "429" if attempt == 1 else None, retry_after="1") as server:
        begun = time.monotonic()
        remote(server.openai).caption(PHOTOS[:1])
        assert time.monotonic() - begun >= 1


def test_a_rate_is_kept(server: ModelServer):
    begun = time.monotonic()
    remote(server.openai, per_minute=600).caption(PHOTOS)  # one every 0.1 s
    assert time.monotonic() - begun >= 0.5


def test_a_key_comes_from_the_environment_alone(monkeypatch: pytest.MonkeyPatch):
    with model_server(key="s3cret") as server:
        monkeypatch.setenv("CAPTIONER_REMOTE_KEY", "s3cret")
        model = captioner.load(server.openai)
        assert model.caption(PHOTOS[:1])
        assert "s3cret" not in repr(RemoteSettings.from_environment())
        monkeypatch.setenv("CAPTIONER_REMOTE_KEY", "wrong")
        with pytest.raises(PartialError, match="no such key; set CAPTIONER_REMOTE_KEY"):
            captioner.load(server.openai).caption(PHOTOS[:1])
    for address in ("http://me:s3cret@host/v1#x", "ollama://s3cret@host#x"):
        with pytest.raises(CheckpointError, match="CAPTIONER_REMOTE_KEY"):
            captioner.load(address)


@pytest.mark.parametrize(
    ("address", "base", "host", "model"),
    [
        ("http://gpu:8000/v1#Qwen/Qwen2.5-VL-7B", "http://gpu:8000/v1", "gpu:8000", "Qwen/Qwen2.5-VL-7B"),
        ("https://api.example.org/v1/#m", "https://api.example.org/v1", "api.example.org", "m"),
        ("ollama://gpu#llava:7b", "http://gpu:11434", "gpu:11434", "llava:7b"),
        ("ollama://[::1]:9#m", "http://[::1]:9", "[::1]:9", "m"),
    ],
)
def test_addresses(address: str, base: str, host: str, model: str):
    found = Address.parse(address)
    assert (found.base, found.host, found.model) == (base, host, model)


@pytest.mark.parametrize(
    "address", ["http://gpu/v1", "http://#m", "http://gpu/v1?key=1#m", "http://gpu:x/v1#m"]
)
def test_what_is_no_address(address: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(CheckpointError):
        captioner.load(address)
    assert main(["caption", "--model", address, "x.jpg"]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(("name", "value"), [("PARALLEL", "0"), ("TIMEOUT_S", "soon"), ("MAX_SIDE", "9999")])
def test_variables_that_are_not_valid(name: str, value: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(f"CAPTIONER_REMOTE_{name}", value)
    with pytest.raises(OptionsError, match=f"CAPTIONER_REMOTE_{name}"):
        captioner.load("http://gpu/v1#m")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (GenerationOptions(num_beams=2), "no beam search"),
        (GenerationOptions(alternatives=2), "sample where you want alternatives"),
        (GenerationOptions(prompt="a photo of"), "prompt"),
        (GenerationOptions(bad_words=("dog",), no_repeat_ngram_size=2), "bad_words or no_repeat_ngram_size"),
    ],
)
def test_what_a_server_cannot_do_is_refused_and_nothing_sent(
    options: GenerationOptions, message: str, server: ModelServer
):
    model = remote(server.openai)
    for call in (model.caption, lambda photos, options: model.stream(photos[0], options)):
        with pytest.raises(OptionsError, match=message):
            call(PHOTOS[:1], options)
    assert server.bodies == []


def test_a_runner_travels_to_another_process(server: ModelServer):
    model = remote(server.openai)
    again = pickle.loads(pickle.dumps(model))
    assert again.caption(PHOTOS[:1]) == model.caption(PHOTOS[:1])


def test_what_a_model_thinks_aloud_is_no_caption():
    text = "<think>\na dog?\nno.\n</think>\n\n A cat\nsleeps. "
    assert answer_text(text) == "A cat sleeps."
    assert answer_text("<think> a dog") == ""
    thought = text.partition(" A")[0]
    tokens = [(piece.encode(), -1.0) for piece in (thought, " A", " cat\n", "sleeps", ". ", "</s>")]
    caption = written_answer(Answer(text, tuple(tokens)))
    assert [(word.text, word.start, word.stop) for word in caption.words] == [
        ("A", 1, 2),
        ("cat", 2, 3),
        ("sleeps.", 3, 5),
    ]


def test_a_letter_in_two_tokens_and_words_that_no_token_has():
    tokens = ((b"caf\xc3", -1.0), (b"\xa9", -2.0), (b" bar", -4.0))
    found = written_answer(Answer("café bar", tokens)).words
    assert [(word.text, word.start, word.stop) for word in found] == [("café", 0, 2), ("bar", 2, 3)]
    found = written_answer(Answer("tea bar", tokens)).words
    assert [(word.text, word.start, word.stop) for word in found] == [("tea", 0, 0), ("bar", 2, 3)]


def test_the_command_line_captions_and_names_what_failed(
    server: ModelServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CAPTIONER_REMOTE_ATTEMPTS", "1")
    for number, photo in enumerate(PHOTOS[:3]):
        photo.save(tmp_path / f"{number}.png")
    server.fault = lambda text, attempt: "500" if text == text_of(PHOTOS[1]) else None
    files = [str(tmp_path / f"{number}.png") for number in range(3)]
    assert main(["caption", "--model", server.ollama, *files, "--json"]) == 1
    out, err = capsys.readouterr()
    captions = [json.loads(line) for line in out.splitlines()]
    assert [caption.get("caption") for caption in captions] == [text_of(PHOTOS[0]), None, text_of(PHOTOS[2])]
    assert "500" in captions[1]["error"]
    assert f"{files[1]}: 127.0.0.1" in err
    assert main(["models", server.ollama]) == 0
    out = capsys.readouterr().out
    assert "attention\tno\tthe server does not tell" in out
    assert "instructions\tyes" in out


def make_library(folder: Path, count: int) -> dict[str, str]:
    """Photographs that are all different; what a server says of each."""
    folder.mkdir()
    found = {}
    for number in range(count):
        colour = number % 200, 2 * (number % 100), number // 3 % 256
        photo = Image.new("RGB", (40 + number // 200, 40), colour)
        path = folder / f"{number:05}.png"
        path.write_bytes(encode(photo, "PNG"))
        found[str(path)] = text_of(photo)
    assert len(set(found.values())) == count
    return found


def read_records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def batch(server: ModelServer, kind: str, folder: Path, *more: str) -> list[str]:
    model = getattr(server, kind)
    return ["batch", str(folder / "library"), "-o", str(folder / "out.jsonl"), "--model", model, "-q", *more]


def faults(text: str, attempt: int) -> str | None:
    """A fifth of first requests fail, in every way; by the fourth attempt all is well."""
    draw = random.Random(f"{text} {attempt}")
    if attempt > 3 or draw.random() > 0.2:
        return None
    return draw.choice(["429", "500", "503", "cut", "nonsense", "no JSON"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_through_faults_loses_and_doubles_nothing(kind: str, tmp_path: Path):
    library = make_library(tmp_path / "library", 300)
    with model_server(fault=faults) as server:
        assert main(batch(server, kind, tmp_path, "--sidecar", "txt")) == 0
        records = read_records(tmp_path / "out.jsonl")
        assert {record["file"]: record["caption"] for record in records} == library
        assert len(records) == len(library)
        assert set(server.answered.values()) == {1}, "no photo was paid for twice"
        assert sum(server.asked.values()) > 320, "there were faults"
    for file, caption in library.items():
        assert Path(file).with_suffix(".txt").read_text().strip() == caption


def test_a_server_that_goes_away_ends_the_run_and_the_next_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CAPTIONER_REMOTE_ATTEMPTS", "2")
    library = make_library(tmp_path / "library", 60)
    answers = Counter[str]()

    def full_after_20(text: str, attempt: int) -> str | None:
        answers["all"] += 1
        return "503" if answers["all"] > 20 else None

    with model_server(fault=full_after_20) as server:
        assert main(batch(server, "openai", tmp_path)) == 1
        assert "503" in (said := capsys.readouterr().err)
        assert "the same command goes on" in said
        before = read_records(tmp_path / "out.jsonl")
        assert len(before) == 20, "what was captioned is written, and no error in place of the rest"
        assert all("caption" in record for record in before)
        server.fault = lambda text, attempt: None
        assert main(batch(server, "openai", tmp_path)) == 0
        records = read_records(tmp_path / "out.jsonl")
        assert {record["file"]: record["caption"] for record in records} == library
        assert len(records) == 60
        assert set(server.answered.values()) == {1}


def test_photos_that_a_server_refuses_are_records_with_an_error(tmp_path: Path):
    library = make_library(tmp_path / "library", 40)
    refused = {text for number, text in enumerate(library.values()) if number % 7 == 3}
    with model_server(fault=lambda text, attempt: "400" if text in refused else None) as server:
        assert main(batch(server, "openai", tmp_path)) == 1
        records = read_records(tmp_path / "out.jsonl")
        errors = {record["file"]: record for record in records if "error" in record}
        assert {library[file] for file in errors} == refused
        assert {record["error_kind"] for record in errors.values()} == {"remote"}
        assert len(records) == 40


def test_a_server_that_fails_on_everything_ends_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CAPTIONER_REMOTE_ATTEMPTS", "1")
    make_library(tmp_path / "library", 60)
    with model_server(fault=lambda text, attempt: "500") as server:
        assert main(batch(server, "openai", tmp_path)) == 1
        assert "the same command goes on" in capsys.readouterr().err
        assert sum(server.asked.values()) <= 24


def kill_and_go_on(kind: str, folder: Path, *, photos: int, kills: int) -> None:
    """Kill batches at random moments; at the end every photo has one record, and few were asked for twice."""
    library = make_library(folder / "library", photos)
    program = [sys.executable, "-c", "import sys; from captioner.cli import main; sys.exit(main())"]
    environment = {**os.environ, "CAPTIONER_REMOTE_PARALLEL": "4"}
    draw, output = random.Random(0), folder / "out.jsonl"
    with model_server(fault=faults, delay=0.002) as server:
        command = [*program, *batch(server, kind, folder, "--batch-size", "16")]
        for _ in range(kills):
            done = len(server.answered)
            goal = done + draw.randrange(1, max(2, photos // kills))
            process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
            while process.poll() is None and len(server.answered) < min(goal, photos):
                time.sleep(0.002)
            process.kill()
            process.wait()
        assert subprocess.run(command, env=environment, stderr=subprocess.DEVNULL).returncode == 0
        records = read_records(output)
        assert Counter(record["file"] for record in records) == dict.fromkeys(library, 1)
        assert {record["file"]: record["caption"] for record in records} == library
        again = sum(count - 1 for count in server.answered.values())
        assert again <= kills * 16, "only what was under way when it was killed is asked for again"


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_that_is_killed_loses_and_doubles_nothing(kind: str, tmp_path: Path):
    kill_and_go_on(kind, tmp_path, photos=300, kills=2)


if __name__ == "__main__":  # the full size: python tests/test_remote_runner.py openai|ollama FOLDER
    kill_and_go_on(sys.argv[1], Path(sys.argv[2]), photos=2000, kills=12)
    print(f"{sys.argv[1]}: 2000 photos, 12 kills: nothing lost, nothing doubled")


@pytest.mark.parametrize("kind", KINDS)
def test_who_drops_a_model_leaves_no_connection_and_no_thread(kind: str, server: ModelServer):
    before = set(threading.enumerate())
    model = remote(getattr(server, kind))
    assert model.caption(PHOTOS[:2])
    (loop,) = [each for each in set(threading.enumerate()) - before if each.name == "connections"]
    del model
    gc.collect()
    loop.join(30)
    assert not loop.is_alive()
