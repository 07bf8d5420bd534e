"""Pictures of a run: loss, zero-shot accuracy over steps, and where it ended per test set."""

import functools
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib.artist
import matplotlib.axes
import matplotlib.figure
import matplotlib.lines
import matplotlib.patches
import matplotlib.ticker
import numpy as np

from clipdg_jax.evaluation import stats, zero_shot

# Okabe and Ito's palette, told apart with any colour vision; a domain has one colour everywhere.
COLOURS = {"natural": "#0072B2", "rendition": "#D55E00", "ambiguous": "#999999"}
_INK, _FAINT = "#333333", "#DDDDDD"
_CHANCE: dict[str, Any] = {"color": _INK, "linewidth": 1.8, "linestyle": ":"}
_SUITE_LINES = ("-", "--", ":", "-.")  # where one picture shows several suites


def training_summary(directory: pathlib.Path, results: Mapping[str, Any]) -> None:
    """Draws `summary.png` from a finished run's `metrics.jsonl` and its results."""
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
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
    """
    with_loss = [row for row in rows if "loss" in row]
    means = _domain_means(rows, results)
    panels: list[Callable[[matplotlib.axes.Axes], None]] = []
    if len(with_loss) > 1:
        panels.append(functools.partial(_loss, rows=with_loss))
    if means and max(len(points) for points in means.values()) > 1:
        panels.append(functools.partial(_accuracy, means=means))
    bars = sum(len(test_sets) for test_sets in results.values())
    heights = [3.0] * bool(panels) + [0.85 + 0.42 * bars] * bool(bars)
    if not heights:
        raise ValueError("nothing to draw: neither losses nor results")
    figure = matplotlib.figure.Figure(figsize=(8, sum(heights) + 0.8), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.1)  # inches
    figure.suptitle(title, fontsize=16, color=_INK, fontweight="bold")
    grid = figure.add_gridspec(len(heights), max(1, len(panels)), height_ratios=heights)
    for column, draw in enumerate(panels):
        draw(figure.add_subplot(grid[0, column]))
    if bars:
        _bars(figure.add_subplot(grid[-1, :]), results)
        _legend(figure, results)
    temporary = f"{os.fspath(path)}.partial"
    figure.savefig(temporary, format="png", dpi=150)
    os.replace(temporary, path)


def _style(axes: matplotlib.axes.Axes, title: str) -> None:
    axes.set_title(title, fontsize=14, color=_INK, loc="left")
    axes.tick_params(labelsize=12, colors=_INK, length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_FAINT)
    axes.set_axisbelow(True)


def _over_steps(axes: matplotlib.axes.Axes) -> None:
    axes.grid(axis="y", color=_FAINT)
    axes.set_xlabel("step", fontsize=12, color=_INK)
    axes.xaxis.set_major_locator(
        matplotlib.ticker.MaxNLocator(4, integer=True, steps=[1, 2, 5, 10])
    )
    axes.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter(sep=""))


def _loss(axes: matplotlib.axes.Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    _style(axes, "training loss")
    steps = np.array([row["step"] for row in rows])
    losses = np.array([row["loss"] for row in rows])
    axes.plot(steps, losses, color=_INK, alpha=0.3, linewidth=1)
    axes.plot(steps, _smooth(losses), color=_INK, linewidth=2.2)
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
    _style(axes, "zero-shot top-1 by domain")
    lines = dict(zip(dict.fromkeys(suite for suite, _ in means), itertools.cycle(_SUITE_LINES)))
    for (suite, domain), points in means.items():
        steps, values = np.array(points).reshape(-1, 2).T
        axes.plot(steps, 100 * values, lines[suite], color=COLOURS[domain], linewidth=2.4)
        axes.plot(steps[-1:], 100 * values[-1:], "o", color=COLOURS[domain], markersize=6)
    axes.set_ylim(0, 100)
    axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(decimals=0))
    if len(lines) > 1:
        for suite, line in lines.items():
            axes.plot([], [], line, color=_INK, linewidth=2.4, label=suite)
        axes.legend(fontsize=11, frameon=False, labelcolor=_INK, loc="lower right")
    _over_steps(axes)


def _bars(axes: matplotlib.axes.Axes, results: zero_shot.Results) -> None:
    _style(axes, "zero-shot top-1 per test set, with 95 % intervals")
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
        axes.plot([low, high], [row, row], color=_INK, linewidth=1.8)
        axes.plot([chance] * 2, [row - 0.5, row + 0.5], **_CHANCE)
        axes.text(high + 1.2, row, f"{top1:.1f}", va="center", fontsize=12, color=_INK)
    axes.set_yticks(range(len(items)), [name for name, _ in items])
    axes.invert_yaxis()
    axes.set_xlim(0, 107)
    axes.set_xticks(range(0, 101, 20))
    axes.xaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(decimals=0))
    axes.grid(axis="x", color=_FAINT)


def _legend(figure: matplotlib.figure.Figure, results: zero_shot.Results) -> None:
    """One legend for all panels: the domains' colours and the chance line."""
    shown = {measures["domain"] for tests in results.values() for measures in tests.values()}
    handles: list[matplotlib.artist.Artist] = [
        matplotlib.patches.Patch(color=colour, label=domain)
        for domain, colour in COLOURS.items()
        if domain in shown
    ]
    handles.append(matplotlib.lines.Line2D([], [], label="chance", **_CHANCE))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), fontsize=12,
        frameon=False, labelcolor=_INK,
    )  # fmt: skip
