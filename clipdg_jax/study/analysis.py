"""What the groups of a study say together: mixing curves, effective robustness, the law."""

from __future__ import annotations

import collections
import csv
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from clipdg_jax.errors import UserError
from clipdg_jax.evaluation import robustness
from clipdg_jax.study import law as law_lib
from clipdg_jax.study import resampling
from clipdg_jax.study.groups import DOMAINS, Group, Options, Study

MIN_RATIOS = 3  # Of a mixing curve: two points have no best between them.


def means(study: Study, index: int) -> dict[str, dict[str, float]]:
    """A group's mean of either domain, and of both, with intervals."""
    columns = {"natural": [0], "rendition": [1], "mean": [0, 1]}
    return {
        name: _told(
            study.means[index, of].mean(),
            resampling.interval(study.samples[:, index, of].mean(axis=1)),
        )
        for name, of in columns.items()
    }


def curves(study: Study) -> list[dict[str, Any]]:
    """A mixing curve for each number of records (or weights) that three ratios or more have.

    Of groups in the usual setting that saw as many samples and whose datasets are of one domain
    each, at least `MIN_RATIOS`. The best ratio is that of the highest mean of the two domain means.
    """
    by_total = collections.defaultdict(list)
    for index, group in enumerate(study.groups):
        if group.usual and group.counts is not None and group.pure:
            total = sum(group.counts) if group.counted else 0
            by_total[total, group.examples].append(index)
    found = []
    for (total, examples), members in sorted(by_total.items(), reverse=True):
        share = {i: study.groups[i].natural_share for i in members}
        order = sorted(members, key=share.__getitem__)
        if len({share[i] for i in order}) < MIN_RATIOS:
            continue
        both = study.samples[:, order, :2].mean(axis=2)
        means = study.means[order, :2].mean(axis=1)
        best = int(means.argmax())
        low, high, chosen = resampling.best(both, [share[i] for i in order])
        bounds = resampling.interval(study.samples[:, order, :2])
        mean_bounds = resampling.interval(both)
        points = [
            {
                "label": study.groups[i].label,
                "natural_share": share[i],
                "natural": _told(study.means[i, 0], bounds, j, 0),
                "rendition": _told(study.means[i, 1], bounds, j, 1),
                "mean": _told(means[j], mean_bounds, j),
                "chosen": float(chosen[j]),
            }
            for j, i in enumerate(order)
        ]
        found.append(
            {
                "records": total or None,
                "examples": examples,
                "points": points,
                "best": points[best]["label"],
                "best_share": share[order[best]],
                "best_low": low,
                "best_high": high,
            }
        )
    return found


def relative(study: Study, options: Options) -> dict[str, dict[str, Any]]:
    """Corrected accuracy of each group over its reference's, by label and domain.

    Corrected is (accuracy - chance) / (1 - chance), averaged over a domain's test sets. The
    reference of a group is, of the mixes that match `options.reference` and saw as many samples,
    the one with as many records, else the one with most. Groups without one are left out.
    """
    found = {}
    for index, group in enumerate(study.groups):
        reference = _reference(study, group, options.reference)
        if reference is None:
            continue
        told: dict[str, Any] = {"reference": study.groups[reference].label}
        for column, domain in enumerate(DOMAINS, 2):
            base = study.means[reference, column]
            if base > 0:
                ratio = study.samples[:, index, column] / study.samples[:, reference, column]
                bounds = resampling.interval(ratio)
                told[domain] = _told(study.means[index, column] / base, bounds)
        found[group.label] = told
    return found


def effective_robustness(study: Study, options: Options) -> dict[str, Any]:
    """The line over the baselines, and every group's effective robustness against it.

    Returns:
      {"line", "baselines", "groups"}, or {"refused": why there is no line}.

    Raises:
      UserError: the file of other models' accuracies is not in order.
    """
    own = [
        (group.label, *study.means[i, :2])
        for i, group in enumerate(study.groups)
        if group.usual and group.matches(options.baselines)
    ]
    points = [*own, *(read_baselines(Path(options.csv)) if options.csv else [])]
    x = np.array([robustness.logit(p[1], study.images[0]) for p in points])
    y = np.array([robustness.logit(p[2], study.images[1]) for p in points])
    try:
        line = robustness.fit_line(x, y)
    except ValueError as error:
        return {
            "refused": f"{len(own)} mixes match config.baselines={options.baselines!r}: {error}. "
            "Name at least three mixes of different accuracies, or give config.csv"
        }
    against = {
        group.label: dataclasses.asdict(
            robustness.effective(
                line, float(study.means[i, 0]), float(study.means[i, 1]), study.images
            )
        )
        for i, group in enumerate(study.groups)
        if group.usual
    }
    return {
        "line": dataclasses.asdict(line),
        "baselines": [dict(zip(("label", *DOMAINS), point)) for point in points],
        "groups": against,
    }


def read_baselines(path: Path) -> list[tuple[str, float, float]]:
    """(model, natural accuracy, rendition accuracy) of a CSV file: model, set, accuracy.

    `set` is natural or rendition, `accuracy` a fraction.

    Raises UserError naming the line that is wrong, or the model that lacks one of the two.
    """
    found: dict[str, dict[str, float]] = {}
    try:
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                accuracy = float(row["accuracy"])
                if row["set"] not in DOMAINS or not 0 <= accuracy <= 1:
                    raise ValueError(f"set {row['set']!r}, accuracy {row['accuracy']!r}")
                found.setdefault(row["model"], {})[row["set"]] = accuracy
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read ({type(error).__name__}: {error}); it needs columns model, "
            f"set ({' or '.join(DOMAINS)}) and accuracy (0 to 1)"
        ) from error
    for model, one in found.items():
        missing = [domain for domain in DOMAINS if domain not in one]
        if missing:
            raise UserError(f"{path}: {model} has no accuracy for {missing[0]}; give both")
    return [(model, one["natural"], one["rendition"]) for model, one in found.items()]


def law(study: Study) -> dict[str, Any]:
    """The law fitted to the mixes, each mix predicted by the others, and the rest by all of them.

    Returns:
      {"domains": {domain: parameters}, "predictions": [...]}, or {"refused": why there is none}.
    """
    known = [
        (i, group)
        for i, group in enumerate(study.groups)
        if group.usual and group.counted and group.counts is not None
    ]
    fitted = [i for i, group in known if group.pure]
    others = [i for i, group in known if not group.pure]
    counts = {i: np.array(group.counts, np.float64) for i, group in known}
    found: dict[str, Any] = {"domains": {}, "predictions": []}
    for column, domain in enumerate(DOMAINS):
        logits = {
            i: robustness.logit(study.means[i, column], study.images[column]) for i, _ in known
        }

        def fit(members, column=column, logits=logits):
            own = np.array([counts[i][column] for i in members])
            other = np.array([counts[i][1 - column] for i in members])
            return law_lib.fit(own, other, np.array([logits[i] for i in members]))

        try:
            whole = fit(fitted)
            without = {i: fit([j for j in fitted if j != i]) for i in fitted}
        except ValueError as error:
            return {"refused": f"{error}; amounts such as natural=30k count, weights do not"}
        found["domains"][domain] = {
            name: getattr(whole, name) for name in ("a", "b", "k", "k_low", "k_high", "scatter")
        }
        for i in [*fitted, *others]:
            used = without.get(i, whole)
            at = (counts[i][column], counts[i][1 - column])
            low, high = used.interval(*at)
            predicted = robustness.expit(used.at(*at))
            accuracy = float(study.means[i, column])
            bounds = robustness.expit(low), robustness.expit(high)
            found["predictions"].append(
                {
                    "label": study.groups[i].label,
                    "domain": domain,
                    "held_out": i in without,
                    "observed": accuracy,
                    "predicted": predicted,
                    "low": bounds[0],
                    "high": bounds[1],
                    "inside": bounds[0] <= accuracy <= bounds[1],
                }
            )
    return found


def differences(study: Study, label: str) -> dict[str, dict[str, Any]]:
    """Accuracy of every group less that of one of them, by label and domain, with intervals."""
    base = next(i for i, group in enumerate(study.groups) if group.label == label)
    found: dict[str, dict[str, Any]] = {}
    for index, group in enumerate(study.groups):
        if index == base:
            continue
        samples = study.samples[:, index, :2] - study.samples[:, base, :2]
        values = study.means[index, :2] - study.means[base, :2]
        bounds = resampling.interval(samples)
        found[group.label] = {
            domain: _told(values[column], bounds, column) for column, domain in enumerate(DOMAINS)
        }
    return found


def _told(value: float, bounds: tuple[np.ndarray, np.ndarray], *at: int) -> dict[str, float]:
    return {"value": float(value), "low": float(bounds[0][at]), "high": float(bounds[1][at])}


def _reference(study: Study, group: Group, pattern: str) -> int | None:
    def records(one: Group) -> float:
        return float(sum(one.runs[0].amounts.values()))

    fitting = [
        i
        for i, one in enumerate(study.groups)
        if one.usual and one.matches(pattern) and one.examples == group.examples
    ]
    same = [i for i in fitting if records(study.groups[i]) == records(group)]
    return max(same or fitting, key=lambda i: records(study.groups[i]), default=None)
