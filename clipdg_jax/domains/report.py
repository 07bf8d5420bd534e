"""The comparison of methods: both deciders of each, on every set of labelled images.

`measure` turns scores into figures that can be saved as JSON; `text`, `markdown` and `csv` are
three ways to show these; `write` puts them in a directory, with precision-recall curves and contact
sheets:

    table.md, table.csv                 all figures with their intervals; what was decided
    curves-<set>.png                    one panel for each decider, all methods
    sheets/<set>-<method>-<domain>.png  surest, least sure and wrong
"""

from __future__ import annotations

import csv as csv_lib
import dataclasses
import io
import math
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from clipdg_jax.data import files, schema
from clipdg_jax.domains import calibration as calibration_lib
from clipdg_jax.domains import examples as examples_lib
from clipdg_jax.domains import measures, pictures
from clipdg_jax.domains import scores as scores_lib
from clipdg_jax.evaluation import tables

TABLE, CSV, SHEETS = "table.md", "table.csv", "sheets"

# {"methods": {method: {"describe", "deciders"}},
#  "sets": {set: {"n", "left_out", "methods": {method: {"decisions", domain: measures}}}}}
Results = dict[str, Any]

_FIGURES = ("precision", "recall", "f1", "average_precision")
_TITLES = ("precision %", "recall %", "F1 %", "average precision %")
_SIZE = 120  # of a picture on a contact sheet, in pixels


@dataclasses.dataclass(frozen=True, eq=False)
class Compared:
    """A method, calibrated, and what it says of labelled images.

    Attributes:
      name: of the method.
      describe: what it is, in a line.
      calibration: its deciders.
      sets: "validation", "test", a test set, ... -> scores. Images that could not be decoded, and
        those without a label (domain -1), are left out and counted.
    """

    name: str
    describe: str
    calibration: calibration_lib.Calibration
    sets: Mapping[str, scores_lib.Scores]


def write(
    directory: pathlib.Path,
    compared: Sequence[Compared],
    images: Mapping[str, examples_lib.Examples] | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Results:
    """Measures, and writes the tables, the curves and the contact sheets.

    Args:
      directory: exists; what an earlier call wrote there is replaced.
      compared: at least one method.
      images: sets that get contact sheets -> the examples that were scored, found by key.
      resamples, seed: of the bootstrap intervals.

    Returns:
      What `measure` gives.
    """
    results = measure(compared, resamples=resamples, seed=seed)
    files.write_text(directory / TABLE, markdown(results))
    files.write_text(directory / CSV, csv(results))
    for name in results["sets"]:
        _curves(directory / f"curves-{_file_name(name)}.png", compared, results, name)
    for name, examples in (images or {}).items():
        if name in results["sets"]:
            files.make_directory(directory / SHEETS)
            _sheets(directory / SHEETS, compared, name, examples)
    return results


def measure(compared: Sequence[Compared], *, resamples: int = 1000, seed: int = 0) -> Results:
    """Every decider of every method on every set; JSON-able. Sets without a label are left out."""
    results: Results = {"methods": {}, "sets": {}}
    for one in compared:
        deciders = {}
        for decider in one.calibration.deciders:
            deciders[decider.domain] = decider.to_json()
            del deciders[decider.domain]["validation"]  # among the sets, like any other
        results["methods"][one.name] = {"describe": one.describe, "deciders": deciders}
        for name, scored in one.sets.items():
            told = _told(scored)
            if not len(told):
                continue
            found = results["sets"].setdefault(name, {"methods": {}})
            found["n"] = len(told)
            found["left_out"] = len(scored) - len(told)
            decisions = calibration_lib.decide(told.probability, one.calibration)
            entry = {"decisions": measures.confusion(decisions, told.domain).tolist()}
            for column, decider in enumerate(one.calibration.deciders):
                entry[decider.domain] = measures.measure(
                    told.probability[:, column],
                    told.domain == column,
                    decider.threshold,
                    confidence=decider.confidence,
                    resamples=resamples,
                    seed=seed,
                ).to_json()
            found["methods"][one.name] = entry
    return results


def text(results: Results) -> str:
    """For a terminal: a table for each set, then why a decider has no threshold."""
    blocks = []
    for name, found in results["sets"].items():
        head = ("decider", "method", "threshold", "taken", *_TITLES)
        blocks.append(f"{_heading(name, found)}\n{tables.aligned(head, _rows(results, name), 2)}")
    refusals = [f"{method}: {refusal}" for method, refusal in _refusals(results)]
    return "\n\n".join([*blocks, *["\n".join(refusals)] * bool(refusals)])


def markdown(results: Results) -> str:
    """The same tables, what the methods are, and the decisions on each domain."""
    head = ("decider", "method", "threshold", "taken", *_TITLES)
    blocks = ["# Natural or rendition: the comparison", _preface(results)]
    blocks.append(
        "\n".join(f"- **{name}**: {one['describe']}" for name, one in results["methods"].items())
    )
    refusals = [f"- {method}: {refusal}" for method, refusal in _refusals(results)]
    if refusals:
        blocks.append("Without a threshold, and so taking nothing:\n\n" + "\n".join(refusals))
    for name, found in results["sets"].items():
        blocks += [f"## {_heading(name, found)}", tables.markdown(head, _rows(results, name), 2)]
        blocks += ["What both deciders together made of each domain:", _decisions(found)]
    return "\n\n".join(blocks) + "\n"


def csv(results: Results) -> str:
    """One line for each set, method and decider; fractions, empty where undefined."""
    out = io.StringIO()
    figures = [column for f in _FIGURES for column in (f, f"{f}_low", f"{f}_high")]
    counts = ["n", "positives", "decided", "correct"]
    head = ["set", "method", "decider", "target", "rule", "threshold", *counts, *figures]
    writer = csv_lib.writer(out, lineterminator="\n")
    writer.writerow(head)
    for name in results["sets"]:
        for decider, method, measured in _entries(results, name):
            settings = results["methods"][method]["deciders"][decider]
            row = [name, method, decider, settings["target"], settings["rule"]]
            row += [settings["threshold"], *(measured[count] for count in counts)]
            for figure in _FIGURES:
                row += [measured[figure][part] for part in ("value", "low", "high")]
            writer.writerow("" if cell is None else cell for cell in row)
    return out.getvalue()


def _told(scored: scores_lib.Scores) -> scores_lib.Scores:
    """Those that can be measured: decoded and labelled."""
    kept = scored.valid & (scored.domain >= 0)
    keys = tuple(k for k, ok in zip(scored.keys, kept.tolist(), strict=True) if ok)
    return scores_lib.Scores(
        keys, scored.domain[kept], scored.probability[kept], scored.valid[kept]
    )


def _entries(results: Results, name: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(decider, method, measures) of a set; methods of one decider stand together."""
    for decider in calibration_lib.DECIDED:
        for method, entry in results["sets"][name]["methods"].items():
            yield decider, method, entry[decider]


def _rows(results: Results, name: str) -> list[list[str]]:
    rows = []
    for decider, method, value in _entries(results, name):
        measured = measures.Measured.from_json(value)
        threshold = results["methods"][method]["deciders"][decider]["threshold"]
        row = [decider, method, "-" if threshold is None else f"{threshold:.4f}"]
        row.append(str(measured.decided))
        for figure in _FIGURES:
            estimate = getattr(measured, figure)
            bounds = "" if math.isnan(estimate.low) else f" ({estimate.interval()})"
            row.append(estimate.percent() + bounds)
        rows.append(row)
    return rows


def _refusals(results: Results) -> Iterator[tuple[str, str]]:
    for method, one in results["methods"].items():
        for decider in one["deciders"].values():
            if decider["refusal"]:
                yield method, decider["refusal"]


def _heading(name: str, found: Mapping[str, Any]) -> str:
    counts = np.array(next(iter(found["methods"].values()))["decisions"]).sum(axis=1)
    domains = ", ".join(f"{n} {d}" for n, d in zip(counts, schema.DOMAINS, strict=True))
    left_out = f"; {found['left_out']} unlabelled or unreadable left out" * bool(found["left_out"])
    return f"{name}: {found['n']} images ({domains}{left_out})"


def _preface(results: Results) -> str:
    one = next(iter(results["methods"].values()))
    decider = next(iter(one["deciders"].values()))
    return (
        f"Each decider's threshold is the smallest that reaches precision {decider['target']:g} on "
        f"validation by rule `{decider['rule']}`, with at least {decider['min_support']} images "
        "taken; figures on the images that chose it flatter. In brackets "
        f"{100 * decider['confidence']:g} % intervals: Wilson's for precision and recall, "
        "bootstrap over images for F1 and average precision (in which the threshold has no part)."
    )


def _decisions(found: Mapping[str, Any]) -> str:
    """Per method and true domain, how many images got which decision."""
    rows = [
        [method, domain, *map(str, counts)]
        for method, entry in found["methods"].items()
        for domain, counts in zip(schema.DOMAINS, entry["decisions"], strict=True)
    ]
    return tables.markdown(("method", "labelled", *calibration_lib.DECISIONS), rows, 2)


def _curves(path: pathlib.Path, compared: Sequence[Compared], results: Results, name: str) -> None:
    curves, points = {}, {}
    for one in compared:
        if one.name not in results["sets"][name]["methods"]:
            continue
        told = _told(one.sets[name])
        entry = results["sets"][name]["methods"][one.name]
        deciders = one.calibration.deciders
        curves[one.name] = [
            measures.curve(told.probability[:, column], told.domain == column)
            for column in range(len(deciders))
        ]
        points[one.name] = [
            None if decider.refusal else measures.Measured.from_json(entry[decider.domain])
            for decider in deciders
        ]
    first = compared[0].calibration.deciders[0]
    title = f"{name}, {results['sets'][name]['n']} images"
    # Curves begin at a fifth of the support that counts as evidence: left of it there is noise.
    support = max(1, first.min_support // 5)
    pictures.precision_recall(path, curves, points, first.target, title, support)


def _sheets(
    directory: pathlib.Path,
    compared: Sequence[Compared],
    name: str,
    examples: examples_lib.Examples,
) -> None:
    places = {key: row for row, key in enumerate(examples.keys)}
    for one in compared:
        if name not in one.sets:
            continue
        told = _told(one.sets[name])

        def images(
            rows: Int[np.ndarray, " k"], keys=told.keys
        ) -> Sequence[UInt8[np.ndarray, "..."]]:
            chosen = np.array([places[keys[row]] for row in rows])
            parts = [batch.images(_SIZE) for batch in examples.subset(chosen).batches()]
            return list(np.concatenate(parts))

        for column, decider in enumerate(one.calibration.deciders):
            pictures.contact_sheet(
                directory / _file_name(f"{name}-{one.name}-{decider.domain}.png"),
                told.probability[:, column],
                told.domain,
                decider,
                images,
                f"{one.name}, {decider.domain} decider, {name}",
            )


def _file_name(name: str) -> str:
    """A test set's name can be that of a TFDS dataset, or hold a slash."""
    return re.sub(r"[^\w.-]+", "_", name)
