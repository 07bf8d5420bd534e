"""A study as tables (Markdown, CSV) and as one HTML page for people to look at."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipdg_jax.data import files
from clipdg_jax.evaluation import page, paired, plots, tables
from clipdg_jax.study import analysis
from clipdg_jax.study import sections as sections_lib
from clipdg_jax.study.groups import DOMAINS, Group, Options, Study
from clipdg_jax.study.runs import Run

PAGE, MARKDOWN = "report.html", "report.md"
GROUPS, RUNS, LAW = "groups.csv", "runs.csv", "law.csv"
CHARTS = "charts"
BARS = "accuracies.png"  # Where there are few groups.


def gather(study: Study, options: Options, left_out: Mapping[str, str]) -> dict[str, Any]:
    """`results.json`: all that the report tells.

    Raises:
      UserError: the file of other models' accuracies is not in order.
    """
    curves = analysis.curves(study)
    highest = study.groups[int(study.means[:, :2].sum(axis=1).argmax())].label
    best = curves[0]["best"] if curves else highest
    return {
        "job": "report",
        "groups": _groups(study),
        "curves": curves,
        "best": best,
        "relative": analysis.relative(study, options),
        "robustness": analysis.effective_robustness(study, options),
        "law": analysis.law(study),
        "differences": analysis.differences(study, best),
        "paired_images": study.paired,
        "left_out": dict(left_out),
    }


def write(
    directory: Path,
    results: Mapping[str, Any],
    study: Study,
    compared: Mapping[str, Sequence[paired.Comparison]],
    title: str,
) -> None:
    """Writes the page, the Markdown, the CSV files and the charts to a directory that exists.

    Args:
      directory: what an earlier report left there is replaced.
      results: of `gather`.
      study: what they are of.
      compared: pairs of runs that were asked for, "first, then second" -> `paired.compare`.
      title: of the page.
    """
    sections = list(sections_lib.build(results, study, compared))
    files.write_text(directory / PAGE, page.document(title, list(_html(title, results, sections))))
    files.write_text(directory / MARKDOWN, "\n\n".join(_markdown(title, results, sections)) + "\n")
    charts = directory / CHARTS
    charts.mkdir(exist_ok=True)
    for old in charts.glob("*.svg"):
        old.unlink()
    for chart in (one for section in sections for one in section.charts):
        files.write_text(charts / f"{chart.name}.svg", chart.svg)
    _write_csv(directory / GROUPS, *_groups_csv(results))
    _write_csv(directory / RUNS, *_runs_csv(study))
    predictions = results["law"].get("predictions", [])
    head = list(predictions[0]) if predictions else ["label", "domain"]
    _write_csv(directory / LAW, head, [list(one.values()) for one in predictions])
    usual = [group for group in study.groups if group.usual]
    if len(usual) <= len(plots.GROUPS):
        chance = min(one["chance"] for one in study.test_sets.values())
        plots.grouped_bars(_bars(study, usual), directory / BARS, chance)


def text(results: Mapping[str, Any]) -> str:
    """For a terminal: the table of accuracies, the best ratio, and what was left out."""
    head, rows = sections_lib.accuracies(results)
    parts = [tables.aligned(head, rows)]
    parts += [sections_lib.best(curve) for curve in results["curves"]]
    parts += [f"left out: {name}: {reason}" for name, reason in results["left_out"].items()]
    return "\n".join(parts)


def _groups(study: Study) -> list[dict[str, Any]]:
    found = []
    for i, group in enumerate(study.groups):
        errors = [None if np.isnan(error) else float(error) for error in study.errors[i]]
        found.append(
            {
                "label": group.label,
                "mix": group.mix,
                "seeds": [run.seed for run in group.runs],
                "runs": [run.name for run in group.runs],
                "examples": group.examples,
                "counts": dict(zip(DOMAINS, group.counts)) if group.counts else None,
                **analysis.means(study, i),
                "test_sets": {
                    name: {"top1": float(top1), "standard_error": error}
                    for name, top1, error in zip(
                        (*study.test_sets, *study.others), study.top1[i], errors
                    )
                },
            }
        )
    return found


def _html(
    title: str, results: Mapping[str, Any], sections: Sequence[sections_lib.Section]
) -> Iterator[str]:
    yield page.heading(title, 1)
    yield page.tiles(_tiles(results))
    if results["left_out"]:
        yield page.heading("Left out")
        yield page.notes([f"{name}: {reason}" for name, reason in results["left_out"].items()])
    for section in sections:
        yield page.heading(section.heading)
        yield from (page.paragraph(text) for text in section.texts)
        if section.charts:
            yield page.charts([page.chart(one.svg, one.about) for one in section.charts])
        yield from (page.table(head, rows) for head, rows in section.tables)


def _markdown(
    title: str, results: Mapping[str, Any], sections: Sequence[sections_lib.Section]
) -> Iterator[str]:
    yield f"# {title}"
    if results["left_out"]:
        yield "Left out:"
        yield "\n".join(f"- {name}: {reason}" for name, reason in results["left_out"].items())
    for section in sections:
        if section.texts or section.tables:
            yield f"## {section.heading}"
        yield from section.texts
        yield from (tables.markdown(head, rows) for head, rows in section.tables)


def _bars(study: Study, groups: Sequence[Group]) -> dict[str, list[dict[str, float]]]:
    """Of each group and seed, the domains' means and the accuracies by test set."""
    return {
        group.label: [
            {
                **{domain: _mean(study, run, domain) for domain in DOMAINS},
                **{name: run.top1(name) for name in (*study.test_sets, *study.others)},
            }
            for run in group.runs
        ]
        for group in groups
    }


def _mean(study: Study, run: Run, domain: str) -> float:
    names = [name for name, one in study.test_sets.items() if one["domain"] == domain]
    return float(np.mean([run.top1(name) for name in names]))


def _tiles(results: Mapping[str, Any]) -> dict[str, str]:
    told = {
        "mixes": str(len(results["groups"])),
        "runs": str(sum(len(group["runs"]) for group in results["groups"])),
    }
    if results["left_out"]:
        told["runs left out"] = str(len(results["left_out"]))
    if results["curves"]:
        curve = results["curves"][0]
        told["natural records in the best mix"] = f"{100 * curve['best_share']:.3g} %"
    for group in results["groups"]:
        relative = results["relative"].get(group["label"], {}).get("rendition")
        if relative and group["counts"] and not group["counts"]["rendition"]:
            told[f"relative rendition accuracy of {group['label']}"] = f"{relative['value']:.2f}"
            break
    return told


def _groups_csv(results: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    sets = list(results["groups"][0]["test_sets"])
    measures = [f"{d}{end}" for d in (*DOMAINS, "mean") for end in ("", "_low", "_high")]
    others = ["relative_natural", "relative_rendition", "effective_robustness"]
    head = [
        "label",
        "seeds",
        "examples",
        *(f"{domain}_records" for domain in DOMAINS),
        *measures,
        *others,
        *sets,
    ]
    rows = []
    for group in results["groups"]:
        counts = group["counts"] or dict.fromkeys(DOMAINS, "")
        row: list[Any] = [group["label"], len(group["seeds"]), group["examples"]]
        row += [counts[domain] for domain in DOMAINS]
        row += [group[d][end] for d in (*DOMAINS, "mean") for end in ("value", "low", "high")]
        relative = results["relative"].get(group["label"], {})
        row += [relative.get(domain, {}).get("value", "") for domain in DOMAINS]
        against = results["robustness"].get("groups", {}).get(group["label"], {})
        row.append(against.get("effective", ""))
        rows.append(row + [group["test_sets"][name]["top1"] for name in sets])
    return head, rows


def _runs_csv(study: Study) -> tuple[list[str], list[list[Any]]]:
    names = (*study.test_sets, *study.others)
    head = ["run", "label", "seed", "examples", "steps", *names]
    rows: list[list[Any]] = []
    for group in study.groups:
        for run in group.runs:
            top1 = [run.top1(name) for name in names]
            rows.append([run.name, group.label, run.seed, run.examples, run.steps, *top1])
    return head, rows


def _write_csv(path: Path, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([head, *rows])
    files.write_text(path, out.getvalue())
