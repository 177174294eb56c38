"""The command ``captioner serve``: a process of its own, from its refusals to its end under load."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from tiny import tiny_checkpoint

from captioner.checkpoint import save_checkpoint
from captioner.cli import main
from captioner.errors import DataError
from service.processes import claim
from service.settings import Settings

CAPTIONER = str(Path(sys.executable).parent / "captioner")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint directory."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_checkpoint(tiny_checkpoint(), folder)
    return folder


@dataclass
class Served:
    """A running ``captioner serve``.

    Attributes:
        process: it.
        url: where it serves.
        log: the records that it has logged, so far.
    """

    process: subprocess.Popen[str]
    url: str = ""
    log: list[dict[str, Any]] = field(default_factory=list)

    def read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(json.loads(line))
            if found := re.search(r"serving at (http://\S+)", line):
                self.url = found[1].rstrip('"}')

    def wait_until_ready(self) -> None:
        for _ in range(3000):
            assert self.process.poll() is None, self.log
            with contextlib.suppress(httpx.HTTPError, httpx.UnsupportedProtocol):
                if httpx.get(f"{self.url}/readyz", trust_env=False, verify=False).status_code == 200:
                    return
            time.sleep(0.02)
        raise AssertionError("never ready")


@contextlib.contextmanager
def served(model: Path, *flags: str, **environment: str) -> Iterator[Served]:
    command = [CAPTIONER, "serve", "--model", str(model), "--port", "0", *flags]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=os.environ | environment
    ) as process:
        server = Served(process)
        reader = threading.Thread(target=server.read_log)
        reader.start()
        try:
            server.wait_until_ready()
            yield server
        finally:
            process.terminate()
            reader.join(60)


@pytest.mark.slow
def test_sigterm_under_load_loses_nothing(model: Path, photo: bytes):
    answers: list[int | str] = []
    with served(model, CAPTIONER_MAX_BATCH="4") as server:

        def client() -> None:
            """One request after the other, each on a connection of its own, until the port is closed."""
            session = httpx.Client(headers={"Connection": "close"}, timeout=60, trust_env=False, verify=False)
            while True:
                try:
                    answer = session.post(f"{server.url}/v1/captions", files={"image": photo})
                except httpx.ConnectError:
                    return
                except httpx.HTTPError as error:
                    answers.append(type(error).__name__)
                else:
                    answers.append(answer.status_code)

        threads = [threading.Thread(target=client) for _ in range(8)]
        for thread in threads:
            thread.start()
        while len(answers) < 16:
            time.sleep(0.01)
        server.process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(60)
        assert server.process.wait(60) in (0, -signal.SIGTERM)
    statuses = [record["status"] for record in server.log if record.get("path") == "/v1/captions"]
    assert set(statuses) == {200}
    assert answers.count(200) == len(statuses)
    # The kernel resets a connection that it has taken but the closing server has not: no request was accepted
    assert {answer for answer in answers if answer != 200} <= {"ReadError", "RemoteProtocolError"}
    assert [record for record in server.log if record["level"] not in ("INFO", "DEBUG")] == []


@pytest.mark.slow
def test_a_process_for_each_device(model: Path, photo: bytes):
    with served(model, "--device", "cpu,cpu") as server:
        while pids(server) == set() or len(pids(server)) < 2:
            time.sleep(0.02)
        before = pids(server)
        for _ in range(4):
            assert httpx.post(f"{server.url}/v1/captions", files={"image": photo}).status_code == 200
        assert "captioner_images_total" in httpx.get(f"{server.url}/metrics").text
        os.kill(min(before), signal.SIGKILL)
        while len(pids(server)) < 3:  # a new one takes its place
            time.sleep(0.02)
        server.wait_until_ready()
        assert httpx.post(f"{server.url}/v1/captions", files={"image": photo}).status_code == 200
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(60)
    for pid in pids(server):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def pids(server: Served) -> set[int]:
    """The processes that have served so far."""
    found = (re.search(r"process (\d+) serves", record["message"]) for record in server.log)
    return {int(match[1]) for match in found if match}


def test_a_device_is_claimed_once(tmp_path: Path):
    script = "import sys; from pathlib import Path; from service.processes import claim\n"
    script += "print(claim(['a', 'b'], Path(sys.argv[1])), flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "a\n"
        assert claim(["a", "b"], tmp_path) == "b"
        with pytest.raises(RuntimeError, match="already"):
            claim(["a", "b"], tmp_path)
        other.kill()
        other.wait()
        assert claim(["a", "b"], tmp_path) == "a"


@pytest.mark.parametrize(
    ("argv", "environment", "words"),
    [
        (["--host", "0.0.0.0"], {}, "CAPTIONER_API_KEYS"),
        (["--host", "::"], {}, "--allow-anonymous"),
        ([], {"CAPTIONER_HOST": "192.168.1.2"}, "CAPTIONER_API_KEYS"),
        ([], {"CAPTIONER_MAX_BATCH": "0"}, "CAPTIONER_MAX_BATCH"),
        ([], {"CAPTIONER_MAX_BATCH": "many"}, "CAPTIONER_MAX_BATCH"),
        ([], {"CAPTIONER_LOG_LEVEL": "LOUD"}, "CAPTIONER_LOG_LEVEL"),
    ],
)
def test_settings_that_are_refused(
    argv: list[str],
    environment: dict[str, str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(["serve", *argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith("captioner: ")
    assert error.count("\n") == 1
    assert words in error


def test_a_port_in_use_is_told_before_a_model_is_loaded(capsys: pytest.CaptureFixture[str]):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["serve", "--model", "/no/such/model", "--port", str(port)]) == 1
    assert f"port {port}: Address already in use" in capsys.readouterr().err


def test_the_thread_that_loads_the_model_ends(capsys: pytest.CaptureFixture[str]):
    """Its team of OpenMP threads would slow down the one that captions."""
    threads = []

    def load(*_: object, **__: object) -> None:
        threads.append(threading.current_thread())
        raise DataError("no model here")

    assert main(["serve", "--port", "0"], load=load) == 1
    assert "no model here" in capsys.readouterr().err
    (thread,) = threads
    assert thread is not threading.current_thread()
    assert thread.daemon, "Ctrl-C need not wait for it"
    thread.join(60)
    assert not thread.is_alive()


@pytest.mark.parametrize(
    ("settings", "exposed"),
    [
        ({}, False),
        ({"host": "127.0.0.5"}, False),
        ({"host": "::1"}, False),
        ({"host": "localhost"}, False),
        ({"host": "0.0.0.0"}, True),
        ({"host": "::"}, True),
        ({"host": "10.0.0.1"}, True),
        ({"host": "captions.example"}, True),
        ({"host": ""}, True),
        ({"host": "0.0.0.0", "api_keys": "k"}, False),
        ({"host": "0.0.0.0", "api_keys": " , "}, True),
        ({"host": "0.0.0.0", "allow_anonymous": True}, False),
    ],
)
def test_who_could_come_in_without_a_key(settings: dict[str, object], exposed: bool):
    assert Settings(**settings).exposed() is exposed


def test_settings_of_the_environment(monkeypatch: pytest.MonkeyPatch):
    for name, value in {
        "API_KEYS": "one, two,",
        "URL_HOSTS": "photos.example",
        "CORS_ORIGINS": "",
        "MAX_UPLOAD_MB": "1.5",
        "DEVICE": "cuda:0, cuda:1",
    }.items():
        monkeypatch.setenv(f"CAPTIONER_{name}", value)
    settings = Settings()
    assert [key.get_secret_value() for key in settings.api_keys] == ["one", "two"]
    assert (settings.url_hosts, settings.cors_origins) == (("photos.example",), ())
    assert settings.max_upload_bytes == 1_500_000
    assert settings.devices == ("cuda:0", "cuda:1")
    assert "one" not in repr(settings)


def test_keys_are_known_whole_and_exactly():
    settings = Settings(api_keys="one,zw\u00f6lf")
    assert settings.knows(b"one")
    assert settings.knows("zw\u00f6lf".encode())
    for wrong in (b"", b"on", b"one ", b"One", b"one,zw\xc3\xb6lf", b"\xff"):
        assert not settings.knows(wrong)
