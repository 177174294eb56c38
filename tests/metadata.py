"""Other programs' metadata, read and written by them: exiftool, and exiv2 with Adobe's own XMP toolkit."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

PACKET = """\
<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/"
 xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="4"><dc:description>%s</dc:description>
</rdf:Description></rdf:RDF></x:xmpmeta>
<?xpacket end="w"?>
"""


def run(program: str, package: str, *arguments: str) -> bytes:
    """What a program says; the test is skipped where it is not installed."""
    if shutil.which(program) is None:
        pytest.skip(f"no {program} on this machine; install Debian's package {package}")
    return subprocess.run([program, *arguments], capture_output=True, check=True).stdout


def exiftool(path: str | Path) -> dict[str, Any]:
    """A file's metadata by exiftool, which has nothing to complain of."""
    arguments = ["-json", "-struct", "-charset", "filename=utf8", str(path)]
    (data,) = json.loads(run("exiftool", "libimage-exiftool-perl", *arguments))
    assert "Warning" not in data
    return dict(data)


def write_exiftool(path: str | Path, *tags: str) -> None:
    """Let exiftool write tags into a file."""
    run("exiftool", "libimage-exiftool-perl", "-q", "-overwrite_original", *tags, str(path))


def exiv2(path: str | Path) -> dict[str, Any]:
    """A sidecar's XMP by Adobe's toolkit; of texts in languages, each with its language."""
    text = run("exiv2", "exiv2", "-PXkt", "pr", str(path)).decode()
    found: dict[str, Any] = {}
    for key, value in re.findall(r"^(Xmp\.\S+) +(.*?)(?=\nXmp\.|\Z)", text, re.MULTILINE | re.DOTALL):
        languages = re.findall(r'lang="(.*?)" (.*?)(?=, lang="|\Z)', value.strip(), re.DOTALL)
        found[key] = languages or value.strip()
    return found
