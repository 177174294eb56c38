"""Photos by URL: what is refused, and that what is fetched is what was checked."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import httpx
import pytest
from tiny import tiny_captioner

from captioner import NamedModel
from service.engine import Engine
from service.errors import Problem
from service.fetch import Fetcher, is_public, resolve
from service.inputs import ImageText, Service, load_images
from service.models import Models
from service.settings import Settings

PUBLIC = "93.184.216.34"


def found(content: bytes) -> httpx.Response:
    return httpx.Response(200, stream=httpx.ByteStream(content))


class Network(httpx.AsyncBaseTransport):
    """Answers by URL and remembers what was asked; resolves names from a list of answers."""

    def __init__(self, answer: Callable[[httpx.Request], httpx.Response] | None = None) -> None:
        self.answer = answer or (lambda request: found(b"photo"))
        self.requests: list[httpx.Request] = []
        self.names: dict[str, list[Sequence[str]]] = {}
        self.asked: list[str] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return self.answer(request)

    async def resolve(self, host: str) -> Sequence[str]:
        self.asked.append(host)
        answers = self.names.get(host, [[PUBLIC]])
        return answers.pop(0) if len(answers) > 1 else answers[0]


def fetch(
    url: str,
    network: Network,
    *,
    hosts: Sequence[str] = ("photos.example",),
    max_bytes: int = 1000,
    **options: Any,
) -> bytes:
    fetcher = Fetcher(hosts, transport=network, resolver=network.resolve, **options)
    return asyncio.run(fetcher.fetch(url, max_bytes=max_bytes))


def redirect(location: str, status: int = 302) -> Callable[[httpx.Request], httpx.Response]:
    return lambda request: httpx.Response(status, headers={"location": location})


def test_the_connection_goes_to_the_address_that_was_checked():
    network = Network()
    network.names["photos.example"] = [[PUBLIC, "2606:2800:220:1::1"], ["127.0.0.1"]]
    assert fetch("https://Photos.Example./a%20b.jpg?size=1#part", network) == b"photo"
    (request,) = network.requests
    assert str(request.url) == f"https://{PUBLIC}/a%20b.jpg?size=1"
    assert request.headers["host"] == "photos.example"
    assert request.extensions["sni_hostname"] == "photos.example"
    assert network.asked == ["photos.example"]


def test_an_ipv6_address_is_reached():
    network = Network()
    network.names["photos.example"] = [["2606:2800:220:1::1"]]
    fetch("https://photos.example/a.jpg", network)
    assert network.requests[0].url.host == "2606:2800:220:1::1"


@pytest.mark.parametrize(
    "url",
    [
        "http://photos.example/a.jpg",
        "ftp://photos.example/a.jpg",
        "file:///etc/passwd",
        "//photos.example/a.jpg",
        "/etc/passwd",
        "",
        "https://",
        "https://photos.example:8443/a.jpg",
        "https://photos.example:80/a.jpg",
        "https://user@photos.example/a.jpg",
        "https://user:password@photos.example/a.jpg",
        "https://evil.example/a.jpg",
        "https://photos.example.evil.example/a.jpg",
        "https://evilphotos.example/a.jpg",
        "https://photos.example@evil.example/a.jpg",
        "https://evil.example#@photos.example/a.jpg",
        "https://evil.example\\@photos.example/a.jpg",
        "https://127.0.0.1/a.jpg",
        "https://2130706433/a.jpg",
        "https://[::1]/a.jpg",
        "https://[::1/a.jpg",
        "https://pho\ntos.example/a.jpg",
        "https://photos.example:port/a.jpg",
        "https://\u2100.example/a.jpg",
        "https://" + "x" * 300 + ".example/a.jpg",
    ],
)
def test_urls_that_are_refused(url: str):
    network = Network()
    with pytest.raises(Problem) as problem:
        fetch(url, network)
    assert problem.value.status == 400
    assert network.requests == []
    assert network.asked == []


@pytest.mark.parametrize(
    ("pattern", "host", "allowed"),
    [
        ("photos.example", "photos.example", True),
        ("PHOTOS.example.", "photos.EXAMPLE", True),
        ("photos.example", "a.photos.example", False),
        ("*.photos.example", "a.photos.example", True),
        ("*.photos.example", "a.b.photos.example", True),
        ("*.photos.example", "photos.example", False),
        ("*.photos.example", "evilphotos.example", False),
        ("*", "photos.example", False),
    ],
)
def test_hosts(pattern: str, host: str, allowed: bool):
    network = Network()
    if allowed:
        assert fetch(f"https://{host}/", network, hosts=[pattern]) == b"photo"
    else:
        with pytest.raises(Problem, match="host"):
            fetch(f"https://{host}/", network, hosts=[pattern])
    assert len(network.requests) == allowed


def test_no_host_is_no_url():
    with pytest.raises(Problem, match="no URLs"):
        fetch("https://photos.example/", Network(), hosts=[])


INSIDE = [
    "127.0.0.1",
    "127.255.255.254",
    "0.0.0.0",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",  # metadata of AWS, GCP and Azure
    "100.100.100.200",  # of Alibaba
    "168.63.129.16",  # of Azure
    "192.0.0.192",  # of Oracle
    "100.64.0.1",
    "192.0.2.1",
    "192.88.99.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:a00:1",
    "::ffff:0:7f00:1",
    "64:ff9b::7f00:1",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::",
    "3fff::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",  # metadata of AWS
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
    "no address",
    "",
]


@pytest.mark.parametrize("address", INSIDE)
def test_addresses_inside_are_refused(address: str):
    assert not is_public(address)
    network = Network()
    network.names["photos.example"] = [[PUBLIC, address]]  # one of several is enough
    with pytest.raises(Problem, match="public internet"):
        fetch("https://photos.example/", network)
    assert network.requests == []


@pytest.mark.parametrize(
    "address", [PUBLIC, "1.1.1.1", "8.8.8.8", "2606:4700::1111", "2a00:1450:4001::1", "::ffff:8.8.8.8"]
)
def test_public_addresses(address: str):
    assert is_public(address)


def test_a_host_without_addresses():
    async def nothing(host: str) -> Sequence[str]:
        raise socket.gaierror("no such host")

    for resolver in (nothing, resolve):
        fetcher = Fetcher(["a" * 64 + ".invalid", "photos.invalid"], resolver=resolver)
        for host in ("photos.invalid", "a" * 64 + ".invalid"):
            with pytest.raises(Problem) as problem:
                asyncio.run(fetcher.fetch(f"https://{host}/", max_bytes=9))
            assert problem.value.status in (400, 422)


def test_redirects_are_followed_within_the_hosts():
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/a":
            return httpx.Response(301, headers={"location": "/b?x=1"})
        return found(request.url.raw_path)

    assert fetch("https://photos.example/a", Network(answer)) == b"/b?x=1"


@pytest.mark.parametrize(
    "location",
    [
        "https://evil.example/",
        "http://photos.example/",
        "//evil.example/a.jpg",
        "https://169.254.169.254/latest/meta-data",
        "file:///etc/passwd",
        "https://photos.example:22/",
        "https://[",
    ],
)
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_elsewhere_are_refused(location: str, status: int):
    network = Network(redirect(location, status))
    with pytest.raises(Problem) as problem:
        fetch("https://photos.example/", network)
    assert problem.value.status in (400, 422)
    assert len(network.requests) == 1


def test_a_redirect_is_resolved_and_checked_anew():
    network = Network(redirect("https://photos.example/again"))
    network.names["photos.example"] = [[PUBLIC], ["127.0.0.1"]]
    with pytest.raises(Problem, match="public internet"):
        fetch("https://photos.example/", network)
    assert len(network.requests) == 1


def test_redirects_have_an_end():
    network = Network(redirect("https://photos.example/"))
    with pytest.raises(Problem, match="redirects"):
        fetch("https://photos.example/", network)
    assert len(network.requests) == 4


@pytest.mark.parametrize("status", [204, 300, 304, 401, 404, 500])
def test_other_answers_are_no_photos(status: int):
    network = Network(lambda request: httpx.Response(status))
    with pytest.raises(Problem, match=str(status)) as problem:
        fetch("https://photos.example/", network)
    assert problem.value.status == 422


class Endless(httpx.AsyncByteStream):
    """A body without an end.

    Attributes:
        given: bytes so far.
    """

    def __init__(self, pause: float) -> None:
        self.pause = pause
        self.given = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            await asyncio.sleep(self.pause)
            self.given += 100
            yield b"x" * 100


def test_a_large_body_is_cut_off():
    body = Endless(0)
    with pytest.raises(Problem) as problem:
        fetch("https://photos.example/", Network(lambda request: httpx.Response(200, stream=body)))
    assert problem.value.status == 413
    assert body.given <= 1100


def test_a_slow_body_is_given_up():
    network = Network(lambda request: httpx.Response(200, stream=Endless(0.02)))
    with pytest.raises(Problem, match="longer than") as problem:
        fetch("https://photos.example/", network, max_bytes=10**9, timeout=0.2)
    assert problem.value.status == 422


def test_a_compressed_body_is_refused():
    network = Network(lambda request: httpx.Response(200, headers={"content-encoding": "gzip"}, content=b""))
    with pytest.raises(Problem, match="compressed"):
        fetch("https://photos.example/", network)


def test_a_broken_connection_is_no_error_of_the_server():
    def broken(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused by 10.0.0.1")

    with pytest.raises(Problem) as problem:
        fetch("https://photos.example/", Network(broken))
    assert problem.value.status == 422
    assert "10.0.0.1" not in str(problem.value.document)


def test_no_secrets_go_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NETRC", "/dev/null")
    network = Network()
    fetch("https://photos.example/", network)
    assert set(network.requests[0].headers) == {"host", "accept", "accept-encoding"}


def test_the_photos_of_a_request_share_one_budget():
    async def test() -> None:
        network = Network(lambda request: found(b"x" * 600))
        settings = Settings(max_upload_mb=0.001)
        models = Models([NamedModel(name="tiny", place="here")], lambda place: tiny_captioner())
        fetcher = Fetcher(["photos.example"], transport=network, resolver=network.resolve)
        service = Service(settings, Engine(models), fetcher)
        urls = [ImageText(f"https://photos.example/{number}", "url") for number in range(2)]
        assert [item.data for item in await load_images(service, urls[:1])] == [b"x" * 600]
        with pytest.raises(Problem) as problem:
            await load_images(service, urls)
        assert problem.value.status == 413

    asyncio.run(test())
