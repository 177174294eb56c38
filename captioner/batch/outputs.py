"""The files that a run leaves: the records, a table of them, a gallery."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from captioner.batch.export import Format, check_format, write_table
from captioner.batch.items import Item
from captioner.batch.log import Existing, RecordLog
from captioner.errors import DataError, OptionsError

if TYPE_CHECKING:
    from captioner.report import Entry

__all__ = ["Outputs", "write_gallery"]


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Where a run writes.

    Attributes:
        output: the file that the user named.
        format: of it.
        excel: whether a CSV is for a spreadsheet.
        report: the gallery's page, or None.
    """

    output: Path
    format: Format
    excel: bool = False
    report: Path | None = None

    @property
    def records(self) -> Path:
        """The log, from which a table is made."""
        return self.output if self.format == "jsonl" else self.output.with_name(f"{self.output.name}.jsonl")

    @property
    def paths(self) -> set[str]:
        """The absolute paths of all files."""
        return {os.path.abspath(path) for path in (self.output, self.records, self.report) if path}

    def check(self, existing: Existing) -> None:
        """Say before the work what could not be written after it, or would replace what somebody else wrote.

        Raises:
            OptionsError: the formats and names do not fit.
            DataError: a file of somebody else is there, or there is no room.
        """
        from captioner.report import check_report_path

        if str(self.output) == "-":
            raise OptionsError(
                "--output - is no file from which a run could go on: name one, or use "
                "`captioner caption --json`"
            )
        for path in (self.output, self.records):
            if path.exists() and not path.is_file():
                raise OptionsError(f"{path} is no regular file: name one, from which a run can go on")
        check_format(self.format, excel=self.excel)
        if self.report is not None:
            if os.path.abspath(self.report) in {os.path.abspath(self.output), os.path.abspath(self.records)}:
                raise OptionsError(f"{self.report} is the output: give the report another name")
            check_report_path(self.report)
        if self.format == "jsonl" or existing == "overwrite" or not self.output.exists():
            return
        if not self.records.exists():
            raise DataError(
                f"{self.output} is there, but not {self.records.name}, from which a run goes on: choose "
                "another output, or --existing overwrite"
            )
        if self.output.stat().st_mtime_ns > self.records.stat().st_mtime_ns:
            raise DataError(
                f"{self.output} has been changed since it was written, and would be written anew: move it "
                "elsewhere, or --existing overwrite"
            )

    def open_log(self, existing: Existing, *, retry_errors: bool) -> RecordLog:
        """The log; errors are those of :class:`RecordLog`."""
        return RecordLog(self.records, existing=existing, retry_errors=retry_errors)

    def write(self, log: RecordLog, items: Iterable[Item], *, stopped: bool) -> None:
        """Write the table, and the gallery of a run that was not stopped.

        Raises:
            DataError: one of them cannot be written; the records are safe.
        """
        if self.format != "jsonl" and log.in_place:
            write_table(self.output, log, self.format, excel=self.excel)
            time = self.records.stat().st_mtime_ns  # by which `check` sees that nobody has changed it
            os.utime(self.output, ns=(time, time))
        if self.report is not None and not stopped:
            write_gallery(self.report, ((each.source, log[each.key]) for each in items if each.key in log))


def write_gallery(path: str | os.PathLike[str], entries: Iterable[Entry]) -> int:
    """The same as :func:`~captioner.report.write_report`, of records that are safe in a file of their own.

    Raises:
        OptionsError: the path is none for a page.
        DataError: the page cannot be written.
    """
    from captioner.report import write_report

    try:
        return write_report(path, entries)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written: {error.strerror}. The records are safe: mend this, and the same "
            "command writes it"
        ) from error
