"""A model of the Hugging Face hub -> a checkpoint directory in the hub's cache.

The hub's own client talks to it. Here is decided which files are wanted, what becomes of a pickle, and what a
name stands for once it has been downloaded.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from captioner.errors import CheckpointError
from captioner.hub.catalogue import known_model
from captioner.hub.listing import CONVERTER, HubFile, Listing, find_conversion, list_files
from captioner.hub.pickles import (
    PICKLE,
    SAFETENSORS,
    assemble,
    check_torch,
    file_names,
    is_small,
    weights_in,
    with_safetensors,
)
from captioner.hub.shelf import Record, Shelf

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["Hub", "fetch", "is_hub_name", "is_local", "record_of"]

logger = logging.getLogger(__name__)

HUB_NAME = r"[\w.-]+/[\w.-]+(@[\w./-]+)?"


@dataclass(frozen=True)
class Hub:
    """Where models come from, and where they are kept.

    Attributes:
        endpoint: the hub's address; None for ``HF_ENDPOINT``, else huggingface.co.
        cache: its cache; None for ``HF_HUB_CACHE``, else that in ``HF_HOME``.
        token: sent to it; None for ``HF_TOKEN`` or the one of ``hf auth login``.
        patience_s: how long one answer may take; its client by itself would wait for ever.
    """

    endpoint: str | None = None
    cache: Path | None = None
    token: str | None = None
    patience_s: float = 30.0

    def api(self) -> HfApi:
        """The hub's client."""
        from huggingface_hub import HfApi

        return HfApi(endpoint=self.endpoint, token=self.token, library_name="captioner")

    def shelf(self, repository: str) -> Shelf:
        """A model's folder in the cache."""
        from huggingface_hub.constants import HF_HUB_CACHE

        return Shelf(Path(HF_HUB_CACHE) if self.cache is None else self.cache, repository)

    @contextmanager
    def patience(self) -> Iterator[None]:
        """Let no answer take longer than ``patience_s``."""
        from huggingface_hub import get_session

        session = get_session()
        before = session.timeout
        session.timeout = self.patience_s
        try:
            yield
        finally:
            session.timeout = before


@dataclass(frozen=True)
class _Wanted:
    """A model of the hub; ``name`` is what it was called by."""

    name: str
    repository: str
    revision: str


def is_hub_name(name: str) -> bool:
    """Whether a name is a short one, or ``owner/name`` with or without ``@revision``."""
    return known_model(name) is not None or re.fullmatch(HUB_NAME, name) is not None


def is_local(directory: Path) -> bool:
    """Whether a name, taken as a path, is a directory rather than a model of the hub.

    Any directory is, but one that has a short name of the hub's and no checkpoint in it.
    """
    hub = known_model(str(directory)) is not None
    return directory.is_dir() and (not hub or (directory / "config.json").is_file())


def record_of(name: str, hub: Hub | None = None) -> Record | None:
    """What the cache has of a model, where that is whole; asks nobody."""
    wanted = _parse(name)
    shelf = (hub or Hub()).shelf(wanted.repository)
    record = shelf.read(wanted.revision)
    return None if record is None or shelf.missing(record) else record


def fetch(name: str, *, hub: Hub | None = None, update: bool = False) -> Path:
    """The directory of a hub's checkpoint with safetensors, which is downloaded where the cache lacks it.

    What a name stood for at its first download is kept: later calls ask no network.

    Args:
        name: a short one, or ``owner/name`` with or without ``@revision``.
        hub: where from; None for what ``HF_ENDPOINT``, ``HF_HUB_CACHE`` and ``HF_TOKEN`` say.
        update: ask for what the name stands for now.

    Raises:
        CheckpointError: there is no such model, it does not come, or its weights are of a kind that is not
            read; the sentence says what to do.
    """
    if not is_hub_name(name):
        raise CheckpointError(
            f"{name} is neither a directory nor a model of the hub: give owner/name, or a name of "
            "`captioner models --all`"
        )
    wanted, hub = _parse(name), hub or Hub()
    shelf = hub.shelf(wanted.repository)
    record = None if update else shelf.read(wanted.revision)
    if record is not None and not shelf.missing(record):
        return shelf.folder / record.directory
    from captioner.hub.sentences import is_unreachable, why_not

    try:
        return _download(wanted, hub, shelf, update=update)
    except CheckpointError:
        raise
    except Exception as error:  # of the hub's client, its HTTP client or the operating system
        found = None if update or not is_unreachable(error) else _in_cache(wanted, hub)
        if found:
            logger.info("%s: the hub is not asked, or out of reach; its cache is used", wanted.name)
            return found
        api = hub.api()
        reason = why_not(
            error,
            name=wanted.name,
            repository=wanted.repository,
            revision=wanted.revision,
            host=api.endpoint,
            partly=shelf.folder.is_dir(),
            token=_has_token(hub),
        )
        raise CheckpointError(reason) from error


def _parse(name: str) -> _Wanted:
    known = known_model(name)
    if known:
        return _Wanted(name, known.repository, known.revision or "main")
    repository, _, revision = name.partition("@")
    return _Wanted(name, repository, revision or "main")


def _download(wanted: _Wanted, hub: Hub, shelf: Shelf, *, update: bool) -> Path:
    """Raises CheckpointError, or whatever the hub's client, its HTTP client or the system raises."""
    api = hub.api()
    with hub.patience():
        listing = list_files(api, wanted.repository, wanted.revision, timeout=hub.patience_s)
        if re.fullmatch("[0-9a-f]{40}", wanted.revision) and listing.commit != wanted.revision:
            raise CheckpointError(
                f"{api.endpoint} gives commit {listing.commit} of {wanted.repository} for {wanted.revision}: "
                "do not trust it"
            )
        with shelf.lock():
            before = shelf.read(wanted.revision)
            if before and not shelf.missing(before) and (not update or before.commit == listing.commit):
                return shelf.folder / before.directory  # another process was quicker, or there is nothing new
            directory, weights = _take(wanted, hub, api, shelf, listing)
            names = file_names(directory)
            record = shelf.write(wanted.revision, listing.commit, weights, directory, names)
    logger.info("%s: commit %s, %s, in %s", wanted.name, record.commit, record.weights, directory)
    return directory


def _take(wanted: _Wanted, hub: Hub, api: HfApi, shelf: Shelf, listing: Listing) -> tuple[Path, str]:
    """Bring a checkpoint; its directory, and how its weights came, in words."""
    from captioner.hub.bar import DownloadBar
    from captioner.hub.transfer import bring, check_room

    weights, pickles, conversion = listing.weights(SAFETENSORS), listing.weights(PICKLE), None
    if not weights and pickles:
        conversion = find_conversion(api, wanted.repository, pickles, timeout=hub.patience_s)
        if conversion is None:
            check_torch(wanted.name)
    elif not weights:
        raise CheckpointError(
            f"{wanted.repository} has no weights that Captioner reads: neither model.safetensors nor "
            "pytorch_model.bin is among its files"
        )
    theirs = conversion.weights if conversion else []
    own = [*listing.small, *(weights or ([] if conversion else pickles))]
    total = sum(file.size for file in (*own, *theirs))
    logger.info(
        "%s: %d files, %.0f MB, from %s", wanted.name, len(own) + len(theirs), total / 1e6, api.endpoint
    )
    check_room(shelf, [*own, *theirs])
    with DownloadBar(wanted.name, total) as bar:

        def here(commit: str, files: list[HubFile]) -> list[Path]:
            return bring(shelf, wanted.repository, commit, files, bar, endpoint=api.endpoint, token=hub.token)

        paths, others = here(listing.commit, own), []
        shelf.attach(wanted.revision, listing.commit)
        if conversion:
            others = here(conversion.listing.commit, theirs)
            shelf.attach(wanted.revision, conversion.listing.commit, part="-weights")
    if weights:
        return paths[0].parent, "safetensors"
    target = shelf.own / listing.commit
    small = [path for path in (*paths, *others) if is_small(path.name)]
    assemble(target, small, [path for path in (*paths, *others) if path not in small])
    if conversion:
        return target, f"safetensors of pull request {conversion.number} by {CONVERTER}"
    return target, "safetensors written here from its pickle, of which nothing was run"


def _in_cache(wanted: _Wanted, hub: Hub) -> Path | None:
    """What another program has downloaded of a model, where that has weights."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import IncompleteSnapshotError, LocalEntryNotFoundError

    try:
        found = snapshot_download(
            wanted.repository, revision=wanted.revision, cache_dir=hub.cache, local_files_only=True
        )
    except IncompleteSnapshotError as error:  # of all its files, of which not all are wanted
        found = error.snapshot_path
    except LocalEntryNotFoundError:
        return None
    names = file_names(Path(found))
    whole = "config.json" in names and (weights_in(names, SAFETENSORS) or weights_in(names, PICKLE))
    return with_safetensors(Path(found)) if whole else None


def _has_token(hub: Hub) -> bool:
    from huggingface_hub import get_token

    return bool(hub.token or get_token())
