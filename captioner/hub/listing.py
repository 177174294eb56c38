"""What the hub lists of a model, and which of its files are wanted."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from captioner.errors import CheckpointError
from captioner.hub.pickles import INDEX, PICKLE, SAFETENSORS, is_small, weights_in

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["Conversion", "HubFile", "Listing", "find_conversion", "list_files"]

logger = logging.getLogger(__name__)

CONVERTER = "SFconvertbot"
"""The hub's own account that offers safetensors of pickles, as pull requests."""


@dataclass(frozen=True)
class HubFile:
    """A file of a repository.

    Attributes:
        name: as it will be called.
        size: in bytes.
        digest: its name in the hub's cache, a SHA-256, or git's SHA-1 of small files; empty where the hub
            tells none.
    """

    name: str
    size: int
    digest: str


@dataclass(frozen=True)
class Listing:
    """The files of one commit; those in folders, which belong to other programs, are left out."""

    commit: str
    files: Sequence[HubFile]

    def named(self, names: Iterable[str]) -> list[HubFile]:
        """The files of these names."""
        wanted = set(names)
        return [file for file in self.files if file.name in wanted]

    @property
    def small(self) -> list[HubFile]:
        """Configuration, tokenizer, templates."""
        return [file for file in self.files if is_small(file.name)]

    def weights(self, kind: re.Pattern[str]) -> list[HubFile]:
        """The weights of one kind, whole or in shards; empty where there are none."""
        return self.named(weights_in((file.name for file in self.files), kind))


@dataclass(frozen=True)
class Conversion:
    """The hub's own safetensors of a pickle: pull request ``number``, whose files are ``listing``."""

    number: int
    listing: Listing

    @property
    def weights(self) -> list[HubFile]:
        """The safetensors, and their index where there is one."""
        return [*self.listing.weights(SAFETENSORS), *self.listing.named([INDEX])]


def list_files(api: HfApi, repository: str, revision: str, *, timeout: float) -> Listing:
    """Ask the hub for the files of a revision, for so many seconds. Raises what its client raises."""
    info = api.model_info(repository, revision=revision, files_metadata=True, timeout=timeout)
    if info.sha is None or info.siblings is None:
        raise CheckpointError(f"{api.endpoint} lists no files of {repository}: check HF_ENDPOINT")
    files = [
        HubFile(each.rfilename, each.size or 0, each.lfs.sha256 if each.lfs else each.blob_id or "")
        for each in info.siblings
        if "/" not in each.rfilename and "\\" not in each.rfilename
    ]
    return Listing(info.sha, files)


def find_conversion(
    api: HfApi, repository: str, pickles: Sequence[HubFile], *, timeout: float
) -> Conversion | None:
    """The open pull request in which the hub's bot offers safetensors of these very pickles, if there is one.

    A pull request of anybody else is nothing, and so is one that was made of other weights than these.
    """
    from huggingface_hub.errors import HfHubHTTPError

    digests = {(file.name, file.digest) for file in pickles}
    try:
        for each in api.get_repo_discussions(repository, author=CONVERTER, discussion_status="open"):
            if not each.is_pull_request or each.author != CONVERTER or each.status != "open":
                continue
            listing = list_files(api, repository, f"refs/pr/{each.num}", timeout=timeout)
            theirs = {(file.name, file.digest) for file in listing.weights(PICKLE)}
            if listing.weights(SAFETENSORS) and theirs == digests:
                return Conversion(each.num, listing)
    except HfHubHTTPError as error:  # a repository without discussions, or a mirror
        logger.info(
            "%s: its pull requests cannot be read (status %d)", repository, error.response.status_code
        )
    return None
