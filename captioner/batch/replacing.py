"""A file that takes the place of another one in one step."""

from __future__ import annotations

import os
import shutil
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

__all__ = ["replacing"]


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A new file that takes the place of ``path`` in one step, once it is whole.

    It gets the owner, the mode and the extended attributes of the file that was there. What a killed run left
    of it has the same name, so that the next one clears it away; it is short, so that no name that fits is
    too long because of it.
    """
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".captioner-{zlib.crc32(os.fsencode(path.name)):08x}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
        if path.exists():
            if sys.platform != "win32":
                with suppress(OSError):  # only root may give a file to another owner
                    os.chown(temporary, path.stat().st_uid, path.stat().st_gid)
            shutil.copystat(path, temporary)
            os.utime(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
