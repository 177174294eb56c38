"""What a command puts together from its options: photographs, model, log and files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captioner.batch.counts import Counts
from captioner.batch.export import Format
from captioner.batch.finding import find_items
from captioner.batch.items import Item
from captioner.batch.log import RecordLog
from captioner.batch.origin import made_with
from captioner.batch.outputs import Outputs
from captioner.batch.remote import is_remote
from captioner.batch.settings import BatchOptions
from captioner.batch.sidecars import Sidecars, text_form
from captioner.errors import OptionsError

if TYPE_CHECKING:
    from captioner.batch.engine import BatchCaptioner, Engine
    from captioner.captioner import Captioner
    from captioner.options import GenerationOptions

__all__ = ["Job"]

OTHER_FORMATS = frozenset(
    {".xlsx", ".xls", ".ods", ".tsv", ".xml", ".html", ".htm", ".db", ".sqlite", ".feather", ".arrow"}
    | {".gz", ".bz2", ".xz", ".zst", ".zip"}
)
"""Suffixes by which other programs would take JSON Lines for something else."""


class Job:
    """A command's work, checked before a model is loaded and before anything is written.

    Args:
        options: of the command.
        inputs: as :func:`~captioner.batch.finding.find_items` takes them.
        stdin: likewise.

    Attributes:
        outputs: the files that it writes.
        find: finds the photographs.

    Raises:
        OptionsError: the options do not fit each other.
        DataError: a file of somebody else is where it would write.
    """

    def __init__(self, options: BatchOptions, inputs: Sequence[str], *, stdin: bytes = b"") -> None:
        self.options = options
        self.outputs = Outputs(
            output=options.output,
            format=options.format or _format_of(options.output),
            excel=options.excel,
            report=options.report,
        )
        self._form = text_form(
            options.sidecar, options.template, options.prefix, options.suffix, option="--sidecar"
        )
        if options.sidecar is None and options.sidecar_name != "stem":
            raise OptionsError("--sidecar-name is for --sidecar, and without that none is written")
        if options.sidecar and any(map(is_remote, inputs)):
            raise OptionsError(
                "sidecars stand beside photographs of this machine: leave out --sidecar for a URI"
            )
        self.outputs.check(options.existing)
        self.find = partial(
            find_items,
            inputs,
            stdin=stdin,
            ignore=self.outputs.paths,
            recursive=options.recursive,
            all_files=options.all_files,
            exclude=options.exclude or (),
        )

    @property
    def needs_attention(self) -> bool:
        """Whether it must be known where the model looked."""
        return self.options.attention or self.options.report is not None

    def load(self, load: Callable[..., Captioner], given: GenerationOptions) -> None:
        """Load the model.

        Args:
            load: :func:`captioner.load`, or what takes the same.
            given: options of generation.

        Raises:
            CaptionerError: there is no such model, or it cannot do what is asked.
        """
        from captioner.batch.engine import BatchCaptioner

        options = self.options
        here = "cpu" if options.engine == "ray" else options.device  # the cluster's nodes have the devices
        captioner = load(options.model, device=here, dtype=options.dtype)
        worker = BatchCaptioner(captioner, given)
        self._engine = _make_engine(options, worker)
        self._origin = {"model": captioner.name, **made_with(options.model, worker.options)}

    def open_log(self) -> RecordLog:
        """The log; errors are those of :class:`RecordLog`."""
        return self.outputs.open_log(self.options.existing, retry_errors=self.options.retry_errors)

    def run(
        self,
        items: Iterable[Item],
        log: RecordLog,
        *,
        stop: Callable[[], bool],
        progress: Callable[[Counts], None],
    ) -> Counts:
        """Caption photographs with the model that was loaded; see :func:`~captioner.batch.run.run_batch`."""
        from captioner.batch.run import run_batch

        return run_batch(
            items,
            self._engine,
            log,
            origin=self._origin,
            update=self.options.update,
            sidecars=self._sidecars(),
            dedupe=self.options.dedupe,
            stop=stop,
            progress=progress,
        )

    def _sidecars(self) -> Sidecars | None:
        """New ones for each run, since they remember what is in a folder."""
        if self.options.sidecar is None:
            return None
        return Sidecars(
            self.options.sidecar,
            existing=self.options.existing,
            naming=self.options.sidecar_name,
            form=self._form,
            ours=self.outputs.paths,
        )


def _make_engine(options: BatchOptions, worker: BatchCaptioner) -> Engine:
    from captioner.batch.local import LocalEngine
    from captioner.batch.ray_engine import RayEngine

    sizes: dict[str, Any] = {"batch_size": options.batch_size, "workers": options.workers}
    if options.engine == "local":
        return LocalEngine(worker, **sizes)
    return RayEngine(worker, device=options.device, dtype=options.dtype, **sizes)


def _format_of(output: Path) -> Format:
    """The format that a file's name says, JSON Lines unless it is another one's."""
    formats: dict[str, Format] = {".csv": "csv", ".parquet": "parquet"}
    suffix = output.suffix.lower()
    if suffix in OTHER_FORMATS:
        raise OptionsError(
            f"{output.name}: no {suffix} is written: name it .jsonl, .parquet or .csv, which spreadsheets "
            "read with --excel, or say --format"
        )
    return formats.get(suffix, "jsonl")
