"""How far stated probabilities can be believed: calibration error, Brier score, AUROC, and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from captioner.errors import OptionsError

__all__ = [
    "BINS",
    "Bin",
    "Reliability",
    "check_plot_path",
    "plot_reliability",
    "rank_correlation",
    "reliability",
]

BINS = 15

Numbers = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Statements of about one confidence.

    Attributes:
        count: how many.
        confidence: their mean confidence, 0…1.
        right: the share that is right.
    """

    count: int
    confidence: float
    right: float


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """How good a set of stated probabilities is.

    Attributes:
        ece: expected calibration error (Naeini et al. 2015) over 15 bins of equal width: how far confidence
            and share right are apart, 0…1.
        brier: mean squared distance of confidence from truth (Brier 1950), 0…1.
        auroc: probability that something right has more confidence than something wrong, 0…1; None where all
            is right or all wrong.
        bins: those with something in them, by confidence.
    """

    ece: float
    brier: float
    auroc: float | None
    bins: tuple[Bin, ...]


def reliability(confidences: Sequence[float], right: Sequence[bool]) -> Reliability | None:
    """Judge stated probabilities by what is true; None if there are none.

    Args:
        confidences: each in 0…1.
        right: whether that which each was stated of is right.
    """
    if not confidences:
        return None
    stated, truth = np.asarray(confidences, float), np.asarray(right, float)
    index = np.minimum((stated * BINS).astype(int), BINS - 1)
    bins = [
        Bin(
            count=int(inside.sum()),
            confidence=float(stated[inside].mean()),
            right=float(truth[inside].mean()),
        )
        for inside in (index == number for number in np.unique(index))
    ]
    return Reliability(
        ece=sum(bin.count * abs(bin.confidence - bin.right) for bin in bins) / len(stated),
        brier=float(np.square(stated - truth).mean()),
        auroc=_auroc(stated, truth),
        bins=tuple(bins),
    )


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Spearman's rank correlation, -1…1; ties share their mean rank. None where one of them is constant."""
    if len(set(one)) < 2 or len(set(other)) < 2:
        return None
    return float(np.corrcoef(_ranks(np.asarray(one, float)), _ranks(np.asarray(other, float)))[0, 1])


def check_plot_path(path: Path) -> None:
    """Say before the work what drawing would say after it.

    Raises:
        OptionsError: not a .png file, no such folder, a folder itself, or matplotlib is not installed.
    """
    if path.suffix.lower() != ".png":
        raise OptionsError(f"a diagram is a .png file: {path.name!r} is not")
    if not path.absolute().parent.is_dir():
        raise OptionsError(f"the diagram's folder does not exist; make it first: {path.parent}")
    if path.is_dir():
        raise OptionsError(f"the diagram would be a file, but {path} is a folder: give another name")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise OptionsError(
            "--plot needs matplotlib, which is not installed: pip install 'captioner[evaluate]'"
        ) from None


def plot_reliability(path: Path, curves: dict[str, Reliability]) -> None:
    """Draw a reliability diagram (DeGroot and Fienberg 1983) as a PNG file: a panel for each curve.

    Args:
        path: a ``.png`` file.
        curves: by their titles.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(curves), 5), dpi=120, layout="constrained")
    for axes, (title, curve) in zip(
        figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True
    ):
        total = sum(bin.count for bin in curve.bins)
        x = [bin.confidence for bin in curve.bins]
        axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1, label="as stated")
        shares = [bin.count / total for bin in curve.bins]
        axes.bar(x, shares, width=0.6 / BINS, color="0.85", label="share of all")
        axes.plot(x, [bin.right for bin in curve.bins], marker="o", color="#5b3fd6", label="right")
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="share that is right", aspect="equal")
        auroc = "" if curve.auroc is None else f", AUROC {curve.auroc:.3f}"
        axes.set_title(f"{title}: ECE {curve.ece:.3f}{auroc}")
        axes.legend(loc="upper left")
    figure.savefig(path)


def _auroc(stated: Numbers, truth: Numbers) -> float | None:
    positives = truth.sum()
    negatives = len(truth) - positives
    if not positives or not negatives:
        return None
    rank_sum = _ranks(stated)[truth == 1].sum()  # Mann and Whitney 1947
    return float((rank_sum - positives * (positives + 1) / 2) / (positives * negatives))


def _ranks(values: Numbers) -> Numbers:
    """Ranks from 1; ties share the mean of theirs."""
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: Numbers = (last - (counts - 1) / 2)[index]
    return ranks
