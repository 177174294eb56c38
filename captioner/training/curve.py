"""The learning curve: ``metrics.jsonl`` -> ``curve.png``."""

from __future__ import annotations

import json
from pathlib import Path

__all__ = ["plot_curve"]


def plot_curve(output: Path) -> Path:
    """Draw validation scores and loss by epoch, beside the weights; returns the picture's path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    first = [record for record in records if record["phase"] not in ("start", "scst")]
    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    scores, *losses = figure.subplots(1, 2 if first else 1, squeeze=False)[0]
    for name, label in (("cider", "CIDEr"), ("bleu_4", "BLEU-4"), ("rouge_l", "ROUGE-L")):
        scores.plot([r["epoch"] for r in records], [r[name] for r in records], marker="o", label=label)
    scores.set(xlabel="epoch", ylabel="×100", title="Validation, beam search")
    if 0 < len(first) < len(records):
        scores.axvline(first[-1]["epoch"] + 0.5, color="grey", linestyle=":", label="self-critical from here")
    figure.legend(*scores.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    for axes in losses:
        axes.plot([r["epoch"] for r in first], [r["loss"] for r in first], marker="o")
        axes.set(xlabel="epoch", ylabel="training loss", title="Cross-entropy with label smoothing")
    for axes in (scores, *losses):
        axes.grid(alpha=0.3)
        axes.locator_params(axis="x", integer=True)
    path = output / "curve.png"
    figure.savefig(path, dpi=120)
    return path
