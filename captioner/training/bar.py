"""What ``captioner train`` shows while it runs."""

from __future__ import annotations

import sys

from captioner.training.options import Progress

__all__ = ["Bar"]

NAMES = {
    "cache": "view",
    "start": "before",
    "text": "text epoch",
    "xe": "epoch",
    "scst": "self-critical epoch",
}


class Bar:
    """A progress bar on a terminal, a line now and then elsewhere; both on stderr."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.console = Console(stderr=True)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[state]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.progress.add_task("", total=None, state="")

    def __enter__(self) -> Bar:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def report(self, news: Progress) -> None:
        name = NAMES[news.phase]
        loss = "" if news.loss is None else f"loss {news.loss:.3f}  "
        state = f"{loss}{news.images_per_second:.1f} {'lines' if news.phase == 'text' else 'images'}/s"
        if news.step == 1 or self.progress.tasks[0].total != news.steps:
            self.progress.reset(self.task, total=news.steps)
        self.progress.update(self.task, description=f"{name} {news.epoch}", completed=news.step, state=state)
        if news.scores is not None:
            scores = "  ".join(
                f"{key} {value:.1f}" for key, value in news.scores.items() if value is not None
            )
            head = f"{name}:" if news.phase == "start" else f"{name} {news.epoch}: {state} "
            self.console.print(f"{head} {scores}", highlight=False, soft_wrap=True)
        elif not self.console.is_terminal and news.step % 100 == 0:
            print(f"{name} {news.epoch} {news.step}/{news.steps} {state}", file=sys.stderr, flush=True)
