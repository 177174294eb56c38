"""The command ``captioner export``: finished records as sidecars, tables or a gallery."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal, cast, get_args

import typer

from captioner.batch.counts import Counts
from captioner.batch.export import Format, check_format, write_table
from captioner.batch.log import Existing
from captioner.batch.outputs import write_gallery
from captioner.batch.progress import say_what_is_left, say_what_is_wrong
from captioner.batch.reading import RecordFile, item_of
from captioner.batch.records import Record, error_record, version_of, without_sidecar
from captioner.batch.settings import Naming, Prefix, RecordsFile, Suffix, Template, result_option
from captioner.batch.sidecars import CAPTION_FIELD, Left, SidecarKind, Sidecars, text_form
from captioner.commandline import complain
from captioner.errors import DataError, OptionsError

__all__ = ["export"]

Target = Literal["txt", "caption", "xmp", "json", "csv", "excel", "parquet", "jsonl", "html"]


def export(
    records: RecordsFile,
    to: Annotated[
        Target,
        typer.Option(help="Sidecars: txt, caption, xmp, json; tables: csv, excel, parquet, jsonl; html."),
    ],
    output: Annotated[
        Path | None,
        result_option("File for a table or the gallery.", "--output", "-o", metavar="FILE"),
    ] = None,
    existing: Annotated[
        Existing, result_option("What to do with sidecars that exist, or with the file.")
    ] = "skip",
    sidecar_name: Naming = "stem",
    prefix: Prefix = "",
    suffix: Suffix = "",
    template: Template = CAPTION_FIELD,
) -> None:
    """Write finished captions as sidecars beside the photos, as a table or as a gallery, without a model."""
    beside = to in get_args(SidecarKind)
    form = text_form(to, template, prefix, suffix, option="--to")
    if beside == (output is not None):
        raise OptionsError(
            f"--to {to} writes a file beside each photo: leave out --output"
            if beside
            else f"--to {to} writes one file: give its name with --output"
        )
    if not beside and sidecar_name != "stem":
        raise OptionsError(f"--sidecar-name is for sidecars, and --to {to} writes none")
    if output is not None:
        _check_output(output, to, existing)
    with RecordFile(records) as source:
        for sentence in source.say_what_is_foreign():
            complain(sentence)
        if output is not None:
            _write_file(source, to, output)
            raise typer.Exit(int(bool(source.foreign)))
        ours = {os.path.abspath(path) for path in (records, source.path)}
        sidecars = Sidecars(
            cast("SidecarKind", to), existing=existing, naming=sidecar_name, form=form, ours=ours
        )
        counts = write_sidecars(source, sidecars)
    complain(f"sidecars written: {sidecars.written}")
    for sentence in (*say_what_is_left(counts), *say_what_is_wrong(counts)):
        complain(sentence)
    raise typer.Exit(int(bool(counts.errors or source.foreign)))


def write_sidecars(records: RecordFile, sidecars: Sidecars) -> Counts:
    """Write each caption beside its photograph; what has none, and why, is in the counts.

    Raises:
        DataError: there is no room.
    """
    counts = Counts()
    for record in records:
        problem = _problem(record, sidecars, counts)
        if problem is not None:
            counts.note_error(problem)
    return counts


def _problem(record: Record, sidecars: Sidecars, counts: Counts) -> Record | None:
    """Write a record's caption beside its photograph, or give the error that says why that cannot be."""
    key = record["file"]
    if "caption" not in record:
        return record
    item = item_of(record)
    if not item.is_file:
        return error_record(key, "nothing can stand beside it in a shard or an object store", "elsewhere")
    if not os.path.lexists(item.path):
        return error_record(key, "is not there any more", "missing")
    if version_of(record) not in (None, item.version()):
        counts.note_warning(
            {"file": key, "warning": "changed: since it was captioned; `captioner batch` captions it anew"}
        )
    kept = without_sidecar(record)
    outcome = sidecars.attempt(item.path, kept, previous=kept)
    if isinstance(outcome, Left):
        counts.note_left(key, outcome)
    elif outcome is not None:
        return error_record(key, f"its sidecar {outcome}", "sidecar")
    return None


def _check_output(output: Path, to: Target, existing: Existing) -> None:
    """Say before the work what cannot be written after it, or would replace what is there."""
    if existing == "append":
        raise OptionsError(f"--existing append is for sidecars, and --to {to} writes one file")
    if not output.absolute().parent.is_dir():
        raise OptionsError(f"the output's folder does not exist; make it first: {output.parent}")
    if to == "html":
        from captioner.report import check_report_path

        check_report_path(output)  # a gallery of ours is written anew, any other page stays
        return
    check_format("csv" if to == "excel" else cast("Format", to))
    if os.path.lexists(output) and existing != "overwrite":
        raise DataError(f"{output} is there already: give another name, or --existing overwrite")


def _write_file(source: RecordFile, to: Target, output: Path) -> None:
    if output.exists() and output.samefile(source.path):
        raise OptionsError(f"{output} is the records themselves: give another name")
    if to == "html":
        write_gallery(output, ((item_of(record).source, record) for record in source))
    else:
        write_table(output, source, "csv" if to == "excel" else cast("Format", to), excel=to == "excel")
    complain(f"records written: {len(source)}")
