"""The trade-off as a picture: accuracy in distribution against out of distribution."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.figure
import matplotlib.ticker

from clipdg_jax.evaluation import plots

# Okabe and Ito's colours (see `plots`), once with each marker.
_COLOURS = (*plots.GROUPS, "#000000")
_MARKERS = ("o", "s", "^", "D")
_REFERENCE = "zero_shot"


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which points no other one is at least as good as in both and better in one.

    Returns:
      Their indices, by the first coordinate; of points that are equal, the first.
    """
    order = sorted(range(len(points)), key=lambda i: (-points[i][0], -points[i][1], i))
    front: list[int] = []
    for i in order:
        if not front or points[i][1] > points[front[-1]][1]:
            front.append(i)
    return front[::-1]


def draw(results: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Draws a PNG: each method's sweep as a curve, its chosen point filled, the Pareto front.

    Args:
      results: `report.gather`'s.
      path: the file to write, replaced whole.
    """
    figure = matplotlib.figure.Figure(figsize=(9, 7), layout="constrained")
    axes = figure.add_subplot()
    seeds = max(len(own["seeds"]) for own in results["methods"].values())
    plots.style(axes, f"fine-tuning, mean of {seeds} seeds" if seeds > 1 else "fine-tuning")
    every: list[tuple[float, float]] = []
    shown = [name for name, own in results["methods"].items() if "sweep" in own]
    for i, name in enumerate(shown):
        own = results["methods"][name]
        curve = [(100 * p["id"], 100 * p["ood"]) for p in own["sweep"]]
        every += curve
        colour, marker = _COLOURS[i % len(_COLOURS)], _MARKERS[i // len(_COLOURS) % len(_MARKERS)]
        if name == _REFERENCE:
            colour, marker = plots.INK, "*"
        look: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 6}
        axes.plot(*zip(*curve), linewidth=1.6, markerfacecolor="white", zorder=3, **look)
        at = (100 * own["id"], 100 * own["ood"])
        size = 15 if name == _REFERENCE else 10
        axes.plot(*at, linestyle="", zorder=4, label=name, **{**look, "markersize": size})
    reference = results["methods"].get(_REFERENCE)
    if reference:
        axes.axhline(100 * reference["ood"], color=plots.INK, linewidth=1, linestyle=":")
        axes.axvline(100 * reference["id"], color=plots.INK, linewidth=1, linestyle=":")
    front = [every[i] for i in pareto(every)]
    # Steps: what is reached in both at once is reached by a point, not by a line between two.
    halo: dict[str, Any] = {"color": "#F0E442", "alpha": 0.6, "zorder": 1}
    axes.plot(
        *zip(*front), linewidth=7, drawstyle="steps-pre", marker="o", markersize=17,
        label="Pareto front", **halo,
    )  # fmt: skip
    axes.grid(color=plots.FAINT)
    axes.spines["left"].set_visible(True)
    axes.spines["left"].set_color(plots.FAINT)
    for axis, what in ((axes.xaxis, "in distribution"), (axes.yaxis, "out of distribution, mean")):
        axis.set_label_text(f"accuracy {what}", fontsize=12, color=plots.INK)
        axis.set_major_formatter(matplotlib.ticker.PercentFormatter(decimals=None))
        axis.set_major_locator(matplotlib.ticker.MaxNLocator(8, steps=[1, 2, 5, 10]))
    figure.legend(
        loc="outside lower center", ncols=5, fontsize=11, frameon=False, labelcolor=plots.INK
    )
    plots.save(figure, path)
