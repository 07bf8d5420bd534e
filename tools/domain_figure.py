"""The picture of the study of domain classifiers: what wrong and fewer training labels do."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.axes
import matplotlib.figure
import matplotlib.layout_engine
import matplotlib.lines
import matplotlib.ticker
import matplotlib.transforms
import numpy as np

from clipdg_jax.domains import calibration, measures
from clipdg_jax.evaluation import plots

Deciders = Mapping[str, measures.Measured]


def draw(
    path: str | os.PathLike[str],
    by_noise: Mapping[float, Deciders],
    by_labels: Mapping[int, Deciders],
    others: Sequence[Deciders],
    default: tuple[float, int],
    target: float,
) -> None:
    """Draws what noise and fewer labels do to recall, average precision and true precision.

    Args:
      path: the PNG to write, replaced whole.
      by_noise: share of wrong training labels -> both deciders.
      by_labels: number of training labels -> both deciders.
      others: the other seeds at the default.
      default: its noise and number of labels.
      target: precision that the thresholds were calibrated to.
    """
    layout = matplotlib.layout_engine.ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08)
    figure = matplotlib.figure.Figure(figsize=(10, 7), layout=layout)
    grid = figure.add_gridspec(2, 2, height_ratios=(3, 1.7))
    in_percent = {100 * rate: row for rate, row in by_noise.items()}
    panels: tuple[tuple[str, dict[float, Deciders], bool], ...] = (
        ("wrong training labels", in_percent, False),
        ("number of training labels", {float(n): row for n, row in by_labels.items()}, True),
    )
    drawn = [*by_noise.values(), *by_labels.values(), *others]
    figures = [e.value for row in drawn for one in row.values() for e in _upper(one)]
    lows = [one.precision.low for row in drawn for one in row.values() if one.decided]
    own = (100 * default[0], default[1])
    upper_axes = lower_axes = None
    for column, (title, rows, logarithmic) in enumerate(panels):
        upper = figure.add_subplot(grid[0, column], sharey=upper_axes)
        lower = figure.add_subplot(grid[1, column], sharex=upper, sharey=lower_axes)
        upper_axes, lower_axes = upper, lower
        plots.style(upper, f"recall and average precision\nby {title}")
        plots.style(lower, "true precision, with 95 % intervals")
        _curves(upper, rows)
        _precisions(lower, rows, target)
        for row in others:
            _dots(upper, own[column], row)
        if logarithmic:
            upper.set_xscale("log")
        for axes in (upper, lower):
            axes.set_xticks(sorted(rows), [f"{x:g}" for x in sorted(rows)])
            axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
            axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(decimals=0))
            axes.grid(axis="y", color=plots.FAINT)
        lower.set_xlabel(f"{title}{'' if logarithmic else ', %'}", fontsize=12, color=plots.INK)
        upper.set_ylim(_floor(figures, 10), 101)
        lower.set_ylim(_floor([*lows, target - 0.01], 2), 100.3)
    _legend(figure, target, bool(others))
    plots.save(figure, path)


def _upper(one: measures.Measured) -> tuple[measures.Estimate, measures.Estimate]:
    return one.recall, one.average_precision


def _curves(axes: matplotlib.axes.Axes, rows: Mapping[float, Deciders]) -> None:
    """Recall, solid, and average precision, dashed, of both deciders."""
    places = sorted(rows)
    for domain in calibration.DECIDED:
        colour = plots.COLOURS[domain]
        values = np.array([[100 * e.value for e in _upper(rows[x][domain])] for x in places])
        axes.plot(places, values[:, 0], "o-", color=colour, linewidth=2.2, markersize=7)
        axes.plot(
            places,
            values[:, 1],
            "s--",
            color=colour,
            linewidth=1.6,
            markersize=6,
            markerfacecolor="white",
        )
        for x in places:
            if not rows[x][domain].decided:
                axes.annotate(
                    f"{domain}:\nno threshold",
                    (x, 100 * rows[x][domain].recall.value),
                    (0, 8 if domain == calibration.DECIDED[0] else 36),
                    textcoords="offset points",
                    ha="center",
                    fontsize=9,
                    color=colour,
                )


def _dots(axes: matplotlib.axes.Axes, x: float, row: Deciders) -> None:
    """Another seed, small, at the default."""
    for domain in calibration.DECIDED:
        for estimate in _upper(row[domain]):
            axes.plot(
                [x],
                [100 * estimate.value],
                "o",
                color=plots.COLOURS[domain],
                markersize=4,
                alpha=0.5,
                markeredgewidth=0,
                transform=_beside(axes, 7),
            )


def _precisions(axes: matplotlib.axes.Axes, rows: Mapping[float, Deciders], target: float) -> None:
    """Of both deciders, side by side; one that takes nothing has none."""
    axes.axhline(100 * target, color=plots.INK, linewidth=1.2, linestyle=":")
    for domain, shift in zip(calibration.DECIDED, (-3.5, 3.5), strict=True):
        own = {x: rows[x][domain].precision for x in sorted(rows) if rows[x][domain].decided}
        colour, moved = plots.COLOURS[domain], _beside(axes, shift)
        for x, estimate in own.items():
            span = [100 * estimate.low, 100 * estimate.high]
            axes.plot([x, x], span, color=colour, linewidth=1.8, transform=moved)
            axes.plot([x], [100 * estimate.value], "o", color=colour, transform=moved)


def _beside(axes: matplotlib.axes.Axes, points: float) -> matplotlib.transforms.Transform:
    """The data's places, moved to the right."""
    assert isinstance(axes.figure, matplotlib.figure.Figure)
    move = matplotlib.transforms.ScaledTranslation(points / 72, 0, axes.figure.dpi_scale_trans)
    return axes.transData + move


def _legend(figure: matplotlib.figure.Figure, target: float, others: bool) -> None:
    line = matplotlib.lines.Line2D
    handles = [
        line([], [], color=plots.COLOURS[domain], linewidth=3, label=f"{domain} decider")
        for domain in calibration.DECIDED
    ]
    ink: dict[str, Any] = {"color": plots.INK}
    handles += [
        line([], [], marker="o", linewidth=2.2, label="recall at the threshold", **ink),
        line(
            [],
            [],
            marker="s",
            linestyle="--",
            markerfacecolor="white",
            label="average precision",
            **ink,
        ),
        line([], [], linestyle=":", label=f"target precision, {100 * target:g} %", **ink),
    ]
    if others:
        label = "other seeds"
        handles.append(line([], [], marker="o", linestyle="", markersize=4, label=label, **ink))
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=3,
        fontsize=11,
        frameon=False,
        labelcolor=plots.INK,
    )


def _floor(values: Sequence[float], step: int) -> float:
    """In percent, a multiple of `step` below all values."""
    return max(0, step * math.floor(100 * min(values) / step - 1e-9)) - step / 20
