"""Figures that more than one recipe draws. Each takes plain numbers and a path, and writes one PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def curves(
    path: Path, series: Mapping[str, Sequence[Sequence[tuple[float, float]]]], *, title: str, x: str, y: str
) -> None:
    """One line an arm: the mean over its runs, and their range as a band.

    Args:
      series: arm -> runs -> (x, y) pairs; the runs of an arm have the same x.
    """
    figure, axes = _figure()
    for name, runs in series.items():
        points = np.array([[value for _, value in run] for run in runs])
        steps = [step for step, _ in runs[0]]
        (line,) = axes.plot(steps, points.mean(0), label=name, linewidth=1.4)
        axes.fill_between(steps, points.min(0), points.max(0), color=line.get_color(), alpha=0.15, linewidth=0)
    _finish(figure, axes, path, title=title, x=x, y=y)


def spectra(path: Path, values: Mapping[str, Sequence[float] | np.ndarray], *, title: str, floor: float = 1e-7) -> None:
    """Singular values in descending order, as shares of the largest, on a logarithmic axis."""
    figure, axes = _figure()
    for name, found in values.items():
        ordered = np.sort(np.asarray(found))[::-1]
        axes.plot(np.arange(1, len(ordered) + 1), np.maximum(ordered / ordered[0], floor), label=name, linewidth=1.4)
    axes.set_yscale("log")
    _finish(figure, axes, path, title=title, x="index", y="singular value / largest")


def stacked_bars(path: Path, parts: Mapping[str, Mapping[str, float]], *, title: str, y: str) -> None:
    """One bar an arm, made of its parts: arm -> part -> size."""
    figure, axes = _figure()
    names = list(dict.fromkeys(part for arm in parts.values() for part in arm))
    bottom = np.zeros(len(parts))
    for name in names:
        heights = np.array([arm.get(name, 0.0) for arm in parts.values()])
        axes.bar(range(len(parts)), heights, bottom=bottom, label=name, width=0.6)
        bottom += heights
    axes.set_xticks(range(len(parts)), [name.replace(", ", ",\n") for name in parts], fontsize=7)
    _finish(figure, axes, path, title=title, x="", y=y)


def law(
    path: Path,
    points: Mapping[str, tuple[Sequence[float] | np.ndarray, ...]],
    fits: Mapping[str, tuple[Sequence[float] | np.ndarray, ...]],
    *,
    title: str,
    x: str,
    y: str,
) -> None:
    """Measured losses and fitted laws with their intervals, on a logarithmic x axis.

    Args:
      points: arm -> (x, y).
      fits: law -> (x, fitted, low, high), for example of `analysis.scaling_laws.bootstrap(...).interval`.
    """
    figure, axes = _figure()
    for name, (at, values) in points.items():
        axes.plot(at, values, "o", markersize=4, label=name)
    for name, (at, fitted, low, high) in fits.items():
        (line,) = axes.plot(at, fitted, label=name, linewidth=1.4)
        axes.fill_between(at, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set_xscale("log")
    _finish(figure, axes, path, title=title, x=x, y=y)


def points(
    path: Path, values: Mapping[str, tuple[float, Sequence[float]]], *, title: str, x: str, y: str, log_x: bool = False
) -> None:
    """One point an arm, named beside it: arm -> (x, the y of its runs), the mean with the range as a bar."""
    figure, axes = _figure()
    for name, (at, found) in values.items():
        mean = float(np.mean(found))
        bar = axes.errorbar(at, mean, [[mean - min(found)], [max(found) - mean]], fmt="o", markersize=4, capsize=2)
        axes.annotate(name, (at, mean), (5, 4), textcoords="offset points", fontsize=6, color=bar[0].get_color())
    if log_x:
        axes.set_xscale("log")
    axes.margins(x=0.15)
    _finish(figure, axes, path, title=title, x=x, y=y)


def _figure() -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot.subplots(figsize=(7, 4.2), dpi=130, layout="constrained")


def _finish(figure: Any, axes: Any, path: Path, *, title: str, x: str, y: str) -> None:
    from matplotlib import pyplot

    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    pyplot.close(figure)
