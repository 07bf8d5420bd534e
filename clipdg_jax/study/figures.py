"""The charts of a report, as SVG documents that can be read on a phone."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import matplotlib.axes
import matplotlib.figure
import matplotlib.ticker
import numpy as np

from clipdg_jax.evaluation import plots, robustness
from clipdg_jax.study.groups import DOMAINS, Group, Study
from clipdg_jax.training import metrics

_SIZE = (5.2, 4.0)  # Inches; at 9 to 11 points the text suits a screen of 400 pixels.
_TICKS = (0.5, 1, 2, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 98, 99, 99.5)  # Of logit axes, %.
_SHARES = matplotlib.colormaps["viridis"]
_MEAN = "#000000"


@dataclasses.dataclass(frozen=True)
class Chart:
    """One of them.

    Attributes:
      name: its own in a report, and its file's.
      svg: a whole SVG document.
      about: what it shows.
    """

    name: str
    svg: str
    about: str


def mixing(curve: Mapping[str, Any], title: str) -> Chart:
    """Accuracies by the share of natural records, with intervals; the best share and its interval.

    Args:
      curve: one of `analysis.curves`.
      title: above it.
    """
    figure, axes = _axes(title)
    shares = [100 * point["natural_share"] for point in curve["points"]]
    axes.axvspan(100 * curve["best_low"], 100 * curve["best_high"], color="#F0E442", alpha=0.35)
    axes.axvline(100 * curve["best_share"], color=plots.INK, linewidth=1, linestyle=":")
    for measure, colour in {**plots.COLOURS, "mean": _MEAN}.items():
        if measure not in (*DOMAINS, "mean"):
            continue
        told = [point[measure] for point in curve["points"]]
        values = [100 * one["value"] for one in told]
        axes.plot(shares, values, "o-", color=colour, linewidth=1.8, markersize=4, label=measure)
        bounds = ([100 * one[end] for one in told] for end in ("low", "high"))
        axes.fill_between(shares, *bounds, color=colour, alpha=0.18, linewidth=0)
    axes.set_xlabel("natural records, % of the mix", color=plots.INK)
    axes.set_ylabel("zero-shot top-1, %", color=plots.INK)
    axes.legend(frameon=False, fontsize=9, labelcolor=plots.INK)
    name = "mixing" if not curve["records"] else f"mixing-{curve['records']:.0f}"
    return Chart(name, _svg(figure), "Accuracy by share of natural records, and the best share")


def against_the_line(found: Mapping[str, Any], study: Study, marked: Sequence[str]) -> Chart:
    """Rendition against natural accuracy on logit axes, with the baselines' line and its band.

    Args:
      found: of `analysis.effective_robustness`, with a line.
      study: the groups.
      marked: labels of those that are named in the chart.
    """
    figure, axes = _axes("effective robustness")
    line = robustness.Line(**found["line"])
    on = [g for g in study.groups if g.label in found["groups"]]
    accuracies = {g.label: study.means[study.groups.index(g), :2] for g in on}
    baselines = {p["label"]: np.array([p[d] for d in DOMAINS]) for p in found["baselines"]}
    every = [_logits(one, study) for one in (accuracies | baselines).values()]
    left, right = min(p[0] for p in every) - 0.2, max(p[0] for p in every) + 0.2
    x = np.linspace(left, right, 60)
    y = np.array([line.at(value) for value in x])
    margin = np.array([line.margin(value) for value in x])
    low, high = min(p[1] for p in every) - 0.4, max(p[1] for p in every) + 0.4
    axes.fill_between(x, y - margin, y + margin, color="#999999", alpha=0.25, linewidth=0)
    axes.plot(x, y, color="#777777", linewidth=1.4)
    for label, point in baselines.items():
        if label not in accuracies:
            axes.plot(*_logits(point, study), "x", color="#777777", markersize=6)
    for group in on:
        point = _logits(accuracies[group.label], study)
        baseline = group.label in baselines
        look: dict[str, Any] = {"markersize": 7, "markeredgecolor": "white"}
        axes.plot(*point, "s" if baseline else "o", color=_colour(group, baseline), **look)
        if group.label in marked:
            name = group.label.replace(",", "\n")
            axes.annotate(name, point, (5, -3), textcoords="offset points", fontsize=7, va="top")
    axes.set_xlim(left, right)
    axes.set_ylim(low, high)
    for axis, domain in ((axes.xaxis, "natural"), (axes.yaxis, "rendition")):
        _percent_of_logits(axis)
        axis.set_label_text(f"{domain}, top-1 in %, logit scale", color=plots.INK)
    about = "Rendition against natural accuracy on logit axes, and the line of the baselines"
    return Chart("robustness", _svg(figure), about)


def law(predictions: Sequence[Mapping[str, Any]]) -> Chart:
    """Observed against predicted accuracy with prediction intervals; mixes left out, and others."""
    figure, axes = _axes("the law's predictions")
    axes.plot([0, 100], [0, 100], color="#777777", linewidth=1)
    for one in predictions:
        colour = plots.COLOURS[one["domain"]]
        spans = [[100 * (one["predicted"] - one["low"])], [100 * (one["high"] - one["predicted"])]]
        axes.errorbar(
            100 * one["predicted"], 100 * one["observed"], xerr=spans, color=colour, linewidth=1,
            marker="o" if one["held_out"] else "s", markersize=5,
            markerfacecolor=colour if one["held_out"] else "white",
        )  # fmt: skip
    axes.set_xlabel("predicted, % (95 % interval)", color=plots.INK)
    axes.set_ylabel("observed, %", color=plots.INK)
    values = [one[key] for one in predictions for key in ("observed", "low", "high")]
    axes.set_xlim(100 * min(values) - 2, 100 * max(values) + 2)
    axes.set_ylim(100 * min(values) - 2, 100 * max(values) + 2)
    about = "Observed against predicted accuracy, with prediction intervals"
    return Chart("law", _svg(figure), about)


def learning(study: Study) -> list[Chart]:
    """The loss over steps, and each domain's accuracy where it was measured.

    Each line is a group, the mean of its seeds; those in the usual setting only.
    """
    groups = [group for group in study.groups if group.usual]
    rows = {g.label: [metrics.read(run.path) for run in g.runs] for g in groups}
    charts = []
    loss, axes = _axes("training loss")
    for group in groups:
        _draw(axes, group, [[(r["step"], r["loss"]) for r in own if "loss" in r] for own in
                            rows[group.label]])  # fmt: skip
    charts.append(Chart("loss", _svg(loss), "Training loss over steps, a line for each mix"))
    for domain in DOMAINS:
        names = [
            f"zero_shot/{name}" for name, one in study.test_sets.items() if one["domain"] == domain
        ]
        figure, axes = _axes(f"{domain} accuracy, %")
        drawn = 0
        for group in groups:
            curves = [
                [
                    (r["step"], 100 * float(np.mean([r[name] for name in names])))
                    for r in own
                    if all(name in r for name in names)
                ]
                for own in rows[group.label]
            ]
            drawn += _draw(axes, group, curves)
        if drawn:
            about = f"Zero-shot accuracy on {domain} images over steps, a line for each mix"
            charts.append(Chart(domain, _svg(figure), about))
    return charts


def _draw(axes: matplotlib.axes.Axes, group: Group, curves: Sequence[Sequence[Any]]) -> bool:
    """A group's line, the mean over seeds of what all have; False where that is no line."""
    steps = sorted(set.intersection(*({step for step, _ in curve} for curve in curves)))
    if len(steps) < 2:
        return False
    values = np.mean([[dict(curve)[step] for step in steps] for curve in curves], axis=0)
    baseline = not group.pure
    style = "--" if baseline else "-"
    axes.plot(steps, values, style, color=_colour(group, baseline), linewidth=1.3)
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(4, integer=True))
    axes.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter(sep=""))
    axes.set_xlabel("step", color=plots.INK)
    return True


def _colour(group: Group, plain: bool) -> Any:
    """By the share of natural records; grey for what is not a mix."""
    if plain or group.counts is None:
        return "#777777"
    return _SHARES(0.05 + 0.9 * (1 - group.natural_share))


def _logits(accuracies: Any, study: Study) -> tuple[float, float]:
    natural, rendition = (
        robustness.logit(float(value), images)
        for value, images in zip(accuracies, study.images, strict=True)
    )
    return natural, rendition


def _percent_of_logits(axis: Any) -> None:
    low, high = axis.get_view_interval()
    shown = [(math.log(t / (100 - t)), f"{t:g}") for t in _TICKS]
    inside = [(place, text) for place, text in shown if low <= place <= high]
    while len(inside) > 8:
        inside = inside[::2]
    axis.set_ticks([place for place, _ in inside], [text for _, text in inside])


def _axes(title: str) -> tuple[matplotlib.figure.Figure, matplotlib.axes.Axes]:
    figure = matplotlib.figure.Figure(figsize=_SIZE, layout="constrained")
    axes = figure.add_subplot()
    plots.style(axes, title)
    axes.title.set_fontsize(12)
    axes.tick_params(labelsize=9)
    axes.grid(color=plots.FAINT, linewidth=0.7)
    return figure, axes


def _svg(figure: matplotlib.figure.Figure) -> str:
    """The same figure gives the same text: no date, and names that do not change."""
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "clipdg_jax"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()
