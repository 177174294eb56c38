"""Records as a table: CSV for spreadsheets, Parquet for whatever reads columns."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable
from importlib.util import find_spec
from itertools import islice
from typing import Any, BinaryIO, Literal

from captioner.batch.records import Record, encode_record
from captioner.batch.replacing import replacing
from captioner.errors import DataError, OptionsError

__all__ = ["Format", "check_format", "write_table"]

Format = Literal["jsonl", "csv", "parquet"]

COLUMNS = ["file", "caption", "confidence", "logprob", "model", "width", "height", "alternatives"]
COLUMNS += ["error", "error_kind", "warning", "sha256", "duplicate_of", "calibrated", "uncertain", "unhedged"]
ROW_GROUP = 1024
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def check_format(format: Format, *, excel: bool = False) -> None:
    """Raises OptionsError if a format needs what is not installed, or is none for a spreadsheet."""
    if excel and format != "csv":
        raise OptionsError("--excel is for a CSV: --output captions.csv, or --format csv")
    if format == "parquet" and find_spec("pyarrow") is None:
        raise OptionsError("Parquet needs pyarrow: pip install 'captioner[batch]'")


def write_table(
    path: str | os.PathLike[str], records: Iterable[Record], format: Format, *, excel: bool = False
) -> None:
    """Write records as a table, which takes the place of ``path`` once it is whole.

    A CSV has a row for each record, without its words, and with the captions of its alternatives as JSON. A
    Parquet file has all that the records have, nested as there, in groups of 1024 rows. JSON Lines have the
    records as they are.

    Args:
        path: of the file.
        records: taken as they are written.
        format: of the file.
        excel: write a CSV that a spreadsheet opens by a double click: with a byte-order mark, so that it is
            read as UTF-8, and with an apostrophe before texts that it would compute.

    Raises:
        DataError: it cannot be written.
    """
    try:
        with replacing(path) as file:
            if format == "csv":
                _write_csv(file, records, excel=excel)
            elif format == "parquet":
                _write_parquet(file, records)
            else:
                file.writelines(map(encode_record, records))
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written: {error.strerror}. Its records are safe: mend this, and the same "
            "command writes it"
        ) from error


def _write_csv(file: BinaryIO, records: Iterable[Record], *, excel: bool) -> None:
    encoding = "utf-8-sig" if excel else "utf-8"
    text = io.TextIOWrapper(file, encoding=encoding, errors="backslashreplace", newline="")
    rows = csv.DictWriter(text, COLUMNS, extrasaction="ignore")
    rows.writeheader()
    for record in records:
        others = [alternative["caption"] for alternative in record.get("alternatives", ())]
        row = {**record, "alternatives": json.dumps(others, ensure_ascii=False) if others else ""}
        if "unhedged" in record:
            row["unhedged"] = record["unhedged"]["caption"]
        rows.writerow({name: _as_text(value) for name, value in row.items()} if excel else row)
    text.flush()
    text.detach()  # the file is its owner's to close


def _as_text(value: Any) -> Any:
    """A text that a spreadsheet takes for one and does not compute, as it does ``=HYPERLINK(…)``; see OWASP's
    "CSV Injection". Numbers are numbers, negative ones too."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def _write_parquet(file: BinaryIO, records: Iterable[Record]) -> None:
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    text, number = pa.string(), pa.float32()
    scores = {"confidence": number, "logprob": number}
    maps = {"attention": pa.list_(pa.list_(number)), "box": pa.list_(pa.int32())}
    schema = pa.schema(
        {
            "file": text,
            "caption": text,
            **scores,
            "model": text,
            "width": pa.int32(),
            "height": pa.int32(),
            "words": pa.list_(pa.struct({"text": text, **scores, **maps})),
            "alternatives": pa.list_(pa.struct({"caption": text, **scores})),
            **dict.fromkeys(("error", "error_kind", "warning", "sha256", "duplicate_of"), text),
            "calibrated": pa.bool_(),
            "uncertain": pa.bool_(),
            "unhedged": pa.struct({"caption": text, **scores}),
        }
    )
    source = iter(records)
    with pq.ParquetWriter(file, schema) as writer:
        while group := list(islice(source, ROW_GROUP)):
            try:
                table = pa.Table.from_pylist(group, schema)
            except UnicodeEncodeError:  # file names that are no UTF-8, or halves of characters
                table = pa.Table.from_pylist(_as_unicode(group), schema)
            writer.write_table(table)


def _as_unicode(value: Any) -> Any:
    """Records, or a part of them, with what is no text that UTF-8 can hold written with escapes."""
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, list):
        return [_as_unicode(each) for each in value]
    return {name: _as_unicode(each) for name, each in value.items()} if isinstance(value, dict) else value
