"""How far a download is."""

from __future__ import annotations

from typing import Any

__all__ = ["DownloadBar"]


class DownloadBar:
    """A bar over all files of a download, on stderr where that is a terminal; nothing elsewhere.

    Args:
        name: of the model.
        total: bytes of all files.
    """

    def __init__(self, name: str, total: int) -> None:
        from huggingface_hub.utils import are_progress_bars_disabled  # type: ignore[attr-defined]
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal or are_progress_bars_disabled(),
        )
        self._task = self._progress.add_task(name, total=total)

    def __enter__(self) -> DownloadBar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, count: float | None = 1) -> None:
        """So many more bytes are here; fewer than none where a file starts anew."""
        self._progress.advance(self._task, count or 0)

    def of_file(self) -> type[Any]:
        """A class that the hub's client can make its bar of one file from, in place of tqdm's."""
        whole = self

        class FileBar:
            def __init__(self, *, initial: int = 0, **_: Any) -> None:
                whole.update(initial)
                self.update = whole.update

            def __enter__(self) -> FileBar:
                return self

            def __exit__(self, *_: object) -> None:
                """The bar of all files goes on."""

        return FileBar
