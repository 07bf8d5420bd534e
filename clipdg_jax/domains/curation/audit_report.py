"""An audit's results as a table, as Markdown, and as one picture."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import matplotlib.axes
import matplotlib.figure
import matplotlib.lines
import matplotlib.ticker

from clipdg_jax.data import files, schema
from clipdg_jax.evaluation import plots, tables

TABLE, PLOT = "audit.md", "audit.png"

_PRECISION = (
    "dataset",
    "labelled",
    "correct",
    "precision %",
    "95 % interval",
    "claimed %",
    "verdict",
    "true %",
)
_SHARES = ("domain", "share of the pool %", "95 % interval", "standard error", "true %")
_PRECISION_MEANS = (
    "How many of the records drawn at random from each written dataset are of the domain that was "
    "decided, by the agreement or adjudication of those who labelled them. Intervals are Wilson's "
    "at 95 %. A claim is proven where the whole interval reaches it, refuted where none of it "
    "does, else consistent with what was seen."
)
_SHARES_MEAN = (
    "Shares of all scored records that are no duplicates: Horvitz-Thompson estimates from random "
    "draws within the strata below, with intervals that recover their variance from Wilson's "
    "interval of each stratum (Zou, Huang and Zhang 2009)."
)
_STRATA = ("decision", "records", "labelled", *schema.DOMAINS)


def verdict(measured: Mapping[str, Any]) -> str:
    """What the interval says of the claim."""
    if measured["claimed"] is None or not measured["n"]:
        return "-"
    if measured["low"] >= measured["claimed"]:
        return "proven"
    return "refuted" if measured["high"] < measured["claimed"] else "consistent"


def text(results: Mapping[str, Any]) -> str:
    """For a terminal."""
    blocks = [tables.aligned(_PRECISION, _precision_rows(results))]
    if results["shares"]:
        blocks.append(tables.aligned(_SHARES, _share_rows(results)))
    return "\n\n".join([*blocks, *results["notes"]])


def write(directory: pathlib.Path, results: Mapping[str, Any], title: str) -> None:
    """Writes the tables as Markdown, and the plot, into a directory that exists."""
    files.write_text(directory / TABLE, markdown(results))
    plot(directory / PLOT, results, title)


def markdown(results: Mapping[str, Any]) -> str:
    """The same tables, with what they mean, and the strata of the pool."""
    blocks = [
        "# Audit",
        _PRECISION_MEANS,
        tables.markdown(_PRECISION, _precision_rows(results)),
    ]
    if results["shares"]:
        blocks += [
            "## Domains of the pool",
            _SHARES_MEAN,
            tables.markdown(_SHARES, _share_rows(results)),
        ]
    if results["strata"]:
        rows = [
            [name, *(f"{one[column]:,}" for column in ("records", "n", *schema.DOMAINS))]
            for name, one in results["strata"].items()
        ]
        blocks += [
            "What was found within each stratum, by what curation decided:",
            tables.markdown(_STRATA, rows),
        ]
    return "\n\n".join([*blocks, *results["notes"]]) + "\n"


def plot(path: pathlib.Path, results: Mapping[str, Any], title: str) -> None:
    """Draws the precision of each dataset beside its claim, and the shares of the pool."""
    datasets = {k: v for k, v in results["datasets"].items() if v["n"]}
    panels = [n for n in (len(datasets), len(results["shares"])) if n]
    if not panels:
        return
    figure = matplotlib.figure.Figure(
        figsize=(8, 1.6 + sum(0.9 + 0.5 * n for n in panels)), layout="constrained"
    )
    figure.suptitle(title, fontsize=16, color=plots.INK, fontweight="bold")
    grid = iter(figure.add_gridspec(len(panels), 1, height_ratios=[n + 1 for n in panels]))
    if datasets:
        axes = figure.add_subplot(next(grid))
        plots.style(axes, "precision of the written datasets")
        for row, (name, one) in enumerate(datasets.items()):
            colour = plots.COLOURS.get(name.rpartition("/")[2], plots.INK)
            _interval(axes, row, one["precision"], one, colour)
            if one["claimed"] is not None:
                ends = [row - 0.35, row + 0.35]
                axes.plot([100 * one["claimed"]] * 2, ends, color=plots.INK, linewidth=1.8, ls=":")
        _rows(axes, list(datasets))
        axes.set_xlim(right=100.2)
    if results["shares"]:
        axes = figure.add_subplot(next(grid))
        plots.style(axes, "share of each domain in the pool")
        for row, (name, one) in enumerate(results["shares"].items()):
            _interval(axes, row, one["value"], one, plots.COLOURS[name])
        _rows(axes, list(results["shares"]))
        axes.set_xlim(left=0)
    ink: dict[str, Any] = {"color": plots.INK}
    handles = [
        matplotlib.lines.Line2D([], [], marker="o", linewidth=2, label="95 % interval", **ink),
        matplotlib.lines.Line2D([], [], linestyle=":", linewidth=1.8, label="claimed", **ink),
    ]
    shown = [*datasets.values(), *results["shares"].values()]
    if any(one["truth"] is not None for one in shown):
        handles.append(
            matplotlib.lines.Line2D([], [], marker="x", linestyle="", label="truth", **ink)
        )
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=len(handles),
        fontsize=12,
        frameon=False,
        labelcolor=plots.INK,
    )
    plots.save(figure, path)


def _interval(
    axes: matplotlib.axes.Axes, row: int, value: float, one: Mapping[str, Any], colour: str
) -> None:
    ends = [100 * one["low"], 100 * one["high"]]
    axes.plot(ends, [row, row], color=colour, linewidth=3, solid_capstyle="butt")
    axes.plot(100 * value, row, "o", color=colour, markersize=8)
    if one["truth"] is not None:
        axes.plot(100 * one["truth"], row, "x", color=plots.INK, markersize=9, zorder=3)


def _rows(axes: matplotlib.axes.Axes, names: list[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.xaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(decimals=None))
    axes.grid(axis="x", color=plots.FAINT)


def _precision_rows(results: Mapping[str, Any]) -> list[list[str]]:
    return [
        [
            name,
            str(one["n"]),
            str(one["correct"]),
            _percent(one["precision"]),
            f"{_percent(one['low'])} - {_percent(one['high'])}",
            "-" if one["claimed"] is None else f"{100 * one['claimed']:g}",
            verdict(one),
            _percent(one["truth"]),
        ]
        for name, one in results["datasets"].items()
    ]


def _share_rows(results: Mapping[str, Any]) -> list[list[str]]:
    return [
        [
            name,
            _percent(one["value"]),
            f"{_percent(one['low'])} - {_percent(one['high'])}",
            f"{100 * one['standard_error']:.2f}",
            _percent(one["truth"]),
        ]
        for name, one in results["shares"].items()
    ]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"
