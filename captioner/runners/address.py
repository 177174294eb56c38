"""Where a remote model is, and how to talk to it: the ``--model`` address and ``CAPTIONER_REMOTE_*``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Literal
from urllib.parse import urlsplit

from captioner.errors import CheckpointError, OptionsError

__all__ = ["Address", "RemoteSettings", "is_address"]

SCHEMES = ("http", "https", "ollama")
OLLAMA_PORT = 11434


def is_address(name: str) -> bool:
    """Whether a model's name is the address of a server."""
    return name.partition("://")[0].lower() in SCHEMES and "://" in name


@dataclass(frozen=True)
class Address:
    """A model on a server.

    Attributes:
        kind: whose API the server speaks.
        base: what paths are added to, without a slash at the end.
        model: the server's name for the model.
    """

    kind: Literal["openai", "ollama"]
    base: str
    model: str

    @classmethod
    def parse(cls, text: str) -> Address:
        """``http://HOST/v1#NAME``, ``https://HOST/v1#NAME`` or ``ollama://HOST#NAME``.

        Raises:
            CheckpointError: it is none of these.
        """
        try:
            parts = urlsplit(text)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise CheckpointError(f"{text} is not an address: {error}") from error
        if not host or not parts.fragment or parts.query:
            raise CheckpointError(
                f"{text} does not name a model: give http://HOST/v1#NAME where a server has OpenAI's API, "
                "or ollama://HOST#NAME"
            )
        if "@" in parts.netloc:
            raise CheckpointError("an address has no password in it: set CAPTIONER_REMOTE_KEY instead")
        place = f"[{host}]" if ":" in host else host
        if parts.scheme == "ollama":
            port = port or OLLAMA_PORT
        place = place if port is None else f"{place}:{port}"
        scheme = "http" if parts.scheme == "ollama" else parts.scheme
        kind: Literal["openai", "ollama"] = "ollama" if parts.scheme == "ollama" else "openai"
        return cls(kind, f"{scheme}://{place}{parts.path.rstrip('/')}", parts.fragment)

    @property
    def host(self) -> str:
        """The server's name with its port, for people."""
        return urlsplit(self.base).netloc


@dataclass(frozen=True, kw_only=True)
class RemoteSettings:
    """How to talk to a model's server.

    Attributes:
        key: sent as a bearer token; empty for none.
        parallel: 1…256 requests at a time.
        per_minute: requests that begin in a minute at most; 0 for no limit.
        timeout_s: 1…3600 seconds that one request may take.
        attempts: 1…20 times that a request is sent before it has failed.
        max_side: 64…4096 pixels of the longer side of the JPEG that is sent.
        backoff_s: 0…60 seconds before the second attempt; each wait after it may be twice as long.
    """

    key: str = field(default="", repr=False)
    parallel: int = 8
    per_minute: int = 0
    timeout_s: float = 60.0
    attempts: int = 6
    max_side: int = 1024
    backoff_s: float = 0.5

    def __post_init__(self) -> None:
        limits = {
            "parallel": (1, 256),
            "per_minute": (0, 1_000_000),
            "timeout_s": (1, 3600),
            "attempts": (1, 20),
            "max_side": (64, 4096),
            "backoff_s": (0, 60),
        }
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise OptionsError(f"CAPTIONER_REMOTE_{name.upper()} must be from {low} to {high}")
        if not self.key.isascii() or not self.key.isprintable():
            raise OptionsError("CAPTIONER_REMOTE_KEY has characters that no key has")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> RemoteSettings:
        """What ``CAPTIONER_REMOTE_*`` say. Raises OptionsError where a value is not valid."""
        given: dict[str, str | int | float] = {}
        for each in fields(cls):
            name = f"CAPTIONER_REMOTE_{each.name.upper()}"
            text = environment.get(name, "").strip()
            if not text:
                continue
            try:
                given[each.name] = {"int": int, "float": float, "str": str}[str(each.type)](text)
            except ValueError as error:
                raise OptionsError(f"{name} must be a number, not {text[:40]!r}") from error
        return cls(**given)  # type: ignore[arg-type]
