"""Inputs to items: files, folders, globs, lists and tar shards become one stable sequence of photographs."""

from __future__ import annotations

import codecs
import glob
import os
import tarfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatch, fnmatchcase
from importlib.util import find_spec

from captioner.batch.items import PHOTO_SUFFIXES, RAW_SUFFIXES, Item, identity, why_unreadable
from captioner.batch.remote import exists, is_remote, list_files, match_files, open_file, read_file
from captioner.errors import OptionsError

__all__ = ["NEEDED", "find_items", "read_list", "say_what_is_needed"]

NEEDED = {"RAW": ("rawpy", "captioner[raw]"), "JPEG XL": ("pillow_jxl", "pillow-jxl-plugin")}
"""For photographs that are not read as things are: the module, and what to install for it."""

LIST_SUFFIXES = frozenset({".txt", ".lst", ".list"})
SIDECAR_SUFFIXES = frozenset({".txt", ".caption", ".json", ".xmp"})
LEFT_OUT = (
    *("@eaDir", "@Recycle", "#recycle", "$RECYCLE.BIN", ".thumbnails", ".Trash*"),
    *("#snapshot", "~snapshot", "@Recently-Snapshot"),
    *("appdata_oc*", "files_trashbin", "files_versions"),
)
"""Folders of thumbnails, of what was thrown away and of former states, in any case: those of a NAS and of
desktops, of snapshots, and of Nextcloud."""

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


def find_items(
    inputs: Iterable[str],
    *,
    stdin: bytes = b"",
    recursive: bool = False,
    all_files: bool = False,
    exclude: Sequence[str] = (),
    ignore: Collection[str] = (),
    left_out: Counter[str] | None = None,
) -> Iterator[Item]:
    """The photographs of all inputs: in the inputs' order, a folder's by name, each once.

    An input is a folder, whose files with a suffix of :data:`IMAGE_SUFFIXES` are taken, and RAW files and
    JPEG XL where the packages of :data:`NEEDED` are installed; a ``.tar`` shard, likewise; a glob, where no
    file has that name; a ``.txt``, ``.lst`` or ``.list`` file with a path a line; or a photograph, whatever
    its suffix. URIs name the same in object stores. A folder is entered once, however many links lead to it,
    so no loop of links goes on for ever. Hidden files and folders are left out unless they are named, and so
    are the folders of :data:`LEFT_OUT`. What cannot be read becomes an item with a ``problem``; a file that
    is not there is found out when it is opened.

    Args:
        inputs: paths and globs; ``-`` stands for a list that came on stdin.
        stdin: that list.
        recursive: whether folders in folders are entered.
        all_files: whether to take what is otherwise left out.
        exclude: globs; files, folders and members whose name or path matches one are left out.
        ignore: absolute paths of files that are never photographs, such as the output.
        left_out: counts the files and folders that were left out, by their kind.
    """
    return _Finder(stdin, recursive, all_files, exclude, ignore, left_out).items(inputs)


def say_what_is_needed(left_out: Mapping[str, int]) -> Iterator[str]:
    """A sentence for each kind of photographs that were left out since a package is missing."""
    for kind, (_, package) in NEEDED.items():
        if left_out.get(kind):
            yield f"{kind} files left out: {left_out[kind]}; to caption them: pip install '{package}'"


def read_list(data: bytes) -> list[str]:
    """The paths of a list: a line each, or each ended by a null byte as ``find -print0`` writes them.

    They are bytes as the system has them; a list that begins with the mark of UTF-16, as PowerShell writes
    it, is decoded.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        data = os.fsencode(data.decode("utf-16", "replace"))
    separator = b"\0" if b"\0" in data else b"\n"
    lines = [line.removesuffix(b"\r") for line in data.removeprefix(b"\xef\xbb\xbf").split(separator)]
    return [os.fsdecode(line) for line in lines if line.strip()]


class _Finder:
    def __init__(
        self,
        stdin: bytes,
        recursive: bool,
        all_files: bool,
        exclude: Sequence[str],
        ignore: Collection[str],
        left_out: Counter[str] | None,
    ) -> None:
        self.stdin, self.recursive, self.all_files = stdin, recursive, all_files
        self.exclude = [pattern.rstrip("/") or pattern for pattern in exclude]  # folder/, as gitignore has it
        self.ignore = ignore
        self.left_out = Counter() if left_out is None else left_out
        self.not_read = {kind for kind, (module, _) in NEEDED.items() if find_spec(module) is None}
        self.folders: set[tuple[int, int]] = set()

    def items(self, inputs: Iterable[str]) -> Iterator[Item]:
        seen: set[str] = set()
        for name in inputs:
            for item in self._input(name):
                if (photo := identity(item.key)) not in seen:
                    seen.add(photo)
                    yield item

    def _input(self, name: str) -> Iterator[Item]:
        try:
            if name == "-":
                yield from self._listed(self.stdin)
            else:
                yield from self._remote_input(name) if is_remote(name) else self._local_input(name)
        except OSError as error:
            yield _unreadable(name, error)

    def _local_input(self, name: str) -> Iterator[Item]:
        if self._is_no_photo(name):
            return
        there = os.path.exists(name)
        if there and _suffix(name) in LIST_SUFFIXES and not os.path.isdir(name):
            with open(name, "rb") as file:
                yield from self._listed(file.read())
        elif not there and glob.has_magic(name):
            found = glob.iglob(_escape_folder(name), recursive=True, include_hidden=self.all_files)
            matches = sorted(found, key=os.fsencode)
            yield from self._matched(name, [(match, os.path.isdir(match)) for match in matches])
        elif not (os.path.isdir(name) and self._is_bin(os.path.basename(name.rstrip("/")))):
            yield from self._path(name)

    def _remote_input(self, uri: str) -> Iterator[Item]:
        if _suffix(uri) in LIST_SUFFIXES:
            yield from self._listed(read_file(uri))
        elif glob.has_magic(uri) and not exists(uri):
            yield from self._matched(uri, match_files(uri))
        else:
            yield from self._path(uri)

    def _listed(self, data: bytes) -> Iterator[Item]:
        for path in read_list(data):
            try:
                if not self._is_no_photo(path):
                    yield from self._path(path)
            except OptionsError as error:  # a URI of a kind that is not read; the other lines may be good
                yield Item(path, path, problem=str(error))

    def _is_no_photo(self, path: str) -> bool:
        """Whether it is a file of ours, of which the shell's ``*`` and ``find`` know nothing."""
        return not is_remote(path) and (os.path.abspath(path) in self.ignore or _is_sidecar(path))

    def _matched(self, pattern: str, matches: Sequence[tuple[str, bool]]) -> Iterator[Item]:
        named = set(pattern.replace(os.sep, "/").split("/"))
        for path, is_folder in matches:
            folders = [name for name in path.replace(os.sep, "/").split("/")[:-1] if name not in named]
            if not any(self._is_left_out(name, is_folder=True) for name in folders):
                yield from self._found(path, os.path.basename(path), is_folder=is_folder)
        if not matches:
            yield Item(pattern, pattern, problem="matches no file")

    def _path(self, path: str) -> Iterator[Item]:
        """What is named, whatever its suffix."""
        is_file = _suffix(path) in PHOTO_SUFFIXES | {".tar"}  # or else the store would be asked about each
        try:
            if is_remote(path) and not is_file and (files := self._remote_files(path)) is not None:
                yield from files
            elif os.path.isdir(path):
                yield from self._folder(path)
            elif _suffix(path) == ".tar":
                yield from self._shard(path)
            elif path.lower().endswith(COMPRESSED):
                yield Item(path, path, problem="is a compressed shard: unpack it to a .tar")
            else:
                yield Item(path, path)
        except OSError as error:
            yield _unreadable(path, error)

    def _found(self, path: str, name: str, *, is_folder: bool) -> Iterator[Item]:
        """What was come across, if it looks like a photograph or may hold some."""
        if self._is_excluded(path, name):
            return
        if is_folder:
            if self.recursive and not self._is_left_out(name, is_folder=True):
                yield from self._path(path)
        elif self._is_photo(name) and not self._is_left_out(name):
            yield Item(path, path)

    def _folder(self, path: str) -> Iterator[Item]:
        status = os.stat(path)
        if (status.st_dev, status.st_ino) in self.folders:
            return
        self.folders.add((status.st_dev, status.st_ino))
        with os.scandir(path) as entries:
            found = sorted(entries, key=lambda entry: os.fsencode(entry.name))
        for entry in found:
            yield from self._found(entry.path, entry.name, is_folder=_is_folder(entry))

    def _remote_files(self, uri: str) -> list[Item] | None:
        """A folder's photographs; None for what is no folder."""
        files = list_files(uri, recursive=self.recursive)
        if files is None:
            return None
        below = len(uri.rstrip("/")) + 1
        return [
            Item(file, file)
            for file in files
            if self._is_photo(file)
            and not any(self._is_excluded(file, name) for name in file[below:].split("/"))
            and not self._is_inside_left_out(file[below:])
        ]

    def _shard(self, path: str) -> Iterator[Item]:
        try:
            with open_file(path) as file, tarfile.open(fileobj=file, mode="r:") as shard:
                for member in shard:
                    name, key = os.path.basename(member.name), f"{path}!{member.name}"
                    is_photo = member.isreg() and self._is_photo(name)
                    if not is_photo or self._is_excluded(key, name) or self._is_inside_left_out(member.name):
                        continue
                    yield Item(key, path, member.offset_data, member.size, float(member.mtime))
        except tarfile.TarError as error:
            yield Item(path, path, problem=f"is a damaged tar shard, or none ({error})")

    def _is_photo(self, name: str) -> bool:
        """Whether a name is that of a photograph; one for which a package is missing is counted."""
        suffix = _suffix(name)
        kind = "RAW" if suffix in RAW_SUFFIXES else "JPEG XL" if suffix == ".jxl" else ""
        if kind in self.not_read:
            self.left_out[kind] += 1
            return False
        return suffix in PHOTO_SUFFIXES

    def _is_excluded(self, path: str, name: str) -> bool:
        return any(fnmatch(name, pattern) or fnmatch(path, pattern) for pattern in self.exclude)

    def _is_inside_left_out(self, path: str) -> bool:
        """Whether a file of a store or a shard, or a folder that it is in, is left out."""
        *folders, name = path.removeprefix("./").split("/")
        return any(self._is_left_out(folder, is_folder=True) for folder in folders) or self._is_left_out(name)

    def _is_bin(self, name: str) -> bool:
        """Whether a folder that was named is left out all the same: the shell's ``*`` names it as well."""
        return not name.startswith(".") and self._is_left_out(name, is_folder=True)

    def _is_left_out(self, name: str, *, is_folder: bool = False) -> bool:
        """Whether what was come across is left out for its name; it is counted then."""
        if self.all_files:
            return False
        kinds = [kind for kind in LEFT_OUT if is_folder and fnmatchcase(name.lower(), kind.lower())]
        kinds += ["hidden"] if name.startswith(".") else []
        self.left_out.update(kinds[:1])
        return bool(kinds)


def _escape_folder(pattern: str) -> str:
    """A glob in which a folder that is there means itself: ``Trip [2019]`` in ``Trip [2019]/*.jpg``."""
    folder, names = os.path.split(pattern)
    while not os.path.isdir(folder) and os.path.dirname(folder) != folder:
        folder, name = os.path.split(folder)
        names = os.path.join(name, names)
    return os.path.join(glob.escape(folder), names)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Asks the disk, which may be far away, about links alone."""
    try:
        return entry.is_dir()
    except OSError:  # such as a loop of links
        return False


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _unreadable(path: str, error: OSError) -> Item:
    return Item(path, path, problem=why_unreadable(error))


def _is_sidecar(path: str) -> bool:
    """Whether a ``dog.txt`` or ``dog.jpg.txt`` stands beside a ``dog.jpg``: the shell's ``*`` names both."""
    stem, suffix = os.path.splitext(path)
    if suffix.lower() not in SIDECAR_SUFFIXES:
        return False
    beside = [stem, *(stem + end for suffix in PHOTO_SUFFIXES for end in (suffix, suffix.upper()))]
    return any(_suffix(photo) in PHOTO_SUFFIXES and os.path.isfile(photo) for photo in beside)
