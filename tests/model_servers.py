"""Made-up model servers on loopback: one that speaks OpenAI's API, one that speaks Ollama's, with faults."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import repeat
from typing import Any

from PIL import Image

Fault = Callable[[str, int], str | None]
"""What goes wrong for a photo's text the n-th time that it is asked for; None for nothing."""


def describe(jpeg: bytes) -> str:
    """A caption that depends on the photo alone: its size and its mean colour."""
    with Image.open(io.BytesIO(jpeg)) as image:
        assert image.format == "JPEG"
        red, green, blue = image.resize((1, 1)).getpixel((0, 0))
        return f"a photo {image.width} wide and {image.height} high, of {red} {green} {blue}"


def no_fault(text: str, attempt: int) -> str | None:
    return None


@dataclass
class ModelServer:
    """What it was asked, and how it is to behave.

    Attributes:
        fault: chooses what goes wrong: ``429``, ``500``, any other status, ``slow``, ``cut``, ``nonsense``,
            ``empty``, ``endless``, ``refuse``, ``cut stream``, ``endless stream``, ``silent`` (it answers
            nothing for as long as the client stays).
        finish: why it ends an answer: ``stop`` or ``length``.
        plain: whether it answers in a plain text whatever form is asked for.
        logprobs: ``yes``, ``no`` (it tells none) or ``refuse`` (it answers 400 to who asks).
        together: it answers none before so many requests are under way.
        bodies: of all requests, in the order they came.
        left: set once a client has gone away before its answer was whole.
        asked: how often each photo was asked for.
        answered: how often each photo was answered whole.
        most: requests that were under way at once.
    """

    fault: Fault = no_fault
    finish: str = "stop"
    plain: bool = False
    logprobs: str = "yes"
    key: str = ""
    retry_after: str = "0"
    delay: float = 0.0
    together: threading.Barrier = field(default_factory=lambda: threading.Barrier(1))
    port: int = 0
    bodies: list[dict[str, Any]] = field(default_factory=list)
    left: threading.Event = field(default_factory=threading.Event)
    asked: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    most: int = 0
    _now: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def openai(self) -> str:
        """The address of its model, as ``--model`` takes it."""
        return f"http://127.0.0.1:{self.port}/v1#made/up"

    @property
    def ollama(self) -> str:
        return f"ollama://127.0.0.1:{self.port}#made-up:2b"

    @contextmanager
    def busy(self) -> Iterator[None]:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            yield
        finally:
            with self._lock:
                self._now -= 1

    def take(self, body: dict[str, Any], text: str) -> str | None:
        """Note a request; the fault that its answer has."""
        with self._lock:
            self.bodies.append(body)
            self.asked[text] += 1
            return self.fault(text, self.asked[text])


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # else head and body travel apart, and the second waits for the first
    disable_nagle_algorithm = True
    state: ModelServer

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_POST(self) -> None:
        state = self.state
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with state.busy():
            if state.key and self.headers.get("Authorization") != f"Bearer {state.key}":
                return self.answer(401, {"error": {"message": "no such key"}})
            if self.path == "/v1/chat/completions":
                return self.openai(body)
            if self.path == "/api/chat":
                return self.ollama(body)
            return self.answer(404, {"error": {"message": f"no path {self.path}"}})

    def openai(self, body: dict[str, Any]) -> None:
        (message,) = body["messages"]
        (url,) = [part["image_url"]["url"] for part in message["content"] if part["type"] == "image_url"]
        if body["model"] != "made/up":
            return self.answer(404, {"error": {"message": f"the model {body['model']} does not exist"}})
        text = describe(base64.b64decode(url.removeprefix("data:image/jpeg;base64,")))
        fault = self.state.take(body, text)
        if self.state.logprobs == "refuse" and body.get("logprobs"):
            return self.answer(400, {"error": {"message": "logprobs are not supported"}})
        if self.failed(fault, text):
            return None
        said = in_form(text, body.get("response_format") and not self.state.plain)
        tokens = pieces(said) if self.state.logprobs == "yes" and body.get("logprobs") else None
        if not body.get("stream"):
            message = {"role": "assistant", "content": said}
            if fault == "refuse":
                message = {"role": "assistant", "content": None, "refusal": "no people, please"}
            logprobs = {"content": tokens} if tokens else None
            choice = {
                "index": 0,
                "message": message,
                "logprobs": logprobs,
                "finish_reason": self.state.finish,
            }
            self.answer(200, {"object": "chat.completion", "choices": [choice]})
        else:
            events = []
            for token in pieces(said):
                logprobs = {"content": [token]} if tokens else None
                events.append({"choices": [{"delta": {"content": token["token"]}, "logprobs": logprobs}]})
            end = {"choices": [{"delta": {}, "finish_reason": self.state.finish}]}
            lines = [
                f"data: {json.dumps(event)}\n\n" for event in [*events, end, {"choices": [], "usage": {}}]
            ]
            self.stream([*lines, "data: [DONE]\n\n"], "text/event-stream", fault)
        self.state.answered[text] += 1

    def ollama(self, body: dict[str, Any]) -> None:
        (message,) = body["messages"]
        if body["model"] != "made-up:2b":
            return self.answer(404, {"error": f'model "{body["model"]}" not found, try pulling it first'})
        text = describe(base64.b64decode(message["images"][0]))
        fault = self.state.take(body, text)
        if self.failed(fault, text):
            return None
        said = in_form(text, body.get("format") and not self.state.plain)
        tokens = pieces(said)
        known = self.state.logprobs == "yes" and body.get("logprobs")
        if not body["stream"]:
            end = {"done": True, "done_reason": self.state.finish}
            answer: dict[str, Any] = {"message": {"role": "assistant", "content": said}, **end}
            self.answer(200, answer | ({"logprobs": tokens} if known else {}))
        else:
            parts: list[dict[str, Any]] = []
            for token in tokens:
                part = {"message": {"content": token["token"]}, "done": False}
                parts.append(part | ({"logprobs": [token]} if known else {}))
            parts.append({"message": {"content": ""}, "done": True, "done_reason": self.state.finish})
            lines = [f"{json.dumps(part)}\n" for part in parts]
            self.stream(lines, "application/x-ndjson", fault)
        self.state.answered[text] += 1
        return None

    def failed(self, fault: str | None, text: str) -> bool:
        """Do what goes wrong; whether that was the answer."""
        if fault is None or fault in ("refuse", "cut stream", "endless stream"):
            self.state.together.wait(20)
            time.sleep(self.state.delay)
            return False
        if fault == "slow":
            time.sleep(3)
            self.close_connection = True
        elif fault == "silent":
            assert self.connection.recv(1) == b""
            self.state.left.set()
            self.close_connection = True
        elif fault == "cut":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"choices": [{"message"')
            self.close_connection = True
        elif fault == "nonsense":
            self.answer(200, {"choices": "none", "message": 3})
        elif fault == "no JSON":
            self.answer(200, "<html>Bad gateway</html>")
        elif fault == "empty":
            message = {"content": " \n"}
            self.answer(200, {"choices": [{"message": message}], "message": message, "done": True})
        elif fault == "endless":
            self.send_response(200)
            self.end_headers()
            self.close_connection = True
            try:
                while True:
                    self.wfile.write(b" " * 100_000)
            except OSError:
                pass
        elif fault == "302":
            self.send_response(302)
            self.send_header("Location", "http://127.0.0.1:9/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self.answer(int(fault), {"error": {"message": f"made-up {fault}"}})
        return True

    def answer(self, status: int, document: Any) -> None:
        data = document.encode() if isinstance(document, str) else json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        if status in (429, 503):
            self.send_header("Retry-After", self.state.retry_after)
        self.end_headers()
        self.wfile.write(data)

    def stream(self, lines: list[str], kind: str, fault: str | None) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        sent = {"cut stream": lines[:3], "endless stream": repeat(lines[0])}.get(fault or "", lines)
        try:
            for line in sent:
                self.wfile.write(f"{len(line.encode()):x}\r\n{line}\r\n".encode())
                self.wfile.flush()
                if fault == "endless stream":
                    time.sleep(0.01)
        except OSError:
            self.state.left.set()
            raise
        if fault == "cut stream":
            self.close_connection = True
        else:
            self.wfile.write(b"0\r\n\r\n")


def in_form(text: str, form: object) -> str:
    """A text, or JSON that holds it, on several lines, where a form is asked for."""
    return json.dumps({"said": text, "two  spaces": True}, indent=2) if form else text


def pieces(text: str) -> list[dict[str, Any]]:
    """Its tokens of three letters at most, the n-th with a log-prob of -n / 100, and one for the end."""
    found = [text[at : at + 3] for at in range(0, len(text), 3)]
    return [
        {"token": piece, "logprob": -number / 100, "bytes": list(piece.encode())}
        for number, piece in enumerate([*found, ""], 1)
    ]


@contextmanager
def model_server(**behaviour: Any) -> Iterator[ModelServer]:
    """A running server."""
    state = ModelServer(**behaviour)
    handler = type("Handler", (_Handler,), {"state": state})
    server = ThreadingHTTPServer(("127.0.0.1", state.port), handler)
    server.daemon_threads = True
    server.handle_error = lambda request, address: None  # clients are killed, that is what they are for
    state.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
