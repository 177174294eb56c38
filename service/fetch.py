"""Photos by URL, without becoming a way into the network that the server stands in (CWE-918).

Only https, only port 443, only hosts that the settings name. The name is resolved once, every address it has
must be a public one, and the connection goes to the address that was checked: a second look-up could give
another answer ("DNS rebinding"). A redirect is a new URL, checked from the start.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import urljoin

import httpx

from service.errors import Problem

__all__ = ["Fetcher", "is_public", "resolve"]

MAX_REDIRECTS = 3
TIMEOUT_SECONDS = 10.0

Resolver = Callable[[str], Awaitable[Sequence[str]]]

_UNICAST = ipaddress.ip_network("2000::/3")
"""All of IPv6 that is given out to the internet; NAT64 and site-local addresses are outside."""

# What ``is_global`` lets pass, or did in some Python, and yet leads inside
_INSIDE = [
    ipaddress.ip_network(text)
    for text in (
        "168.63.129.16/32",  # Azure's metadata service has a public address
        "192.0.0.0/24",  # IETF protocols; Oracle's metadata service among them
        "192.88.99.0/24",  # 6to4 relays
        "2001::/23",  # IETF protocols, Teredo among them: IPv4 inside
        "2002::/16",  # 6to4: IPv4 inside
        "3fff::/20",  # documentation
    )
]


async def resolve(host: str) -> Sequence[str]:
    """The addresses of a host. Raises OSError where there are none."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, 443, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def is_public(address: str) -> bool:
    """Whether an IPv4 or IPv6 address belongs to the internet at large."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:  # with a zone, such as fe80::1%eth0
        return False
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped:
        ip = ip.ipv4_mapped
    if isinstance(ip, ipaddress.IPv6Address) and ip not in _UNICAST:
        return False
    if any(ip in network for network in _INSIDE if network.version == ip.version):
        return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


class Fetcher:
    """Fetches photos from hosts that the settings name.

    Args:
        hosts: names, ``*.example.org`` for all below one; none refuses every URL.
        transport: what sends the requests; None for the network itself. Takes no proxy from the environment.
        resolver: host to addresses.
        timeout: seconds for all of it.
    """

    def __init__(
        self,
        hosts: Sequence[str],
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        resolver: Resolver = resolve,
        timeout: float = TIMEOUT_SECONDS,
    ) -> None:
        self._hosts = [host.lower().rstrip(".") for host in hosts]
        self._resolver = resolver
        self._timeout = timeout
        self._transport = transport

    async def fetch(self, url: str, *, max_bytes: int) -> bytes:
        """The bytes that a URL leads to, ``max_bytes`` at most.

        Raises:
            Problem: 400 if the URL is not allowed, 413 if there is too much at it, 422 if it gives no photo.
        """
        if not self._hosts:
            raise _refused("this server takes no URLs: send the photo itself")
        try:
            async with asyncio.timeout(self._timeout), self._client() as client:
                for _ in range(MAX_REDIRECTS + 1):
                    response = await client.send(await self._pinned(url), stream=True)
                    try:
                        if not response.has_redirect_location:
                            return await _read(response, max_bytes)
                        url = _join(url, response.headers["location"])
                    finally:
                        await response.aclose()
        except TimeoutError as error:
            raise _failed(f"took longer than {self._timeout:g} seconds") from error
        except httpx.HTTPError as error:
            raise _failed("did not answer as it should") from error
        raise _failed(f"leads through more than {MAX_REDIRECTS} redirects")

    def _client(self) -> httpx.AsyncClient:
        transport = self._transport or httpx.AsyncHTTPTransport(trust_env=False)
        return httpx.AsyncClient(transport=transport, trust_env=False, timeout=self._timeout)

    async def _pinned(self, text: str) -> httpx.Request:
        """A request to the address that was checked, under the name that it was asked for by.

        httpcore takes ``sni_hostname`` for the TLS handshake and for the check of the certificate alike.
        """
        try:
            url = httpx.URL(text)
        except (httpx.InvalidURL, ValueError) as error:
            raise _refused("the URL is not valid") from error
        host = url.raw_host.decode("ascii").lower().rstrip(".")
        if url.scheme != "https" or url.port is not None or url.userinfo:
            raise _refused("only https URLs without port, user or password are fetched")
        if not any(host == name or (name[:2] == "*." and host.endswith(name[1:])) for name in self._hosts):
            raise _refused("the URL's host is not among those that this server fetches from")
        try:
            addresses = await self._resolver(host)
        except (OSError, UnicodeError) as error:  # an overlong label is a UnicodeError
            raise _failed("has a host that cannot be found") from error
        if not addresses or not all(map(is_public, addresses)):
            raise _refused("the URL's host is not on the public internet")
        return httpx.Request(
            "GET",
            url.copy_with(host=addresses[0], fragment=None),
            headers={"Host": host, "Accept": "image/*", "Accept-Encoding": "identity"},
            extensions={"sni_hostname": host},
        )


def _join(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError as error:
        raise _failed("leads to a URL that is not valid") from error


async def _read(response: httpx.Response, max_bytes: int) -> bytes:
    if response.status_code != 200:
        raise _failed(f"was answered with status {response.status_code}")
    if response.headers.get("content-encoding", "identity") != "identity":
        raise _failed("was answered with a compressed body that was not asked for")
    data = bytearray()
    async for chunk in response.aiter_raw():
        data += chunk
        if len(data) > max_bytes:
            detail = (
                f"there is more at the URL than the {max_bytes / 1e6:g} MB that are left for this request"
            )
            raise Problem(413, "url-size", "The photo is too large", detail)
    return bytes(data)


def _refused(detail: str) -> Problem:
    return Problem(400, "url-refused", "The URL is not fetched", detail)


def _failed(reason: str) -> Problem:
    return Problem(422, "url-failed", "The URL gives no photo", f"the URL {reason}")
