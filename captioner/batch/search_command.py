"""The command ``captioner search``: photographs found by the words of their captions."""

from __future__ import annotations

import json
import re
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from captioner.batch.outputs import write_gallery
from captioner.batch.reading import RecordFile, item_of
from captioner.batch.records import Record
from captioner.batch.settings import RecordsFile
from captioner.batch.words import compared
from captioner.commandline import complain, one_line
from captioner.errors import CaptionerError, OptionsError

if TYPE_CHECKING:
    from sqlite3 import Connection

__all__ = ["find_records", "search"]

INDEX = (
    "CREATE VIRTUAL TABLE captions USING fts5("
    "caption, others, content = '', tokenize = 'porter unicode61 remove_diacritics 2')"
)
FIND = "SELECT rowid FROM captions WHERE captions MATCH ? ORDER BY rank, rowid"


def search(
    records: RecordsFile,
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="WORDS...",
            help='All must be in the caption; "two words" are a phrase.',
            show_default=False,
        ),
    ],
    limit: Annotated[int, typer.Option(min=0, help="How many photos to print at most; 0: all.")] = 20,
    alternatives: Annotated[
        bool, typer.Option("--alternatives", help="Then those whose alternative captions have the words.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print records, one JSON object per line.")] = False,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Also write a gallery of what is found.")
    ] = None,
) -> None:
    """Find photos by the words of their captions. Print a line for each: its path, a tab and its caption."""
    if report is not None:
        from captioner.report import check_report_path

        check_report_path(report)
    with RecordFile(records) as source:
        for sentence in source.say_what_is_foreign():
            complain(sentence)
        found = find_records(source, " ".join(words), alternatives=alternatives)
        shown = found[: limit or None]
        for record in map(source.at, shown):
            if as_json:
                print(json.dumps(record, ensure_ascii=False))
            else:
                print(one_line(record["file"]), one_line(record["caption"]), sep="\t")
        if report is not None and found:
            write_gallery(report, ((item_of(record).source, record) for record in map(source.at, shown)))
    if not found:
        complain(f"no caption has all of these words: {' '.join(words)}")
    elif len(shown) < len(found):
        complain(f"{len(shown)} of {len(found)} are shown; --limit 0 shows all")
    raise typer.Exit(int(not found or bool(source.foreign)))


def find_records(records: RecordFile, words: str, *, alternatives: bool = False) -> list[int]:
    """The offsets of the records whose captions have all the words, best first.

    Words match in their forms, by the Porter stemmer and a list of irregular ones, in any case and with any
    accents, and rank by Okapi BM25: stemmer and ranking are those of SQLite's FTS5, whose index of this one
    search is in memory.

    Args:
        records: with captions or without.
        words: those in double quotes are a phrase.
        alternatives: also find, after the others, what an alternative or unhedged caption says.

    Raises:
        OptionsError: there is no word.
        CaptionerError: this Python's SQLite has no FTS5.
    """
    query = _query(words)
    with closing(_new_index()) as index:
        texts = ((offset, *_texts(records.at(offset))) for offset in records.offsets())
        index.executemany("INSERT INTO captions (rowid, caption, others) VALUES (?, ?, ?)", texts)
        queries = [f"caption : ({query})", *([query] if alternatives else [])]
        rows = chain.from_iterable(index.execute(FIND, (each,)) for each in queries)
        return list(dict.fromkeys(offset for (offset,) in rows))


def _new_index() -> Connection:
    import sqlite3

    index = sqlite3.connect(":memory:")
    try:
        index.execute(INDEX)
    except sqlite3.OperationalError as error:
        raise CaptionerError(
            "search needs SQLite with FTS5, which this Python lacks: use one from python.org, conda or Debian"
        ) from error
    return index


def _texts(record: Record) -> tuple[str, str]:
    """The words of a record's caption, and of its other ones."""
    others = [*record.get("alternatives", ()), *filter(None, [record.get("unhedged")])]
    return compared(record.get("caption", "")), " ".join(compared(other["caption"]) for other in others)


def _query(words: str) -> str:
    """What FTS5 looks for: each word and phrase as a string, in which nothing has a meaning of its own."""
    parts = [compared(phrase or word) for phrase, word in re.findall(r'"([^"]*)"|([^\s"]+)', words)]
    wanted = list(filter(None, parts))
    if not wanted:
        raise OptionsError(f"there is no word to search for in {words!r}")
    return " ".join(f'"{part}"' for part in wanted)
