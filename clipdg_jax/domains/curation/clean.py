"""Clean test sets: of a natural set what the natural decider takes, of a rendition set what the
rendition decider takes.

A set keeps its numbering of classes. Which of them are left is derived from the labels of the
records left; an evaluation derives it from them too, so that no list of classes is needed.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipdg_jax.data import dataset, engine, files, pool, resolve, schema, shards, writing
from clipdg_jax.domains import calibration
from clipdg_jax.domains.curation import routing, scoring, table
from clipdg_jax.errors import UserError
from clipdg_jax.evaluation import suites

# Where the clean sets are, below `out`; also the suite of sets that come from none.
CLEAN = "clean"
CLASSES = "classes.json"
_RANGE = 1000  # records of a shard of a dataset that has none


@dataclasses.dataclass(frozen=True)
class TestSet:
    """A test set that is to be cleaned.

    Attributes:
        suite: that it belongs to, "" for none.
        name: of the clean set, below `clean`.
        source: its records.
        domain: natural or rendition; says which decider cleans it.
        templates: of its prompts.
        classnames: what its classes are called there, see `suites`.
    """

    __test__ = False  # not a pytest class, whatever its name

    suite: str
    name: str
    source: resolve.Source
    domain: str
    templates: tuple[str, ...] = ()
    classnames: str | None = None


@dataclasses.dataclass(frozen=True)
class Range:
    """Records `start` to `stop` - 1 of a dataset that is read by index only, as a shard."""

    name: str
    source: resolve.Source
    start: int
    stop: int

    def __iter__(self) -> Iterator[schema.Record | shards.RecordError]:
        for index in range(self.start, self.stop):
            try:
                yield self.source.record(index)
            except shards.RecordError as error:
                yield error


def shards_of(source: resolve.Source) -> Sequence[engine.InputShard]:
    """A dataset's records as input of the shard engine."""
    if isinstance(source, dataset.Dataset):
        return source.shards()
    starts = range(0, len(source), _RANGE)
    return [
        Range(f"{source.name}-{start:08d}", source, start, min(start + _RANGE, len(source)))
        for start in starts
    ]


def resolve_sets(named: str | Mapping[str, str], data_root: str) -> list[TestSet]:
    """The test sets that `config.test_sets` names.

    Args:
        named: suites (`imagenet,domainnet`), datasets with their domains (`a=natural,b=rendition`,
            or as a mapping), or some of both.
        data_root: where suites and datasets are.

    Raises:
        UserError: there is no such suite, dataset or domain, or two sets have the same name.
    """
    if isinstance(named, Mapping):
        named = ",".join(f"{name}={domain}" for name, domain in named.items())
    found: list[TestSet] = []
    for part in filter(None, map(str.strip, named.split(","))):
        name, is_set, domain = part.rpartition("=")
        if is_set:
            source = resolve.resolve(name, data_root)
            found.append(TestSet("", os.path.normpath(name), source, domain))
            continue
        (suite,) = suites.load([part], data_root)
        for own in suite.test_sets:
            # What is of both domains has a clean version in each.
            both = own.domain not in calibration.DECIDED
            for domain in calibration.DECIDED if both else (own.domain,):
                title = f"{own.name}_{domain}" if both else own.name
                how = own.templates, own.classnames
                found.append(TestSet(suite.name, title, own.source, domain, *how))
    names = [one.name for one in found]
    for one in found:
        if one.domain not in calibration.DECIDED:
            raise UserError(
                f"config.test_sets: {one.name} is of domain {one.domain!r}; only "
                f"{' and '.join(calibration.DECIDED)} sets have a decider that can clean them"
            )
        if names.count(one.name) > 1:
            raise UserError(
                f"config.test_sets: two sets are called {one.name}; clean one of them in another "
                "run, into another config.out"
            )
        if os.path.isabs(one.name) or one.name.startswith(".."):
            raise UserError(
                f"config.test_sets: {one.name} lies outside {data_root}; put it, or a link to it, "
                "there"
            )
    return found


def clean(
    test_set: TestSet,
    saved: scoring.Saved,
    work: Path,
    out: Path,
    *,
    batch: int,
    threads: int,
    processes: int,
    target_shard_bytes: int,
    process_index: int = 0,
    process_count: int = 1,
) -> dict[str, Any] | None:
    """Scores a test set and writes what its decider takes to `<out>/clean/<name>`.

    Args:
        test_set: what to clean.
        saved: the classifier.
        work: directory of the scores.
        out: where the clean set goes.
        batch, threads: see `scoring.score`.
        processes, target_shard_bytes, process_index, process_count: see `writing.write_datasets`.

    Returns:
        JSON-able counts, decisions and classes left; None on hosts other than the first.

    Raises:
        UserError: see `scoring.score` and `writing.write_datasets`.
    """
    found, to_records = shards_of(test_set.source), pool.ToRecords(keep_uncaptioned=True)
    spread: scoring.Spread = {
        "processes": processes if len(found) > 1 else 0,
        "process_index": process_index,
        "process_count": process_count,
    }
    parent = {"name": test_set.source.name, "fingerprint": test_set.source.fingerprint}
    scoring.score(
        found,
        saved,
        work,
        identity={"test_set": parent["fingerprint"]},
        to_records=to_records,
        batch=batch,
        threads=threads,
        title=f"scoring {test_set.name}",
        **spread,
    )
    column = calibration.DECIDED.index(test_set.domain)
    threshold = saved.load().calibration.deciders[column].threshold
    target = writing.Target(
        out=out / CLEAN / test_set.name,
        split="test",
        classes=test_set.source.classes,
        domain=test_set.domain,
        tokenizer=test_set.source.tokenizer,
        parents=(parent,),
    )
    judge = routing.ByDecider(work, column, threshold, test_set.name)
    written = writing.write_datasets(
        {test_set.name: target},
        routing.numbered(found),
        routing.Route(judge, to_records),
        work=target.out,
        config={
            "job": "curate",
            "test_set": parent["fingerprint"],
            "classifier": saved.digest,
            "decider": test_set.domain,
        },
        target_shard_bytes=target_shard_bytes,
        **spread,
    )
    if written is None:
        return None
    manifest = written[test_set.name].manifest
    decisions, labels = _decided(work, len(found), judge)
    return {
        "domain": test_set.domain,
        "dataset": f"{CLEAN}/{test_set.name}",
        "seen": manifest.seen,
        "records": manifest.records,
        "dropped": dict(manifest.dropped),
        "decided": dict(zip(calibration.DECISIONS, decisions.tolist(), strict=True)),
        "classes": len(test_set.source.classes),
        "classes_left": [test_set.source.classes[label] for label in labels],
    }


def _decided(work: Path, count: int, judge: routing.ByDecider) -> tuple[np.ndarray, list[int]]:
    """How often each decision was taken, and the labels, rising, of the records that are left."""
    decisions = np.zeros(len(calibration.DECISIONS), np.int64)
    labels: set[int] = set()
    for index in range(count):
        found = table.read(work, index, (calibration.DECIDED[judge.decider], "decision", "label"))
        decisions += np.bincount(table.column(found, "decision"), minlength=len(decisions))
        scores = table.column(found, calibration.DECIDED[judge.decider])
        left = table.column(found, "label")[routing.reaches(scores, judge.threshold)]
        labels.update(left[left >= 0].tolist())
    return decisions, sorted(labels)


def write_suites(
    test_sets: Sequence[TestSet],
    cleaned: Mapping[str, Mapping[str, Any]],
    out: Path,
    say: Callable[[str], None] = print,
) -> list[str]:
    """Writes a suite of the clean sets for each suite that they come from; returns their names.

    `<out>/<suite>_clean/suite.json` has the templates and domains of the suite, and `classes.json`
    beside it the classes left of each set. Sets that come from no suite make up `<out>/clean`.
    Sets of which nothing is left, or nothing that has a class, are in none: nothing could be asked
    of them.
    """
    written = []
    for suite in dict.fromkeys(one.suite for one in test_sets):
        named = [one for one in test_sets if one.suite == suite]
        own = [one for one in named if cleaned[one.name]["classes_left"]]
        for one in named:
            if one not in own:
                say(f"{one.name}: no labelled image is left, so that no suite holds it")
        if not own:
            continue
        title = f"{suite}_{CLEAN}" if suite else CLEAN
        fields: dict[str, dict[str, Any]] = {}
        for one in own:
            place = f"../{CLEAN}/{one.name}" if suite else one.name
            fields[one.name] = {"dataset": place, "domain": one.domain}
            if one.templates:
                fields[one.name]["templates"] = list(one.templates)
            if one.classnames:
                fields[one.name]["classnames"] = one.classnames
        files.make_directory(out / title)
        left = {one.name: cleaned[one.name]["classes_left"] for one in own}
        files.write_json(out / title / CLASSES, left)
        files.write_json(out / title / "suite.json", {"name": title, "test_sets": fields})
        written.append(title)
    return written
