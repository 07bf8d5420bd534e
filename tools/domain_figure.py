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

# Of recall and of average precision.
_MARKERS = ("o", "s")
_STYLES: tuple[dict[str, Any], ...] = (
    {"marker": "o", "linestyle": "-", "linewidth": 2.2, "markersize": 7},
    {
        "marker": "s",
        "linestyle": "--",
        "linewidth": 1.6,
        "markersize": 7,
        "markerfacecolor": "white",
    },
)


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
        upper.set_ylim(_limits(figures))
        lower.set_ylim(_limits([*lows, target - 0.01]))
    _legend(figure, target, bool(others))
    plots.save(figure, path)


def _upper(one: measures.Measured) -> tuple[measures.Estimate, measures.Estimate]:
    return one.recall, one.average_precision


def _curves(axes: matplotlib.axes.Axes, rows: Mapping[float, Deciders]) -> None:
    """Recall, solid, and average precision, dashed, of both deciders."""
    places = sorted(rows)
    for domain in calibration.DECIDED:
        values = np.array([[100 * e.value for e in _upper(rows[x][domain])] for x in places])
        for column in (1, 0):  # Recall lies on top.
            style = {"color": plots.COLOURS[domain], "clip_on": False, "zorder": 4 - column}
            axes.plot(places, values[:, column], **_STYLES[column], **style)


def _dots(axes: matplotlib.axes.Axes, x: float, row: Deciders) -> None:
    """Another seed, small, beside the default."""
    for domain in calibration.DECIDED:
        for estimate, marker in zip(_upper(row[domain]), _MARKERS, strict=True):
            axes.plot(
                [x],
                [100 * estimate.value],
                marker,
                color=plots.COLOURS[domain],
                markersize=4,
                alpha=0.7,
                markeredgewidth=0,
                clip_on=False,
                transform=_beside(axes, 8),
            )


def _precisions(axes: matplotlib.axes.Axes, rows: Mapping[float, Deciders], target: float) -> None:
    """Of both deciders, side by side; of one that takes nothing, that it does."""
    axes.axhline(100 * target, color=plots.INK, linewidth=1.2, linestyle=":")
    for domain, shift in zip(calibration.DECIDED, (-4, 4), strict=True):
        colour, moved = plots.COLOURS[domain], _beside(axes, shift)
        for x in rows:
            one = rows[x][domain].precision
            if not rows[x][domain].decided:
                # In the axes' height, whatever its limits.
                place = axes.get_xaxis_transform() + _move(axes, 1.4 * shift)
                text = {"fontsize": 9, "rotation": 90, "ha": "center", "va": "bottom"}
                axes.text(x, 0.06, "takes nothing", color=colour, transform=place, **text)
                continue
            span = [100 * one.low, 100 * one.high]
            axes.plot([x, x], span, color=colour, linewidth=1.8, transform=moved)
            axes.plot([x], [100 * one.value], "o", color=colour, transform=moved)


def _beside(axes: matplotlib.axes.Axes, points: float) -> matplotlib.transforms.Transform:
    """The data's places, moved to the right."""
    return axes.transData + _move(axes, points)


def _move(axes: matplotlib.axes.Axes, points: float) -> matplotlib.transforms.Transform:
    assert isinstance(axes.figure, matplotlib.figure.Figure)
    return matplotlib.transforms.ScaledTranslation(points / 72, 0, axes.figure.dpi_scale_trans)


def _legend(figure: matplotlib.figure.Figure, target: float, others: bool) -> None:
    line = matplotlib.lines.Line2D
    handles = [
        line([], [], color=plots.COLOURS[domain], linewidth=3, label=f"{domain} decider")
        for domain in calibration.DECIDED
    ]
    ink: dict[str, Any] = {"color": plots.INK}
    handles += [
        line([], [], label=label, **style, **ink)
        for label, style in zip(("recall at the threshold", "average precision"), _STYLES)
    ]
    handles.append(line([], [], linestyle=":", label=f"target: {100 * target:g} %", **ink))
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


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """In percent, with a margin; from a round figure below all values (fractions) to 100."""
    lowest = 100 * min(values)
    step = next(step for step in (2, 5, 10, 20) if 100 - lowest <= 10 * step)
    bottom = max(0, step * math.floor(lowest / step))
    margin = 0.04 * (100 - bottom)
    return bottom - margin, 100 + margin
