"""What can be set from outside: ``CAPTIONER_*`` variables, the same names in capitals."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, SecretStr
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
)

__all__ = ["Settings", "is_this_machine"]


def _split(value: Any) -> Any:
    """``"a, b"`` is how a list looks in an environment variable, an item a line in a file."""
    return [item for item in re.split(r"[,\s]+", value) if item] if isinstance(value, str) else value


def _split_lines(value: Any) -> Any:
    """The same for items that may have spaces in them."""
    return (
        [item.strip() for item in re.split(r"[,\n]", value) if item.strip()]
        if isinstance(value, str)
        else value
    )


Places = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_lines)]
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
Secrets = Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_split)]


class Settings(BaseSettings):
    """Settings of one server, which serves its models on one device, or with a process on each of several.

    Raises:
        pydantic.ValidationError: a value is out of range.
    """

    model_config = SettingsConfigDict(
        env_prefix="CAPTIONER_", frozen=True, env_ignore_empty=True, secrets_dir="/run/secrets"
    )

    model: str = Field(
        "default",
        description="As `--model` takes it: a name of `captioner models` or `captioner models --all`, "
        "a directory, a model of the hub or of a server",
    )
    models: Places = Field(
        (),
        description="Several models in place of `CAPTIONER_MODEL`, each maybe with a name of its own: "
        "`default,blip=Salesforce/blip-image-captioning-large`; the first is loaded at the start, the others "
        "when they are first asked for",
    )
    models_memory_mb: float = Field(
        0,
        ge=0,
        description="What the weights of the loaded models may take together, in 10**6 bytes; 0: no limit",
    )
    model_aliases: Names = Field(
        (),
        description="Further names, for clients that always ask for a name of their own: `gpt-4o` is the "
        "first model, `llava=blip` is another one",
    )
    device: str = Field(
        "auto",
        description="`auto`, `cpu`, `cuda` or `mps`; `cuda:0,cuda:1`: a process on each; `all`: on every GPU",
    )
    dtype: str = Field(
        "auto",
        description="`auto`, `float32`, `float16` or `bfloat16`; for vision-language models also `int4`",
    )
    host: str = Field("127.0.0.1", description="The address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="The port to listen on; 0 picks a free one")
    api_keys: Secrets = Field(
        (), description="API keys, separated by commas or line breaks; each client must send one"
    )
    allow_anonymous: bool = Field(False, description="Accept requests from other machines without API keys")
    max_batch: int = Field(32, ge=1, le=1024, description="Photos in one forward pass")
    batch_window_ms: float = Field(
        10, ge=0, le=1000, description="How many milliseconds the first photo of a batch waits for others"
    )
    queue_size: int = Field(
        256, ge=1, le=65536, description="Photos accepted at the same time; further requests get 429"
    )
    request_timeout_s: float = Field(
        60, gt=0, le=3600, description="Seconds for a request's body to arrive, and then for its answer"
    )
    max_upload_mb: float = Field(
        32, gt=0, le=1024, description="Largest body of a request and largest photo by URL, in 10**6 bytes"
    )
    max_pending_mb: float = Field(
        1024,
        gt=0,
        description="Total size of all unanswered requests, in 10**6 bytes; further requests get 429",
    )
    max_pixels: int = Field(
        50_000_000, ge=1, le=500_000_000, description="Largest photo, in pixels, read from its header"
    )
    max_beams: int = Field(
        16, ge=1, le=64, description="Most beams and most captions of a photo that a request can ask for"
    )
    url_hosts: Names = Field(
        (), description="Hosts to fetch photos from by URL; `*.example.org`: all its subdomains; none: off"
    )
    cors_origins: Names = Field((), description="Origins whose web pages can call the API; `*`: all")
    log_level: str = Field(
        "INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="Lowest level of the JSON log on stderr"
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """A variable may also be a file of its name in /run/secrets; nobody is warned if there is none."""
        assert isinstance(file_secret_settings, SecretsSettingsSource)
        folder = file_secret_settings.secrets_dir
        files = [file_secret_settings] if isinstance(folder, str | Path) and Path(folder).is_dir() else []
        return init_settings, env_settings, *files

    @property
    def devices(self) -> tuple[str, ...]:
        """The parts of ``device``."""
        return tuple(_split(self.device)) or ("auto",)

    @property
    def places(self) -> tuple[str, ...]:
        """The models, as :func:`captioner.named_models` takes them."""
        return self.models or (self.model,)

    @property
    def models_memory_bytes(self) -> int | None:
        """``models_memory_mb`` in bytes; None for no limit."""
        return int(self.models_memory_mb * 1e6) or None

    @property
    def max_upload_bytes(self) -> int:
        """``max_upload_mb`` in bytes."""
        return int(self.max_upload_mb * 1e6)

    @property
    def max_pending_bytes(self) -> int:
        """``max_pending_mb`` in bytes."""
        return int(self.max_pending_mb * 1e6)

    @property
    def local_only(self) -> bool:
        """Whether the server is for this machine's own programs, since nobody needs a key."""
        return not self.api_keys and not self.allow_anonymous

    def knows(self, key: bytes) -> bool:
        """Whether a client's key is one of ours; how long that takes tells nothing of how much is right."""
        given = hashlib.sha256(key).digest()
        digests = [hashlib.sha256(known.get_secret_value().encode()).digest() for known in self.api_keys]
        return sum(hmac.compare_digest(given, digest) for digest in digests) > 0  # every key is compared

    def exposed(self) -> bool:
        """Whether others than this machine's own programs could use the server without a key."""
        return self.local_only and not is_this_machine(self.host)


def is_this_machine(host: str) -> bool:
    """Whether a name or address, an IPv6 address with or without brackets, is this machine's for itself."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"
