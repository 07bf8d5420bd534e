"""The sections of a report: what it says of a study, in texts, tables and charts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from clipdg_jax.evaluation import paired
from clipdg_jax.study import figures
from clipdg_jax.study.groups import DOMAINS, Study

Table = tuple[list[str], list[list[str]]]


class Section:
    """A part of the report.

    Attributes:
      heading, texts: what it says.
      tables: of text; the first column names.
      charts: drawn after them.
    """

    def __init__(self, heading: str, *texts: str):
        self.heading, self.texts = heading, list(texts)
        self.tables: list[Table] = []
        self.charts: list[figures.Chart] = []


def build(
    results: Mapping[str, Any],
    study: Study,
    compared: Mapping[str, Sequence[paired.Comparison]],
) -> Iterator[Section]:
    """All sections, in order.

    Args:
      results: of `report.gather`.
      study: what they are of.
      compared: "first, then second" -> `paired.compare` of two runs.
    """
    yield _table_section(results)
    for curve in results["curves"]:
        yield _curve_section(curve)
    yield _robustness_section(results, study)
    yield _law_section(results["law"])
    yield _differences_section(results)
    if compared:
        yield _pairs_section(compared)
    section = Section(
        "Learning curves",
        "Each line is a mix, the mean of its seeds; the darker, the more natural records; dashed: "
        "random controls.",
    )
    section.charts = figures.learning(study)
    yield section
    yield _how(results)


def _table_section(results: Mapping[str, Any]) -> Section:
    section = Section(
        "Accuracy by what a model was trained on",
        "Zero-shot top-1 in percent, means over seeds, with 95 % intervals for the domains' means "
        "(in which each test set counts the same) and standard errors over seeds for test sets.",
    )
    section.tables.append(accuracies(results))
    if results["relative"]:
        section.tables.append(_relative(results))
    return section


def accuracies(results: Mapping[str, Any]) -> Table:
    """A row for each group."""
    sets = list(results["groups"][0]["test_sets"])
    head = ["trained on", "seeds", *DOMAINS, *(_column(name, sets[0]) for name in sets)]
    rows = []
    for group in results["groups"]:
        row = [group["label"], str(len(group["seeds"]))]
        row += [_percent(group[domain]) for domain in DOMAINS]
        for name in sets:
            one = group["test_sets"][name]
            error = one["standard_error"]
            spread = "" if error is None else f" ± {100 * error:.1f}"
            row.append(f"{100 * one['top1']:.1f}{spread}")
        rows.append(row)
    return head, rows


def _column(test_set: str, first: str) -> str:
    """Its name, with the suite where that is not the one compared on."""
    suite, _, name = test_set.partition("/")
    return name if suite == first.partition("/")[0] else f"{name} ({suite})"


def _relative(results: Mapping[str, Any]) -> Table:
    head = ["relative, corrected for chance", "to", *DOMAINS]
    rows = [
        [label, one["reference"], *(_ratio(one.get(domain)) for domain in DOMAINS)]
        for label, one in results["relative"].items()
        if label != one["reference"]
    ]
    return head, rows


def _curve_section(curve: Mapping[str, Any]) -> Section:
    records = f"{curve['records']:,.0f} records" if curve["records"] else "mixes by weight"
    section = Section(f"The mixing curve, {records}", best(curve))
    head = ["mix", *DOMAINS, "mean of both", "best in % of resamples"]
    rows = [
        [
            point["label"],
            *(_percent(point[measure]) for measure in (*DOMAINS, "mean")),
            f"{100 * point['chosen']:.1f}",
        ]
        for point in curve["points"]
    ]
    section.tables.append((head, rows))
    section.charts.append(figures.mixing(curve, records))
    return section


def best(curve: Mapping[str, Any]) -> str:
    """A mixing curve in a sentence."""
    records = f"Of {curve['records']:,.0f} records" if curve["records"] else "Of mixes by weight"
    return (
        f"{records}, the best mix is {curve['best']}: {_share(curve['best_share'])}; 95 % interval "
        f"{_share(curve['best_low'])} to {_share(curve['best_high'])}."
    )


def _share(natural: float) -> str:
    """Such as "75 % natural (renditions : natural = 1:3)"."""
    if natural in (0.0, 1.0):
        return f"{100 * natural:.0f} % natural"
    ratio = natural / (1 - natural)
    told = f"1:{ratio:.3g}" if ratio >= 1 else f"{1 / ratio:.3g}:1"
    return f"{100 * natural:.3g} % natural (rendition to natural {told})"


def _robustness_section(results: Mapping[str, Any], study: Study) -> Section:
    found = results["robustness"]
    if "refused" in found:
        return Section("Effective robustness", f"Left out: {found['refused']}")
    line = found["line"]
    section = Section(
        "Effective robustness",
        f"Rendition accuracy beyond what natural accuracy predicts, by a line over {line['n']} "
        f"baselines on logit axes: slope {line['slope']:.2f}, intercept {line['intercept']:.2f}, "
        f"scatter {line['scatter']:.2f}. Accuracies are clipped half an image away from 0 and 1. "
        "The interval is that of one more baseline's prediction: one that holds 0 is of a model "
        "that could be a baseline. Squares and crosses are baselines.",
    )
    rows = []
    for label, one in found["groups"].items():
        points = {key: 100 * value for key, value in one.items()}
        interval = f"{points['low']:+.1f} to {points['high']:+.1f}"
        rows.append([label, f"{points['expected']:.1f}", f"{points['effective']:+.1f}", interval])
    head = ["trained on", "expected, %", "effective robustness, points", "95 % interval"]
    section.tables.append((head, rows))
    effective = {label: one["effective"] for label, one in found["groups"].items()}
    marked = [min(effective, key=effective.__getitem__), results["best"]]
    section.charts.append(figures.against_the_line(found, study, marked))
    return section


def _law_section(found: Mapping[str, Any]) -> Section:
    if "refused" in found:
        return Section("A law of accuracy", f"Left out: {found['refused']}")
    predictions = found["predictions"]
    held = [one for one in predictions if one["held_out"]]
    others = [one for one in predictions if not one["held_out"]]
    formula = (
        "logit(accuracy) = a + b ln(own + k other), own the records of the test sets' domain and "
        "other those of the other domain: one of these is worth k of the own. Each mix is "
        "predicted by a law fitted to all others."
    )
    told = (
        f"Of {len(held)} accuracies left out, {_inside(held)} in their 95 % prediction intervals."
    )
    if others:
        told += f" Of {len(others)} of other datasets, by their composition, {_inside(others)}."
    section = Section("A law of accuracy", formula, told)
    head = ["domain", "a", "b", "k", "95 % interval of k", "scatter (logit)"]
    rows = [
        [
            domain,
            f"{one['a']:.2f}",
            f"{one['b']:.3f}",
            f"{one['k']:.3g}",
            f"{one['k_low']:.2g} to {one['k_high']:.2g}",
            f"{one['scatter']:.2f}",
        ]
        for domain, one in found["domains"].items()
    ]
    section.tables.append((head, rows))
    head = ["mix", "domain", "observed, %", "predicted, %", "95 % interval", ""]
    section.tables.append(
        (
            head,
            [
                [
                    one["label"],
                    one["domain"],
                    f"{100 * one['observed']:.1f}",
                    f"{100 * one['predicted']:.1f}",
                    f"{100 * one['low']:.1f} to {100 * one['high']:.1f}",
                    "" if one["inside"] else "outside",
                ]
                for one in predictions
            ],
        )
    )
    section.charts.append(figures.law(predictions))
    return section


def _inside(predictions: Sequence[Mapping[str, Any]]) -> str:
    count = sum(one["inside"] for one in predictions)
    return f"{count} {'lies' if count == 1 else 'lie'}"


def _differences_section(results: Mapping[str, Any]) -> Section:
    section = Section(
        f"Against {results['best']}",
        "Differences of accuracy in points, with 95 % intervals of a bootstrap over "
        + ("test images, the same for all runs, and seeds." if results["paired_images"] else
           "accuracies and seeds: not every run kept its predictions, so images are not paired."),
    )  # fmt: skip
    rows = [
        [label, *(_points(one[domain]) for domain in DOMAINS)]
        for label, one in results["differences"].items()
    ]
    section.tables.append((["trained on", *DOMAINS], rows))
    return section


def _pairs_section(compared: Mapping[str, Sequence[paired.Comparison]]) -> Section:
    section = Section(
        "Pairs of runs", "Second less first, in points, with a paired bootstrap over test images."
    )
    head = ["runs", "test set", "images", "first %", "second %", "difference"]
    rows = []
    for name, found in compared.items():
        for one in found:
            values = {"value": one.difference, "low": one.low, "high": one.high}
            accuracies = [f"{100 * one.first:.1f}", f"{100 * one.second:.1f}"]
            rows.append([name, one.test_set, f"{one.n:,}", *accuracies, _points(values)])
    section.tables.append((head, rows))
    return section


def _how(results: Mapping[str, Any]) -> Section:
    images = (
        "Intervals resample test images, the same for all runs, "
        if results["paired_images"]
        else "Not every run kept its predictions: intervals draw binomial accuracies, run by run, "
    )
    return Section(
        "How it was computed",
        f"{images}and add seeds: residuals from the means of the mixes, pooled over the mixes and "
        "inflated by sqrt(n / (n - 1)). They say nothing of other data or other worlds.",
        "Corrected accuracy is (accuracy - chance) / (1 - chance); relative is that over the "
        "reference's, which is the control that saw as many samples, of as many records where "
        "there is one. The best mix has the highest mean of both domains' means.",
        "Steps are floor(records / batch size) for each epoch, or the samples seen over the batch "
        "size.",
    )


def _percent(one: Mapping[str, float]) -> str:
    return f"{100 * one['value']:.1f} ({100 * one['low']:.1f} - {100 * one['high']:.1f})"


def _points(one: Mapping[str, float]) -> str:
    return f"{100 * one['value']:+.1f} ({100 * one['low']:+.1f} to {100 * one['high']:+.1f})"


def _ratio(one: Mapping[str, float] | None) -> str:
    return "-" if one is None else f"{one['value']:.2f} ({one['low']:.2f} - {one['high']:.2f})"
