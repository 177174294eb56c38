"""What strangers send, and what they get to see."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import re
import socket
import time
from collections.abc import Iterator

import httpx
import pytest
from images import png_bytes
from problems import check_problem
from standins import Held, Recording, names

from captioner import GenerationOptions, SearchOptions
from service.logs import REQUEST_ID, JsonFormatter


@contextlib.contextmanager
def raw(client: httpx.Client, head: str, body: bytes = b"") -> Iterator[socket.socket]:
    """A connection on which a request's head, and as much of its body, was sent."""
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=30) as connection:
        connection.sendall(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)
        yield connection


def answer(connection: socket.socket) -> bytes:
    """Everything until the server closes the connection."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := connection.recv(65536):
            found += chunk
    return found


def is_well(client: httpx.Client, photo: bytes) -> bool:
    return client.post("/v1/captions", files={"image": ("a", photo)}).status_code == 200


PATHS = [("GET", "/v1/models"), ("GET", "/metrics"), ("POST", "/v1/captions"), ("POST", "/"), ("GET", "/no")]


@pytest.mark.parametrize(("method", "path"), PATHS)
@pytest.mark.parametrize(
    "header", [None, "Bearer wrong", "Bearer", "Basic first", "Bearer first second", "first"]
)
def test_without_a_key_nothing_is_given(
    serve, method: str, path: str, header: str | None, keyed: httpx.Client
):
    headers = {} if header is None else {"Authorization": header}
    response = keyed.request(method, path, headers=headers)
    check_problem(response, 401)
    assert response.headers["www-authenticate"].startswith("Bearer")


@pytest.fixture(scope="module")
def keyed(serve) -> Iterator[httpx.Client]:
    """A client of a server with two keys."""
    with serve(api_keys="first, s\u00e9cond", cors_origins="https://page.example") as client:
        yield client


@pytest.mark.parametrize("key", ["first", "s\u00e9cond"])
def test_every_key_opens(keyed: httpx.Client, key: str):
    headers = {"Authorization": f"bearer {key}".encode()}
    assert keyed.get("/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize("path", ["/", "/docs", "/openapi.json", "/healthz", "/readyz", "/docs/start.js"])
def test_what_a_browser_loads_first_is_open(keyed: httpx.Client, path: str):
    assert keyed.get(path).status_code == 200


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:80", "127.0.0.1", "127.9.9.9:8000", "[::1]", "[::1]:8000"]
)
def test_without_keys_it_answers_as_this_machine(client: httpx.Client, host: str):
    assert client.get("/v1/models", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("path", ["/", "/v1/models", "/healthz", "/metrics"])
@pytest.mark.parametrize(
    "host",
    [
        *("attacker.example", "attacker.example:8000", "192.168.1.5", "[::2]:8000", "[::1]:8000:1"),
        *("localhost.attacker.example", "127.0.0.1.attacker.example", "127.0.0.1@attacker.example"),
    ],
)
def test_without_keys_a_page_that_gives_it_its_own_name_gets_nothing(
    client: httpx.Client, host: str, path: str
):
    check_problem(client.get(path, headers={"Host": host}), 421)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "cross-site", "Origin": "https://attacker.example"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "null"}, 403),  # a file, or a frame in a sandbox
        ({"Sec-Fetch-Site": "cross-site", "Origin": "http://["}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Origin": "http://page.localhost:99"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "https://page.example"}, 200),  # named in the settings
        ({"Sec-Fetch-Site": "cross-site", "Origin": "http://127.0.0.1:3000"}, 200),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "https://captions.example"}, 200),  # behind a proxy
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Origin": "https://captions.example"}, 200),  # no browser of today, or likewise over http
    ],
)
def test_without_keys_the_page_of_another_site_has_nothing_captioned(
    serve, photo: bytes, headers: dict[str, str], status: int
):
    """A form needs no permission of CORS; the answer could not be read, but the work would be done."""
    with serve(cors_origins="https://page.example") as client:
        answer = client.post("/v1/captions", files={"image": ("a", photo)}, headers=headers)
        assert answer.status_code == status
        if status == 403:
            check_problem(answer, 403)
        assert client.get("/", headers=headers).status_code == 200, "a link to the page works"


@pytest.mark.parametrize("settings", [{"api_keys": "key"}, {"allow_anonymous": True}])
def test_with_keys_or_for_everybody_it_answers_to_any_name(serve, settings: dict[str, object]):
    with serve(**settings) as client:
        headers = {"Host": "captions.example", "Authorization": "Bearer key"}
        assert client.get("/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "path", ["/static/../app.py", "/static/%2e%2e/app.py", "/docs/..%2fapp.py", "//v1/models"]
)
def test_no_path_leads_elsewhere(client: httpx.Client, path: str):
    with raw(client, f"GET {path} HTTP/1.1\nHost: localhost\nConnection: close") as connection:
        assert b" 404 " in answer(connection).split(b"\r\n")[0]


def test_the_body_is_refused_by_its_announced_size(serve, photo: bytes):
    with serve(max_upload_mb=0.01) as client:
        head = "POST /v1/captions HTTP/1.1\nHost: localhost\nContent-Length: "
        for rest in ("10001\nExpect: 100-continue", "99999999999"):  # at once, before any of it arrives
            with raw(client, head + rest) as connection:
                assert b" 413 " in answer(connection).split(b"\r\n")[0]
        for size in (10_001, 39_000):  # in the end, for a client that looks at nothing before
            with raw(client, f"{head}{size}", b"x" * (size // 2)) as connection:
                time.sleep(0.1)
                connection.sendall(b"x" * (size - size // 2))
                assert b" 413 " in answer(connection).split(b"\r\n")[0]
        check_problem(client.post("/v1/captions", files={"image": ("a", b"x" * 20_000)}), 413)
        assert is_well(client, photo)


def test_the_body_is_refused_while_it_arrives(serve, photo: bytes):
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while sent < 50_000_000:
            sent += 5_000
            yield b"x" * 5_000

    with serve(max_upload_mb=0.01) as client:
        for path in ("/v1/captions", "/image-to-text", "/v1/chat/completions"):
            with contextlib.suppress(httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError):
                headers = {"Content-Type": "application/json"}
                assert client.post(path, content=endless(), headers=headers).status_code == 413
        assert sent < 30_000_000
        assert is_well(client, photo)


def test_the_bodies_of_all_requests_have_a_limit_together(serve, photo: bytes):
    with serve(max_pending_mb=0.5) as client:
        head = "POST /image-to-text HTTP/1.1\nHost: localhost\nContent-Length: 450000"
        with raw(client, head, b"x" * 400_000):
            wait_for(client, "captioner_pending_bytes 400000.0")
            refused = client.post("/image-to-text", content=b"x" * 100_001)
            check_problem(refused, 429)
            assert int(refused.headers["retry-after"]) >= 1
            assert is_well(client, photo)
        wait_for(client, "captioner_pending_bytes 0.0")


def test_a_slow_body_is_given_up(serve):
    with serve(request_timeout_s=0.4) as client:
        head = "POST /v1/captions HTTP/1.1\nHost: localhost\nContent-Type: application/json"
        head += "\nContent-Length: 1000"
        with raw(client, head, b"{") as connection:
            assert b" 408 " in answer(connection).split(b"\r\n")[0]
        with raw(client, head.replace("1000", "5"), b"{") as connection:
            for _ in range(3):
                connection.sendall(b" ")
                time.sleep(0.2)
            assert b" 408 " in answer(connection).split(b"\r\n")[0]


def test_a_slow_head_is_given_up(serve, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("service.protocol.HEAD_SECONDS", 2.0)
    heads = [b"", b"GET /healthz HTTP/1.1\r\nHo", b"POST /v1/captions HTTP/1.1\r\nA: b\r\n"]
    with serve() as client, contextlib.ExitStack() as stack:
        address = (client.base_url.host, client.base_url.port)
        waiting = [stack.enter_context(socket.create_connection(address, timeout=30)) for _ in heads]
        for connection, head in zip(waiting, heads, strict=True):
            connection.sendall(head)
        assert [answer(connection) for connection in waiting] == [b""] * len(heads)
        assert client.get("/healthz").status_code == 200


def test_a_body_that_ends_early_is_no_error_of_the_server(serve, photo: bytes):
    with serve() as client:
        for kind in ("application/json", "multipart/form-data; boundary=x", "image/png"):
            head = f"POST /v1/captions HTTP/1.1\nHost: localhost\nContent-Type: {kind}\nContent-Length: 1000"
            with raw(client, head, b"--x\r\n"):
                pass
        assert is_well(client, photo)
        text = client.get("/metrics").text
    assert re.search(r'route="/v1/captions",status="5', text) is None


@pytest.mark.parametrize(
    "head",
    [
        "POST /v1/captions HTTP/1.1\nHost: localhost\nContent-Length: abc",
        "POST /v1/captions HTTP/1.1\nHost: localhost\nContent-Length: -5",
        "POST /v1/captions HTTP/1.1\nHost: localhost\nContent-Length: 5\nContent-Length: 6",
        "POST /v1/captions HTTP/1.1\nHost: localhost\nContent-Length: 5\nTransfer-Encoding: chunked",
        "POST /v1/captions HTTP/1.1\nHost: localhost\nContent-Length: 99999999999999999999999",
        "GET /\x01 HTTP/1.1\nHost: localhost",
        "NONSENSE",
    ],
)
def test_heads_that_lie(client: httpx.Client, head: str):
    with raw(client, head, b"hello") as connection:
        connection.shutdown(socket.SHUT_WR)
        assert b" 4" in answer(connection)[:12]


def test_a_compressed_body_is_refused(client: httpx.Client):
    for encoding in ("gzip", "deflate", "br", "bogus"):
        response = client.post("/v1/captions", content=b"x", headers={"Content-Encoding": encoding})
        check_problem(response, 415)


def test_a_photo_is_refused_by_the_pixels_of_its_header(serve, photo: bytes):
    with serve(max_pixels=100 * 100) as client:
        for data in (png_bytes(101, 100), png_bytes(60_000, 60_000)):
            problem = check_problem(client.post("/v1/captions", files={"image": ("a", data)}), 413)
            assert problem["type"].endswith("image-size")
        assert is_well(client, photo)


@pytest.mark.parametrize(
    "url",
    [
        "https://example.org/a.jpg",
        "http://127.0.0.1/a",
        "file:///etc/passwd",
        "https://[",
    ],
)
def test_urls_are_off(client: httpx.Client, url: str):
    problem = check_problem(client.post("/v1/captions", json={"images": [{"url": url}]}), 400)
    assert "no URLs" in problem["detail"]


@pytest.mark.parametrize(("text", "kind"), [("/etc/passwd", "image-type"), ("", "base64"), ("\0", "base64")])
def test_what_is_no_address_is_a_photo_or_nothing(client: httpx.Client, text: str, kind: str):
    response = client.post("/v1/captions", json={"images": [{"url": text}]})
    assert check_problem(response, response.status_code)["type"].endswith(kind)


def test_a_client_that_goes_away_frees_its_place(serve, photo: bytes):
    captioner = Held()
    with serve(captioner, queue_size=3) as client:
        body = json.dumps(
            {"images": [{"base64": base64.b64encode(photo).decode(), "name": "first"}]}
        ).encode()
        head = "POST {}\nHost: localhost\nContent-Type: application/json\nContent-Length: {}"
        with raw(client, head.format("/v1/captions HTTP/1.1", len(body)), body):
            assert captioner.busy.wait(30)
            gone = body.replace(b"first", b"gone!")
            with (
                raw(client, head.format("/v1/captions HTTP/1.1", len(gone)), gone),
                raw(client, head.format("/v1/captions/stream HTTP/1.1", len(gone)), gone),
            ):
                wait_for(client, "captioner_accepted_images 3.0")
            wait_for(client, "captioner_accepted_images 1.0")
            captioner.go.set()
            wait_for(client, "captioner_accepted_images 0.0")
        assert is_well(client, photo)
        assert names(captioner.batches) == ["first", "a"]
        assert captioner.steps == 0


def wait_for(client: httpx.Client, line: str) -> None:
    """Wait until the server's metrics say so."""
    for _ in range(3000):
        if line in client.get("/metrics").text:
            return
        time.sleep(0.01)
    raise AssertionError(f"never: {line}")


def test_a_stream_ends_with_its_client(serve, photo: bytes):
    captioner = Held()
    with serve(captioner) as client:
        files, data = {"image": ("a", photo)}, {"num_beams": 1}
        with client.stream("POST", "/v1/captions/stream", files=files, data=data) as response:
            assert b"text" in next(response.iter_raw())
        wait_for(client, "captioner_accepted_images 0.0")
        captioner.go.set()
        assert is_well(client, photo)
        assert captioner.steps <= 2


def test_headers_for_browsers(client: httpx.Client):
    for path in ("/", "/v1/models", "/no/such/path", "/static/no.js"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self';" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-cache"


def test_other_origins_get_in_only_if_named(client: httpx.Client, keyed: httpx.Client):
    ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    for origin, allowed in (("https://page.example", "https://page.example"), ("https://evil.example", None)):
        answers = [
            keyed.options("/v1/captions", headers={"Origin": origin, **ask}),
            keyed.get("/v1/models", headers={"Origin": origin}),
        ]
        assert [item.headers.get("access-control-allow-origin") for item in answers] == [allowed, allowed]
    answer = client.get("/v1/models", headers={"Origin": "https://page.example"})
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    ("sent", "kept"), [("abc-1.2_3", True), ("a b", False), ("x" * 65, False), ("", False)]
)
def test_requests_have_an_id(client: httpx.Client, sent: str, kept: bool):
    found = client.get("/healthz", headers={"X-Request-ID": sent}).headers["x-request-id"]
    assert (found == sent) == kept
    assert len(found) >= 8


def test_logs_tell_no_secrets(serve, photo: bytes, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    encoded = base64.b64encode(photo).decode()
    with serve(api_keys="the-secret-key") as client:
        headers = {"Authorization": "Bearer the-secret-key", "X-Request-ID": "the-id"}
        client.post("/v1/captions?token=of-a-query", json={"images": [{"base64": encoded}]}, headers=headers)
        client.post("/v1/captions", json={"images": [{"base64": encoded + "#"}]}, headers=headers)
        client.post("/v1/captions", json={"images": encoded}, headers=headers)
        client.get("/v1/models", headers={"Authorization": "Bearer another-secret"})
    formatter = JsonFormatter()
    lines = [formatter.format(record) for record in caplog.records if record.name != "httpcore.http11"]
    text = "\n".join(line for line in lines if "httpx" not in line)
    assert "/v1/captions" in text
    for secret in ("the-secret-key", "another-secret", "of-a-query", encoded[40:80]):
        assert secret not in text


def test_a_log_line_is_json():
    record = logging.LogRecord("name", logging.INFO, "path", 1, "two\nlines %d", (1,), None)
    record.status = 200
    token = REQUEST_ID.set("an-id")
    line = JsonFormatter().format(record)
    REQUEST_ID.reset(token)
    assert "\n" not in line
    data = json.loads(line)
    assert (data["message"], data["request_id"], data["status"]) == ("two\nlines 1", "an-id", 200)


def test_an_exception_is_logged_and_told_to_nobody(serve, photo: bytes, caplog: pytest.LogCaptureFixture):
    class Broken(Recording):
        def resolve(self, options: GenerationOptions | SearchOptions | None = None) -> SearchOptions:
            if options is not None and options.prompt == "bug":
                raise KeyError("what only the log may say")
            return super().resolve(options)

    with serve(Broken()) as client:
        files, headers = {"image": ("a", photo)}, {"X-Request-ID": "the-id"}
        response = client.post("/v1/captions", files=files, data={"prompt": "bug"}, headers=headers)
        problem = check_problem(response, 500)
        assert response.headers["x-request-id"] == "the-id"
        assert "only the log" not in str(problem)
        assert is_well(client, photo)
    assert "what only the log may say" in caplog.text
