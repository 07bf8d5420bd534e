"""From labels to examples: which records they are about, and which train, calibrate and test."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence, Set
from typing import Any

import ml_collections
import numpy as np

from clipdg_jax.data import files, resolve
from clipdg_jax.domains import examples as examples_lib
from clipdg_jax.domains import inputs as inputs_lib
from clipdg_jax.domains import label_table, splits
from clipdg_jax.errors import UserError

PARTS = ("train", "validation", "test")

Examples = examples_lib.Examples
_NOTHING: Mapping[str, Set[str]] = {}


@dataclasses.dataclass(frozen=True, eq=False)
class Read:
    """Labels as they were read.

    Attributes:
      examples: what they are about.
      consensus: of each example, in the same order.
      provenance: JSON-able: where they come from, how many were left out and why.
    """

    examples: Examples
    consensus: label_table.Consensus
    provenance: Mapping[str, Any]


def read(
    path: str, sources: Sequence[resolve.Source], exclude: Mapping[str, Set[str]] = _NOTHING
) -> Read:
    """Labels of a store or file, one domain a record.

    Args:
      path: what `label_table.read` takes.
      sources: the datasets that were labelled; labels of others are counted and left out.
      exclude: a dataset's fingerprint -> the keys whose labels are counted and left out.

    Raises:
      UserError: a key is unknown, or no label is of these datasets.
    """
    agreed = label_table.consensus(label_table.read(path))
    parts, taken, excluded = [], [], 0
    for source in sources:
        about = [i for i in range(len(agreed)) if _is_about(agreed, i, source, sources)]
        barred = exclude.get(source.fingerprint, frozenset())
        rows = np.array([i for i in about if agreed.key[i] not in barred], np.int64)
        excluded += len(about) - len(rows)
        if len(rows):
            parts.append(_located(agreed.subset(rows), source))
            taken.append(rows)
    if not parts:
        names = ", ".join(source.name for source in sources)
        besides = f" ({excluded} are excluded)" if excluded else ""
        raise UserError(
            f"{path}: none of its {len(agreed)} labels is of {names}{besides}; name the datasets "
            "that were labelled in config.data.datasets"
        )
    own = agreed.subset(np.concatenate(taken))
    provenance = {
        "labels": path,
        "records": len(own),
        "of_other_datasets": len(agreed) - len(own) - excluded,
        "excluded": excluded,
        "ties": agreed.ties,
        "adjudicated": int(own.adjudicated.sum()),
        "from_random_draws": int(own.random.sum()),
        "annotators_per_record": float(own.annotators.mean()),
        "consensus": files.digest([own.fingerprint, own.key, own.domain.tolist()]),
    }
    return Read(examples_lib.join(parts), own, provenance)


def split(read: Read, config: ml_collections.ConfigDict, seed: int) -> dict[str, Examples]:
    """The labels that train, that calibrate and that test.

    Args:
      config: the section `labels`: `validation`, `test`, `min_annotators`.

    Raises:
      UserError: the labels do not suffice.
    """
    parts = splits.split(
        read.consensus,
        validation=config.validation,
        test=config.test,
        min_annotators=config.min_annotators,
        seed=seed,
    )
    return dict(zip(PARTS, (read.examples.subset(rows) for rows in parts), strict=True))


def of_records(
    sources: Sequence[resolve.Source], exclude: Mapping[str, Set[str]] = _NOTHING
) -> Read:
    """Every record of the datasets, save those excluded, with the domain that it names itself.

    That counts as decided, and all records as drawn. Raises UserError where one names none.
    """
    parts, excluded = [], 0
    for source in sources:
        whole, barred = (
            examples_lib.everything(source),
            exclude.get(source.fingerprint, frozenset()),
        )
        parts.append(whole.subset(np.array([key not in barred for key in whole.keys], bool)))
        excluded += len(whole) - len(parts[-1])
    for source, part in zip(sources, parts, strict=True):
        unknown = np.flatnonzero(part.domain < 0)
        if len(unknown):
            raise UserError(
                f"{source.name}: {part.keys[unknown[0]]} and {len(unknown) - 1} more records name "
                "no domain; import it with --domains, or set config.labels.path"
            )
    data = examples_lib.join(parts)
    n = len(data)
    provenance = {"labels": "the records' own domains", "records": n, "excluded": excluded}
    consensus = label_table.Consensus(
        key=data.keys,
        dataset=tuple(sources[i].name for i in data.source.tolist()),
        fingerprint=tuple(sources[i].fingerprint for i in data.source.tolist()),
        index=data.index,
        domain=data.domain,
        annotators=np.zeros(n, np.int32),
        random_annotators=np.zeros(n, np.int32),
        random=np.ones(n, bool),
        adjudicated=np.ones(n, bool),
        probability=np.ones(n),
        ties=0,
        few=0,
    )
    return Read(data, consensus, provenance)


def fingerprint(path: str) -> str:
    """Identifies what a store or file of labels says."""
    table = label_table.read(path)
    return files.digest([table.identities(), table.column("annotator"), table.column("domain")])


def check(parts: Mapping[str, Examples]) -> None:
    """Raises UserError where natural or rendition has no label in one of the parts."""
    for name, part in parts.items():
        counts = part.counts()
        for domain in inputs_lib.DOMAINS[:2]:
            if not counts[domain]:
                told = ", ".join(f"{count} {other}" for other, count in counts.items())
                raise UserError(
                    f"labels: none of the {len(part)} for {name} says {domain} ({told}); label "
                    "more, of both natural and rendition"
                )


def _located(agreed: label_table.Consensus, source: resolve.Source) -> Examples:
    """The records of one dataset that labels are about."""
    index = agreed.index
    same = np.array([print_ == source.fingerprint for print_ in agreed.fingerprint], bool)
    if not (same & (index >= 0)).all():
        index = label_table.locate(source, agreed.key)
    return Examples(
        (source,), np.zeros(len(agreed), np.int32), index, agreed.domain, tuple(agreed.key)
    )


def _is_about(
    agreed: label_table.Consensus,
    row: int,
    source: resolve.Source,
    sources: Sequence[resolve.Source],
) -> bool:
    """By the dataset's content where the label knows it, else by its name, else the only one."""
    if agreed.fingerprint[row]:
        return agreed.fingerprint[row] == source.fingerprint
    if agreed.dataset[row]:
        return agreed.dataset[row] == source.name
    return len(sources) == 1
