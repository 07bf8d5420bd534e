"""What curation did, as figures (`results.json`) and as one HTML page for people to look at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipdg_jax.data import dataset, files, images, schema, shards
from clipdg_jax.domains import calibration as calibration_lib
from clipdg_jax.domains.curation import charts, samples, selection
from clipdg_jax.domains.curation.routing import TRUE_DOMAIN
from clipdg_jax.evaluation import page, stats

PAGE = "report.html"
PICTURES = 24  # of each section of a contact sheet


def pool_counts(name: str, selected: selection.Selection) -> dict[str, Any]:
    """What became of the pool's items: seen = unscored + duplicates + decided; JSON-able."""
    by_outcome = selected.by_outcome
    return {
        "name": name,
        "seen": selected.seen,
        "unscored": dict(selected.unscored),
        "faults": dict(selected.faults),
        "duplicates": by_outcome.pop("duplicate"),
        "decided": by_outcome,
    }


def composition(decided: Mapping[str, int], confidence: float = 0.95) -> dict[str, Any]:
    """The share of each decision with its Wilson interval; JSON-able, empty for no images.

    These are shares of what the deciders said, not of the truth, which an audit estimates.
    """
    n = sum(decided.values())
    if not n:
        return {}
    shares = {}
    for name, count in decided.items():
        low, high = stats.wilson_interval(count, n, confidence)
        shares[name] = {"count": count, "share": count / n, "low": low, "high": high}
    return {"n": n, "confidence": confidence, "shares": shares}


def ground_truth(
    selected: selection.Selection, datasets: Sequence[str]
) -> dict[str, dict[str, float | None]] | None:
    """Precision and recall of the datasets written, where every record names its true domain.

    Precision is the share of the records written that are truly of the dataset's domain. Recall is
    relative to the deduplicated pool: of its scored records of that domain, the share that was
    written. What is undefined, such as the precision of nothing, is None.

    Returns:
        {"natural": {"precision", "recall"}, "rendition": ...}, or None where a domain is unknown.
    """
    if selected.counts[0].any() or not selected.counts.any():
        return None
    kept = selected.counts[:, : selection.DUPLICATE]
    found = {}
    for number, name in enumerate(calibration_lib.DECIDED):
        if name in datasets:
            right = int(kept[1 + number, number])
            taken, there = int(kept[:, number].sum()), int(kept[1 + number].sum())
            found[name] = {
                "precision": right / taken if taken else None,
                "recall": right / there if there else None,
            }
    return found


def write(
    path: Path,
    results: Mapping[str, Any],
    calibration: calibration_lib.Calibration,
    selected: selection.Selection,
    picks: Mapping[str, Mapping[str, samples.Picks]],
    written: Mapping[str, dataset.Dataset],
) -> None:
    """Writes the page of a scored pool.

    Args:
        path: of the page; replaced.
        results: what `results.json` will hold.
        calibration: of the classifier.
        selected: the selection.
        picks: what to show of each dataset; see `samples.pick`.
        written: the datasets.
    """
    pool = results["pool"]
    title = f"Curation of {pool['name']}"
    body = [
        page.heading(title, 1),
        page.paragraph(f"Classifier: {results['classifier']}", quiet=True),
        page.tiles(_tiles(results)),
        *_counts(results),
        *_scores(calibration, selected),
        *_composition(results),
        *_clean(results),
        *_truth(results),
    ]
    body += [part for name in written for part in _sheets(name, picks.get(name, {}), written[name])]
    files.write_text(path, page.document(title, body))


def _tiles(results: Mapping[str, Any]) -> dict[str, str]:
    pool = results["pool"]
    told = {"items in the pool": f"{pool['seen']:,}", "duplicates": f"{pool['duplicates']:,}"}
    told["without a score"] = f"{sum(pool['unscored'].values()):,}"
    for name, one in results["datasets"].items():
        told[f"written to {name}"] = f"{one['records']:,}"
    return told


def _counts(results: Mapping[str, Any]) -> Iterator[str]:
    """Each dataset's column adds up to the pool."""
    datasets = results["datasets"]
    reasons = list(dict.fromkeys(r for one in datasets.values() for r in one["dropped"]))
    rows = [["written", *(f"{one['records']:,}" for one in datasets.values())]]
    for reason in reasons:
        cells = (f"{one['dropped'].get(reason, 0):,}" for one in datasets.values())
        rows.append([reason.replace("_", " "), *cells])
    sums = (one["records"] + sum(one["dropped"].values()) for one in datasets.values())
    rows.append(["items of the pool", *(f"{n:,}" for n in sums)])
    yield page.heading("Where every item went")
    yield page.paragraph(
        "Every dataset accounts for the whole pool: what it holds, and under which reason it left "
        "out everything else. What both deciders take is a conflict, and counts as ambiguous."
    )
    yield page.table(["", *datasets], rows, sums=1)
    faults = results["pool"]["faults"]
    if faults:
        told = ", ".join(f"{n:,} {reason.replace('_', ' ')}" for reason, n in faults.items())
        yield page.paragraph(f"Troubles that are no items: {told}.", quiet=True)


def _scores(
    calibration: calibration_lib.Calibration, selected: selection.Selection
) -> Iterator[str]:
    yield page.heading("Scores and thresholds")
    yield page.paragraph(
        "Images of the pool by the score of each decider, duplicates left out. Colours tell the "
        "decision; the scale of counts is logarithmic, and colours divide a bar by their shares."
    )
    yield _key(calibration_lib.DECISIONS)
    drawn = [
        charts.histogram(
            selected.histograms[column],
            decider.threshold,
            f"{decider.domain} decider",
            f"Histogram of the {decider.domain} decider's scores, threshold {decider.threshold:g}",
        )
        for column, decider in enumerate(calibration.deciders)
    ]
    yield page.charts(drawn)
    told = [one.validation for one in calibration.deciders]
    figures = {
        "threshold": [f"{one.threshold:.4f}" for one in calibration.deciders],
        "target": [f"{100 * one.target:g} %" for one in calibration.deciders],
        "rule": [one.rule.replace("_", " ") for one in calibration.deciders],
        "precision, %": [one.precision.percent() for one in told],
        "its interval": [one.precision.interval() for one in told],
        "recall, %": [one.recall.percent() for one in told],
        "its interval ": [one.recall.interval() for one in told],
        "images": [f"{one.n:,}" for one in told],
    }
    yield page.heading("What the deciders claim", 3)
    yield page.paragraph(
        f"On the validation labels that the thresholds were set on, with intervals at "
        f"{100 * calibration.deciders[0].confidence:g} %.",
        quiet=True,
    )
    head = ["", *(one.domain for one in calibration.deciders)]
    yield page.table(head, [[what, *cells] for what, cells in figures.items()])


def _composition(results: Mapping[str, Any]) -> Iterator[str]:
    yield page.heading("Composition by domain")
    yield page.paragraph(
        "Shares of what the deciders said, with Wilson intervals at 95 %. Deciders of high "
        "precision miss images, so that a domain's true share may be higher; an audit estimates it."
    )
    sets = {f"pool {results['pool']['name']}": results["composition"]["pool"]}
    sets |= {f"test set {n}": one for n, one in results["composition"]["test_sets"].items()}
    for name, told in sets.items():
        if not told:
            continue
        shares = [
            charts.Share(
                kind,
                one["share"],
                f"{100 * one['share']:.1f} % ({100 * one['low']:.1f} – {100 * one['high']:.1f})",
            )
            for kind, one in told["shares"].items()
        ]
        yield charts.bar(f"{name}: {told['n']:,} images", shares)


def _clean(results: Mapping[str, Any]) -> Iterator[str]:
    if not results["clean"]:
        return
    rows = [
        [
            name,
            one["domain"],
            f"{one['records']:,} of {one['seen']:,}",
            f"{len(one['classes_left']):,} of {one['classes']:,}",
        ]
        for name, one in results["clean"].items()
    ]
    yield page.heading("Clean test sets")
    yield page.paragraph(
        "A natural set keeps what the natural decider takes, a rendition set what the rendition "
        "decider takes. An evaluation asks for the classes that are left."
    )
    yield page.table(["test set", "domain", "images kept", "classes left"], rows)


def _truth(results: Mapping[str, Any]) -> Iterator[str]:
    truth = results.get("ground_truth")
    if not truth:
        return

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.2f} %"

    rows = [[n, percent(one["precision"]), percent(one["recall"])] for n, one in truth.items()]
    yield page.heading("Against the truth")
    yield page.paragraph(
        "Every record of this pool names its true domain. Precision is of the records written; "
        "recall is relative to the scored records of that domain in the deduplicated pool."
    )
    yield page.table(["dataset", "precision", "recall"], rows)


def _sheets(
    name: str, sections: Mapping[str, samples.Picks], written: dataset.Dataset
) -> Iterator[str]:
    """Contact sheets of one dataset."""
    yield page.heading(f"{name}: {len(written):,} records")
    yield page.paragraph(
        "Below each image its probability of natural and of rendition. A frame has the colour of "
        "the true domain, where the record names one.",
        quiet=True,
    )
    for section, picked in sections.items():
        if len(picked.index):
            yield page.heading(section, 3)
            yield charts.gallery(list(_pictures(picked, written)))


def _pictures(
    picked: samples.Picks, written: dataset.Dataset
) -> Iterator[tuple[np.ndarray, str, str]]:
    for index, (natural, rendition) in zip(picked.index.tolist(), picked.probability.tolist()):
        try:
            record = written.record(index)
            image = images.decode(record.image)
        except (shards.RecordError, images.ImageError):
            continue  # damaged since it was written; `tools.inspect --verify` tells
        truth = record.meta.get(TRUE_DOMAIN, "")
        frame = truth if truth in schema.DOMAINS else ""
        yield image, f"{natural:.2f} · {rendition:.2f}", frame


def _key(names: Sequence[str]) -> str:
    cells = "".join(
        f'<span><i style="background:{charts.COLOURS[name]}"></i>{name}</span>' for name in names
    )
    return f"<div class=key>{cells}</div>"
