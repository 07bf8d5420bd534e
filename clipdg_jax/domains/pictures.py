"""Pictures of deciders: precision-recall curves, and contact sheets of what they are sure of."""

from __future__ import annotations

import itertools
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence

import matplotlib.axes
import matplotlib.figure
import matplotlib.layout_engine
import matplotlib.lines
import matplotlib.scale
import matplotlib.ticker
import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from clipdg_jax.data import files, schema
from clipdg_jax.domains import calibration, measures
from clipdg_jax.evaluation import plots, sheets

# Both axes show the error, 1 - x, on a logarithmic scale, so that 95, 98 and 99 % lie apart. The
# offset, added to it, makes 100 % a point like others.
_OFFSETS = {"precision": 0.003, "recall": 0.01}
_TICKS = {
    "precision": (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 1.0),
    "recall": (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 1.0),
}
_LINES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)))
_COLOURS = (*plots.GROUPS, plots.INK)


def precision_recall(
    path: str | os.PathLike[str],
    curves: Mapping[str, Sequence[measures.Curve]],
    points: Mapping[str, Sequence[measures.Measured | None]],
    target: float,
    title: str,
    min_support: int = 1,
) -> None:
    """Draws one panel for each decider, with all methods.

    Args:
      path: the PNG to write, replaced whole.
      curves: method -> the curve of each decider, in the order of `calibration.DECIDED`.
      points: method -> each decider at its threshold, marked on the curve with the interval of its
        precision; None where no threshold reached the target.
      target: precision, drawn as a line.
      title: which images these are.
      min_support: the curve starts where so many images are taken; fewer say little.
    """
    layout = matplotlib.layout_engine.ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
    figure = matplotlib.figure.Figure(figsize=(11, 5.4), layout=layout)
    figure.suptitle(title, fontsize=15, color=plots.INK, fontweight="bold")
    styles = dict(zip(curves, zip(itertools.cycle(_COLOURS), itertools.cycle(_LINES))))
    for column, domain in enumerate(calibration.DECIDED):
        axes = figure.add_subplot(1, len(calibration.DECIDED), column + 1)
        plots.style(axes, f"{domain} against the rest")
        _axes(axes)
        axes.axhline(target, color=plots.INK, linewidth=1.2, linestyle=":")
        for method, (colour, line) in styles.items():
            curve = curves[method][column]
            shown = curve.support >= min_support
            axes.plot(
                curve.recall[shown],
                curve.precision[shown],
                color=colour,
                linestyle=line,
                linewidth=1.8,
                drawstyle="steps-pre",  # no interpolation, as in average precision
                clip_on=False,
            )
        for method, (colour, _) in styles.items():  # markers lie above all lines
            point = points[method][column]
            if point is not None and point.decided and point.positives:
                _mark(axes, point, colour)
    handles = [
        matplotlib.lines.Line2D([], [], color=colour, linestyle=line, linewidth=2.2, label=method)
        for method, (colour, line) in styles.items()
    ]
    handles.append(
        matplotlib.lines.Line2D(
            [], [], color=plots.INK, linestyle=":", label=f"target {100 * target:g} %"
        )
    )
    handles.append(
        matplotlib.lines.Line2D(
            [], [], color=plots.INK, marker="o", linewidth=1.2, label="threshold, with interval"
        )
    )
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(len(handles), 5),
        fontsize=11,
        frameon=False,
        labelcolor=plots.INK,
        handlelength=3,
    )
    plots.save(figure, path)


def contact_sheet(
    path: str | os.PathLike[str],
    scores: Float[np.ndarray, " n"],
    domain: Int[np.ndarray, " n"],
    decider: calibration.Decider,
    pictures: Callable[[Int[np.ndarray, " k"]], Sequence[UInt8[np.ndarray, "h w 3"]]],
    title: str,
    *,
    columns: int = 8,
    rows: int = 2,
) -> None:
    """Draws what a decider is surest of, least sure of, and where it is wrong.

    Below each image stand its score and its true domain, whose colour its frame has too.

    Args:
      path: the PNG to write, replaced whole.
      scores: the decider's own.
      domain: the label of each image, an index into `schema.DOMAINS`.
      decider: takes an image whose score reaches its threshold.
      pictures: the images of these rows.
      title: of which method, and which images these are.
      columns, rows: of each of the sections.
    """
    chosen = _sections(np.asarray(scores, np.float64), domain, decider, columns * rows)
    wanted = np.concatenate([picked for _, picked in chosen])
    images = iter(pictures(wanted) if len(wanted) else [])
    sections = [
        sheets.Section(heading, [_cell(next(images), scores[i], domain[i]) for i in picked])
        for heading, picked in chosen
    ]
    page = sheets.draw(sections, columns, cell=120, lines=2, text_size=13, title=title)
    _save(page, path)


def _sections(
    scores: np.ndarray, domain: np.ndarray, decider: calibration.Decider, count: int
) -> list[tuple[str, np.ndarray]]:
    """Headings, and the rows shown below each."""
    own = domain == schema.DOMAINS.index(decider.domain)
    falling = np.argsort(-scores, kind="stable")
    found = [(f"surest of {decider.domain}: the highest scores", falling[:count])]
    if not math.isfinite(decider.threshold):
        others = falling[~own[falling]]
        return [
            *found,
            ("no threshold reaches the target, so that nothing is taken", others[:0]),
            (f"surest of those that are not {decider.domain}", others[:count]),
        ]
    taken = scores >= decider.threshold
    above, below = falling[taken[falling]], falling[~taken[falling]]
    last, first = above[-(count // 2) :], below[: count - count // 2]
    false, missed = above[~own[above]], below[own[below]][::-1]
    near = f"least sure: around the threshold {decider.threshold:.4f}; {len(last)} taken, then "
    return [
        *found,
        (f"{near}{len(first)} not taken", np.concatenate([last, first])),
        (f"wrongly taken: {len(false)} of {len(above)} taken; surest first", false[:count]),
        (f"missed: {len(missed)} of {own.sum()} {decider.domain}; lowest first", missed[:count]),
    ]


def _cell(image: np.ndarray, score: float, domain: int) -> sheets.Cell:
    name = schema.DOMAINS[domain]
    return sheets.Cell(image, f"{score:.4f}\n{name}", plots.COLOURS[name])


def _save(page: Image.Image, path: str | os.PathLike[str]) -> None:
    with files.whole(pathlib.Path(path)) as unfinished:
        page.save(unfinished, format="png", optimize=True)


def _axes(axes: matplotlib.axes.Axes) -> None:
    for name, axis in (("recall", axes.xaxis), ("precision", axes.yaxis)):
        offset = _OFFSETS[name]
        scale = matplotlib.scale.FuncScale(
            axis,
            (
                lambda value, offset=offset: -np.log(1 + offset - np.clip(value, 0, 1)),
                lambda shown, offset=offset: 1 + offset - np.exp(-shown),
            ),
        )
        axis.axes.set(**{f"{axis.axis_name}scale": scale})
        axis.set_ticks(_TICKS[name], [f"{100 * tick:g} %" for tick in _TICKS[name]])
        axis.set_minor_locator(matplotlib.ticker.NullLocator())
        axis.set_label_text(name, fontsize=12, color=plots.INK)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.tick_params(pad=7)
    axes.grid(color=plots.FAINT)


def _mark(axes: matplotlib.axes.Axes, point: measures.Measured, colour: str) -> None:
    x = point.recall.value
    axes.plot([x, x], [point.precision.low, point.precision.high], color=colour, linewidth=1.6)
    axes.plot(
        [x],
        [point.precision.value],
        "o",
        color=colour,
        markersize=8,
        markeredgecolor="white",
        clip_on=False,
        zorder=3,
    )
