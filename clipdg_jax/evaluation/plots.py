"""Pictures of a run: loss, zero-shot accuracy over steps, and where it ended per test set."""

import functools
import itertools
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib.artist
import matplotlib.axes
import matplotlib.figure
import matplotlib.layout_engine
import matplotlib.lines
import matplotlib.patches
import matplotlib.ticker
import numpy as np

from clipdg_jax.data import files
from clipdg_jax.evaluation import stats, zero_shot
from clipdg_jax.training import metrics

# Okabe and Ito's palette, told apart with any colour vision; a domain has one colour everywhere.
COLOURS = {"natural": "#0072B2", "rendition": "#D55E00", "ambiguous": "#999999"}
GROUPS = ("#0072B2", "#009E73", "#D55E00", "#CC79A7", "#E69F00", "#56B4E9")  # the same palette
INK, FAINT = "#333333", "#DDDDDD"
_CHANCE: dict[str, Any] = {"color": INK, "linewidth": 1.8, "linestyle": ":"}
_SUITE_LINES = ("-", "--", ":", "-.")  # where one picture shows several suites


def training_summary(directory: pathlib.Path, results: Mapping[str, Any]) -> None:
    """Draws `summary.png` from a finished run's `metrics.jsonl` and its results."""
    rows = metrics.read(directory)
    run_summary(directory / "summary.png", rows, results["zero_shot"], directory.name)


def run_summary(
    path: str | os.PathLike[str],
    rows: Sequence[Mapping[str, Any]],
    results: zero_shot.Results,
    title: str,
) -> None:
    """Draws a run into one PNG, made to be read at the width of a phone too.

    Args:
      path: the file to write, replaced whole.
      rows: lines of a metrics log: `step` with `loss`, or with what `zero_shot.scalars` gives.
        Without losses, or with fewer than two evaluated steps, that panel is left out.
      results: the zero-shot results where the run ended; may be empty.
      title: what the run is.

    Writes nothing where there is nothing to draw.
    """
    with_loss = [row for row in rows if "loss" in row]
    means = _domain_means(rows, results)
    panels: list[Callable[[matplotlib.axes.Axes], None]] = []
    if with_loss:
        panels.append(functools.partial(_loss, rows=with_loss))
    if means and max(len(points) for points in means.values()) > 1:
        panels.append(functools.partial(_accuracy, means=means))
    bars = sum(len(test_sets) for test_sets in results.values())
    heights = [3.0] * bool(panels) + [0.85 + 0.42 * bars] * bool(bars)
    if not heights:
        return
    layout = matplotlib.layout_engine.ConstrainedLayoutEngine(h_pad=0.1)  # inches
    figure = matplotlib.figure.Figure(figsize=(8, sum(heights) + 0.8), layout=layout)
    figure.suptitle(title, fontsize=16, color=INK, fontweight="bold")
    grid = figure.add_gridspec(len(heights), max(1, len(panels)), height_ratios=heights)
    for column, draw in enumerate(panels):
        draw(figure.add_subplot(grid[0, column]))
    if bars:
        _bars(figure.add_subplot(grid[-1, :]), results)
        shown = {measures["domain"] for tests in results.values() for measures in tests.values()}
        _legend(
            figure,
            [
                matplotlib.patches.Patch(color=colour, label=domain)
                for domain, colour in COLOURS.items()
                if domain in shown
            ],
        )
    save(figure, path)


def grouped_bars(
    groups: Mapping[str, Sequence[Mapping[str, float]]],
    path: str | os.PathLike[str],
    chance: float,
    title: str = "zero-shot top-1",
) -> None:
    """Draws a comparison into a PNG: for each measure one bar per group, its mean over seeds.

    Args:
      groups: name (of a mix, say) -> per seed, measure -> accuracy in [0, 1]; the measures of the
        first seed of the first group are drawn, in their order. At most six groups.
      path: the file to write, replaced whole.
      chance: the chance level, in [0, 1].
      title: what is measured.

    Whiskers, where there are several seeds, are one standard error of the mean to either side.
    """
    measures = list(next(iter(groups.values()))[0])
    seeds = max(len(runs) for runs in groups.values())
    step = len(groups) + 0.8  # rows from one measure to the next
    figure = matplotlib.figure.Figure(
        figsize=(8, 1.3 + 0.27 * step * len(measures)), layout="constrained"
    )
    axes = figure.add_subplot()
    style(axes, f"{title}, mean of {seeds} seeds ± standard error" if seeds > 1 else title)
    handles: list[matplotlib.artist.Artist] = []
    for i, (name, runs) in enumerate(groups.items()):
        handles.append(matplotlib.patches.Patch(color=GROUPS[i], label=name))
        for j, measure in enumerate(measures):
            row = j * step + i
            mean, error = stats.mean_and_standard_error([100 * run[measure] for run in runs])
            error = 0.0 if math.isnan(error) else error
            axes.barh(row, mean, height=0.86, color=GROUPS[i])
            axes.plot([mean - error, mean + error], [row, row], color=INK, linewidth=1.8)
            axes.text(mean + error + 1, row, f"{mean:.1f}", va="center", fontsize=11, color=INK)
    axes.axvline(100 * chance, **_CHANCE)
    axes.set_yticks([j * step + (len(groups) - 1) / 2 for j in range(len(measures))], measures)
    axes.set_ylim(len(measures) * step - 0.9, -0.9)
    _percent_axis(axes)
    _legend(figure, handles)
    save(figure, path)


def style(axes: matplotlib.axes.Axes, title: str) -> None:
    """The look of every panel."""
    axes.set_title(title, fontsize=14, color=INK, loc="left")
    axes.tick_params(labelsize=12, colors=INK, length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.set_axisbelow(True)


def _over_steps(axes: matplotlib.axes.Axes) -> None:
    axes.grid(axis="y", color=FAINT)
    axes.set_xlabel("step", fontsize=12, color=INK)
    axes.xaxis.set_major_locator(
        matplotlib.ticker.MaxNLocator(4, integer=True, steps=[1, 2, 5, 10])
    )
    axes.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter(sep=""))


def _loss(axes: matplotlib.axes.Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    style(axes, "training loss")
    steps = np.array([row["step"] for row in rows])
    losses = np.array([row["loss"] for row in rows])
    axes.plot(steps, losses, color=INK, alpha=0.3, linewidth=1)
    axes.plot(steps, _smooth(losses), color=INK, linewidth=2.2)
    _over_steps(axes)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Running mean over a twentieth of the points, centred, cut short at both ends."""
    half = len(values) // 40
    return np.array([values[max(0, i - half) : i + half + 1].mean() for i in range(len(values))])


def _domain_means(
    rows: Sequence[Mapping[str, Any]], results: zero_shot.Results
) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """(suite, domain) -> [(step, mean top-1 of its test sets)], of the steps that have it."""
    groups: dict[tuple[str, str], list[str]] = {}
    for suite, test_sets in results.items():
        for name, measures in test_sets.items():
            key = f"zero_shot/{suite}/{name}"
            groups.setdefault((suite, measures["domain"]), []).append(key)
    return {
        group: [
            (row["step"], float(np.mean([row[key] for key in keys])))
            for row in rows
            if all(key in row for key in keys)
        ]
        for group, keys in groups.items()
    }


def _accuracy(
    axes: matplotlib.axes.Axes, means: Mapping[tuple[str, str], Sequence[tuple[int, float]]]
) -> None:
    style(axes, "zero-shot top-1 by domain")
    lines = dict(zip(dict.fromkeys(suite for suite, _ in means), itertools.cycle(_SUITE_LINES)))
    for (suite, domain), points in means.items():
        steps, values = np.array(points).reshape(-1, 2).T
        axes.plot(steps, 100 * values, lines[suite], color=COLOURS[domain], linewidth=2.4)
        axes.plot(steps[-1:], 100 * values[-1:], "o", color=COLOURS[domain], markersize=6)
    axes.set_ylim(0, 100)
    axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(decimals=0))
    if len(lines) > 1:
        for suite, line in lines.items():
            axes.plot([], [], line, color=INK, linewidth=2.4, label=suite)
        axes.legend(fontsize=11, frameon=False, labelcolor=INK, loc="lower right")
    _over_steps(axes)


def _bars(axes: matplotlib.axes.Axes, results: zero_shot.Results) -> None:
    style(axes, "zero-shot top-1 per test set, with 95 % intervals")
    items = [
        (name if len(results) == 1 else f"{suite}/{name}", measures)
        for suite, test_sets in results.items()
        for name, measures in test_sets.items()
    ]
    for row, (_, measures) in enumerate(items):
        n, top1 = measures["n"], 100 * measures["top1"]
        low, high = (100 * b for b in stats.wilson_interval(round(measures["top1"] * n), n))
        chance = 100 * measures["chance"]
        axes.barh(row, top1, height=0.68, color=COLOURS[measures["domain"]])
        axes.plot([low, high], [row, row], color=INK, linewidth=1.8)
        axes.plot([chance] * 2, [row - 0.5, row + 0.5], **_CHANCE)
        axes.text(high + 1.2, row, f"{top1:.1f}", va="center", fontsize=12, color=INK)
    axes.set_yticks(range(len(items)), [name for name, _ in items])
    axes.invert_yaxis()
    _percent_axis(axes)


def _percent_axis(axes: matplotlib.axes.Axes) -> None:
    axes.set_xlim(0, 107)  # room for the figure beside a full bar
    axes.set_xticks(range(0, 101, 20))
    axes.xaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(decimals=0))
    axes.grid(axis="x", color=FAINT)


def _legend(figure: matplotlib.figure.Figure, handles: Sequence[matplotlib.artist.Artist]) -> None:
    """One legend for all panels, below them: the colours and the chance line."""
    chance = matplotlib.lines.Line2D([], [], label="chance", **_CHANCE)
    figure.legend(
        handles=[*handles, chance],
        loc="outside lower center",
        ncols=len(handles) + 1,
        fontsize=12,
        frameon=False,
        labelcolor=INK,
    )


def save(figure: matplotlib.figure.Figure, path: str | os.PathLike[str]) -> None:
    """Writes a PNG, whole or not at all."""
    with files.whole(pathlib.Path(path)) as unfinished:
        figure.savefig(unfinished, format="png", dpi=150)
