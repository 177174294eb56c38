"""Where a model of the hub lies in the hub's cache, and the record of what was taken when it first came.

The record pins a model: what ``main`` was at the first download is what loads from then on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from filelock import FileLock

__all__ = ["Record", "Shelf"]


@dataclass(frozen=True, kw_only=True)
class Record:
    """What was taken of a model.

    Attributes:
        revision: what was asked for, such as ``main``.
        commit: what that was when it was downloaded.
        weights: in words, how they came.
        directory: of the checkpoint, relative to the model's folder in the cache.
        files: the bytes of each file in it.
    """

    revision: str
    commit: str
    weights: str
    directory: str
    files: Mapping[str, int]


class Shelf:
    """One model's folder in the hub's cache, which has the hub's own layout and one folder of ours in it.

    Args:
        cache: the hub's cache.
        repository: ``owner/name``.

    Attributes:
        folder: the model's.
        own: ours in it: records, parts of files, and checkpoints with other weights than the repository's.
    """

    def __init__(self, cache: Path, repository: str) -> None:
        self.folder = cache / f"models--{repository.replace('/', '--')}"
        self.own = self.folder / "captioner"

    def blob(self, digest: str) -> Path:
        """Where the hub's cache has the file of that digest."""
        return self.folder / "blobs" / digest

    def partial(self, digest: str) -> Path:
        """Where that file is while it comes."""
        return self.own / f"{digest}.partial"

    def lock(self) -> FileLock:
        """Held by the one process that downloads this model; others wait."""
        self.own.mkdir(parents=True, exist_ok=True)
        return FileLock(self.own / "lock")

    def read(self, revision: str) -> Record | None:
        """What was taken as that revision, if anything was; a damaged record is none."""
        try:
            data: dict[str, Any] = json.loads(self._path(revision).read_text(encoding="utf-8"))
            return Record(**{**data, "files": dict(data["files"]), "directory": str(data["directory"])})
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def write(
        self, revision: str, commit: str, weights: str, directory: Path, names: Iterable[str]
    ) -> Record:
        """Remember what was taken; a killed process leaves the record that was there before."""
        record = Record(
            revision=revision,
            commit=commit,
            weights=weights,
            directory=directory.relative_to(self.folder).as_posix(),
            files={name: (directory / name).stat().st_size for name in names},
        )
        path = self._path(revision)
        partial = path.with_suffix(".json.partial")
        partial.write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")
        os.replace(partial, path)
        return record

    def attach(self, revision: str, commit: str, *, part: str = "") -> None:
        """Name a commit in the hub's cache, so that ``hf cache prune`` leaves it there.

        Args:
            revision: what it was downloaded as; what had this name before is free to go.
            commit: with files in the cache.
            part: of the checkpoint that comes from this commit; empty for all of it.
        """
        reference = self.folder / "refs" / "captioner" / (quote(revision, safe="") + part)
        reference.parent.mkdir(parents=True, exist_ok=True)
        reference.write_text(commit)

    def missing(self, record: Record) -> list[str]:
        """Files of a record that are not there any more, or not whole."""
        directory = self.folder / record.directory
        return [
            name
            for name, size in record.files.items()
            if not (directory / name).is_file() or (directory / name).stat().st_size != size
        ]

    def _path(self, revision: str) -> Path:
        return self.own / f"{quote(revision, safe='')}.json"
