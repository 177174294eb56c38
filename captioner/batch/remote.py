"""Files of object stores, by URI: ``s3://bucket/folder/dog.jpg``, ``gs://…``, ``abfs://…``, ``hdfs://…``.

pyarrow's filesystems read them; who may, and from where, they learn as each store's own tools do, from the
environment or the machine. What stands behind the scheme is taken as it is, without percent-escapes.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any, BinaryIO, cast

from captioner.errors import OptionsError

__all__ = ["exists", "is_remote", "list_files", "match_files", "open_file", "read_file"]


def is_remote(path: str) -> bool:
    """Whether a path is a URI."""
    return re.match(r"[a-z][a-z\d+.-]+://", path) is not None


def exists(uri: str) -> bool:
    """Whether a file or a folder has this name; errors are those of :func:`list_files`."""
    filesystem, path = _locate(uri)
    from pyarrow.fs import FileType  # type: ignore[import-untyped]

    return bool(filesystem.get_file_info(path).type != FileType.NotFound)


def list_files(uri: str, *, recursive: bool) -> list[str] | None:
    """The URIs of a folder's files, in order; None for a URI that is no folder.

    Raises:
        OptionsError: the URI's scheme is not known, or pyarrow is not installed.
        OSError: the store cannot be reached, or does not let us in.
    """
    filesystem, path = _locate(uri)
    from pyarrow.fs import FileSelector, FileType

    if filesystem.get_file_info(path).type != FileType.Directory:
        return None
    found = filesystem.get_file_info(FileSelector(path, recursive=recursive))
    files = [info.path.removeprefix(path) for info in found if info.type == FileType.File]
    return [uri.rstrip("/") + file for file in sorted(files)]


def match_files(uri: str) -> list[tuple[str, bool]]:
    """What a glob matches, in order, and whether it is a folder; ``**`` stands for any number of folders.

    As in a shell, wildcards leave out what is hidden. Errors are those of :func:`list_files`; ``a**b`` is an
    OptionsError too.
    """
    store = "/".join(uri.split("/")[:3])  # s3://bucket
    filesystem, root = _locate(store)
    from fsspec.implementations.arrow import ArrowFSWrapper  # type: ignore[import-untyped]
    from fsspec.utils import glob_translate  # type: ignore[import-untyped]

    pattern = root + uri.removeprefix(store)
    try:
        glob_translate(pattern)  # which glob() does too, but only when it has listed the whole store
    except ValueError as error:
        raise OptionsError(f"{uri}: {error}") from error
    found = ArrowFSWrapper(filesystem).glob(pattern, detail=True)
    return [
        (store + path.removeprefix(root), info["type"] == "directory")
        for path, info in sorted(found.items())
        if path.count("/.") == pattern.count("/.")
    ]


def open_file(path: str) -> BinaryIO:
    """A file that can be sought in, by its path or its URI; errors are those of :func:`list_files`."""
    if not is_remote(path):
        return open(path, "rb")
    filesystem, inside = _locate(path)
    return cast(BinaryIO, filesystem.open_input_file(inside))


def read_file(uri: str) -> bytes:
    """A whole file; errors are those of :func:`list_files`, and OSError where it has more than MAX_BYTES."""
    from captioner.image import MAX_BYTES  # with it come Pillow and NumPy, which --help can do without

    with open_file(uri) as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise OSError(f"more than {MAX_BYTES / 1e6:.0f} MB")
    return data


def _locate(uri: str) -> tuple[Any, str]:
    """The filesystem of a URI, and the path in it."""
    scheme, _, place = uri.partition("://")
    host, _, path = place.partition("/")
    filesystem, root = _connect(scheme, host)
    return filesystem, f"{root.rstrip('/')}/{path}".rstrip("/")


@cache  # one client for each bucket: its connections are what takes long to make
def _connect(scheme: str, host: str) -> tuple[Any, str]:
    try:
        from pyarrow.fs import FileSystem
    except ImportError as error:
        raise OptionsError(f"{scheme}:// is read by pyarrow: pip install 'captioner[batch]'") from error
    try:
        filesystem, root = FileSystem.from_uri(f"{scheme}://{host}/")
    except ValueError as error:
        raise OptionsError(
            f"{scheme}://{host} cannot be read: s3, gs, abfs, hdfs and file can; download it first"
        ) from error
    return filesystem, root
