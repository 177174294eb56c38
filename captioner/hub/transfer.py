"""Files of the hub into its cache: what has come before is used, a part is continued, and all is checked."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from captioner.errors import CheckpointError
from captioner.hub.bar import DownloadBar
from captioner.hub.listing import HubFile
from captioner.hub.shelf import Shelf

__all__ = ["bring", "check_room"]


def check_room(shelf: Shelf, files: Sequence[HubFile]) -> None:
    """Raise CheckpointError where the disk has no room for what has not come yet."""
    here = {
        path
        for file in files
        for path in (shelf.blob(file.digest), shelf.partial(file.digest))
        if file.digest and path.is_file()
    }
    needed = sum(file.size for file in files) - sum(path.stat().st_size for path in here)
    free = shutil.disk_usage(shelf.own).free
    if needed > free:
        raise CheckpointError(
            f"{needed / 1e6:.0f} MB are to come, and {shelf.folder} has room for {free / 1e6:.0f} MB: "
            "make room, or set HF_HOME to another disk"
        )


def bring(
    shelf: Shelf,
    repository: str,
    commit: str,
    files: Sequence[HubFile],
    bar: DownloadBar,
    *,
    endpoint: str,
    token: str | None,
) -> list[Path]:
    """Download files of one commit.

    Args:
        shelf: of the model.
        repository: ``owner/name``.
        commit: the files are of.
        files: which.
        bar: told of every byte.
        endpoint: the hub's address.
        token: sent to it; None for the client's own.

    Returns:
        Where the cache has each of them.

    Raises:
        CheckpointError: a file is another one than the hub listed.
        Exception: whatever the hub's client raises; what has come so far is kept.
    """
    from huggingface_hub import hf_hub_download, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    headers = build_hf_headers(
        token=token, library_name="captioner", library_version=version("captioner")
    ) | {"Accept-Encoding": "identity"}

    def download(file: HubFile) -> None:
        blob, partial = shelf.blob(file.digest), shelf.partial(file.digest)
        if blob.is_file():
            if _digest(blob, file) == file.digest:
                bar.update(file.size)
                return
            blob.unlink()
        if partial.is_file() and partial.stat().st_size > file.size:
            partial.unlink()
        with partial.open("ab") as out:
            http_get(
                hf_hub_url(repository, file.name, revision=commit, endpoint=endpoint),
                out,
                resume_size=out.tell(),
                headers=headers,
                expected_size=file.size,
                displayed_filename=file.name,
                tqdm_class=bar.of_file(),
            )
        found = _digest(partial, file)
        if found != file.digest:
            partial.unlink()
            raise CheckpointError(
                f"{file.name} of {repository} came damaged: its digest is {found}, and {endpoint} lists "
                f"{file.digest}; nothing of it is kept: run the same command again"
            )
        blob.parent.mkdir(exist_ok=True)
        os.replace(partial, blob)

    paths = []
    for file in files:
        if file.digest:
            download(file)
        path = hf_hub_download(  # links what is in the cache already
            repository,
            file.name,
            revision=commit,
            cache_dir=shelf.folder.parent,
            endpoint=endpoint,
            token=token,
            library_name="captioner",
            tqdm_class=bar.of_file(),
        )
        paths.append(Path(path))
    return paths


def _digest(path: Path, file: HubFile) -> str:
    """The digest of a file, of the kind that its listing has."""
    with open(path, "rb") as data:
        if len(file.digest) == 64:
            return hashlib.file_digest(data, "sha256").hexdigest()
        blob = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
        for chunk in iter(lambda: data.read(1 << 20), b""):
            blob.update(chunk)
        return blob.hexdigest()
